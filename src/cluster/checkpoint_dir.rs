//! The data directory of a replica: its newest checkpoints.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufReader, BufWriter, Write as _};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tracing::warn;

use super::checkpoint::{self, Checkpoint, CheckpointError, CheckpointId};
use super::message::LogPosition;
use crate::store::{
    CLUSTER_FORMAT, PRIVATE, StoreError, cannot_use, create_private, lock_file, none_if_missing, sync_parent,
    write_atomically,
};

/// The version of the directory's layout.
const LAYOUT: &str = "1";

/// How many checkpoints are kept. If the newest is damaged, there is another.
const KEPT: usize = 2;

/// A checkpoint that another replica has read from so recently is kept, too.
const READ_LATELY: Duration = Duration::from_secs(30);

const WRITE_BUFFER: usize = 256 << 10;

/// What a checkpoint is called until it is whole.
const NEW: &str = "new-checkpoint";

/// The data directory of a replica. Only one process can have it.
#[derive(Debug)]
pub(crate) struct CheckpointDir {
    path: PathBuf,
    /// What distinguishes it from the directories of all other replicas.
    id: u64,
    state: Mutex<State>,
    /// The checkpoint that another replica has read from last.
    read: Mutex<Option<(LogPosition, Instant)>>,
    _lock: File,
}

#[derive(Debug, Default)]
struct State {
    /// The newest checkpoint, once one was loaded or written.
    newest: Option<CheckpointId>,
    /// Whether the checkpoints were set aside, so that one that is being written must not take their place.
    is_set_aside: bool,
}

/// A checkpoint that is not whole yet.
#[derive(Debug)]
pub(crate) struct NewCheckpoint {
    path: PathBuf,
    file: BufWriter<File>,
}

impl CheckpointDir {
    /// Opens the directory, and creates it if it does not exist.
    ///
    /// # Errors
    ///
    /// Another process uses it, it is that of a single server, or it cannot be used.
    pub(crate) fn open(path: &Path) -> Result<Self, StoreError> {
        let cannot = cannot_use(path);
        let unfit = |why: String| StoreError::Directory {
            path: path.into(),
            why,
        };
        create_private(path).map_err(&cannot)?;
        let format = path.join("FORMAT");
        let found = none_if_missing(fs::read_to_string(&format)).map_err(&cannot)?;
        let id = match found.as_deref().map(str::trim_end) {
            None if path.join("log").exists() || path.join("db").exists() => {
                return Err(unfit("it has the log of a server without --cluster".into()));
            }
            None => None,
            Some(found) => {
                let Some(rest) = found.strip_prefix(CLUSTER_FORMAT) else {
                    return Err(unfit(
                        "it has the log of a server without --cluster; a replica needs another directory"
                            .into(),
                    ));
                };
                let id = rest.strip_prefix(LAYOUT).map(str::trim_start);
                let id = id.and_then(|id| u64::from_str_radix(id, 16).ok());
                Some(id.ok_or_else(|| unfit(format!("its file FORMAT has {found:?}, of another version")))?)
            }
        };
        let lock = lock_file(path)?;
        let id = if let Some(id) = id {
            id
        } else {
            let id = rand::random();
            let content = format!("{CLUSTER_FORMAT}{LAYOUT} {id:016x}\n");
            write_atomically(&format, content.as_bytes()).map_err(&cannot)?;
            sync_parent(&path.canonicalize().map_err(&cannot)?).map_err(&cannot)?;
            id
        };
        // A process has died while it wrote one.
        none_if_missing(fs::remove_file(path.join(NEW))).map_err(&cannot)?;
        Ok(Self {
            path: path.into(),
            id,
            state: Mutex::default(),
            read: Mutex::default(),
            _lock: lock,
        })
    }

    /// The file of the newest checkpoint in the directory of a replica that has ended. Changes nothing there. Blocks.
    ///
    /// # Errors
    ///
    /// A process uses the directory, it has no checkpoint, or it cannot be read.
    pub(crate) fn newest_file(path: &Path) -> Result<PathBuf, StoreError> {
        let cannot = cannot_use(path);
        let newest = positions(path).map_err(&cannot)?.last().copied();
        let newest = newest.ok_or_else(|| StoreError::Directory {
            path: path.into(),
            why: "it has no checkpoint of a replica".into(),
        })?;
        // Released at once: who starts a replica now must wait for nothing.
        drop(lock_file(path)?);
        Ok(path_of(path, newest))
    }

    pub(crate) const fn id(&self) -> u64 {
        self.id
    }

    /// The newest checkpoint, once one was loaded or written.
    pub(crate) fn newest(&self) -> Option<CheckpointId> {
        self.state.lock().newest
    }

    /// Whether there is no checkpoint.
    pub(crate) fn is_empty(&self) -> io::Result<bool> {
        Ok(self.positions()?.is_empty())
    }

    /// Reads the newest checkpoint that is intact. Renames the newer ones, so that they do not count any more. Blocks.
    ///
    /// # Errors
    ///
    /// The directory cannot be read.
    pub(crate) fn load(&self) -> io::Result<Option<Checkpoint>> {
        for position in self.positions()?.into_iter().rev() {
            match read_file(&self.path_of(position)) {
                Ok(checkpoint) if checkpoint.id.position == position => {
                    self.state.lock().newest = Some(checkpoint.id);
                    return Ok(Some(checkpoint));
                }
                Ok(_) => {
                    warn!(event = "checkpoint_damaged", %position, "a checkpoint has the name of another; it is renamed");
                }
                Err(error) => {
                    warn!(event = "checkpoint_damaged", %position, %error, "a checkpoint cannot be used; it is renamed");
                }
            }
            fs::rename(self.path_of(position), self.path.join("damaged-checkpoint"))?;
        }
        Ok(None)
    }

    /// Begins a checkpoint, in place of one that was begun before. Blocks.
    pub(crate) fn create(&self) -> io::Result<NewCheckpoint> {
        let path = self.path.join(NEW);
        let file = OpenOptions::new()
            .create(true)
            .truncate(true)
            .read(true)
            .write(true)
            .mode(PRIVATE)
            .open(&path)?;
        Ok(NewCheckpoint {
            path,
            file: BufWriter::with_capacity(WRITE_BUFFER, file),
        })
    }

    /// Makes a new checkpoint durable, and removes the oldest. Blocks.
    ///
    /// # Errors
    ///
    /// The directory cannot be written to, or its checkpoints were [set aside](Self::set_aside).
    pub(crate) fn commit(&self, new: NewCheckpoint, id: CheckpointId) -> io::Result<()> {
        let file = new.file.into_inner().map_err(|error| error.into_error())?;
        file.sync_all()?;
        let path = self.path_of(id.position);
        {
            let mut state = self.state.lock();
            if state.is_set_aside {
                return Err(io::Error::other("this replica has diverged from the others"));
            }
            fs::rename(&new.path, &path)?;
            sync_parent(&path)?;
            state.newest = Some(id);
        }
        let read = *self.read.lock();
        for position in self.positions()?.into_iter().rev().skip(KEPT) {
            // After a directory was used with another stream, what it has of that is newer.
            if position != id.position
                && !read.is_some_and(|(read, at)| read == position && at.elapsed() < READ_LATELY)
            {
                fs::remove_file(self.path_of(position))?;
            }
        }
        Ok(())
    }

    /// At most `len` bytes of a checkpoint; `None` if there is none at this position. Blocks.
    pub(crate) fn read_part(
        &self,
        position: LogPosition,
        offset: u64,
        len: usize,
    ) -> io::Result<Option<Vec<u8>>> {
        let Some(file) = none_if_missing(File::open(self.path_of(position)))? else {
            return Ok(None);
        };
        *self.read.lock() = Some((position, Instant::now()));
        let left = file.metadata()?.len().saturating_sub(offset);
        let mut bytes = vec![0; len.min(usize::try_from(left).unwrap_or(usize::MAX))];
        file.read_exact_at(&mut bytes, offset)?;
        Ok(Some(bytes))
    }

    /// Renames all checkpoints, so that they are not loaded any more, and somebody can look at them. Blocks.
    pub(crate) fn set_aside(&self) -> io::Result<()> {
        let mut state = self.state.lock();
        (state.newest, state.is_set_aside) = (None, true);
        for position in self.positions()? {
            let path = self.path_of(position);
            fs::rename(&path, self.path.join("diverged-checkpoint"))?;
        }
        sync_parent(&self.path.join(NEW))
    }

    fn path_of(&self, position: LogPosition) -> PathBuf {
        path_of(&self.path, position)
    }

    /// The positions of the checkpoints, ascending.
    fn positions(&self) -> io::Result<Vec<LogPosition>> {
        positions(&self.path)
    }
}

fn path_of(directory: &Path, position: LogPosition) -> PathBuf {
    directory.join(format!("checkpoint-{:020}", position.get()))
}

fn positions(directory: &Path) -> io::Result<Vec<LogPosition>> {
    let mut positions = Vec::new();
    for entry in fs::read_dir(directory)? {
        let name = entry?.file_name();
        let number = name.to_str().and_then(|name| name.strip_prefix("checkpoint-"));
        positions.extend(
            number
                .and_then(|number| number.parse().ok())
                .map(LogPosition::new),
        );
    }
    positions.sort_unstable();
    Ok(positions)
}

impl NewCheckpoint {
    /// Reads what was written. Blocks.
    pub(crate) fn read(&mut self) -> Result<Checkpoint, CheckpointError> {
        self.file.flush()?;
        read_file(&self.path)
    }
}

impl io::Write for NewCheckpoint {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// Reads a checkpoint. Blocks.
pub(crate) fn read_file(path: &Path) -> Result<Checkpoint, CheckpointError> {
    let file = File::open(path)?;
    let len = file.metadata()?.len();
    checkpoint::read(BufReader::with_capacity(WRITE_BUFFER, file), len)
}

#[cfg(test)]
mod tests {
    use super::super::fingerprint::Fingerprint;
    use super::super::state_machine::StateMachine;
    use super::*;
    use crate::store::{DiskOptions, DiskStore, Durability, Retention};

    fn write(directory: &CheckpointDir, position: u64) -> CheckpointId {
        let (mut state, rooms) = StateMachine::new().state();
        state.applied = LogPosition::new(position);
        let mut new = directory.create().unwrap();
        let id = checkpoint::write(&mut new, state, Fingerprint::default(), rooms, |_, _, _| {
            Ok(Vec::new())
        })
        .unwrap();
        directory.commit(new, id).unwrap();
        id
    }

    #[test]
    fn the_newest_intact_checkpoint_is_loaded_and_two_are_kept() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("data");
        let directory = CheckpointDir::open(&path).unwrap();
        assert!(directory.load().unwrap().is_none());
        let ids = [10, 9, 11].map(|position| write(&directory, position));
        assert_eq!(
            directory.positions().unwrap(),
            [LogPosition::new(10), LogPosition::new(11)]
        );
        assert_eq!(directory.load().unwrap().map(|loaded| loaded.id), Some(ids[2]));
        assert!(matches!(CheckpointDir::open(&path), Err(StoreError::Locked(_))));
        let id = directory.id();
        drop(directory);

        // Every damage is noticed.
        let newest = path.join(format!("checkpoint-{:020}", 11));
        let whole = fs::read(&newest).unwrap();
        let directory = CheckpointDir::open(&path).unwrap();
        assert_eq!(directory.id(), id);
        for at in 0..whole.len() {
            let mut damaged = whole.clone();
            damaged[at] ^= 4;
            fs::write(&newest, damaged).unwrap();
            let loaded = directory.load().unwrap().map(|loaded| loaded.id);
            assert_eq!(loaded, Some(ids[0]), "byte {at}");
            fs::write(&newest, &whole[..at]).unwrap();
            let loaded = directory.load().unwrap().map(|loaded| loaded.id);
            assert_eq!(loaded, Some(ids[0]), "{at} bytes");
        }
    }

    #[test]
    fn damaged_checkpoints_do_not_take_the_place_of_others() {
        let parent = tempfile::tempdir().unwrap();
        let directory = CheckpointDir::open(parent.path()).unwrap();
        for position in [500, 450] {
            fs::write(directory.path_of(LogPosition::new(position)), "damaged").unwrap();
        }
        assert!(directory.load().unwrap().is_none());
        let id = write(&directory, 400);
        assert_eq!(directory.load().unwrap().map(|loaded| loaded.id), Some(id));
    }

    #[test]
    fn one_that_is_being_written_does_not_take_the_place_of_those_that_were_set_aside() {
        let parent = tempfile::tempdir().unwrap();
        let directory = CheckpointDir::open(parent.path()).unwrap();
        let (state, rooms) = StateMachine::new().state();
        let mut new = directory.create().unwrap();
        let id = checkpoint::write(&mut new, state, Fingerprint::default(), rooms, |_, _, _| {
            Ok(Vec::new())
        })
        .unwrap();
        directory.set_aside().unwrap();
        directory.commit(new, id).unwrap_err();
        assert_eq!((directory.newest(), directory.is_empty().unwrap()), (None, true));
    }

    #[test]
    fn a_checkpoint_that_another_replica_reads_is_kept() {
        let parent = tempfile::tempdir().unwrap();
        let directory = CheckpointDir::open(parent.path()).unwrap();
        let id = write(&directory, 1);
        let part = directory.read_part(id.position, 8, 5).unwrap().unwrap();
        assert_eq!(part.len(), 5);
        assert_eq!(
            directory.read_part(id.position, id.len, 5).unwrap(),
            Some(Vec::new())
        );
        for position in 2..5 {
            write(&directory, position);
        }
        let positions = || directory.positions().unwrap();
        assert_eq!(positions(), [1, 3, 4].map(LogPosition::new));
        assert_eq!(directory.read_part(LogPosition::new(2), 0, 5).unwrap(), None);
        directory.set_aside().unwrap();
        assert_eq!((positions(), directory.newest()), (Vec::new(), None));
        assert!(directory.load().unwrap().is_none());
    }

    #[test]
    fn the_directories_of_replicas_and_of_single_servers_are_not_mixed_up() {
        let parent = tempfile::tempdir().unwrap();
        let (single, replica) = (parent.path().join("single"), parent.path().join("replica"));
        let open = |path: &Path| {
            let options = DiskOptions {
                durability: Durability::Os,
                retention: Retention::ON_DISK,
                max_rooms: 1,
                accept_loss: false,
            };
            DiskStore::open(path, options, std::sync::Arc::new(crate::store::NoObserver))
        };
        drop(open(&single).unwrap());
        drop(CheckpointDir::open(&replica).unwrap());
        let error = CheckpointDir::open(&single).unwrap_err().to_string();
        assert!(error.contains("without --cluster"), "{error}");
        let error = open(&replica).map(drop).unwrap_err().to_string();
        assert!(error.contains("use it with --cluster"), "{error}");
    }
}
