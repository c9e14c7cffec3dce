//! What is done with the files of segments, for tests of the order.

use std::path::{Path, PathBuf};

use parking_lot::Mutex;

/// Those of all tests of the process, in order, with the segments' paths.
static OPERATIONS: Mutex<Vec<(PathBuf, Operation)>> = Mutex::new(Vec::new());

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Operation {
    /// The first offset, and the one after the last.
    Write(u32, u32),
    Sync,
    /// A replacement gets into its place.
    Replace,
}

impl Operation {
    /// Notes an operation on the segment at `path`.
    pub(super) fn note(self, path: &Path) {
        OPERATIONS.lock().push((path.into(), self));
    }

    /// Removes and returns the operations on the segments in a directory, with their numbers.
    pub(super) fn take(directory: &Path) -> Vec<(u32, Self)> {
        let mut operations = OPERATIONS.lock();
        let taken = operations.extract_if(.., |(path, _)| path.parent() == Some(directory));
        let number = |path: &Path| path.file_stem()?.to_str()?.parse().ok();
        taken
            .filter_map(|(path, operation)| Some((number(&path)?, operation)))
            .collect()
    }
}
