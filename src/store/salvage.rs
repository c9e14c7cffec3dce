//! Giving up what is lost of a damaged log, for `accept_loss`.
//!
//! Every valid entry of every segment is kept: segments with damage are rewritten without it, and the neighbours of missing
//! ones cover their numbers. What is then missing shows as gaps in the logs. A log continues after a gap if a snapshot covers
//! what is missing, otherwise before it, and ends if it has nothing before it.

use std::collections::HashMap;

use bytes::Bytes;

use super::catalog::Catalog;
use super::compactor::Replacement;
use super::directory::{Directory, cannot_use, none_if_missing, segment_numbers};
use super::entry::{Entries, Entry, EntryKind, Header};
use super::segment::{BootId, SEGMENT_HEADER_LEN, Segment, segment_path};
use super::writer::Change;
use super::{DiskOptions, LogId, StoreError};
use crate::domain::{ReplayError, Sequence};

/// The logs of which everything after an event is given up; everything at all if that is [`Sequence::ZERO`].
pub(super) type Void = HashMap<LogId, Sequence>;

/// Rewrites the segments of `directory` that are damaged or have entries of `void`, and adds a newest segment. `unsynced` is
/// the boot on which unsynced writes were made, if that is known. Interrupted, it can be repeated.
pub(super) fn salvage(
    directory: &Directory,
    void: &Void,
    unsynced: Option<BootId>,
    options: &DiskOptions,
) -> Result<(), StoreError> {
    let log = directory.log();
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
        if covers == (source.number(), source.header.covers_to) && is_intact(source, void)? {
            continue;
        }
        rewrite(directory, source, covers, void)?;
    }
    let mut header = header.unwrap_or_else(|| Catalog::default().header(next));
    (header.number, header.covers_to, header.unsynced) = (next, next, unsynced);
    let (len, min_len) = options.segment_len(0);
    Segment::create(&log, header, len, min_len).map_err(cannot_use(&log))?;
    Ok(())
}

pub(super) fn is_intact(source: &Segment, void: &Void) -> Result<bool, StoreError> {
    let mut has_void = false;
    let end = source.scan(|_, entry| {
        has_void |= is_void(&entry, void);
        Ok(())
    })?;
    Ok(source.sealed.is_some() && end == source.data_end() && !has_void)
}

fn is_void(entry: &Entry, void: &Void) -> bool {
    let header = &entry.header;
    void.get(&header.log).is_some_and(|last| match header.kind {
        _ if *last == Sequence::ZERO => true,
        EntryKind::Records => header.last() > *last,
        EntryKind::Snapshot => header.sequence > *last,
        _ => false,
    })
}

/// Replaces `source` by a segment with its valid entries that covers the numbers `covers`, both included.
fn rewrite(
    directory: &Directory,
    source: &Segment,
    covers: (u32, u32),
    void: &Void,
) -> Result<(), StoreError> {
    let mut header = source.header;
    (header.number, header.covers_to) = covers;
    let bytes = source.read_file()?;
    let entries = || valid_entries(source.number(), bytes.clone()).filter(|entry| !is_void(entry, void));
    // The index of a segment states a range of events per log, so there must be no gap in it.
    let mut ranges: HashMap<LogId, Range> = HashMap::new();
    for entry in entries() {
        ranges.entry(entry.header.log).or_default().add(&entry.header);
    }
    let mut replacement = Replacement::create(&directory.log(), header)?;
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
    covered: Sequence,
    /// The newest gap: the events before and after it.
    gap: Option<(Sequence, Sequence)>,
}

impl Range {
    fn add(&mut self, header: &Header) {
        match header.kind {
            EntryKind::Records => {
                if self.last > Sequence::ZERO && header.sequence > self.last.next() {
                    self.gap = Some((self.last, header.sequence));
                }
                self.last = header.last();
            }
            EntryKind::Snapshot => self.covered = header.sequence,
            _ => {}
        }
    }

    /// Whether an entry is on the side of the gap where the log continues.
    fn keeps(&self, header: &Header) -> bool {
        let Some((after, next)) = self.gap.filter(|_| header.kind == EntryKind::Records) else {
            return true;
        };
        if self.covered >= next.previous() {
            header.sequence >= next
        } else {
            header.last() <= after
        }
    }
}

/// What to do about the logs that have lost events: what to give up after an event, which needs [`salvage`], and changes.
pub(super) fn resolve(catalog: &Catalog, lost: &[(LogId, ReplayError)]) -> (Void, Vec<(LogId, Change)>) {
    // The rooms of these logs are not known.
    let orphans = catalog.orphans().iter().map(|log| (*log, Sequence::ZERO));
    let (mut void, mut changes): (Void, _) = (orphans.collect(), Vec::new());
    for (log, error) in lost {
        let ReplayError::Gap { after, next } = *error else {
            continue;
        };
        let Some(state) = catalog.logs.get(log) else {
            continue;
        };
        if state.covered >= next.previous() {
            changes.push((*log, Change::Truncate(next)));
        } else if after >= state.first {
            void.insert(*log, after);
        } else {
            changes.push((*log, Change::End));
        }
    }
    (void, changes)
}
