//! The position of a reader in a room's log.

use super::event::Gap;
use crate::proto::{ResumePoint, ServerMessage};

/// The position of the last event received, which detects duplicates and gaps.
#[derive(Debug)]
pub(super) struct Cursor {
    seen: Option<ResumePoint>,
}

/// How a received message relates to a [`Cursor`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Observation {
    /// It is the next event, or it is not an event of the log.
    Next,
    /// It is an event that was received before.
    Duplicate,
    /// It is an event, and the events before it are missing.
    After(Gap),
}

impl Cursor {
    pub(super) const START: Self = Self { seen: None };

    /// The position after which to resume; `None` before the first event.
    pub(super) const fn position(&self) -> Option<ResumePoint> {
        self.seen
    }

    /// Whether `position` has been reached, or cannot be reached because it belongs to another epoch.
    pub(super) fn has_passed(&self, position: ResumePoint) -> bool {
        self.seen
            .is_some_and(|seen| seen.epoch != position.epoch || seen.sequence >= position.sequence)
    }

    /// Advances to `message`, unless it is a duplicate.
    pub(super) fn observe(&mut self, message: &ServerMessage) -> Observation {
        if message.sequence == 0 {
            return Observation::Next;
        }
        let position = ResumePoint {
            epoch: message.epoch,
            sequence: message.sequence,
        };
        if self
            .seen
            .is_some_and(|seen| seen.epoch == position.epoch && position.sequence <= seen.sequence)
        {
            return Observation::Duplicate;
        }
        let before = ResumePoint {
            sequence: position.sequence - 1,
            ..position
        };
        let gap = self.seen.and_then(|seen| gap_between(seen, before));
        self.seen = Some(position);
        gap.map_or(Observation::Next, Observation::After)
    }

    /// Moves the cursor to `start`, after which the server resumes, and returns the events that are missing in between.
    /// `recovered` is the server's claim that none are missing; it is not trusted beyond the last event received.
    pub(super) fn resume_at(&mut self, start: ResumePoint, recovered: bool) -> Option<Gap> {
        let seen = self.seen.replace(start)?;
        if recovered && seen.epoch == start.epoch && start.sequence <= seen.sequence {
            // Events up to `seen` that arrive again are recognised as duplicates.
            self.seen = Some(seen);
            return None;
        }
        gap_between(seen, start)
    }
}

/// The events that are missing if a reader at `seen` resumes after `start`.
const fn gap_between(seen: ResumePoint, start: ResumePoint) -> Option<Gap> {
    if seen.epoch != start.epoch {
        return Some(Gap::NewEpoch {
            seen: seen.sequence,
            after: start.sequence,
        });
    }
    if seen.sequence < start.sequence {
        return Some(Gap::Expired {
            first: seen.sequence + 1,
            last: start.sequence,
        });
    }
    if seen.sequence > start.sequence {
        return Some(Gap::Truncated {
            first: start.sequence + 1,
            last: seen.sequence,
        });
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn at(epoch: u64, sequence: u64) -> ResumePoint {
        ResumePoint { epoch, sequence }
    }

    fn event(epoch: u64, sequence: u64) -> ServerMessage {
        ServerMessage {
            epoch,
            sequence,
            ..ServerMessage::default()
        }
    }

    fn seen(epoch: u64, sequence: u64) -> Cursor {
        Cursor {
            seen: Some(at(epoch, sequence)),
        }
    }

    #[test]
    fn every_event_is_new_once() {
        let mut cursor = Cursor::START;
        assert_eq!(cursor.observe(&event(1, 5)), Observation::Next);
        assert_eq!(cursor.observe(&event(1, 6)), Observation::Next);
        assert_eq!(cursor.observe(&event(1, 6)), Observation::Duplicate);
        assert_eq!(cursor.observe(&event(1, 2)), Observation::Duplicate);
        assert_eq!(cursor.observe(&event(0, 0)), Observation::Next);
        assert_eq!(cursor.observe(&event(1, 7)), Observation::Next);
        assert_eq!(cursor.position(), Some(at(1, 7)));
    }

    #[test]
    fn a_position_is_passed_once_it_is_seen_or_its_epoch_has_ended() {
        assert!(!Cursor::START.has_passed(at(1, 0)));
        for (position, is_passed) in [
            (at(1, 4), true),
            (at(1, 5), true),
            (at(1, 6), false),
            (at(2, 6), true),
        ] {
            assert_eq!(seen(1, 5).has_passed(position), is_passed, "{position:?}");
        }
    }

    #[test]
    fn skipped_events_are_detected() {
        let mut cursor = seen(1, 5);
        let gap = Gap::Expired { first: 6, last: 8 };
        assert_eq!(cursor.observe(&event(1, 9)), Observation::After(gap));
        let gap = Gap::NewEpoch { seen: 9, after: 0 };
        assert_eq!(cursor.observe(&event(2, 1)), Observation::After(gap));
        assert_eq!(cursor.observe(&event(2, 2)), Observation::Next);
    }

    #[test]
    fn a_recovered_reader_has_no_gap_and_sees_no_duplicate() {
        let mut cursor = seen(1, 5);
        assert_eq!(cursor.resume_at(at(1, 5), true), None);
        assert_eq!(cursor.resume_at(at(1, 3), true), None);
        assert_eq!(cursor.observe(&event(1, 4)), Observation::Duplicate);
        assert_eq!(cursor.observe(&event(1, 6)), Observation::Next);
        let mut new = Cursor::START;
        assert_eq!(new.resume_at(at(1, 4), false), None);
    }

    #[test]
    fn the_servers_claim_does_not_hide_a_gap() {
        for recovered in [false, true] {
            let gap = seen(1, 5).resume_at(at(1, 7), recovered);
            assert_eq!(gap, Some(Gap::Expired { first: 6, last: 7 }));
            let gap = seen(1, 5).resume_at(at(2, 0), recovered);
            assert_eq!(gap, Some(Gap::NewEpoch { seen: 5, after: 0 }));
        }
        assert_eq!(seen(1, 5).resume_at(at(1, 5), false), None);
    }

    #[test]
    fn a_truncated_log_continues_with_other_events() {
        let mut cursor = seen(1, 5);
        let gap = Gap::Truncated { first: 4, last: 5 };
        assert_eq!(cursor.resume_at(at(1, 3), false), Some(gap));
        assert_eq!(cursor.observe(&event(1, 4)), Observation::Next);
    }
}
