//! The order in which the changes of rooms that wait are written: in turn, small ones first.
//!
//! As deficit round robin (M. Shreedhar and G. Varghese, "Efficient fair queuing using deficit round robin", 1995), except that within a
//! round the logs with the least bytes go first: one that appends little does not wait for those that append much, and those wait for at most
//! a round of the others.

use std::collections::{BTreeMap, HashMap};

use super::LogId;

/// How much a log may append in a round, in bytes, before those that have appended less.
const QUANTUM: u64 = 1 << 20;

/// What a change costs besides its bytes, in bytes.
const CHANGE_COST: u64 = 1 << 10;

/// When a change is written: first those of an earlier round, then those of logs that append less in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Turn {
    round: u64,
    /// The virtual finish time of the change, in bytes: where its log started, which is at least the round times [`QUANTUM`], plus what
    /// it has appended since.
    end: u64,
    arrival: u64,
}

/// Changes that wait to be written. It has no limit of its own: a room waits for its change before it makes the next one.
pub(super) struct TurnQueue<T> {
    waiting: BTreeMap<Turn, (u64, T)>,
    /// The end of the newest change of each log, if it is in this round or a later one.
    ends: HashMap<LogId, u64>,
    round: u64,
    arrivals: u64,
}

impl<T> TurnQueue<T> {
    pub(super) fn new() -> Self {
        Self {
            waiting: BTreeMap::new(),
            ends: HashMap::new(),
            round: 0,
            arrivals: 0,
        }
    }

    /// Adds a change of `log` that takes `bytes`. The changes of one log keep their order.
    pub(super) fn push(&mut self, log: LogId, bytes: usize, change: T) {
        let cost = bytes as u64 + CHANGE_COST;
        let end = self.ends.entry(log).or_default();
        let start = (*end).max(self.round * QUANTUM);
        *end = start + cost;
        let turn = Turn {
            round: start / QUANTUM,
            end: *end,
            arrival: self.arrivals,
        };
        self.arrivals += 1;
        self.waiting.insert(turn, (cost, change));
    }

    /// What the next change costs, in bytes.
    pub(super) fn next_cost(&self) -> Option<u64> {
        self.waiting.first_key_value().map(|(_, (cost, _))| *cost)
    }

    /// Takes the next change.
    pub(super) fn pop(&mut self) -> Option<T> {
        let (turn, (_, change)) = self.waiting.pop_first()?;
        if self.waiting.is_empty() {
            // Nobody waits for anybody.
            self.ends.clear();
        } else if turn.round > self.round {
            self.round = turn.round;
            self.ends.retain(|_, end| *end > turn.round * QUANTUM);
        }
        Some(change)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEA: LogId = LogId(1);
    const MILK: LogId = LogId(2);

    fn drain(queue: &mut TurnQueue<u32>) -> Vec<u32> {
        std::iter::from_fn(|| queue.pop()).collect()
    }

    #[test]
    fn whoever_writes_little_does_not_wait_for_those_who_write_much() {
        let mut queue = TurnQueue::new();
        for room in 10..30 {
            queue.push(LogId(room), 1 << 20, room);
        }
        for n in 0..100 {
            queue.push(TEA, 300, 1);
            assert_eq!(queue.pop().unwrap(), 1, "{n}");
            if n % 10 == 0 {
                let room = queue.pop().unwrap();
                queue.push(LogId(room), 1 << 20, room);
            }
        }
        // Of those that write equally much none is left out.
        let mut served: Vec<_> = (0..20).map(|_| queue.pop().unwrap()).collect();
        served.sort_unstable();
        served.dedup();
        assert_eq!(served.len(), 20);
    }

    #[test]
    fn a_large_change_waits_for_little_more_than_a_quantum_of_each_other_room() {
        let mut queue = TurnQueue::new();
        queue.push(TEA, 3_000_000, 0_u64);
        let mut before = 0;
        loop {
            queue.push(MILK, 10_000, 10_000);
            match queue.pop().unwrap() {
                0 => break,
                bytes => before += bytes,
            }
        }
        assert!(before <= QUANTUM, "{before}");
    }

    #[test]
    fn the_changes_of_one_room_keep_their_order() {
        let mut queue = TurnQueue::new();
        for (n, bytes) in [5_000_000, 10, 700_000, 0, 2_000_000, 3].into_iter().enumerate() {
            queue.push(TEA, bytes, u32::try_from(n).unwrap());
        }
        assert_eq!(drain(&mut queue), [0, 1, 2, 3, 4, 5]);
    }

    #[test]
    fn an_empty_queue_remembers_nothing() {
        let mut queue = TurnQueue::new();
        queue.push(TEA, 5_000_000, 1);
        assert_eq!(drain(&mut queue), [1]);
        assert!(queue.ends.is_empty());
        queue.push(TEA, 100, 1);
        queue.push(MILK, 101, 2);
        assert_eq!(drain(&mut queue), [1, 2]);
    }
}
