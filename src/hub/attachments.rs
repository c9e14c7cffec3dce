//! Which participants of a room have a stream, and until when the others may resume.

use std::collections::{HashMap, VecDeque};

use tokio::time::Instant;

use super::session_token::Session;
use crate::domain::ParticipantId;

/// The attachments of a room's participants. Each stream of a session is an *attachment* with a number of its own; a
/// participant without one is *lost*.
#[derive(Default)]
pub(super) struct Attachments {
    current: HashMap<ParticipantId, u64>,
    last: u64,
    /// The grace periods, by ascending deadline. An entry is void if its session has ended or is attached again.
    grace: VecDeque<(Instant, Session)>,
}

impl Attachments {
    /// Attaches a new stream. Returns its number, and that of the stream that it replaces.
    pub(super) fn attach(&mut self, participant: ParticipantId) -> (u64, Option<u64>) {
        self.last += 1;
        (self.last, self.current.insert(participant, self.last))
    }

    /// Detaches the participant's stream, if it has one, and returns its number.
    pub(super) fn detach(&mut self, participant: ParticipantId) -> Option<u64> {
        self.current.remove(&participant)
    }

    pub(super) fn get(&self, participant: ParticipantId) -> Option<u64> {
        self.current.get(&participant).copied()
    }

    /// Starts the grace period of a session without an attachment. Deadlines must not decrease from call to call.
    pub(super) fn start_grace(&mut self, session: Session, deadline: Instant) {
        self.grace.push_back((deadline, session));
    }

    /// When the next grace period expires.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.grace.front().map(|(deadline, _)| *deadline)
    }

    /// The next session whose grace period has expired while it was lost. The session may have ended.
    pub(super) fn pop_expired(&mut self, now: Instant) -> Option<Session> {
        while let Some((_, session)) = self.grace.pop_front_if(|(deadline, _)| *deadline <= now) {
            // A session that was resumed and lost again has a later entry.
            let has_later_deadline = self.grace.iter().any(|(_, other)| *other == session);
            if !has_later_deadline && self.get(session.participant).is_none() {
                return Some(session);
            }
        }
        None
    }

    /// The participants in their grace period. Their sessions may have ended.
    pub(super) fn lost(&self) -> impl Iterator<Item = ParticipantId> {
        self.grace
            .iter()
            .map(|(_, session)| session.participant)
            .filter(|participant| self.get(*participant).is_none())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::domain::Sequence;

    fn session(id: i32) -> Session {
        Session {
            participant: ParticipantId::from_wire(id).unwrap(),
            join_sequence: Sequence::new(1),
        }
    }

    #[test]
    fn a_session_that_is_lost_again_has_a_new_grace_period() {
        let (start, second) = (Instant::now(), Duration::from_secs(1));
        let mut attachments = Attachments::default();
        let ada = session(1);
        assert_eq!(attachments.attach(ada.participant), (1, None));
        attachments.detach(ada.participant);
        attachments.start_grace(ada, start + 2 * second);
        assert_eq!(attachments.attach(ada.participant), (2, None));
        attachments.detach(ada.participant);
        attachments.start_grace(ada, start + 3 * second);
        assert_eq!(attachments.pop_expired(start + 2 * second), None);
        assert_eq!(attachments.pop_expired(start + 3 * second), Some(ada));
        assert_eq!(attachments.next_deadline(), None);
    }

    #[test]
    fn a_resumed_session_does_not_expire() {
        let now = Instant::now();
        let mut attachments = Attachments::default();
        let (ada, bob) = (session(1), session(2));
        attachments.start_grace(ada, now);
        attachments.start_grace(bob, now);
        assert_eq!(attachments.attach(ada.participant), (1, None));
        assert_eq!(attachments.attach(ada.participant), (2, Some(1)));
        assert_eq!(attachments.lost().collect::<Vec<_>>(), [bob.participant]);
        assert_eq!(attachments.pop_expired(now), Some(bob));
        assert_eq!(attachments.pop_expired(now), None);
    }
}
