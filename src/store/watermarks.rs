//! The highest sequence of each log that was made durable, stored beside the database.
//!
//! An incomplete batch at the end of a journal was usually torn by a crash and never acknowledged, and is truncated when
//! the store is opened. But if a journal is damaged later, acknowledged batches after the damage are truncated too, and
//! nothing in the database reveals that. So the writer stores the high watermarks after each commit, before it
//! acknowledges, and opening the store fails if a log ends below its watermark. (Damage in table and version files is
//! detected by their own checksums: the database does not open.)
//!
//! Watermarks are not synced, except when one is lowered. They survive a crash of the process. After a power cut the file may
//! hold older values, which are lower.
//!
//! The file `heads` is an array, indexed by log id, of 16-byte entries: the sequence (8 bytes, big-endian), the CRC-32 of
//! log id and sequence (4 bytes), and four zero bytes. A damaged entry is ignored.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::LogId;
use crate::domain::Sequence;

const ENTRY_BYTES: usize = 16;

/// The file of the high watermarks.
pub(super) struct HighWatermarks(File);

impl HighWatermarks {
    pub(super) fn open(directory: &Path) -> io::Result<Self> {
        OpenOptions::new()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .open(directory.join("heads"))
            .map(Self)
    }

    pub(super) fn set(&self, log: LogId, last: Sequence) -> io::Result<()> {
        let mut entry = [0; ENTRY_BYTES];
        entry[..8].copy_from_slice(&last.get().to_be_bytes());
        entry[8..12].copy_from_slice(&checksum(log, last).to_be_bytes());
        self.0.write_all_at(&entry, u64::from(log.0) * ENTRY_BYTES as u64)
    }

    /// Syncs the file. Required after lowering a watermark: the old value would claim events that are gone.
    pub(super) fn sync(&self) -> io::Result<()> {
        self.0.sync_data()
    }

    pub(super) fn read_all(&self) -> io::Result<Vec<(LogId, Sequence)>> {
        let length = usize::try_from(self.0.metadata()?.len()).unwrap_or(usize::MAX);
        let mut bytes = vec![0; length];
        self.0.read_exact_at(&mut bytes, 0)?;
        let entries = (0..).map(LogId).zip(bytes.chunks_exact(ENTRY_BYTES));
        Ok(entries
            .filter_map(|(log, entry)| {
                let (last, rest) = entry.split_first_chunk()?;
                let last = Sequence::new(u64::from_be_bytes(*last));
                let is_valid = rest.first_chunk() == Some(&checksum(log, last).to_be_bytes());
                is_valid.then_some((log, last))
            })
            .collect())
    }
}

fn checksum(log: LogId, last: Sequence) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&log.0.to_be_bytes());
    hasher.update(&last.get().to_be_bytes());
    hasher.finalize()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_watermarks_are_read_and_damaged_ones_ignored() {
        let directory = tempfile::tempdir().unwrap();
        let watermarks = HighWatermarks::open(directory.path()).unwrap();
        assert_eq!(watermarks.read_all().unwrap(), []);
        // Log 1 has no watermark.
        for (log, last) in [(0, 3), (2, 7), (0, 9)] {
            watermarks.set(LogId(log), Sequence::new(last)).unwrap();
        }
        let expected = [(LogId(0), Sequence::new(9)), (LogId(2), Sequence::new(7))];
        assert_eq!(watermarks.read_all().unwrap(), expected);
        watermarks.0.write_all_at(&[1], 0).unwrap();
        let reopened = HighWatermarks::open(directory.path()).unwrap();
        assert_eq!(reopened.read_all().unwrap(), expected[1..]);
    }
}
