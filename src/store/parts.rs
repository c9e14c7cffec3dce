//! Whether the files that a database cannot do without are there, seen before it is opened.
//!
//! Why: where one is missing the database (fjall 3.1) takes it for the remains of a beginning that was interrupted, begins
//! anew, and removes what the missing file stood for.

use std::fs::{self, OpenOptions};
use std::io::{self, ErrorKind};
use std::path::Path;

use super::journals;

/// How many keyspaces there are: ours, and the database's own.
const KEYSPACES: usize = 4;

/// What is missing in the database at `path`, relative to it. Where nothing was ever acknowledged (`has_events` is false),
/// a beginning that was interrupted is removed, and nothing is missing.
///
/// # Errors
///
/// When it cannot be looked at.
pub(super) fn missing(path: &Path, has_events: bool) -> io::Result<Option<String>> {
    if !path.try_exists()? {
        return Ok(has_events.then(|| "all of it".into()));
    }
    let keyspaces = path.join("keyspaces");
    if !path.join("version").try_exists()? {
        let is_beginning = !has_events && is_empty(&keyspaces)? && journals::are_unused(path)?;
        if is_beginning {
            fs::remove_dir_all(path)?;
            return Ok(None);
        }
        return Ok(Some("its file `version`".into()));
    }
    // Nothing is in it, and the directory has a lock of its own.
    OpenOptions::new()
        .create(true)
        .append(true)
        .open(path.join("lock"))?;
    if !has_events {
        return Ok(None);
    }
    let mut count = 0;
    for entry in read(&keyspaces)? {
        let entry = entry?;
        if !entry.file_type()?.is_dir() {
            continue;
        }
        if !entry.path().join("current").try_exists()? {
            let name = entry.file_name();
            return Ok(Some(format!("its file `keyspaces/{}/current`", name.display())));
        }
        count += 1;
    }
    Ok((count < KEYSPACES).then(|| "a directory in `keyspaces`".into()))
}

fn is_empty(path: &Path) -> io::Result<bool> {
    Ok(read(path)?.next().is_none())
}

/// The entries of a directory; none where there is no directory.
fn read(path: &Path) -> io::Result<impl Iterator<Item = io::Result<fs::DirEntry>>> {
    match fs::read_dir(path) {
        Ok(entries) => Ok(Some(entries).into_iter().flatten()),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None.into_iter().flatten()),
        Err(error) => Err(error),
    }
}
