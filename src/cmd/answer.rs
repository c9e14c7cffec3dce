//! The server's answers to messages.

use crate::proto::{NoticeCode, ServerMessage};

/// Whether `message` is the notice that a retransmitted message had already been broadcast, which acknowledges it.
pub(super) fn is_repeated(message: &ServerMessage) -> bool {
    message
        .notice
        .as_ref()
        .is_some_and(|notice| notice.code() == NoticeCode::MessageRepeated)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::Notice;

    #[test]
    fn only_the_notice_of_a_repeated_message_acknowledges_it() {
        let notice = |code: NoticeCode| ServerMessage {
            notice: Some(Notice {
                code: code.into(),
                ..Notice::default()
            }),
            ..ServerMessage::default()
        };
        assert!(is_repeated(&notice(NoticeCode::MessageRepeated)));
        assert!(!is_repeated(&notice(NoticeCode::MessageTooLong)));
        assert!(!is_repeated(&ServerMessage::default()));
    }
}
