//! The journals of a database that is not open, and what is cut from their ends before it is opened.
//!
//! Why: a crash in the middle of a write leaves a part of it at the end, and a power cut leaves a part with holes. The
//! database (fjall 3.1) cuts the first without a word, with all that follows, which is wrong where the journal was damaged
//! later; and refuses the second, which was never acknowledged. So it is done here: what is not whole is cut, and put back
//! when it turns out that what was acknowledged is missing without it.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use super::journal::extent;

/// What was cut from one journal.
struct Cut {
    journal: PathBuf,
    /// Where.
    at: u64,
    bytes: Vec<u8>,
}

/// What was cut from the journals of a database.
pub(super) struct Cuts(Vec<Cut>);

impl Cuts {
    /// Cuts what follows the whole batches in the journals of the database at `path`, which is not open.
    ///
    /// # Errors
    ///
    /// When they cannot be read or written. Then nothing is cut.
    pub(super) fn make(path: &Path) -> io::Result<Self> {
        let mut cuts = Self(Vec::new());
        match cuts.cut_all(path) {
            Ok(()) => Ok(cuts),
            Err(error) => {
                // The first failure says more.
                cuts.undo().ok();
                Err(error)
            }
        }
    }

    fn cut_all(&mut self, path: &Path) -> io::Result<()> {
        let mut newest = None;
        for journal in list(path)? {
            let file = OpenOptions::new().read(true).write(true).open(&journal)?;
            let extent = extent(&file, newest)?;
            newest = extent.newest;
            if extent.written > extent.whole {
                let length = usize::try_from(extent.written - extent.whole).unwrap_or(usize::MAX);
                let mut bytes = vec![0; length];
                file.read_exact_at(&mut bytes, extent.whole)?;
                file.set_len(extent.whole)?;
                self.0.push(Cut {
                    journal,
                    at: extent.whole,
                    bytes,
                });
                file.sync_all()?;
            }
        }
        Ok(())
    }

    /// How many bytes were cut.
    pub(super) fn bytes(&self) -> u64 {
        self.0.iter().map(|cut| cut.bytes.len() as u64).sum()
    }

    /// Puts back what was cut, once the database is closed again.
    ///
    /// # Errors
    ///
    /// When it cannot be written.
    pub(super) fn undo(&self) -> io::Result<()> {
        for Cut { journal, at, bytes } in &self.0 {
            let file = OpenOptions::new().write(true).open(journal)?;
            file.write_all_at(bytes, *at)?;
            file.sync_all()?;
        }
        Ok(())
    }
}

/// Whether nothing was ever written to a journal of the database at `path`.
///
/// # Errors
///
/// When they cannot be read.
pub(super) fn are_unused(path: &Path) -> io::Result<bool> {
    for journal in list(path)? {
        if extent(&File::open(journal)?, None)?.written > 0 {
            return Ok(false);
        }
    }
    Ok(true)
}

/// The journals, oldest first.
fn list(path: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(path) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut journals = Vec::new();
    for entry in entries {
        let path = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str());
        let number = name.and_then(|name| name.strip_suffix(".jnl")?.parse::<u64>().ok());
        journals.extend(number.map(|number| (number, path)));
    }
    journals.sort_unstable();
    Ok(journals.into_iter().map(|(_, path)| path).collect())
}
