//! A store on disk: the logs in an embedded database (fjall, a log-structured merge tree), one directory a server.
//!
//! The directory holds `LOCK` (held by the server that has it open), `FORMAT` (which version wrote it), `secret` (from
//! which session tokens are made), `db` (the database) and `heads` (how far each log had come).

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{ErrorKind, Write};
use std::panic::catch_unwind;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{SystemTime, UNIX_EPOCH};

use fjall::{Database, Keyspace, KeyspaceCreateOptions, PersistMode};

use tracing::warn;

use super::heads::Heads;
use super::kept::Kept;
use super::layout::{decode_entry, encode_entry, log_of, record_key, record_place};
use super::tails::Tails;
use super::writer::{self, Writer};
use super::writing::Writing;
use super::{Append, Appended, Bounds, Fill, Log, LogId, Observer, Record, Retention, Store, StoreError};
use crate::domain::{Epoch, RoomName, Sequence, WallTime};

/// Where the database is in the directory.
const DATABASE: &str = "db";

/// The version of the directory's format that this version writes and knows.
const FORMAT: &str = "chitchat 1";

/// How much the database may keep of what it has read, in bytes.
const CACHE: u64 = 16 << 20;

/// How much of a keyspace is collected in memory before it is written to a table of its own, in bytes.
const MEMTABLE: u64 = 16 << 20;

/// What an append survives once it is acknowledged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum Durability {
    /// The end of the process and of the machine: it is synced to the disk.
    #[default]
    Sync,
    /// The end of the process: it is handed to the operating system, which a power cut may take it from.
    Os,
}

impl Durability {
    pub(super) const fn mode(self) -> PersistMode {
        match self {
            Self::Sync => PersistMode::SyncData,
            Self::Os => PersistMode::Buffer,
        }
    }
}

/// How a directory is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DiskOptions {
    /// What an append survives.
    pub durability: Durability,
    /// How much is kept.
    pub retention: Retention,
    /// How many rooms there may be.
    pub max_rooms: usize,
    /// Whether a log that has lost events at its end goes on, under a new epoch, instead of being refused.
    pub accept_loss: bool,
}

/// The database's parts.
#[derive(Clone)]
pub(super) struct Tables {
    pub(super) db: Database,
    /// Room name to log and epoch.
    pub(super) rooms: Keyspace,
    /// Log and sequence to record.
    pub(super) records: Keyspace,
    /// Log to snapshot.
    pub(super) snapshots: Keyspace,
    /// What an append survives.
    pub(super) durability: Durability,
}

impl Tables {
    /// Notes which log a room has, and its epoch.
    fn enter(&self, room: &RoomName, log: LogId, epoch: Epoch) -> Result<(), StoreError> {
        let mut batch = self.db.batch().durability(Some(self.durability.mode()));
        batch.insert(
            &self.rooms,
            room.as_str().as_bytes(),
            encode_entry(log, epoch).to_vec(),
        );
        Ok(batch.commit()?)
    }
}

/// A store on disk. Its directory is free for another server when it is dropped.
pub struct DiskStore {
    path: PathBuf,
    tables: Tables,
    max_rooms: usize,
    known: Mutex<HashMap<RoomName, (LogId, Epoch)>>,
    /// The next log's id.
    next: Mutex<u32>,
    /// What is kept of each log.
    kept: Arc<Mutex<HashMap<LogId, Kept>>>,
    secret: [u8; 32],
    torn: u64,
    writer: Writer,
    thread: Option<JoinHandle<()>>,
    /// Held for its lock.
    _lock: File,
}

impl DiskStore {
    /// Opens the directory at `path`, making it if there is none. Waits for the disk.
    ///
    /// # Errors
    ///
    /// When the directory cannot be used, another server has it, its format is not known, or the database is damaged; a log
    /// that is shorter than it was counts as that unless `accept_loss` is set.
    pub fn open(path: &Path, options: DiskOptions, observer: Arc<dyn Observer>) -> Result<Self, StoreError> {
        let DiskOptions {
            durability,
            retention,
            max_rooms,
            accept_loss,
        } = options;
        let cannot = |error: std::io::Error| StoreError::Directory {
            path: path.into(),
            why: error.to_string(),
        };
        fs::create_dir_all(path).map_err(cannot)?;
        let lock = lock(path)?;
        check_format(path)?;
        let secret = secret(path).map_err(cannot)?;
        let heads = Heads::open(path).map_err(cannot)?;
        let noted = heads.read().map_err(cannot)?;
        let tails = Tails::read(&path.join(DATABASE)).map_err(cannot)?;
        // Of some damage the database says nothing but that it cannot be.
        let opened = catch_unwind(|| open_database(path, durability, &noted, accept_loss));
        let (tables, known, kept) = opened.unwrap_or_else(|_| {
            Err(StoreError::Unreadable {
                path: path.into(),
                why: "it breaks the database's own rules".into(),
            })
        })?;
        let next = first_free(&tables, &known, &noted)?;
        let torn = tails.cut().map_err(cannot)?;
        // What was accepted as lost is not missed again.
        for (log, noted) in noted {
            let last = kept.get(&log).map_or(Sequence::ZERO, |kept| kept.last);
            if last < noted {
                heads.note(log, last).map_err(cannot)?;
            }
        }
        let kept = Arc::new(Mutex::new(kept));
        let writing = Writing::new(tables.clone(), heads, retention, Arc::clone(&kept), observer);
        let (writer, thread) = writer::start(writing).map_err(cannot)?;
        Ok(Self {
            path: path.into(),
            tables,
            max_rooms,
            known: Mutex::new(known),
            next: Mutex::new(next),
            kept,
            secret,
            torn,
            writer,
            thread: Some(thread),
            _lock: lock,
        })
    }

    /// What session tokens are made from: the same for as long as the directory exists.
    #[must_use]
    pub const fn secret(&self) -> [u8; 32] {
        self.secret
    }

    /// How many bytes of a write that a crash had interrupted were cut when the directory was opened. What they said was
    /// not acknowledged, unless events are missing, which is refused or accepted apart from this.
    #[must_use]
    pub const fn torn(&self) -> u64 {
        self.torn
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<RoomName, (LogId, Epoch)>> {
        // Nothing in here panics while the lock is held.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn kept(&self) -> MutexGuard<'_, HashMap<LogId, Kept>> {
        // As above.
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn log(&self, (id, epoch): (LogId, Epoch)) -> Result<Log, StoreError> {
        let snapshot = self.tables.snapshots.get(id.0.to_be_bytes())?;
        Ok(Log {
            id,
            epoch,
            snapshot: snapshot.map(|bytes| bytes.to_vec().into()),
        })
    }
}

type Opened = (Tables, HashMap<RoomName, (LogId, Epoch)>, HashMap<LogId, Kept>);

/// Opens the database, and reads it all.
fn open_database(
    path: &Path,
    durability: Durability,
    noted: &[(LogId, Sequence)],
    accept_loss: bool,
) -> Result<Opened, StoreError> {
    let unreadable = |why: String| StoreError::Unreadable {
        path: path.into(),
        why,
    };
    let cannot_open = |error: fjall::Error| match error {
        // A file that is not there has been.
        fjall::Error::Io(error) if error.kind() != ErrorKind::NotFound => StoreError::Directory {
            path: path.into(),
            why: error.to_string(),
        },
        // By another program: a server is kept out by the lock above it.
        fjall::Error::Locked => StoreError::Locked(path.into()),
        error => unreadable(error.to_string()),
    };
    let db = Database::builder(path.join(DATABASE))
        .cache_size(CACHE)
        .worker_threads(1)
        .open()
        .map_err(cannot_open)?;
    let options = || KeyspaceCreateOptions::default().max_memtable_size(MEMTABLE);
    let tables = Tables {
        rooms: db.keyspace("rooms", options).map_err(cannot_open)?,
        records: db.keyspace("records", options).map_err(cannot_open)?,
        snapshots: db.keyspace("snapshots", options).map_err(cannot_open)?,
        db,
        durability,
    };
    let mut known = HashMap::new();
    for entry in tables.rooms.iter() {
        let (name, value) = entry.into_inner().map_err(cannot_open)?;
        let name = std::str::from_utf8(&name)
            .ok()
            .and_then(|name| RoomName::try_from(name).ok());
        let name = name.ok_or(StoreError::Record {
            sequence: Sequence::ZERO,
            why: "a room's name is none",
        })?;
        known.insert(name, decode_entry(&value)?);
    }
    let kept = count(path, &tables, &mut known, noted, accept_loss).map_err(|error| match error {
        StoreError::Database(why) => unreadable(why),
        error => error,
    })?;
    Ok((tables, known, kept))
}

/// Counts what is kept of each log, and makes sure that none is shorter than it was; where that is accepted, such a log
/// gets a new epoch, since its next events have places that others have had.
fn count(
    path: &Path,
    tables: &Tables,
    known: &mut HashMap<RoomName, (LogId, Epoch)>,
    noted: &[(LogId, Sequence)],
    accept_loss: bool,
) -> Result<HashMap<LogId, Kept>, StoreError> {
    let mut kept = HashMap::new();
    for (room, (log, _)) in known.iter() {
        kept.insert(*log, Kept::count(tables, room, *log)?);
    }
    for (log, noted) in noted {
        let last = kept.get(log).map_or(Sequence::ZERO, |kept| kept.last);
        if last < *noted {
            let room = known.iter_mut().find(|(_, (id, _))| id == log);
            if accept_loss {
                if let Some((room, (_, epoch))) = room {
                    *epoch = epoch.renewed(now());
                    tables.enter(room, *log, *epoch)?;
                    warn!(event = "log_truncated", %room, %last, %noted, %epoch, "events are gone, which is accepted; the room has a new epoch");
                } else if *noted > Sequence::ZERO {
                    warn!(event = "log_lost", log = log.0, %noted, "a room's name is gone, which is accepted, and with it its log");
                }
                continue;
            }
            return Err(StoreError::Shorter {
                path: path.into(),
                what: room.map_or_else(
                    || "the log of a room whose name is gone".into(),
                    |(room, _)| format!("the log of room {:?}", room.as_str()),
                ),
                last,
                noted: *noted,
            });
        }
    }
    Ok(kept)
}

/// The first id that no log has had. The records of a room whose name was lost are still there: nobody else gets its id.
fn first_free(
    tables: &Tables,
    known: &HashMap<RoomName, (LogId, Epoch)>,
    noted: &[(LogId, Sequence)],
) -> Result<u32, StoreError> {
    let mut used: Vec<LogId> = known.values().map(|(log, _)| *log).collect();
    used.extend(noted.iter().map(|(log, _)| *log));
    for table in [&tables.records, &tables.snapshots] {
        if let Some(entry) = table.iter().next_back() {
            used.push(log_of(&entry.key()?)?);
        }
    }
    Ok(used.into_iter().max().map_or(0, |log| log.0.saturating_add(1)))
}

fn now() -> WallTime {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    WallTime::from_millis(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

fn lock(path: &Path) -> Result<File, StoreError> {
    let cannot = |error: std::io::Error| StoreError::Directory {
        path: path.into(),
        why: error.to_string(),
    };
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(path.join("LOCK"))
        .map_err(cannot)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(StoreError::Locked(path.into())),
        Err(TryLockError::Error(error)) => Err(cannot(error)),
    }
}

fn check_format(path: &Path) -> Result<(), StoreError> {
    let cannot = |error: std::io::Error| StoreError::Directory {
        path: path.into(),
        why: error.to_string(),
    };
    let file = path.join("FORMAT");
    match fs::read_to_string(&file) {
        Ok(found) if found.trim_end() == FORMAT => Ok(()),
        Ok(found) => {
            let found = found.trim_end().chars().take(40).collect();
            Err(StoreError::Format {
                path: path.into(),
                found,
                known: FORMAT,
            })
        }
        // Whoever has a database has had a format, and nobody knows which.
        Err(error) if error.kind() == ErrorKind::NotFound && path.join(DATABASE).exists() => {
            Err(StoreError::Format {
                path: path.into(),
                found: "unknown: its file FORMAT is gone".into(),
                known: FORMAT,
            })
        }
        Err(error) if error.kind() == ErrorKind::NotFound => {
            write_durably(&file, format!("{FORMAT}\n").as_bytes()).map_err(cannot)
        }
        Err(error) => Err(cannot(error)),
    }
}

/// Reads the secret, or makes one.
fn secret(path: &Path) -> std::io::Result<[u8; 32]> {
    let file = path.join("secret");
    match fs::read(&file) {
        Ok(bytes) => bytes.try_into().map_err(|_| {
            std::io::Error::new(ErrorKind::InvalidData, "its file `secret` is damaged; remove it")
        }),
        Err(error) if error.kind() == ErrorKind::NotFound => {
            let secret: [u8; 32] = rand::random();
            write_durably(&file, &secret)?;
            Ok(secret)
        }
        Err(error) => Err(error),
    }
}

/// Writes a small file so that after a crash it is there as a whole or not at all.
fn write_durably(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    use std::os::unix::fs::OpenOptionsExt;

    let temporary: PathBuf = path.with_extension("new");
    let mut file = OpenOptions::new()
        .create(true)
        .truncate(true)
        .write(true)
        .mode(0o600)
        .open(&temporary)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    path.parent()
        .map_or(Ok(()), |directory| File::open(directory)?.sync_all())
}

impl Store for DiskStore {
    fn is_blocking(&self) -> bool {
        true
    }

    fn open(&self, room: &RoomName, at: WallTime) -> Result<Log, StoreError> {
        // Held while the disk is waited for, so that a room is made once; those who only look wait for nothing.
        let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        let (found, count) = {
            let known = self.lock();
            (known.get(room).copied(), known.len())
        };
        let entry = match found {
            Some(entry) => entry,
            None if count >= self.max_rooms => return Err(StoreError::TooManyRooms(count)),
            None => {
                let entry = (LogId(*next), Epoch::created_at(at));
                self.tables.enter(room, entry.0, entry.1)?;
                *next = next.saturating_add(1);
                self.kept().insert(entry.0, Kept::EMPTY);
                self.lock().insert(room.clone(), entry);
                entry
            }
        };
        drop(next);
        self.log(entry)
    }

    fn find(&self, room: &RoomName) -> Result<Option<Log>, StoreError> {
        let entry = self.lock().get(room).copied();
        entry.map(|entry| self.log(entry)).transpose()
    }

    fn rooms(&self) -> Result<Vec<RoomName>, StoreError> {
        let mut rooms: Vec<_> = self.lock().keys().cloned().collect();
        rooms.sort_unstable();
        Ok(rooms)
    }

    fn exists(&self, room: &RoomName) -> bool {
        self.lock().contains_key(room)
    }

    fn bounds(&self, log: LogId) -> Result<Bounds, StoreError> {
        let kept = self.kept().get(&log).copied().ok_or(StoreError::Failed)?;
        Ok(Bounds {
            first: kept.first,
            last: kept.last,
        })
    }

    fn records(&self, log: LogId, after: Sequence, max_bytes: usize) -> Result<Vec<Record>, StoreError> {
        let records = &self.tables.records;
        // The next event may lie in the record that begins before it.
        let next = after.next();
        let before = records
            .range(record_key(log, Sequence::ZERO)..=record_key(log, next))
            .next_back();
        let from = match before {
            Some(entry) => record_place(&entry.key()?)?,
            None => next,
        };
        let mut found = Vec::new();
        let mut bytes = 0;
        for entry in records.range(record_key(log, from)..=record_key(log, Sequence::new(u64::MAX))) {
            let (key, value) = entry.into_inner()?;
            let record = Record::decode(record_place(&key)?, value.to_vec().into())?;
            if record.last() <= after {
                continue;
            }
            bytes += record.frames.len();
            if !found.is_empty() && bytes > max_bytes {
                break;
            }
            found.push(record);
        }
        Ok(found)
    }

    fn append(&self, log: LogId, append: Append) -> Appended<'_> {
        self.writer.append(log, append)
    }

    fn fill(&self) -> Fill {
        let events = self.kept().values().map(Kept::events).sum();
        let free = rustix::fs::statvfs(&self.path).ok();
        Fill {
            events,
            // Of a database that is there; what it cannot say it does not have.
            bytes: self.tables.db.disk_space().unwrap_or_default(),
            available: free.map(|free| free.f_bavail.saturating_mul(free.f_frsize)),
        }
    }
}

impl Drop for DiskStore {
    fn drop(&mut self) {
        self.writer.close();
        if let Some(thread) = self.thread.take() {
            // A writer that panicked has told everybody who waited.
            thread.join().ok();
        }
    }
}

#[cfg(test)]
#[path = "disk_tests.rs"]
mod tests;
