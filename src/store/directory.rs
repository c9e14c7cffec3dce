//! The directory that a store on disk lies in. One server has it at a time.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use tracing::warn;

use super::StoreError;
use super::files::{self, write_durably};

/// The version of the directory's format that this version writes and knows.
const FORMAT: &str = "chitchat 1";

/// Where the database is in it.
const DATABASE: &str = "db";

/// A directory that nobody else has: it is free for another server when this is dropped.
pub(super) struct Directory {
    path: PathBuf,
    /// Held for its lock.
    _lock: File,
}

impl Directory {
    /// Takes the directory at `path`, making it if there is none. Waits for the disk.
    pub(super) fn take(path: &Path) -> Result<Self, StoreError> {
        fs::create_dir_all(path).map_err(cannot_use(path))?;
        let directory = Self {
            path: path.into(),
            _lock: lock(path)?,
        };
        directory.check_format()?;
        Ok(directory)
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Where the database is.
    pub(super) fn database(&self) -> PathBuf {
        self.path.join(DATABASE)
    }

    /// How many bytes are free there, where that can be said.
    pub(super) fn available(&self) -> Option<u64> {
        let free = rustix::fs::statvfs(&self.path).ok()?;
        Some(free.f_bavail.saturating_mul(free.f_frsize))
    }

    /// That it cannot be used, and why.
    pub(super) fn cannot_use(&self, why: &str) -> StoreError {
        StoreError::Directory {
            path: self.path.clone(),
            why: why.into(),
        }
    }

    /// That the database in it is damaged, and how.
    pub(super) fn unreadable(&self, why: String) -> StoreError {
        StoreError::Unreadable {
            path: self.path.clone(),
            why,
        }
    }

    /// Random bytes, the same for as long as the directory exists. Waits for the disk.
    pub(super) fn secret(&self) -> io::Result<[u8; 32]> {
        let file = self.path.join("secret");
        if let Some(bytes) = files::read(&file)? {
            return bytes.try_into().map_err(|_| {
                io::Error::new(ErrorKind::InvalidData, "its file `secret` is damaged; remove it")
            });
        }
        if self.database().exists() {
            warn!(
                event = "secret_missing",
                "the file `secret` is missing; session tokens from before are of no use"
            );
        }
        let secret: [u8; 32] = rand::random();
        write_durably(&file, &secret)?;
        Ok(secret)
    }

    fn check_format(&self) -> Result<(), StoreError> {
        let file = self.path.join("FORMAT");
        let not_known = |found: String| StoreError::Format {
            path: self.path.clone(),
            found,
            known: FORMAT,
        };
        match fs::read_to_string(&file) {
            Ok(found) if found.trim_end() == FORMAT => Ok(()),
            Ok(found) => Err(not_known(found.trim_end().chars().take(40).collect())),
            // Whoever has a database has had a format, and nobody knows which.
            Err(error) if error.kind() == ErrorKind::NotFound && self.database().exists() => {
                Err(self.unreadable("the file `FORMAT` beside it is missing".into()))
            }
            Err(error) if error.kind() == ErrorKind::NotFound => {
                write_durably(&file, format!("{FORMAT}\n").as_bytes()).map_err(cannot_use(&self.path))
            }
            Err(error) => Err(cannot_use(&self.path)(error)),
        }
    }
}

/// How an error in the directory at `path` is told.
pub(super) fn cannot_use(path: &Path) -> impl Fn(io::Error) -> StoreError {
    |error| StoreError::Directory {
        path: path.into(),
        why: error.to_string(),
    }
}

fn lock(path: &Path) -> Result<File, StoreError> {
    let cannot = cannot_use(path);
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(path.join("LOCK"))
        .map_err(&cannot)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(StoreError::Locked(path.into())),
        Err(TryLockError::Error(error)) => Err(cannot(error)),
    }
}
