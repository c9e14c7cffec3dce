//! The address of a server.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use http::Uri;
use http::uri::{Authority, PathAndQuery, Scheme};

/// The port of a [`ServerAddress`] that is parsed from a string without a port.
pub const DEFAULT_PORT: u16 = 50052;

/// The host and port of a server, parsed from `host:port` or `host` (with [`DEFAULT_PORT`]). With the prefix `https://` the
/// connection uses TLS; the prefix `http://` is optional. IPv6 addresses are in brackets.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ServerAddress {
    authority: Authority,
    is_tls: bool,
}

/// Why a string is not a [`ServerAddress`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// The string is not a host and a port.
    #[error("expected host:port, for example 127.0.0.1:{DEFAULT_PORT}")]
    Malformed,
    /// The port is not a number from 1 to 65535.
    #[error("the port must be a number from 1 to 65535")]
    Port,
    /// The scheme is neither `http` nor `https`.
    #[error("expected host:port, http://host:port or https://host:port")]
    Scheme,
}

impl ServerAddress {
    /// Whether the connection uses TLS.
    #[must_use]
    pub const fn is_tls(&self) -> bool {
        self.is_tls
    }

    /// The host, in brackets if it is an IPv6 address.
    #[must_use]
    pub fn host(&self) -> &str {
        self.authority.host()
    }

    /// Whether the server is on this machine, so that nobody else can read what is sent to it.
    pub(super) fn is_local(&self) -> bool {
        let host = self.host().trim_start_matches('[').trim_end_matches(']');
        host.eq_ignore_ascii_case("localhost")
            || host
                .parse::<IpAddr>()
                .is_ok_and(|address| address.to_canonical().is_loopback())
    }

    pub(super) fn uri(&self) -> Uri {
        let mut parts = http::uri::Parts::default();
        parts.scheme = Some(if self.is_tls { Scheme::HTTPS } else { Scheme::HTTP });
        parts.authority = Some(self.authority.clone());
        parts.path_and_query = Some(PathAndQuery::from_static("/"));
        Uri::from_parts(parts).expect("a scheme, an authority and a path make a URI")
    }
}

impl FromStr for ServerAddress {
    type Err = AddressError;

    fn from_str(raw: &str) -> Result<Self, AddressError> {
        let raw = raw.trim();
        let (rest, is_tls) = match raw.split_once("://") {
            Some((scheme, rest)) if scheme.eq_ignore_ascii_case("http") => (rest, false),
            Some((scheme, rest)) if scheme.eq_ignore_ascii_case("https") => (rest, true),
            Some(_) => return Err(AddressError::Scheme),
            None => (raw, false),
        };
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        let authority: Authority = rest.parse().map_err(|_| AddressError::Malformed)?;
        let host = authority.host();
        if host.is_empty()
            || authority.as_str().contains('@')
            || (host.contains(':') && !host.starts_with('['))
        {
            return Err(AddressError::Malformed);
        }
        let port = match &authority.as_str()[host.len()..] {
            "" => DEFAULT_PORT,
            port => port
                .strip_prefix(':')
                .ok_or(AddressError::Malformed)?
                .parse()
                .map_err(|_| AddressError::Port)?,
        };
        if port == 0 {
            return Err(AddressError::Port);
        }
        let authority = format!("{host}:{port}");
        let authority = authority.parse().map_err(|_| AddressError::Malformed)?;
        Ok(Self { authority, is_tls })
    }
}

impl fmt::Display for ServerAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_tls {
            return f.pad(&format!("https://{}", self.authority));
        }
        f.pad(self.authority.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(raw: &str) -> Result<String, AddressError> {
        raw.parse::<ServerAddress>().map(|address| address.to_string())
    }

    #[test]
    fn the_loopback_addresses_and_localhost_are_local() {
        let is_local = |address: &str| address.parse::<ServerAddress>().unwrap().is_local();
        for address in [
            "localhost",
            "127.8.0.1:7",
            "[::1]:7",
            "[::ffff:127.0.0.1]",
            "http://LOCALHOST:7",
        ] {
            assert!(is_local(address), "{address}");
        }
        for address in [
            "192.0.2.1",
            "[2001:db8::1]:7",
            "localhost.example",
            "chat.example:443",
        ] {
            assert!(!is_local(address), "{address}");
        }
    }

    #[test]
    fn the_scheme_and_the_port_are_optional() {
        for (raw, address) in [
            ("127.0.0.1:50052", "127.0.0.1:50052"),
            ("http://chat.example:80/", "chat.example:80"),
            ("HTTP://chat.example:80", "chat.example:80"),
            ("localhost", "localhost:50052"),
            ("[::1]:7", "[::1]:7"),
            ("http://[::1]", "[::1]:50052"),
            ("https://chat.example", "https://chat.example:50052"),
            ("HTTPS://[::1]:7/", "https://[::1]:7"),
        ] {
            assert_eq!(parse(raw).as_deref(), Ok(address), "{raw}");
        }
    }

    #[test]
    fn a_malformed_address_is_rejected_with_its_reason() {
        for (raw, error) in [
            ("", AddressError::Malformed),
            (":50052", AddressError::Malformed),
            ("::1", AddressError::Malformed),
            ("ada@localhost:1", AddressError::Malformed),
            ("localhost:1/chat", AddressError::Malformed),
            ("two words:1", AddressError::Malformed),
            ("localhost:", AddressError::Port),
            ("localhost:0", AddressError::Port),
            ("localhost:65536", AddressError::Port),
            ("localhost:chat", AddressError::Port),
            ("https://localhost:x", AddressError::Port),
            ("ftp://localhost:1", AddressError::Scheme),
            ("unix:///run/chat", AddressError::Scheme),
        ] {
            let parsed = parse(raw);
            assert!(
                parsed == Err(error) || parsed == Err(AddressError::Malformed),
                "{raw}: {parsed:?}"
            );
        }
    }

    #[test]
    fn an_address_converts_to_a_uri() {
        let address: ServerAddress = "[::1]:7".parse().unwrap();
        assert_eq!(address.uri().to_string(), "http://[::1]:7/");
        let address: ServerAddress = "https://chat.example".parse().unwrap();
        assert_eq!(address.uri().to_string(), "https://chat.example:50052/");
    }
}
