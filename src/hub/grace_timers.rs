//! Until when the lost participants of a room may resume. The fold knows who is lost, but has no clock.

use std::collections::VecDeque;

use tokio::time::Instant;

use crate::domain::Attachment;
use crate::spare_capacity::SpareCapacity as _;

/// The grace periods of a room's lost participants.
#[derive(Default)]
pub(super) struct GraceTimers {
    /// By ascending deadline. An entry is void if the participant has attached again or left.
    timers: VecDeque<(Instant, Attachment)>,
    /// Void entries are removed when there are this many entries.
    compact_at: usize,
}

/// Void entries are not removed from fewer entries than this.
const MIN_COMPACTION: usize = 64;

impl GraceTimers {
    /// Starts the grace period of a participant who has lost this attachment. Deadlines must not decrease from call to call.
    pub(super) fn start(
        &mut self,
        attachment: Attachment,
        deadline: Instant,
        is_lost: impl Fn(Attachment) -> bool,
    ) {
        // Each removal halves the number of entries or is preceded by as many calls as it removes entries.
        if self.timers.len() >= self.compact_at.max(MIN_COMPACTION) {
            self.timers.retain(|(_, attachment)| is_lost(*attachment));
            self.timers.free_spare_capacity();
            self.compact_at = 2 * self.timers.len();
        }
        self.timers.push_back((deadline, attachment));
    }

    /// When the next grace period expires.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.timers.front().map(|(deadline, _)| *deadline)
    }

    /// The next attachment whose grace period has expired. It may be void.
    pub(super) fn pop_expired(&mut self, now: Instant) -> Option<Attachment> {
        let expired = self.timers.pop_front_if(|(deadline, _)| *deadline <= now);
        self.timers.free_spare_capacity();
        expired.map(|(_, attachment)| attachment)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::domain::{Command, Join, Name, Origin, Outcome, Room, Rules, Timestamp, WallTime};

    fn attachments(count: usize) -> Vec<Attachment> {
        let mut room = Room::new(Rules::default());
        (0..count)
            .map(|number| {
                let join = Join {
                    session: None,
                    id: None,
                    name: Name::try_from(format!("p{number}").as_str()).unwrap(),
                    timestamp: Timestamp(0),
                    owner: None,
                    origin: Origin::default(),
                    is_resumable: true,
                    trace: None,
                };
                match room.apply(Command::Join(join), WallTime::default()) {
                    Outcome::Joined { attachment, .. } => attachment,
                    other => panic!("{other:?}"),
                }
            })
            .collect()
    }

    #[test]
    fn grace_periods_expire_in_order() {
        let (now, second) = (Instant::now(), Duration::from_secs(1));
        let mut timers = GraceTimers::default();
        let lost = attachments(2);
        timers.start(lost[0], now + second, |_| true);
        timers.start(lost[1], now + 2 * second, |_| true);
        assert_eq!(timers.pop_expired(now), None);
        assert_eq!(timers.next_deadline(), Some(now + second));
        assert_eq!(timers.pop_expired(now + second), Some(lost[0]));
        assert_eq!(timers.pop_expired(now + second), None);
        assert_eq!(timers.pop_expired(now + 2 * second), Some(lost[1]));
        assert_eq!(timers.next_deadline(), None);
    }

    #[test]
    fn void_grace_periods_do_not_accumulate() {
        let now = Instant::now();
        let mut timers = GraceTimers::default();
        let lost = attachments(1_000);
        // Everybody but the first ten has resumed.
        for attachment in &lost {
            timers.start(*attachment, now, |attachment| lost[..10].contains(&attachment));
        }
        assert!(timers.timers.len() <= MIN_COMPACTION, "{}", timers.timers.len());
        let expired: Vec<_> = std::iter::from_fn(|| timers.pop_expired(now)).collect();
        assert_eq!(expired[..10], lost[..10]);
        assert!(timers.timers.capacity() < 200, "{}", timers.timers.capacity());
    }
}
