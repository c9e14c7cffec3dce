//! When a room's next snapshot is due.

use std::time::Duration;

use tokio::time::Instant;

use crate::domain::{Room, Sequence};

/// A snapshot is due when the log has grown by this many events, or by as many events as the room has participants if that
/// is more, because a snapshot lists them all.
const SNAPSHOT_EVERY_EVENTS: u64 = 10_000;

/// How many bytes of the log per participant make a snapshot due: four times a participant's size in a snapshot.
const PARTICIPANT_BYTES: u64 = 256;

/// Decides when a room's next snapshot is due.
pub(super) struct SnapshotSchedule {
    /// The last event that the newest snapshot covers.
    snapshot_sequence: Sequence,
    /// The bytes stored since.
    bytes: u64,
    /// When the newest snapshot was taken, or the room was loaded.
    taken_at: Instant,
    /// The maximum age of the newest snapshot while it is not current; `None` for no limit.
    max_age: Option<Duration>,
}

impl SnapshotSchedule {
    /// Continues after a snapshot of the events up to `snapshot_sequence`, since which `bytes` were stored. The maximum age
    /// of a snapshot is a quarter of that of events.
    pub(super) fn new(snapshot_sequence: Sequence, bytes: u64, retain_age: Option<Duration>) -> Self {
        Self {
            snapshot_sequence,
            bytes,
            taken_at: Instant::now(),
            max_age: retain_age.map(|age| (age / 4).max(Duration::from_secs(1))),
        }
    }

    pub(super) const fn on_stored(&mut self, bytes: usize) {
        self.bytes = self.bytes.saturating_add(bytes as u64);
    }

    pub(super) fn on_snapshot(&mut self, room: &Room) {
        self.snapshot_sequence = room.last();
        self.bytes = 0;
        self.taken_at = Instant::now();
    }

    /// Whether a snapshot is due, given that the newest one is not current. `interval` is the store's
    /// [`snapshot_interval`](crate::store::Store::snapshot_interval): events that no snapshot covers are retained regardless of
    /// the retention limits.
    pub(super) fn is_due(&self, room: &Room, interval: u64) -> bool {
        let events = room.last().get().saturating_sub(self.snapshot_sequence.get());
        let participants = room.participants().len() as u64;
        let due_events = SNAPSHOT_EVERY_EVENTS.max(participants);
        // A snapshot must not cost more than what it allows to remove.
        let due_bytes = interval.max(participants * PARTICIPANT_BYTES);
        events >= due_events || self.bytes >= due_bytes || self.is_old()
    }

    /// Whether the newest snapshot is too old, unless it is current.
    pub(super) fn is_old(&self) -> bool {
        self.max_age.is_some_and(|age| self.taken_at.elapsed() >= age)
    }

    /// Whether the newest snapshot covers the whole log.
    pub(super) fn is_current(&self, room: &Room) -> bool {
        self.snapshot_sequence == room.last()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{Command, Join, Name, Origin, Rules, Timestamp, WallTime};

    const INTERVAL: u64 = 1 << 20;

    fn room_with_one_event() -> Room {
        let mut room = Room::new(Rules::default());
        let join = Join {
            session: None,
            id: None,
            name: Name::try_from("Ada").unwrap(),
            timestamp: Timestamp(0),
            owner: None,
            origin: Origin::default(),
            is_resumable: false,
            trace: None,
        };
        room.apply(Command::Join(join), WallTime::default());
        room
    }

    #[tokio::test(start_paused = true)]
    async fn a_snapshot_is_due_when_much_was_stored_or_it_is_old() {
        let room = room_with_one_event();
        let age = Some(Duration::from_secs(400));
        let mut schedule = SnapshotSchedule::new(Sequence::ZERO, INTERVAL - 2, age);
        schedule.on_stored(1);
        assert!(!schedule.is_due(&room, INTERVAL) && !schedule.is_current(&room));
        schedule.on_stored(1);
        assert!(schedule.is_due(&room, INTERVAL));
        schedule.on_snapshot(&room);
        assert!(!schedule.is_due(&room, INTERVAL) && schedule.is_current(&room));
        tokio::time::advance(Duration::from_secs(99)).await;
        assert!(!schedule.is_due(&room, INTERVAL));
        tokio::time::advance(Duration::from_secs(1)).await;
        assert!(schedule.is_due(&room, INTERVAL));
    }

    #[tokio::test(start_paused = true)]
    async fn a_snapshot_is_never_too_old_without_a_limit_on_age() {
        let schedule = SnapshotSchedule::new(Sequence::ZERO, 0, None);
        tokio::time::advance(Duration::from_secs(1 << 30)).await;
        assert!(!schedule.is_due(&room_with_one_event(), INTERVAL));
    }
}
