//! How far each log had come, noted beside the database.
//!
//! Why: what is not whole at the end of a journal was torn by a crash and never acknowledged, and is cut
//! ([`Cuts`](super::journals::Cuts)); or the journal was damaged later, and all that had been synced behind that place is
//! cut with it. (Damage in tables and versions is found by their checksums: then the database does not open.)
//!
//! So the writer notes after each commit, and before anybody hears of it, how far the logs are; and a start notices when
//! one ends earlier. The notes are not synced: the end of the process does not lose them, and a power cut can only leave
//! older ones, which claim less, since what is lowered (after a loss that was accepted) is synced.
//!
//! As bytes: 16 for each log, at its number: the last sequence, a CRC-32 of number and sequence, four zeros. A note that
//! is damaged itself claims nothing.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::LogId;
use crate::domain::Sequence;

const NOTE: usize = 16;

/// The file of the notes.
pub(super) struct Heads(File);

impl Heads {
    pub(super) fn open(directory: &Path) -> io::Result<Self> {
        OpenOptions::new()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .open(directory.join("heads"))
            .map(Self)
    }

    /// Notes how far a log is.
    pub(super) fn note(&self, log: LogId, last: Sequence) -> io::Result<()> {
        let mut note = [0; NOTE];
        note[..8].copy_from_slice(&last.get().to_be_bytes());
        note[8..12].copy_from_slice(&checksum(log, last).to_be_bytes());
        self.0.write_all_at(&note, u64::from(log.0) * NOTE as u64)
    }

    /// Makes the notes survive a power cut: where one was lowered, the older one would claim too much.
    pub(super) fn sync(&self) -> io::Result<()> {
        self.0.sync_data()
    }

    /// How far the logs were when it was last noted.
    pub(super) fn read(&self) -> io::Result<Vec<(LogId, Sequence)>> {
        let length = usize::try_from(self.0.metadata()?.len()).unwrap_or(usize::MAX);
        let mut notes = vec![0; length];
        self.0.read_exact_at(&mut notes, 0)?;
        let notes = (0..).map(LogId).zip(notes.chunks_exact(NOTE));
        Ok(notes
            .filter_map(|(log, note)| {
                let (last, rest) = note.split_first_chunk()?;
                let last = Sequence::new(u64::from_be_bytes(*last));
                let is_whole = rest.first_chunk() == Some(&checksum(log, last).to_be_bytes());
                is_whole.then_some((log, last))
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
    fn a_note_is_read_unless_it_is_damaged() {
        let directory = std::env::temp_dir().join(format!("chitchat-heads-{}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        let heads = Heads::open(&directory).unwrap();
        assert_eq!(heads.read().unwrap(), []);
        // Of log 1 nothing is noted.
        for (log, last) in [(0, 3), (2, 7), (0, 9)] {
            heads.note(LogId(log), Sequence::new(last)).unwrap();
        }
        let noted = [(LogId(0), Sequence::new(9)), (LogId(2), Sequence::new(7))];
        assert_eq!(heads.read().unwrap(), noted);
        heads.0.write_all_at(&[1], 0).unwrap();
        assert_eq!(Heads::open(&directory).unwrap().read().unwrap(), noted[1..]);
        std::fs::remove_dir_all(&directory).unwrap();
    }
}
