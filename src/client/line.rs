//! How a message looks on a line.

use unicode_security::skeleton;

use super::escape;
use crate::proto::{EventType, ServerMessage};

/// The server, where it speaks for itself.
const SERVER: &str = "Server";

/// One line for people, without its end: `[L=5] Ada: hello` for what somebody said, `[L=6] Server: Message too long …`
/// for a private notice, the server's own words for joins and leaves. Names and texts are escaped: whatever they contain,
/// the line is one line and does nothing to a terminal. A participant whose name looks like the server's is marked.
#[must_use]
pub fn line_of(message: &ServerMessage) -> String {
    let time = message.timestamp;
    let text = escape::text(&message.msg_stream);
    if matches!(message.r#type(), EventType::Join | EventType::Leave) {
        return format!("[L={time}] {text}");
    }
    if message.sender_id == 0 {
        return format!("[L={time}] {SERVER}: {text}");
    }
    let name = escape::name(&message.sender_name);
    if look(&name) == look(SERVER) {
        return format!("[L={time}] {name} (participant {}): {text}", message.sender_id);
    }
    format!("[L={time}] {name}: {text}")
}

/// What a name looks like, whatever letters it is written in.
fn look(name: &str) -> String {
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
    fn texts_carry_their_speaker() {
        assert_eq!(
            line_of(&message(3, "Ada", EventType::Message, "hello")),
            "[L=5] Ada: hello"
        );
        assert_eq!(line_of(&message(3, "Ada", EventType::Message, "")), "[L=5] Ada: ");
    }

    #[test]
    fn joins_and_leaves_are_the_servers_words() {
        let text = "Participant Ada joined Chit Chat at logical time L=5";
        assert_eq!(
            line_of(&message(3, "Ada", EventType::Join, text)),
            format!("[L=5] {text}")
        );
        let text = "Participant Ada left Chit Chat at logical time L=5";
        assert_eq!(
            line_of(&message(3, "Ada", EventType::Leave, text)),
            format!("[L=5] {text}")
        );
    }

    #[test]
    fn notices_are_the_servers() {
        let notice = message(
            0,
            "Server",
            EventType::Message,
            "Message too long (354 chars). Limit is 128.",
        );
        assert_eq!(
            line_of(&notice),
            "[L=5] Server: Message too long (354 chars). Limit is 128."
        );
    }

    #[test]
    fn nobody_passes_for_the_server() {
        for name in ["Server", "SERVER", "Ѕеrver"] {
            let forged = message(3, name, EventType::Message, "your password, please");
            assert_eq!(
                line_of(&forged),
                format!("[L=5] {name} (participant 3): your password, please")
            );
        }
        assert_eq!(
            line_of(&message(3, "Observer", EventType::Message, "")),
            "[L=5] Observer: "
        );
    }

    #[test]
    fn nothing_in_a_message_makes_a_second_line() {
        let forged = message(
            3,
            "E\nve",
            EventType::Message,
            "hi\n[L=9] Bob: I owe Eve 10 €\u{1b}[A",
        );
        assert_eq!(
            line_of(&forged),
            r"[L=5] E\nve: hi\n[L=9] Bob: I owe Eve 10 €\u{1b}[A"
        );
    }
}
