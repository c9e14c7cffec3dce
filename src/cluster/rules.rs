//! What all replicas must have in common, because their decisions depend on it.

use std::fmt;

use crate::domain::encoding::{Encoding, encode_struct};
use crate::domain::{DecodeError, NAME_TABLES, Rules};
use crate::failpoint;

/// The rules of the command log. Each replica says which it was started with; all live ones have the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ClusterRules {
    /// Of all rooms.
    pub(crate) rooms: Rules,
    /// The maximum number of rooms. The lobby exists in any case.
    pub(crate) max_rooms: usize,
    /// Which Unicode tables decide whether two names are confusable.
    pub(crate) name_tables: u64,
}

impl ClusterRules {
    /// Of this program, when it is started with these.
    pub(crate) const fn new(rooms: Rules, max_rooms: usize) -> Self {
        Self {
            rooms,
            max_rooms,
            name_tables: NAME_TABLES,
        }
    }
}

/// The versions of the fold that a program supports. A version is what replicas make of the same messages, and which messages there are:
/// whoever changes either must add a version, and go on to decide as before until the new one is [active](super::message::Content::Activate).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FoldVersions {
    pub(crate) oldest: u64,
    pub(crate) newest: u64,
}

impl FoldVersions {
    /// Those of this program.
    pub(crate) fn supported() -> Self {
        // So that tests can roll a new version through a cluster.
        let is_next = failpoint::is_enabled("next-fold-version");
        Self {
            oldest: 1,
            newest: if is_next { 2 } else { 1 },
        }
    }

    pub(crate) const fn contains(self, version: u64) -> bool {
        self.oldest <= version && version <= self.newest
    }
}

impl fmt::Display for FoldVersions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { oldest, newest } = self;
        if oldest == newest {
            write!(f, "{oldest}")
        } else {
            write!(f, "{oldest} to {newest}")
        }
    }
}

encode_struct! {
    ClusterRules { rooms, max_rooms, name_tables }
    FoldVersions { oldest, newest }
}
