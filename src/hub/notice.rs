//! Private messages of a room to one participant.

use crate::domain::limits::SERVER_NAME;
use crate::domain::{Epoch, LamportTime, MessageId, Rejection, RoomName, Sequence, TextError};
use crate::proto::{EventType, Notice, NoticeCode, ServerMessage};

/// The room that sends a notice.
pub(super) struct RoomContext<'a> {
    pub(super) name: &'a RoomName,
    pub(super) epoch: Epoch,
}

/// The notice that a message was rejected.
pub(super) fn rejected(
    room: &RoomContext<'_>,
    rejection: &Rejection,
    time: LamportTime,
    message_id: Option<&MessageId>,
) -> ServerMessage {
    let notice = Notice {
        code: code(rejection).into(),
        retry_delay: None,
        original_sequence: match rejection {
            Rejection::MessageIdTaken { original, .. } => original.get(),
            _ => 0,
        },
    };
    private(room, notice, rejection.to_string(), time, message_id)
}

/// The notice that a message was broadcast before, as `original`.
pub(super) fn repeated(
    room: &RoomContext<'_>,
    original: Sequence,
    time: LamportTime,
    message_id: Option<&MessageId>,
) -> ServerMessage {
    let notice = Notice {
        code: NoticeCode::MessageRepeated.into(),
        retry_delay: None,
        original_sequence: original.get(),
    };
    let text = format!("Message was broadcast before, at sequence {original}.");
    private(room, notice, text, time, message_id)
}

fn private(
    room: &RoomContext<'_>,
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
        room: room.name.to_string(),
        epoch: room.epoch.get(),
        message_id: message_id.map(ToString::to_string).unwrap_or_default(),
        notice: Some(notice),
        ..ServerMessage::default()
    }
}

fn code(rejection: &Rejection) -> NoticeCode {
    match rejection {
        Rejection::Clock(_) => NoticeCode::TimestampOutOfRange,
        Rejection::Text(TextError::TooLong { .. }) => NoticeCode::MessageTooLong,
        Rejection::Text(TextError::Control { .. }) => NoticeCode::MessageInvalid,
        Rejection::MessageId(_) => NoticeCode::MessageIdInvalid,
        Rejection::MessageIdTaken { .. } => NoticeCode::MessageIdTaken,
        // Not for a participant's message: the answer to a JOIN is a status.
        Rejection::IdTaken(_)
        | Rejection::NameTaken(_)
        | Rejection::RoomFull(_)
        | Rejection::NotInRoom(_) => NoticeCode::Unspecified,
    }
}
