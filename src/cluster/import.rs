//! Brings the rooms of a single server into an empty stream.
//!
//! The rooms become a checkpoint, and the stream is made to begin behind its position. So every replica needs that checkpoint or a later one: the
//! first has it, and the others get it from there as they get any other.

use std::collections::VecDeque;
use std::sync::Arc;

use super::checkpoint::{self, CheckpointError, CheckpointId};
use super::checkpoint_dir::CheckpointDir;
use super::fingerprint::Fingerprint;
use super::message::LogPosition;
use super::rules::FoldVersions;
use super::state_machine_snapshot::{ReplicatedRoom, ReplicatedRooms, StateMachineSnapshot};
use crate::domain::{RoomName, Rules, Sequence};
use crate::hub;
use crate::store::{Record, Store, StoreError};
use crate::wall_clock::wall_time;

/// The position of the checkpoint. The stream begins with placeholders up to here, which are then removed, so that a replica without
/// the checkpoint sees that something is missing.
pub(crate) const IMPORT_POSITION: LogPosition = LogPosition::new(2);

/// What the messages that nobody reads begin with: no version decodes it. Random bytes follow, by which the stream and the checkpoint belong together.
const MARK: u8 = 0;
const MARK_LEN: usize = 16;

/// How many names of rooms, and bytes of their logs, are read at a time.
const ROOMS: usize = 1_000;
const BYTES: usize = 1 << 20;

/// Why rooms cannot be imported.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ImportError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("cannot write the checkpoint: {0}")]
    Checkpoint(#[from] CheckpointError),
    #[error("the directory for the replica has a checkpoint; name an empty one")]
    NotEmpty,
}

/// The rooms that were imported.
#[derive(Debug)]
pub(crate) struct Imported {
    pub(crate) id: CheckpointId,
    pub(crate) rooms: usize,
    /// The message that the stream must have at the position of the checkpoint.
    pub(crate) mark: Vec<u8>,
}

/// Writes a checkpoint with the rooms of `store`, of whose logs it has the newest `max_bytes` each. Blocks.
///
/// Nobody is attached: whoever was in a room when the server stopped is lost, and leaves after the grace period.
pub(crate) fn import(
    store: &dyn Store,
    rules: Rules,
    max_bytes: u64,
    directory: &CheckpointDir,
) -> Result<Imported, ImportError> {
    if !directory.is_empty().map_err(CheckpointError::from)? {
        return Err(ImportError::NotEmpty);
    }
    let at = wall_time();
    let mut rooms = ReplicatedRooms::new();
    let mut after: Option<RoomName> = None;
    loop {
        let names = store.rooms(after.as_ref(), ROOMS);
        let Some(last) = names.last() else {
            break;
        };
        after = Some(last.clone());
        for name in names {
            let (epoch, room) = hub::recover_for_import(store, rules, &name, at)?;
            if room.last() > Sequence::ZERO {
                rooms.insert(name, Arc::new(ReplicatedRoom { epoch, room }));
            }
        }
    }
    let count = rooms.len();
    let state = StateMachineSnapshot {
        applied: IMPORT_POSITION,
        digest: 0,
        digests: vec![0; 2],
        // The first replica brings its own, and its version.
        rules: None,
        version: FoldVersions::supported().oldest,
        newest_epoch: rooms.values().map(|room| room.epoch).max(),
        incarnations: Vec::new(),
        attachments: Vec::new(),
        ends: Vec::new(),
    };
    let mut mark = vec![MARK];
    mark.extend(rand::random::<[u8; MARK_LEN]>());
    let fingerprint = Fingerprint::new(&mark, None);
    let mut new = directory.create().map_err(CheckpointError::from)?;
    let id = checkpoint::write(&mut new, state, fingerprint, rooms, |name, _, _| {
        newest_records(store, name, max_bytes).map_err(|error| std::io::Error::other(error).into())
    })?;
    directory.commit(new, id).map_err(CheckpointError::from)?;
    Ok(Imported {
        id,
        rooms: count,
        mark,
    })
}

/// The newest records of a room's log, of `max_bytes` at most; at least one.
fn newest_records(store: &dyn Store, room: &RoomName, max_bytes: u64) -> Result<Vec<Record>, StoreError> {
    let Some(log) = store.find(room) else {
        return Ok(Vec::new());
    };
    let (mut newest, mut bytes) = (VecDeque::<Record>::new(), 0);
    let mut after = Sequence::ZERO;
    loop {
        let records = store.records(log.id, after, BYTES)?;
        let Some(last) = records.last() else {
            return Ok(newest.into());
        };
        after = last.last();
        for record in records {
            bytes += record.frames.len() as u64;
            newest.push_back(record);
            while bytes > max_bytes
                && newest.len() > 1
                && let Some(oldest) = newest.pop_front()
            {
                bytes -= oldest.frames.len() as u64;
            }
        }
    }
}
