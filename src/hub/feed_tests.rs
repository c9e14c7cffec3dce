//! The feed against a model in which every cursor has a list of its own.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::domain::{LamportTime, Rejection, RoomName};
use crate::proto::EventType;

const CAPACITY: usize = 200;

#[derive(Default)]
struct Counts {
    delivered: AtomicU64,
    completed: AtomicU64,
}

impl Observer for Counts {
    fn event_stored(&self, _: EventType, _: LamportTime) {}
    fn command_rejected(&self, _: &Rejection) {}
    fn delivered(&self, events: u32, _: Duration) {
        self.delivered.fetch_add(events.into(), Ordering::Relaxed);
    }
    fn fan_out_completed(&self, events: u32, _: Duration) {
        self.completed.fetch_add(events.into(), Ordering::Relaxed);
    }
    fn delivered_from_store(&self, _: u32) {}
    fn participant_connected(&self) {}
    fn participant_disconnected(&self) {}
    fn room_loaded(&self) {}
    fn room_unloaded(&self) {}
    fn page_read_throttled(&self) {}
    fn lag_started(&self) {}
    fn lag_ended(&self) {}
    fn batch_stored(&self, _: Duration) {}
    fn causality_violated(&self, _: &RoomName, _: Sequence) {}
    fn resumed(&self, _: bool) {}
}

/// A feed with a budget of its own.
fn feed_with(capacity: usize, counts: &Arc<Counts>) -> Arc<Feed> {
    let observer = Arc::clone(counts) as Arc<dyn Observer>;
    Feed::new(
        capacity,
        Sequence::ZERO,
        observer,
        &Arc::new(FairBudget::new(usize::MAX)),
        Arc::default(),
    )
}

/// A feed with [`CAPACITY`], and what it reports.
fn new_feed() -> (Arc<Feed>, Arc<Counts>) {
    let counts = Arc::new(Counts::default());
    (feed_with(CAPACITY, &counts), counts)
}

fn cx() -> Context<'static> {
    Context::from_waker(Waker::noop())
}

fn publish(feed: &Arc<Feed>, bytes: &'static [u8]) {
    let mut woken = WakeQueue::default();
    feed.publish(Bytes::from_static(bytes), &mut woken)
        .push_run(bytes.len(), 1, Instant::now());
}

fn subscribe(feed: &Arc<Feed>) -> Cursor {
    feed.publish(Bytes::new(), &mut WakeQueue::default())
        .subscribe(Origin::default())
}

fn events(item: Poll<FeedItem>) -> Bytes {
    match item {
        Poll::Ready(FeedItem::Events(bytes)) => bytes,
        other => panic!("{other:?}"),
    }
}

/// Three feeds, each with a reader that reads nothing, that share a budget of 1 MiB.
fn feeds_of_one_budget() -> Vec<(Arc<Feed>, Cursor)> {
    let budget = Arc::new(FairBudget::new(1 << 20));
    let feeds = (0..3).map(|_| {
        let feed = Feed::new(
            1 << 20,
            Sequence::ZERO,
            Arc::new(Counts::default()),
            &budget,
            Arc::default(),
        );
        let cursor = subscribe(&feed);
        (feed, cursor)
    });
    feeds.collect()
}

fn retained(feed: &Feed) -> usize {
    feed.state.lock().retained()
}

#[test]
fn all_feeds_together_retain_no_more_than_their_budget() {
    static BATCH: [u8; 64 * 1024] = [0; 64 * 1024];
    let mut feeds = feeds_of_one_budget();
    publish(&feeds[0].0, &BATCH);
    (0..4).for_each(|_| publish(&feeds[1].0, &BATCH));
    // This reader has yet to read only the newest ones.
    let _late = subscribe(&feeds[1].0);
    (0..4).for_each(|_| publish(&feeds[1].0, &BATCH));
    // The other reader of this one keeps up.
    let mut live = subscribe(&feeds[2].0);
    let mut most = 0;
    for _ in 0..100 {
        publish(&feeds[2].0, &BATCH);
        most = most.max(retained(&feeds[2].0));
        if live.poll_next(&cx()) == Poll::Ready(FeedItem::Lagged) {
            live.skip_to_end();
        }
        let all: usize = feeds.iter().map(|(feed, _)| retained(feed)).sum();
        assert!(all <= 1 << 20, "{all}");
    }
    // Who has little keeps it, and those who have more have the same.
    let [small, one, most] =
        [retained(&feeds[0].0), retained(&feeds[1].0), most].map(|bytes| bytes / BATCH.len());
    assert_eq!(small, 1);
    assert!(one >= 4 && most >= 4, "{one} {most}");
    assert!(matches!(
        feeds[0].1.poll_next(&cx()),
        Poll::Ready(FeedItem::Events(_))
    ));
    assert_eq!(feeds[1].1.poll_next(&cx()), Poll::Ready(FeedItem::Lagged));
}

#[test]
fn a_feed_that_shrinks_keeps_nothing_that_nobody_will_read() {
    let (feed, _) = new_feed();
    let mut slow = subscribe(&feed);
    (0..10).for_each(|_| publish(&feed, b"0123456789"));
    let half = retained(&feed) / 2;
    feed.shrink(half);
    assert_eq!(slow.poll_next(&cx()), Poll::Ready(FeedItem::Lagged));
    assert_eq!(retained(&feed), 0);
}

#[test]
fn a_cursor_with_too_many_notices_closes_and_others_keep_theirs() {
    let mut feeds = feeds_of_one_budget();
    let notify = |feed: &Arc<Feed>, cursor: &Cursor| {
        let notice = Bytes::from_static(&[0; 400]);
        feed.publish(Bytes::new(), &mut WakeQueue::default())
            .notify(cursor.key(), notice);
    };
    let (feed, greedy) = feeds.remove(0);
    let mut greedy = greedy;
    let mut other = subscribe(&feed);
    notify(&feed, &other);
    notify(&feeds[0].0, &feeds[0].1);
    for _ in 0..10_000 {
        notify(&feed, &greedy);
        assert!(retained(&feed) <= 1 << 20);
    }
    let closed = Poll::Ready(FeedItem::Closed(CloseReason::FellBehind));
    assert_eq!(greedy.poll_next(&cx()), closed);
    for cursor in [&mut other, &mut feeds[0].1] {
        assert!(matches!(
            cursor.poll_next(&cx()),
            Poll::Ready(FeedItem::Notice(_))
        ));
        assert_eq!(cursor.poll_next(&cx()), Poll::Pending);
    }
    drop((greedy, other));
    assert_eq!(retained(&feed), 0);
}

#[test]
fn nobody_loses_events_because_of_the_notices_of_another() {
    let (feed, _) = new_feed();
    let (mut slow, mut greedy) = (subscribe(&feed), subscribe(&feed));
    publish(&feed, b"0123456789");
    for _ in 0..100 {
        feed.publish(Bytes::new(), &mut WakeQueue::default())
            .notify(greedy.key(), Bytes::from_static(&[0; 400]));
    }
    feed.shrink(retained(&feed) * 3 / 4);
    let closed = Poll::Ready(FeedItem::Closed(CloseReason::FellBehind));
    assert_eq!(greedy.poll_next(&cx()), closed);
    assert_eq!(events(slow.poll_next(&cx())), "0123456789");
}

#[test]
fn unread_events_of_one_block_are_one_slice() {
    let (feed, _) = new_feed();
    let mut cursor = subscribe(&feed);
    for bytes in [b"one ", b"two ", b"more"] {
        publish(&feed, bytes);
    }
    assert_eq!(events(cursor.poll_next(&cx())), "one two more");
    assert_eq!(cursor.poll_next(&cx()), Poll::Pending);
    publish(&feed, b"last");
    assert_eq!(events(cursor.poll_next(&cx())), "last");
}

#[test]
fn cursors_that_keep_up_share_the_memory_of_the_batch() {
    let (feed, _) = new_feed();
    let (mut one, mut other) = (subscribe(&feed), subscribe(&feed));
    publish(&feed, b"shared");
    assert_eq!(
        events(one.poll_next(&cx())).as_ptr(),
        events(other.poll_next(&cx())).as_ptr()
    );
    assert!(
        feed.state.lock().blocks.is_empty(),
        "what everybody has read is freed"
    );
}

#[test]
fn cursors_that_are_gone_take_no_memory() {
    let (feed, _) = new_feed();
    let mut woken = WakeQueue::default();
    let mut cursors: Vec<_> = (0..5_000).map(|_| subscribe(&feed)).collect();
    for cursor in &mut cursors {
        assert_eq!(cursor.poll_next(&cx()), Poll::Pending);
    }
    feed.publish(Bytes::from_static(b"x"), &mut woken)
        .push_run(1, 1, Instant::now());
    cursors.truncate(1);
    feed.publish(Bytes::from_static(b"y"), &mut woken)
        .push_run(1, 1, Instant::now());
    let state = feed.state.lock();
    let capacities = [state.cursors.capacity(), state.parked.capacity()];
    assert!(
        capacities.iter().all(|capacity| *capacity < 200),
        "{capacities:?}"
    );
}

#[test]
fn a_pending_cursor_is_parked_once() {
    let (feed, _) = new_feed();
    let (mut one, mut other) = (subscribe(&feed), subscribe(&feed));
    for _ in 0..5 {
        assert_eq!(one.poll_next(&cx()), Poll::Pending);
        assert_eq!(other.poll_next(&cx()), Poll::Pending);
    }
    assert_eq!(feed.state.lock().parked.len(), 2);
    drop(one);
    assert_eq!(feed.state.lock().parked.len(), 1);
    publish(&feed, b"x");
    assert_eq!(feed.state.lock().parked.len(), 0);
    assert_eq!(events(other.poll_next(&cx())), "x");
}

#[test]
fn what_only_a_lagging_cursor_has_not_read_is_freed() {
    let (feed, counts) = new_feed();
    let mut slow = subscribe(&feed);
    (0..CAPACITY).for_each(|_| publish(&feed, b"0123456789"));
    assert_eq!(slow.poll_next(&cx()), Poll::Ready(FeedItem::Lagged));
    assert!(feed.state.lock().blocks.is_empty());
    assert_eq!(counts.completed.load(Ordering::Relaxed), CAPACITY as u64);
}

#[test]
fn a_lagging_cursor_is_told_and_retains_no_memory() {
    let (feed, counts) = new_feed();
    let (mut slow, mut fast) = (subscribe(&feed), subscribe(&feed));
    for _ in 0..1_000 {
        publish(&feed, b"0123456789");
        assert_eq!(events(fast.poll_next(&cx())), "0123456789");
        let state = feed.state.lock();
        assert!(state.blocks.iter().map(|block| block.bytes.len()).sum::<usize>() <= 2 * CAPACITY);
    }
    assert_eq!(slow.poll_next(&cx()), Poll::Ready(FeedItem::Lagged));
    assert_eq!(slow.poll_next(&cx()), Poll::Ready(FeedItem::Lagged));
    // It can continue from the end, once it has read what it missed elsewhere.
    assert_eq!(
        (slow.position(), slow.skip_to_end()),
        (Sequence::ZERO, Sequence::new(1_000))
    );
    assert_eq!(slow.poll_next(&cx()), Poll::Pending);
    publish(&feed, b"x");
    assert_eq!(events(slow.poll_next(&cx())), "x");
    assert_eq!(
        (slow.position(), fast.position()),
        (Sequence::new(1_001), Sequence::new(1_000))
    );
    drop(fast);
    assert_eq!(counts.completed.load(Ordering::Relaxed), 1_001);
}

#[derive(Debug, Clone)]
enum Action {
    Publish(Vec<Step>),
    Read(usize),
    Drop(usize),
}

#[derive(Debug, Clone)]
enum Step {
    Run(u8),
    Subscribe,
    Notify(usize),
    Close(usize),
}

fn actions() -> impl Strategy<Value = Vec<Action>> {
    let step = prop_oneof![
        4 => (1..20_u8).prop_map(Step::Run),
        2 => Just(Step::Subscribe),
        1 => (0..6_usize).prop_map(Step::Notify),
        1 => (0..6_usize).prop_map(Step::Close),
    ];
    let action = prop_oneof![
        4 => prop::collection::vec(step, 0..6).prop_map(Action::Publish),
        8 => (0..6_usize).prop_map(Action::Read),
        1 => (0..6_usize).prop_map(Action::Drop),
    ];
    prop::collection::vec(action, 0..80)
}

/// What one cursor has yet to yield.
#[derive(Default)]
struct Expected {
    items: VecDeque<Item>,
    is_closed: bool,
}

#[derive(Debug, PartialEq)]
enum Item {
    Event(u8),
    Notice(u8),
}

proptest! {
    #[test]
    fn each_cursor_yields_the_same_as_a_list_of_its_own(actions in actions()) {
        // Large enough that no cursor lags.
        let counts = Arc::new(Counts::default());
        let feed = feed_with(1 << 20, &counts);
        let mut readers: Vec<(Cursor, Expected)> = Vec::new();
        let mut next = 0_u8;
        let mut delivered = 0;
        for action in actions {
            match action {
                Action::Publish(steps) => {
                    // An event is one byte here.
                    let count: usize = steps.iter().map(|step| if let Step::Run(n) = step { usize::from(*n) } else { 0 }).sum();
                    let first = next;
                    let bytes: Vec<u8> = (0..count).map(|i| first.wrapping_add(i.to_le_bytes()[0])).collect();
                    let mut woken = WakeQueue::default();
                    let mut subscribed = Vec::new();
                    let mut publication = feed.publish(Bytes::from(bytes), &mut woken);
                    for step in steps {
                        match step {
                            Step::Run(n) => {
                                publication.push_run(n.into(), n.into(), Instant::now());
                                for _ in 0..n {
                                    let all = readers.iter_mut().chain(&mut subscribed);
                                    for (_, expected) in all.filter(|(_, expected)| !expected.is_closed) {
                                        expected.items.push_back(Item::Event(next));
                                    }
                                    next = next.wrapping_add(1);
                                }
                            }
                            Step::Subscribe => subscribed.push((publication.subscribe(Origin::default()), Expected::default())),
                            Step::Notify(index) => {
                                if let Some((cursor, expected)) = readers.get_mut(index)
                                    && !expected.is_closed
                                {
                                    publication.notify(cursor.key(), Bytes::copy_from_slice(&[next]));
                                    expected.items.push_back(Item::Notice(next));
                                }
                            }
                            Step::Close(index) => {
                                if let Some((cursor, expected)) = readers.get_mut(index) {
                                    publication.close(cursor.key(), CloseReason::Detached);
                                    expected.is_closed = true;
                                }
                            }
                        }
                    }
                    drop(publication);
                    readers.extend(subscribed);
                }
                Action::Read(index) => {
                    if let Some((cursor, expected)) = readers.get_mut(index) {
                        match cursor.poll_next(&cx()) {
                            Poll::Ready(FeedItem::Events(bytes)) => {
                                for byte in bytes {
                                    prop_assert_eq!(expected.items.pop_front(), Some(Item::Event(byte)));
                                    delivered += 1;
                                }
                            }
                            Poll::Ready(FeedItem::Notice(bytes)) => {
                                prop_assert_eq!(expected.items.pop_front(), Some(Item::Notice(bytes[0])));
                            }
                            Poll::Ready(FeedItem::Closed(_)) => prop_assert!(expected.is_closed && expected.items.is_empty()),
                            Poll::Ready(FeedItem::Lagged) => prop_assert!(false, "nothing was dropped"),
                            Poll::Pending => prop_assert!(!expected.is_closed && expected.items.is_empty()),
                        }
                    }
                }
                Action::Drop(index) => {
                    if index < readers.len() {
                        readers.swap_remove(index);
                    }
                }
            }
            let state = feed.state.lock();
            prop_assert_eq!(counts.delivered.load(Ordering::Relaxed), delivered);
            prop_assert_eq!(state.at_end + state.runs.iter().map(|run| run.waiting).sum::<usize>(), readers.len());
            prop_assert!(state.runs.front().is_none_or(|run| run.waiting > 0));
            prop_assert_eq!(state.blocks.is_empty(), state.runs.is_empty());
        }
    }
}
