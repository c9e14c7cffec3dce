//! Segments: the files of the journal.
//!
//! A segment is a header, entries, and, once it is *sealed*, an index of the records in it. Only the newest segment is not
//! sealed: it is appended to. A sealed segment never changes; the compactor replaces it as a whole. All numbers are
//! big-endian.
//!
//! | part | bytes | content |
//! |---|---|---|
//! | header | 128 | [`SegmentHeader`] |
//! | entries | | see [`entry`](super::entry) |
//! | index entries | 20 each | the [`IndexEntry`] of each record, by log and sequence, with a checksum |
//! | summaries | 76 each | what the segment has of each log, see [`LogSummary`] |
//! | trailer | 32 | where the parts begin, and their checksums |
//!
//! Models: Kafka's segments with their indexes, and the index at the end of an SSTable.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::directory::{PRIVATE, is_same_file, segment_path, sync_parent};
use super::entry::{Entries, Entry, decode, padded};
#[cfg(test)]
use super::operation::Operation;
use super::segment_index::{
    EntryLocation, INDEX_ENTRY_LEN, IndexEntry, LogRecords, LogSummary, SUMMARY_LEN, SegmentIndex,
    decode_summary,
};
use super::{LogId, Record, StoreError};
use crate::domain::Sequence;
use crate::failpoint;

/// The length of a segment's header, in bytes.
pub(super) const SEGMENT_HEADER_LEN: u32 = 128;

const HEADER_MAGIC: &[u8; 8] = b"chitlog2";
const TRAILER_MAGIC: &[u8; 8] = b"sealed 2";
const TRAILER_LEN: u32 = 32;

/// How many index entries are read at a time.
pub(super) const READ_INDEX_ENTRIES: u32 = 1024;

/// How many bytes of entries are read at a time.
const SCAN_BYTES: u32 = 1 << 20;

/// The kernel's boot id, which changes with each start of the machine.
pub(super) type BootId = [u8; 36];

/// The header of a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct SegmentHeader {
    /// The segment's number. Numbers are dense: 1, 2, 3, …
    pub(super) number: u32,
    /// The number of the last segment whose entries are in this one. Greater than `number` once the compactor has merged
    /// several segments.
    pub(super) covers_to: u32,
    /// The id of the next new log when the segment was created.
    pub(super) next_log: LogId,
    /// The newest epoch when the segment was created.
    pub(super) newest_epoch: u64,
    /// The machine's boot on which unsynced writes were made when the segment was created.
    pub(super) unsynced: Option<BootId>,
}

/// A segment's file.
#[derive(Debug)]
pub(super) struct Segment {
    pub(super) header: SegmentHeader,
    pub(super) path: PathBuf,
    file: File,
    /// The length of the file, in bytes.
    pub(super) len: u32,
    /// What the index says; `None` unless the segment is sealed.
    pub(super) sealed: Option<Sealed>,
}

#[derive(Debug)]
pub(super) struct Sealed {
    /// Where the entries end and the index begins.
    pub(super) data_end: u32,
    /// The logs with entries in the segment, by id.
    pub(super) logs: Vec<LogRecords>,
}

impl Segment {
    /// Creates a segment of `len` bytes, atomically and durably. The space is allocated, so that a sync writes no metadata.
    /// If the disk has not that much left, the segment is smaller, but not smaller than `min_len`.
    pub(super) fn create(
        directory: &Path,
        header: SegmentHeader,
        len: u32,
        min_len: u32,
    ) -> io::Result<Self> {
        let path = segment_path(directory, header.number);
        let temporary = path.with_extension("new");
        let file = create_file(&temporary)?;
        failpoint::hit("segment-created");
        let len = allocate_most(&file, len, min_len)?;
        file.write_all_at(&header.encode(), 0)?;
        file.sync_all()?;
        failpoint::hit("segment-synced");
        if !failpoint::is_enabled("skip-sync") {
            std::fs::rename(&temporary, &path)?;
        }
        failpoint::hit("segment-renamed");
        sync_parent(&path)?;
        Ok(Self {
            header,
            path,
            file,
            len,
            sealed: None,
        })
    }

    /// Creates the replacement of some segments in a temporary file. It becomes visible with [`Segment::replace`].
    pub(super) fn create_replacement(directory: &Path, header: SegmentHeader) -> io::Result<Self> {
        let path = segment_path(directory, header.number);
        let file = create_file(&path.with_extension("new"))?;
        file.write_all_at(&header.encode(), 0)?;
        Ok(Self {
            header,
            path,
            file,
            len: SEGMENT_HEADER_LEN,
            sealed: None,
        })
    }

    /// Renames a sealed replacement to the name of the segment that it replaces. Durable on return.
    pub(super) fn replace(&self) -> io::Result<()> {
        #[cfg(test)]
        Operation::Replace.note(&self.path);
        std::fs::rename(self.path.with_extension("new"), &self.path)?;
        failpoint::hit("rewrite-renamed");
        sync_parent(&self.path)
    }

    /// Opens the segment at `path`. A sealed one is opened with its index.
    pub(super) fn open(path: &Path, is_writable: bool) -> Result<(Self, Vec<LogSummary>), StoreError> {
        let mut segment = Self::open_damaged(path, 0, is_writable)?;
        if segment.len < SEGMENT_HEADER_LEN {
            return Err(segment.damaged(segment.len, "it ends within its header"));
        }
        let header = SegmentHeader::decode(&segment.read(0, SEGMENT_HEADER_LEN)?);
        segment.header = header.ok_or_else(|| segment.damaged(0, "its header is damaged"))?;
        let summaries = segment.read_summaries()?;
        Ok((segment, summaries))
    }

    /// Opens the file at `path` as segment `number` whatever is in it.
    pub(super) fn open_damaged(path: &Path, number: u32, is_writable: bool) -> Result<Self, StoreError> {
        let cannot_read = |error: io::Error| StoreError::cannot("read", path, &error);
        let file = OpenOptions::new()
            .read(true)
            .write(is_writable)
            .open(path)
            .map_err(cannot_read)?;
        let len = file.metadata().map_err(cannot_read)?.len();
        let len = u32::try_from(len).map_err(|_| damaged(path, 0, "it is too long"))?;
        let header = SegmentHeader {
            number,
            covers_to: number,
            next_log: LogId(0),
            newest_epoch: 0,
            unsynced: None,
        };
        Ok(Self {
            header,
            path: path.into(),
            file,
            len,
            sealed: None,
        })
    }

    /// The error for damage at `offset`.
    pub(super) fn damaged(&self, offset: u32, why: &str) -> StoreError {
        damaged(&self.path, offset, why)
    }

    pub(super) const fn number(&self) -> u32 {
        self.header.number
    }

    /// Reads `len` bytes at `offset`.
    pub(super) fn read(&self, offset: u32, len: u32) -> Result<Bytes, StoreError> {
        let mut bytes = BytesMut::zeroed(len as usize);
        match self.file.read_exact_at(&mut bytes, offset.into()) {
            Ok(()) => Ok(bytes.freeze()),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                Err(self.damaged(offset, "it ends there"))
            }
            Err(error) => Err(StoreError::cannot("read", &self.path, &error)),
        }
    }

    /// Where the entries end; of a segment that is not sealed, the end of the file.
    pub(super) fn data_end(&self) -> u32 {
        self.sealed.as_ref().map_or(self.len, |sealed| sealed.data_end)
    }

    /// The size of the entries of a sealed segment, in bytes, with the index entries of the records.
    pub(super) fn entries_size(&self) -> u64 {
        let Some(sealed) = &self.sealed else { return 0 };
        let records: u64 = sealed.logs.iter().map(|records| u64::from(records.count)).sum();
        u64::from(sealed.data_end - SEGMENT_HEADER_LEN) + records * u64::from(INDEX_ENTRY_LEN)
    }

    /// Reads the whole file.
    pub(super) fn read_file(&self) -> Result<Bytes, StoreError> {
        self.read(0, self.len)
    }

    /// Where the last byte after `from` is that is not zero; `from` if there is none.
    pub(super) fn find_written_end(&self, from: u32) -> Result<u32, StoreError> {
        // A comparison of slices is much faster than a search for a byte.
        const ZEROS: [u8; 4096] = [0; 4096];
        let (mut at, mut end) = (from, from);
        while at < self.len {
            let part = self.read(at, SCAN_BYTES.min(self.len - at))?;
            for block in part.chunks(ZEROS.len()) {
                if *block != ZEROS[..block.len()] {
                    let last = block.iter().rposition(|byte| *byte != 0).unwrap_or(0);
                    end = at + len_u32(&block[..last]) + 1;
                }
                at += len_u32(block);
            }
        }
        Ok(end)
    }

    /// Reads the entries, part by part, and passes them to `visit`. Returns where the valid entries end.
    pub(super) fn scan(
        &self,
        visit: impl FnMut(EntryLocation, Entry) -> Result<(), StoreError>,
    ) -> Result<u32, StoreError> {
        self.scan_from(SEGMENT_HEADER_LEN, visit)
    }

    /// Reads the entries that start at the offset `at` or later, as [`scan`](Self::scan).
    fn scan_from(
        &self,
        mut at: u32,
        mut visit: impl FnMut(EntryLocation, Entry) -> Result<(), StoreError>,
    ) -> Result<u32, StoreError> {
        let mut part = SCAN_BYTES;
        loop {
            let len = part.min(self.data_end().saturating_sub(at));
            let mut entries = Entries::new(self.number(), self.read(at, len)?, 0);
            for (offset, entry) in entries.by_ref() {
                let location = EntryLocation {
                    segment: self.number(),
                    offset: at + offset,
                    len: entry.len(),
                };
                visit(location, entry)?;
            }
            at += entries.offset().min(len);
            if entries.offset() > 0 {
                part = SCAN_BYTES;
            } else if at + len >= self.data_end() {
                return Ok(at);
            } else {
                // The entry is longer than the part, or invalid.
                part = part.saturating_mul(2);
            }
        }
    }

    /// Reads and checks all entries and index entries of a sealed segment. Its summaries were checked when it was opened.
    ///
    /// # Errors
    ///
    /// An entry or index entry is damaged, or the file cannot be read.
    pub(super) fn verify(&self) -> Result<(), StoreError> {
        match self.scan(|_, _| Ok(()))? {
            end if end == self.data_end() => self.verify_index(),
            end => Err(self.damaged(end, "the entry there is damaged")),
        }
    }

    /// Reads and checks all index entries, as [`verify`](Self::verify).
    pub(super) fn verify_index(&self) -> Result<(), StoreError> {
        for records in self.sealed.iter().flat_map(|sealed| &sealed.logs) {
            for from in (0..records.count).step_by(READ_INDEX_ENTRIES as usize) {
                self.read_index_entries(records, from, (records.count - from).min(READ_INDEX_ENTRIES))?;
            }
        }
        Ok(())
    }

    /// Reads one entry.
    pub(super) fn read_entry(&self, offset: u32, len: u32) -> Result<Entry, StoreError> {
        let bytes = self.read(offset, len)?;
        decode(self.number(), &bytes).ok_or_else(|| self.damaged(offset, "the entry there is damaged"))
    }

    /// Reads the records of `log` that `index` has, until their frames would exceed `max_bytes` in total, but at least one.
    /// Records that are next to each other are read together.
    pub(super) fn read_records(
        &self,
        log: LogId,
        index: &[IndexEntry],
        max_bytes: usize,
    ) -> Result<Vec<Record>, StoreError> {
        let mut records = Vec::new();
        let mut bytes = 0;
        let mut rest = index;
        while let Some(start) = rest.first() {
            let mut end = start.offset;
            let is_next = |indexed: &&IndexEntry| {
                let is_adjacent = indexed.offset == padded(end) || indexed.offset == start.offset;
                // Whoever does not read a short page would otherwise keep a long record that follows it.
                let len = (indexed.offset + indexed.len - start.offset) as usize;
                let fits = len <= max_bytes || indexed.offset == start.offset;
                end = indexed.offset + indexed.len;
                is_adjacent && fits
            };
            let count = rest.iter().take_while(is_next).count();
            let (run, others) = rest.split_at(count.max(1));
            rest = others;
            let end = run.last().map_or(start.offset, |last| last.offset + last.len);
            let read = self.read(start.offset, end - start.offset)?;
            for indexed in run {
                let at = (indexed.offset - start.offset) as usize;
                let entry = decode(self.number(), &read.slice(at..));
                let entry = entry
                    .filter(|entry| entry.header.log == log && entry.header.sequence == indexed.first)
                    .ok_or_else(|| self.damaged(indexed.offset, "the record there is damaged"))?;
                let header = entry.header;
                let record = Record::decode(header.sequence, header.events, header.at, entry.body)?;
                bytes += record.frames.len();
                if !records.is_empty() && bytes > max_bytes {
                    return Ok(records);
                }
                records.push(record);
            }
        }
        Ok(records)
    }

    /// Writes at the end of the entries.
    pub(super) fn write(&self, bytes: &[u8], offset: u32) -> io::Result<()> {
        #[cfg(test)]
        Operation::Write(offset, offset + len_u32(bytes)).note(&self.path);
        self.file.write_all_at(bytes, offset.into())
    }

    pub(super) fn sync(&self) -> io::Result<()> {
        #[cfg(test)]
        Operation::Sync.note(&self.path);
        self.file.sync_data()
    }

    /// [Syncs](Self::sync), also the length of the file.
    fn sync_all(&self) -> io::Result<()> {
        #[cfg(test)]
        Operation::Sync.note(&self.path);
        self.file.sync_all()
    }

    /// Writes the bytes from `from` to `end` again and syncs them. `from` is where an entry starts, and `end` where the entries
    /// end or, of a sealed segment, the end of the file.
    ///
    /// fsync writes only dirty pages. One that fails marks them clean although they were not written, so what is read may exist in the
    /// page cache alone.
    pub(super) fn rewrite_and_sync(&self, from: u32, end: u32) -> Result<(), StoreError> {
        let cannot_write = |error: io::Error| StoreError::cannot("write", &self.path, &error);
        let mut at = from;
        while at < end {
            let part = self.read(at, SCAN_BYTES.min(end - at))?;
            self.write(&part, at).map_err(cannot_write)?;
            at += len_u32(&part);
        }
        self.sync().map_err(cannot_write)?;
        // Between the check of the entries and the write, the system may have replaced them by what is on the disk.
        if self.scan_from(from, |_, _| Ok(()))? < end.min(self.data_end()) {
            let why = io::Error::other("its newest entries have changed while it was opened");
            return Err(StoreError::cannot("read", &self.path, &why));
        }
        Ok(())
    }

    /// Returns whether `path` leads to this file.
    pub(super) fn is_at(&self, path: &Path) -> io::Result<bool> {
        is_same_file(&self.file, path)
    }

    /// Removes everything after `end` and allocates the space anew, so that it contains zeros. Durable on return.
    pub(super) fn truncate_to(&self, end: u32) -> io::Result<()> {
        self.file.set_len(end.into())?;
        allocate(&self.file, self.len)?;
        self.sync_all()
    }

    /// Seals the segment, whose entries end at `data_end`: writes the index, and truncates the file behind it. Durable on
    /// return.
    pub(super) fn seal(&self, data_end: u32, index: &SegmentIndex) -> io::Result<Self> {
        let (mut entries, mut summaries) = (BytesMut::new(), BytesMut::new());
        let mut logs = Vec::new();
        for (log, log_index) in index {
            let records = log_index.records(*log, len_u32(&entries) / INDEX_ENTRY_LEN);
            for indexed in &log_index.entries {
                indexed.encode(&mut entries, self.number(), records.first);
            }
            log_index.encode(&mut summaries, &records);
            logs.push(records);
        }
        let trailer = encode_trailer(self.number(), data_end, &entries, &summaries);
        let index = [&entries[..], &summaries[..]].concat();
        let trailer_at = data_end + len_u32(&index);
        self.write(&index, data_end)?;
        // Else a power cut could leave the trailer without what it refers to.
        self.sync()?;
        failpoint::hit("seal-written");
        self.write(&trailer, trailer_at)?;
        let len = trailer_at + TRAILER_LEN;
        self.file.set_len(len.into())?;
        self.sync_all()?;
        failpoint::hit("seal-synced");
        Ok(Self {
            header: self.header,
            path: self.path.clone(),
            file: self.file.try_clone()?,
            len,
            sealed: Some(Sealed { data_end, logs }),
        })
    }

    /// Reads the summaries if the segment is sealed. They are sorted by log.
    fn read_summaries(&mut self) -> Result<Vec<LogSummary>, StoreError> {
        let Some(trailer_at) = self.len.checked_sub(TRAILER_LEN) else {
            return Ok(Vec::new());
        };
        let trailer = self.read(trailer_at, TRAILER_LEN)?;
        let Some((data_end, logs, checksum)) = decode_trailer(self.number(), &trailer) else {
            return Ok(Vec::new());
        };
        let start = logs
            .checked_mul(SUMMARY_LEN)
            .and_then(|len| trailer_at.checked_sub(len));
        let start = start.ok_or_else(|| self.damaged(trailer_at, "its index is damaged"))?;
        let mut bytes = self.read(start, trailer_at - start)?;
        if crc32c::crc32c(&bytes) != checksum {
            return Err(self.damaged(start, "its index is damaged"));
        }
        let mut summaries = Vec::new();
        while bytes.has_remaining() {
            summaries.push(decode_summary(&mut bytes, self.number()));
        }
        let logs = summaries.iter().map(|summary| summary.records).collect();
        self.sealed = Some(Sealed { data_end, logs });
        Ok(summaries)
    }

    /// What a sealed segment has of a log.
    pub(super) fn log(&self, log: LogId) -> Option<&LogRecords> {
        let logs = &self.sealed.as_ref()?.logs;
        let found = logs.binary_search_by_key(&log, |records| records.log).ok()?;
        logs.get(found)
    }

    /// Reads index entries of `log`, starting with that of the record that contains `next`, or of the first one. Returns
    /// at most [`READ_INDEX_ENTRIES`]. The segment must be sealed.
    pub(super) fn index(&self, log: LogId, next: Sequence) -> Result<Vec<IndexEntry>, StoreError> {
        let Some(records) = self.log(log) else {
            return Ok(Vec::new());
        };
        let (mut low, mut high) = (0, records.count);
        // The first entry after `next`: all before `low` are not, all from `high` are.
        while low < high {
            let middle = u32::midpoint(low, high);
            if self
                .read_index_entries(records, middle, 1)?
                .first()
                .is_some_and(|read| read.first <= next)
            {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        let from = low.saturating_sub(1);
        self.read_index_entries(records, from, (records.count - from).min(READ_INDEX_ENTRIES))
    }

    fn read_index_entries(
        &self,
        records: &LogRecords,
        from: u32,
        count: u32,
    ) -> Result<Vec<IndexEntry>, StoreError> {
        let start = self.sealed.as_ref().map_or(0, |sealed| sealed.data_end);
        let offset = start + (records.index_at + from) * INDEX_ENTRY_LEN;
        let bytes = self.read(offset, count * INDEX_ENTRY_LEN)?;
        let index = bytes.chunks_exact(INDEX_ENTRY_LEN as usize);
        let index = index.map(|bytes| IndexEntry::decode(bytes, self.number(), records.first));
        let index: Option<_> = index.collect();
        index.ok_or_else(|| self.damaged(offset, "its index is damaged"))
    }
}

impl SegmentHeader {
    fn encode(&self) -> Bytes {
        let mut bytes = BytesMut::with_capacity(SEGMENT_HEADER_LEN as usize);
        bytes.put_slice(HEADER_MAGIC);
        bytes.put_u32(self.number);
        bytes.put_u32(self.covers_to);
        bytes.put_u32(self.next_log.0);
        bytes.put_u64(self.newest_epoch);
        bytes.put_slice(&self.unsynced.unwrap_or([0; 36]));
        bytes.resize(SEGMENT_HEADER_LEN as usize - 4, 0);
        bytes.put_u32(crc32c::crc32c(&bytes));
        bytes.freeze()
    }

    fn decode(mut bytes: &[u8]) -> Option<Self> {
        let (content, checksum) = bytes.split_last_chunk()?;
        if crc32c::crc32c(content) != u32::from_be_bytes(*checksum) || !content.starts_with(HEADER_MAGIC) {
            return None;
        }
        bytes.advance(HEADER_MAGIC.len());
        let header = Self {
            number: bytes.get_u32(),
            covers_to: bytes.get_u32(),
            next_log: LogId(bytes.get_u32()),
            newest_epoch: bytes.get_u64(),
            unsynced: bytes.first_chunk().copied().filter(|id| *id != [0; 36]),
        };
        (header.number > 0 && header.covers_to >= header.number).then_some(header)
    }
}

fn encode_trailer(number: u32, data_end: u32, entries: &[u8], summaries: &[u8]) -> Bytes {
    let mut bytes = BytesMut::with_capacity(TRAILER_LEN as usize);
    bytes.put_slice(TRAILER_MAGIC);
    bytes.put_u32(number);
    bytes.put_u32(data_end);
    bytes.put_u32(len_u32(entries) / INDEX_ENTRY_LEN);
    bytes.put_u32(len_u32(summaries) / SUMMARY_LEN);
    bytes.put_u32(crc32c::crc32c(summaries));
    bytes.put_u32(crc32c::crc32c(&bytes));
    bytes.freeze()
}

/// Returns where the entries end, the number of summaries, and their checksum. `None` if the bytes are
/// not a trailer.
fn decode_trailer(number: u32, bytes: &[u8]) -> Option<(u32, u32, u32)> {
    let (content, checksum) = bytes.split_last_chunk()?;
    let is_trailer = crc32c::crc32c(content) == u32::from_be_bytes(*checksum);
    let mut rest = content.strip_prefix(TRAILER_MAGIC).filter(|_| is_trailer)?;
    let (stored_number, data_end) = (rest.get_u32(), rest.get_u32());
    rest.advance(4);
    let (logs, checksum) = (rest.get_u32(), rest.get_u32());
    (stored_number == number).then_some((data_end, logs, checksum))
}

/// Allocates the first `len` bytes of a file, or as many as the disk has left, if they are at least `min_len`. Returns the
/// number.
fn allocate_most(file: &File, mut len: u32, min_len: u32) -> io::Result<u32> {
    loop {
        match allocate(file, len) {
            Err(error) if error.kind() == io::ErrorKind::StorageFull && len > min_len => {
                len = (len / 2).max(min_len);
            }
            result => return result.map(|()| len),
        }
    }
}

/// Allocates the first `len` bytes of a file.
fn allocate(file: &File, len: u32) -> io::Result<()> {
    match rustix::fs::fallocate(file, rustix::fs::FallocateFlags::empty(), 0, len.into()) {
        // Some file systems cannot allocate in advance.
        Err(rustix::io::Errno::OPNOTSUPP) => file.set_len(len.into()),
        result => Ok(result?),
    }
}

fn create_file(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .create(true)
        .truncate(true)
        .read(true)
        .write(true)
        .mode(PRIVATE)
        .open(path)
}

fn damaged(path: &Path, offset: u32, why: &str) -> StoreError {
    StoreError::Damaged {
        path: path.into(),
        offset: offset.into(),
        why: why.into(),
    }
}

/// A segment is shorter than 4 GiB, and so is every part of it.
fn len_u32(bytes: &[u8]) -> u32 {
    u32::try_from(bytes.len()).unwrap_or(u32::MAX)
}
