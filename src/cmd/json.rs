//! The JSON output: one object per line, with the field names of `chat.proto`.
//!
//! Optional fields (broadcast time, message id, trace context, notice) are omitted if they are not set; all others are
//! always present. Unlike in the JSON mapping of Protobuf, 64-bit integers are numbers.

use std::fmt::Write as _;
use std::time::SystemTime;

use prost_types::Timestamp;
use serde_json::{Map, Value, json};

use crate::client::{PublishAck, escape};
use crate::proto::moderation_target::Target;
use crate::proto::{Ban, JoinMsgLeave, Notice, Participant, RoomSummary, ServerMessage};
use crate::store::{RoomView, ViewSummary};

/// Serializes `value` as one line. Characters that are unsafe to display are written as JSON escapes.
pub(super) fn line(value: &Value) -> String {
    let raw = value.to_string();
    let mut line = String::with_capacity(raw.len());
    for c in raw.chars() {
        if escape::is_unsafe_to_display(c) {
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
        insert_if_set(object, "message_id", &message.message_id);
        insert_if_set(object, "traceparent", &message.traceparent);
        insert_if_set(object, "tracestate", &message.tracestate);
        if let Some(value) = &message.notice {
            object.insert("notice".to_owned(), notice(value));
        }
    }
    object
}

/// A message, and when this client received it.
pub(super) fn received(message: &ServerMessage, at: SystemTime) -> Value {
    let mut object = self::message(message);
    if let Value::Object(object) = &mut object {
        let time = Timestamp::from(at).to_string();
        object.insert("received_time".to_owned(), time.into());
    }
    object
}

/// A message that this client has posted, with `repeated` if the server had already broadcast it.
pub(super) fn published(ack: &PublishAck) -> Value {
    let mut object = message(&ack.broadcast);
    if let (Value::Object(object), true) = (&mut object, ack.repeated) {
        object.insert("repeated".to_owned(), true.into());
    }
    object
}

/// A message that this client has sent.
pub(super) fn sent(call: &JoinMsgLeave) -> Value {
    let mut object = json!({
        "type": call.r#type().as_str_name(),
        "client_name": call.client_name,
        "room": call.room,
    });
    if let Value::Object(object) = &mut object {
        insert_if_set(object, "msg", &call.msg);
        insert_if_set(object, "message_id", &call.message_id);
    }
    json!({ "sent": object })
}

pub(super) fn participant(participant: &Participant) -> Value {
    json!({
        "id": participant.id,
        "name": participant.name,
        "joined_timestamp": participant.joined_timestamp,
        "connected": participant.connected,
    })
}

pub(super) fn removed(count: u32) -> Value {
    json!({ "removed": count })
}

pub(super) fn ban(ban: &Ban) -> Value {
    let mut object = json!({
        "expire_time": ban.expire_time.map(|time| time.to_string()),
        "reason": ban.reason,
    });
    if let Value::Object(object) = &mut object
        && let Some(target) = ban.target.as_ref().and_then(|target| target.target.as_ref())
    {
        let (field, value) = match target {
            Target::Name(name) => ("name", name.as_str().into()),
            Target::Subject(subject) => ("subject", subject.as_str().into()),
            Target::Address(address) => ("address", address.as_str().into()),
            Target::ParticipantId(id) => ("participant_id", Value::from(*id)),
        };
        object.insert(field.to_owned(), value);
    }
    object
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

pub(super) fn store_summary(summary: &ViewSummary) -> Value {
    json!({
        "rooms": summary.rooms,
        "events": summary.events,
        "retained_bytes": summary.retained,
        "segments": summary.segments,
        "bytes": summary.bytes,
        "garbage_bytes": summary.garbage,
        "torn_bytes": summary.torn_bytes,
        "in_use": summary.is_in_use,
    })
}

pub(super) fn stored_room(room: &RoomView) -> Value {
    json!({
        "room": room.room.as_str(),
        "epoch": room.epoch.get(),
        "first_sequence": room.bounds.first.get(),
        "last_sequence": room.bounds.last.get(),
        "bytes": room.bytes,
    })
}

fn notice(notice: &Notice) -> Value {
    let mut object = json!({
        "code": notice.code().as_str_name(),
        "original_sequence": notice.original_sequence,
    });
    if let Value::Object(object) = &mut object {
        let delays = [
            ("retry_delay", &notice.retry_delay),
            ("expires_in", &notice.expires_in),
        ];
        for (key, delay) in delays {
            insert_if_set(
                object,
                key,
                &delay.map(|delay| delay.to_string()).unwrap_or_default(),
            );
        }
    }
    object
}

fn insert_if_set(object: &mut Map<String, Value>, key: &str, text: &str) {
    if !text.is_empty() {
        object.insert(key.to_owned(), text.into());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::{EventType, NoticeCode};

    #[test]
    fn an_event_has_the_field_names_of_the_contract() {
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
    fn a_notice_has_the_field_names_of_the_contract() {
        let seconds = |seconds| Some(prost_types::Duration { seconds, nanos: 0 });
        let full = Notice {
            code: NoticeCode::TokenExpires.into(),
            original_sequence: 3,
            retry_delay: seconds(2),
            expires_in: seconds(60),
        };
        let expected = json!({
            "code": "NOTICE_CODE_TOKEN_EXPIRES",
            "original_sequence": 3,
            "retry_delay": "2s",
            "expires_in": "60s",
        });
        assert_eq!(notice(&full), expected);
    }

    #[test]
    fn unsafe_characters_are_escaped_and_survive_parsing() {
        let hostile = "\u{1b}[2J\n\u{9b}\u{202e}\u{200b}\u{7f}\u{e0067}\u{2028}👩\u{200d}💻\"\\";
        let line = line(&json!({ "text": hostile }));
        assert!(!line.chars().any(escape::is_unsafe_to_display), "{line:?}");
        let parsed: Value = serde_json::from_str(&line).unwrap();
        assert_eq!(parsed["text"], hostile);
    }
}
