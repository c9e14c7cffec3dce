//! Names of participants and rooms.

use std::fmt;
use std::sync::{Arc, LazyLock};

use unicode_normalization::char::is_combining_mark;

use super::characters::{NAME_PUNCTUATION, is_allowed_in_name, is_visible_in_name};
use super::limits::{MAX_MARKS_PER_LETTER, MAX_NAME_CHARS};
use super::skeleton::{ReservedPhrase, skeletons};

/// A participant's name: 1 to [`MAX_NAME_CHARS`] characters without surrounding white space. Cheap to clone.
///
/// A new name has the characters that Unicode Technical Standard 39 allows in identifiers (letters, digits and combining
/// marks of the scripts in use), single spaces, and a few punctuation characters, none of which separates a name from a text.
/// So no line that begins with a name reads as one of somebody else, or of the server.
///
/// Equality is exact; whether two names can coexist in a room is decided by [`Name::is_confusable_with`].
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name(Arc<str>);

/// A room's name: 1 to [`MAX_NAME_CHARS`] characters, without control, bidirectional or invisible characters and without
/// surrounding white space. Equality is exact: `Tea` and `tea` are two rooms. Cheap to clone.
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
    /// It has a character that participants' names cannot have.
    #[error("has the character U+{:04X} at position {position}; letters and digits of any script, single spaces and {NAME_PUNCTUATION} are allowed", u32::from(*.character))]
    NotAllowed {
        /// The first such character.
        character: char,
        /// Its position in the trimmed name, counted from 1.
        position: usize,
    },
    /// A combining mark follows no letter, or too many others.
    #[error(
        "has a combining mark at position {position} that follows no letter, or {MAX_MARKS_PER_LETTER} other marks"
    )]
    Mark {
        /// Its position in the trimmed name, counted from 1.
        position: usize,
    },
    /// It has no letter and no digit.
    #[error("has no letter and no digit")]
    NothingToRead,
    /// It reads as the announcement that somebody joined or left.
    #[error("reads as an announcement of the server")]
    Announcement,
}

/// What the announcements of JOINs and LEAVEs have in common, in lower case.
const ANNOUNCEMENT: &str = "chit chat at logical time";

/// Validates a name of a room, or what a participant's name has in common with it, and returns it without surrounding white
/// space.
fn parse(raw: &str) -> Result<&str, NameError> {
    let name = raw.trim();
    if name.is_empty() {
        return Err(NameError::Empty);
    }
    let wrong = name.chars().enumerate().find(|&(_, c)| !is_visible_in_name(c));
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

/// Checks what participants' names have in addition.
fn check_participant(name: &str) -> Result<(), NameError> {
    // The character before, and the number of marks since the last character that is not one.
    let (mut previous, mut marks) = (' ', 0);
    let mut is_readable = false;
    for (position, character) in (1..).zip(name.chars()) {
        if !is_allowed_in_name(character) || (character == ' ' && previous == ' ') {
            return Err(NameError::NotAllowed { character, position });
        }
        if is_combining_mark(character) {
            marks += 1;
            let follows_base = previous.is_alphanumeric() || marks > 1;
            if !follows_base || marks > MAX_MARKS_PER_LETTER {
                return Err(NameError::Mark { position });
            }
        } else {
            marks = 0;
            is_readable |= character.is_alphanumeric();
        }
        previous = character;
    }
    if !is_readable {
        return Err(NameError::NothingToRead);
    }
    // Each character of the phrase takes at least one byte.
    static PHRASE: LazyLock<ReservedPhrase> = LazyLock::new(|| ReservedPhrase::new(ANNOUNCEMENT));
    if name.len() >= ANNOUNCEMENT.len() && PHRASE.occurs_in(name) {
        return Err(NameError::Announcement);
    }
    Ok(())
}

impl Name {
    /// Whether the names look alike or differ only in case, so that a room accepts only one of them.
    #[must_use]
    pub fn is_confusable_with(&self, other: &Self) -> bool {
        let others = skeletons(other.as_str());
        skeletons(self.as_str())
            .iter()
            .any(|skeleton| others.contains(skeleton))
    }

    /// A name that was accepted before, maybe under rules that were less strict. `None` if it is empty.
    #[must_use]
    pub fn from_stored(name: &str) -> Option<Self> {
        (!name.is_empty()).then(|| Self(name.into()))
    }

    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<&str> for Name {
    type Error = NameError;

    fn try_from(raw: &str) -> Result<Self, NameError> {
        let name = parse(raw)?;
        check_participant(name)?;
        Ok(Self(name.into()))
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

    /// A name that was accepted before, maybe under rules that were less strict. `None` if it is empty.
    #[must_use]
    pub(super) fn from_stored(name: &str) -> Option<Self> {
        (!name.is_empty()).then(|| Self(name.into()))
    }

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
    use proptest::prelude::*;
    use unicode_security::skeleton;

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
    fn names_of_all_scripts_are_allowed() {
        for name in [
            "Ada Lovelace",
            "O'Neil, Jr. (home)",
            "d’Artagnan",
            "bot-1_x.y+z@host",
            "R&D #2!?",
            "Ångström",
            "A\u{30a}ngstro\u{308}m",
            "Nguyễn Văn Đức",
            "山田 太郎",
            "やまだ・たろう",
            "김철수",
            "Ольга",
            "Ελένη",
            "عُمَر",
            "שלום",
            "नेहा शर्मा",
            "தமிழ்",
            "สมชาย",
            "ကျွေး",
            "រស្មី",
            "བཀྲ་ཤིས",
            "Հայկ",
            "გიორგი",
            "7",
        ] {
            assert_eq!(Name::try_from(name).map(|name| name.to_string()), Ok(name.into()));
        }
    }

    #[test]
    fn names_that_pass_for_somebody_elses_line_are_rejected() {
        for name in [
            "Server: maintenance",
            "Ada: I agree",
            "Ada\u{2236} I agree",
            "Ada\u{ff1a} I agree",
            "Ada\u{a789} I agree",
            "Ada\u{2d0} I agree",
            "Ada\u{903} I agree",
            "Ada\u{589} I agree",
            "Participant Ada left Chit Chat at logical time L=9",
            "Participant Ada left Chit Chat at logical time L 9",
            "Participant Ada left Сhit Сhat at lоgical time L9",
            "Participant Ada left Chit Chat at Iogical time L9",
            "Participant Ada left ChIt Chat at Iogical tlme L9",
            "PARTICIPANT ADA LEFT CHIT CHAT AT LOGICAL TIME L9",
            "L\u{30a0}9",
            "[L=5] Ada",
            "<Ada>",
            "* Ada",
            "\"Ada\"",
            "Ada | Bob",
            "Ada > Bob",
            "Ada; Bob",
            "Ada \\ Bob",
        ] {
            assert!(Name::try_from(name).is_err(), "{name:?}");
        }
    }

    #[test]
    fn names_that_cannot_be_read_are_rejected() {
        for name in [
            "\u{1d159}",
            "A\u{1d159}",
            "\u{e000}",
            "\u{f8ff}",
            "\u{10fffd}",
            "\u{2800}",
            "\u{3164}",
            "A\u{a0}B",
            "A\u{3000}B",
            "A\u{2003}B",
            "A  B",
            ".",
            "-",
            "' '",
            "🦀",
            "\u{301}",
            "a \u{301}",
            "-\u{301}",
            "a\u{301}\u{302}\u{303}\u{304}\u{306}",
            "a\u{20dd}",
        ] {
            assert!(Name::try_from(name).is_err(), "{name:?}");
        }
        let marks = "a\u{301}\u{302}\u{303}\u{304}";
        assert!(Name::try_from(marks).is_ok());
    }

    #[test]
    fn names_that_were_accepted_before_can_be_read() {
        let announcement = "Participant Ada left Chit Chat at Iogical time L9";
        for name in ["Ada: I agree", "🦀", "\u{301}", "a  b", announcement] {
            assert_eq!(Name::from_stored(name).unwrap().as_str(), name);
        }
        assert_eq!(Name::from_stored(""), None);
        assert!(RoomName::try_from("🦀: the room").is_ok());
    }

    proptest! {
        #[test]
        fn no_name_has_a_separator_even_in_disguise(name in "\\PC{1,12}") {
            if let Ok(name) = Name::try_from(name.as_str()) {
                let looks: String = skeleton(name.as_str()).collect();
                prop_assert!(!looks.contains([':', '=', '<', '>', '[', ']', ';', '|', '*', '"']), "{:?} {:?}", name, looks);
                prop_assert!(!looks.contains("  "));
            }
        }
    }

    #[test]
    fn the_empty_room_name_is_the_lobby() {
        assert_eq!(RoomName::try_from("").unwrap().as_str(), "lobby");
        assert_eq!(RoomName::try_from("  "), Err(NameError::Empty));
        assert_eq!(RoomName::try_from(" tea ").unwrap().as_str(), "tea");
    }
}
