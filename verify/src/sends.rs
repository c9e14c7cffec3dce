//! Checks the messages in the logs against those that clients sent: integrity, order per sender, causality, real time,
//! and the notices about repeated messages.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;
use std::time::Duration;

use super::log::{Log, Logs};
use super::{ClientEvent, ClientHistory, History, Invariant, Position, Violation};
use chitchat::proto::{EventType, NoticeCode};

/// A message as it was first sent.
struct Sent<'a> {
    client: &'a ClientHistory,
    text: &'a str,
    at: Duration,
    /// The latest Lamport time that its sender knew, including that of the message.
    known_time: i64,
    /// Its position in the log.
    position: Option<Position>,
}

type SentMessages<'a> = HashMap<Arc<str>, Sent<'a>>;

pub(super) fn check(history: &History, logs: &Logs, violations: &mut Vec<Violation>) {
    let mut rooms: HashMap<&str, SentMessages<'_>> = HashMap::new();
    let mut send_orders: Vec<(&ClientHistory, Vec<Arc<str>>)> = Vec::new();
    for client in &history.clients {
        let sends = rooms.entry(client.room.as_str()).or_default();
        send_orders.push((client, collect(client, sends)));
    }
    for (room, log) in logs.iter() {
        let mut empty = SentMessages::new();
        let sends = rooms.get_mut(room).unwrap_or(&mut empty);
        locate(room, log, sends, violations);
        check_real_time(room, log, sends, violations);
    }
    for (client, order) in send_orders {
        if let Some(sends) = rooms.get(client.room.as_str()) {
            check_order(client, &order, sends, violations);
        }
        check_repeated_notices(client, logs.get(&client.room), violations);
    }
}

/// Collects the messages of a client, and returns their ids in the order in which they were first sent.
fn collect<'a>(client: &'a ClientHistory, sends: &mut SentMessages<'a>) -> Vec<Arc<str>> {
    let mut order = Vec::new();
    let mut received_time = 0;
    for entry in &client.events {
        match &entry.event {
            ClientEvent::Received(message) => received_time = received_time.max(message.timestamp),
            ClientEvent::Sent {
                message_id,
                text,
                timestamp,
            } => {
                if let Entry::Vacant(vacant) = sends.entry(Arc::clone(message_id)) {
                    vacant.insert(Sent {
                        client,
                        text,
                        at: entry.at,
                        known_time: received_time.max(*timestamp),
                        position: None,
                    });
                    order.push(Arc::clone(message_id));
                }
            }
            _ => {}
        }
    }
    order
}

/// Locates each message in the log. Each must have been sent, be unchanged, and occur once.
fn locate(room: &str, log: &Log, sends: &mut SentMessages<'_>, violations: &mut Vec<Violation>) {
    for (position, logged) in log {
        let message = &logged.message;
        // A message without an id cannot be identified.
        if message.r#type() != EventType::Message || message.message_id.is_empty() {
            continue;
        }
        let mut report = |invariant, details: String| {
            let details = format!(
                "{room}, event {} ({}): {details}",
                position.sequence, message.message_id
            );
            violations.push(Violation::new(invariant, details));
        };
        let Some(sent) = sends.get_mut(message.message_id.as_str()) else {
            report(Invariant::Integrity, "no client sent it".into());
            continue;
        };
        if message.msg_stream != sent.text.trim() || message.sender_name != sent.client.name {
            let details = format!(
                "{:?} of {:?} was sent as {:?} by {:?}",
                message.msg_stream, message.sender_name, sent.text, sent.client.name
            );
            report(Invariant::Integrity, details);
        }
        if let Some(first) = sent.position {
            report(
                Invariant::Integrity,
                format!("it is event {} too", first.sequence),
            );
            continue;
        }
        sent.position = Some(*position);
        if message.timestamp <= sent.known_time {
            let details = format!(
                "its time is {}, its sender knew {}",
                message.timestamp, sent.known_time
            );
            report(Invariant::Causality, details);
        }
    }
}

/// An event that a client had received before a message was sent must precede that message.
fn check_real_time(room: &str, log: &Log, sends: &SentMessages<'_>, violations: &mut Vec<Violation>) {
    // The log is traversed backwards: this is the earliest receipt among all events at later positions.
    let mut earliest: Option<(Duration, Position)> = None;
    for (position, logged) in log.iter().rev() {
        let sent = sends.get(logged.message.message_id.as_str());
        if let (Some(sent), Some((at, later))) = (sent, earliest)
            && sent.position == Some(*position)
            && at < sent.at
        {
            let details = format!(
                "{room}: event {} was sent after event {} had been received",
                position.sequence, later.sequence
            );
            violations.push(Violation::new(Invariant::RealTime, details));
        }
        if let Some(at) = logged.first_received_at
            && earliest.is_none_or(|(earliest, _)| at < earliest)
        {
            earliest = Some((at, *position));
        }
    }
}

fn check_order(
    client: &ClientHistory,
    order: &[Arc<str>],
    sends: &SentMessages<'_>,
    violations: &mut Vec<Violation>,
) {
    let mut last: Option<Position> = None;
    for message_id in order {
        let Some(sent) = sends.get(message_id) else {
            continue;
        };
        if !std::ptr::eq(sent.client, client) {
            let details = format!("{} and {} both sent {message_id}", client.name, sent.client.name);
            violations.push(Violation::new(Invariant::Integrity, details));
            continue;
        }
        let Some(position) = sent.position else { continue };
        if let Some(last) = last.filter(|last| *last > position) {
            let details = format!(
                "{}: event {} was sent after event {}",
                client.name, position.sequence, last.sequence
            );
            violations.push(Violation::new(Invariant::Fifo, details));
        }
        last = last.max(Some(position));
    }
}

/// A MESSAGE_REPEATED notice must have the position of the original message.
fn check_repeated_notices(client: &ClientHistory, log: Option<&Log>, violations: &mut Vec<Violation>) {
    for entry in &client.events {
        let ClientEvent::Received(message) = &entry.event else {
            continue;
        };
        let Some(notice) = message.notice.as_ref() else {
            continue;
        };
        if notice.code() != NoticeCode::MessageRepeated {
            continue;
        }
        let position = Position {
            epoch: message.epoch,
            sequence: notice.original_sequence,
        };
        let original = log.and_then(|log| log.get(&position));
        if original.is_none_or(|original| original.message.message_id != message.message_id) {
            let details = format!(
                "{}: event {} is not {}, which was acknowledged",
                client.room, position.sequence, message.message_id
            );
            violations.push(Violation::new(Invariant::Durability, details));
        }
    }
}
