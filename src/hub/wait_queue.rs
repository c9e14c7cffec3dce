//! The senders that wait until a mailbox has room for them.

use std::collections::VecDeque;
use std::task::Waker;

use crate::spare_capacity::SpareCapacity as _;

/// A sender that waits.
#[derive(Debug)]
pub(super) struct Waiter {
    pub(super) waker: Waker,
    /// The weight of what it has to push.
    pub(super) weight: usize,
    /// The number of the batch before which it began to wait.
    pub(super) since: u64,
}

/// Where a sender is in the queue; it keeps its position until it is woken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Position(u64);

/// Senders in the order in which they found the mailbox full.
#[derive(Debug, Default)]
pub(super) struct WaitQueue {
    /// Those that no longer wait leave an empty slot, except at the front.
    waiters: VecDeque<Option<Waiter>>,
    /// The position of the first one. Whoever has an earlier position has been woken.
    first: u64,
}

impl WaitQueue {
    pub(super) fn is_empty(&self) -> bool {
        self.waiters.is_empty()
    }

    /// Appends a sender.
    pub(super) fn push(&mut self, waiter: Waiter) -> Position {
        let position = Position(self.first + self.waiters.len() as u64);
        self.waiters.push_back(Some(waiter));
        position
    }

    /// The sender at this position; `None` if it has been woken.
    pub(super) fn get_mut(&mut self, position: Position) -> Option<&mut Waiter> {
        self.slot(position)?.as_mut()
    }

    /// Removes the sender at this position, unless it has been woken.
    pub(super) fn remove(&mut self, position: Position) {
        if let Some(slot) = self.slot(position) {
            *slot = None;
            self.remove_empty_slots();
        }
    }

    /// Removes the first sender if it matches.
    pub(super) fn pop_if(&mut self, matches: impl FnOnce(&Waiter) -> bool) -> Option<Waiter> {
        self.waiters.front()?.as_ref().filter(|waiter| matches(waiter))?;
        let waiter = self.waiters.front_mut()?.take();
        self.remove_empty_slots();
        waiter
    }

    fn slot(&mut self, position: Position) -> Option<&mut Option<Waiter>> {
        let index = position.0.checked_sub(self.first)?;
        self.waiters.get_mut(usize::try_from(index).ok()?)
    }

    fn remove_empty_slots(&mut self) {
        while self.waiters.pop_front_if(|waiter| waiter.is_none()).is_some() {
            self.first += 1;
        }
        self.waiters.free_spare_capacity();
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

    fn pop(queue: &mut WaitQueue) -> Option<usize> {
        queue.pop_if(|_| true).map(|waiter| waiter.weight)
    }

    #[test]
    fn senders_are_woken_in_order_and_those_that_left_are_not() {
        let mut queue = WaitQueue::default();
        let positions: Vec<_> = (0..5).map(|weight| queue.push(waiter(weight))).collect();
        queue.remove(positions[3]);
        queue.remove(positions[0]);
        assert!(queue.pop_if(|first| first.weight > 1).is_none());
        assert_eq!(pop(&mut queue), Some(1));
        assert!(queue.get_mut(positions[1]).is_none() && queue.get_mut(positions[3]).is_none());
        queue.remove(positions[1]);
        let last = queue.push(waiter(5));
        assert_eq!(queue.get_mut(last).unwrap().weight, 5);
        assert_eq!(queue.get_mut(positions[4]).unwrap().weight, 4);
        for weight in [2, 4, 5] {
            assert_eq!(pop(&mut queue), Some(weight));
        }
        assert!(queue.is_empty() && pop(&mut queue).is_none());
    }

    #[test]
    fn empty_slots_are_removed_at_the_front() {
        let mut queue = WaitQueue::default();
        let first = queue.push(waiter(0));
        for position in [(); 1_000].map(|()| queue.push(waiter(1))) {
            queue.remove(position);
        }
        assert!(!queue.is_empty());
        queue.remove(first);
        assert!(queue.is_empty() && queue.waiters.capacity() < 200);
    }
}
