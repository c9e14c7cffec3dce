//! The errors of a store.

use std::io;
use std::path::{Path, PathBuf};

use crate::domain::{ReplayError, RoomName, Sequence};

/// An error of a store. It is cheap to clone because a failed write is reported to every append in it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "the messages describe the fields")]
pub enum StoreError {
    /// The data directory cannot be created, read or written, or was moved away.
    #[error("cannot use the data directory {}: {why}", path.display())]
    Directory { path: PathBuf, why: String },
    /// Another server has locked the data directory.
    #[error("the data directory {} is in use by another server; give each server its own", .0.display())]
    Locked(PathBuf),
    /// The data directory was written by an unknown version of this program.
    #[error(
        "the data directory {} has format {found:?}; this version knows {known:?}; use the version that wrote it, or another \
         directory",
        path.display()
    )]
    Format {
        path: PathBuf,
        found: String,
        known: &'static str,
    },
    /// The operating system reported an error while reading or writing.
    #[error("the store failed: {0}")]
    Io(String),
    /// A file of the journal is damaged or missing.
    #[error(
        "{} is damaged at byte {offset}: {why}; restore the data directory from a copy, or start once with --accept-loss to \
         continue without what is lost",
        path.display()
    )]
    Damaged { path: PathBuf, offset: u64, why: String },
    /// An earlier failure has stopped the store. Also the answer for a [`LogId`](super::LogId) that the store does not have.
    #[error("the store has failed; fix the cause and restart the server")]
    Failed,
    /// A record was appended that does not continue its log.
    #[error("a record starts at event {first}, but the log ends at {last}")]
    NotContiguous { last: Sequence, first: Sequence },
    /// A record or a snapshot is damaged.
    #[error("the record or snapshot at event {sequence} is damaged: {why}")]
    Record { sequence: Sequence, why: &'static str },
    /// The records of a log do not form a valid history.
    #[error(
        "the log of room {:?} is damaged: {why}; restore the data directory from a copy, or start once with --accept-loss to \
         continue without what is lost",
        room.as_str()
    )]
    Log { room: RoomName, why: ReplayError },
    /// The limit of rooms is reached.
    #[error("there are {0} rooms, which is the limit")]
    TooManyRooms(usize),
}

impl StoreError {
    /// The error for a file that the operating system does not let us `act` on, such as read or write, although it may be intact.
    pub(super) fn cannot(act: &str, path: &Path, error: &io::Error) -> Self {
        Self::Io(format!("cannot {act} {}: {error}", path.display()))
    }

    /// Returns whether stored data is damaged, as opposed to a failure to read or write it.
    #[must_use]
    pub const fn is_damage(&self) -> bool {
        matches!(
            self,
            Self::Damaged { .. } | Self::Record { .. } | Self::Log { .. }
        )
    }

    /// Returns whether the store as a whole is unusable, as opposed to a single log.
    #[must_use]
    pub const fn is_store_failure(&self) -> bool {
        matches!(self, Self::Directory { .. } | Self::Io(_) | Self::Failed)
    }
}
