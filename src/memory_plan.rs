//! How the memory of the server is divided.

use crate::hub::RoomBudgets;
use crate::rpc::BudgetLimits;

/// Roughly the memory of a connection with one stream, in bytes. The second one that each may have fits into what remains.
const CONNECTION_BYTES: u64 = 25 * 1024;

/// Roughly the memory of a further stream of a connection, in bytes: 6 KiB, and the message that it is handling.
const STREAM_BYTES: u64 = 8 * 1024;

/// What the transport holds for a stream whose client does not read, in bytes: a block of the feed or a page of the log, and
/// what fits into the send buffer.
const STALLED_STREAM_BYTES: u64 = 128 * 1024;

/// What TLS adds to that.
const TLS_BYTES: u64 = 10 * 1024;

/// Roughly the memory of a connection, in bytes.
#[must_use]
pub const fn connection_bytes(is_tls: bool) -> u64 {
    if is_tls {
        CONNECTION_BYTES + TLS_BYTES
    } else {
        CONNECTION_BYTES
    }
}

/// Roughly the memory of a query in progress, in bytes: a page as it is stored, decoded and encoded.
const QUERY_BYTES: u64 = 8 << 20;

/// The parts into which the memory is divided.
const PARTS: u64 = 16;

/// The most that one budget may take: more would only hide clients that do not read.
const MAX_BUDGET: u64 = 512 << 20;

/// The least limit of queries in progress, if the memory allows it, so that on a single processor one that waits for the disk does not delay the others.
const MIN_QUERIES: usize = 2;

/// The shares of those parts of a server that clients can fill. What remains is for the program and its rooms.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryPlan {
    /// For connections.
    pub connections: u64,
    /// For the logs, if they are in memory.
    pub logs: u64,
    /// For what the rooms hold.
    pub rooms: RoomBudgets,
    /// For messages, responses and streams.
    pub transport: BudgetLimits,
}

impl MemoryPlan {
    /// Divides `memory` bytes. At most one query for each of `processors` runs at a time, which is what they need most, but never fewer than two.
    #[must_use]
    pub fn new(memory: u64, is_in_memory: bool, processors: usize) -> Self {
        let part = memory / PARTS;
        // Logs in memory take half of it. There are nine budgets.
        let (connections, logs, budget) = if is_in_memory {
            (2 * part, 8 * part, part / 2)
        } else {
            (6 * part, 0, part)
        };
        let budget = budget.min(MAX_BUDGET);
        let bytes = size(budget);
        Self {
            connections,
            logs,
            rooms: RoomBudgets {
                feeds: bytes,
                mailboxes: bytes,
                message_ids: bytes,
            },
            transport: BudgetLimits {
                received: bytes,
                received_per_connection: (bytes / 8).min(4 << 20),
                unread: bytes,
                responses: bytes,
                // A whole page of history, which has about 2 MiB, and 1 MiB more.
                responses_per_connection: (bytes / 2).clamp(3 << 20, 8 << 20),
                streams: size(budget / STREAM_BYTES),
                stalled_streams: size(budget / STALLED_STREAM_BYTES),
                queries: size(budget / QUERY_BYTES).clamp(1, processors.max(MIN_QUERIES)),
            },
        }
    }
}

/// The most that the rooms' budgets allow clients to take, in bytes.
pub fn room_bytes(budgets: &RoomBudgets) -> u64 {
    [budgets.feeds, budgets.mailboxes, budgets.message_ids]
        .into_iter()
        .map(count)
        .fold(0, u64::saturating_add)
}

/// The most that the transport's budgets allow clients to take, in bytes.
pub fn transport_bytes(budgets: &BudgetLimits) -> u64 {
    [
        (budgets.received, 1),
        (budgets.unread, 1),
        (budgets.responses, 1),
        (budgets.streams, STREAM_BYTES),
        (budgets.stalled_streams, STALLED_STREAM_BYTES),
        (budgets.queries, QUERY_BYTES),
    ]
    .into_iter()
    .map(|(number, bytes)| count(number).saturating_mul(bytes))
    .fold(0, u64::saturating_add)
}

fn size(bytes: u64) -> usize {
    usize::try_from(bytes).unwrap_or(usize::MAX)
}

fn count(number: usize) -> u64 {
    u64::try_from(number).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_budgets_are_those_of_512_mib() {
        let plan = MemoryPlan::new(512 << 20, false, 64);
        assert_eq!(
            (plan.rooms, plan.transport),
            (RoomBudgets::default(), BudgetLimits::default())
        );
    }

    #[test]
    fn queries_are_limited_by_memory_and_by_processors() {
        let queries = |memory: u64, processors| MemoryPlan::new(memory, false, processors).transport.queries;
        assert_eq!(
            [1, 2, 3, 8].map(|processors| queries(8 << 30, processors)),
            [2, 2, 3, 8]
        );
        assert_eq!(
            [1 << 20, 512 << 20, 1 << 40].map(|memory| queries(memory, 96)),
            [1, 4, 64]
        );
    }

    #[test]
    fn the_shares_fit_into_the_memory() {
        for is_in_memory in [false, true] {
            for memory in [128 << 20, 512 << 20, 1 << 40] {
                let plan = MemoryPlan::new(memory, is_in_memory, 64);
                let shares = [
                    plan.connections,
                    plan.logs,
                    room_bytes(&plan.rooms),
                    transport_bytes(&plan.transport),
                ];
                assert!(shares.iter().sum::<u64>() <= memory, "{plan:?}");
            }
        }
    }
}
