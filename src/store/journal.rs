//! One journal of the database, read without changing it.
//!
//! A journal (fjall 3.1, format 3; integers are little-endian) is a row of batches: `1`, how many items (u32), the batch's
//! number (u64); each item `2`, value type, compression, keyspace (u64), length of the key (u16), of the value (u32) and
//! of the value as it is stored (u32), key, value (or, for a keyspace that was cleared, `4` and its number); then `3`, the
//! XXH3 of the items, and four bytes that never change. What follows the last batch is zeros, allotted ahead.

use std::fs::File;
use std::io::{self, BufReader, ErrorKind, Read, Seek as _, SeekFrom};

use xxhash_rust::xxh3::Xxh3;

const START: u8 = 1;
const ITEM: u8 = 2;
const END: u8 = 3;
const CLEAR: u8 = 4;
const TRAILER: [u8; 4] = *b"FJL\x03";

/// Batches are numbered from zero on, one by one or nearly so. The database breaks down at 2^63.
const NUMBERS: u64 = 1 << 56;

/// How much is read at once.
const PORTION: usize = 64 * 1024;

/// How far a journal goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Extent {
    /// The end of its last whole batch, before the first one that is not whole.
    pub(super) whole: u64,
    /// The end of what is not zero.
    pub(super) written: u64,
    /// The number of the last whole batch, or what was given as that of the one before.
    pub(super) newest: Option<u64>,
}

/// Whether there is a whole batch in `bytes`, which follow what is whole: it is out of its order, or something before it is
/// damaged. A write that was interrupted has none behind it.
pub(super) fn goes_on(bytes: &[u8]) -> bool {
    // What may be a batch: few places are, or reading each would take long.
    let mut places = bytes.windows(14).enumerate().filter(|(_, window)| {
        let number = window[5..13].try_into().map(u64::from_le_bytes);
        window[0] == START
            && matches!(window[13], ITEM | CLEAR)
            && number.is_ok_and(|number| number < NUMBERS)
    });
    places.any(|(at, _)| matches!(batch(&mut &bytes[at..]), Ok(Some(_))))
}

/// Reads `journal` from its beginning; the batch before it had the number `newest`.
///
/// # Errors
///
/// When it cannot be read.
pub(super) fn extent(mut journal: &File, newest: Option<u64>) -> io::Result<Extent> {
    journal.rewind()?;
    let mut input = BufReader::with_capacity(PORTION, journal);
    let mut extent = Extent {
        whole: 0,
        written: 0,
        newest,
    };
    while let Some(batch) = batch(&mut input)? {
        let follows = extent.newest.is_none_or(|newest| batch.number > newest);
        if !follows || batch.number >= NUMBERS {
            break;
        }
        extent.whole += batch.length;
        extent.newest = Some(batch.number);
    }
    extent.written = written(journal, extent.whole)?;
    Ok(extent)
}

/// The end of what is not zero behind `from`.
fn written(mut journal: &File, from: u64) -> io::Result<u64> {
    let (mut at, mut written) = (journal.seek(SeekFrom::Start(from))?, from);
    let (zeros, mut buffer) = (vec![0; PORTION], vec![0; PORTION]);
    loop {
        let read = match journal.read(&mut buffer) {
            Ok(0) => return Ok(written),
            Ok(read) => read,
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        // Most are zero.
        if buffer[..read] != zeros[..read]
            && let Some(last) = buffer[..read].iter().rposition(|byte| *byte != 0)
        {
            written = at + last as u64 + 1;
        }
        at += read as u64;
    }
}

struct Batch {
    number: u64,
    length: u64,
}

/// The next batch, if it is whole.
fn batch(input: &mut impl Read) -> io::Result<Option<Batch>> {
    let Some([START, header @ ..]) = take::<13>(input)? else {
        return Ok(None);
    };
    let [c0, c1, c2, c3, number @ ..] = header;
    let mut items = Items {
        input,
        hasher: Xxh3::new(),
        length: 0,
    };
    for _ in 0..u32::from_le_bytes([c0, c1, c2, c3]) {
        if !items.next()? {
            return Ok(None);
        }
    }
    let Items { hasher, length, .. } = items;
    let Some([END, footer @ ..]) = take::<13>(input)? else {
        return Ok(None);
    };
    let is_whole = footer[..8] == hasher.digest().to_le_bytes() && footer[8..] == TRAILER;
    Ok(is_whole.then_some(Batch {
        number: u64::from_le_bytes(number),
        length: 26 + length,
    }))
}

struct Items<'a, R> {
    input: &'a mut R,
    hasher: Xxh3,
    length: u64,
}

impl<R: Read> Items<'_, R> {
    /// Passes the next item, if there is one.
    fn next(&mut self) -> io::Result<bool> {
        match take::<1>(self.input)? {
            Some([ITEM]) => self.hasher.update(&[ITEM]),
            Some([CLEAR]) => {
                self.hasher.update(&[CLEAR]);
                self.length += 1;
                return self.pass(8);
            }
            _ => return Ok(false),
        }
        let Some(header) = take::<20>(self.input)? else {
            return Ok(false);
        };
        self.hasher.update(&header);
        self.length += 21;
        let [.., k0, k1, _, _, _, _, v0, v1, v2, v3] = header;
        let key = u16::from_le_bytes([k0, k1]);
        let value = u32::from_le_bytes([v0, v1, v2, v3]);
        self.pass(u64::from(key) + u64::from(value))
    }

    /// Passes that many bytes, if there are so many.
    fn pass(&mut self, count: u64) -> io::Result<bool> {
        let mut buffer = [0; 4_096];
        let mut left = count;
        while left > 0 {
            let portion = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
            let read = match self.input.read(&mut buffer[..portion]) {
                Ok(0) => return Ok(false),
                Ok(read) => read,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            self.hasher.update(&buffer[..read]);
            left -= read as u64;
        }
        self.length += count;
        Ok(true)
    }
}

/// The next `N` bytes, if there are so many.
fn take<const N: usize>(input: &mut impl Read) -> io::Result<Option<[u8; N]>> {
    let mut bytes = [0; N];
    match input.read_exact(&mut bytes) {
        Ok(()) => Ok(Some(bytes)),
        Err(error) if error.kind() == ErrorKind::UnexpectedEof => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt as _;
    use std::path::PathBuf;

    use fjall::{Database, KeyspaceCreateOptions, PersistMode};

    use super::*;

    /// A journal that the database has written, and where each of its batches ends.
    fn written_by_the_database(name: &str) -> (PathBuf, Vec<u64>) {
        let directory = std::env::temp_dir().join(format!("chitchat-journal-{name}-{}", std::process::id()));
        std::fs::remove_dir_all(&directory).ok();
        let db = Database::builder(&directory).worker_threads(1).open().unwrap();
        let [one, two] =
            ["one", "two"].map(|name| db.keyspace(name, KeyspaceCreateOptions::default).unwrap());
        let journal = directory.join("0.jnl");
        let mut ends = vec![0];
        for n in 0..6_u8 {
            let mut batch = db.batch().durability(Some(PersistMode::Buffer));
            batch.insert(&one, [n], vec![n; usize::from(n) * 7]);
            batch.insert(&two, [n, n], [255 - n]);
            // Stored compressed.
            batch.insert(&two, "large", vec![7; 6_000 * usize::from(n % 2)]);
            batch.remove(&one, [n.wrapping_sub(2)]);
            batch.commit().unwrap();
            ends.push(written(&File::open(&journal).unwrap(), ends[usize::from(n)]).unwrap());
        }
        (directory, ends)
    }

    #[test]
    fn whole_batches_are_what_the_database_has_written() {
        let (directory, ends) = written_by_the_database("whole");
        let journal = std::fs::OpenOptions::new()
            .read(true)
            .write(true)
            .open(directory.join("0.jnl"))
            .unwrap();
        let all = extent(&journal, None).unwrap();
        let end = *ends.last().unwrap();
        assert_eq!((all.whole, all.written), (end, end));
        assert!(all.newest.is_some());
        // Not where the numbers do not go on.
        assert_eq!(extent(&journal, all.newest).unwrap().whole, 0);
        for length in (0..=end).rev() {
            journal.set_len(length).unwrap();
            let whole = *ends.iter().rfind(|end| **end <= length).unwrap();
            assert_eq!(extent(&journal, None).unwrap().whole, whole, "cut at {length}");
        }
        std::fs::remove_dir_all(&directory).unwrap();
    }

    #[test]
    fn no_flipped_bit_passes_unless_it_makes_the_number_of_the_first_or_last_batch_another_that_fits() {
        let (directory, ends) = written_by_the_database("bits");
        let journal = std::fs::OpenOptions::new()
            .read(true)
            .write(true)
            .open(directory.join("0.jnl"))
            .unwrap();
        let (end, last) = (*ends.last().unwrap(), ends[ends.len() - 2]);
        journal.set_len(end).unwrap();
        let in_number = |at: u64| (5..13).contains(&at) || (last + 5..last + 13).contains(&at);
        for at in 0..end {
            let mut byte = [0];
            journal.read_exact_at(&mut byte, at).unwrap();
            for bit in 0..8 {
                journal.write_all_at(&[byte[0] ^ (1 << bit)], at).unwrap();
                let extent = extent(&journal, None).unwrap();
                assert!(ends.contains(&extent.whole), "bit {bit} of byte {at}");
                assert!(
                    extent.whole < end || in_number(at),
                    "bit {bit} of byte {at} makes no difference"
                );
            }
            journal.write_all_at(&byte, at).unwrap();
        }
        std::fs::remove_dir_all(&directory).unwrap();
    }
}
