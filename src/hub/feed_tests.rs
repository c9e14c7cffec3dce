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
    fn room_opened(&self) {}
    fn room_closed(&self) {}
    fn lag_started(&self) {}
    fn lag_ended(&self) {}
    fn batch_stored(&self, _: Duration) {}
    fn causality_violated(&self, _: &RoomName, _: Sequence) {}
    fn resumed(&self, _: bool) {}
}

fn used() -> Arc<UsedBytes> {
    Arc::new(UsedBytes::new(usize::MAX))
}

/// A feed with [`CAPACITY`], and what it reports.
fn new_feed() -> (Arc<Feed>, Arc<Counts>) {
    let counts = Arc::new(Counts::default());
    let observer = Arc::clone(&counts) as Arc<dyn Observer>;
    (Feed::new(CAPACITY, Sequence::ZERO, observer, used()), counts)
}

fn cx() -> Context<'static> {
    Context::from_waker(Waker::noop())
}

fn publish(feed: &Arc<Feed>, bytes: &'static [u8]) {
    let mut woken = Vec::new();
    feed.publish(Bytes::from_static(bytes), &mut woken)
        .push_run(bytes.len(), 1, Instant::now());
}

fn subscribe(feed: &Arc<Feed>) -> Cursor {
    feed.publish(Bytes::new(), &mut Vec::new())
        .subscribe(Origin::default())
}

fn events(item: Poll<FeedItem>) -> Bytes {
    match item {
        Poll::Ready(FeedItem::Events(bytes)) => bytes,
        other => panic!("{other:?}"),
    }
}

#[test]
fn all_feeds_together_retain_no_more_than_their_budget() {
    static BATCH: [u8; 64 * 1024] = [0; 64 * 1024];
    let used = Arc::new(UsedBytes::new(1 << 20));
    let retained = |feed: &Arc<Feed>| feed.state.lock().blocks.len();
    let feeds: Vec<(Arc<Feed>, Cursor)> = (0..3)
        .map(|_| {
            let counts = Arc::new(Counts::default());
            let feed = Feed::new(1 << 20, Sequence::ZERO, counts, Arc::clone(&used));
            let cursor = subscribe(&feed);
            (0..15).for_each(|_| publish(&feed, &BATCH));
            (feed, cursor)
        })
        .collect();
    let blocks: Vec<usize> = feeds.iter().map(|(feed, _)| retained(feed)).collect();
    // The readers of the others are served from the store.
    assert_eq!(blocks, [15, 0, 0]);
    drop(feeds);
    used.add(1 << 20);
    assert!(!used.is_exceeded());
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
        let feed = Feed::new(1 << 20, Sequence::ZERO, Arc::clone(&counts) as Arc<dyn Observer>, used());
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
                    let mut woken = Vec::new();
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
                                    publication.close(cursor.key(), CloseReason::Left);
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
