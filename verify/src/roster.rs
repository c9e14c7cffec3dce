//! Checks the JOIN and LEAVE events, and the participant lists that the server returned.

use std::collections::BTreeMap;

use super::log::{Log, Logs};
use super::{ClientEvent, ClientHistory, History, Invariant, Position, Roster, Violation};
use chitchat::proto::EventType;

pub(super) fn check(history: &History, logs: &Logs, violations: &mut Vec<Violation>) {
    for (room, log) in logs.iter() {
        // The participants are unknown if the beginning of the log has been removed.
        if log
            .first_key_value()
            .is_some_and(|(first, _)| first.sequence == 1)
        {
            replay(room, log, history, violations);
        }
    }
    for client in &history.clients {
        if let Some(log) = logs.get(&client.room) {
            check_joins(client, log, violations);
        }
    }
}

/// Replays the log: JOIN and LEAVE alternate for each participant, and nobody remains at the end.
fn replay(room: &str, log: &Log, history: &History, violations: &mut Vec<Violation>) {
    let mut rosters: Vec<&Roster> = history
        .rosters
        .iter()
        .filter(|roster| roster.room == room)
        .collect();
    rosters.sort_by_key(|roster| roster.position);
    let mut rosters = rosters.into_iter().peekable();
    let mut present: BTreeMap<i32, &str> = BTreeMap::new();
    for (position, logged) in log {
        while let Some(roster) = rosters.next_if(|roster| roster.position < *position) {
            compare_roster(roster, &present, violations);
        }
        let message = &logged.message;
        let mut report = |invariant, details: &str| {
            let details = format!(
                "{room}, event {}: {} {details}",
                position.sequence, message.sender_name
            );
            violations.push(Violation::new(invariant, details));
        };
        match message.r#type() {
            EventType::Join => {
                if present.insert(message.sender_id, &message.sender_name).is_some() {
                    report(Invariant::Leave, "joined twice without leaving");
                }
            }
            EventType::Leave => {
                if present.remove(&message.sender_id).is_none() {
                    report(Invariant::Leave, "left without having joined");
                }
            }
            EventType::Message => continue,
        }
        let suffix = format!("at logical time L={}", message.timestamp);
        if !message.msg_stream.ends_with(&suffix) {
            report(
                Invariant::Lamport,
                "is announced with a time that is not that of the event",
            );
        }
    }
    for roster in rosters {
        compare_roster(roster, &present, violations);
    }
    if history.everybody_left {
        for name in present.values() {
            let details = format!("{room}: {name} never left");
            violations.push(Violation::new(Invariant::Leave, details));
        }
    }
}

fn compare_roster(roster: &Roster, present: &BTreeMap<i32, &str>, violations: &mut Vec<Violation>) {
    let mut returned: Vec<(i32, &str)> = roster
        .participants
        .iter()
        .map(|(id, name)| (*id, name.as_str()))
        .collect();
    returned.sort_unstable();
    if !returned
        .iter()
        .copied()
        .eq(present.iter().map(|(id, name)| (*id, *name)))
    {
        let details = format!(
            "{}, event {}: the server returned {returned:?}, but the log has {present:?}",
            roster.room, roster.position.sequence
        );
        violations.push(Violation::new(Invariant::Roster, details));
    }
}

/// A client causes at most one JOIN per stream, and none on a stream that resumed its session.
fn check_joins(client: &ClientHistory, log: &Log, violations: &mut Vec<Violation>) {
    let mut attempts = 0_usize;
    let mut resumed = 0_usize;
    let mut session_participant = None;
    let mut has_token = false;
    for entry in &client.events {
        match &entry.event {
            ClientEvent::Join { has_token: has, .. } => {
                attempts += 1;
                has_token = *has;
            }
            ClientEvent::Received(message) => {
                if let Some(welcome) = &message.welcome {
                    let is_same = session_participant == Some(welcome.participant_id);
                    resumed += usize::from(has_token && is_same);
                    session_participant = Some(welcome.participant_id);
                }
            }
            _ => {}
        }
    }
    let joined: Vec<Position> = log
        .iter()
        .filter(|(_, logged)| {
            logged.message.r#type() == EventType::Join && logged.message.sender_name == client.name
        })
        .map(|(position, _)| *position)
        .collect();
    if joined.len() > attempts - resumed {
        let details = format!(
            "{} joined {} times, with {attempts} streams of which {resumed} resumed a session",
            client.name,
            joined.len()
        );
        violations.push(Violation::new(Invariant::Leave, details));
    }
}
