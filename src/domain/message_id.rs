//! Message ids, for idempotent sends.

use std::fmt;
use std::sync::Arc;

use super::limits::MAX_MESSAGE_ID_LEN;

/// The id that a client gives a message so that sending it again does not repeat it: 1 to [`MAX_MESSAGE_ID_LEN`] visible
/// ASCII characters, unique in its room. Cheap to clone.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MessageId(Arc<str>);

/// The string is not a valid message id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("Message id is not valid. It has 1 to {MAX_MESSAGE_ID_LEN} visible ASCII characters.")]
pub struct MessageIdError;

impl MessageId {
    /// The id.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<&str> for MessageId {
    type Error = MessageIdError;

    fn try_from(raw: &str) -> Result<Self, MessageIdError> {
        let is_valid =
            (1..=MAX_MESSAGE_ID_LEN).contains(&raw.len()) && raw.bytes().all(|b| b.is_ascii_graphic());
        if is_valid {
            Ok(Self(raw.into()))
        } else {
            Err(MessageIdError)
        }
    }
}

impl fmt::Display for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_has_up_to_64_visible_ascii_characters() {
        assert!(MessageId::try_from("0b0e7f1c-6a43-4f4e-9e5f-1f1b8d1f0a11").is_ok());
        for wrong in ["", " ", "a b", "é", "a\n", &"x".repeat(65)] {
            assert_eq!(MessageId::try_from(wrong), Err(MessageIdError), "{wrong:?}");
        }
    }
}
