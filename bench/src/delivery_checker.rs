//! Checks that one subscriber receives every message of one publisher exactly once and in order.

use std::collections::VecDeque;

/// The most gaps that are tracked. Beyond that the oldest gap counts as lost, which bounds the memory when a server
/// loses every other message.
const MAX_GAPS: usize = 1_024;

/// The numbers `first..end`, which have not arrived although later ones have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Gap {
    first: u32,
    end: u32,
}

/// Delivery faults, summed over pairs of publisher and subscriber.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct DeliveryFaults {
    /// Messages that never arrived.
    pub lost: u64,
    /// Repeated deliveries of a message.
    pub duplicated: u64,
    /// Messages that arrived after one that was sent later.
    pub reordered: u64,
}

impl DeliveryFaults {
    /// Whether there are no faults.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

impl std::ops::AddAssign for DeliveryFaults {
    fn add_assign(&mut self, other: Self) {
        self.lost += other.lost;
        self.duplicated += other.duplicated;
        self.reordered += other.reordered;
    }
}

/// Checks the messages that one subscriber receives from one publisher.
#[derive(Debug, Clone, Default)]
pub(super) struct DeliveryChecker {
    /// The number of the next message, unless one is missing.
    expected: u32,
    gaps: VecDeque<Gap>,
    faults: DeliveryFaults,
}

impl DeliveryChecker {
    /// Records a delivery. Returns whether it is the first delivery of this message.
    #[inline]
    pub(super) fn observe(&mut self, number: u32) -> bool {
        if number == self.expected {
            self.expected = self.expected.saturating_add(1);
            return true;
        }
        self.observe_unexpected(number)
    }

    #[cold]
    fn observe_unexpected(&mut self, number: u32) -> bool {
        if number > self.expected {
            self.gaps.push_back(Gap {
                first: self.expected,
                end: number,
            });
            self.expected = number.saturating_add(1);
            if self.gaps.len() > MAX_GAPS
                && let Some(oldest) = self.gaps.pop_front()
            {
                self.faults.lost += u64::from(oldest.end - oldest.first);
            }
            return true;
        }
        let Some(at) = self
            .gaps
            .iter()
            .position(|gap| (gap.first..gap.end).contains(&number))
        else {
            self.faults.duplicated += 1;
            return false;
        };
        self.faults.reordered += 1;
        let Some(gap) = self.gaps.remove(at) else {
            return true;
        };
        let rest = [
            Gap {
                first: gap.first,
                end: number,
            },
            Gap {
                first: number.saturating_add(1),
                end: gap.end,
            },
        ];
        for part in rest.into_iter().rev().filter(|part| part.first < part.end) {
            self.gaps.insert(at, part);
        }
        true
    }

    /// Returns the faults, given that the publisher has sent the numbers below `sent`.
    pub(super) fn faults(&self, sent: u32) -> DeliveryFaults {
        let gaps: u64 = self.gaps.iter().map(|gap| u64::from(gap.end - gap.first)).sum();
        let tail = u64::from(sent.saturating_sub(self.expected));
        DeliveryFaults {
            lost: self.faults.lost + gaps + tail,
            ..self.faults
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn faults(deliveries: &[u32], sent: u32) -> DeliveryFaults {
        let mut checker = DeliveryChecker::default();
        for &number in deliveries {
            checker.observe(number);
        }
        checker.faults(sent)
    }

    #[test]
    fn a_complete_stream_has_no_faults() {
        assert!(faults(&[0, 1, 2, 3], 4).is_empty());
    }

    #[test]
    fn a_lost_message_is_detected_at_any_position() {
        assert_eq!(faults(&[1, 2, 3], 4).lost, 1);
        assert_eq!(faults(&[0, 3], 4).lost, 2);
        assert_eq!(faults(&[0, 1], 4).lost, 2);
        assert_eq!(faults(&[], 4).lost, 4);
    }

    #[test]
    fn a_duplicate_is_detected() {
        assert_eq!(
            faults(&[0, 1, 1, 2, 0], 3),
            DeliveryFaults {
                duplicated: 2,
                ..DeliveryFaults::default()
            }
        );
    }

    #[test]
    fn a_reordered_message_is_detected_and_not_counted_as_lost() {
        assert_eq!(
            faults(&[0, 2, 1, 3], 4),
            DeliveryFaults {
                reordered: 1,
                ..DeliveryFaults::default()
            }
        );
        assert_eq!(
            faults(&[4, 0, 2, 1, 3], 5),
            DeliveryFaults {
                reordered: 4,
                ..DeliveryFaults::default()
            }
        );
    }

    #[test]
    fn a_late_message_that_arrives_twice_is_reordered_and_duplicated() {
        assert_eq!(
            faults(&[0, 2, 1, 1], 3),
            DeliveryFaults {
                reordered: 1,
                duplicated: 1,
                lost: 0
            }
        );
    }

    #[test]
    fn many_gaps_are_counted_in_bounded_memory() {
        let every_other: Vec<u32> = (0..100_000).map(|n| n * 2 + 1).collect();
        let mut checker = DeliveryChecker::default();
        for number in every_other {
            checker.observe(number);
        }
        assert!(checker.gaps.len() <= MAX_GAPS);
        assert_eq!(checker.faults(200_000).lost, 100_000);
    }

    proptest! {
        #[test]
        fn lost_and_duplicated_agree_with_a_set_of_the_deliveries(deliveries in prop::collection::vec(0_u32..50, 0..200)) {
            let faults = faults(&deliveries, 50);
            let distinct: std::collections::BTreeSet<_> = deliveries.iter().collect();
            prop_assert_eq!(faults.lost, 50 - distinct.len() as u64);
            prop_assert_eq!(faults.duplicated, (deliveries.len() - distinct.len()) as u64);
        }
    }
}
