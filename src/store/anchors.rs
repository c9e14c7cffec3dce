//! The files that a store on disk writes to, and whether they are still where they were.

use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;

use super::StoreError;
use super::directory::Directory;

/// What is looked at: the rest lies in these, or is of no use without them.
const ANCHORS: [&str; 4] = ["LOCK", "heads", "db", "db/keyspaces"];

/// The files that a store on disk writes to, and whether they are still where they were. What is written after somebody
/// has removed or moved them is nowhere, or in another server's directory.
pub(super) struct Anchors(Vec<Anchor>);

struct Anchor {
    name: &'static str,
    path: PathBuf,
    /// Held open so that no other file gets its number.
    _file: File,
    /// Device and number.
    is: (u64, u64),
}

impl Anchors {
    /// Those of `directory`, whose database is open.
    ///
    /// # Errors
    ///
    /// When they cannot be opened.
    pub(super) fn of(directory: &Directory) -> io::Result<Self> {
        let anchor = |name| {
            let path = directory.path().join(name);
            let file = File::open(&path)?;
            let metadata = file.metadata()?;
            Ok(Anchor {
                name,
                path,
                _file: file,
                is: (metadata.dev(), metadata.ino()),
            })
        };
        ANCHORS
            .into_iter()
            .map(anchor)
            .collect::<io::Result<_>>()
            .map(Self)
    }

    /// Makes sure that `directory` is where it was.
    ///
    /// # Errors
    ///
    /// When it is not.
    pub(super) fn check(&self, directory: &Directory) -> Result<(), StoreError> {
        for Anchor { name, path, is, .. } in &self.0 {
            let gone = match fs::metadata(path) {
                Ok(found) if (found.dev(), found.ino()) == *is => continue,
                Ok(_) => format!("{name} was replaced while the server had it"),
                Err(error) if error.kind() == ErrorKind::NotFound => {
                    format!("{name} was removed or moved while the server had it")
                }
                Err(error) => error.to_string(),
            };
            return Err(directory.cannot_use(&gone));
        }
        Ok(())
    }
}
