//! When a room's next snapshot is due.

use std::time::Duration;

use tokio::time::Instant;

use crate::domain::{Room, Sequence};

/// A snapshot is stored when the log has grown by this many events (and at least as many as the room has participants,
/// since it names them all).
const EVENTS: u64 = 10_000;

/// Or by this many bytes: what no snapshot stands for is kept, whatever the retention.
const BYTES: usize = 8 << 20;

/// When a room's next snapshot is due.
pub(super) struct Due {
    /// The place of the newest stored snapshot.
    covered: Sequence,
    /// How many bytes were stored since.
    bytes: usize,
    /// When it was due at the latest.
    at: Instant,
    /// How old it may become when something has happened since; nothing: however old.
    age: Option<Duration>,
}

impl Due {
    /// After a snapshot at `covered`, since which `bytes` were stored, where events may be kept for `retain_age`, zero for
    /// however long.
    pub(super) fn new(covered: Sequence, bytes: usize, retain_age: Duration) -> Self {
        Self {
            covered,
            bytes,
            at: Instant::now(),
            age: (!retain_age.is_zero()).then(|| (retain_age / 4).max(Duration::from_secs(1))),
        }
    }

    /// So many bytes are stored.
    pub(super) const fn stored(&mut self, bytes: usize) {
        self.bytes = self.bytes.saturating_add(bytes);
    }

    /// Whether it is time for one of `room`, in which something has happened.
    pub(super) fn is_due(&self, room: &Room) -> bool {
        let grown = room.last().get().saturating_sub(self.covered.get());
        let events = EVENTS.max(room.participants().len() as u64);
        grown >= events || self.bytes >= BYTES || self.is_old()
    }

    /// Whether the newest one is too old, if something has happened since.
    pub(super) fn is_old(&self) -> bool {
        self.age.is_some_and(|age| self.at.elapsed() >= age)
    }

    /// Whether nothing has happened in `room` since the newest one.
    pub(super) fn is_covered(&self, room: &Room) -> bool {
        self.covered == room.last()
    }

    /// One of `room` is taken.
    pub(super) fn taken(&mut self, room: &Room) {
        self.covered = room.last();
        self.bytes = 0;
        self.at = Instant::now();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{Command, Join, Name, Rules, Timestamp, WallTime};

    /// A room with one event.
    fn room() -> Room {
        let mut room = Room::new(Rules::default());
        let join = Join {
            id: None,
            name: Name::try_from("Ada").unwrap(),
            timestamp: Timestamp(0),
            is_resumable: false,
            trace: None,
        };
        room.apply(Command::Join(join), WallTime::default());
        room
    }

    #[tokio::test(start_paused = true)]
    async fn a_snapshot_is_due_when_much_was_stored_or_it_is_old() {
        let room = room();
        let mut due = Due::new(Sequence::ZERO, BYTES - 2, Duration::from_secs(400));
        due.stored(1);
        assert!(!due.is_due(&room) && !due.is_covered(&room));
        due.stored(1);
        assert!(due.is_due(&room));
        due.taken(&room);
        assert!(!due.is_due(&room) && due.is_covered(&room));
        tokio::time::advance(Duration::from_secs(99)).await;
        assert!(!due.is_due(&room));
        tokio::time::advance(Duration::from_secs(1)).await;
        assert!(due.is_due(&room));
        // Where events are kept however long, none is ever too old.
        let due = Due::new(Sequence::ZERO, 0, Duration::ZERO);
        tokio::time::advance(Duration::from_secs(1 << 30)).await;
        assert!(!due.is_due(&room));
    }
}
