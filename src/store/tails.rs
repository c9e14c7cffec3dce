//! The ends of the database's journals. A crash in the middle of a write leaves a part of it there, which the database
//! (fjall 3.1) cuts without a word.

use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

/// How much of a journal is looked at at once.
const PORTION: usize = 64 * 1024;

/// How far each journal is written. The zeros at its end are not: they are allotted ahead.
pub(super) struct Tails(Vec<(PathBuf, u64)>);

impl Tails {
    /// Looks at the journals of the database at `path`, which is not open.
    ///
    /// # Errors
    ///
    /// When they cannot be read.
    pub(super) fn read(path: &Path) -> io::Result<Self> {
        let entries = match fs::read_dir(path) {
            Ok(entries) => entries,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Self(Vec::new())),
            Err(error) => return Err(error),
        };
        let mut tails = Vec::new();
        for entry in entries {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == "jnl") {
                let written = written(&File::open(&path)?)?;
                tails.push((path, written));
            }
        }
        Ok(Self(tails))
    }

    /// How many bytes were cut since.
    ///
    /// # Errors
    ///
    /// When the journals cannot be looked at.
    pub(super) fn cut(&self) -> io::Result<u64> {
        let mut cut = 0;
        for (path, written) in &self.0 {
            match fs::metadata(path) {
                Ok(journal) => cut += written.saturating_sub(journal.len()),
                // What it had is in the tables now.
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        Ok(cut)
    }
}

/// Up to where `file` is not zero.
fn written(file: &File) -> io::Result<u64> {
    let portion = PORTION as u64;
    let (zeros, mut buffer) = (vec![0; PORTION], vec![0; PORTION]);
    // From the end, where most are zero.
    for begin in (0..file.metadata()?.len().div_ceil(portion))
        .rev()
        .map(|n| n * portion)
    {
        let read = read_at(file, &mut buffer, begin)?;
        if buffer[..read] != zeros[..read]
            && let Some(last) = buffer[..read].iter().rposition(|byte| *byte != 0)
        {
            return Ok(begin + last as u64 + 1);
        }
    }
    Ok(0)
}

/// Reads as much as there is, up to the buffer's length.
fn read_at(file: &File, buffer: &mut [u8], begin: u64) -> io::Result<usize> {
    let mut read = 0;
    while read < buffer.len() {
        match file.read_at(&mut buffer[read..], begin + read as u64)? {
            0 => break,
            more => read += more,
        }
    }
    Ok(read)
}
