//! What can go wrong with a store.

use std::path::PathBuf;

use crate::domain::{ReplayError, RoomName, Sequence};

/// What can go wrong with a store. Cheap to clone, since a failed append is told to everybody who waits.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// The directory cannot be made or used.
    #[error("cannot use the data directory {}: {why}", path.display())]
    Directory {
        /// Which.
        path: PathBuf,
        /// Why.
        why: String,
    },
    /// Another server has the directory.
    #[error("the data directory {} is in use by another server; give each server its own", .0.display())]
    Locked(PathBuf),
    /// The directory was written by a version that this one does not know.
    #[error("the data directory {} has format {found:?}; this version knows {known:?}", path.display())]
    Format {
        /// Which.
        path: PathBuf,
        /// What it has.
        found: String,
        /// What would be right.
        known: &'static str,
    },
    /// The database failed.
    #[error("the store failed: {0}")]
    Database(String),
    /// The database cannot be opened.
    #[error("the database in {} is damaged ({why}); restore the data directory from a copy", path.display())]
    Unreadable {
        /// The directory.
        path: PathBuf,
        /// What the database says.
        why: String,
    },
    /// Events are gone that were acknowledged.
    #[error(
        "{what} ends at event {last}, but events up to {noted} were acknowledged: the database in {} is damaged; restore the \
         data directory from a copy, or start once with --accept-loss to go on without them",
        path.display()
    )]
    Shorter {
        /// The directory.
        path: PathBuf,
        /// Which log.
        what: String,
        /// Where it ends.
        last: Sequence,
        /// How far it was.
        noted: Sequence,
    },
    /// The store failed before, and takes nothing more.
    #[error("the store has failed before; restart the server when its cause is mended")]
    Failed,
    /// A record cannot be read.
    #[error("the record at event {sequence} is damaged: {why}")]
    Record {
        /// Where it begins.
        sequence: Sequence,
        /// What is wrong.
        why: &'static str,
    },
    /// A log is damaged.
    #[error("the log of room {:?} is damaged: {why}", room.as_str())]
    Log {
        /// Whose.
        room: RoomName,
        /// How.
        why: ReplayError,
    },
    /// There are as many logs as may be.
    #[error("there are {0} rooms, which is the limit")]
    TooManyRooms(usize),
}

impl StoreError {
    /// Whether it is about what was written once, not about writing or reading.
    #[must_use]
    pub const fn is_damage(&self) -> bool {
        matches!(
            self,
            Self::Unreadable { .. } | Self::Shorter { .. } | Self::Record { .. } | Self::Log { .. }
        )
    }

    /// Whether it is about the store as a whole, as it is now: nothing that is given to it is safe any more.
    #[must_use]
    pub const fn is_of_the_store(&self) -> bool {
        matches!(self, Self::Directory { .. } | Self::Database(_) | Self::Failed)
    }
}

impl From<fjall::Error> for StoreError {
    fn from(error: fjall::Error) -> Self {
        Self::Database(error.to_string())
    }
}
