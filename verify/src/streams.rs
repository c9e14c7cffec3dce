//! Checks what each client received, stream by stream.

use std::collections::BTreeSet;
use std::ops::Bound::{Excluded, Unbounded};

use super::log::{Log, Logs};
use super::{ClientEvent, ClientHistory, History, Invariant, Position, Violation};
use chitchat::proto::{EventType, ServerMessage, Welcome};

/// One stream of a client.
#[derive(Default)]
struct Stream {
    resume: Option<Position>,
    welcome: Option<Welcome>,
    /// The positions of the received events, in the order of receipt.
    positions: Vec<Position>,
    has_left: bool,
    is_clean: bool,
}

pub(super) fn check(history: &History, logs: &Logs, violations: &mut Vec<Violation>) {
    for client in &history.clients {
        let streams = streams(client, violations);
        for stream in &streams {
            check_start(client, stream, violations);
            if let Some(log) = logs.get(&client.room) {
                check_order(client, stream, log, violations);
            }
        }
        if let (Some(last), Some(log)) = (streams.last(), logs.get(&client.room)) {
            check_end(client, last, log, violations);
        }
    }
}

fn streams(client: &ClientHistory, violations: &mut Vec<Violation>) -> Vec<Stream> {
    let mut streams: Vec<Stream> = Vec::new();
    for entry in &client.events {
        if let ClientEvent::Join { resume, .. } = &entry.event {
            streams.push(Stream {
                resume: *resume,
                ..Stream::default()
            });
        }
        let Some(stream) = streams.last_mut() else {
            continue;
        };
        match &entry.event {
            ClientEvent::Received(message) => {
                if message.room != client.room {
                    let details = format!(
                        "{} is in {} and received event {} of {}",
                        client.name, client.room, message.sequence, message.room
                    );
                    violations.push(Violation::new(Invariant::Rooms, details));
                } else if let Some(welcome) = &message.welcome {
                    stream.welcome = Some(welcome.clone());
                } else {
                    stream.positions.extend(Position::of(message));
                }
            }
            ClientEvent::Leave => stream.has_left = true,
            ClientEvent::Ended { is_clean } => stream.is_clean = *is_clean,
            ClientEvent::Join { .. } | ClientEvent::Sent { .. } => {}
        }
    }
    streams
}

/// A stream starts after the position in its welcome, which is the resume point if the session was recovered.
fn check_start(client: &ClientHistory, stream: &Stream, violations: &mut Vec<Violation>) {
    let Some(welcome) = &stream.welcome else { return };
    let mut report = |invariant, details: String| {
        violations.push(Violation::new(invariant, format!("{}: {details}", client.name)));
    };
    if let Some(resume) = stream.resume {
        let is_same_log = resume.epoch == welcome.epoch;
        if welcome.recovered && (!is_same_log || resume.sequence != welcome.sequence) {
            let details = format!(
                "resumed after event {} and was recovered after event {}",
                resume.sequence, welcome.sequence
            );
            report(Invariant::Resume, details);
        }
        if is_same_log && resume.sequence > welcome.last_sequence {
            let details = format!(
                "had event {} and was told that the log ends with event {}",
                resume.sequence, welcome.last_sequence
            );
            report(Invariant::Durability, details);
        } else if is_same_log && !welcome.recovered && resume.sequence + 1 >= welcome.first_sequence {
            let details = format!(
                "resumed after event {} and was not recovered, although the event is retained",
                resume.sequence
            );
            report(Invariant::Resume, details);
        }
    }
    let begin = Position {
        epoch: welcome.epoch,
        sequence: welcome.sequence + 1,
    };
    if let Some(first) = stream.positions.first().filter(|first| **first != begin) {
        let details = format!(
            "was welcomed after event {} and then received event {}",
            welcome.sequence, first.sequence
        );
        report(Invariant::Resume, details);
    }
}

/// The positions of a stream increase, and no event of the log between its first and its last one is missing.
fn check_order(client: &ClientHistory, stream: &Stream, log: &Log, violations: &mut Vec<Violation>) {
    for (before, position) in stream.positions.iter().zip(stream.positions.iter().skip(1)) {
        if position <= before {
            let details = format!(
                "{} received event {} after event {}",
                client.name, position.sequence, before.sequence
            );
            violations.push(Violation::new(Invariant::Order, details));
        }
    }
    let received: BTreeSet<Position> = stream.positions.iter().copied().collect();
    if let (Some(first), Some(last)) = (received.first(), received.last()) {
        for (missing, _) in log
            .range(*first..=*last)
            .filter(|(position, _)| !received.contains(position))
        {
            let details = format!("{} did not receive event {}", client.name, missing.sequence);
            violations.push(Violation::new(Invariant::Validity, details));
        }
    }
}

/// A client that left has received everything before its own LEAVE.
fn check_end(client: &ClientHistory, last: &Stream, log: &Log, violations: &mut Vec<Violation>) {
    let Some(welcome) = last.welcome.as_ref().filter(|_| last.has_left && last.is_clean) else {
        return;
    };
    let is_own_leave = |message: &ServerMessage| {
        message.r#type() == EventType::Leave && message.sender_id == welcome.participant_id
    };
    let begin = Position {
        epoch: welcome.epoch,
        sequence: welcome.sequence,
    };
    // The module `roster` checks whether the LEAVE exists.
    let left = log
        .range((Excluded(begin), Unbounded))
        .find(|(_, logged)| is_own_leave(&logged.message))
        .map(|(position, _)| *position);
    let received = last.positions.iter().max().copied().unwrap_or(begin);
    let Some(left) = left.filter(|left| received < *left) else {
        return;
    };
    for (missing, _) in log.range((Excluded(received), Excluded(left))) {
        let details = format!(
            "{} left with event {} and did not receive event {}",
            client.name, left.sequence, missing.sequence
        );
        violations.push(Violation::new(Invariant::Validity, details));
    }
}
