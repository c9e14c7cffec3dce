//! Whether one subscriber received every message of one publisher, once, in order.

use std::collections::VecDeque;

/// How many separate holes are remembered. When there are more, the oldest is given up as lost, so that a server that
/// loses every other message cannot make the generator grow without bound.
const MAX_HOLES: usize = 1_024;

/// Numbers that have not arrived although later ones have: `first` up to, not including, `end`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Hole {
    first: u32,
    end: u32,
}

/// What is wrong with the deliveries of one or of many pairs of publisher and subscriber.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Faults {
    /// Messages that never arrived.
    pub lost: u64,
    /// Deliveries of a message that had arrived before.
    pub duplicated: u64,
    /// Messages that arrived after one that was sent later.
    pub reordered: u64,
}

impl Faults {
    /// Whether nothing is wrong.
    pub fn none(&self) -> bool {
        *self == Self::default()
    }
}

impl std::ops::AddAssign for Faults {
    fn add_assign(&mut self, other: Self) {
        self.lost += other.lost;
        self.duplicated += other.duplicated;
        self.reordered += other.reordered;
    }
}

/// Follows what one subscriber receives from one publisher.
#[derive(Debug, Clone, Default)]
pub(super) struct Checker {
    /// The number that comes next when all is well.
    next: u32,
    holes: VecDeque<Hole>,
    faults: Faults,
}

impl Checker {
    /// Notes a delivery. `true` when the message had not arrived before.
    #[inline]
    pub(super) fn see(&mut self, number: u32) -> bool {
        if number == self.next {
            self.next = self.next.saturating_add(1);
            return true;
        }
        self.see_unexpected(number)
    }

    #[cold]
    fn see_unexpected(&mut self, number: u32) -> bool {
        if number > self.next {
            self.holes.push_back(Hole {
                first: self.next,
                end: number,
            });
            self.next = number.saturating_add(1);
            if self.holes.len() > MAX_HOLES
                && let Some(given_up) = self.holes.pop_front()
            {
                self.faults.lost += u64::from(given_up.end - given_up.first);
            }
            return true;
        }
        let Some(at) = self
            .holes
            .iter()
            .position(|hole| (hole.first..hole.end).contains(&number))
        else {
            self.faults.duplicated += 1;
            return false;
        };
        self.faults.reordered += 1;
        let Some(hole) = self.holes.remove(at) else {
            return true;
        };
        let rest = [
            Hole {
                first: hole.first,
                end: number,
            },
            Hole {
                first: number.saturating_add(1),
                end: hole.end,
            },
        ];
        for part in rest.into_iter().rev().filter(|part| part.first < part.end) {
            self.holes.insert(at, part);
        }
        true
    }

    /// What was wrong, when the publisher has sent the numbers below `sent`.
    pub(super) fn judge(&self, sent: u32) -> Faults {
        let holes: u64 = self
            .holes
            .iter()
            .map(|hole| u64::from(hole.end - hole.first))
            .sum();
        let tail = u64::from(sent.saturating_sub(self.next));
        Faults {
            lost: self.faults.lost + holes + tail,
            ..self.faults
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn judge(deliveries: &[u32], sent: u32) -> Faults {
        let mut checker = Checker::default();
        for &number in deliveries {
            checker.see(number);
        }
        checker.judge(sent)
    }

    #[test]
    fn a_perfect_stream_has_no_faults() {
        assert!(judge(&[0, 1, 2, 3], 4).none());
    }

    #[test]
    fn planted_loss_is_caught_in_front_in_the_middle_and_at_the_end() {
        assert_eq!(judge(&[1, 2, 3], 4).lost, 1);
        assert_eq!(judge(&[0, 3], 4).lost, 2);
        assert_eq!(judge(&[0, 1], 4).lost, 2);
        assert_eq!(judge(&[], 4).lost, 4);
    }

    #[test]
    fn a_planted_duplicate_is_caught() {
        assert_eq!(
            judge(&[0, 1, 1, 2, 0], 3),
            Faults {
                duplicated: 2,
                ..Faults::default()
            }
        );
    }

    #[test]
    fn a_planted_reorder_is_caught_and_is_no_loss() {
        assert_eq!(
            judge(&[0, 2, 1, 3], 4),
            Faults {
                reordered: 1,
                ..Faults::default()
            }
        );
        assert_eq!(
            judge(&[4, 0, 2, 1, 3], 5),
            Faults {
                reordered: 4,
                ..Faults::default()
            }
        );
    }

    #[test]
    fn a_late_message_that_comes_twice_is_both() {
        assert_eq!(
            judge(&[0, 2, 1, 1], 3),
            Faults {
                reordered: 1,
                duplicated: 1,
                lost: 0
            }
        );
    }

    #[test]
    fn very_many_holes_are_counted_in_bounded_memory() {
        let every_other: Vec<u32> = (0..100_000).map(|n| n * 2 + 1).collect();
        let mut checker = Checker::default();
        for number in every_other {
            checker.see(number);
        }
        assert!(checker.holes.len() <= MAX_HOLES);
        assert_eq!(checker.judge(200_000).lost, 100_000);
    }

    proptest! {
        #[test]
        fn lost_and_duplicated_agree_with_counting(deliveries in prop::collection::vec(0_u32..50, 0..200)) {
            let faults = judge(&deliveries, 50);
            let distinct: std::collections::BTreeSet<_> = deliveries.iter().collect();
            prop_assert_eq!(faults.lost, 50 - distinct.len() as u64);
            prop_assert_eq!(faults.duplicated, (deliveries.len() - distinct.len()) as u64);
        }
    }
}
