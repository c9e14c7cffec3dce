//! What a participant says.

use super::characters::may_stand_in_text;

/// A text: no more characters than the limit, no control character other than tab and newline, no white space around
/// it. It may be empty.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Text(Box<str>);

/// Why something cannot be said. The words go to the sender.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TextError {
    /// Too many characters. (The first version's words, to the letter.)
    #[error("Message too long ({chars} chars). Limit is {limit}.")]
    TooLong {
        /// How many it has.
        chars: usize,
        /// How many it may have.
        limit: usize,
    },
    /// A control character.
    #[error("Message has the control character U+{:04X} at place {place}. Only tab and newline are allowed.", u32::from(*.character))]
    Control {
        /// The first such character.
        character: char,
        /// Its place, counted from 1.
        place: usize,
    },
}

impl Text {
    /// Takes `raw` as a text of at most `limit` characters.
    ///
    /// # Errors
    ///
    /// When it is too long or has a control character.
    pub fn parse(raw: &str, limit: usize) -> Result<Self, TextError> {
        let text = raw.trim();
        // Bytes bound characters, so most texts need no count.
        if text.len() > limit {
            let chars = text.chars().count();
            if chars > limit {
                return Err(TextError::TooLong { chars, limit });
            }
        }
        match text.chars().enumerate().find(|&(_, c)| !may_stand_in_text(c)) {
            Some((index, character)) => Err(TextError::Control {
                character,
                place: index + 1,
            }),
            None => Ok(Self(text.into())),
        }
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
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
    fn control_characters_are_refused_but_for_tab_and_newline() {
        assert_eq!(Text::parse("a\tb\nc", 9).unwrap().as_str(), "a\tb\nc");
        assert_eq!(
            Text::parse("a\u{1b}[2J", 9).unwrap_err().to_string(),
            "Message has the control character U+001B at place 2. Only tab and newline are allowed."
        );
    }

    #[test]
    fn an_empty_text_is_a_text() {
        assert_eq!(Text::parse(" \n", 9).unwrap().as_str(), "");
    }
}
