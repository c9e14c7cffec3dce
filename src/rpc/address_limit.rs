//! Limits how many connections one address may have.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;

use parking_lot::Mutex;

/// How many connections each address has, up to a limit.
#[derive(Debug)]
pub(super) struct AddressLimit {
    limit: usize,
    /// Only addresses that have connections, so there are no more entries than connections.
    counts: Mutex<HashMap<IpAddr, usize>>,
}

/// A connection of an address, until this is dropped.
#[derive(Debug)]
pub(super) struct AddressPermit {
    limit: Arc<AddressLimit>,
    address: IpAddr,
}

impl AddressLimit {
    pub(super) fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self {
            limit,
            counts: Mutex::default(),
        })
    }

    /// `None` if the address has as many connections as it may have.
    pub(super) fn try_acquire(self: &Arc<Self>, address: IpAddr) -> Option<AddressPermit> {
        let address = network(address);
        let mut counts = self.counts.lock();
        let count = counts.entry(address).or_default();
        if *count >= self.limit {
            return None;
        }
        *count += 1;
        Some(AddressPermit {
            limit: Arc::clone(self),
            address,
        })
    }
}

impl Drop for AddressPermit {
    fn drop(&mut self) {
        let mut counts = self.limit.counts.lock();
        if let Some(count) = counts.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.address);
            }
        }
    }
}

/// What counts as one address: an IPv4 address, or a /64 network of IPv6, of which each host can choose its addresses.
pub(super) fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(address) => address.into(),
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() & (u128::MAX << 64)).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_may_have_as_many_connections_as_the_limit() {
        let limit = AddressLimit::new(2);
        let acquire = |address: &str| limit.try_acquire(address.parse().unwrap());
        let one = acquire("192.0.2.1");
        let two = acquire("::ffff:192.0.2.1");
        assert!(one.is_some() && two.is_some() && acquire("192.0.2.1").is_none());
        let other = [acquire("2001:db8::1"), acquire("2001:db8::2")];
        assert!(acquire("2001:db8::3").is_none() && acquire("2001:db8:0:1::").is_some());
        drop(one);
        assert!(acquire("192.0.2.1").is_some());
        drop((two, other));
        assert!(limit.counts.lock().is_empty());
    }
}
