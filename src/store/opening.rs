//! A database opened, with all that can be known of it made sure of first.

use std::collections::HashMap;
use std::io;
use std::panic::catch_unwind;
use std::time::{SystemTime, UNIX_EPOCH};

use tracing::warn;

use super::directory::{Directory, cannot_use};
use super::journals::Cuts;
use super::log_stats::LogStats;
use super::parts;
use super::tables::{Tables, decode_log_id, decode_room};
use super::unsynced_marker::UnsyncedMarker;
use super::watermarks::HighWatermarks;
use super::{Bounds, Durability, LogId, StoreError};
use crate::domain::{Epoch, ReplayError, RoomName, Sequence, WallTime};

/// How many threads move what is in journals to tables.
const WORKERS: usize = 1;

/// A database that is open, and what is in it.
pub(super) struct Opened {
    pub(super) tables: Tables,
    pub(super) known: HashMap<RoomName, (LogId, Epoch)>,
    pub(super) kept: HashMap<LogId, LogStats>,
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
        heads: &HighWatermarks,
        accept_loss: bool,
    ) -> Result<Self, StoreError> {
        let cannot = cannot_use(directory.path());
        let noted = heads.read_all().map_err(&cannot)?;
        let has_events = noted.iter().any(|(_, last)| *last > Sequence::ZERO);
        parts::check(directory, has_events)?;
        let mark = UnsyncedMarker::new(directory.path());
        let was_cut = mark.rebooted_since().map_err(&cannot)?;
        // Who did not wait for the disk has accepted what a power cut takes.
        let accept_loss = accept_loss || was_cut;
        let cuts = Cuts::make(directory, accept_loss)?;
        // Of some damage the database says nothing but that it cannot be.
        let looked = catch_unwind(|| Self::look(directory, durability, &noted, accept_loss));
        let looked =
            looked.unwrap_or_else(|_| Err(directory.unreadable("it breaks the database's own rules".into())));
        let contents = looked.inspect_err(|_| cuts.undo())?;
        if !cuts.is_loss() {
            cuts.forget().map_err(&cannot)?;
        }
        let mut opened = Self {
            tables: Tables::open(directory, durability, WORKERS)?,
            known: contents.known,
            kept: contents.kept,
            next: contents.next,
            torn: cuts.bytes(),
        };
        opened.accept(&contents.claims)?;
        if was_cut {
            opened.renew_all("the system was started anew before all was synced")?;
        } else if cuts.is_loss() {
            opened.renew_all("a journal was damaged, which was accepted")?;
        }
        cuts.forget().map_err(&cannot)?;
        opened.note(heads, &noted).map_err(&cannot)?;
        match durability {
            Durability::Os => mark.create().map_err(&cannot)?,
            Durability::Sync => mark.remove().map_err(&cannot)?,
        }
        Ok(opened)
    }

    /// Reads the database, and changes nothing in it.
    fn look(
        directory: &Directory,
        durability: Durability,
        noted: &[(LogId, Sequence)],
        accept_loss: bool,
    ) -> Result<Contents, StoreError> {
        let tables = Tables::open(directory, durability, 0)?;
        // What cannot be read now was damaged before.
        let contents = Contents::read(&tables, noted).map_err(|error| match error {
            StoreError::Database(why) => directory.unreadable(why),
            error => error,
        })?;
        match contents.shorter(directory, accept_loss) {
            Some(shorter) => Err(shorter),
            None => Ok(contents),
        }
    }

    /// Gives the logs that end earlier than they did a new epoch.
    fn accept(&mut self, claims: &HashMap<LogId, Sequence>) -> Result<(), StoreError> {
        for (&log, &noted) in claims {
            let kept = self.kept.get_mut(&log);
            let last = kept.as_ref().map_or(Sequence::ZERO, |kept| kept.last);
            if last >= noted {
                continue;
            }
            if let Some(kept) = kept.filter(|kept| kept.snapshot > kept.last) {
                // It is of a room that is further on. The log begins with its first event, and says all.
                self.tables.remove_snapshot(log)?;
                kept.snapshot = Sequence::ZERO;
            }
            if let Some((room, entry)) = self.known.iter_mut().find(|(_, (id, _))| *id == log) {
                entry.1 = entry.1.renewed(now());
                self.tables.set_epochs([(room, &*entry)])?;
                let (_, epoch) = entry;
                warn!(event = "log_truncated", %room, %last, %noted, %epoch, "events are gone, which is accepted; the room has a new epoch");
            } else {
                warn!(event = "log_lost", log = log.0, %noted, "a room's name is gone, which is accepted, and with it its log");
            }
        }
        Ok(())
    }

    /// Gives all logs a new epoch: nobody knows what is gone from their ends.
    fn renew_all(&mut self, why: &str) -> Result<(), StoreError> {
        let now = now();
        for (_, epoch) in self.known.values_mut() {
            *epoch = epoch.renewed(now);
        }
        self.tables.set_epochs(&self.known)?;
        self.tables.sync()?;
        let rooms = self.known.len();
        warn!(
            event = "epochs_renewed",
            rooms, why, "events may be gone, and nobody knows which: every room has a new epoch"
        );
        Ok(())
    }

    /// Makes the notes say how far the logs are: what was accepted as lost is not missed again, and what was not noted is.
    fn note(&self, heads: &HighWatermarks, noted: &[(LogId, Sequence)]) -> io::Result<()> {
        let noted: HashMap<LogId, Sequence> = noted.iter().copied().collect();
        let (mut missing, mut is_lowered) = (0, false);
        for (log, noted) in noted.iter().filter(|(log, _)| !self.kept.contains_key(log)) {
            heads.set(*log, Sequence::ZERO)?;
            is_lowered |= *noted > Sequence::ZERO;
        }
        for (log, LogStats { last, .. }) in &self.kept {
            let noted = noted.get(log).copied();
            if noted.unwrap_or_default() != *last {
                missing += u64::from(noted.is_none());
                is_lowered |= noted.is_some_and(|noted| noted > *last);
                heads.set(*log, *last)?;
            }
        }
        if is_lowered {
            heads.sync()?;
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

/// What is in a database.
struct Contents {
    known: HashMap<RoomName, (LogId, Epoch)>,
    kept: HashMap<LogId, LogStats>,
    /// How far each log had come: what was noted, and what is said beside the logs themselves.
    claims: HashMap<LogId, Sequence>,
    next: u32,
}

impl Contents {
    fn read(tables: &Tables, noted: &[(LogId, Sequence)]) -> Result<Self, StoreError> {
        let damaged = |why| StoreError::Record {
            sequence: Sequence::ZERO,
            why,
        };
        let (mut known, mut kept) = (HashMap::new(), HashMap::new());
        let mut claims: HashMap<LogId, Sequence> = noted.iter().copied().collect();
        for entry in tables.rooms.iter() {
            let (name, value) = entry.into_inner()?;
            let name = std::str::from_utf8(&name)
                .ok()
                .and_then(|name| RoomName::try_from(name).ok());
            let room = name.ok_or(damaged("a room's name is none"))?;
            let (log, epoch) = decode_room(&value)?;
            let (counted, claimed) = LogStats::scan_and_verify(tables, &room, log)?;
            if kept.insert(log, counted).is_some() {
                return Err(damaged("two rooms have the same log"));
            }
            let claim = claims.entry(log).or_default();
            *claim = claimed.max(*claim);
            known.insert(room, (log, epoch));
        }
        // The records of a room whose name was lost are still there: nobody else gets its id.
        let mut used: Vec<LogId> = claims.keys().copied().collect();
        for table in [&tables.records, &tables.snapshots] {
            if let Some(entry) = table.iter().next_back() {
                used.push(decode_log_id(&entry.key()?)?);
            }
        }
        Ok(Self {
            known,
            kept,
            claims,
            next: used.into_iter().max().map_or(0, |log| log.0.saturating_add(1)),
        })
    }

    /// That a log ends earlier than it did, unless that is accepted and it can go on from there.
    fn shorter(&self, directory: &Directory, accept_loss: bool) -> Option<StoreError> {
        self.claims.iter().find_map(|(&log, &noted)| {
            let kept = self.kept.get(&log).copied().unwrap_or(LogStats::EMPTY);
            if kept.last >= noted {
                return None;
            }
            let room = self.known.iter().find(|(_, (id, _))| *id == log);
            match room {
                // Nothing says what was before its first event but the snapshot, and that is of a later time.
                Some((room, _)) if kept.snapshot > kept.last && kept.first > Bounds::EMPTY.first => {
                    Some(StoreError::Log {
                        room: room.clone(),
                        why: ReplayError::Gap {
                            after: kept.last,
                            next: kept.snapshot.next(),
                        },
                    })
                }
                _ if accept_loss => None,
                _ => Some(StoreError::Truncated {
                    path: directory.path().into(),
                    what: room.map_or_else(
                        || "the log of a room whose name is gone".into(),
                        |(room, _)| format!("the log of room {:?}", room.as_str()),
                    ),
                    last: kept.last,
                    noted,
                }),
            }
        })
    }
}

fn now() -> WallTime {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    WallTime::from_millis(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}
