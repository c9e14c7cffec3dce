//! The data directory of a store on disk, locked by one server at a time.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use tracing::warn;

use super::StoreError;
use super::files::{self, write_atomically};

/// The version of the directory's layout.
const FORMAT: &str = "chitchat 1";

/// The subdirectory of the database.
const DATABASE: &str = "db";

/// A locked data directory. Dropping it releases the lock.
pub(super) struct Directory {
    path: PathBuf,
    /// Holds the lock.
    _lock: File,
}

impl Directory {
    /// Locks the directory at `path`, creating it if it does not exist.
    pub(super) fn lock(path: &Path) -> Result<Self, StoreError> {
        fs::create_dir_all(path).map_err(cannot_use(path))?;
        let directory = Self {
            path: path.into(),
            _lock: lock_file(path)?,
        };
        directory.check_format()?;
        Ok(directory)
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the path of the database.
    pub(super) fn database(&self) -> PathBuf {
        self.path.join(DATABASE)
    }

    /// Returns the free bytes of the file system, if it reports them.
    pub(super) fn available(&self) -> Option<u64> {
        let free = rustix::fs::statvfs(&self.path).ok()?;
        Some(free.f_bavail.saturating_mul(free.f_frsize))
    }

    /// Returns an error saying that the directory cannot be used.
    pub(super) fn cannot_use(&self, why: &str) -> StoreError {
        StoreError::Directory {
            path: self.path.clone(),
            why: why.into(),
        }
    }

    /// Returns an error saying that the database is damaged.
    pub(super) fn unreadable(&self, why: String) -> StoreError {
        StoreError::Unreadable {
            path: self.path.clone(),
            why,
        }
    }

    /// Returns the key of session tokens, creating it at random if its file does not exist.
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
                "the file `secret` is missing; session tokens issued earlier are invalid"
            );
        }
        let secret: [u8; 32] = rand::random();
        write_atomically(&file, &secret)?;
        Ok(secret)
    }

    fn check_format(&self) -> Result<(), StoreError> {
        let file = self.path.join("FORMAT");
        match fs::read_to_string(&file) {
            Ok(found) if found.trim_end() == FORMAT => Ok(()),
            Ok(found) => Err(StoreError::Format {
                path: self.path.clone(),
                found: found.trim_end().chars().take(40).collect(),
                known: FORMAT,
            }),
            // The database was written in some format, and without this file it is unknown in which.
            Err(error) if error.kind() == ErrorKind::NotFound && self.database().exists() => {
                Err(self.unreadable("the file `FORMAT` beside it is missing".into()))
            }
            Err(error) if error.kind() == ErrorKind::NotFound => {
                write_atomically(&file, format!("{FORMAT}\n").as_bytes()).map_err(cannot_use(&self.path))
            }
            Err(error) => Err(cannot_use(&self.path)(error)),
        }
    }
}

/// Returns a function that converts I/O errors in the directory at `path`.
pub(super) fn cannot_use(path: &Path) -> impl Fn(io::Error) -> StoreError {
    |error| StoreError::Directory {
        path: path.into(),
        why: error.to_string(),
    }
}

fn lock_file(path: &Path) -> Result<File, StoreError> {
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
