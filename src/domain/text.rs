//! Texts of messages.

use std::sync::Arc;

use super::characters::is_allowed_in_text;

/// The text of a message: at most the room's limit of characters, no control characters other than tab and newline, no
/// surrounding white space. May be empty. Cheap to clone.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Text(Arc<str>);

/// Why a text is invalid. `Display` is the text that the sender receives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TextError {
    /// It has too many characters. The wording is exactly that of the first version of the protocol.
    #[error("Message too long ({chars} chars). Limit is {limit}.")]
    TooLong {
        /// The number of characters.
        chars: usize,
        /// The limit.
        limit: usize,
    },
    /// It has a control character.
    #[error("Message has the control character U+{:04X} at position {position}. Only tab and newline are allowed.", u32::from(*.character))]
    Control {
        /// The first such character.
        character: char,
        /// Its position in the trimmed text, counted from 1.
        position: usize,
    },
}

impl Text {
    /// Validates `raw` as a text of at most `limit` characters, not counting surrounding white space.
    ///
    /// # Errors
    ///
    /// The text is too long or has a control character.
    pub fn parse(raw: &str, limit: usize) -> Result<Self, TextError> {
        let text = raw.trim();
        // A text has at most as many characters as bytes, so most need not be counted.
        if text.len() > limit {
            let chars = text.chars().count();
            if chars > limit {
                return Err(TextError::TooLong { chars, limit });
            }
        }
        if !is_printable_ascii(text)
            && let Some((index, character)) = text.chars().enumerate().find(|&(_, c)| !is_allowed_in_text(c))
        {
            return Err(TextError::Control {
                character,
                position: index + 1,
            });
        }
        Ok(Self(text.into()))
    }

    /// A text that was accepted before, maybe under other rules.
    pub(super) const fn from_stored(text: Arc<str>) -> Self {
        Self(text)
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Whether `text` needs no check of each character. There is no early return, so that the loop is vectorized.
fn is_printable_ascii(text: &str) -> bool {
    text.bytes()
        .fold(true, |so_far, byte| so_far & matches!(byte, b' '..=b'~'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_counts_characters() {
        assert_eq!(
            Text::parse(&"é".repeat(128), 128)
                .unwrap()
                .as_str()
                .chars()
                .count(),
            128
        );
        let error = Text::parse(&"x".repeat(354), 128).unwrap_err();
        assert_eq!(error.to_string(), "Message too long (354 chars). Limit is 128.");
        assert!(Text::parse(&"é".repeat(129), 128).is_err());
        assert!(Text::parse(&format!("  {}\n", "x".repeat(128)), 128).is_ok());
    }

    #[test]
    fn control_characters_other_than_tab_and_newline_are_rejected() {
        assert_eq!(Text::parse("a\tb\nc", 9).unwrap().as_str(), "a\tb\nc");
        assert_eq!(
            Text::parse("a\u{1b}[2J", 9).unwrap_err().to_string(),
            "Message has the control character U+001B at position 2. Only tab and newline are allowed."
        );
    }

    #[test]
    fn each_character_is_checked_wherever_it_is() {
        for c in (0..=255).map(char::from) {
            for at in 0..70 {
                let text = format!("{}{c}{}", "x".repeat(1 + at), "y".repeat(70 - at));
                assert_eq!(
                    Text::parse(&text, 99).is_ok(),
                    is_allowed_in_text(c),
                    "{c:?} at {at}"
                );
            }
        }
    }

    #[test]
    fn a_text_may_be_empty() {
        assert_eq!(Text::parse(" \n", 9).unwrap().as_str(), "");
    }
}
