//! Giving up what is lost of a damaged log, for `accept_loss`.
//!
//! Every valid entry of every segment is kept: segments with damage are rewritten without it, and the neighbours of missing
//! ones cover their numbers. What is then missing shows as gaps in the logs. A log continues after a gap if a snapshot covers
//! what is missing; otherwise it ends before the gap, or is deleted if there is nothing before it. A log whose deletion is lost is deleted
//! where a later log of the same room begins.

use std::collections::HashMap;

use bytes::Bytes;
use parking_lot::Mutex;
use tracing::warn;

use super::catalog::Catalog;
use super::compactor::Replacement;
use super::directory::{Directory, cannot_use, none_if_missing, segment_numbers, segment_path};
use super::entry::{Entries, Entry, EntryKind, Header};
use super::recovery::Loaded;
use super::segment::{BootId, SEGMENT_HEADER_LEN, Segment};
use super::writer::{Change, JournalWriter};
use super::{DiskOptions, LogId, StoreError};
use crate::domain::{ReplayError, RoomName, Sequence};
use crate::wall_clock::wall_time;

/// What is done about lost events when a store is opened.
#[derive(Default)]
pub(super) struct Repairs {
    changes: Vec<(LogId, Change)>,
    /// The logs that have lost events, and which.
    lost: Vec<(LogId, RoomName, ReplayError)>,
    /// Whether every log may have lost events.
    renews_all: bool,
    /// The ends of the logs as their indexes say, before damage is given up.
    ends: Option<Vec<(LogId, Sequence)>>,
}

impl Repairs {
    /// Loads the journal. If events are lost and that is accepted, gives them up.
    pub(super) fn load(directory: &Directory, options: &DiskOptions) -> Result<(Loaded, Self), StoreError> {
        let mut repairs = Self {
            renews_all: directory.renews_epochs(),
            ..Self::default()
        };
        let mut is_salvaged = false;
        // Interrupted, it is not known afterwards what was lost.
        let salvage = |truncate_after: &TruncateAfter, unsynced| {
            directory
                .set_renews_epochs(true)
                .map_err(cannot_use(directory.path()))?;
            salvage(directory, truncate_after, unsynced, options)
        };
        loop {
            let loaded = match Loaded::load(directory, true, options.accept_loss) {
                Err(error) if error.is_damage() && options.accept_loss && !is_salvaged => {
                    warn!(event = "log_salvaged", %error, "the log is damaged, which is accepted; what is valid is kept");
                    (repairs.renews_all, is_salvaged) = (true, true);
                    salvage(&TruncateAfter::new(), None)?;
                    continue;
                }
                loaded => loaded?,
            };
            repairs.renews_all |= loaded.rebooted_unsynced;
            if options.accept_loss && repairs.ends.is_none() {
                let logs = loaded.catalog.logs.iter();
                repairs.ends = Some(logs.map(|(log, state)| (*log, state.last)).collect());
                if !loaded.catalog.find_damage()?.is_empty() {
                    warn!(
                        event = "log_salvaged",
                        "records are damaged, which is accepted; what is valid is kept"
                    );
                    salvage(&TruncateAfter::new(), loaded.catalog.unsynced)?;
                    continue;
                }
            }
            let names = loaded.lost.iter().filter_map(|(log, error)| {
                let room = loaded.catalog.logs.get(log)?.room.clone();
                Some((*log, room, *error))
            });
            let lost: Vec<_> = names.collect();
            if !options.accept_loss && !loaded.rebooted_unsynced {
                if let Some((_, room, why)) = lost.first() {
                    let (room, why) = (room.clone(), *why);
                    return Err(StoreError::Log { room, why });
                }
                if !loaded.catalog.orphans().is_empty() {
                    return Err(StoreError::Damaged {
                        path: directory.journal(),
                        offset: 0,
                        why: "it has records of a room whose creation is missing".into(),
                    });
                }
            }
            for log in loaded.catalog.orphans() {
                warn!(
                    event = "log_lost",
                    log = log.0,
                    "the name of a room is lost, which is accepted, and with it its log"
                );
            }
            for (log, room) in loaded.catalog.superseded() {
                warn!(
                    event = "log_lost",
                    log = log.0, %room,
                    "the deletion of an earlier log of the room is lost, which is accepted; the log is deleted where the later one begins"
                );
            }
            repairs.lost.extend(lost);
            let (truncate_after, changes) = resolve(&loaded.catalog, &loaded.lost);
            if truncate_after.is_empty() {
                repairs.changes = changes;
                repairs.find_lost_tails(&loaded.catalog);
                return Ok((loaded, repairs));
            }
            salvage(&truncate_after, loaded.catalog.unsynced)?;
        }
    }

    /// Notes the logs that end earlier than their indexes said before damage was given up.
    fn find_lost_tails(&mut self, catalog: &Catalog) {
        for (log, end) in self.ends.iter().flatten() {
            let Some(state) = catalog.logs.get(log) else {
                continue;
            };
            let is_noted = self.lost.iter().any(|(noted, ..)| noted == log);
            if state.last < *end && !is_noted {
                let (after, next) = (state.last, end.next());
                self.lost
                    .push((*log, state.room.clone(), ReplayError::Gap { after, next }));
            }
        }
    }

    /// Writes the changes, and gives the logs concerned new epochs.
    pub(super) fn apply(
        self,
        catalog: &Mutex<Catalog>,
        writer: &mut JournalWriter,
    ) -> Result<(), StoreError> {
        let mut changes = self.changes;
        {
            let mut catalog = catalog.lock();
            let mut concerned: Vec<LogId> = if self.renews_all {
                catalog.logs.keys().copied().collect()
            } else {
                self.lost.iter().map(|(log, ..)| *log).collect()
            };
            let is_deleted = |log: &LogId| {
                changes
                    .iter()
                    .any(|(other, change)| other == log && matches!(change, Change::Delete))
            };
            concerned.retain(|log| !is_deleted(log));
            let renewals: Vec<_> = concerned
                .into_iter()
                .map(|log| (log, Change::RenewEpoch(catalog.next_epoch(wall_time()))))
                .collect();
            changes.extend(renewals);
        }
        for (_, room, why) in &self.lost {
            warn!(event = "log_truncated", %room, %why, "events are lost, which is accepted; the room has a new epoch");
        }
        if self.renews_all {
            let rooms = catalog.lock().logs.len();
            warn!(
                event = "epochs_renewed",
                rooms, "events may be missing in any room; every room has a new epoch"
            );
        }
        writer.commit(changes).into_iter().collect()
    }
}

/// The logs of which everything after an event is given up; everything at all if that is [`Sequence::ZERO`].
type TruncateAfter = HashMap<LogId, Sequence>;

/// Rewrites the segments of `directory` that are damaged or have entries of `truncate_after`, and adds a newest segment. `unsynced` is
/// the boot on which unsynced writes were made, if that is known. Interrupted, it can be repeated.
fn salvage(
    directory: &Directory,
    truncate_after: &TruncateAfter,
    unsynced: Option<BootId>,
    options: &DiskOptions,
) -> Result<(), StoreError> {
    let log = directory.journal();
    let mut sources: Vec<Segment> = Vec::new();
    for number in segment_numbers(&log).map_err(cannot_use(&log))? {
        if sources
            .last()
            .is_some_and(|source| number <= source.header.covers_to)
        {
            continue;
        }
        let path = segment_path(&log, number);
        sources.push(match Segment::open(&path, false) {
            Ok((segment, _)) if segment.number() == number => segment,
            Err(error) if !error.is_damage() => return Err(error),
            _ => Segment::open_damaged(&path, number, false)?,
        });
    }
    let mut next = 1;
    let mut header = None;
    for (index, source) in sources.iter().enumerate() {
        let until = sources.get(index + 1).map(|following| following.number() - 1);
        let covers = (next, until.unwrap_or(source.header.covers_to));
        next = covers.1.checked_add(1).ok_or(StoreError::Failed)?;
        header = Some(source.header);
        if covers == (source.number(), source.header.covers_to) && is_intact(source, truncate_after)? {
            continue;
        }
        rewrite(directory, source, covers, truncate_after)?;
    }
    let mut header = header.unwrap_or_else(|| Catalog::default().header(next));
    (header.number, header.covers_to, header.unsynced) = (next, next, unsynced);
    let (len, min_len) = options.segment_len(0);
    Segment::create(&log, header, len, min_len).map_err(cannot_use(&log))?;
    // What was durable is given up.
    directory.remove_watermark().map_err(cannot_use(directory.path()))
}

fn is_intact(source: &Segment, truncate_after: &TruncateAfter) -> Result<bool, StoreError> {
    let mut has_discarded = false;
    let end = source.scan(|_, entry| {
        has_discarded |= is_discarded(&entry, truncate_after);
        Ok(())
    })?;
    if source.sealed.is_none() || end != source.data_end() || has_discarded {
        return Ok(false);
    }
    match source.verify_index() {
        Err(error) if error.is_damage() => Ok(false),
        verified => verified.map(|()| true),
    }
}

fn is_discarded(entry: &Entry, truncate_after: &TruncateAfter) -> bool {
    let header = &entry.header;
    truncate_after
        .get(&header.log)
        .is_some_and(|last| match header.kind {
            _ if *last == Sequence::ZERO => true,
            EntryKind::Record => header.last() > *last,
            EntryKind::Snapshot => header.sequence > *last,
            _ => false,
        })
}

/// Replaces `source` by a segment with its valid entries that covers the numbers `covers`, both included.
fn rewrite(
    directory: &Directory,
    source: &Segment,
    covers: (u32, u32),
    truncate_after: &TruncateAfter,
) -> Result<(), StoreError> {
    let mut header = source.header;
    (header.number, header.covers_to) = covers;
    let bytes = source.read_file()?;
    let entries =
        || valid_entries(source.number(), bytes.clone()).filter(|entry| !is_discarded(entry, truncate_after));
    // The index of a segment states a range of events per log, so there must be no gap in it.
    let mut ranges: HashMap<LogId, Range> = HashMap::new();
    for entry in entries() {
        ranges.entry(entry.header.log).or_default().add(&entry.header);
    }
    let mut replacement = Replacement::create(&directory.journal(), header)?;
    for entry in entries() {
        if ranges
            .get(&entry.header.log)
            .is_none_or(|range| range.keeps(&entry.header))
        {
            replacement.push(&entry.header, &entry.body)?;
        }
    }
    let (segment, _) = replacement.seal()?;
    segment
        .replace()
        .map_err(|error| StoreError::cannot("write", &segment.path, &error))?;
    if source.number() != segment.number() {
        let removed = none_if_missing(std::fs::remove_file(&source.path));
        removed.map_err(|error| StoreError::cannot("remove", &source.path, &error))?;
    }
    Ok(())
}

/// The valid entries of a segment, also those after invalid ones.
fn valid_entries(segment: u32, bytes: Bytes) -> impl Iterator<Item = Entry> {
    let mut entries = Entries::new(segment, bytes, SEGMENT_HEADER_LEN);
    std::iter::from_fn(move || {
        entries.resynchronize()?;
        entries.next().map(|(_, entry)| entry)
    })
}

/// The events of one log in a segment that has lost entries.
#[derive(Default)]
struct Range {
    last: Sequence,
    snapshot_sequence: Sequence,
    /// The newest gap: the events before and after it.
    gap: Option<(Sequence, Sequence)>,
}

impl Range {
    fn add(&mut self, header: &Header) {
        match header.kind {
            EntryKind::Record => {
                if self.last > Sequence::ZERO && header.sequence > self.last.next() {
                    self.gap = Some((self.last, header.sequence));
                }
                self.last = header.last();
            }
            EntryKind::Snapshot => self.snapshot_sequence = header.sequence,
            _ => {}
        }
    }

    /// Whether an entry is on the side of the gap where the log continues.
    fn keeps(&self, header: &Header) -> bool {
        let Some((after, next)) = self.gap.filter(|_| header.kind == EntryKind::Record) else {
            return true;
        };
        if self.snapshot_sequence >= next.previous() {
            header.sequence >= next
        } else {
            header.last() <= after
        }
    }
}

/// What to do about the logs that have lost events: what to give up after an event, which needs [`salvage`], and changes.
fn resolve(catalog: &Catalog, lost: &[(LogId, ReplayError)]) -> (TruncateAfter, Vec<(LogId, Change)>) {
    // The rooms of these logs are not known, or have later logs.
    let deleted = catalog.orphans().iter().chain(catalog.superseded().keys());
    let deleted = deleted.map(|log| (*log, Sequence::ZERO));
    let (mut truncate_after, mut changes): (TruncateAfter, _) = (deleted.collect(), Vec::new());
    for (log, error) in lost {
        let ReplayError::Gap { after, next } = *error else {
            continue;
        };
        let Some(state) = catalog.logs.get(log) else {
            continue;
        };
        if state.snapshot_sequence >= next.previous() {
            changes.push((*log, Change::Trim(next)));
        } else if after >= state.first {
            truncate_after.insert(*log, after);
        } else {
            changes.push((*log, Change::Delete));
        }
    }
    (truncate_after, changes)
}
