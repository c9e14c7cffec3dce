//! Who is in the room.

use std::collections::BTreeMap;

use super::text::sanitize_name;
use crate::proto::{EventType, Participant, ServerMessage};

/// More participants are neither listed nor counted.
pub(super) const MAX_LISTED: usize = 5_000;

/// The participants of the room, from the server's list and the events after it.
#[derive(Debug, Default)]
pub(super) struct Roster {
    /// The names by participant id, safe to show.
    names: BTreeMap<i32, String>,
    /// The names of those who spoke last, newest first.
    speakers: Vec<String>,
    /// Events after the list, which may overtake it.
    changes: Vec<ServerMessage>,
    is_loaded: bool,
}

/// How many names are remembered as those of the last speakers.
const MAX_SPEAKERS: usize = 50;

impl Roster {
    /// Replaces the list. It reflects the events up to the sequence number `sequence`.
    pub(super) fn load(&mut self, participants: Vec<Participant>, sequence: u64) {
        self.names = participants
            .into_iter()
            .map(|participant| (participant.id, sanitize_name(&participant.name)))
            .collect();
        self.is_loaded = true;
        for event in std::mem::take(&mut self.changes) {
            if event.sequence > sequence {
                self.apply(&event);
            }
        }
    }

    /// Called before the list is requested again.
    pub(super) fn expect_reload(&mut self) {
        self.is_loaded = false;
        self.changes.clear();
    }

    pub(super) fn on_event(&mut self, event: &ServerMessage) {
        self.apply(event);
        let is_change = event.r#type() != EventType::Message;
        if is_change && !self.is_loaded && self.changes.len() < MAX_LISTED {
            self.changes.push(event.clone());
        }
    }

    fn apply(&mut self, event: &ServerMessage) {
        match event.r#type() {
            EventType::Join if self.names.len() < MAX_LISTED => {
                self.names
                    .insert(event.sender_id, sanitize_name(&event.sender_name));
            }
            EventType::Join => {}
            EventType::Leave => {
                self.names.remove(&event.sender_id);
            }
            EventType::Message => {
                let name = sanitize_name(&event.sender_name);
                self.speakers.retain(|speaker| *speaker != name);
                self.speakers.insert(0, name);
                self.speakers.truncate(MAX_SPEAKERS);
            }
        }
    }

    pub(super) fn len(&self) -> usize {
        self.names.len()
    }

    /// The names in alphabetical order.
    pub(super) fn names(&self) -> Vec<&str> {
        let mut names: Vec<&str> = self.names.values().map(String::as_str).collect();
        names.sort_by_cached_key(|name| name.to_lowercase());
        names
    }

    /// The names that begin with `prefix`, those of the last speakers first.
    pub(super) fn complete(&self, prefix: &str, me: &str) -> Vec<String> {
        let prefix = prefix.to_lowercase();
        let mut found: Vec<String> = Vec::new();
        let speakers = self.speakers.iter().map(String::as_str);
        for name in speakers.chain(self.names()) {
            let is_new = name != me && !found.iter().any(|other| other == name);
            if is_new && name.to_lowercase().starts_with(&prefix) {
                found.push(name.to_owned());
            }
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(sequence: u64, id: i32, name: &str, r#type: EventType) -> ServerMessage {
        ServerMessage {
            sequence,
            sender_id: id,
            sender_name: name.into(),
            r#type: r#type.into(),
            ..ServerMessage::default()
        }
    }

    fn participant(id: i32, name: &str) -> Participant {
        Participant {
            id,
            name: name.into(),
            ..Participant::default()
        }
    }

    #[test]
    fn events_that_overtake_the_list_are_applied_to_it() {
        let mut roster = Roster::default();
        roster.on_event(&event(4, 4, "Dan", EventType::Leave));
        roster.on_event(&event(5, 5, "Eve", EventType::Join));
        roster.on_event(&event(6, 1, "Ada", EventType::Leave));
        roster.load(
            vec![
                participant(1, "Ada"),
                participant(4, "Dan"),
                participant(2, "bob"),
            ],
            3,
        );
        assert_eq!(roster.names(), ["bob", "Eve"]);
        roster.on_event(&event(7, 2, "bob", EventType::Leave));
        assert_eq!(roster.names(), ["Eve"]);
        roster.load(vec![participant(4, "Dan")], 9);
        assert_eq!(roster.names(), ["Dan"]);
    }

    #[test]
    fn the_last_speakers_are_completed_first() {
        let mut roster = Roster::default();
        roster.load(
            vec![
                participant(1, "Ada"),
                participant(2, "Aske"),
                participant(3, "Bob"),
            ],
            0,
        );
        assert_eq!(roster.complete("a", "me"), ["Ada", "Aske"]);
        roster.on_event(&event(1, 2, "Aske", EventType::Message));
        assert_eq!(roster.complete("A", "me"), ["Aske", "Ada"]);
        assert_eq!(roster.complete("a", "Ada"), ["Aske"]);
    }
}
