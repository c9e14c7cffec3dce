//! The data directory of a store on disk, locked by one server at a time.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, ErrorKind, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, FileExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use tracing::warn;

use super::StoreError;

/// The version of the directory's layout.
pub(super) const FORMAT: &str = "chitchat 2";

/// What the file `FORMAT` begins with in the data directory of a replica, which has checkpoints and no log.
pub(crate) const CLUSTER_FORMAT: &str = "chitchat cluster ";

/// The mode of files: chat data is readable by its owner alone.
pub(crate) const PRIVATE: u32 = 0o600;

/// The file that says that every room needs a new epoch.
const RENEW_EPOCHS: &str = "renew-epochs";

/// The file of the high watermark.
const WATERMARK: &str = "watermark";

/// Its length, in bytes.
const WATERMARK_LEN: usize = 16;

/// A data directory.
pub(super) struct Directory {
    path: PathBuf,
    /// Holds the lock.
    lock: Option<File>,
    /// Whether a server has the lock.
    is_in_use: bool,
}

/// How far the journal is known to be durable: up to an offset in a segment.
///
/// An incomplete entry at the end of the journal was usually torn by a crash and never acknowledged, and is cut off when the
/// store is opened. But if the end of the journal is damaged later, it looks the same. So the writer stores the high watermark
/// after each write is durable, before it is acknowledged, and a journal that ends below its watermark is damaged.
///
/// The watermark is not synced. It survives a crash of the process; after a power cut an older one may be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct HighWatermark {
    pub(super) segment: u32,
    pub(super) offset: u32,
}

impl Directory {
    /// Locks the directory at `path`, creating it if it does not exist.
    pub(super) fn lock(path: &Path) -> Result<Self, StoreError> {
        let cannot = cannot_use(path);
        let is_new = !path.exists();
        create_private(path).map_err(&cannot)?;
        if is_new {
            sync_parent(&path.canonicalize().map_err(&cannot)?).map_err(&cannot)?;
        }
        let directory = Self {
            path: path.into(),
            lock: Some(lock_file(path)?),
            is_in_use: false,
        };
        if directory.read_format()?.is_none() {
            directory.write_format().map_err(&cannot)?;
        }
        directory.create_journal().map_err(&cannot)?;
        Ok(directory)
    }

    /// Creates an empty directory at `path`.
    pub(super) fn create_empty(path: &Path) -> Result<Self, StoreError> {
        let cannot = cannot_use(path);
        create_private(path).map_err(&cannot)?;
        if fs::read_dir(path).map_err(&cannot)?.next().is_some() {
            return Err(StoreError::Directory {
                path: path.into(),
                why: "it is not empty".into(),
            });
        }
        Ok(Self {
            path: path.into(),
            lock: None,
            is_in_use: false,
        })
    }

    pub(super) fn create_journal(&self) -> io::Result<()> {
        create_private(&self.journal())?;
        sync_parent(&self.journal())
    }

    pub(super) fn write_format(&self) -> io::Result<()> {
        write_atomically(&self.path.join("FORMAT"), format!("{FORMAT}\n").as_bytes())
    }

    /// Whether a server used the directory when it was opened to be read.
    pub(super) const fn is_in_use(&self) -> bool {
        self.is_in_use
    }

    pub(super) fn unlock(&mut self) {
        self.lock = None;
    }

    /// Opens a directory to read it. Locks it unless a server uses it or it has no file to lock, as a copy.
    pub(super) fn read_only(path: &Path) -> Result<Self, StoreError> {
        let cannot = cannot_use(path);
        let lock = none_if_missing(File::open(path.join("LOCK"))).map_err(&cannot)?;
        let is_in_use = match lock.as_ref().map(File::try_lock) {
            None | Some(Ok(())) => false,
            Some(Err(TryLockError::WouldBlock)) => true,
            Some(Err(TryLockError::Error(error))) => return Err(cannot(error)),
        };
        let directory = Self {
            path: path.into(),
            lock,
            is_in_use,
        };
        match directory.read_format()? {
            Some(()) => Ok(directory),
            None => Err(StoreError::Directory {
                path: path.into(),
                why: "it is not a data directory: its file `FORMAT` is missing".into(),
            }),
        }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The directory of the segments.
    pub(super) fn journal(&self) -> PathBuf {
        self.path.join("log")
    }

    /// Returns the free bytes of the file system, if it reports them.
    pub(super) fn available(&self) -> Option<u64> {
        let free = rustix::fs::statvfs(&self.path).ok()?;
        Some(free.f_bavail.saturating_mul(free.f_frsize))
    }

    /// Returns an error if the directory was removed, moved or replaced since it was locked.
    pub(super) fn check_in_place(&self) -> Result<(), StoreError> {
        let path = self.path.join("LOCK");
        let why = match self.lock.as_ref().map(|lock| is_same_file(lock, &path)) {
            None | Some(Ok(true)) => return Ok(()),
            Some(Ok(false)) => "its file LOCK was replaced".into(),
            Some(Err(error)) if error.kind() == ErrorKind::NotFound => {
                "its file LOCK was removed or moved".into()
            }
            Some(Err(error)) => error.to_string(),
        };
        Err(StoreError::Directory {
            path: self.path.clone(),
            why,
        })
    }

    /// Returns the key of session tokens, creating it at random if its file does not exist.
    pub(super) fn secret(&self) -> io::Result<[u8; 32]> {
        let file = self.path.join("secret");
        if let Some(bytes) = read(&file)? {
            return bytes.try_into().map_err(|_| {
                io::Error::new(ErrorKind::InvalidData, "its file `secret` is damaged; remove it")
            });
        }
        if !segment_numbers(&self.journal())?.is_empty() {
            warn!(
                event = "secret_missing",
                "the file `secret` is missing; session tokens issued earlier are invalid"
            );
        }
        let secret: [u8; 32] = rand::random();
        write_atomically(&file, &secret)?;
        Ok(secret)
    }

    /// Whether every room needs a new epoch: the directory is a copy that no server has opened yet, or a repair was interrupted.
    pub(super) fn renews_epochs(&self) -> bool {
        self.path.join(RENEW_EPOCHS).exists()
    }

    /// Notes, durably, whether every room needs a new epoch.
    pub(super) fn set_renews_epochs(&self, renews: bool) -> io::Result<()> {
        let marker = self.path.join(RENEW_EPOCHS);
        match renews {
            _ if renews == marker.exists() => Ok(()),
            true => write_atomically(&marker, &[]),
            false => {
                fs::remove_file(&marker)?;
                sync_parent(&marker)
            }
        }
    }

    /// Opens the file of the high watermark.
    pub(super) fn open_watermark(&self) -> io::Result<File> {
        OpenOptions::new()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .mode(PRIVATE)
            .open(self.path.join(WATERMARK))
    }

    pub(super) fn remove_watermark(&self) -> io::Result<()> {
        none_if_missing(fs::remove_file(self.path.join(WATERMARK))).map(drop)
    }

    /// Reads the high watermark. `None` if it is missing or damaged.
    pub(super) fn read_watermark(&self) -> io::Result<Option<HighWatermark>> {
        let bytes = read(&self.path.join(WATERMARK))?;
        Ok(bytes.and_then(|bytes| HighWatermark::decode(&bytes)))
    }

    /// `None` if there is no file `FORMAT` and no log.
    fn read_format(&self) -> Result<Option<()>, StoreError> {
        let file = self.path.join("FORMAT");
        let found = read(&file).map_err(cannot_use(&self.path))?;
        let Some(found) = found else {
            // A log was written in some format, and without this file it is unknown in which.
            let has_log = ["log", "db"].iter().any(|log| self.path.join(log).exists());
            return if has_log {
                Err(StoreError::Damaged {
                    path: file,
                    offset: 0,
                    why: "it is missing".into(),
                })
            } else {
                Ok(None)
            };
        };
        let found = String::from_utf8_lossy(&found);
        let found = found.trim_end();
        if found == FORMAT {
            return Ok(Some(()));
        }
        if found.starts_with(CLUSTER_FORMAT) {
            return Err(StoreError::Directory {
                path: self.path.clone(),
                why: "it has the checkpoints of a replica; use it with --cluster, or another directory"
                    .into(),
            });
        }
        Err(StoreError::Format {
            path: self.path.clone(),
            found: found.chars().take(40).collect(),
            known: FORMAT,
        })
    }
}

impl HighWatermark {
    fn encode(self) -> [u8; WATERMARK_LEN] {
        let mut bytes = [0; WATERMARK_LEN];
        bytes[..4].copy_from_slice(&self.segment.to_be_bytes());
        bytes[4..8].copy_from_slice(&self.offset.to_be_bytes());
        let checksum = crc32c::crc32c(&bytes[..8]);
        bytes[8..12].copy_from_slice(&checksum.to_be_bytes());
        bytes
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; WATERMARK_LEN] = bytes.try_into().ok()?;
        let number = |at: usize| bytes.get(at..at + 4)?.try_into().ok().map(u32::from_be_bytes);
        let watermark = Self {
            segment: number(0)?,
            offset: number(4)?,
        };
        (watermark.encode() == *bytes).then_some(watermark)
    }

    /// Stores the watermark, without a sync.
    pub(super) fn write(self, file: &File) -> io::Result<()> {
        file.write_all_at(&self.encode(), 0)
    }
}

/// Returns a function that converts I/O errors in the directory at `path`.
pub(crate) fn cannot_use(path: &Path) -> impl Fn(io::Error) -> StoreError {
    |error| StoreError::Directory {
        path: path.into(),
        why: error.to_string(),
    }
}

/// The path of a segment in the directory of the journal.
pub(super) fn segment_path(directory: &Path, number: u32) -> PathBuf {
    directory.join(format!("{number:010}.log"))
}

/// The numbers of the segments in a directory, ascending. A directory that does not exist counts as empty. Files with other
/// names than [`segment_path`] gives are no segments.
pub(super) fn segment_numbers(directory: &Path) -> io::Result<Vec<u32>> {
    let mut numbers = Vec::new();
    for entry in none_if_missing(fs::read_dir(directory))?.into_iter().flatten() {
        let path = entry?.path();
        let number = path.file_stem().and_then(|stem| stem.to_str()?.parse().ok());
        numbers.extend(number.filter(|number| segment_path(directory, *number) == path));
    }
    numbers.sort_unstable();
    Ok(numbers)
}

/// Returns whether `path` leads to the open file.
pub(super) fn is_same_file(file: &File, path: &Path) -> io::Result<bool> {
    let (open, found) = (file.metadata()?, fs::metadata(path)?);
    Ok((open.dev(), open.ino()) == (found.dev(), found.ino()))
}

/// Turns a [`NotFound`](ErrorKind::NotFound) error into `None`.
pub(crate) fn none_if_missing<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Reads a file. Returns `None` if it does not exist.
fn read(path: &Path) -> io::Result<Option<Vec<u8>>> {
    none_if_missing(fs::read(path))
}

/// Writes a file atomically and durably: after a crash it has either its old or its new content.
pub(crate) fn write_atomically(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let temporary = path.with_extension("new");
    let mut file = OpenOptions::new()
        .create(true)
        .truncate(true)
        .write(true)
        .mode(PRIVATE)
        .open(&temporary)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    sync_parent(path)
}

/// Makes the creation, renaming or removal of `path` durable.
pub(crate) fn sync_parent(path: &Path) -> io::Result<()> {
    path.parent()
        .map_or(Ok(()), |directory| File::open(directory)?.sync_all())
}

/// Creates a directory, and those above it, for its owner alone.
pub(crate) fn create_private(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)
}

/// Locks a data directory.
pub(crate) fn lock_file(path: &Path) -> Result<File, StoreError> {
    let cannot = cannot_use(path);
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(PRIVATE)
        .open(path.join("LOCK"))
        .map_err(&cannot)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(StoreError::Locked(path.into())),
        Err(TryLockError::Error(error)) => Err(cannot(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_watermark_is_read_and_a_damaged_one_ignored() {
        let parent = tempfile::tempdir().unwrap();
        let directory = Directory::lock(&parent.path().join("data")).unwrap();
        let file = directory.open_watermark().unwrap();
        assert_eq!(directory.read_watermark().unwrap(), None);
        for offset in [7, 9] {
            let watermark = HighWatermark { segment: 3, offset };
            watermark.write(&file).unwrap();
            assert_eq!(directory.read_watermark().unwrap(), Some(watermark));
        }
        file.write_all_at(&[1], 0).unwrap();
        assert_eq!(directory.read_watermark().unwrap(), None);
    }
}
