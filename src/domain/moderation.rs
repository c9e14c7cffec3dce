//! Moderation: what somebody with the right to do so decides about others, and whom a room keeps out because of it.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use super::limits::MAX_BANS;
use super::skeleton::{Skeletons, skeletons};
use super::{Name, ParticipantId, Rejection, Text, WallTime};

/// Who a command comes from. Not in the log: a room that is restored knows it of nobody.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Origin {
    /// Who the client's token was issued to, if it has one.
    pub subject: Option<Arc<str>>,
    /// What counts as the client's address.
    pub address: Option<IpAddr>,
    /// Whether the client may moderate the room. Then neither a ban nor a closed room keeps it out.
    pub is_moderator: bool,
}

/// A decision of a moderator.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Moderation {
    /// Makes participants leave. They may join again.
    Remove {
        /// Who leaves.
        who: RemoveTarget,
        /// What they are told.
        reason: Text,
    },
    /// Keeps somebody out for a time, and makes those participants leave. Replaces an earlier ban of the same target.
    Ban(Ban),
    /// Ends a ban.
    Unban(BanTarget),
    /// Closes the room: until it is reopened, nobody joins and nobody says anything. Participants and readers stay.
    Close,
    /// Reopens the room.
    Reopen,
    /// Ends the room and its log.
    Delete,
}

/// Which participants are removed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RemoveTarget {
    /// The participant with this id.
    Participant(ParticipantId),
    /// All that a ban of this target would keep out.
    All(BanTarget),
}

/// Whom a ban keeps out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BanTarget {
    /// Whoever uses this name or one that is confusable with it.
    Name(Name),
    /// Whoever has a token of this subject.
    Subject(Arc<str>),
    /// Whoever comes from this address.
    Address(IpAddr),
}

/// A ban.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ban {
    /// Whom it keeps out.
    pub target: BanTarget,
    /// When it ends.
    pub until: WallTime,
    /// Shown to those whom it keeps out.
    pub reason: Text,
}

impl BanTarget {
    /// Whether this is the subject or address of a client that is not a moderator.
    #[must_use]
    pub fn is_origin(&self, origin: &Origin) -> bool {
        let is_equal = match self {
            Self::Name(_) => false,
            Self::Subject(subject) => origin.subject.as_ref() == Some(subject),
            Self::Address(address) => origin.address == Some(*address),
        };
        is_equal && !origin.is_moderator
    }
}

impl fmt::Display for BanTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => write!(f, "name {name}"),
            Self::Subject(subject) => write!(f, "subject {subject}"),
            Self::Address(address) => write!(f, "address {address}"),
        }
    }
}

/// A target with what is expensive to compute.
#[derive(Debug, Clone)]
pub(super) struct Matcher {
    target: BanTarget,
    /// Of a name.
    skeletons: Option<Skeletons>,
}

impl Matcher {
    pub(super) fn new(target: BanTarget) -> Self {
        let skeletons = match &target {
            BanTarget::Name(name) => Some(skeletons(name.as_str())),
            BanTarget::Subject(_) | BanTarget::Address(_) => None,
        };
        Self { target, skeletons }
    }

    /// Whether the target is somebody whose name has these skeletons, if it has a name.
    pub(super) fn matches(&self, skeletons: Option<&Skeletons>, origin: &Origin) -> bool {
        self.target.is_origin(origin) || (!origin.is_moderator && self.has_name(skeletons))
    }

    fn has_name(&self, skeletons: Option<&Skeletons>) -> bool {
        let (Some(own), Some(other)) = (&self.skeletons, skeletons) else {
            return false;
        };
        own.iter().any(|skeleton| other.contains(skeleton))
    }

    /// Whether both match the same.
    fn is_same(&self, other: &Self) -> bool {
        self.target == other.target || (self.skeletons.is_some() && self.skeletons == other.skeletons)
    }
}

/// The bans of a room. There are so few that they are searched one by one.
#[derive(Debug, Clone, Default)]
pub(super) struct Bans(Vec<(Matcher, Ban)>);

impl Bans {
    pub(super) fn restore(bans: Vec<Ban>) -> Self {
        let with_matcher = |ban: Ban| (Matcher::new(ban.target.clone()), ban);
        Self(bans.into_iter().map(with_matcher).collect())
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Ban> {
        self.0.iter().map(|(_, ban)| ban)
    }

    /// The ban that keeps somebody out at the time `at`.
    pub(super) fn find(&self, skeletons: Option<&Skeletons>, origin: &Origin, at: WallTime) -> Option<&Ban> {
        let mut bans = self.0.iter().filter(|(_, ban)| ban.until > at);
        let found = bans.find(|(matcher, _)| matcher.matches(skeletons, origin));
        found.map(|(_, ban)| ban)
    }

    /// Adds a ban, and forgets those that have ended.
    pub(super) fn insert(&mut self, ban: Ban, at: WallTime) -> Result<Matcher, Rejection> {
        let matcher = Matcher::new(ban.target.clone());
        let others = |(other, earlier): &&(Matcher, Ban)| earlier.until > at && !other.is_same(&matcher);
        let count = self.0.iter().filter(others).count();
        if count >= MAX_BANS {
            return Err(Rejection::TooManyBans(count));
        }
        self.0
            .retain(|(other, earlier)| earlier.until > at && !other.is_same(&matcher));
        self.0.push((matcher.clone(), ban));
        Ok(matcher)
    }

    /// Ends the bans of a target, of a name in any spelling. Returns whether there was one.
    pub(super) fn remove(&mut self, target: BanTarget, at: WallTime) -> bool {
        let matcher = Matcher::new(target);
        let is_meant =
            |other: &Matcher| other.is_same(&matcher) || matcher.has_name(other.skeletons.as_ref());
        let before = self.0.len();
        self.0.retain(|(other, ban)| ban.until <= at || !is_meant(other));
        self.0.len() < before
    }
}
