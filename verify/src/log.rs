//! The rooms' logs, put together from what everybody received.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::Arc;
use std::time::Duration;

use super::{History, Invariant, Place, Violation, What};
use chitchat::proto::ServerMessage;

/// One event, as whoever was first to receive it did.
pub(super) struct Seen {
    pub(super) message: Arc<ServerMessage>,
    /// When somebody first had received it; none = nobody did, it is only in the log.
    pub(super) at: Option<Duration>,
}

/// The log of one room.
pub(super) type Log = BTreeMap<Place, Seen>;

/// The logs of all rooms.
pub(super) struct Logs(BTreeMap<String, Log>);

impl Logs {
    /// Puts everything together, and notes where two have received different events of one place.
    pub(super) fn collect(history: &History, found: &mut Vec<Violation>) -> Self {
        let mut logs = Self(BTreeMap::new());
        for client in &history.clients {
            for step in &client.steps {
                if let What::Received(message) = &step.what {
                    logs.see(message, Some(step.at), &client.name, found);
                }
            }
        }
        for message in history.log.iter().flatten() {
            logs.see(message, None, "the log at the end", found);
        }
        logs
    }

    fn see(
        &mut self,
        message: &Arc<ServerMessage>,
        at: Option<Duration>,
        who: &str,
        found: &mut Vec<Violation>,
    ) {
        let Some(place) = Place::of(message) else { return };
        // Looked up first: the name is copied once a room.
        if !self.0.contains_key(&message.room) {
            self.0.insert(message.room.clone(), Log::new());
        }
        let Some(log) = self.0.get_mut(&message.room) else {
            return;
        };
        match log.entry(place) {
            Entry::Vacant(entry) => {
                entry.insert(Seen {
                    message: Arc::clone(message),
                    at,
                });
            }
            Entry::Occupied(mut entry) => {
                let seen = entry.get_mut();
                if !Arc::ptr_eq(&seen.message, message) && seen.message != *message {
                    let how = format!(
                        "{}, event {}: {who} has {:?} of {:?}, others have {:?} of {:?}",
                        message.room,
                        place.sequence,
                        message.msg_stream,
                        message.sender_name,
                        seen.message.msg_stream,
                        seen.message.sender_name,
                    );
                    found.push(Violation::new(Invariant::Agreement, how));
                }
                seen.at = match (seen.at, at) {
                    (Some(before), Some(now)) => Some(before.min(now)),
                    (before, now) => before.or(now),
                };
            }
        }
    }

    /// The log of a room.
    pub(super) fn of(&self, room: &str) -> Option<&Log> {
        self.0.get(room)
    }

    /// All logs, with their rooms.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&str, &Log)> {
        self.0.iter().map(|(room, log)| (room.as_str(), log))
    }

    /// What can be said of the logs alone: dense, later and later, of one epoch, and all there at the end.
    pub(super) fn check(&self, history: &History, found: &mut Vec<Violation>) {
        for (room, log) in self.iter() {
            check_rows(room, log, found);
            if let Some(kept) = &history.log {
                check_kept(room, log, kept, found);
            }
        }
    }
}

fn check_rows(room: &str, log: &Log, found: &mut Vec<Violation>) {
    for ((before, earlier), (place, later)) in log.iter().zip(log.iter().skip(1)) {
        if before.epoch != place.epoch {
            let how = format!("{room}: epoch {} became {}", before.epoch, place.epoch);
            found.push(Violation::new(Invariant::Durability, how));
            continue;
        }
        if place.sequence != before.sequence + 1 {
            let how = format!(
                "{room}: after event {} comes event {}",
                before.sequence, place.sequence
            );
            found.push(Violation::new(Invariant::Order, how));
        }
        let (earlier, later) = (earlier.message.timestamp, later.message.timestamp);
        if later <= earlier {
            let how = format!(
                "{room}, event {}: time {later} does not follow time {earlier}",
                place.sequence
            );
            found.push(Violation::new(Invariant::Lamport, how));
        }
    }
}

/// Whatever was received must be in the log at the end, unless it was let go by age: then it is before the log's begin.
fn check_kept(room: &str, log: &Log, kept: &[Arc<ServerMessage>], found: &mut Vec<Violation>) {
    let kept: std::collections::BTreeSet<Place> = kept
        .iter()
        .filter(|message| message.room == room)
        .filter_map(|message| Place::of(message))
        .collect();
    let first = kept.first().copied();
    for place in log.keys() {
        if !kept.contains(place) && first.is_none_or(|first| *place > first) {
            let how = format!(
                "{room}: event {} was delivered and is not in the log",
                place.sequence
            );
            found.push(Violation::new(Invariant::Durability, how));
        }
    }
}
