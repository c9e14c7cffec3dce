//! How the memory of the server is divided.

use crate::rpc::BudgetLimits;

/// Roughly the memory of a connection with one stream, in bytes.
pub const CONNECTION_BYTES: u64 = 25 * 1024;

/// Roughly the memory of a query in progress, in bytes: a page as it is stored, decoded and encoded.
const QUERY_BYTES: u64 = 8 << 20;

/// The size of a page of the store, in bytes.
const PAGE_BYTES: u64 = 128 * 1024;

/// The parts into which the memory is divided.
const PARTS: u64 = 16;

/// The most that messages in transit and responses may take: more would only hide clients that do not read.
const MAX_BUDGET: u64 = 1 << 30;

/// The most queries in progress.
const MAX_QUERIES: u64 = 64;

/// The shares of those parts of a server that clients can fill. What remains is for the program, its rooms and their feeds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryPlan {
    /// For connections.
    pub connections: u64,
    /// For the logs, if they are in memory.
    pub logs: u64,
    /// For messages and responses in transit.
    pub budgets: BudgetLimits,
}

impl MemoryPlan {
    /// Divides `memory` bytes.
    #[must_use]
    pub fn new(memory: u64, is_in_memory: bool) -> Self {
        let parts = |count: u64| memory / PARTS * count;
        // Logs in memory take half of it.
        let (connections, logs, transit) = if is_in_memory { (4, 8, 1) } else { (8, 0, 2) };
        Self {
            connections: parts(connections),
            logs: parts(logs),
            budgets: budgets(parts(transit)),
        }
    }
}

/// The budgets if each of them may take `share` bytes.
fn budgets(share: u64) -> BudgetLimits {
    let size = |bytes: u64| usize::try_from(bytes).unwrap_or(usize::MAX);
    let defaults = BudgetLimits::default();
    let total = size(share.min(MAX_BUDGET));
    BudgetLimits {
        received: total / 2,
        received_per_connection: defaults.received_per_connection.min(total / 8),
        unread: total / 2,
        responses: total,
        responses_per_connection: defaults.responses_per_connection.min(total / 4),
        pages: size((share / 2 / PAGE_BYTES).max(8)),
        queries: size((share / QUERY_BYTES).clamp(1, MAX_QUERIES)),
    }
}

/// The most that the budgets allow clients to take, in bytes.
pub fn transit_bytes(budgets: &BudgetLimits) -> u64 {
    let bytes = |count: usize| u64::try_from(count).unwrap_or(u64::MAX);
    bytes(budgets.received)
        .saturating_add(bytes(budgets.unread))
        .saturating_add(bytes(budgets.responses))
        .saturating_add(bytes(budgets.pages).saturating_mul(PAGE_BYTES))
        .saturating_add(bytes(budgets.queries).saturating_mul(QUERY_BYTES))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_budgets_are_those_of_512_mib() {
        assert_eq!(MemoryPlan::new(512 << 20, false).budgets, BudgetLimits::default());
    }

    #[test]
    fn the_shares_fit_into_the_memory() {
        for is_in_memory in [false, true] {
            for memory in [128 << 20, 512 << 20, 1 << 40] {
                let plan = MemoryPlan::new(memory, is_in_memory);
                let sum = plan.connections + plan.logs + transit_bytes(&plan.budgets);
                assert!(sum <= memory, "{plan:?}");
            }
        }
    }
}
