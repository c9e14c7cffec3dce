//! Notices: what a room says to one participant. They are not events.

use crate::domain::limits::SERVER_NAME;
use crate::domain::{Epoch, LamportTime, MessageId, Rejection, RoomName, Sequence};
use crate::proto::{EventType, Notice, NoticeCode, ServerMessage};
use crate::reason::Reason;

/// The notice that a message was rejected.
pub(super) fn rejected(
    room: &RoomName,
    epoch: Epoch,
    rejection: &Rejection,
    time: LamportTime,
    message_id: Option<&MessageId>,
) -> ServerMessage {
    let notice = Notice {
        code: Reason::from(rejection).notice_code().into(),
        original_sequence: match rejection {
            Rejection::MessageIdTaken { original, .. } => original.get(),
            _ => 0,
        },
        ..Notice::default()
    };
    private(room, epoch, notice, rejection.to_string(), time, message_id)
}

/// The notice that a message was broadcast before, as `original`.
pub(super) fn repeated(
    room: &RoomName,
    epoch: Epoch,
    original: Sequence,
    time: LamportTime,
    message_id: Option<&MessageId>,
) -> ServerMessage {
    let notice = Notice {
        code: NoticeCode::MessageRepeated.into(),
        original_sequence: original.get(),
        ..Notice::default()
    };
    let text = format!("Message was broadcast before, at sequence {original}.");
    private(room, epoch, notice, text, time, message_id)
}

fn private(
    room: &RoomName,
    epoch: Epoch,
    notice: Notice,
    text: String,
    time: LamportTime,
    message_id: Option<&MessageId>,
) -> ServerMessage {
    ServerMessage {
        sender_name: SERVER_NAME.into(),
        msg_stream: text,
        r#type: EventType::Message.into(),
        timestamp: time.get(),
        room: room.to_string(),
        epoch: epoch.get(),
        message_id: message_id.map(ToString::to_string).unwrap_or_default(),
        notice: Some(notice),
        ..ServerMessage::default()
    }
}
