//! Messages as programs read them: one JSON object a line, with the names of the contract.
//!
//! Fields that are always there have their defaults written out; those that only some messages have (a message id, a
//! trace context, a notice) are left out where they are not set. 64-bit numbers are written as numbers.

use std::fmt::Write as _;

use serde_json::{Map, Value, json};

use crate::client::escape;
use crate::proto::{Notice, Participant, RoomSummary, ServerMessage};

/// `value` on one line. Characters that could act on a terminal, or hide on it, are written as escapes, which mean the
/// same to whoever parses the line.
pub(super) fn line(value: &Value) -> String {
    let raw = value.to_string();
    let mut line = String::with_capacity(raw.len());
    for c in raw.chars() {
        if escape::must_not_be_shown_raw(c) {
            for unit in c.encode_utf16(&mut [0; 2]) {
                write!(line, "\\u{unit:04x}").expect("writing to a String cannot fail");
            }
        } else {
            line.push(c);
        }
    }
    line
}

pub(super) fn message(message: &ServerMessage) -> Value {
    let mut object = json!({
        "sender_id": message.sender_id,
        "sender_name": message.sender_name,
        "msg_stream": message.msg_stream,
        "type": message.r#type().as_str_name(),
        "timestamp": message.timestamp,
        "room": message.room,
        "sequence": message.sequence,
        "epoch": message.epoch,
    });
    if let Value::Object(object) = &mut object {
        if let Some(time) = &message.broadcast_time {
            object.insert("broadcast_time".to_owned(), time.to_string().into());
        }
        add(object, "message_id", &message.message_id);
        add(object, "traceparent", &message.traceparent);
        add(object, "tracestate", &message.tracestate);
        if let Some(told) = &message.notice {
            object.insert("notice".to_owned(), notice(told));
        }
    }
    object
}

pub(super) fn participant(participant: &Participant) -> Value {
    json!({
        "id": participant.id,
        "name": participant.name,
        "joined_timestamp": participant.joined_timestamp,
        "connected": participant.connected,
    })
}

pub(super) fn room(room: &RoomSummary) -> Value {
    json!({
        "room": room.room,
        "participants": room.participants,
        "epoch": room.epoch,
        "first_sequence": room.first_sequence,
        "last_sequence": room.last_sequence,
        "timestamp": room.timestamp,
    })
}

fn notice(notice: &Notice) -> Value {
    let mut object = json!({
        "code": notice.code().as_str_name(),
        "original_sequence": notice.original_sequence,
    });
    if let (Value::Object(object), Some(delay)) = (&mut object, &notice.retry_delay) {
        object.insert("retry_delay".to_owned(), delay.to_string().into());
    }
    object
}

fn add(object: &mut Map<String, Value>, key: &str, text: &str) {
    if !text.is_empty() {
        object.insert(key.to_owned(), text.into());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::EventType;

    #[test]
    fn an_event_is_an_object_of_the_contracts_names() {
        let event = ServerMessage {
            sender_id: 3,
            sender_name: "Ada".into(),
            msg_stream: "hello".into(),
            r#type: EventType::Message.into(),
            timestamp: 5,
            room: "tea".into(),
            sequence: 2,
            epoch: 1_700_000_000_000,
            broadcast_time: Some(prost_types::Timestamp {
                seconds: 1_700_000_000,
                nanos: 120_000_000,
            }),
            message_id: "id".into(),
            ..ServerMessage::default()
        };
        assert_eq!(
            message(&event),
            json!({
                "sender_id": 3,
                "sender_name": "Ada",
                "msg_stream": "hello",
                "type": "MESSAGE",
                "timestamp": 5,
                "room": "tea",
                "sequence": 2,
                "epoch": 1_700_000_000_000_u64,
                "broadcast_time": "2023-11-14T22:13:20.120Z",
                "message_id": "id",
            })
        );
    }

    #[test]
    fn nothing_in_a_line_acts_on_a_terminal_and_nothing_is_lost() {
        let hostile = "\u{1b}[2J\n\u{9b}\u{202e}\u{200b}\u{7f}\u{e0067}\u{2028}👩\u{200d}💻\"\\";
        let line = line(&json!({ "text": hostile }));
        assert!(!line.chars().any(escape::must_not_be_shown_raw), "{line:?}");
        let read: Value = serde_json::from_str(&line).unwrap();
        assert_eq!(read["text"], hostile);
    }
}
