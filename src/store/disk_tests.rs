//! Tests of both stores: they return what was appended, and the store on disk does so after a restart too.

use std::fs;
use std::path::PathBuf;
use std::task::{Context, Waker};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::super::entry::{Entry, EntryKind};
use super::super::operation::Operation;
use super::super::segment_index::EntryLocation;
use super::super::{
    Durability, EncodedSnapshot, MemoryStore, NoObserver, Retention, RoomStatus, decode_snapshot,
    encode_snapshot, read_page,
};
use super::*;
use crate::domain::{LamportTime, Name, Participant, ParticipantId, Snapshot};
use crate::wall_clock::wall_time;

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

    /// In a file system in memory if there is one, where thousands of opens take little time.
    pub(super) fn in_memory() -> Self {
        let parent = tempfile::tempdir_in("/dev/shm")
            .or_else(|_| tempfile::tempdir())
            .unwrap();
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
    retention: SMALL,
    max_rooms: 4,
    accept_loss: false,
};

/// Limits with segments of 1 MiB.
pub(super) const SMALL: Retention = Retention {
    max_total_bytes: 64 << 20,
    ..Retention::ON_DISK
};

pub(super) fn open(path: &Path, options: DiskOptions) -> Result<DiskStore, StoreError> {
    DiskStore::open(path, options, Arc::new(NoObserver))
}

/// Asserts that the message of `error` contains `expected`.
pub(super) fn assert_says(error: &StoreError, expected: &str) {
    assert!(error.to_string().contains(expected), "{error}");
}

pub(super) fn open_room(store: &dyn Store, name: &str) -> Log {
    store.open(&room(name), WallTime::from_millis(7)).unwrap()
}

pub(super) fn open_tea(store: &dyn Store) -> LogId {
    open_room(store, "tea").id
}

pub(super) fn room(name: &str) -> RoomName {
    RoomName::try_from(name).unwrap()
}

/// Returns a record of events whose payload starts with their sequence and has `len` bytes.
pub(super) fn long_record(first: u64, events: u32, len: u32) -> Record {
    let frames: Vec<u8> = (0..events)
        .flat_map(|i| {
            let mut frame = vec![0; 5 + len as usize];
            frame[1..5].copy_from_slice(&len.to_be_bytes());
            frame[5..13].copy_from_slice(&(first + u64::from(i)).to_be_bytes());
            frame
        })
        .collect();
    Record {
        first: Sequence::new(first),
        events,
        at: wall_time(),
        resumable: Vec::new(),
        frames: frames.into(),
    }
}

/// Returns a record of events whose payload is their sequence.
pub(super) fn record(first: u64, events: u32) -> Record {
    long_record(first, events, 8)
}

pub(super) fn snapshot(last: u64) -> EncodedSnapshot {
    encode_snapshot(&Snapshot {
        time: LamportTime::default(),
        last: Sequence::new(last),
        next_id: 1,
        has_messages: true,
        participants: Vec::new(),
        recovery_time: LamportTime::default(),
        bans: Vec::new(),
        is_closed: false,
    })
}

pub(super) const STATUS: RoomStatus = RoomStatus {
    is_occupied: false,
    has_messages: true,
};

pub(super) async fn append(
    store: &dyn Store,
    log: LogId,
    records: Vec<Record>,
    snapshot: Option<EncodedSnapshot>,
) {
    let append = Append {
        records,
        snapshot,
        status: STATUS,
    };
    store.append(log, append).await.unwrap();
}

/// Appends the first record of each log, of `len` bytes, without waiting for it.
fn start_appends<'a>(store: &'a DiskStore, logs: &[(LogId, u32)]) -> Vec<AppendFuture<'a>> {
    let mut context = Context::from_waker(Waker::noop());
    let start = |(log, len): &(LogId, u32)| {
        let append = Append {
            records: vec![long_record(1, 1, *len)],
            snapshot: None,
            status: STATUS,
        };
        let mut append = store.append(*log, append);
        assert!(append.as_mut().poll(&mut context).is_pending());
        append
    };
    logs.iter().map(start).collect()
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
        .map(|frame| u64::from_be_bytes(frame[5..13].try_into().unwrap()))
        .collect()
}

pub(super) async fn until(what: &str, is_met: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !is_met() {
        assert!(Instant::now() < deadline, "{what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

pub(super) fn segments(data: &DataDir) -> Vec<u32> {
    super::super::directory::segment_numbers(&data.path.join("log")).unwrap()
}

#[tokio::test]
async fn both_stores_return_the_same_events() {
    let data = DataDir::new();
    let disk = data.open();
    let memory = MemoryStore::new(Retention::ON_DISK, 4);
    for store in [&disk as &dyn Store, &memory] {
        let tea = open_room(store, "tea");
        let milk = open_room(store, "milk");
        assert_eq!(store.bounds(tea.id).unwrap(), Bounds::EMPTY);
        append(store, tea.id, vec![record(1, 2), record(3, 1)], None).await;
        append(store, milk.id, vec![record(1, 1)], None).await;
        append(store, tea.id, vec![record(4, 3)], None).await;
        assert_eq!(store.rooms(None, 9), [room("milk"), room("tea")]);
        assert_eq!(store.rooms(Some(&room("milk")), 9), [room("tea")]);
        assert_eq!(store.rooms(None, 1), [room("milk")]);
        let again = store.open(&room("tea"), WallTime::from_millis(99)).unwrap();
        assert_eq!((again, store.find(&room("tea"))), (tea, Some(tea)));
        assert!(milk.epoch > tea.epoch);
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
            open_room(store, more);
        }
        let fifth = store.open(&room("c"), WallTime::default()).map(drop);
        assert_eq!(fifth, Err(StoreError::TooManyRooms(4)));
        assert_eq!(store.find(&room("c")), None);
    }
}

#[tokio::test]
async fn records_that_do_not_continue_the_log_are_rejected() {
    let data = DataDir::new();
    let disk = data.open();
    let memory = MemoryStore::new(Retention::ON_DISK, 4);
    for store in [&disk as &dyn Store, &memory] {
        let log = open_tea(store);
        append(store, log, vec![record(1, 2)], None).await;
        for records in [
            vec![record(4, 1)],
            vec![record(2, 1)],
            vec![record(3, 1), record(5, 1)],
        ] {
            let append = Append {
                records,
                ..Append::default()
            };
            let error = store.append(log, append).await.unwrap_err();
            assert!(matches!(error, StoreError::NotContiguous { .. }), "{error}");
        }
        append(store, log, vec![record(3, 1)], None).await;
        assert_eq!(sequences(store, log, 0), [1, 2, 3]);
    }
}

#[tokio::test]
async fn a_created_store_is_a_data_directory_once_it_is_finished() {
    let data = DataDir::new();
    let create = || DiskStore::create(&data.path, OPTIONS, Arc::new(NoObserver));
    let store = create().unwrap();
    let log = open_tea(&store);
    append(&store, log, vec![record(1, 2)], None).await;
    drop(store);
    // As after a crash.
    assert_says(&data.open_error(), "FORMAT");
    assert_says(&create().map(drop).unwrap_err(), "it is not empty");

    fs::remove_dir_all(&data.path).unwrap();
    let store = create().unwrap();
    let log = open_tea(&store);
    append(&store, log, vec![record(1, 2)], None).await;
    store.finish().unwrap();
    let store = open(&data.path, OPTIONS).unwrap();
    assert_eq!(store.bounds(open_tea(&store)).unwrap().last, Sequence::new(2));
}

#[tokio::test]
async fn appended_events_survive_a_restart() {
    let data = DataDir::new();
    let store = data.open();
    let secret = store.secret();
    let log = open_room(&store, "tea");
    append(&store, log.id, vec![record(1, 5)], Some(snapshot(5))).await;
    drop(store);
    let store = data.open();
    assert_eq!(store.secret(), secret);
    assert_eq!(store.find(&room("tea")), Some(log));
    assert_eq!(store.snapshot(log.id).unwrap(), Some(snapshot(5).bytes));
    assert_eq!(sequences(&store, log.id, 0), [1, 2, 3, 4, 5]);
    // The id of the log is not reused.
    assert_ne!(open_room(&store, "milk").id, log.id);
}

#[tokio::test]
async fn rooms_with_participants_or_events_that_no_snapshot_covers_are_unfinished() {
    let data = DataDir::new();
    let store = data.open();
    let occupied = RoomStatus {
        is_occupied: true,
        has_messages: true,
    };
    for (name, status, snapshot) in [
        ("covered", STATUS, Some(snapshot(1))),
        ("occupied", occupied, Some(snapshot(1))),
        ("uncovered", STATUS, None),
    ] {
        let log = open_room(&store, name);
        let append = Append {
            records: vec![record(1, 1)],
            snapshot,
            status,
        };
        store.append(log.id, append).await.unwrap();
    }
    let unfinished = |store: &DiskStore| {
        let mut unfinished = store.unfinished();
        unfinished.sort_unstable();
        unfinished
    };
    let expected = [room("occupied"), room("uncovered")];
    assert_eq!(unfinished(&store), expected);
    drop(store);
    assert_eq!(unfinished(&data.open()), expected);
}

#[tokio::test]
async fn pages_are_read_from_sealed_segments_and_the_newest_one() {
    let data = DataDir::new();
    let store = data.open();
    let logs = ["tea", "milk"].map(|name| open_room(&store, name).id);
    for n in 0..40 {
        for log in logs {
            append(&store, log, vec![long_record(n * 3 + 1, 3, 40_000)], None).await;
        }
    }
    assert!(segments(&data).len() > 4);
    let check = |store: &DiskStore| {
        for log in logs {
            for after in [0, 1, 50, 59, 60, 61, 100, 118, 119] {
                assert_eq!(
                    sequences(store, log, after),
                    (after + 1..=120).collect::<Vec<_>>()
                );
                let page = read_page(store, log, Sequence::new(after), Sequence::new(120), 200_000).unwrap();
                assert!(
                    (1..=6).contains(&page.events),
                    "{} events after {after}",
                    page.events
                );
            }
        }
    };
    check(&store);
    drop(store);
    check(&data.open());
}

#[tokio::test]
async fn a_short_page_does_not_keep_the_long_record_that_follows_it() {
    let data = DataDir::new();
    let store = data.open();
    let log = open_tea(&store);
    append(&store, log, vec![record(1, 1)], None).await;
    append(&store, log, vec![long_record(2, 1, 60_000)], None).await;
    append(&store, log, vec![record(3, 1)], None).await;
    for after in [0, 2] {
        let page = read_page(&store, log, Sequence::new(after), Sequence::new(3), 4_096).unwrap();
        assert_eq!(page.events, 1);
        let buffer = page.bytes.try_into_mut().unwrap();
        assert!(buffer.capacity() < 8_192, "{}", buffer.capacity());
    }
}

#[tokio::test]
async fn an_append_larger_than_a_segment_is_stored() {
    let data = DataDir::new();
    let store = data.open();
    let log = open_tea(&store);
    append(&store, log, vec![long_record(1, 1, 5_000_000)], None).await;
    append(&store, log, vec![record(2, 1)], None).await;
    drop(store);
    let store = data.open();
    assert_eq!(sequences(&store, log, 0), [1, 2]);
}

#[tokio::test]
async fn retention_removes_the_oldest_records_that_a_snapshot_covers() {
    let data = DataDir::new();
    let retention = Retention {
        max_events: 32,
        ..SMALL
    };
    let store = data.open_with(retention);
    let log = open_tea(&store);
    for n in 0..100 {
        append(
            &store,
            log,
            vec![record(n + 1, 1)],
            (n == 69).then(|| snapshot(70)),
        )
        .await;
    }
    until("nothing is removed", || {
        store.bounds(log).unwrap().first.get() >= 65
    })
    .await;
    let bounds = store.bounds(log).unwrap();
    assert_eq!(bounds.last.get(), 100);
    assert!((65..=71).contains(&bounds.first.get()), "{bounds:?}");
    let retained = sequences(&store, log, bounds.first.get() - 1);
    assert_eq!(retained, (bounds.first.get()..=100).collect::<Vec<_>>());
    assert!(
        sequences(&store, log, 3).is_empty(),
        "removed events are not skipped"
    );
    drop(store);
    let reopened = data.open_with(retention).bounds(log).unwrap();
    assert!(bounds.first <= reopened.first && reopened.last == bounds.last);
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
        let [tea, milk] = ["tea", "milk"].map(|name| open_room(store, name).id);
        append(store, milk, vec![record(1, 1_000)], Some(snapshot(1_000))).await;
        for n in 0..100 {
            let first = n * 200 + 1;
            append(store, tea, vec![record(first, 200)], Some(snapshot(first + 199))).await;
        }
        until("the limit is exceeded", || store.usage().retained <= 100_000).await;
        let (tea, milk) = (store.bounds(tea).unwrap(), store.bounds(milk).unwrap());
        assert_eq!(
            (milk.first.get(), milk.last.get()),
            (1, 1_000),
            "the small log keeps everything"
        );
        assert_eq!(tea.last.get(), 20_000);
        // An event takes 13 bytes.
        assert!((12_000..15_000).contains(&tea.first.get()), "{tea:?}");
        let events = 1_000 + 20_001 - tea.first.get();
        assert_eq!(store.usage().events, events);
        // At most a record of it is removed beside 1/128 of the limit.
        assert!(store.usage().retained > 96_000, "{:?}", store.usage());
    }
}

/// A store of each kind in which all rooms together may have 100 KB.
fn limited(data: &DataDir) -> (DiskStore, MemoryStore) {
    let retention = Retention {
        max_total_bytes: 100_000,
        ..Retention::ON_DISK
    };
    let options = DiskOptions {
        retention,
        max_rooms: 100,
        ..OPTIONS
    };
    (
        open(&data.path, options).unwrap(),
        MemoryStore::new(retention, 100),
    )
}

/// Logs to which `records` short records each were appended in turn, all of which can be trimmed. The limit is kept again.
async fn filled(store: &dyn Store, logs: u32, records: u64) -> Vec<LogId> {
    let logs = (0..logs).map(|n| open_room(store, &format!("small{n}")).id);
    let logs: Vec<_> = logs.collect();
    for n in 1..=records {
        for log in &logs {
            append(store, *log, vec![long_record(n, 1, 100)], Some(snapshot(n))).await;
        }
    }
    until("the limit is exceeded", || store.usage().retained <= 100_000).await;
    logs
}

#[tokio::test]
async fn large_logs_that_cannot_be_trimmed_do_not_keep_others_from_being_trimmed() {
    let data = DataDir::in_memory();
    let (disk, memory) = limited(&data);
    for store in [&disk as &dyn Store, &memory] {
        for n in 0..20 {
            let log = open_room(store, &format!("large{n}")).id;
            append(store, log, vec![long_record(1, 1, 4_000)], None).await;
        }
        for log in filled(store, 40, 10).await {
            let bounds = store.bounds(log).unwrap();
            assert!(
                bounds.first <= bounds.last && bounds.last.get() == 10,
                "{bounds:?}"
            );
        }
    }
}

#[tokio::test]
async fn logs_of_the_same_size_are_trimmed_alike() {
    let data = DataDir::in_memory();
    let (disk, memory) = limited(&data);
    for store in [&disk as &dyn Store, &memory] {
        for log in filled(store, 32, 60).await {
            let bounds = store.bounds(log).unwrap();
            assert!(bounds.last.get() - bounds.first.get() >= 5, "{bounds:?}");
        }
    }
}

const HOUR: Retention = Retention {
    max_age: Some(Duration::from_secs(3_600)),
    ..SMALL
};

#[tokio::test]
async fn expired_events_are_removed_on_append() {
    let old = |sequence| dated(sequence, WallTime::from_millis(sequence * 1_000));
    let data = DataDir::new();
    let disk = data.open_with(HOUR);
    let memory = MemoryStore::new(HOUR, 4);
    for store in [&disk as &dyn Store, &memory] {
        let log = open_tea(store);
        let first = || store.bounds(log).unwrap().first.get();
        append(store, log, vec![old(1), old(2), dated(3, wall_time())], None).await;
        assert_eq!(first(), 1, "no snapshot covers it");
        append(store, log, Vec::new(), Some(snapshot(3))).await;
        until("expired events remain", || first() == 3).await;
    }
}

#[tokio::test]
async fn expired_events_are_removed_from_idle_logs() {
    let data = DataDir::new();
    let store = data.open_with(Retention {
        max_age: Some(Duration::from_secs(1)),
        ..SMALL
    });
    let log = open_tea(&store);
    append(
        &store,
        log,
        vec![dated(1, wall_time()), dated(2, wall_time())],
        Some(snapshot(2)),
    )
    .await;
    until("events remain", || store.bounds(log).unwrap().first.get() == 3).await;
    // Their sequences are not used again, not even after a restart.
    drop(store);
    let store = data.open();
    assert_eq!(store.bounds(log).unwrap().last.get(), 2);
    append(&store, log, vec![record(3, 1)], None).await;
}

#[tokio::test]
async fn rooms_whose_expired_events_are_gone_do_not_keep_others_from_expiring() {
    let data = DataDir::in_memory();
    let options = DiskOptions {
        retention: HOUR,
        max_rooms: 1_000,
        ..OPTIONS
    };
    let store = open(&data.path, options).unwrap();
    let first = |name: &str| store.bounds(open_room(&store, name).id).unwrap().first.get();
    for n in 0..200 {
        let records = vec![dated(1, WallTime::from_millis(1_000)), dated(2, wall_time())];
        let log = open_room(&store, &format!("room{n}")).id;
        append(&store, log, records, Some(snapshot(2))).await;
    }
    until("expired events remain", || first("room199") == 2).await;
    // It expires in a second.
    let nearly = WallTime::from_millis(wall_time().as_millis() - 3_599_000);
    append(
        &store,
        open_tea(&store),
        vec![dated(1, nearly)],
        Some(snapshot(1)),
    )
    .await;
    until("an expired event remains", || first("tea") == 2).await;
}

#[tokio::test]
async fn events_behind_one_from_the_future_expire() {
    let data = DataDir::new();
    let store = data.open_with(HOUR);
    let log = open_tea(&store);
    let future = WallTime::from_millis(wall_time().as_millis() + 10_000_000);
    let old = WallTime::from_millis(1_000);
    let records = vec![dated(1, future), dated(2, old), dated(3, wall_time())];
    append(&store, log, records, Some(snapshot(3))).await;
    until("expired events remain", || {
        store.bounds(log).unwrap().first.get() == 3
    })
    .await;
}

/// Returns a record of one event that was broadcast at `at`.
fn dated(sequence: u64, at: WallTime) -> Record {
    Record {
        at,
        ..record(sequence, 1)
    }
}

#[tokio::test]
async fn rooms_without_messages_and_expired_ones_are_unused_and_make_place_when_they_end() {
    let data = DataDir::new();
    let disk = data.open_with(HOUR);
    let memory = MemoryStore::new(SMALL, 4);
    for store in [&disk as &dyn Store, &memory] {
        let later = WallTime::from_millis(wall_time().as_millis() + 602_000);
        let status = |is_occupied, has_messages| RoomStatus {
            is_occupied,
            has_messages,
        };
        for (name, status) in [
            ("silent", status(false, false)),
            ("occupied", status(true, false)),
            ("said", status(false, true)),
        ] {
            let log = open_room(store, name);
            let append = Append {
                records: vec![record(1, 1)],
                snapshot: None,
                status,
            };
            store.append(log.id, append).await.unwrap();
        }
        assert!(store.unused(wall_time(), 9).is_empty());
        assert_eq!(store.unused(later, 9), [room("silent")]);
        let silent = open_room(store, "silent");
        assert!(store.is_unused(silent.id, later));
        store.delete_log(silent.id).await.unwrap();
        assert_eq!(store.find(&room("silent")), None);
        assert!(store.bounds(silent.id).is_err());
        let again = open_room(store, "silent");
        assert!(again.epoch > silent.epoch && again.id != silent.id);
        assert_eq!(store.bounds(again.id).unwrap(), Bounds::EMPTY);
    }
    drop(disk);
    let disk = data.open();
    assert_eq!(disk.rooms(None, 9), [room("occupied"), room("said")]);
}

#[tokio::test]
async fn a_moderated_room_is_kept_until_its_last_ban_has_ended() {
    let data = DataDir::new();
    let days = |days: u64| WallTime::from_millis(wall_time().as_millis() + days * 86_400_000);
    let memory = MemoryStore::new(SMALL, 4);
    let moderated = |needed_until| Append {
        records: Vec::new(),
        snapshot: Some(EncodedSnapshot {
            needed_until,
            ..snapshot(1)
        }),
        status: RoomStatus::default(),
    };
    let disk = data.open_with(HOUR);
    for store in [&disk as &dyn Store, &memory] {
        for (name, needed_until) in [
            ("banned", days(2)),
            ("closed", WallTime::MAX),
            ("reopened", days(2)),
        ] {
            let log = open_room(store, name);
            let first = Append {
                records: vec![record(1, 1)],
                ..moderated(needed_until)
            };
            store.append(log.id, first).await.unwrap();
        }
        let reopened = open_room(store, "reopened");
        let second = moderated(WallTime::default());
        store.append(reopened.id, second).await.unwrap();
    }
    let assert_unused = |store: &dyn Store| {
        assert_eq!(store.unused(days(1), 9), [room("reopened")]);
        let mut later = store.unused(days(4), 9);
        later.sort();
        assert_eq!(later, [room("banned"), room("reopened")]);
    };
    assert_unused(&disk);
    assert_unused(&memory);
    drop(disk);
    let disk = data.open_with(HOUR);
    assert_unused(&disk);
    // From the indexes of sealed segments, too.
    let filler = open_room(&disk, "filler");
    for sequence in 1..30 {
        append(&disk, filler.id, vec![long_record(sequence, 1, 80_000)], None).await;
    }
    drop(disk);
    let disk = data.open_with(HOUR);
    assert!(disk.usage().segments > 1);
    assert_unused(&disk);
}

#[tokio::test]
async fn a_log_may_end_while_retention_removes_its_events() {
    let data = DataDir::in_memory();
    let options = DiskOptions {
        retention: Retention {
            max_events: 1,
            ..SMALL
        },
        max_rooms: 1_000,
        ..OPTIONS
    };
    let store = open(&data.path, options).unwrap();
    for n in 0..300 {
        let log = open_room(&store, &format!("room{n}")).id;
        append(&store, log, vec![record(1, 1), record(2, 1)], Some(snapshot(2))).await;
        store.delete_log(log).await.unwrap();
    }
    drop(store);
    assert!(open(&data.path, options).unwrap().rooms(None, 9).is_empty());
}

#[tokio::test]
async fn a_room_whose_log_has_expired_is_unused() {
    let data = DataDir::new();
    let store = data.open_with(HOUR);
    let log = open_tea(&store);
    append(
        &store,
        log,
        vec![dated(1, WallTime::from_millis(1_000))],
        Some(snapshot(1)),
    )
    .await;
    until("the event remains", || {
        store.bounds(log).unwrap().first.get() == 2
    })
    .await;
    assert_eq!(store.unused(wall_time(), 9), [room("tea")]);
    // A store in memory keeps the newest event.
    let max_age = Some(Duration::from_secs(3_600));
    let memory = MemoryStore::new(Retention { max_age, ..SMALL }, 4);
    let log = open_tea(&memory);
    let append = Append {
        records: vec![dated(1, WallTime::from_millis(1_000))],
        snapshot: None,
        status: RoomStatus {
            is_occupied: false,
            has_messages: true,
        },
    };
    memory.append(log, append).await.unwrap();
    let minutes = |minutes: u64| WallTime::from_millis(1_000 + minutes * 60_000);
    assert!(memory.unused(minutes(59), 9).is_empty());
    assert_eq!(memory.unused(minutes(61), 9), [room("tea")]);
}

#[tokio::test]
async fn an_occupied_room_whose_records_are_all_gone_is_still_occupied_after_a_restart() {
    let data = DataDir::new();
    let store = data.open_with(HOUR);
    let tea = open_tea(&store);
    let participant = Participant {
        name: Name::from_stored("Ada").unwrap(),
        join_time: LamportTime::default(),
        join_sequence: Sequence::new(1),
        is_resumable: true,
    };
    let occupied = Snapshot {
        participants: vec![(ParticipantId::from_wire(7).unwrap(), participant)],
        ..decode_snapshot(&snapshot(1).bytes).unwrap()
    };
    let expired = Append {
        records: vec![Record {
            at: WallTime::from_millis(1_000),
            ..long_record(1, 1, 900_000)
        }],
        snapshot: Some(encode_snapshot(&occupied)),
        status: RoomStatus {
            is_occupied: true,
            has_messages: true,
        },
    };
    store.append(tea, expired).await.unwrap();
    let milk = open_room(&store, "milk").id;
    for n in 1..=3 {
        append(&store, milk, vec![long_record(n, 1, 500_000)], None).await;
    }
    let has_records = || {
        let catalog = store.catalog.lock();
        let mut sealed = catalog.segments.values().map(|state| &state.segment);
        sealed.any(|segment| segment.log(tea).is_some_and(|records| records.count > 0))
    };
    until("the record remains", || !has_records()).await;
    drop(store);
    let store = data.open_with(HOUR);
    assert_eq!(store.bounds(tea).unwrap().first.get(), 2);
    let days = WallTime::from_millis(wall_time().as_millis() + 172_800_000);
    assert!(!store.is_unused(tea, days));
    assert!(store.unfinished().contains(&room("tea")));
}

#[tokio::test]
async fn a_short_append_goes_before_long_ones_that_wait() {
    let data = DataDir::new();
    let store = data.open();
    let logs = [
        ("tea", 1_500_000),
        ("milk", 1_500_000),
        ("cocoa", 1_500_000),
        ("water", 100),
    ]
    .map(|(name, len)| (open_room(&store, name).id, len));
    let appends = {
        // The writer needs it for everything.
        let _catalog = store.catalog.lock();
        start_appends(&store, &logs)
    };
    for append in futures_util::future::join_all(appends).await {
        append.unwrap();
    }
    let catalog = store.catalog.lock();
    let written = logs.map(|(log, _)| catalog.locate(log, Sequence::new(1)).unwrap());
    let [long @ .., short] = written.map(|source| source.segment.number());
    assert!(long.iter().all(|number| *number > short), "{long:?} {short}");
}

#[tokio::test]
async fn appends_that_wait_when_the_store_is_closed_are_written() {
    let data = DataDir::new();
    let store = data.open();
    let logs = ["tea", "milk", "cocoa"].map(|name| (open_room(&store, name).id, 1_500_000));
    // Dropping their futures does not cancel them any more.
    drop(start_appends(&store, &logs));
    drop(store);
    let store = data.open();
    for (log, _) in logs {
        assert_eq!(sequences(&store, log, 0), [1]);
    }
}

/// Fills `data` with `rounds` of 100 KB in each of two rooms, of which one keeps everything and one little.
async fn fill(store: &DiskStore, rounds: u64) {
    let [tea, milk] = ["tea", "milk"].map(|name| open_room(store, name).id);
    for n in 1..=rounds {
        append(store, tea, vec![long_record(n, 1, 80_000)], Some(snapshot(n))).await;
        if n % 8 == 0 {
            append(store, milk, vec![long_record(n / 8, 1, 20_000)], None).await;
        }
    }
}

#[tokio::test]
async fn the_disk_holds_little_more_than_what_is_retained() {
    let data = DataDir::new();
    let retention = Retention {
        max_bytes: 1 << 20,
        ..SMALL
    };
    let store = data.open_with(retention);
    fill(&store, 400).await;
    let usage = store.usage();
    let limit = usage.retained * 13 / 10 + (3 << 20);
    assert!(usage.bytes <= limit, "{usage:?}");
    let [tea, milk] = ["tea", "milk"].map(|name| open_room(&store, name).id);
    let check = |store: &DiskStore| {
        let first = store.bounds(tea).unwrap().first.get();
        assert!(first > 380, "{first}");
        assert_eq!(
            sequences(store, tea, first - 1),
            (first..=400).collect::<Vec<_>>()
        );
        assert_eq!(sequences(store, milk, 0), (1..=50).collect::<Vec<_>>());
        assert_eq!(store.snapshot(tea).unwrap(), Some(snapshot(400).bytes));
    };
    check(&store);
    until("garbage remains", || store.usage().garbage < 1 << 20).await;
    check(&store);
    let on_disk: u64 = fs::read_dir(data.path.join("log"))
        .unwrap()
        .map(|entry| entry.unwrap().metadata().unwrap().len())
        .sum();
    assert!(on_disk <= limit, "{on_disk}");
    drop(store);
    let store = data.open_with(retention);
    check(&store);
    assert!(store.usage().garbage < 2 << 20, "{:?}", store.usage());
}

#[tokio::test]
async fn the_number_of_segments_is_bounded_however_little_of_each_is_needed() {
    let data = DataDir::in_memory();
    let options = DiskOptions {
        durability: Durability::Os,
        retention: Retention {
            max_bytes: 1 << 20,
            ..SMALL
        },
        max_rooms: 100,
        ..OPTIONS
    };
    let store = open(&data.path, options).unwrap();
    let max = usize::try_from(DiskOptions::max_segments(&options.retention)).unwrap();
    let busy = open_room(&store, "busy").id;
    let mut most = 0;
    for room in 0..60 {
        let quiet = open_room(&store, &format!("quiet-{room}")).id;
        // Of each segment a third is needed: too much for its neighbours to join it when it is rewritten.
        for n in 1..=9 {
            append(&store, quiet, vec![long_record(n, 1, 100_000)], None).await;
            let (first, last) = (18 * room + 2 * n - 1, 18 * room + 2 * n);
            let records = vec![long_record(first, 1, 100_000), long_record(last, 1, 100_000)];
            append(&store, busy, records, Some(snapshot(last))).await;
            most = most.max(store.catalog.lock().segments.len());
        }
    }
    assert!(most > max / 2, "{most}");
    assert!(most <= max, "{most} of {max}");
    drop(store);
    let store = open(&data.path, options).unwrap();
    for room in 0..60 {
        let quiet = open_room(&store, &format!("quiet-{room}")).id;
        assert_eq!(sequences(&store, quiet, 0), (1..=9).collect::<Vec<_>>());
    }
}

#[tokio::test]
async fn without_syncs_the_newest_segment_is_synced_before_what_it_makes_superfluous_is_removed() {
    let data = DataDir::new();
    let options = DiskOptions {
        durability: Durability::Os,
        retention: Retention {
            max_bytes: 1 << 20,
            ..SMALL
        },
        ..OPTIONS
    };
    let store = open(&data.path, options).unwrap();
    fill(&store, 100).await;
    until("garbage remains", || store.usage().garbage < 1 << 20).await;
    drop(store);
    let done = Operation::take(&data.path.join("log"));
    let is_replace = |(_, operation): &(u32, Operation)| *operation == Operation::Replace;
    let mut replaced = 0;
    for (at, (number, _)) in done.iter().enumerate().filter(|(_, done)| is_replace(done)) {
        replaced += 1;
        let before = done[..at].iter().rev();
        // Those after the replacement was written.
        let mut since = before.take_while(|done| **done != (*number, Operation::Sync));
        assert!(
            since.any(|(other, operation)| other > number && *operation == Operation::Sync),
            "segment {number}"
        );
    }
    assert!(replaced > 2, "{replaced}");
}

#[tokio::test]
async fn segments_whose_records_are_all_gone_are_removed() {
    let data = DataDir::new();
    let store = data.open_with(Retention {
        max_events: 1,
        ..SMALL
    });
    let log = open_tea(&store);
    for n in 1..=60 {
        append(&store, log, vec![long_record(n, 1, 100_000)], Some(snapshot(n))).await;
    }
    let count = || segments(&data).len();
    until("segments remain", || count() <= 3).await;
    drop(store);
    let store = data.open();
    assert_eq!(sequences(&store, log, 59), [60]);
}

#[tokio::test]
async fn a_deleted_room_leaves_nothing_behind_after_compaction() {
    let data = DataDir::new();
    let store = data.open();
    let [tea, milk] = ["tea", "milk"].map(|name| open_room(&store, name).id);
    for n in 1..=30 {
        append(&store, tea, vec![long_record(n, 1, 100_000)], None).await;
    }
    store.delete_log(tea).await.unwrap();
    for n in 1..=30 {
        append(&store, milk, vec![long_record(n, 1, 100_000)], None).await;
    }
    let mut store = Some(store);
    for _ in 0..2 {
        let open = store.take().unwrap_or_else(|| data.open());
        assert_eq!(open.rooms(None, 9), [room("milk")]);
        assert_eq!(sequences(&open, milk, 0).len(), 30);
        until("garbage remains", || open.usage().garbage < 200_000).await;
    }
}

#[tokio::test]
async fn the_end_of_a_log_is_forgotten_with_its_last_entry() {
    let data = DataDir::new();
    let store = data.open();
    let milk = open_room(&store, "milk").id;
    let rounds = 40;
    for n in 1..=rounds {
        append(&store, milk, vec![long_record(n, 1, 100_000)], None).await;
        let tea = open_tea(&store);
        append(&store, tea, vec![long_record(1, 1, 100_000)], None).await;
        store.delete_log(tea).await.unwrap();
    }
    let deletions = || {
        let mut deletions = 0;
        let segments: Vec<_> = store
            .catalog
            .lock()
            .segments
            .values()
            .map(|state| state.segment.clone())
            .collect();
        for segment in segments.iter().filter(|segment| segment.sealed.is_some()) {
            let count = |_, entry: Entry| {
                deletions += u64::from(entry.header.kind == EntryKind::Deletion);
                Ok(())
            };
            segment.scan(count).unwrap();
        }
        deletions
    };
    until("deletions remain", || deletions() < rounds / 4).await;
    drop(store);
    assert_eq!(data.open().rooms(None, 9), [room("milk")]);
}

#[tokio::test]
async fn a_damaged_record_stops_neither_the_rewriting_of_other_segments_nor_appends() {
    let data = DataDir::new();
    let retention = Retention {
        max_bytes: 1 << 20,
        ..SMALL
    };
    let store = data.open_with(retention);
    fill(&store, 20).await;
    let segment = Arc::clone(store.catalog.lock().segment(1).unwrap());
    let milk = open_room(&store, "milk").id;
    let mut kept = None;
    let find = |location: EntryLocation, entry: Entry| {
        kept = Some(location.offset)
            .filter(|_| entry.header.log == milk)
            .or(kept);
        Ok(())
    };
    segment.scan(find).unwrap();
    segment.write(b"damage", kept.unwrap() + 100).unwrap();
    for n in 21..=400 {
        append(
            &store,
            open_tea(&store),
            vec![long_record(n, 1, 80_000)],
            Some(snapshot(n)),
        )
        .await;
    }
    until("garbage remains", || segments(&data).len() < 8).await;
    assert!(segment.path.exists());
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
    for format in ["chitchat 1", "chitchat 3"] {
        fs::write(data.path.join("FORMAT"), format!("{format}\n")).unwrap();
        let error = data.open_error();
        assert!(
            matches!(&error, StoreError::Format { found, .. } if found == format),
            "{error}"
        );
    }
    fs::remove_file(data.path.join("FORMAT")).unwrap();
    let error = data.open_error();
    assert!(error.is_damage(), "{error}");
    assert_says(&error, "FORMAT is damaged at byte 0: it is missing");
}

#[test]
fn an_unusable_directory_is_reported() {
    let data = DataDir::new();
    fs::write(&data.path, "a file").unwrap();
    let error = data.open_error();
    assert!(matches!(error, StoreError::Directory { .. }), "{error}");
}

#[cfg(unix)]
#[tokio::test]
async fn files_are_readable_by_their_owner_alone() {
    use std::os::unix::fs::PermissionsExt as _;

    let data = DataDir::new();
    let store = data.open();
    append(&store, open_tea(&store), vec![record(1, 1)], None).await;
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&data.path), 0o700);
    for directory in [data.path.clone(), data.path.join("log")] {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            let expected = if path.is_dir() { 0o700 } else { 0o600 };
            assert_eq!(mode(&path), expected, "{}", path.display());
        }
    }
}
