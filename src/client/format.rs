//! Formatting messages for people.

use unicode_security::skeleton;

use super::escape;
use crate::domain::Name;
use crate::proto::{EventType, ServerMessage};

/// The sender that is displayed for private notices.
const SERVER: &str = "Server";

/// What the second and each further line of a text begin with. No message begins like this.
const CONTINUATION: &str = "  | ";

/// Formats a message for people, without a line terminator at the end.
///
/// A text is formatted as `[L=5] Ada: hello`, a private notice as `[L=6] Server: Message too long …`, and a join or leave
/// as `[L=7]` followed by the server's description. The number is the Lamport timestamp. Each further line of a text begins with
/// `  | `, so that no line can pass for a message.
///
/// Names and texts are [escaped](super::escape), so that they are safe to print on a terminal. A name that a server would
/// not accept today, because it could pass for a part of somebody else's line, is quoted. To such a name, and to one that is
/// confusable with `Server`, the participant id is added.
#[must_use]
pub fn format_message(message: &ServerMessage) -> String {
    format!("[L={}] {}", message.timestamp, format_untimed(message))
}

/// Formats a message as [`format_message`] does, without its time.
pub(crate) fn format_untimed(message: &ServerMessage) -> String {
    let mut lines = message.msg_stream.split('\n').map(escape::text);
    let mut text = lines.next().unwrap_or_default().into_owned();
    for line in lines {
        text.push('\n');
        text.push_str(CONTINUATION);
        text.push_str(&line);
    }
    if matches!(message.r#type(), EventType::Join | EventType::Leave) {
        return text;
    }
    format!("{}: {text}", sender_label(message))
}

/// The name to show for the sender of a text, escaped.
pub(crate) fn sender_label(message: &ServerMessage) -> String {
    if message.sender_id == 0 {
        return SERVER.to_owned();
    }
    let name = escape::name(&message.sender_name);
    if Name::try_from(message.sender_name.as_str()).is_err() {
        return format!("\"{name}\" (participant {})", message.sender_id);
    }
    if confusable_skeleton(&name) == confusable_skeleton(SERVER) {
        return format!("{name} (participant {})", message.sender_id);
    }
    name.into_owned()
}

/// The UTS 39 skeleton of the lower-case name: confusable names have equal skeletons.
fn confusable_skeleton(name: &str) -> String {
    skeleton(&name.to_lowercase()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(sender_id: i32, sender_name: &str, r#type: EventType, text: &str) -> ServerMessage {
        ServerMessage {
            sender_id,
            sender_name: sender_name.into(),
            msg_stream: text.into(),
            r#type: r#type.into(),
            timestamp: 5,
            ..ServerMessage::default()
        }
    }

    #[test]
    fn a_text_is_prefixed_with_its_sender() {
        assert_eq!(
            format_message(&message(3, "Ada", EventType::Message, "hello")),
            "[L=5] Ada: hello"
        );
        assert_eq!(
            format_message(&message(3, "Ada", EventType::Message, "")),
            "[L=5] Ada: "
        );
    }

    #[test]
    fn joins_and_leaves_are_shown_as_the_server_words_them() {
        let text = "Participant Ada joined Chit Chat at logical time L=5";
        assert_eq!(
            format_message(&message(3, "Ada", EventType::Join, text)),
            format!("[L=5] {text}")
        );
        let text = "Participant Ada left Chit Chat at logical time L=5";
        assert_eq!(
            format_message(&message(3, "Ada", EventType::Leave, text)),
            format!("[L=5] {text}")
        );
    }

    #[test]
    fn notices_are_prefixed_with_the_server() {
        let notice = message(
            0,
            "Server",
            EventType::Message,
            "Message too long (354 chars). Limit is 128.",
        );
        assert_eq!(
            format_message(&notice),
            "[L=5] Server: Message too long (354 chars). Limit is 128."
        );
    }

    #[test]
    fn a_participant_cannot_impersonate_the_server() {
        for name in ["Server", "SERVER", "Ѕеrver"] {
            let forged = message(3, name, EventType::Message, "your password, please");
            assert_eq!(
                format_message(&forged),
                format!("[L=5] {name} (participant 3): your password, please")
            );
        }
        assert_eq!(
            format_message(&message(3, "Observer", EventType::Message, "")),
            "[L=5] Observer: "
        );
    }

    #[test]
    fn a_line_of_a_text_never_passes_for_a_message() {
        let forged = message(
            3,
            "E\nve",
            EventType::Message,
            "hi\n[L=9] Bob: I owe Eve 10 €\u{1b}[A",
        );
        assert_eq!(
            format_message(&forged),
            "[L=5] \"E\\nve\" (participant 3): hi\n  | [L=9] Bob: I owe Eve 10 €\\u{1b}[A"
        );
        let typed = message(3, "Eve", EventType::Message, r"hi\nthere");
        assert_eq!(format_message(&typed), r"[L=5] Eve: hi\nthere");
    }

    #[test]
    fn a_name_that_reads_as_somebody_elses_line_is_quoted() {
        let stored = message(3, "Ada: I agree", EventType::Message, "really");
        assert_eq!(
            format_message(&stored),
            "[L=5] \"Ada: I agree\" (participant 3): really"
        );
    }
}
