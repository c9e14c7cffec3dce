//! When a replica proposes to the others that a room ends.

use std::time::Duration;

use tokio::time::Instant;

use crate::domain::Sequence;

/// How long after a room was proposed to end, and did not, it is proposed again.
const INITIAL_BACKOFF: Duration = Duration::from_secs(600);

/// The longest time between two proposals while nothing happens in the room: another replica needs it, and may do so for long.
const MAX_BACKOFF: Duration = Duration::from_secs(2 * 3600);

/// The next step.
#[derive(Debug)]
enum Next {
    /// From this time on, a room that is not used waits for its turn.
    Queue(Instant),
    /// At this time, which is reserved for the room, its end is proposed if it is still not used.
    Propose(Instant),
}

/// The proposals of a replica that a room ends.
#[derive(Debug)]
pub(super) struct EndProposals {
    next: Next,
    /// The newest event of the room as of the latest proposal, and how long after that the next one may come.
    latest: Option<(Sequence, Duration)>,
}

impl EndProposals {
    /// For a room that begins or is loaded at the time `now`.
    pub(super) const fn new(now: Instant) -> Self {
        Self {
            next: Next::Queue(now),
            latest: None,
        }
    }

    /// When the room may propose its end, if it waits for that.
    pub(super) const fn proposal_time(&self) -> Option<Instant> {
        match self.next {
            Next::Queue(_) => None,
            Next::Propose(at) => Some(at),
        }
    }

    /// Whether to call [`EndProposals::advance`].
    pub(super) fn is_due(&self, now: Instant) -> bool {
        let (Next::Queue(at) | Next::Propose(at)) = self.next;
        now >= at
    }

    /// Whether the end of the room is to be proposed at the time `now`. `last_if_unused` is the newest event of the room if nobody
    /// here needs it, and `reserve` reserves a turn.
    pub(super) fn advance(
        &mut self,
        now: Instant,
        last_if_unused: Option<Sequence>,
        reserve: impl FnOnce() -> Instant,
    ) -> bool {
        let Some(last) = last_if_unused else {
            self.next = Next::Queue(now);
            return false;
        };
        if let Next::Queue(_) = self.next {
            self.next = Next::Propose(reserve());
            return false;
        }
        let backoff = match self.latest {
            Some((same, backoff)) if same == last => MAX_BACKOFF.min(2 * backoff),
            _ => INITIAL_BACKOFF,
        };
        self.latest = Some((last, backoff));
        self.next = Next::Queue(now + backoff);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Polls every minute, and returns in which minutes the end was proposed.
    fn proposed(proposals: &mut EndProposals, start: Instant, minutes: u32, last: Option<u64>) -> Vec<u32> {
        let at = |minute| start + Duration::from_secs(60) * minute;
        let mut poll = |minute| {
            let turn = || at(minute) + Duration::from_secs(1);
            proposals.is_due(at(minute)) && proposals.advance(at(minute), last.map(Sequence::new), turn)
        };
        (0..minutes).filter(|minute| poll(*minute)).collect()
    }

    #[test]
    fn proposals_become_rare_until_something_happens_in_the_room() {
        let start = Instant::now();
        let mut proposals = EndProposals::new(start);
        assert!(proposed(&mut proposals, start, 5, None).is_empty());
        assert_eq!(
            proposed(&mut proposals, start, 200, Some(3)),
            [5, 16, 37, 78, 159]
        );
        let later = start + Duration::from_secs(60 * 275);
        assert_eq!(proposed(&mut proposals, later, 360, Some(3)), [5, 126, 247]);
        let later = start + Duration::from_secs(60 * 640);
        assert_eq!(proposed(&mut proposals, later, 16, Some(5)), [3, 14]);
    }

    #[test]
    fn a_room_that_is_used_again_loses_its_turn() {
        let now = Instant::now();
        let mut proposals = EndProposals::new(now);
        assert!(!proposals.advance(now, Some(Sequence::new(1)), || now));
        assert_eq!(proposals.proposal_time(), Some(now));
        assert!(!proposals.advance(now, None, || now));
        assert_eq!(proposals.proposal_time(), None);
    }
}
