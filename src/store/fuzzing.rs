//! Fuzz targets: what is read from the data directory.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::Arc;

use bytes::{BufMut as _, Bytes, BytesMut};

use super::entry::{self, Entries};
use super::{
    Append, DiskOptions, DiskStore, Durability, LogId, NoObserver, Record, Retention, RoomStatus, Store as _,
    StoreError, decode_snapshot, encode_snapshot, frames,
};
use crate::domain::{LamportTime, RoomName, Sequence, Snapshot, WallTime};

/// The entries of a segment, and what is in them.
pub(crate) fn entries(bytes: &[u8]) {
    let bytes = Bytes::copy_from_slice(bytes);
    decode_snapshot(&bytes).ok();
    let record = Record::decode(Sequence::new(1), 1, WallTime::default(), bytes.clone());
    if let Ok(record) = record {
        let len: usize = frames(record.frames.clone()).map(|frame| frame.len()).sum();
        assert!(len <= record.frames.len());
    }
    // With a valid checksum of the first entry, so that it is read.
    let mut valid = BytesMut::from(&bytes[..]);
    if let Some(rest) = valid.get(4..) {
        let len = valid.get(4..8).and_then(|len| len.try_into().ok());
        let len = len
            .map_or(0, |len| u32::from_be_bytes(len) as usize)
            .saturating_sub(4);
        let checksum = crc32c::crc32c(&1_u32.to_be_bytes());
        let checksum = crc32c::crc32c_append(checksum, rest.get(..len).unwrap_or_default());
        valid[..4].copy_from_slice(&checksum.to_be_bytes());
    }
    for bytes in [bytes, valid.freeze()] {
        let len = bytes.len();
        let mut entries = Entries::new(1, bytes, 0);
        while let Some((offset, entry)) = entries.next().or_else(|| {
            entries.resynchronize()?;
            entries.next()
        }) {
            assert!((offset + entry.len()) as usize <= len);
            let mut again = BytesMut::new();
            entry::encode(&mut again, 1, entry.write_start, entry.header, &[&entry.body]);
            let again = entry::decode(1, &again.freeze()).map(|again| again.header);
            assert_eq!(again, Some(entry.header));
        }
    }
}

/// A store that some appends were made to, and of which some bytes are lost then: the first half of the input says what is
/// appended, the second half what is lost. Either everything is there, or the open fails; with accepted loss it succeeds, and
/// what is left can be read and continued.
pub(crate) fn damage(bytes: &[u8]) {
    let (appends, faults) = bytes.split_at(bytes.len() / 2);
    let parent = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir());
    let Ok(parent) = parent else { return };
    let path = parent.path().join("data");
    fill(&path, appends.get(..24).unwrap_or(appends));
    for fault in faults.chunks_exact(5).take(4) {
        break_file(&path, fault);
    }
    match open(&path, false) {
        Ok(store) => {
            // Damage in sealed segments may be found only when it is read.
            verify(&store).ok();
        }
        Err(error) => assert!(error.is_damage(), "{error}"),
    }
    let store = open(&path, true).expect("loss is accepted");
    let logs = verify(&store).expect("nothing is damaged any more");
    for (log, last) in logs {
        wait(store.append(log, append(last.next(), 10, true))).expect("a log can be continued");
    }
    drop(store);
    verify(&open(&path, false).expect("nothing is damaged")).expect("nothing is damaged");
}

fn open(path: &Path, accept_loss: bool) -> Result<DiskStore, StoreError> {
    let options = DiskOptions {
        durability: Durability::Os,
        retention: Retention {
            max_events: 20,
            max_total_bytes: 1 << 20,
            ..Retention::ON_DISK
        },
        max_rooms: 8,
        accept_loss,
    };
    DiskStore::open(path, options, Arc::new(NoObserver))
}

fn wait<T>(future: impl Future<Output = T>) -> T {
    // Nothing of the store needs a runtime, only its queue's wakers.
    let runtime = tokio::runtime::Builder::new_current_thread().build();
    runtime.expect("a runtime").block_on(future)
}

fn append(first: Sequence, len: usize, has_snapshot: bool) -> Append {
    let mut frames = BytesMut::new();
    frames.put_u8(0);
    frames.put_u32(u32::try_from(len).expect("a small length"));
    frames.put_bytes(b'x', len);
    let snapshot = Snapshot {
        time: LamportTime::default(),
        last: first,
        next_id: 1,
        has_messages: true,
        participants: Vec::new(),
        recovery_time: LamportTime::default(),
        bans: Vec::new(),
        is_closed: false,
    };
    Append {
        records: vec![Record {
            first,
            events: 1,
            at: WallTime::from_millis(1_700_000_000_000),
            resumable: Vec::new(),
            frames: frames.freeze(),
        }],
        snapshot: has_snapshot.then(|| encode_snapshot(&snapshot)),
        status: RoomStatus {
            is_occupied: false,
            has_messages: true,
        },
    }
}

/// Appends to the store at `path` what `plan` says, one append or deletion of a log per byte.
fn fill(path: &Path, plan: &[u8]) {
    let store = open(path, false).expect("a new store");
    for step in plan {
        let room = RoomName::try_from(["tea", "milk", "rum"][usize::from(step & 3).min(2)]);
        let log = store.open(&room.expect("a valid name"), WallTime::default());
        let log = log.expect("there are few rooms").id;
        let last = store.bounds(log).expect("the log exists").last;
        let len = if step & 4 == 0 { 10 } else { 300_000 };
        if step & 0xf0 == 0xf0 {
            wait(store.delete_log(log)).expect("a log can be deleted");
        } else {
            wait(store.append(log, append(last.next(), len, step & 8 == 0))).expect("an append succeeds");
        }
    }
}

/// Damages one of the files of the journal, as the five bytes of `fault` say.
fn break_file(path: &Path, fault: &[u8]) {
    let [kind, file, a, b, c] = *fault else { return };
    let log = path.join("log");
    let numbers = super::directory::segment_numbers(&log).unwrap_or_default();
    let Some(number) = numbers.get(usize::from(file) % numbers.len().max(1)) else {
        return;
    };
    let segment = super::directory::segment_path(&log, *number);
    let at = u64::from_be_bytes([0, 0, 0, 0, 0, a, b, c]);
    let file = OpenOptions::new().read(true).write(true).open(&segment);
    let Ok(file) = file else { return };
    let len = file.metadata().map_or(0, |metadata| metadata.len());
    let at = at % len.max(1);
    let done = match kind % 5 {
        0 => file.set_len(at),
        1 => fs::remove_file(&segment),
        2 => file.write_all_at(&[0; 64], at),
        // Within the first entries and the header.
        3 => file.write_all_at(&[c], at % 1_024),
        _ => file.write_all_at(&[b], len.saturating_sub(1 + at % 1_024)),
    };
    done.expect("a file can be changed");
}

/// Reads everything. Returns the logs and their newest events.
fn verify(store: &DiskStore) -> Result<Vec<(LogId, Sequence)>, StoreError> {
    let mut logs = Vec::new();
    for room in store.rooms(None, 9) {
        let log = store.find(&room).expect("the room was listed").id;
        let bounds = store.bounds(log)?;
        let mut last = bounds.first.previous();
        loop {
            let records = store.records(log, last, 1 << 16)?;
            let Some(newest) = records.last() else { break };
            for record in &records {
                assert_eq!(record.first, last.next());
                last = record.last();
            }
            assert_eq!(newest.last(), last);
        }
        assert_eq!(last, bounds.last);
        if let Some(snapshot) = store.snapshot(log)? {
            decode_snapshot(&snapshot)?;
        }
        logs.push((log, bounds.last));
    }
    Ok(logs)
}
