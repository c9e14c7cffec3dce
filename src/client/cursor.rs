//! How far a reader is in a room's log.

use super::hole::Hole;
use crate::proto::{ResumePoint, ServerMessage};

/// The place of the last event seen. It lets every event of the log pass once, and notices what is missing.
#[derive(Debug)]
pub(super) struct Cursor {
    seen: Option<ResumePoint>,
}

/// What a message is to somebody who has read up to a cursor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sight {
    /// The next event, or no event of the log at all.
    Next,
    /// An event that was seen before.
    Again,
    /// An event, but not the next one.
    After(Hole),
}

impl Cursor {
    /// Of somebody who has seen nothing.
    pub(super) const START: Self = Self { seen: None };

    /// Where to go on; `None` before anything was seen.
    pub(super) const fn place(&self) -> Option<ResumePoint> {
        self.seen
    }

    /// Whether `place` was seen, or can never be: it is of another log.
    pub(super) fn has_passed(&self, place: ResumePoint) -> bool {
        self.seen
            .is_some_and(|seen| seen.epoch != place.epoch || seen.sequence >= place.sequence)
    }

    /// Moves on to `message`, unless it was seen before.
    pub(super) fn see(&mut self, message: &ServerMessage) -> Sight {
        if message.sequence == 0 {
            return Sight::Next;
        }
        let here = ResumePoint {
            epoch: message.epoch,
            sequence: message.sequence,
        };
        if self
            .seen
            .is_some_and(|seen| seen.epoch == here.epoch && here.sequence <= seen.sequence)
        {
            return Sight::Again;
        }
        let before = ResumePoint {
            sequence: here.sequence - 1,
            ..here
        };
        let hole = self.seen.and_then(|seen| between(seen, before));
        self.seen = Some(here);
        hole.map_or(Sight::Next, Sight::After)
    }

    /// Goes on at `place`, which is where the server goes on. `recovered` is its word that nothing is missing.
    pub(super) fn go_on_at(&mut self, place: ResumePoint, recovered: bool) -> Option<Hole> {
        let seen = self.seen.replace(place)?;
        if recovered && seen.epoch == place.epoch && place.sequence <= seen.sequence {
            // Whatever comes again on the way is recognised.
            self.seen = Some(seen);
            return None;
        }
        between(seen, place)
    }
}

/// What is missing when somebody who has seen `seen` goes on after `place`.
const fn between(seen: ResumePoint, place: ResumePoint) -> Option<Hole> {
    if seen.epoch != place.epoch {
        return Some(Hole::NewLog {
            seen: seen.sequence,
            after: place.sequence,
        });
    }
    if seen.sequence < place.sequence {
        return Some(Hole::Events {
            first: seen.sequence + 1,
            last: place.sequence,
        });
    }
    if seen.sequence > place.sequence {
        return Some(Hole::Rewound {
            first: place.sequence + 1,
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
    fn every_event_passes_once() {
        let mut cursor = Cursor::START;
        assert_eq!(cursor.see(&event(1, 5)), Sight::Next);
        assert_eq!(cursor.see(&event(1, 6)), Sight::Next);
        assert_eq!(cursor.see(&event(1, 6)), Sight::Again);
        assert_eq!(cursor.see(&event(1, 2)), Sight::Again);
        assert_eq!(cursor.see(&event(0, 0)), Sight::Next);
        assert_eq!(cursor.see(&event(1, 7)), Sight::Next);
        assert_eq!(cursor.place(), Some(at(1, 7)));
    }

    #[test]
    fn a_place_is_passed_once_it_is_seen_or_its_log_is_gone() {
        assert!(!Cursor::START.has_passed(at(1, 0)));
        for (place, is_passed) in [
            (at(1, 4), true),
            (at(1, 5), true),
            (at(1, 6), false),
            (at(2, 6), true),
        ] {
            assert_eq!(seen(1, 5).has_passed(place), is_passed, "{place:?}");
        }
    }

    #[test]
    fn what_is_skipped_is_noticed() {
        let mut cursor = seen(1, 5);
        let hole = Hole::Events { first: 6, last: 8 };
        assert_eq!(cursor.see(&event(1, 9)), Sight::After(hole));
        let hole = Hole::NewLog { seen: 9, after: 0 };
        assert_eq!(cursor.see(&event(2, 1)), Sight::After(hole));
        assert_eq!(cursor.see(&event(2, 2)), Sight::Next);
    }

    #[test]
    fn a_recovered_reader_misses_nothing_and_sees_nothing_twice() {
        let mut cursor = seen(1, 5);
        assert_eq!(cursor.go_on_at(at(1, 5), true), None);
        assert_eq!(cursor.go_on_at(at(1, 3), true), None);
        assert_eq!(cursor.see(&event(1, 4)), Sight::Again);
        assert_eq!(cursor.see(&event(1, 6)), Sight::Next);
        let mut new = Cursor::START;
        assert_eq!(new.go_on_at(at(1, 4), false), None);
    }

    #[test]
    fn the_servers_word_does_not_hide_a_hole() {
        for recovered in [false, true] {
            let hole = seen(1, 5).go_on_at(at(1, 7), recovered);
            assert_eq!(hole, Some(Hole::Events { first: 6, last: 7 }));
            let hole = seen(1, 5).go_on_at(at(2, 0), recovered);
            assert_eq!(hole, Some(Hole::NewLog { seen: 5, after: 0 }));
        }
        assert_eq!(seen(1, 5).go_on_at(at(1, 5), false), None);
    }

    #[test]
    fn a_log_that_lost_its_end_goes_on_with_other_events() {
        let mut cursor = seen(1, 5);
        let hole = Hole::Rewound { first: 4, last: 5 };
        assert_eq!(cursor.go_on_at(at(1, 3), false), Some(hole));
        assert_eq!(cursor.see(&event(1, 4)), Sight::Next);
    }

    #[test]
    fn holes_are_a_line_for_people() {
        for (hole, line) in [
            (
                Hole::Events { first: 6, last: 6 },
                "event 6 is missing: the server does not keep it any more",
            ),
            (
                Hole::Events { first: 6, last: 9 },
                "events 6 to 9 are missing: the server does not keep them any more",
            ),
            (
                Hole::NewLog { seen: 9, after: 0 },
                "the events after 9 are missing: the room's log was lost; events of a new log follow from 1",
            ),
        ] {
            assert_eq!(hole.to_string(), line);
        }
    }
}
