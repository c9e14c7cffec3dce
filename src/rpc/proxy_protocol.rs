//! Reads the address of a client that is connected through a proxy: the PROXY protocol, version 2
//! (<https://www.haproxy.org/download/3.0/doc/proxy-protocol.txt>).

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;

use tokio::io::{AsyncRead, AsyncReadExt};

/// The first bytes of a header. No other protocol begins with them.
const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";

/// Maximum length of what follows the fixed part of a header: addresses, and extensions, which are ignored.
const MAX_LEN: usize = 4096;

/// Why a header is not valid.
#[derive(Debug, thiserror::Error)]
pub enum ProxyHeaderError {
    /// The connection broke or ended before the end of the header.
    #[error("the connection ended within the header: {0}")]
    Io(#[from] io::Error),
    /// The connection does not begin with a header of version 2.
    #[error("it does not begin with a header of version 2")]
    Missing,
    /// The header is longer than any proxy makes it.
    #[error("it has {0} bytes, which is too long")]
    TooLong(usize),
    /// The header contradicts itself.
    #[error("it is malformed")]
    Malformed,
}

/// Reads the header from `io`, and nothing beyond it. Returns the address of the client; `None` if the connection is the proxy's own
/// (a health check), or the client has no IP address.
pub(super) async fn read_header(
    io: &mut (impl AsyncRead + Unpin),
) -> Result<Option<SocketAddr>, ProxyHeaderError> {
    let mut fixed = [0; 16];
    io.read_exact(&mut fixed).await?;
    let [signature @ .., version_and_command, family, high, low] = &fixed;
    if signature != SIGNATURE || version_and_command >> 4 != 2 {
        return Err(ProxyHeaderError::Missing);
    }
    let len = u16::from_be_bytes([*high, *low]).into();
    if len > MAX_LEN {
        return Err(ProxyHeaderError::TooLong(len));
    }
    let mut rest = vec![0; len];
    io.read_exact(&mut rest).await?;
    match version_and_command & 0xf {
        0 => Ok(None),
        1 => source(*family, &rest).ok_or(ProxyHeaderError::Malformed),
        _ => Err(ProxyHeaderError::Malformed),
    }
}

/// The source in the addresses of a header. `Some(None)` if they are of another kind than IP.
fn source(family: u8, addresses: &[u8]) -> Option<Option<SocketAddr>> {
    // Source, destination, port of the source, port of the destination.
    Some(match family >> 4 {
        1 => {
            let (source, rest) = addresses.split_first_chunk::<4>()?;
            let (_, ports) = rest.split_first_chunk::<4>()?;
            Some((Ipv4Addr::from(*source), port(ports)?).into())
        }
        2 => {
            let (source, rest) = addresses.split_first_chunk::<16>()?;
            let (_, ports) = rest.split_first_chunk::<16>()?;
            Some((Ipv6Addr::from(*source), port(ports)?).into())
        }
        0 | 3 => None,
        _ => return None,
    })
}

fn port(ports: &[u8]) -> Option<u16> {
    let (source, rest) = ports.split_first_chunk()?;
    (rest.len() >= 2).then_some(u16::from_be_bytes(*source))
}

/// A network, such as `10.0.0.0/8`, or a single address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Network {
    address: IpAddr,
    prefix: u8,
}

/// The string is not a network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("expected an IP address or a network such as 10.0.0.0/8")]
pub struct NetworkError;

impl Network {
    /// Whether `address` is in this network.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        let shifted = |address: IpAddr| match address {
            IpAddr::V4(address) => {
                (u128::from(address.to_bits()) << 96).checked_shr(128 - u32::from(self.prefix))
            }
            IpAddr::V6(address) => address.to_bits().checked_shr(128 - u32::from(self.prefix)),
        };
        let address = address.to_canonical();
        address.is_ipv4() == self.address.is_ipv4() && shifted(address) == shifted(self.address)
    }
}

impl FromStr for Network {
    type Err = NetworkError;

    fn from_str(raw: &str) -> Result<Self, NetworkError> {
        let (address, prefix) = match raw.trim().split_once('/') {
            Some((address, prefix)) => (address, Some(prefix)),
            None => (raw.trim(), None),
        };
        let address: IpAddr = address.parse().map_err(|_| NetworkError)?;
        let max = if address.is_ipv4() { 32 } else { 128 };
        let prefix = match prefix {
            Some(prefix) => prefix.parse().map_err(|_| NetworkError)?,
            None => max,
        };
        if prefix > max {
            return Err(NetworkError);
        }
        Ok(Self { address, prefix })
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn header(command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
        let len = u16::try_from(rest.len()).unwrap().to_be_bytes();
        [SIGNATURE, &[0x20 | command, family][..], &len, rest].concat()
    }

    async fn read(bytes: &[u8]) -> (Result<Option<SocketAddr>, ProxyHeaderError>, Vec<u8>) {
        let mut rest = bytes;
        let result = read_header(&mut rest).await;
        (result, rest.to_vec())
    }

    #[tokio::test]
    async fn the_address_of_the_client_is_read_and_what_follows_is_left() {
        let v4 = [192, 0, 2, 1, 198, 51, 100, 1, 0x12, 0x34, 0, 80, 3, 0, 1, 7];
        let mut v6 = [0; 36];
        (v6[0], v6[15], v6[33]) = (0xfe, 7, 9);
        for (bytes, expected) in [
            (header(1, 0x11, &v4), Some("192.0.2.1:4660")),
            (header(1, 0x21, &v6), Some("[fe00::7]:9")),
            (header(1, 0x31, &[0; 216]), None),
            (header(1, 0, &[]), None),
            (header(0, 0, &[]), None),
            (header(0, 0x11, &v4), None),
        ] {
            let (address, rest) = read(&[&bytes, &b"PRI"[..]].concat()).await;
            assert_eq!(
                address.unwrap().map(|address| address.to_string()).as_deref(),
                expected
            );
            assert_eq!(rest, b"PRI");
        }
    }

    #[tokio::test]
    async fn what_is_no_header_is_refused() {
        for bytes in [
            b"PRI * HTTP/2.0\r\n\r\nSM".to_vec(),
            b"PROXY TCP4 192.0.2.1 198.51.100.1 1 2\r\n".to_vec(),
            header(1, 0x11, &[0; 11]),
            header(1, 0x21, &[0; 35]),
            header(1, 0x41, &[0; 36]),
            header(2, 0x11, &[0; 12]),
            header(1, 0, &[0; 4097]),
            header(1, 0x11, &[0; 12])[..20].to_vec(),
            SIGNATURE.to_vec(),
        ] {
            assert!(read(&bytes).await.0.is_err(), "{bytes:?}");
        }
    }

    #[test]
    fn a_network_contains_its_addresses() {
        for (network, inside, outside) in [
            ("10.0.0.0/8", "10.255.0.1", "11.0.0.1"),
            ("192.0.2.1", "192.0.2.1", "192.0.2.2"),
            ("192.0.2.1", "::ffff:192.0.2.1", "::1"),
            ("2001:db8::/32", "2001:db8:1::", "2001:db9::"),
            ("0.0.0.0/0", "203.0.113.7", "::1"),
            ("::/0", "::1", "127.0.0.1"),
        ] {
            let network: Network = network.parse().unwrap();
            assert!(network.contains(inside.parse().unwrap()), "{network}");
            assert!(!network.contains(outside.parse().unwrap()), "{network}");
        }
        for wrong in [
            "",
            "10.0.0.0/33",
            "::/129",
            "10.0.0/8",
            "10.0.0.0/x",
            "proxy",
            "10.0.0.0/-1",
        ] {
            assert_eq!(wrong.parse::<Network>(), Err(NetworkError), "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn no_header_panics(command in 0_u8..16, family in any::<u8>(), rest in prop::collection::vec(any::<u8>(), 0..64)) {
            source(family, &rest);
            let bytes = header(command, family, &rest);
            let mut read = &bytes[..];
            let reading = std::pin::pin!(read_header(&mut read));
            let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
            prop_assert!(reading.poll(&mut cx).is_ready());
        }
    }
}
