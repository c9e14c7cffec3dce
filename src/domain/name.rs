//! What a participant is called.

use std::fmt;
use std::sync::Arc;

use super::characters::may_stand_in_name;
use super::limits::MAX_NAME_CHARS;

/// A participant's name: 1 to 64 characters, none of them a control, bidirectional or invisible one, no white space
/// around it. Cheap to clone.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name(Arc<str>);

/// Why something is not a name (of a participant or a room).
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Nothing but white space.
    #[error("is empty; it needs 1 to {MAX_NAME_CHARS} characters")]
    Empty,
    /// Too many characters.
    #[error("has {0} characters; the limit is {MAX_NAME_CHARS}")]
    TooLong(usize),
    /// A character that cannot be seen or would change how others are seen.
    #[error("has the character U+{:04X} at place {place}; control, bidirectional and invisible characters are not allowed", u32::from(*.character))]
    Character {
        /// The first such character.
        character: char,
        /// Its place, counted from 1.
        place: usize,
    },
}

/// The part of `raw` that is a name.
pub(super) fn parse(raw: &str) -> Result<&str, NameError> {
    let name = raw.trim();
    if name.is_empty() {
        return Err(NameError::Empty);
    }
    let wrong = name.chars().enumerate().find(|&(_, c)| !may_stand_in_name(c));
    if let Some((index, character)) = wrong {
        return Err(NameError::Character {
            character,
            place: index + 1,
        });
    }
    match name.chars().count() {
        ..=MAX_NAME_CHARS => Ok(name),
        chars => Err(NameError::TooLong(chars)),
    }
}

impl Name {
    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<&str> for Name {
    type Error = NameError;

    fn try_from(raw: &str) -> Result<Self, NameError> {
        parse(raw).map(|name| Self(name.into()))
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn white_space_around_a_name_is_not_part_of_it() {
        assert_eq!(Name::try_from(" \tAlex\r\n").unwrap().as_str(), "Alex");
        assert_eq!(Name::try_from("Ada Lovelace").unwrap().as_str(), "Ada Lovelace");
    }

    #[test]
    fn what_is_not_a_name_says_why() {
        assert_eq!(Name::try_from(" \n"), Err(NameError::Empty));
        assert_eq!(
            Name::try_from("é".repeat(65).as_str()),
            Err(NameError::TooLong(65))
        );
        assert_eq!(
            Name::try_from("A\u{202e}b").unwrap_err().to_string(),
            "has the character U+202E at place 2; control, bidirectional and invisible characters are not allowed"
        );
        assert!(Name::try_from("é".repeat(64).as_str()).is_ok());
    }
}
