//! The feed: one batch is published, and every cursor reads it. The time per element is the cost of one delivery without
//! the transport.

use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use chitchat::domain::{Origin, Sequence};
use chitchat::hub::{Cursor, FairBudget, Feed, FeedItem, HubOptions, WakeQueue};
use chitchat::telemetry::{Metrics, OtlpPipeline, TelemetryObserver};
use criterion::{BenchmarkId, Criterion, Throughput};

use crate::fixtures::frames;

pub(crate) fn bench(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("feed");
    for (batch, readers) in [(1, 1), (1, 100), (256, 100), (1, 1_000), (256, 1_000)] {
        let (bytes, lengths) = frames(batch);
        let events = u32::try_from(batch).expect("a batch is small");
        let feed = Feed::new(
            HubOptions::default().feed_bytes,
            Sequence::ZERO,
            Arc::new(TelemetryObserver::new(
                Arc::new(Metrics::new(1, OtlpPipeline::default())),
                None,
            )),
            &Arc::new(FairBudget::new(usize::MAX)),
            Arc::default(),
        );
        let mut woken = WakeQueue::default();
        let mut cursors: Vec<Cursor> = {
            let mut publication = feed.publish(bytes::Bytes::new(), &mut woken);
            (0..readers)
                .map(|_| publication.subscribe(Origin::default()))
                .collect()
        };
        let context = Context::from_waker(Waker::noop());
        let name = format!("publish {batch} and read, readers");
        group.throughput(Throughput::Elements((batch * readers) as u64));
        group.bench_function(BenchmarkId::new(name, readers), |bencher| {
            bencher.iter(|| {
                let mut publication = feed.publish(bytes.clone(), &mut woken);
                publication.push_run(lengths.iter().sum(), events, Instant::now());
                drop(publication);
                woken.wake(readers);
                for cursor in &mut cursors {
                    let item = cursor.poll_next(&context);
                    assert!(matches!(item, Poll::Ready(FeedItem::Events(_))), "{item:?}");
                    // A subscriber whose transport is idle polls until it is parked.
                    assert_eq!(cursor.poll_next(&context), Poll::Pending);
                }
            });
        });
    }
    group.finish();
}
