//! Names of participants and rooms.

use std::fmt;
use std::sync::Arc;

use super::characters::is_allowed_in_name;
use super::limits::MAX_NAME_CHARS;

/// A participant's name: 1 to [`MAX_NAME_CHARS`] characters, without control, bidirectional or invisible characters and
/// without surrounding white space. Cheap to clone.
///
/// Equality is exact; whether two names can coexist in a room is decided by [`Name::is_confusable_with`].
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name(Arc<str>);

/// A room's name. The syntax is that of [`Name`], and so is equality: `Tea` and `tea` are two rooms. Cheap to clone.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RoomName(Arc<str>);

/// Why a string is not a name of a participant or a room.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// It is empty or white space.
    #[error("is empty; it needs 1 to {MAX_NAME_CHARS} characters")]
    Empty,
    /// It has too many characters.
    #[error("has {0} characters; the limit is {MAX_NAME_CHARS}")]
    TooLong(usize),
    /// It has a character that is invisible or changes how others are displayed.
    #[error("has the character U+{:04X} at position {position}; control, bidirectional and invisible characters are not allowed", u32::from(*.character))]
    Character {
        /// The first such character.
        character: char,
        /// Its position in the trimmed name, counted from 1.
        position: usize,
    },
}

/// Validates a name and returns it without surrounding white space.
fn parse(raw: &str) -> Result<&str, NameError> {
    let name = raw.trim();
    if name.is_empty() {
        return Err(NameError::Empty);
    }
    let wrong = name.chars().enumerate().find(|&(_, c)| !is_allowed_in_name(c));
    if let Some((index, character)) = wrong {
        return Err(NameError::Character {
            character,
            position: index + 1,
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

impl RoomName {
    /// The room of clients that name none.
    pub const LOBBY: &'static str = "lobby";

    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Default for RoomName {
    fn default() -> Self {
        Self(Self::LOBBY.into())
    }
}

impl TryFrom<&str> for RoomName {
    type Error = NameError;

    /// The empty string is the lobby; white space alone is an error.
    fn try_from(raw: &str) -> Result<Self, NameError> {
        if raw.is_empty() {
            Ok(Self::default())
        } else {
            parse(raw).map(|name| Self(name.into()))
        }
    }
}

impl fmt::Display for RoomName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn surrounding_white_space_is_not_part_of_a_name() {
        assert_eq!(Name::try_from(" \tAlex\r\n").unwrap().as_str(), "Alex");
        assert_eq!(Name::try_from("Ada Lovelace").unwrap().as_str(), "Ada Lovelace");
    }

    #[test]
    fn an_invalid_name_is_an_error_that_says_why() {
        assert_eq!(Name::try_from(" \n"), Err(NameError::Empty));
        assert_eq!(
            Name::try_from("é".repeat(65).as_str()),
            Err(NameError::TooLong(65))
        );
        assert_eq!(
            Name::try_from("A\u{202e}b").unwrap_err().to_string(),
            "has the character U+202E at position 2; control, bidirectional and invisible characters are not allowed"
        );
        assert!(Name::try_from("é".repeat(64).as_str()).is_ok());
    }

    #[test]
    fn the_empty_room_name_is_the_lobby() {
        assert_eq!(RoomName::try_from("").unwrap().as_str(), "lobby");
        assert_eq!(RoomName::try_from("  "), Err(NameError::Empty));
        assert_eq!(RoomName::try_from(" tea ").unwrap().as_str(), "tea");
    }
}
