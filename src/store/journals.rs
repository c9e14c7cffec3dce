//! The journals of a database that is not open, and what is cut from their ends before it is opened.
//!
//! Why: a crash in the middle of a write leaves a part of it at the end, and a power cut leaves a part with holes. The
//! database (fjall 3.1) cuts the first without a word, with all that follows, which is wrong where the journal was damaged
//! later; and refuses the second, which was never acknowledged. So it is done here: what is not whole is set aside, and put
//! back when it turns out that what was acknowledged is missing without it.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use tracing::warn;

use super::StoreError;
use super::directory::{Directory, cannot_use};
use super::files::{entries, none_if_missing, sync_parent, write_atomically};
use super::journal::{extent, goes_on};

/// Where what is cut lies, in the data directory, until it is known that nobody needs it. A file's name is the journal's,
/// a dash, and where it was cut.
const ASIDE: &str = "cut";

/// What was cut from one journal.
struct Cut {
    journal: PathBuf,
    /// Where.
    at: u64,
    bytes: Vec<u8>,
}

impl Cut {
    /// Whether nothing was written where it was cut.
    fn is_last(&self) -> io::Result<bool> {
        Ok(fs::metadata(&self.journal)?.len() == self.at)
    }

    fn put_back(&self) -> io::Result<()> {
        if !self.is_last()? {
            return Ok(());
        }
        let file = OpenOptions::new().write(true).open(&self.journal)?;
        file.write_all_at(&self.bytes, self.at)?;
        file.sync_all()
    }
}

/// What was cut from the journals of a database.
pub(super) struct Cuts {
    aside: PathBuf,
    cuts: Vec<Cut>,
    /// Whether more was cut than a crash can have torn.
    is_loss: bool,
}

impl Cuts {
    /// Cuts what follows the whole batches in the journals of the database in `directory`, which is not open. First puts
    /// back what a start has cut that did not come to its end.
    ///
    /// # Errors
    ///
    /// When they cannot be read or written, or when what is not whole was not torn by a crash: another batch follows it, or
    /// another journal. Where `accept_loss` is set the latter is cut too, with all that follows. Where there is an error,
    /// nothing is cut.
    pub(super) fn make(directory: &Directory, accept_loss: bool) -> Result<Self, StoreError> {
        let mut cuts = Self {
            aside: directory.path().join(ASIDE),
            cuts: Vec::new(),
            is_loss: false,
        };
        let cannot = cannot_use(directory.path());
        cuts.put_back_aside(directory).map_err(&cannot)?;
        let journals = list(&directory.database()).map_err(&cannot)?;
        let cut = cuts.cut_all(directory, &journals, accept_loss);
        if cut.is_err() {
            cuts.undo();
        }
        cut.map(|()| cuts)
    }

    fn cut_all(
        &mut self,
        directory: &Directory,
        journals: &[PathBuf],
        accept_loss: bool,
    ) -> Result<(), StoreError> {
        let cannot = cannot_use(directory.path());
        let mut newest = None;
        for (index, journal) in journals.iter().enumerate() {
            let file = OpenOptions::new()
                .read(true)
                .write(true)
                .open(journal)
                .map_err(&cannot)?;
            let mut extent = extent(&file, newest).map_err(&cannot)?;
            // What follows something that is gone cannot stay.
            if !self.cuts.is_empty() {
                extent.whole = 0;
            }
            newest = extent.newest;
            if extent.written == extent.whole {
                continue;
            }
            let length = usize::try_from(extent.written - extent.whole).unwrap_or(usize::MAX);
            let mut bytes = vec![0; length];
            file.read_exact_at(&mut bytes, extent.whole).map_err(&cannot)?;
            let is_torn = index + 1 == journals.len() && !goes_on(&bytes);
            if !is_torn && !accept_loss {
                return Err(directory.unreadable(format!(
                    "the journal {} breaks off at byte {} and goes on behind it, which --accept-loss gives up",
                    journal.display(),
                    extent.whole
                )));
            }
            self.is_loss |= !is_torn;
            let cut = Cut {
                journal: journal.clone(),
                at: extent.whole,
                bytes,
            };
            self.set_aside(&cut);
            self.cuts.push(cut);
            file.set_len(extent.whole)
                .and_then(|()| file.sync_all())
                .map_err(&cannot)?;
        }
        Ok(())
    }

    /// Keeps what is cut where the next start finds it, should this one be interrupted.
    fn set_aside(&self, cut: &Cut) {
        let name = cut.journal.file_name().unwrap_or_default().display();
        let file = self.aside.join(format!("{name}-{}", cut.at));
        let kept = fs::create_dir_all(&self.aside).and_then(|()| write_atomically(&file, &cut.bytes));
        if let Err(error) = kept {
            // A full disk, most likely, which is why the write was torn. It is in memory all the same.
            let bytes = cut.bytes.len();
            warn!(event = "store_cut", bytes, %error, "what is cut from a journal cannot be set aside");
        }
    }

    /// Puts back what lies aside.
    fn put_back_aside(&mut self, directory: &Directory) -> io::Result<()> {
        for entry in entries(&self.aside)? {
            let path = entry?.path();
            let name = path
                .file_name()
                .and_then(|name| name.to_str())
                .unwrap_or_default();
            if let Some((journal, at)) = name.rsplit_once('-')
                && let Ok(at) = at.parse()
            {
                let journal = directory.database().join(journal);
                let bytes = fs::read(&path)?;
                self.cuts.push(Cut { journal, at, bytes });
            }
        }
        // Where a journal has gone on, the loss was accepted, and perhaps not all of the rooms know.
        self.is_loss = !self.cuts.iter().all(|cut| cut.is_last().unwrap_or(false));
        self.undo();
        self.cuts.clear();
        Ok(())
    }

    /// Whether more was cut than a crash can have torn.
    pub(super) const fn is_loss(&self) -> bool {
        self.is_loss
    }

    /// How many bytes were cut.
    pub(super) fn bytes(&self) -> u64 {
        self.cuts.iter().map(|cut| cut.bytes.len() as u64).sum()
    }

    /// Puts back what was cut, once the database is closed again.
    pub(super) fn undo(&self) {
        let undone = self.cuts.iter().map(Cut::put_back);
        // Each, even if one cannot.
        let undone = undone.fold(Ok(()), io::Result::and);
        if let Err(error) = undone.and_then(|()| self.forget()) {
            let bytes = self.bytes();
            warn!(event = "store_cut", bytes, %error, "what was cut from the journals cannot be put back");
        }
    }

    /// Forgets what was cut: nobody needs it.
    ///
    /// # Errors
    ///
    /// When it cannot be removed.
    pub(super) fn forget(&self) -> io::Result<()> {
        match none_if_missing(fs::remove_dir_all(&self.aside))? {
            Some(()) => sync_parent(&self.aside),
            None => Ok(()),
        }
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

/// The journals of the database at `path`, oldest first.
///
/// # Errors
///
/// When the directory cannot be read.
pub(super) fn list(path: &Path) -> io::Result<Vec<PathBuf>> {
    let mut journals = Vec::new();
    for entry in entries(path)? {
        let path = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str());
        let number = name.and_then(|name| name.strip_suffix(".jnl")?.parse::<u64>().ok());
        journals.extend(number.map(|number| (number, path)));
    }
    journals.sort_unstable();
    Ok(journals.into_iter().map(|(_, path)| path).collect())
}
