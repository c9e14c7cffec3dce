//! Detects a power cut after unsynced writes.
//!
//! With `--durability os` a power cut can lose the newest events together with the high watermarks that would reveal the
//! loss; sequence numbers that clients have already seen would then be reused. So such a store keeps a marker file with the
//! kernel's boot id for as long as it has unsynced writes, and removes it after the final sync. A marker with another boot id
//! means that events may be lost.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::files::{self, none_if_missing, sync_parent, write_atomically};

/// The marker file of one data directory.
pub(super) struct UnsyncedMarker(PathBuf);

impl UnsyncedMarker {
    pub(super) fn new(directory: &Path) -> Self {
        Self(directory.join("unsynced"))
    }

    /// Returns whether the system was rebooted while there were unsynced writes.
    pub(super) fn rebooted_since(&self) -> io::Result<bool> {
        Ok(files::read(&self.0)?.is_some_and(|marked| marked != boot_id()))
    }

    /// Marks that there are unsynced writes from now on.
    pub(super) fn create(&self) -> io::Result<()> {
        write_atomically(&self.0, &boot_id())
    }

    /// Marks that everything is synced. Does nothing if there is no marker.
    pub(super) fn remove(&self) -> io::Result<()> {
        match none_if_missing(fs::remove_file(&self.0))? {
            Some(()) => sync_parent(&self.0),
            None => Ok(()),
        }
    }
}

/// Returns the kernel's boot id. Empty on systems without one, where reboots are therefore not detected.
fn boot_id() -> Vec<u8> {
    fs::read("/proc/sys/kernel/random/boot_id").unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_marker_with_another_boot_id_means_a_reboot() {
        let directory = tempfile::tempdir().unwrap();
        let marker = UnsyncedMarker::new(directory.path());
        assert!(!marker.rebooted_since().unwrap());
        marker.create().unwrap();
        assert!(!marker.rebooted_since().unwrap());
        fs::write(&marker.0, "another").unwrap();
        assert!(marker.rebooted_since().unwrap());
        marker.remove().unwrap();
        marker.remove().unwrap();
        assert!(!marker.rebooted_since().unwrap());
    }
}
