//! Tests of both stores: they return what was appended, and the store on disk does so after a restart too.

use std::fs::{self, OpenOptions};
use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use tempfile::TempDir;

use super::super::{MemoryStore, encode_snapshot, read_page};
use super::*;
use crate::domain::{LamportTime, Snapshot};

/// A data directory, which is removed after the test.
pub(super) struct DataDir {
    pub(super) path: PathBuf,
    _parent: TempDir,
}

impl DataDir {
    pub(super) fn new() -> Self {
        let parent = tempfile::tempdir().unwrap();
        Self {
            path: parent.path().join("data"),
            _parent: parent,
        }
    }

    pub(super) fn open(&self) -> DiskStore {
        open(&self.path, OPTIONS).unwrap()
    }

    pub(super) fn open_with(&self, retention: Retention) -> DiskStore {
        let options = DiskOptions { retention, ..OPTIONS };
        open(&self.path, options).unwrap()
    }

    pub(super) fn open_accepting_loss(&self) -> DiskStore {
        let options = DiskOptions {
            accept_loss: true,
            ..OPTIONS
        };
        open(&self.path, options).unwrap()
    }

    pub(super) fn open_error(&self) -> StoreError {
        open(&self.path, OPTIONS).map(drop).unwrap_err()
    }
}

pub(super) const OPTIONS: DiskOptions = DiskOptions {
    durability: Durability::Sync,
    retention: Retention::ON_DISK,
    max_rooms: 4,
    accept_loss: false,
};

pub(super) fn open(path: &Path, options: DiskOptions) -> Result<DiskStore, StoreError> {
    DiskStore::open(path, options, Arc::new(|_| {}))
}

/// Asserts that the message of `error` contains `expected`.
pub(super) fn assert_says(error: &StoreError, expected: &str) {
    assert!(error.to_string().contains(expected), "{error}");
}

pub(super) fn open_tea(store: &DiskStore) -> LogId {
    store.open(&room("tea"), WallTime::from_millis(7)).unwrap().id
}

pub(super) fn room(name: &str) -> RoomName {
    RoomName::try_from(name).unwrap()
}

/// Returns a record of events whose payload is their sequence.
pub(super) fn record(first: u64, events: u32) -> Record {
    let frames: Vec<u8> = (0..events)
        .flat_map(|i| {
            let sequence = (first + u64::from(i)).to_be_bytes();
            [&[0, 0, 0, 0, 8], sequence.as_slice()].concat()
        })
        .collect();
    Record {
        first: Sequence::new(first),
        events,
        resumable: Vec::new(),
        frames: frames.into(),
    }
}

pub(super) fn snapshot(last: u64) -> Bytes {
    encode_snapshot(&Snapshot {
        time: LamportTime::default(),
        last: Sequence::new(last),
        next_id: 1,
        participants: Vec::new(),
        has_messages: false,
        recovery_time: LamportTime::default(),
    })
}

pub(super) async fn append(store: &dyn Store, log: LogId, records: Vec<Record>, snapshot: Option<Bytes>) {
    store.append(log, Append { records, snapshot }).await.unwrap();
}

pub(super) fn sequences(store: &dyn Store, log: LogId, after: u64) -> Vec<u64> {
    let page = read_page(
        store,
        log,
        Sequence::new(after),
        Sequence::new(u64::MAX),
        usize::MAX,
    )
    .unwrap();
    super::super::frames(page.bytes)
        .map(|frame| u64::from_be_bytes(frame[5..].try_into().unwrap()))
        .collect()
}

#[tokio::test]
async fn both_stores_return_the_same_events() {
    let data = DataDir::new();
    let disk = data.open();
    let memory = MemoryStore::new(Retention::ON_DISK, 4);
    for store in [&disk as &dyn Store, &memory] {
        let tea = store.open(&room("tea"), WallTime::from_millis(7)).unwrap();
        let milk = store.open(&room("milk"), WallTime::from_millis(8)).unwrap();
        assert_eq!(store.bounds(tea.id).unwrap(), Bounds::EMPTY);
        append(store, tea.id, vec![record(1, 2), record(3, 1)], None).await;
        append(store, milk.id, vec![record(1, 1)], None).await;
        append(store, tea.id, vec![record(4, 3)], None).await;
        assert_eq!(store.rooms().unwrap(), [room("milk"), room("tea")]);
        assert_eq!(
            store.open(&room("tea"), WallTime::from_millis(99)).unwrap().epoch,
            tea.epoch
        );
        assert_eq!(
            store.bounds(tea.id).unwrap(),
            Bounds {
                first: Sequence::new(1),
                last: Sequence::new(6)
            }
        );
        assert_eq!(sequences(store, tea.id, 0), [1, 2, 3, 4, 5, 6]);
        assert_eq!(sequences(store, tea.id, 4), [5, 6]);
        assert_eq!(sequences(store, milk.id, 0), [1]);
        assert!(sequences(store, tea.id, 6).is_empty());
        for more in ["a", "b"] {
            store.open(&room(more), WallTime::default()).unwrap();
        }
        assert_eq!(
            store.open(&room("c"), WallTime::default()).map(drop),
            Err(StoreError::TooManyRooms(4))
        );
        assert!(store.find(&room("c")).unwrap().is_none());
    }
}

#[tokio::test]
async fn appended_events_survive_a_restart() {
    let data = DataDir::new();
    let store = data.open();
    let secret = store.secret();
    let log = store.open(&room("tea"), WallTime::from_millis(7)).unwrap();
    append(&store, log.id, vec![record(1, 5)], Some(snapshot(5))).await;
    drop(store);
    let store = data.open();
    assert_eq!(store.secret(), secret);
    let found = store.find(&room("tea")).unwrap().unwrap();
    assert_eq!(
        (found.id, found.epoch, found.snapshot),
        (log.id, log.epoch, Some(snapshot(5)))
    );
    assert_eq!(sequences(&store, log.id, 0), [1, 2, 3, 4, 5]);
    // The id of the log is not reused.
    assert_ne!(
        store.open(&room("milk"), WallTime::from_millis(9)).unwrap().id,
        log.id
    );
}

#[tokio::test]
async fn retention_removes_the_oldest_records_that_a_snapshot_covers() {
    let data = DataDir::new();
    let retention = Retention {
        max_events: 32,
        ..Retention::ON_DISK
    };
    let store = data.open_with(retention);
    let log = store.open(&room("tea"), WallTime::default()).unwrap();
    for n in 0..100 {
        append(
            &store,
            log.id,
            vec![record(n + 1, 1)],
            (n == 69).then(|| snapshot(70)),
        )
        .await;
    }
    let bounds = store.bounds(log.id).unwrap();
    assert_eq!(bounds.last.get(), 100);
    assert!((65..=69).contains(&bounds.first.get()), "{bounds:?}");
    assert_eq!(
        sequences(&store, log.id, bounds.first.get() - 1).len() as u64,
        101 - bounds.first.get()
    );
    assert!(
        sequences(&store, log.id, 3).is_empty(),
        "removed events are not skipped"
    );
}

#[tokio::test]
async fn the_largest_log_is_trimmed_when_the_total_size_is_exceeded() {
    let data = DataDir::new();
    let retention = Retention {
        max_total_bytes: 100_000,
        ..Retention::ON_DISK
    };
    let disk = data.open_with(retention);
    let memory = MemoryStore::new(retention, 4);
    for store in [&disk as &dyn Store, &memory] {
        let [tea, milk] = ["tea", "milk"].map(|name| store.open(&room(name), WallTime::default()).unwrap());
        append(store, milk.id, vec![record(1, 1_000)], Some(snapshot(1_000))).await;
        for n in 0..100 {
            let first = n * 200 + 1;
            append(
                store,
                tea.id,
                vec![record(first, 200)],
                Some(snapshot(first + 199)),
            )
            .await;
        }
        let (tea, milk) = (store.bounds(tea.id).unwrap(), store.bounds(milk.id).unwrap());
        assert_eq!(
            (milk.first.get(), milk.last.get()),
            (1, 1_000),
            "the small log keeps everything"
        );
        assert_eq!(tea.last.get(), 20_000);
        // An event takes 13 bytes.
        assert!((12_000..14_000).contains(&tea.first.get()), "{tea:?}");
        let events = 1_000 + 20_001 - tea.first.get();
        assert_eq!(store.usage().events, events);
    }
    assert!(memory.usage().bytes <= 100_000);
}

#[tokio::test]
async fn expired_events_are_removed_on_append() {
    let old = |sequence| dated(sequence, Duration::from_secs(sequence));
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let data = DataDir::new();
    let retention = Retention {
        max_age: Some(Duration::from_secs(3_600)),
        ..Retention::ON_DISK
    };
    let disk = data.open_with(retention);
    let memory = MemoryStore::new(retention, 4);
    for store in [&disk as &dyn Store, &memory] {
        let log = store.open(&room("tea"), WallTime::default()).unwrap();
        let first = || store.bounds(log.id).unwrap().first.get();
        append(store, log.id, vec![old(1), dated(2, now), old(3), old(4)], None).await;
        assert_eq!(first(), 1, "no snapshot covers it");
        append(store, log.id, Vec::new(), Some(snapshot(3))).await;
        assert_eq!(first(), 2, "the next one has not expired");
    }
}

#[tokio::test]
async fn expired_events_are_removed_from_idle_logs() {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let data = DataDir::new();
    let store = data.open_with(Retention {
        max_age: Some(Duration::from_secs(1)),
        ..Retention::ON_DISK
    });
    let log = store.open(&room("tea"), WallTime::default()).unwrap();
    append(
        &store,
        log.id,
        vec![dated(1, now), dated(2, now)],
        Some(snapshot(2)),
    )
    .await;
    let deadline = Instant::now() + Duration::from_secs(20);
    while store.bounds(log.id).unwrap().first.get() != 2 {
        assert!(Instant::now() < deadline, "the first event is still there");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Returns a record of one event that was broadcast at `time`, a Unix time.
fn dated(sequence: u64, time: Duration) -> Record {
    use prost::Message;

    let message = crate::proto::ServerMessage {
        broadcast_time: Some(prost_types::Timestamp {
            seconds: time.as_secs().try_into().unwrap(),
            nanos: 0,
        }),
        ..Default::default()
    };
    let bytes = message.encode_to_vec();
    let length = u32::try_from(bytes.len()).unwrap().to_be_bytes();
    Record {
        frames: [&[0], length.as_slice(), &bytes].concat().into(),
        ..record(sequence, 1)
    }
}

#[tokio::test]
async fn a_torn_write_is_cut_off_and_counted() {
    let data = DataDir::new();
    let store = data.open();
    assert_eq!(store.torn_bytes(), 0);
    let log = open_tea(&store);
    append(&store, log, vec![record(1, 2)], None).await;
    let journal = data.path.join("db/0.jnl");
    let written = || -> usize {
        let bytes = fs::read(&journal).unwrap();
        bytes.iter().rposition(|byte| *byte != 0).unwrap() + 1
    };
    let first = written();
    append(&store, log, vec![record(3, 5)], None).await;
    let second = written();
    drop(store);
    // Simulates a crash before the last byte was written and the watermark was stored.
    let file = OpenOptions::new().write(true).open(&journal).unwrap();
    file.set_len(second as u64 - 1).unwrap();
    fs::remove_file(data.path.join("heads")).unwrap();

    let store = data.open();
    assert_eq!(store.torn_bytes(), (second - 1 - first) as u64);
    assert_eq!(sequences(&store, log, 0), [1, 2]);
    append(&store, log, vec![record(3, 1)], None).await;
    drop(store);
    let store = data.open();
    assert_eq!(store.torn_bytes(), 0);
    assert_eq!(sequences(&store, log, 0), [1, 2, 3]);
}

#[tokio::test]
async fn a_gap_is_reported_with_its_bounds() {
    let data = DataDir::new();
    let store = data.open();
    let log = open_tea(&store);
    append(&store, log, vec![record(1, 2), record(5, 1)], None).await;
    drop(store);
    let error = data.open_error();
    assert_eq!(
        error.to_string(),
        "the log of room \"tea\" is damaged: events 3 to 4 are missing"
    );
}

#[tokio::test]
async fn a_truncated_log_opens_only_with_accept_loss_and_gets_a_new_epoch() {
    let data = DataDir::new();
    let store = data.open();
    let log = open_tea(&store);
    append(&store, log, vec![record(1, 5)], None).await;
    drop(store);
    // Simulates that two more events were acknowledged.
    HighWatermarks::open(&data.path)
        .unwrap()
        .set(log, Sequence::new(7))
        .unwrap();
    let error = data.open_error();
    assert!(error.is_damage());
    assert!(
        error
            .to_string()
            .starts_with("the log of room \"tea\" ends at event 5, but events up to 7 were acknowledged"),
        "{error}"
    );
    let accepted = data.open_accepting_loss();
    let found = accepted.find(&room("tea")).unwrap().unwrap();
    assert_eq!(found.id, log);
    // The epoch is not just the next number, because that one may have been used and lost too.
    assert!(found.epoch.get() > 1_700_000_000_000, "{}", found.epoch);
    assert_eq!(sequences(&accepted, log, 0), [1, 2, 3, 4, 5]);
    drop(accepted);
    // The loss has to be accepted only once.
    let store = data.open();
    assert_eq!(store.find(&room("tea")).unwrap().unwrap().epoch, found.epoch);
}

#[tokio::test]
async fn the_log_id_of_a_lost_room_is_not_reused() {
    let data = DataDir::new();
    let store = data.open();
    let log = open_tea(&store);
    append(&store, log, vec![record(1, 5)], None).await;
    store.tables.rooms.remove("tea").unwrap();
    drop(store);
    let error = data.open_error();
    assert_says(&error, "a room whose name is gone");
    for accept_loss in [true, false] {
        let store = if accept_loss {
            data.open_accepting_loss()
        } else {
            data.open()
        };
        for name in ["coffee", "tea"] {
            let other = store.open(&room(name), WallTime::from_millis(8)).unwrap();
            assert!(other.id > log);
            assert_eq!(sequences(&store, other.id, 0), [0; 0]);
        }
    }
}

#[test]
fn a_directory_is_locked_by_one_server() {
    let data = DataDir::new();
    let store = data.open();
    let second = open(&data.path, OPTIONS).map(drop);
    assert_eq!(second, Err(StoreError::Locked(data.path.clone())));
    drop(store);
    data.open();
}

#[test]
fn an_unknown_format_is_rejected() {
    let data = DataDir::new();
    drop(data.open());
    fs::write(data.path.join("FORMAT"), "chitchat 2\n").unwrap();
    let error = data.open_error();
    assert!(
        matches!(&error, StoreError::Format { found, .. } if found == "chitchat 2"),
        "{error}"
    );
    fs::remove_file(data.path.join("FORMAT")).unwrap();
    let error = data.open_error();
    assert!(error.is_damage(), "{error}");
    assert_says(&error, "`FORMAT` beside it is missing");
}

#[test]
fn an_unusable_directory_is_reported() {
    let data = DataDir::new();
    fs::write(&data.path, "a file").unwrap();
    let error = data.open_error();
    assert!(matches!(error, StoreError::Directory { .. }), "{error}");
}
