//! Framing: from an event to the bytes of its broadcast, and back.

use std::hint::black_box;

use bytes::BytesMut;
use chitchat::domain::Epoch;
use chitchat::hub::frame;
use criterion::{Criterion, Throughput};

use crate::fixtures::{NOW, events, frames, room_name};

/// The size of a busy room's batch, in events.
const BATCH: usize = 256;

pub(crate) fn bench(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("framing");
    group.throughput(Throughput::Elements(BATCH as u64));
    let (room, epoch, events) = (room_name(), Epoch::created_at(NOW), events(BATCH));
    group.bench_function("write a batch of 256 events", |bencher| {
        bencher.iter(|| {
            let mut buffer = BytesMut::new();
            for event in &events {
                frame::write_event(&mut buffer, &room, epoch, event);
            }
            buffer
        });
    });
    let (bytes, _) = frames(BATCH);
    group.bench_function("read a batch of 256 events", |bencher| {
        bencher.iter(|| {
            for frame in chitchat::store::frames(bytes.clone()) {
                black_box(frame::read_event(&frame).expect("the frame is an event's"));
            }
        });
    });
    group.finish();
}
