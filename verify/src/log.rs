//! The logs of the rooms, merged from what all clients received.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::Arc;
use std::time::Duration;

use super::{ClientEvent, History, Invariant, Position, Violation};
use chitchat::proto::ServerMessage;

/// An event of a log.
pub(super) struct LoggedEvent {
    pub(super) message: Arc<ServerMessage>,
    /// When the first client received it; `None` if it is only in the log at the end.
    pub(super) first_received_at: Option<Duration>,
}

/// The log of one room.
pub(super) type Log = BTreeMap<Position, LoggedEvent>;

/// The logs of all rooms.
pub(super) struct Logs(BTreeMap<String, Log>);

impl Logs {
    /// Merges the received events and the log at the end, and reports different events at the same position.
    pub(super) fn collect(history: &History, violations: &mut Vec<Violation>) -> Self {
        let mut logs = Self(BTreeMap::new());
        for client in &history.clients {
            for entry in &client.events {
                if let ClientEvent::Received(message) = &entry.event {
                    logs.insert(message, Some(entry.at), &client.name, violations);
                }
            }
        }
        for message in history.log.iter().flatten() {
            logs.insert(message, None, "the log at the end", violations);
        }
        logs
    }

    fn insert(
        &mut self,
        message: &Arc<ServerMessage>,
        at: Option<Duration>,
        source: &str,
        violations: &mut Vec<Violation>,
    ) {
        let Some(position) = Position::of(message) else {
            return;
        };
        // Not `entry`, which would clone the room's name for every event.
        if !self.0.contains_key(&message.room) {
            self.0.insert(message.room.clone(), Log::new());
        }
        let Some(log) = self.0.get_mut(&message.room) else {
            return;
        };
        match log.entry(position) {
            Entry::Vacant(entry) => {
                entry.insert(LoggedEvent {
                    message: Arc::clone(message),
                    first_received_at: at,
                });
            }
            Entry::Occupied(mut entry) => {
                let logged = entry.get_mut();
                if !Arc::ptr_eq(&logged.message, message) && logged.message != *message {
                    let details = format!(
                        "{}, event {}: {source} has {:?} of {:?}, others have {:?} of {:?}",
                        message.room,
                        position.sequence,
                        message.msg_stream,
                        message.sender_name,
                        logged.message.msg_stream,
                        logged.message.sender_name,
                    );
                    violations.push(Violation::new(Invariant::Agreement, details));
                }
                logged.first_received_at = match (logged.first_received_at, at) {
                    (Some(before), Some(now)) => Some(before.min(now)),
                    (before, now) => before.or(now),
                };
            }
        }
    }

    pub(super) fn get(&self, room: &str) -> Option<&Log> {
        self.0.get(room)
    }

    /// All rooms and their logs.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&str, &Log)> {
        self.0.iter().map(|(room, log)| (room.as_str(), log))
    }

    /// Checks the logs by themselves: dense sequences, increasing Lamport times, one epoch, nothing missing at the end.
    pub(super) fn check(&self, history: &History, violations: &mut Vec<Violation>) {
        for (room, log) in self.iter() {
            check_order_of_log(room, log, violations);
            if let Some(final_log) = &history.log {
                check_completeness(room, log, final_log, violations);
            }
        }
    }
}

fn check_order_of_log(room: &str, log: &Log, violations: &mut Vec<Violation>) {
    for ((before, earlier), (position, later)) in log.iter().zip(log.iter().skip(1)) {
        if before.epoch != position.epoch {
            let details = format!("{room}: epoch {} became {}", before.epoch, position.epoch);
            violations.push(Violation::new(Invariant::Durability, details));
            continue;
        }
        if position.sequence != before.sequence + 1 {
            let details = format!(
                "{room}: after event {} comes event {}",
                before.sequence, position.sequence
            );
            violations.push(Violation::new(Invariant::Order, details));
        }
        let (earlier, later) = (earlier.message.timestamp, later.message.timestamp);
        if later <= earlier {
            let details = format!(
                "{room}, event {}: time {later} does not follow time {earlier}",
                position.sequence
            );
            violations.push(Violation::new(Invariant::Lamport, details));
        }
    }
}

/// Every received event must be in the log at the end, unless it precedes the first retained event.
fn check_completeness(
    room: &str,
    log: &Log,
    final_log: &[Arc<ServerMessage>],
    violations: &mut Vec<Violation>,
) {
    let retained: std::collections::BTreeSet<Position> = final_log
        .iter()
        .filter(|message| message.room == room)
        .filter_map(|message| Position::of(message))
        .collect();
    let first = retained.first().copied();
    for position in log.keys() {
        if !retained.contains(position) && first.is_none_or(|first| *position > first) {
            let details = format!(
                "{room}: event {} was delivered and is not in the log",
                position.sequence
            );
            violations.push(Violation::new(Invariant::Durability, details));
        }
    }
}
