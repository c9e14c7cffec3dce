//! Who was in the rooms.

use std::collections::BTreeMap;

use super::log::{Log, Logs};
use super::{Client, History, Invariant, Place, Roster, Violation, What};
use chitchat::proto::EventType;

pub(super) fn check(history: &History, logs: &Logs, found: &mut Vec<Violation>) {
    for (room, log) in logs.iter() {
        // Of a log whose begin is gone nobody knows who was there.
        if log
            .first_key_value()
            .is_some_and(|(first, _)| first.sequence == 1)
        {
            fold(room, log, history, found);
        }
    }
    for client in &history.clients {
        if let Some(log) = logs.of(&client.room) {
            check_joins(client, log, found);
        }
    }
}

/// Follows the log: who comes was not there, who goes was, and at the end nobody is left.
fn fold(room: &str, log: &Log, history: &History, found: &mut Vec<Violation>) {
    let mut rosters: Vec<&Roster> = history
        .rosters
        .iter()
        .filter(|roster| roster.room == room)
        .collect();
    rosters.sort_by_key(|roster| roster.place);
    let mut rosters = rosters.into_iter().peekable();
    let mut present: BTreeMap<i32, &str> = BTreeMap::new();
    for (place, seen) in log {
        while let Some(roster) = rosters.next_if(|roster| roster.place < *place) {
            compare(roster, &present, found);
        }
        let message = &seen.message;
        let mut wrong = |invariant, how: &str| {
            let how = format!("{room}, event {}: {} {how}", place.sequence, message.sender_name);
            found.push(Violation::new(invariant, how));
        };
        match message.r#type() {
            EventType::Join => {
                if present.insert(message.sender_id, &message.sender_name).is_some() {
                    wrong(Invariant::Leave, "joined and had not left");
                }
            }
            EventType::Leave => {
                if present.remove(&message.sender_id).is_none() {
                    wrong(Invariant::Leave, "left and was not there");
                }
            }
            EventType::Message => continue,
        }
        let words = format!("at logical time L={}", message.timestamp);
        if !message.msg_stream.ends_with(&words) {
            wrong(Invariant::Lamport, "is announced with another time");
        }
    }
    for roster in rosters {
        compare(roster, &present, found);
    }
    if history.is_over {
        for name in present.values() {
            let how = format!("{room}: {name} never left");
            found.push(Violation::new(Invariant::Leave, how));
        }
    }
}

fn compare(roster: &Roster, present: &BTreeMap<i32, &str>, found: &mut Vec<Violation>) {
    let mut told: Vec<(i32, &str)> = roster
        .participants
        .iter()
        .map(|(id, name)| (*id, name.as_str()))
        .collect();
    told.sort_unstable();
    if !told
        .iter()
        .copied()
        .eq(present.iter().map(|(id, name)| (*id, *name)))
    {
        let how = format!(
            "{}, event {}: the server told {told:?}, the log says {present:?}",
            roster.room, roster.place.sequence
        );
        found.push(Violation::new(Invariant::Roster, how));
    }
}

/// A client whose stay went on has not joined again.
fn check_joins(client: &Client, log: &Log, found: &mut Vec<Violation>) {
    let mut tried = 0_usize;
    let mut went_on = 0_usize;
    let mut stay = None;
    let mut has_token = false;
    for step in &client.steps {
        match &step.what {
            What::Join { has_token: has, .. } => {
                tried += 1;
                has_token = *has;
            }
            What::Received(message) => {
                if let Some(welcome) = &message.welcome {
                    let is_same = stay == Some(welcome.participant_id);
                    went_on += usize::from(has_token && is_same);
                    stay = Some(welcome.participant_id);
                }
            }
            _ => {}
        }
    }
    let joined: Vec<Place> = log
        .iter()
        .filter(|(_, seen)| {
            seen.message.r#type() == EventType::Join && seen.message.sender_name == client.name
        })
        .map(|(place, _)| *place)
        .collect();
    if joined.len() > tried - went_on {
        let how = format!(
            "{} joined {} times, came {tried} times, and went on {went_on} times",
            client.name,
            joined.len()
        );
        found.push(Violation::new(Invariant::Leave, how));
    }
}
