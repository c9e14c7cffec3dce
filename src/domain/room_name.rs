//! What a room is called.

use std::fmt;
use std::sync::Arc;

use super::name::{NameError, parse};

/// A room's name, under the same rules as a participant's. Names are told apart to the letter: `Tea` and `tea` are two
/// rooms. Cheap to clone.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RoomName(Arc<str>);

impl RoomName {
    /// Where a client goes that names no room.
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

    /// The empty string is the lobby; white space alone is nothing.
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
    fn no_name_is_the_lobby() {
        assert_eq!(RoomName::try_from("").unwrap().as_str(), "lobby");
        assert_eq!(RoomName::try_from("  "), Err(NameError::Empty));
        assert_eq!(RoomName::try_from(" tea ").unwrap().as_str(), "tea");
    }
}
