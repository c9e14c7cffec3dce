//! A database opened, with all that can be known of it made sure of first.

use std::collections::HashMap;
use std::io;
use std::panic::catch_unwind;
use std::time::{SystemTime, UNIX_EPOCH};

use tracing::warn;

use super::directory::{Directory, cannot_use};
use super::heads::Heads;
use super::journals::Cuts;
use super::kept::Kept;
use super::layout::{decode_entry, log_of};
use super::parts;
use super::tables::Tables;
use super::{Durability, LogId, StoreError};
use crate::domain::{Epoch, RoomName, Sequence, WallTime};

/// A database that is open, and what is in it.
pub(super) struct Opened {
    pub(super) tables: Tables,
    pub(super) known: HashMap<RoomName, (LogId, Epoch)>,
    pub(super) kept: HashMap<LogId, Kept>,
    /// The first id that no log has had.
    pub(super) next: u32,
    /// How many bytes of what was not written to its end were cut.
    pub(super) torn: u64,
}

impl Opened {
    /// Opens the database of `directory`, and reads all of it. Waits for the disk.
    ///
    /// # Errors
    ///
    /// When it is damaged, or lacks what `heads` says there was; where `accept_loss` is set, what is gone from the end of a
    /// log is accepted, and the log gets a new epoch, since its next events have places that others have had. A start that
    /// is refused takes nothing away.
    pub(super) fn open(
        directory: &Directory,
        durability: Durability,
        heads: &Heads,
        accept_loss: bool,
    ) -> Result<Self, StoreError> {
        let cannot = cannot_use(directory.path());
        let noted = heads.read().map_err(&cannot)?;
        let has_events = noted.iter().any(|(_, last)| *last > Sequence::ZERO);
        let database = directory.database();
        if let Some(missing) = parts::missing(&database, has_events).map_err(&cannot)? {
            return Err(directory.unreadable(format!("{missing} is missing")));
        }
        let cuts = Cuts::make(&database).map_err(&cannot)?;
        // Of some damage the database says nothing but that it cannot be.
        let read = catch_unwind(|| {
            let opened = Self::read(directory, durability, &noted)?;
            match opened.shorter(directory, &noted) {
                Some(shorter) if !accept_loss => Err(shorter),
                _ => Ok(opened),
            }
        });
        let read =
            read.unwrap_or_else(|_| Err(directory.unreadable("it breaks the database's own rules".into())));
        let mut opened = match read {
            Ok(opened) => opened,
            Err(error) => {
                if let Err(error) = cuts.undo() {
                    let bytes = cuts.bytes();
                    warn!(event = "store_cut", bytes, %error, "what was cut from the journals cannot be put back");
                }
                return Err(error);
            }
        };
        opened.torn = cuts.bytes();
        opened.accept(&noted)?;
        opened.note(heads, &noted).map_err(&cannot)?;
        Ok(opened)
    }

    /// Opens the database, reads it, and changes nothing in it.
    fn read(
        directory: &Directory,
        durability: Durability,
        noted: &[(LogId, Sequence)],
    ) -> Result<Self, StoreError> {
        let tables = Tables::open(directory, durability)?;
        // What cannot be read now was damaged before.
        Self::read_tables(tables, noted).map_err(|error| match error {
            StoreError::Database(why) => directory.unreadable(why),
            error => error,
        })
    }

    fn read_tables(tables: Tables, noted: &[(LogId, Sequence)]) -> Result<Self, StoreError> {
        let mut known = HashMap::new();
        for entry in tables.rooms.iter() {
            let (name, value) = entry.into_inner()?;
            let name = std::str::from_utf8(&name)
                .ok()
                .and_then(|name| RoomName::try_from(name).ok());
            let name = name.ok_or(StoreError::Record {
                sequence: Sequence::ZERO,
                why: "a room's name is none",
            })?;
            known.insert(name, decode_entry(&value)?);
        }
        let mut kept = HashMap::new();
        for (room, (log, _)) in &known {
            kept.insert(*log, Kept::count(&tables, room, *log)?);
        }
        // The records of a room whose name was lost are still there: nobody else gets its id.
        let mut used: Vec<LogId> = kept.keys().copied().collect();
        used.extend(noted.iter().map(|(log, _)| *log));
        for table in [&tables.records, &tables.snapshots] {
            if let Some(entry) = table.iter().next_back() {
                used.push(log_of(&entry.key()?)?);
            }
        }
        Ok(Self {
            tables,
            known,
            kept,
            next: used.into_iter().max().map_or(0, |log| log.0.saturating_add(1)),
            torn: 0,
        })
    }

    /// The place of the last event of `log`.
    fn last(&self, log: LogId) -> Sequence {
        self.kept.get(&log).map_or(Sequence::ZERO, |kept| kept.last)
    }

    /// That a log ends earlier than was noted.
    fn shorter(&self, directory: &Directory, noted: &[(LogId, Sequence)]) -> Option<StoreError> {
        let (log, noted) = noted.iter().find(|(log, noted)| self.last(*log) < *noted)?;
        let room = self.known.iter().find(|(_, (id, _))| id == log);
        Some(StoreError::Shorter {
            path: directory.path().into(),
            what: room.map_or_else(
                || "the log of a room whose name is gone".into(),
                |(room, _)| format!("the log of room {:?}", room.as_str()),
            ),
            last: self.last(*log),
            noted: *noted,
        })
    }

    /// Gives the logs that end earlier than was noted a new epoch.
    fn accept(&mut self, noted: &[(LogId, Sequence)]) -> Result<(), StoreError> {
        for (log, noted) in noted {
            let last = self.last(*log);
            if last >= *noted {
                continue;
            }
            if let Some((room, (_, epoch))) = self.known.iter_mut().find(|(_, (id, _))| id == log) {
                *epoch = epoch.renewed(now());
                self.tables.renew(room, *log, *epoch)?;
                warn!(event = "log_truncated", %room, %last, %noted, %epoch, "events are gone, which is accepted; the room has a new epoch");
            } else {
                warn!(event = "log_lost", log = log.0, %noted, "a room's name is gone, which is accepted, and with it its log");
            }
        }
        Ok(())
    }

    /// Makes the notes say how far the logs are: what was accepted as lost is not missed again, and what was not noted is.
    fn note(&self, heads: &Heads, noted: &[(LogId, Sequence)]) -> io::Result<()> {
        let noted: HashMap<LogId, Sequence> = noted.iter().copied().collect();
        for log in noted.keys().filter(|log| !self.kept.contains_key(log)) {
            heads.note(*log, Sequence::ZERO)?;
        }
        let mut missing = 0;
        for (log, Kept { last, .. }) in &self.kept {
            let noted = noted.get(log).copied();
            if noted.unwrap_or_default() != *last {
                missing += u64::from(noted.is_none());
                heads.note(*log, *last)?;
            }
        }
        if missing > 0 {
            warn!(
                event = "heads_missing",
                logs = missing,
                "the file `heads` did not say how far these logs had come; if one had lost its end, nobody would know"
            );
        }
        Ok(())
    }
}

fn now() -> WallTime {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    WallTime::from_millis(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}
