//! Opening the journal of a data directory.
//!
//! Only the newest segment is read as a whole. Of the others, the summaries are read and verified; their index entries and
//! entries are verified when they are read. What may be missing after a crash is decidable:
//!
//! - The end of the newest segment may be torn by a write that was not acknowledged. It is cut off. Anything invalid before the
//!   high watermark, or followed by a later write, is damage.
//! - A segment may be left that an interrupted compaction has replaced, or that was created and not used yet. It is removed.
//! - Everything else that is missing or invalid is damage. With `accept_loss`, [`salvage`](super::salvage) gives up what is lost.
//!
//! An open that fails changes nothing. Before anything is served, what is beyond the watermark is written and synced once more.

use std::fs;
use std::path::{Path, PathBuf};

use super::catalog::{Catalog, SegmentState};
use super::directory::{Directory, HighWatermark, cannot_use, segment_numbers, segment_path, sync_parent};
use super::entry::{Entries, padded};
use super::segment::{BootId, SEGMENT_HEADER_LEN, Segment};
use super::segment_index::LogSummary;
use super::{LogId, StoreError};
use crate::domain::ReplayError;

/// The journal of a directory, read but not changed.
pub(super) struct Loaded {
    pub(super) catalog: Catalog,
    /// Where the entries of the newest segment end.
    pub(super) end: u32,
    /// Up to where the entries of the newest segment are known to be durable.
    durable_end: u32,
    /// The size of a torn write after that, in bytes.
    pub(super) torn_bytes: u64,
    /// Logs that have lost events.
    pub(super) lost: Vec<(LogId, ReplayError)>,
    /// Whether the machine was restarted after unsynced writes, so that events may be lost.
    pub(super) rebooted_unsynced: bool,
    /// Files that the journal does not consist of any more.
    leftovers: Vec<PathBuf>,
}

impl Loaded {
    /// Reads the journal of `directory`. With `accepts_loss`, the deletions of logs may be lost.
    ///
    /// # Errors
    ///
    /// The journal is damaged or cannot be read.
    pub(super) fn load(
        directory: &Directory,
        is_writable: bool,
        accepts_loss: bool,
    ) -> Result<Self, StoreError> {
        let cannot = cannot_use(directory.path());
        let watermark = directory.read_watermark().map_err(&cannot)?;
        let (mut segments, leftovers) = open_segments(&directory.journal(), watermark, is_writable)?;
        let mut loaded = Self {
            catalog: Catalog::new(accepts_loss),
            end: SEGMENT_HEADER_LEN,
            durable_end: SEGMENT_HEADER_LEN,
            torn_bytes: 0,
            lost: Vec::new(),
            rebooted_unsynced: false,
            leftovers,
        };
        let Some((newest, _)) = segments.pop() else {
            return Ok(loaded);
        };
        for (segment, summaries) in segments {
            loaded.add_sealed(segment, &summaries)?;
        }
        loaded.add_newest(newest, watermark, directory.is_in_use())?;
        loaded.lost = loaded.catalog.finish()?;
        Ok(loaded)
    }

    fn add_sealed(&mut self, segment: Segment, summaries: &[LogSummary]) -> Result<(), StoreError> {
        let segment = self.catalog.add_segment(segment);
        for summary in summaries {
            let room = match summary.metadata.room {
                Some(location) => Some((
                    location.offset,
                    segment.read_entry(location.offset, location.len)?,
                )),
                None => None,
            };
            let offset = room.as_ref().map_or(segment.data_end(), |(offset, _)| *offset);
            let room = room.as_ref().map(|(_, entry)| (&entry.header, &entry.body[..]));
            let applied = self.catalog.apply_summary(segment.number(), summary, room);
            applied.map_err(|why| segment.damaged(offset, why))?;
        }
        Ok(())
    }

    /// Reads the entries of the segment that is not sealed, and decides what follows them.
    fn add_newest(
        &mut self,
        segment: Segment,
        watermark: Option<HighWatermark>,
        is_in_use: bool,
    ) -> Result<(), StoreError> {
        let segment = self.catalog.add_segment(segment);
        let watermark = watermark.filter(|noted| noted.segment == segment.number());
        self.end = segment.scan(|location, entry| {
            let applied = self.catalog.apply(location, &entry.header, &entry.body);
            applied.map_err(|why| segment.damaged(location.offset, why))?;
            let end = location.offset + padded(location.len);
            if self.catalog.unsynced.is_none() && watermark.is_some_and(|noted| end <= noted.offset) {
                self.durable_end = end;
            }
            Ok(())
        })?;
        self.rebooted_unsynced = self
            .catalog
            .unsynced
            .is_some_and(|unsynced| Some(unsynced) != boot_id());
        let written = segment.find_written_end(self.end)?;
        self.torn_bytes = u64::from(written - self.end);
        if self.rebooted_unsynced {
            // Unsynced writes may be lost in any order.
            return Ok(());
        }
        if let Some(noted) = watermark.filter(|noted| noted.offset > self.end) {
            let why = format!(
                "its entries end there, but entries up to byte {} were acknowledged",
                noted.offset
            );
            return Err(segment.damaged(self.end, &why));
        }
        if is_in_use {
            // The server may have written more since the entries were read.
            return Ok(());
        }
        let mut after = Entries::new(segment.number(), segment.read(0, written)?, self.end);
        while let Some(entry) = after.resynchronize() {
            if entry.write_start > self.end {
                return Err(segment.damaged(self.end, "the entry there is damaged, and later ones follow"));
            }
            after.next();
        }
        Ok(())
    }

    /// Removes files that the journal does not consist of any more, and what is torn.
    pub(super) fn clean_up(&self, directory: &Directory) -> std::io::Result<()> {
        let log = directory.journal();
        for entry in fs::read_dir(&log)? {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == "new") {
                fs::remove_file(path)?;
            }
        }
        for path in &self.leftovers {
            fs::remove_file(path)?;
        }
        if let Some((_, newest)) = self.catalog.segments.last_key_value()
            && (self.torn_bytes > 0 || !self.leftovers.is_empty())
        {
            newest.segment.truncate_to(self.end)?;
        }
        Ok(())
    }

    /// Makes everything that was read durable. A crash between a write and its sync, or a sync that failed, has left entries
    /// that are valid and may exist in memory alone.
    pub(super) fn make_durable(&self) -> Result<(), StoreError> {
        let mut newest = self.catalog.segments.values().rev();
        let Some(state) = newest.next() else {
            return Ok(());
        };
        let segment = &state.segment;
        sync_parent(&segment.path).map_err(|error| StoreError::cannot("write", &segment.path, &error))?;
        if self.durable_end < self.end {
            segment.rewrite_and_sync(self.durable_end, self.end)?;
        }
        // Nothing was written after the segment before was sealed, so that may be in memory alone, too.
        match newest.next() {
            Some(SegmentState { segment, .. }) if self.end == SEGMENT_HEADER_LEN => {
                segment.rewrite_and_sync(SEGMENT_HEADER_LEN, segment.len)
            }
            _ => Ok(()),
        }
    }
}

type OpenSegments = Vec<(Segment, Vec<LogSummary>)>;

/// Opens the segments that the journal consists of, in order: all sealed but the last one. Also returns the paths of other
/// segments.
fn open_segments(
    log: &Path,
    watermark: Option<HighWatermark>,
    is_writable: bool,
) -> Result<(OpenSegments, Vec<PathBuf>), StoreError> {
    let (mut segments, mut leftovers) = (OpenSegments::new(), Vec::new());
    let mut expected = 1;
    for number in segment_numbers(log).map_err(cannot_use(log))? {
        let path = segment_path(log, number);
        if number < expected {
            leftovers.push(path);
            continue;
        }
        if number > expected {
            return Err(missing(log, expected));
        }
        let (segment, summaries) = Segment::open(&path, is_writable)?;
        if segment.number() != number {
            return Err(segment.damaged(0, "it is another segment"));
        }
        expected = segment.header.covers_to.saturating_add(1);
        segments.push((segment, summaries));
    }
    if watermark.is_some_and(|noted| noted.segment >= expected) {
        return Err(missing(log, expected));
    }
    if segments.last().is_some_and(|(newest, _)| newest.sealed.is_some()) {
        // A segment is created before the one before it is sealed.
        return Err(missing(log, expected));
    }
    let Some(((newest, _), older)) = segments.split_last() else {
        return Ok((segments, leftovers));
    };
    let unsealed = older.iter().map(|(segment, _)| segment);
    let unsealed: Vec<&Segment> = unsealed.filter(|segment| segment.sealed.is_none()).collect();
    let is_newest_empty = newest.find_written_end(SEGMENT_HEADER_LEN)? == SEGMENT_HEADER_LEN;
    match unsealed[..] {
        [] => {}
        // Sealing was interrupted. The segment before the new one continues to be the newest.
        [segment] if is_newest_empty && segment.number() + 1 == newest.number() => {
            leftovers.push(newest.path.clone());
            segments.pop();
        }
        [segment, ..] => return Err(segment.damaged(segment.len, "its index is missing or damaged")),
    }
    Ok((segments, leftovers))
}

fn missing(log: &Path, number: u32) -> StoreError {
    StoreError::Damaged {
        path: segment_path(log, number),
        offset: 0,
        why: "it is missing".into(),
    }
}

/// The kernel's boot id. `None` on systems without one.
pub(super) fn boot_id() -> Option<BootId> {
    let id = fs::read("/proc/sys/kernel/random/boot_id").ok()?;
    id.first_chunk().copied()
}
