//! The errors of a store.

use std::path::PathBuf;

use crate::domain::{ReplayError, RoomName, Sequence};

/// An error of a store. It is cheap to clone because a failed commit is reported to every append in it.
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
    #[error("the data directory {} has format {found:?}; this version knows {known:?}", path.display())]
    Format {
        path: PathBuf,
        found: String,
        known: &'static str,
    },
    /// The database reported an error while reading or writing.
    #[error("the store failed: {0}")]
    Database(String),
    /// The database is damaged and cannot be opened.
    #[error("the database in {} is damaged ({why}); restore the data directory from a copy", path.display())]
    Unreadable { path: PathBuf, why: String },
    /// A log ends before its high watermark: acknowledged events are missing.
    #[error(
        "{what} ends at event {last}, but events up to {noted} were acknowledged: the database in {} is damaged; restore the \
         data directory from a copy, or start once with --accept-loss to continue without them",
        path.display()
    )]
    Truncated {
        path: PathBuf,
        what: String,
        last: Sequence,
        noted: Sequence,
    },
    /// An earlier failure has stopped the store, or a [`LogId`](super::LogId) is unknown.
    #[error("the store has failed; fix the cause and restart the server")]
    Failed,
    /// A record or another entry of the database is damaged.
    #[error("the record at event {sequence} is damaged: {why}")]
    Record { sequence: Sequence, why: &'static str },
    /// The records of a log do not form a valid history.
    #[error("the log of room {:?} is damaged: {why}", room.as_str())]
    Log { room: RoomName, why: ReplayError },
    /// The limit of rooms is reached.
    #[error("there are {0} rooms, which is the limit")]
    TooManyRooms(usize),
}

impl StoreError {
    /// Returns whether stored data is damaged, as opposed to a failure to read or write it.
    #[must_use]
    pub const fn is_damage(&self) -> bool {
        matches!(
            self,
            Self::Unreadable { .. } | Self::Truncated { .. } | Self::Record { .. } | Self::Log { .. }
        )
    }

    /// Returns whether the store as a whole is unusable, as opposed to a single log.
    #[must_use]
    pub const fn is_store_failure(&self) -> bool {
        matches!(self, Self::Directory { .. } | Self::Database(_) | Self::Failed)
    }
}

impl From<fjall::Error> for StoreError {
    fn from(error: fjall::Error) -> Self {
        Self::Database(error.to_string())
    }
}
