//! The store: what an append costs until it is durable, and a page from the middle of a log.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use chitchat::domain::Sequence;
use chitchat::store::{
    Append, DiskOptions, DiskStore, Durability, LogId, MemoryStore, Record, Retention, Store, read_page,
};
use criterion::{Criterion, Throughput};

use crate::said::{NOW, frames, room_name};

/// How much a reader that is behind is handed at once, in bytes.
const PAGE: usize = 64 * 1024;

/// One log and its next record.
struct Writer {
    store: Box<dyn Store>,
    log: LogId,
    next: Record,
    runtime: tokio::runtime::Runtime,
}

impl Writer {
    fn new(store: Box<dyn Store>, events: u32) -> Self {
        let log = store.open(&room_name(), NOW).expect("the log can be made").id;
        let next = Record {
            first: Sequence::new(1),
            events,
            resumable: Vec::new(),
            frames: frames(usize::try_from(events).expect("a record is small")).0,
        };
        let runtime = tokio::runtime::Builder::new_current_thread().build();
        Self {
            store,
            log,
            next,
            runtime: runtime.expect("a runtime can be made"),
        }
    }

    /// Appends one record and waits until it is as durable as the store makes it.
    fn append(&mut self) {
        let record = self.next.clone();
        self.next.first = record.last().next();
        let append = Append {
            records: vec![record],
            snapshot: None,
        };
        self.runtime
            .block_on(self.store.append(self.log, append))
            .expect("the store takes it");
    }
}

/// A directory of the build's own disk, empty.
fn directory(name: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    remove(&path);
    path
}

fn open(path: &Path, durability: Durability) -> DiskStore {
    let options = DiskOptions {
        durability,
        retention: Retention::ON_DISK,
        max_rooms: 1,
        accept_loss: false,
    };
    DiskStore::open(path, options, Arc::new(|_| {})).expect("it can be made")
}

/// What is not there need not go.
fn remove(path: &Path) {
    std::fs::remove_dir_all(path).ok();
}

pub(crate) fn bench(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("store");
    // Appends fill the disk as long as they are measured.
    group.measurement_time(Duration::from_secs(1)).sample_size(20);
    for events in [1, 100] {
        group.throughput(Throughput::Elements(events.into()));
        let mut writer = Writer::new(Box::new(MemoryStore::new(Retention::IN_MEMORY, 1)), events);
        group.bench_function(format!("append {events} events, memory"), |bencher| {
            bencher.iter(|| writer.append());
        });
        for (name, durability) in [("os", Durability::Os), ("sync", Durability::Sync)] {
            let path = directory(&format!("bench-{name}-{events}"));
            let store = open(&path, durability);
            let mut writer = Writer::new(Box::new(store), events);
            group.bench_function(format!("append {events} events, {name}"), |bencher| {
                bencher.iter(|| writer.append());
            });
            drop(writer);
            remove(&path);
        }
    }
    let path = directory("bench-read");
    let store = open(&path, Durability::Os);
    let mut writer = Writer::new(Box::new(store), 10);
    (0..10_000).for_each(|_| writer.append());
    group.throughput(Throughput::Bytes(PAGE as u64));
    group.bench_function(
        "read a page of 64 KiB from the middle of 100,000 events",
        |bencher| {
            bencher.iter(|| {
                let (after, upto) = (Sequence::new(50_000), Sequence::new(100_000));
                read_page(&*writer.store, writer.log, after, upto, PAGE).expect("the log is sound")
            });
        },
    );
    drop(writer);
    remove(&path);
    group.finish();
}
