//! Reads the logs that commands print with `--json`.

use std::fs::File;
use std::io::BufReader;
use std::path::Path;

use serde_json::Value;

use super::conversation::Record;
use crate::cmd::Failure;
use crate::cmd::lines::Lines;
use crate::domain::RoomName;
use crate::proto::{EventType, JoinMsgLeave, Notice, NoticeCode, ServerMessage};

/// Limit for the records of all logs together, which bounds memory use.
pub(super) const MAX_RECORDS: usize = 200_000;

/// Reads a log of at most `max` records: each with the name of its room.
pub(super) fn read(path: &Path, max: usize) -> Result<Vec<(String, Record)>, Failure> {
    let shown = path.display();
    let file = File::open(path).map_err(|error| Failure::Io(format!("cannot open {shown}: {error}")))?;
    let mut lines = Lines::new(BufReader::new(file));
    let mut records = Vec::new();
    while let Some(line) = lines.next()? {
        if line.text.trim().is_empty() {
            continue;
        }
        if records.len() == max {
            return Err(Failure::Data(format!(
                "the logs have more than {MAX_RECORDS} lines"
            )));
        }
        records.push(parse(&line.text).ok_or_else(|| {
            Failure::Data(format!(
                "line {} of {shown} is not a message as chitchat prints it with --json",
                line.number
            ))
        })?);
    }
    Ok(records)
}

/// Parses a line into its room and the record.
fn parse(line: &str) -> Option<(String, Record)> {
    let value: Value = serde_json::from_str(line).ok()?;
    let room = |object: &Value| match text(object, "room") {
        room if room.is_empty() => RoomName::LOBBY.to_owned(),
        room => room,
    };
    if let Some(sent) = value.get("sent") {
        let call = JoinMsgLeave {
            r#type: event_type(sent)?.into(),
            client_name: text(sent, "client_name"),
            msg: text(sent, "msg"),
            message_id: text(sent, "message_id"),
            ..JoinMsgLeave::default()
        };
        return Some((room(sent), Record::Sent(call)));
    }
    let notice = value.get("notice").map(|notice| {
        let code = NoticeCode::from_str_name(&text(notice, "code")).unwrap_or_default();
        Notice {
            code: code.into(),
            ..Notice::default()
        }
    });
    let message = ServerMessage {
        sender_id: value.get("sender_id")?.as_i64()?.try_into().ok()?,
        sender_name: text(&value, "sender_name"),
        msg_stream: text(&value, "msg_stream"),
        r#type: event_type(&value)?.into(),
        timestamp: value.get("timestamp")?.as_i64()?,
        sequence: value.get("sequence")?.as_u64()?,
        epoch: value.get("epoch")?.as_u64()?,
        message_id: text(&value, "message_id"),
        notice,
        ..ServerMessage::default()
    };
    let received = text(&value, "received_time").parse().ok();
    Some((room(&value), Record::Received(Box::new(message), received)))
}

fn event_type(object: &Value) -> Option<EventType> {
    EventType::from_str_name(object.get("type")?.as_str()?)
}

/// A text, which is empty if it is missing.
fn text(object: &Value, key: &str) -> String {
    object
        .get(key)
        .and_then(Value::as_str)
        .unwrap_or_default()
        .to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cmd::json;

    #[test]
    fn what_the_commands_print_is_read() {
        let message = ServerMessage {
            sender_id: 3,
            sender_name: "Ada".into(),
            msg_stream: "hello".into(),
            r#type: EventType::Message.into(),
            timestamp: 5,
            sequence: 2,
            epoch: 1_700_000_000_000,
            message_id: "id".into(),
            ..ServerMessage::default()
        };
        let line = json::line(&json::message(&message));
        let record = Record::Received(Box::new(message), None);
        assert_eq!(parse(&line), Some(("lobby".into(), record)));

        let call = JoinMsgLeave {
            client_name: "Ada".into(),
            msg: "hi\nthere".into(),
            message_id: "id".into(),
            r#type: EventType::Message.into(),
            ..JoinMsgLeave::default()
        };
        let line = json::line(&json::sent(&JoinMsgLeave {
            room: "tea".into(),
            ..call.clone()
        }));
        assert_eq!(parse(&line), Some(("tea".into(), Record::Sent(call))));
    }

    #[test]
    fn other_lines_are_errors() {
        for line in ["", "[L=2] hi", "{}", r#"{"room":"tea"}"#, r#"{"sent":{}}"#, "[1]"] {
            assert_eq!(parse(line), None, "{line}");
        }
    }
}
