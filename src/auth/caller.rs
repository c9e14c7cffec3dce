//! Who is calling, and what they may do.

use std::fmt;
use std::sync::Arc;

use crate::domain::limits::MAX_NAME_CHARS;
use crate::domain::{Name, RoomName};

/// Maximum number of patterns of one token.
const MAX_PATTERNS: usize = 32;

/// Something that a caller may do in a room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Right {
    /// Read events and the list of participants, and see the room in the list of rooms.
    Read,
    /// Join and send messages.
    Write,
    /// Create the room by joining it or sending a message.
    Create,
    /// Decide about what others do.
    Moderate,
}

impl Right {
    /// All rights.
    pub const ALL: [Self; 4] = [Self::Read, Self::Write, Self::Create, Self::Moderate];

    /// The right as tokens name it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Create => "create",
            Self::Moderate => "moderate",
        }
    }

    /// The right of this name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|right| right.as_str() == name)
    }
}

/// A set of rights.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Rights(u8);

impl Rights {
    /// Whether the set contains `right`.
    #[must_use]
    pub const fn contains(self, right: Right) -> bool {
        self.0 & (1 << right as u8) != 0
    }
}

impl FromIterator<Right> for Rights {
    fn from_iter<T: IntoIterator<Item = Right>>(rights: T) -> Self {
        Self(rights.into_iter().fold(0, |set, right| set | (1 << right as u8)))
    }
}

/// The rooms that a token grants: names, in which `*` stands for any number of characters.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RoomPatterns(Box<[Box<str>]>);

impl RoomPatterns {
    /// Takes over patterns. `None` if there are too many, or one is longer than the name of a room can be.
    #[must_use]
    pub fn new<'a>(patterns: impl IntoIterator<Item = &'a str>) -> Option<Self> {
        let patterns: Box<[Box<str>]> = patterns
            .into_iter()
            .take(MAX_PATTERNS + 1)
            .map(Box::from)
            .collect();
        let is_valid = |pattern: &str| !pattern.is_empty() && pattern.chars().count() <= MAX_NAME_CHARS;
        (patterns.len() <= MAX_PATTERNS && patterns.iter().all(|pattern| is_valid(pattern)))
            .then_some(Self(patterns))
    }

    /// Whether a pattern matches the name.
    #[must_use]
    pub fn matches(&self, room: &RoomName) -> bool {
        self.0.iter().any(|pattern| matches(pattern, room.as_str()))
    }
}

/// Whether `pattern` matches all of `text`. Each `*` takes as little as possible: a later one can take what remains.
fn matches(pattern: &str, text: &str) -> bool {
    let mut parts = pattern.split('*');
    let Some(mut rest) = parts.next().and_then(|first| text.strip_prefix(first)) else {
        return false;
    };
    let Some(last) = parts.next_back() else {
        return rest.is_empty();
    };
    for part in parts {
        match rest.find(part) {
            Some(at) => rest = &rest[at + part.len()..],
            None => return false,
        }
    }
    rest.ends_with(last)
}

/// What a valid token says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// Who the token was issued to.
    pub subject: Arc<str>,
    /// The only name that this caller may have in a room; `None` = any.
    pub name: Option<Name>,
    /// The rooms in which the rights hold.
    pub rooms: RoomPatterns,
    /// What the caller may do.
    pub rights: Rights,
    /// When the token is no longer accepted, in seconds since 1970.
    pub expires_at: u64,
}

/// What callers without a token may do, in all rooms.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Anonymous {
    /// Nothing.
    #[default]
    None,
    /// Read.
    Read,
    /// Everything but moderate.
    Write,
}

impl Anonymous {
    fn rights(self) -> Rights {
        let rights: &[Right] = match self {
            Self::None => &[],
            Self::Read => &[Right::Read],
            Self::Write => &[Right::Read, Right::Write, Right::Create],
        };
        rights.iter().copied().collect()
    }
}

impl fmt::Display for Anonymous {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "none",
            Self::Read => "read",
            Self::Write => "write",
        })
    }
}

/// Who makes a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Caller {
    /// Anyone, on a server without keys: may do everything but moderate.
    Unrestricted,
    /// A caller without a token.
    Anonymous(Anonymous),
    /// A caller with a valid token.
    Identified(Arc<Identity>),
}

/// Why a caller may not do something.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    /// It takes a token.
    #[error("this needs a token with the right to {}; send it as \"authorization: Bearer ...\"", .0.as_str())]
    Anonymous(Right),
    /// Without keys, nobody is known who could have the right.
    #[error(
        "nobody has the right to moderate on a server without keys; the operator can start it with --auth-keys"
    )]
    NoKeys,
    /// The token does not grant the right.
    #[error("your token does not grant the right to {} in a room", .0.as_str())]
    Right(Right),
    /// The token does not grant the room.
    #[error("your token does not grant the room \"{0}\"")]
    Room(RoomName),
    /// The token is for another name.
    #[error("your token is for the name \"{0}\"; use that, or none")]
    Name(Name),
}

impl Caller {
    /// Checks that the caller has a right in a room.
    ///
    /// # Errors
    ///
    /// If the caller does not.
    pub fn check(&self, right: Right, room: &RoomName) -> Result<(), Denied> {
        self.check_right(right)?;
        match self {
            Self::Identified(identity) if !identity.rooms.matches(room) => Err(Denied::Room(room.clone())),
            _ => Ok(()),
        }
    }

    /// Checks that the caller has a right in any room at all.
    ///
    /// # Errors
    ///
    /// If the caller does not.
    pub fn check_right(&self, right: Right) -> Result<(), Denied> {
        match self {
            Self::Unrestricted if right == Right::Moderate => Err(Denied::NoKeys),
            Self::Anonymous(anonymous) if !anonymous.rights().contains(right) => {
                Err(Denied::Anonymous(right))
            }
            Self::Identified(identity) if !identity.rights.contains(right) => Err(Denied::Right(right)),
            _ => Ok(()),
        }
    }

    /// Checks the right to write in a room, and to create it unless it exists.
    ///
    /// # Errors
    ///
    /// If the caller may not.
    pub fn check_write(&self, room: &RoomName, is_new: bool) -> Result<(), Denied> {
        self.check(Right::Write, room)?;
        if is_new {
            self.check(Right::Create, room)
        } else {
            Ok(())
        }
    }

    /// The name that a caller has who asks for `requested`, which may be empty if the token has one.
    ///
    /// # Errors
    ///
    /// The token is for another name.
    pub fn name<'a>(&'a self, requested: &'a str) -> Result<&'a str, Denied> {
        match self.identity().and_then(|identity| identity.name.as_ref()) {
            Some(name) if requested.trim().is_empty() || requested.trim() == name.as_str() => {
                Ok(name.as_str())
            }
            Some(name) => Err(Denied::Name(name.clone())),
            None => Ok(requested),
        }
    }

    /// Who owns the caller's name: the subject of the token, if that has a name.
    #[must_use]
    pub fn name_owner(&self) -> Option<Arc<str>> {
        let identity = self.identity()?;
        identity.name.as_ref().map(|_| Arc::clone(&identity.subject))
    }

    /// What the caller's token says.
    #[must_use]
    pub fn identity(&self) -> Option<&Identity> {
        match self {
            Self::Identified(identity) => Some(identity),
            Self::Unrestricted | Self::Anonymous(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn room(name: &str) -> RoomName {
        RoomName::try_from(name).unwrap()
    }

    fn caller(rooms: &[&str], rights: &[Right], name: Option<&str>) -> Caller {
        Caller::Identified(Arc::new(Identity {
            subject: "ada".into(),
            name: name.map(|name| Name::try_from(name).unwrap()),
            rooms: RoomPatterns::new(rooms.iter().copied()).unwrap(),
            rights: rights.iter().copied().collect(),
            expires_at: 0,
        }))
    }

    #[test]
    fn a_star_stands_for_any_characters() {
        for (pattern, text, expected) in [
            ("tea", "tea", true),
            ("tea", "teas", false),
            ("tea", "Tea", false),
            ("*", "anything", true),
            ("team-*", "team-1", true),
            ("team-*", "team-", true),
            ("team-*", "a team-1", false),
            ("*-public", "x-public", true),
            ("*-public", "x-public-not", false),
            ("a*b*c", "a-b-b-c", true),
            ("a*b*c", "a-c-b", false),
            ("a*a", "a", false),
            ("a*a", "aa", true),
            ("**", "x", true),
            ("ä*", "äö", true),
        ] {
            assert_eq!(matches(pattern, text), expected, "{pattern} {text}");
        }
    }

    proptest! {
        #[test]
        fn matching_agrees_with_trying_every_length(pattern in "[ab*]{0,8}", text in "[ab]{0,8}") {
            fn slow(pattern: &[u8], text: &[u8]) -> bool {
                match pattern.split_first() {
                    None => text.is_empty(),
                    Some((b'*', rest)) => (0..=text.len()).any(|from| slow(rest, &text[from..])),
                    Some((first, rest)) => text.first() == Some(first) && slow(rest, &text[1..]),
                }
            }
            prop_assert_eq!(matches(&pattern, &text), slow(pattern.as_bytes(), text.as_bytes()));
        }
    }

    #[test]
    fn the_number_and_length_of_patterns_are_limited() {
        assert!(RoomPatterns::new(["a"; MAX_PATTERNS]).is_some());
        assert!(RoomPatterns::new(["a"; MAX_PATTERNS + 1]).is_none());
        assert!(RoomPatterns::new(["a".repeat(MAX_NAME_CHARS + 1).as_str()]).is_none());
        assert!(RoomPatterns::new([""]).is_none());
    }

    #[test]
    fn a_token_grants_its_rights_in_its_rooms_and_nothing_else() {
        let caller = caller(&["tea", "team-*"], &[Right::Read, Right::Write], None);
        assert_eq!(caller.check(Right::Read, &room("team-1")), Ok(()));
        assert_eq!(
            caller.check(Right::Read, &room("lobby")),
            Err(Denied::Room(room("lobby")))
        );
        assert_eq!(
            caller.check(Right::Moderate, &room("tea")),
            Err(Denied::Right(Right::Moderate))
        );
        assert_eq!(caller.check_write(&room("tea"), false), Ok(()));
        assert_eq!(
            caller.check_write(&room("tea"), true),
            Err(Denied::Right(Right::Create))
        );
    }

    #[test]
    fn callers_without_a_token_have_what_the_server_gives_them() {
        let denied = |right| Err(Denied::Anonymous(right));
        let tea = room("tea");
        let (none, read, write) = (
            Caller::Anonymous(Anonymous::None),
            Caller::Anonymous(Anonymous::Read),
            Caller::Anonymous(Anonymous::Write),
        );
        assert_eq!(none.check(Right::Read, &tea), denied(Right::Read));
        assert_eq!(read.check(Right::Read, &tea), Ok(()));
        assert_eq!(read.check_write(&tea, false), denied(Right::Write));
        assert_eq!(write.check_write(&tea, true), Ok(()));
        assert_eq!(write.check(Right::Moderate, &tea), denied(Right::Moderate));
        assert_eq!(Caller::Unrestricted.check_write(&tea, true), Ok(()));
        assert_eq!(
            Caller::Unrestricted.check(Right::Moderate, &tea),
            Err(Denied::NoKeys)
        );
    }

    #[test]
    fn the_name_in_a_token_is_the_only_one() {
        let ada = caller(&["*"], &[], Some("Ada"));
        assert_eq!(ada.name(""), Ok("Ada"));
        assert_eq!(ada.name(" Ada\n"), Ok("Ada"));
        assert_eq!(ada.name("ada"), Err(Denied::Name(Name::try_from("Ada").unwrap())));
        assert_eq!(caller(&["*"], &[], None).name("Bob"), Ok("Bob"));
    }
}
