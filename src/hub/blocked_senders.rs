//! The senders that wait until a mailbox has room for them.

use std::collections::BTreeMap;
use std::task::Waker;

/// A sender that waits.
#[derive(Debug)]
pub(super) struct Waiter {
    pub(super) waker: Waker,
    /// The weight of what it has to push.
    pub(super) weight: usize,
    /// The number of the batch before which it began to wait.
    pub(super) since: u64,
}

/// Where a sender is in the queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Position(u64);

/// Senders in the order in which they found the mailbox full.
#[derive(Debug, Default)]
pub(super) struct BlockedSenders {
    waiters: BTreeMap<Position, Waiter>,
    /// The number of positions that were given.
    given: u64,
}

impl BlockedSenders {
    pub(super) fn is_empty(&self) -> bool {
        self.waiters.is_empty()
    }

    /// Appends a sender.
    pub(super) fn push(&mut self, waiter: Waiter) -> Position {
        let position = Position(self.given);
        self.given += 1;
        self.waiters.insert(position, waiter);
        position
    }

    /// Puts a sender back to its position, or replaces what it waits with.
    pub(super) fn put_back(&mut self, position: Position, waiter: Waiter) {
        self.waiters.insert(position, waiter);
    }

    /// Removes the sender at this position, unless it has been woken.
    pub(super) fn remove(&mut self, position: Position) {
        self.waiters.remove(&position);
    }

    /// Removes the first sender if it matches.
    pub(super) fn pop_if(&mut self, matches: impl FnOnce(&Waiter) -> bool) -> Option<Waiter> {
        let first = self.waiters.first_entry()?;
        matches(first.get()).then(|| first.remove())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn waiter(weight: usize) -> Waiter {
        Waiter {
            waker: Waker::noop().clone(),
            weight,
            since: 0,
        }
    }

    fn pop(queue: &mut BlockedSenders) -> Option<usize> {
        queue.pop_if(|_| true).map(|waiter| waiter.weight)
    }

    #[test]
    fn senders_are_woken_in_order_and_those_that_left_are_not() {
        let mut queue = BlockedSenders::default();
        let positions: Vec<_> = (0..5).map(|weight| queue.push(waiter(weight))).collect();
        queue.remove(positions[3]);
        queue.remove(positions[0]);
        assert!(queue.pop_if(|first| first.weight > 1).is_none());
        assert_eq!(pop(&mut queue), Some(1));
        queue.remove(positions[1]);
        queue.push(waiter(5));
        assert_eq!(pop(&mut queue), Some(2));
        queue.put_back(positions[2], waiter(2));
        for weight in [2, 4, 5] {
            assert_eq!(pop(&mut queue), Some(weight));
        }
        assert!(queue.is_empty() && pop(&mut queue).is_none());
    }
}
