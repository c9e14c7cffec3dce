//! Whether the files that a database cannot do without are there, seen before it is opened.
//!
//! Why: where one is missing the database (fjall 3.1) takes it for the remains of a beginning that was interrupted, begins
//! anew, and removes what the missing file stood for; and of a keyspace whose `current` names another version than the
//! newest it removes the tables that are newer.

use std::fs::{self, OpenOptions};
use std::io;
use std::path::Path;

use xxhash_rust::xxh3::xxh3_128;

use super::StoreError;
use super::directory::{Directory, cannot_use};
use super::files::{entries, read};
use super::journals;

/// How many keyspaces there are: ours, and the database's own.
const KEYSPACES: usize = 4;

/// What the file `version` has.
const VERSION_LEN: usize = 4;

/// Makes sure that the database in `directory`, which is not open, has all its parts. Where nothing was ever acknowledged
/// (`has_events` is false), a beginning that was interrupted is removed.
///
/// # Errors
///
/// When a part is missing or damaged, or cannot be looked at.
pub(super) fn check(directory: &Directory, has_events: bool) -> Result<(), StoreError> {
    match wrong(&directory.database(), has_events) {
        Ok(None) => Ok(()),
        Ok(Some(wrong)) => Err(directory.unreadable(wrong)),
        Err(error) => Err(cannot_use(directory.path())(error)),
    }
}

fn wrong(database: &Path, has_events: bool) -> io::Result<Option<String>> {
    if !database.try_exists()? {
        return Ok(has_events.then(|| "it is missing".into()));
    }
    let keyspaces = database.join("keyspaces");
    let version = read(&database.join("version"))?.unwrap_or_default();
    if version.len() < VERSION_LEN {
        let is_beginning = !has_events && is_empty(&keyspaces)? && journals::are_unused(database)?;
        if is_beginning {
            fs::remove_dir_all(database)?;
            return Ok(None);
        }
        return Ok(Some("its file `version` is missing".into()));
    }
    if journals::list(database)?.is_empty() {
        return Ok(Some("its journal is missing".into()));
    }
    // Nothing is in it, and the directory has a lock of its own.
    OpenOptions::new()
        .create(true)
        .append(true)
        .open(database.join("lock"))?;
    let mut count = 0;
    for entry in entries(&keyspaces)? {
        let entry = entry?;
        if !entry.file_type()?.is_dir() {
            continue;
        }
        let state = match current(&entry.path())? {
            Current::Right => {
                count += 1;
                continue;
            }
            // The database removes what it had begun to make, when there was nothing to keep.
            Current::Missing if !has_events => continue,
            Current::Missing => "missing",
            Current::Wrong => "not that of its newest version",
        };
        let name = entry.file_name();
        return Ok(Some(format!(
            "its file `keyspaces/{}/current` is {state}",
            name.display()
        )));
    }
    let is_part = has_events && count < KEYSPACES;
    Ok(is_part.then(|| "a directory in `keyspaces` is missing".into()))
}

enum Current {
    Right,
    Missing,
    Wrong,
}

/// Whether the file `current` of a keyspace fits the version that it names. It has (lsm-tree 3.1; integers are
/// little-endian) the version's number (u64), the XXH3 of its file (u128), and the kind of checksum, 0.
fn current(keyspace: &Path) -> io::Result<Current> {
    let Some(current) = read(&keyspace.join("current"))? else {
        return Ok(Current::Missing);
    };
    let Ok::<[u8; 25], _>([number @ .., _]) = current.try_into() else {
        return Ok(Current::Wrong);
    };
    let (number, checksum) = number.split_at(8);
    let number = number.try_into().map(u64::from_le_bytes).unwrap_or_default();
    let version = read(&keyspace.join(format!("v{number}")))?;
    let is_right = version.is_some_and(|version| xxh3_128(&version).to_le_bytes() == *checksum);
    Ok(if is_right { Current::Right } else { Current::Wrong })
}

fn is_empty(path: &Path) -> io::Result<bool> {
    Ok(entries(path)?.next().is_none())
}
