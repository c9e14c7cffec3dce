//! What became of what was sent.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;
use std::time::Duration;

use super::log::{Log, Logs};
use super::{Client, History, Invariant, Place, Violation, What};
use chitchat::proto::{EventType, NoticeCode};

/// A message, as it was first sent.
struct Sent<'a> {
    client: &'a Client,
    text: &'a str,
    at: Duration,
    /// The latest Lamport time its sender knew: what it had seen, or gave it.
    known: i64,
    /// Where the log has it.
    place: Option<Place>,
}

type Sends<'a> = HashMap<Arc<str>, Sent<'a>>;

pub(super) fn check(history: &History, logs: &Logs, found: &mut Vec<Violation>) {
    let mut rooms: HashMap<&str, Sends<'_>> = HashMap::new();
    let mut orders: Vec<(&Client, Vec<Arc<str>>)> = Vec::new();
    for client in &history.clients {
        let sends = rooms.entry(client.room.as_str()).or_default();
        orders.push((client, collect(client, sends)));
    }
    for (room, log) in logs.iter() {
        let mut none = Sends::new();
        let sends = rooms.get_mut(room).unwrap_or(&mut none);
        place(room, log, sends, found);
        check_real_time(room, log, sends, found);
    }
    for (client, order) in orders {
        if let Some(sends) = rooms.get(client.room.as_str()) {
            check_order(client, &order, sends, found);
        }
        check_answers(client, logs.of(&client.room), found);
    }
}

/// Takes note of what a client sent, and gives the ids in the order in which it first sent them.
fn collect<'a>(client: &'a Client, sends: &mut Sends<'a>) -> Vec<Arc<str>> {
    let mut order = Vec::new();
    let mut seen = 0;
    for step in &client.steps {
        match &step.what {
            What::Received(message) => seen = seen.max(message.timestamp),
            What::Sent {
                message_id,
                text,
                timestamp,
            } => {
                if let Entry::Vacant(entry) = sends.entry(Arc::clone(message_id)) {
                    entry.insert(Sent {
                        client,
                        text,
                        at: step.at,
                        known: seen.max(*timestamp),
                        place: None,
                    });
                    order.push(Arc::clone(message_id));
                }
            }
            _ => {}
        }
    }
    order
}

/// Finds the place of each message, and makes sure that each was sent, is unchanged, and has no second place.
fn place(room: &str, log: &Log, sends: &mut Sends<'_>, found: &mut Vec<Violation>) {
    for (place, seen) in log {
        let message = &seen.message;
        // What has no id cannot be told from others of its kind.
        if message.r#type() != EventType::Message || message.message_id.is_empty() {
            continue;
        }
        let mut wrong = |invariant, how: String| {
            let how = format!("{room}, event {} ({}): {how}", place.sequence, message.message_id);
            found.push(Violation::new(invariant, how));
        };
        let Some(sent) = sends.get_mut(message.message_id.as_str()) else {
            wrong(Invariant::Integrity, "nobody sent it".into());
            continue;
        };
        if message.msg_stream != sent.text.trim() || message.sender_name != sent.client.name {
            let how = format!(
                "{:?} of {:?} was sent as {:?} by {:?}",
                message.msg_stream, message.sender_name, sent.text, sent.client.name
            );
            wrong(Invariant::Integrity, how);
        }
        if let Some(first) = sent.place {
            wrong(
                Invariant::Integrity,
                format!("it is event {} too", first.sequence),
            );
            continue;
        }
        sent.place = Some(*place);
        if message.timestamp <= sent.known {
            let how = format!(
                "its time is {}, its sender knew {}",
                message.timestamp, sent.known
            );
            wrong(Invariant::Causality, how);
        }
    }
}

/// Whatever somebody had received when a message was sent must stand before it.
fn check_real_time(room: &str, log: &Log, sends: &Sends<'_>, found: &mut Vec<Violation>) {
    // From the end: when the earliest of all that stand behind was received.
    let mut earliest: Option<(Duration, Place)> = None;
    for (place, seen) in log.iter().rev() {
        let sent = sends.get(seen.message.message_id.as_str());
        if let (Some(sent), Some((at, behind))) = (sent, earliest)
            && sent.place == Some(*place)
            && at < sent.at
        {
            let how = format!(
                "{room}: event {} was sent after event {} had been received",
                place.sequence, behind.sequence
            );
            found.push(Violation::new(Invariant::RealTime, how));
        }
        if let Some(at) = seen.at
            && earliest.is_none_or(|(earliest, _)| at < earliest)
        {
            earliest = Some((at, *place));
        }
    }
}

fn check_order(client: &Client, order: &[Arc<str>], sends: &Sends<'_>, found: &mut Vec<Violation>) {
    let mut last: Option<Place> = None;
    for message_id in order {
        let Some(sent) = sends.get(message_id) else {
            continue;
        };
        if !std::ptr::eq(sent.client, client) {
            let how = format!("{} and {} both sent {message_id}", client.name, sent.client.name);
            found.push(Violation::new(Invariant::Integrity, how));
            continue;
        }
        let Some(place) = sent.place else { continue };
        if let Some(last) = last.filter(|last| *last > place) {
            let how = format!(
                "{}: event {} was sent after event {}",
                client.name, place.sequence, last.sequence
            );
            found.push(Violation::new(Invariant::Fifo, how));
        }
        last = last.max(Some(place));
    }
}

/// Who is told that a message was broadcast before must find it there.
fn check_answers(client: &Client, log: Option<&Log>, found: &mut Vec<Violation>) {
    for step in &client.steps {
        let What::Received(message) = &step.what else {
            continue;
        };
        let Some(notice) = message.notice.as_ref() else {
            continue;
        };
        if notice.code() != NoticeCode::MessageRepeated {
            continue;
        }
        let place = Place {
            epoch: message.epoch,
            sequence: notice.original_sequence,
        };
        let original = log.and_then(|log| log.get(&place));
        if original.is_none_or(|original| original.message.message_id != message.message_id) {
            let how = format!(
                "{}: event {} is not {}, which was acknowledged",
                client.room, place.sequence, message.message_id
            );
            found.push(Violation::new(Invariant::Durability, how));
        }
    }
}
