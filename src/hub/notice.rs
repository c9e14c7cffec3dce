//! What a room says to one participant alone.

use crate::domain::limits::SERVER_NAME;
use crate::domain::{Epoch, LamportTime, MessageId, Refusal, RoomName, Sequence};
use crate::proto::{EventType, Notice, NoticeCode, ServerMessage};

/// The room that speaks.
pub(super) struct Speaking<'a> {
    pub(super) name: &'a RoomName,
    pub(super) epoch: Epoch,
}

/// The answer to a message that was refused.
pub(super) fn refused(
    room: &Speaking<'_>,
    refusal: &Refusal,
    time: LamportTime,
    message_id: Option<&MessageId>,
) -> ServerMessage {
    let original = match refusal {
        Refusal::MessageIdTaken { original, .. } => *original,
        _ => Sequence::ZERO,
    };
    private(
        room,
        code(refusal),
        original,
        refusal.to_string(),
        time,
        message_id,
    )
}

/// The answer to a message that was said before.
pub(super) fn repeated(
    room: &Speaking<'_>,
    original: Sequence,
    time: LamportTime,
    message_id: Option<&MessageId>,
) -> ServerMessage {
    let words = format!("Message was broadcast before, at sequence {original}.");
    private(
        room,
        NoticeCode::MessageRepeated,
        original,
        words,
        time,
        message_id,
    )
}

fn private(
    room: &Speaking<'_>,
    code: NoticeCode,
    original: Sequence,
    words: String,
    time: LamportTime,
    message_id: Option<&MessageId>,
) -> ServerMessage {
    ServerMessage {
        sender_name: SERVER_NAME.into(),
        msg_stream: words,
        r#type: EventType::Message.into(),
        timestamp: time.get(),
        room: room.name.to_string(),
        epoch: room.epoch.get(),
        message_id: message_id.map(ToString::to_string).unwrap_or_default(),
        notice: Some(Notice {
            code: code.into(),
            retry_delay: None,
            original_sequence: original.get(),
        }),
        ..ServerMessage::default()
    }
}

/// The typed form of a refusal.
fn code(refusal: &Refusal) -> NoticeCode {
    match refusal {
        Refusal::Clock(_) => NoticeCode::TimestampOutOfRange,
        Refusal::Text(crate::domain::TextError::TooLong { .. }) => NoticeCode::MessageTooLong,
        Refusal::Text(crate::domain::TextError::Control { .. }) => NoticeCode::MessageInvalid,
        Refusal::MessageId(_) => NoticeCode::MessageIdInvalid,
        Refusal::MessageIdTaken { .. } => NoticeCode::MessageIdTaken,
        // These answer a JOIN, or cannot happen to a member; a JOIN is answered with a status.
        Refusal::IdTaken(_) | Refusal::NameTaken(_) | Refusal::RoomFull(_) | Refusal::NotInRoom(_) => {
            NoticeCode::Unspecified
        }
    }
}
