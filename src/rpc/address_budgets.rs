//! The budgets of the connections from one address.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, OnceLock, Weak};

use parking_lot::Mutex;
use tokio::sync::Semaphore;

use super::byte_budget::ByteBudget;
use super::observer::ThrottleReporter;
use super::turns::AddressTurns;
use crate::domain::limits::per_address;
use crate::hub::ReadPermits;

/// The budgets that all connections from one address share.
#[derive(Debug)]
pub(super) struct AddressBudgets {
    pub(super) connections: Arc<Semaphore>,
    pub(super) streams: Arc<Semaphore>,
    pub(super) queries: Arc<Semaphore>,
    pub(super) reflections: Arc<Semaphore>,
    /// Permits for TLS handshakes. One that is computed, or waits for those of other addresses, holds one.
    pub(super) handshakes: Semaphore,
    pub(super) received: Arc<ByteBudget>,
    pub(super) responses: Arc<ByteBudget>,
    /// What its connections hold as [`Unread`](super::unread::Unread) counts it, in bytes.
    pub(super) unread: AtomicUsize,
    /// The streams whose clients do not accept what the server has for them.
    pub(super) stalled: AtomicUsize,
    /// Of its readers, once there is one.
    pub(super) read_permits: OnceLock<ReadPermits>,
    /// The turns of its busy connections.
    pub(super) turns: Arc<AddressTurns>,
    /// Learns that its clients wait.
    pub(super) throttling: ThrottleReporter,
}

/// The addresses that have connections.
#[derive(Debug, Default)]
pub(super) struct Addresses(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    by_prefix: HashMap<IpAddr, Weak<AddressBudgets>>,
    /// The number of entries at which those without connections are removed.
    prune_at: usize,
}

impl Addresses {
    /// The budgets of `address`, made by `new` unless it has connections.
    pub(super) fn get_or_insert_with(
        &self,
        address: IpAddr,
        new: impl FnOnce() -> AddressBudgets,
    ) -> Arc<AddressBudgets> {
        let mut state = self.0.lock();
        if state.by_prefix.len() >= state.prune_at {
            state.by_prefix.retain(|_, budgets| budgets.strong_count() > 0);
            state.prune_at = 2 * state.by_prefix.len() + 1;
        }
        let entry = state.by_prefix.entry(client_prefix(address)).or_default();
        entry.upgrade().unwrap_or_else(|| {
            let budgets = Arc::new(new());
            *entry = Arc::downgrade(&budgets);
            budgets
        })
    }
}

/// The fair share of one user, such as an address, that uses `own` of `limit` while all together use `all`, in any unit: three quarters of
/// what the others leave. One user never uses up the limit, and each further one lowers the shares of those that use most.
pub(super) const fn fair_share(limit: usize, all: usize, own: usize) -> usize {
    per_address(limit.saturating_sub(all.saturating_sub(own)))
}

/// The address under which a client is counted: see [`client_prefix`]. Requests that came on no connection have one in common.
pub(super) fn address_key(address: Option<IpAddr>) -> IpAddr {
    client_prefix(address.unwrap_or(Ipv4Addr::UNSPECIFIED.into()))
}

/// The prefix that counts as one address: an IPv4 address, or a /64 of IPv6, in which each host can choose its addresses.
pub(crate) fn client_prefix(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(address) => address.into(),
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() & (u128::MAX << 64)).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::connection_budgets::{BudgetLimits, ServerBudgets};
    use super::*;

    #[test]
    fn the_connections_of_an_address_share_its_budgets() {
        let server = ServerBudgets::new(BudgetLimits::default(), 2);
        let get = |address: &str| server.address(address.parse().unwrap());
        let acquire = |address: &str| {
            let budgets = get(address);
            let permit = Arc::clone(&budgets.connections).try_acquire_owned().ok()?;
            Some((budgets, permit))
        };
        let one = acquire("192.0.2.1");
        let two = acquire("::ffff:192.0.2.1");
        assert!(one.is_some() && two.is_some() && acquire("192.0.2.1").is_none());
        let other = [acquire("2001:db8::1"), acquire("2001:db8::2")];
        assert!(acquire("2001:db8::3").is_none() && acquire("2001:db8:0:1::").is_some());
        drop(one);
        assert!(acquire("192.0.2.1").is_some());
        drop((two, other));
        for last in 0..100 {
            get(&format!("192.0.2.{last}"));
        }
        assert!(server.addresses.0.lock().by_prefix.len() < 3);
    }
}
