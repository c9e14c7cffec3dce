//! The store: the time until an append is durable, and the time to read a page from the middle of a log.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use chitchat::domain::{RoomName, Sequence};
use chitchat::store::{
    Append, DiskOptions, DiskStore, Durability, LogId, MemoryStore, Observer, Record, Retention, RoomStatus,
    Store, read_page,
};
use criterion::{Criterion, Throughput};
use tempfile::TempDir;

use crate::fixtures::{NOW, frames, room_name};

/// The size of the page that is read, in bytes.
const PAGE_BYTES: usize = 64 * 1024;

/// Appends equal records to one log.
struct Writer {
    store: Box<dyn Store>,
    log: LogId,
    next: Record,
    runtime: tokio::runtime::Runtime,
}

impl Writer {
    fn new(store: Box<dyn Store>, events: u32) -> Self {
        let log = store.open(&room_name(), NOW).expect("the log can be created").id;
        let next = Record {
            first: Sequence::new(1),
            events,
            at: NOW,
            resumable: Vec::new(),
            frames: frames(usize::try_from(events).expect("a record is small")).0,
        };
        let runtime = tokio::runtime::Builder::new_current_thread().build();
        Self {
            store,
            log,
            next,
            runtime: runtime.expect("the runtime can be built"),
        }
    }

    /// Appends one record and waits until it is durable.
    fn append(&mut self) {
        let record = self.next.clone();
        self.next.first = record.last().next();
        let append = Append {
            records: vec![record],
            snapshot: None,
            status: RoomStatus::default(),
        };
        self.runtime
            .block_on(self.store.append(self.log, append))
            .expect("the append succeeds");
    }
}

/// An empty directory on the disk of the build, because `/tmp` may be in memory.
fn directory() -> TempDir {
    TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).expect("the directory can be created")
}

struct NoObserver;

impl Observer for NoObserver {
    fn committed(&self, _: Duration) {}
    fn rewritten(&self, _: u64) {}
    fn write_stalled(&self) {}
}

fn open(path: &Path, durability: Durability) -> DiskStore {
    let options = DiskOptions {
        durability,
        retention: Retention::ON_DISK,
        max_rooms: 1,
        accept_loss: false,
    };
    DiskStore::open(path, options, Arc::new(NoObserver)).expect("the store can be opened")
}

/// The number of rooms of the store that is opened.
const ROOMS: u64 = 10_000;

/// Opens a store with `CHITCHAT_BENCH_STORE_BYTES` (128 MiB by default) in [`ROOMS`] rooms, and prints how much memory that takes.
fn open_filled(criterion: &mut Criterion) {
    let bytes = std::env::var("CHITCHAT_BENCH_STORE_BYTES")
        .map_or(128 << 20, |bytes| bytes.parse().expect("a number"));
    let directory = directory();
    let options = DiskOptions {
        durability: Durability::Os,
        retention: Retention {
            max_total_bytes: u64::MAX,
            ..Retention::ON_DISK
        },
        max_rooms: usize::try_from(ROOMS).expect("a small number"),
        accept_loss: false,
    };
    let open =
        || DiskStore::open(directory.path(), options, Arc::new(NoObserver)).expect("the store can be opened");
    let store = open();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .expect("the runtime can be built");
    let frames = frames(64).0;
    let record_bytes = frames.len() as u64;
    for round in 0..(bytes / ROOMS / record_bytes).max(1) {
        for room in 0..ROOMS {
            let room = RoomName::try_from(format!("room{room}").as_str()).expect("it is a name");
            let log = store.open(&room, NOW).expect("the log can be created").id;
            let record = Record {
                first: Sequence::new(round * 64 + 1),
                events: 64,
                at: NOW,
                resumable: Vec::new(),
                frames: frames.clone(),
            };
            let append = Append {
                records: vec![record],
                ..Append::default()
            };
            runtime
                .block_on(store.append(log, append))
                .expect("the append succeeds");
        }
    }
    println!(
        "{} bytes in {} segments",
        store.usage().bytes,
        store.usage().segments
    );
    drop(store);
    let resident = || {
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        let line = status
            .lines()
            .find(|line| line.starts_with("VmRSS:"))
            .map(str::to_owned);
        line.unwrap_or_default()
    };
    println!("before: {}", resident());
    let store = open();
    println!("open: {}", resident());
    drop(store);
    criterion.bench_function("store/open 10,000 rooms", |bencher| bencher.iter(open));
}

pub(crate) fn bench(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("store");
    // Appends fill the disk for as long as they are measured.
    group.measurement_time(Duration::from_secs(1)).sample_size(20);
    for events in [1, 100] {
        group.throughput(Throughput::Elements(events.into()));
        let mut writer = Writer::new(Box::new(MemoryStore::new(Retention::IN_MEMORY, 1)), events);
        group.bench_function(format!("append {events} events, memory"), |bencher| {
            bencher.iter(|| writer.append());
        });
        for (name, durability) in [("os", Durability::Os), ("sync", Durability::Sync)] {
            let directory = directory();
            let store = open(directory.path(), durability);
            let mut writer = Writer::new(Box::new(store), events);
            group.bench_function(format!("append {events} events, {name}"), |bencher| {
                bencher.iter(|| writer.append());
            });
        }
    }
    let directory = directory();
    let store = open(directory.path(), Durability::Os);
    let mut writer = Writer::new(Box::new(store), 10);
    (0..10_000).for_each(|_| writer.append());
    group.throughput(Throughput::Bytes(PAGE_BYTES as u64));
    group.bench_function(
        "read a page of 64 KiB from the middle of 100,000 events",
        |bencher| {
            bencher.iter(|| {
                let (after, upto) = (Sequence::new(50_000), Sequence::new(100_000));
                read_page(&*writer.store, writer.log, after, upto, PAGE_BYTES).expect("the log can be read")
            });
        },
    );
    group.finish();
    open_filled(criterion);
}
