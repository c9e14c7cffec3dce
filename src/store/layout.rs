//! How keys and entries look in the database.

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::{LogId, StoreError};
use crate::domain::{Epoch, Sequence};

/// A record's key: the log, then the place of its first event, so that a log is a range.
pub(super) fn record_key(log: LogId, first: Sequence) -> [u8; 12] {
    let mut key = [0; 12];
    key[..4].copy_from_slice(&log.0.to_be_bytes());
    key[4..].copy_from_slice(&first.get().to_be_bytes());
    key
}

/// The place of the first event of the record with this key.
pub(super) fn record_place(key: &[u8]) -> Result<Sequence, StoreError> {
    let place = key
        .get(4..12)
        .and_then(|place| place.try_into().ok())
        .map(u64::from_be_bytes);
    place.map(Sequence::new).ok_or(StoreError::Record {
        sequence: Sequence::ZERO,
        why: "its key is none",
    })
}

/// The key, beside a log's snapshot, under which the place of the first event is that is kept.
pub(super) fn first_key(log: LogId) -> [u8; 5] {
    let mut key = *b"\0\0\0\0f";
    key[..4].copy_from_slice(&log.0.to_be_bytes());
    key
}

/// What stands under [`first_key`].
pub(super) fn decode_first(value: &[u8]) -> Result<Sequence, StoreError> {
    let first = value.try_into().map(u64::from_be_bytes).map(Sequence::new);
    first.map_err(|_| StoreError::Record {
        sequence: Sequence::ZERO,
        why: "where its log begins is damaged",
    })
}

/// The log that a record's or a snapshot's key begins with.
pub(super) fn log_of(key: &[u8]) -> Result<LogId, StoreError> {
    let log = key.first_chunk().copied().map(u32::from_be_bytes);
    log.map(LogId).ok_or(StoreError::Record {
        sequence: Sequence::ZERO,
        why: "its key is none",
    })
}

/// A room's entry: its log and the log's epoch.
pub(super) fn encode_entry(log: LogId, epoch: Epoch) -> Bytes {
    let mut bytes = BytesMut::with_capacity(12);
    bytes.put_u32(log.0);
    bytes.put_u64(epoch.get());
    bytes.freeze()
}

/// What [`encode_entry`] wrote.
pub(super) fn decode_entry(mut bytes: &[u8]) -> Result<(LogId, Epoch), StoreError> {
    let damaged = StoreError::Record {
        sequence: Sequence::ZERO,
        why: "a room's entry is damaged",
    };
    if bytes.len() != 12 {
        return Err(damaged);
    }
    let log = LogId(bytes.get_u32());
    Epoch::from_wire(bytes.get_u64())
        .map(|epoch| (log, epoch))
        .ok_or(damaged)
}
