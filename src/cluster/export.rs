//! Makes the data directory of a single server of the rooms of a cluster.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures_util::{StreamExt as _, TryStreamExt as _, stream};

use super::checkpoint::Checkpoint;
use crate::hub::RestoredRoom;
use crate::store::{
    Append, DiskOptions, DiskStore, Durability, NoObserver, Record, Retention, RoomStatus, Store as _,
    StoreError, encode_snapshot, none_if_missing, sync_parent,
};
use crate::wall_clock::wall_time;

/// Nothing is removed: the server does that, as it is told to.
const RETENTION: Retention = Retention {
    max_events: 1 << 50,
    max_bytes: 1 << 50,
    max_age: None,
    max_total_bytes: 1 << 50,
};

/// How many rooms are written at a time, so that they share the syncs.
const CONCURRENT_ROOMS: usize = 256;

/// How many bytes of events are written at a time.
const APPEND_BYTES: usize = 4 << 20;

/// Why rooms cannot be exported.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ExportError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("{path} is not empty; name a new directory")]
    NotEmpty { path: String },
    #[error("cannot use {path}: {error}")]
    Io { path: String, error: std::io::Error },
}

/// Writes the rooms of a checkpoint into a new data directory, with their epochs, sequences, clocks and bans. Returns how many there are. Blocks.
///
/// Whoever was in a room is lost for the server that starts with the directory, and leaves after the grace period.
pub(crate) async fn export(checkpoint: Checkpoint, path: &Path) -> Result<usize, ExportError> {
    let shown = || path.display().to_string();
    let entries =
        none_if_missing(fs::read_dir(path)).map_err(|error| ExportError::Io { path: shown(), error })?;
    if entries.is_some_and(|mut entries| entries.next().is_some()) {
        return Err(ExportError::NotEmpty { path: shown() });
    }
    let options = DiskOptions {
        durability: Durability::Sync,
        retention: RETENTION,
        max_rooms: usize::MAX,
        accept_loss: false,
    };
    // Under another name until it is complete: a server would begin with a part of it.
    let mut unfinished = path.as_os_str().to_owned();
    unfinished.push(".unfinished");
    let unfinished = PathBuf::from(unfinished);
    let failed = |error| ExportError::Io {
        path: unfinished.display().to_string(),
        error,
    };
    none_if_missing(fs::remove_dir_all(&unfinished)).map_err(failed)?;
    let store = DiskStore::open(&unfinished, options, Arc::new(NoObserver))?;
    let count = checkpoint.rooms.len();
    stream::iter(checkpoint.rooms)
        .map(|room| write(&store, room))
        .buffer_unordered(CONCURRENT_ROOMS)
        .try_collect::<()>()
        .await?;
    drop(store);
    fs::rename(&unfinished, path)
        .and_then(|()| sync_parent(path))
        .map_err(failed)?;
    Ok(count)
}

async fn write(store: &DiskStore, room: RestoredRoom) -> Result<(), StoreError> {
    let RestoredRoom {
        name,
        epoch,
        mut room,
        records,
    } = room;
    let status = RoomStatus {
        is_occupied: !room.participants().is_empty(),
        has_messages: room.has_messages(),
    };
    let snapshot = encode_snapshot(&room.take_snapshot());
    let first = records
        .first()
        .map_or(snapshot.last.next(), |oldest| oldest.first);
    let log = store.restore(&name, epoch, first, wall_time())?;
    let mut parts: Vec<Vec<Record>> = vec![Vec::new()];
    let mut bytes = 0;
    for record in records {
        if bytes > 0 && bytes + record.frames.len() > APPEND_BYTES {
            parts.push(Vec::new());
            bytes = 0;
        }
        bytes += record.frames.len();
        parts
            .last_mut()
            .into_iter()
            .for_each(|part| part.push(record.clone()));
    }
    // A log that ends after its snapshot is whole, and one that ends before has lost something: so the snapshot comes last.
    let mut snapshot = Some(snapshot);
    let last = parts.len().saturating_sub(1);
    for (n, records) in parts.into_iter().enumerate() {
        let snapshot = if n == last { snapshot.take() } else { None };
        let append = Append {
            records,
            snapshot,
            status,
        };
        store.append(log, append).await?;
    }
    Ok(())
}
