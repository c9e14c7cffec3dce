//! Whether the machine has lost its power since a store last wrote without waiting for the disk.
//!
//! Why: with `--durability os` a power cut may take the newest events, and the notes of how far the logs had come with them.
//! Nobody would know, and the next events would have places that others have had. So such a store leaves a mark with the
//! number that the system gives to each of its starts, and removes it when it has synced everything at its end.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::files::{self, if_there, sync_parent, write_durably};

/// The mark of a store that has not synced what it wrote.
const MARK: &str = "unsynced";

/// The mark in one directory.
pub(super) struct Mark(PathBuf);

impl Mark {
    pub(super) fn of(directory: &Path) -> Self {
        Self(directory.join(MARK))
    }

    /// Whether what was written last may not be on the disk: the system was started anew since.
    ///
    /// # Errors
    ///
    /// When the mark cannot be read.
    pub(super) fn was_cut(&self) -> io::Result<bool> {
        Ok(files::read(&self.0)?.is_some_and(|boot| boot != this_boot()))
    }

    /// From here on what is written may not be on the disk.
    ///
    /// # Errors
    ///
    /// When the mark cannot be written.
    pub(super) fn make(&self) -> io::Result<()> {
        write_durably(&self.0, &this_boot())
    }

    /// All that was written is on the disk.
    ///
    /// # Errors
    ///
    /// When the mark cannot be removed.
    pub(super) fn remove(&self) -> io::Result<()> {
        match if_there(fs::remove_file(&self.0))? {
            Some(()) => sync_parent(&self.0),
            None => Ok(()),
        }
    }
}

/// What the system calls the time since it was started; always the same where it does not say.
fn this_boot() -> Vec<u8> {
    fs::read("/proc/sys/kernel/random/boot_id").unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_of_another_boot_tells_of_a_cut() {
        let directory = std::env::temp_dir().join(format!("chitchat-boot-{}", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
        let mark = Mark::of(&directory);
        assert!(!mark.was_cut().unwrap());
        mark.make().unwrap();
        assert!(!mark.was_cut().unwrap());
        fs::write(directory.join(MARK), "another").unwrap();
        assert!(mark.was_cut().unwrap());
        mark.remove().unwrap();
        mark.remove().unwrap();
        assert!(!mark.was_cut().unwrap());
        fs::remove_dir_all(&directory).unwrap();
    }
}
