//! A room's mailbox: the queue that puts a room's requests in order.
//!
//! Many senders push; one consumer drains everything that is queued at once. Under load batches therefore grow by
//! themselves, and all items of a batch share its cost (a wake-up, a write, a sync).
//!
//! Guarantees:
//!
//! - First in, first out, so each sender's items keep their order.
//! - Bounded by weight. A sender that finds the queue full waits until the consumer has taken a batch and its item fits.
//!   Thousands that wait are woken some at a time, as [readers](super::wake_queue) are.
//! - All mailboxes together are bounded, too: beyond that each accepts little at a time.
//! - Fair: those who wait may exceed the capacity by as much again with each batch that is taken, so a sender that pushes
//!   without a pause delays nobody by more than a few batches, and all who wait have their turn.
//! - [`Sender::push_last`] never waits. A sender calls it at most once, when it departs, so the number of senders bounds
//!   how far the queue can exceed its capacity.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Waker};

use parking_lot::Mutex;

use super::blocked_senders::{BlockedSenders, Position, Waiter};
use crate::run_queue::{WAKE_GROUP, requeue};

/// The capacity while all mailboxes together exceed their budget: a dozen short messages.
const MIN_CAPACITY: usize = 4 * 1024;

/// For how many items the queue keeps memory while it is empty. A mailbox that was full once would hold megabytes.
const SPARE_CAPACITY: usize = 8;

/// How many empty queues are kept for mailboxes that fill: two for each of a few busy rooms.
const MAX_SPARE_QUEUES: usize = 8;

/// A queue with memory for this many items is too small to keep: it is cheap to allocate.
const SMALL_CAPACITY: usize = 128;

/// For how many items a queue that is kept has memory at most: roughly what a mailbox holds.
const MAX_SPARE_CAPACITY: usize = 4_096;

/// By how many times the capacity those who wait may exceed it.
const MAX_EXCESS: usize = 3;

/// An item of a mailbox, which takes a share of its capacity.
pub(super) trait Weight {
    /// Roughly the bytes that the item occupies.
    fn weight(&self) -> usize;
}

/// What all mailboxes share.
#[derive(Debug)]
pub(super) struct MailboxPool<T> {
    limit: usize,
    /// How many bytes the items of all mailboxes take.
    used: AtomicUsize,
    /// Empty queues. The mailbox of a busy room is empty thousands of times per second, and each time it would free its memory, and then
    /// ask the system for as much.
    spare: Mutex<Vec<Vec<T>>>,
}

impl<T> MailboxPool<T> {
    /// The items of all mailboxes may take `limit` bytes; beyond it each mailbox accepts less.
    pub(super) const fn new(limit: usize) -> Self {
        Self {
            limit,
            used: AtomicUsize::new(0),
            spare: Mutex::new(Vec::new()),
        }
    }

    /// Keeps the memory of `queue`, which is empty, for others, unless it is small.
    fn recycle(&self, queue: &mut Vec<T>) {
        debug_assert!(queue.is_empty(), "its items would come to another room");
        if queue.capacity() <= SMALL_CAPACITY {
            queue.shrink_to(SPARE_CAPACITY);
            return;
        }
        let mut queue = std::mem::take(queue);
        queue.shrink_to(MAX_SPARE_CAPACITY);
        let mut spare = self.spare.lock();
        if spare.len() < MAX_SPARE_QUEUES {
            spare.push(queue);
        }
    }

    /// Moves the items of `queue`, which is full, to a larger one that was kept, if there is one.
    fn grow(&self, queue: &mut Vec<T>) {
        let larger = self.spare.lock().pop();
        if let Some(mut larger) = larger {
            larger.append(queue);
            *queue = larger;
        }
    }

    fn add(&self, bytes: usize) {
        self.used.fetch_add(bytes, Ordering::Relaxed);
    }

    fn remove(&self, bytes: usize) {
        self.used.fetch_sub(bytes, Ordering::Relaxed);
    }

    fn is_exceeded(&self) -> bool {
        self.used.load(Ordering::Relaxed) > self.limit
    }
}

/// The mailbox is closed: its consumer takes no more items.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the room has stopped")]
pub(crate) struct MailboxClosed;

/// A bounded queue with many senders and one consumer.
#[derive(Debug)]
pub(super) struct Mailbox<T> {
    capacity: usize,
    pool: Arc<MailboxPool<T>>,
    state: Mutex<State<T>>,
}

#[derive(Debug)]
struct State<T> {
    items: Vec<T>,
    weight: usize,
    /// The weight of the batch that was taken last. The consumer has finished with it when it takes the next one.
    taken: usize,
    is_closed: bool,
    /// The consumer, while it waits for items.
    consumer: Option<Waker>,
    /// The consumer, while it lets items accumulate and waits only for the queue to be full.
    coalescing: Option<Waker>,
    /// Senders that found the queue full.
    waiting: BlockedSenders,
    /// The number of batches taken.
    batch: u64,
}

/// A sender that has found the mailbox full. It keeps its position until it has pushed, even while it has been woken.
#[derive(Debug, Clone, Copy)]
struct Ticket {
    position: Position,
    /// See [`Waiter::since`].
    since: u64,
}

impl<T: Weight> Mailbox<T> {
    /// A mailbox for items of at most `capacity` in total weight. A heavier item is accepted if the mailbox is empty.
    pub(super) fn new(capacity: usize, pool: Arc<MailboxPool<T>>) -> Self {
        Self {
            capacity,
            pool,
            state: Mutex::new(State {
                items: Vec::new(),
                weight: 0,
                taken: 0,
                is_closed: false,
                consumer: None,
                coalescing: None,
                waiting: BlockedSenders::default(),
                batch: 0,
            }),
        }
    }

    /// Takes all items, in order, by swapping them with `batch`, which must be empty (its allocation is reused).
    ///
    /// Pending while there are none. Returns false when the mailbox is closed and everything has been taken. Only one
    /// task may wait here, and it calls [`Mailbox::wake_senders`] for each batch.
    pub(super) fn poll_take(&self, cx: &mut Context<'_>, batch: &mut Vec<T>) -> Poll<bool> {
        let mut state = self.state.lock();
        self.pool.remove(std::mem::take(&mut state.taken));
        if state.items.is_empty() {
            if state.is_closed {
                return Poll::Ready(false);
            }
            if !state.waiting.is_empty() {
                // The woken senders have not pushed: their connections may be waiting for a turn.
                drop(state);
                self.wake_group();
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            for queue in [&mut state.items, batch] {
                self.pool.recycle(queue);
            }
            if state
                .consumer
                .as_ref()
                .is_none_or(|waker| !waker.will_wake(cx.waker()))
            {
                state.consumer = Some(cx.waker().clone());
            }
            return Poll::Pending;
        }
        std::mem::swap(&mut state.items, batch);
        state.taken = std::mem::take(&mut state.weight);
        state.batch += 1;
        Poll::Ready(true)
    }

    /// Wakes senders for whom there is room now, some at a time. For the consumer, which has taken a batch.
    ///
    /// Cancellation safe: those that are left are woken with the next batch.
    pub(super) async fn wake_senders(&self) {
        while self.wake_group() {
            // They push before the next ones are woken.
            requeue().await;
        }
    }

    /// Wakes the first senders that wait, at most [`WAKE_GROUP`], as far as there is room for what they push. Returns false if there is none, or no
    /// room.
    fn wake_group(&self) -> bool {
        let mut wakers = Vec::new();
        let mut state = self.state.lock();
        let batch = state.batch;
        let mut weight = state.weight;
        while wakers.len() < WAKE_GROUP
            && let Some(waiter) = state
                .waiting
                .pop_if(|waiter| self.has_room(weight, waiter.weight, batch - waiter.since))
        {
            weight += waiter.weight;
            wakers.push(waiter.waker);
        }
        drop(state);
        let has_any = !wakers.is_empty();
        wakers.into_iter().for_each(Waker::wake);
        has_any
    }

    /// Ready when a sender waits for capacity or the mailbox is closed. For a consumer that lets items accumulate, after
    /// [`Mailbox::wake_senders`]: the first of those that still wait then has no room.
    pub(super) fn poll_full(&self, cx: &Context<'_>) -> Poll<()> {
        let mut state = self.state.lock();
        if state.is_closed || !state.waiting.is_empty() {
            return Poll::Ready(());
        }
        state.coalescing = Some(cx.waker().clone());
        Poll::Pending
    }

    /// Rejects items from now on. Those that are queued can still be taken.
    pub(super) fn close(&self) {
        let mut state = self.state.lock();
        state.is_closed = true;
        let mut waiting = std::mem::take(&mut state.waiting);
        let consumer = state.consumer.take().into_iter().chain(state.coalescing.take());
        drop(state);
        let waiting = std::iter::from_fn(|| waiting.pop_if(|_| true)).map(|waiter| waiter.waker);
        waiting.chain(consumer).for_each(Waker::wake);
    }

    /// Closes the mailbox if it is empty and no sender waits. Returns whether it is closed.
    pub(super) fn close_if_empty(&self) -> bool {
        let mut state = self.state.lock();
        state.is_closed |= state.items.is_empty() && state.waiting.is_empty();
        state.is_closed
    }

    pub(super) fn is_closed(&self) -> bool {
        self.state.lock().is_closed
    }

    /// Whether an item of `weight` fits beside what has the weight `queued`, if its sender has waited for so many batches. One that has waited
    /// long enough need only find some capacity left, or a heavy item would wait as long as others push light ones.
    fn has_room(&self, queued: usize, weight: usize, batches: u64) -> bool {
        let capacity = if self.pool.is_exceeded() {
            self.capacity.min(MIN_CAPACITY)
        } else {
            self.capacity
        };
        let excess = usize::try_from(batches).unwrap_or(MAX_EXCESS).min(MAX_EXCESS);
        let capacity = capacity.saturating_mul(1 + excess);
        queued == 0 || queued + weight <= capacity || (excess == MAX_EXCESS && queued < capacity)
    }
}

impl<T> Drop for Mailbox<T> {
    fn drop(&mut self) {
        let state = self.state.get_mut();
        self.pool.remove(state.weight + state.taken);
    }
}

/// Pushes items into a mailbox.
#[derive(Debug)]
pub(super) struct Sender<T> {
    mailbox: Arc<Mailbox<T>>,
    ticket: Option<Ticket>,
}

impl<T: Weight> Sender<T> {
    pub(super) const fn new(mailbox: Arc<Mailbox<T>>) -> Self {
        Self {
            mailbox,
            ticket: None,
        }
    }

    /// Pushes `item` and leaves `None` in its place. While the mailbox is full this is pending, and the item remains.
    ///
    /// # Errors
    ///
    /// The mailbox is closed; the item remains then, too.
    pub(super) fn poll_push(
        &mut self,
        cx: &mut Context<'_>,
        item: &mut Option<T>,
    ) -> Poll<Result<(), MailboxClosed>> {
        let Some(weight) = item.as_ref().map(Weight::weight) else {
            return Poll::Ready(Ok(()));
        };
        let mut state = self.mailbox.state.lock();
        if state.is_closed {
            return Poll::Ready(Err(MailboxClosed));
        }
        let since = self.ticket.map_or(state.batch, |ticket| ticket.since);
        if !self.mailbox.has_room(state.weight, weight, state.batch - since) {
            let waker = cx.waker().clone();
            let waiter = Waiter { waker, weight, since };
            // Even if it was woken and has lost the room to others.
            if let Some(ticket) = self.ticket {
                state.waiting.put_back(ticket.position, waiter);
            } else {
                let position = state.waiting.push(waiter);
                self.ticket = Some(Ticket { position, since });
            }
            let coalescing = state.coalescing.take();
            drop(state);
            if let Some(waker) = coalescing {
                waker.wake();
            }
            return Poll::Pending;
        }
        if let Some(ticket) = self.ticket.take() {
            state.waiting.remove(ticket.position);
        }
        let consumer = item
            .take()
            .and_then(|item| state.push(item, weight, &self.mailbox.pool));
        drop(state);
        if let Some(waker) = consumer {
            waker.wake();
        }
        Poll::Ready(Ok(()))
    }

    /// Pushes `item` without waiting, even if the mailbox is full. A sender may do this once.
    ///
    /// # Errors
    ///
    /// The mailbox is closed.
    pub(super) fn push_last(&self, item: T) -> Result<(), MailboxClosed> {
        let weight = item.weight();
        let mut state = self.mailbox.state.lock();
        if state.is_closed {
            return Err(MailboxClosed);
        }
        let consumer = state.push(item, weight, &self.mailbox.pool);
        drop(state);
        if let Some(waker) = consumer {
            waker.wake();
        }
        Ok(())
    }
}

impl<T> Drop for Sender<T> {
    fn drop(&mut self) {
        if let Some(ticket) = self.ticket {
            self.mailbox.state.lock().waiting.remove(ticket.position);
        }
    }
}

impl<T> State<T> {
    /// Appends the item. Returns the consumer's waker if it waits for items.
    fn push(&mut self, item: T, weight: usize, pool: &MailboxPool<T>) -> Option<Waker> {
        if self.items.len() == SMALL_CAPACITY && self.items.capacity() == SMALL_CAPACITY {
            pool.grow(&mut self.items);
        }
        pool.add(weight);
        self.items.push(item);
        self.weight += weight;
        self.consumer.take()
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::time::{Duration, Instant};

    use futures_util::FutureExt as _;

    use super::*;
    use crate::run_queue::tests::CountingTask;

    impl Weight for u32 {
        fn weight(&self) -> usize {
            1
        }
    }

    impl Weight for usize {
        fn weight(&self) -> usize {
            *self
        }
    }

    fn cx() -> Context<'static> {
        Context::from_waker(Waker::noop())
    }

    fn mailbox(capacity: usize) -> Arc<Mailbox<u32>> {
        Arc::new(Mailbox::new(capacity, Arc::new(MailboxPool::new(1_000_000))))
    }

    fn push(sender: &mut Sender<u32>, item: u32) -> Poll<Result<(), MailboxClosed>> {
        sender.poll_push(&mut cx(), &mut Some(item))
    }

    fn push_from(
        task: &Arc<CountingTask>,
        sender: &mut Sender<u32>,
        item: u32,
    ) -> Poll<Result<(), MailboxClosed>> {
        let waker = Arc::clone(task).into();
        sender.poll_push(&mut Context::from_waker(&waker), &mut Some(item))
    }

    /// Senders that wait, and their tasks.
    fn waiting_senders(
        mailbox: &Arc<Mailbox<u32>>,
        count: usize,
    ) -> (Vec<Sender<u32>>, Vec<Arc<CountingTask>>) {
        let waiting = (0..count).map(|_| {
            let mut sender = Sender::new(Arc::clone(mailbox));
            let task = Arc::default();
            assert_eq!(push_from(&task, &mut sender, 0), Poll::Pending);
            (sender, task)
        });
        waiting.unzip()
    }

    /// Wakes senders until the consumer would be queued again.
    fn wake_a_group(mailbox: &Mailbox<u32>) {
        mailbox.wake_senders().now_or_never();
    }

    #[test]
    fn all_items_are_taken_at_once_in_order() {
        let mailbox = mailbox(9);
        let (mut one, mut other) = (
            Sender::new(Arc::clone(&mailbox)),
            Sender::new(Arc::clone(&mailbox)),
        );
        let mut batch = Vec::new();
        assert_eq!(mailbox.poll_take(&mut cx(), &mut batch), Poll::Pending);
        for (sender, item) in [(&mut one, 1), (&mut other, 2)] {
            assert_eq!(push(sender, item), Poll::Ready(Ok(())));
        }
        assert_eq!(push(&mut one, 3), Poll::Ready(Ok(())));
        assert_eq!(mailbox.poll_take(&mut cx(), &mut batch), Poll::Ready(true));
        assert_eq!(batch, [1, 2, 3]);
    }

    #[test]
    fn a_waiting_sender_is_registered_once() {
        let mailbox = mailbox(2);
        let mut sender = Sender::new(Arc::clone(&mailbox));
        for item in 0..2 {
            assert_eq!(push(&mut sender, item), Poll::Ready(Ok(())));
        }
        let task = Arc::<CountingTask>::default();
        for _ in 0..5 {
            assert_eq!(push_from(&task, &mut sender, 2), Poll::Pending);
        }
        assert_eq!(sender.push_last(9), Ok(()));
        let mut batch = Vec::new();
        assert_eq!(mailbox.poll_take(&mut cx(), &mut batch), Poll::Ready(true));
        assert_eq!(batch, [0, 1, 9]);
        wake_a_group(&mailbox);
        assert_eq!(task.wake_ups(), 1);
        assert!(mailbox.state.lock().waiting.is_empty());
        assert_eq!(push(&mut sender, 2), Poll::Ready(Ok(())));
    }

    #[test]
    fn senders_are_woken_in_order_as_far_as_there_is_room() {
        let mailbox = mailbox(10);
        let mut sender = Sender::new(Arc::clone(&mailbox));
        while push(&mut sender, 0).is_ready() {}
        let (mut senders, tasks) = waiting_senders(&mailbox, 15);
        // One of them does not wait any more.
        drop(senders.remove(3));
        let woken = || -> Vec<_> { tasks.iter().map(|task| task.wake_ups()).collect() };
        let mut batch = Vec::new();
        assert_eq!(mailbox.poll_take(&mut cx(), &mut batch), Poll::Ready(true));
        // Another one was polled for another reason, and was first.
        assert_eq!(push(&mut senders[5], 0), Poll::Ready(Ok(())));
        // There is twice as much room for those that have waited.
        wake_a_group(&mailbox);
        assert_eq!(woken(), [1, 1, 1, 0, 1, 1, 0, 1, 1, 1, 1, 1, 1, 1, 1]);
        batch.clear();
        while push(&mut sender, 0).is_ready() {}
        let (_senders, tasks) = waiting_senders(&mailbox, 40);
        assert_eq!(mailbox.poll_take(&mut cx(), &mut batch), Poll::Ready(true));
        wake_a_group(&mailbox);
        let woken: Vec<_> = tasks.iter().map(|task| task.wake_ups()).collect();
        assert_eq!(woken, [[1; 19].as_slice(), &[0; 21]].concat());
    }

    #[test]
    fn a_sender_that_was_woken_and_finds_no_room_keeps_its_position() {
        let mailbox = mailbox(1);
        let mut greedy = Sender::new(Arc::clone(&mailbox));
        assert_eq!(push(&mut greedy, 0), Poll::Ready(Ok(())));
        let (mut senders, tasks) = waiting_senders(&mailbox, 20);
        let mut batch = Vec::new();
        for _ in 0..3 {
            assert_eq!(mailbox.poll_take(&mut cx(), &mut batch), Poll::Ready(true));
            batch.clear();
            let woken = tasks[0].wake_ups();
            wake_a_group(&mailbox);
            assert_eq!(tasks[0].wake_ups(), woken + 1);
            // Others are faster, and leave no room.
            for _ in 0..=MAX_EXCESS {
                assert_eq!(greedy.push_last(0), Ok(()));
            }
            assert_eq!(push_from(&tasks[0], &mut senders[0], 0), Poll::Pending);
        }
    }

    #[test]
    fn senders_that_are_woken_and_do_not_push_do_not_keep_others_waiting() {
        let mailbox = mailbox(1);
        let mut sender = Sender::new(Arc::clone(&mailbox));
        assert_eq!(push(&mut sender, 0), Poll::Ready(Ok(())));
        let (senders, tasks) = waiting_senders(&mailbox, 100);
        let mut batch = Vec::new();
        assert_eq!(mailbox.poll_take(&mut cx(), &mut batch), Poll::Ready(true));
        batch.clear();
        assert!(!mailbox.close_if_empty(), "senders wait");
        let consumer = Arc::<CountingTask>::default();
        let mut takes = 0;
        while consumer.wake_ups() == takes {
            let waker = Arc::clone(&consumer).into();
            assert_eq!(
                mailbox.poll_take(&mut Context::from_waker(&waker), &mut batch),
                Poll::Pending
            );
            takes += 1;
        }
        assert!(tasks.iter().all(|task| task.wake_ups() == 1));
        assert!(mailbox.close_if_empty());
        drop(senders);
    }

    #[tokio::test]
    async fn others_run_between_groups_of_senders() {
        let mailbox = mailbox(1_000);
        let mut sender = Sender::new(Arc::clone(&mailbox));
        while push(&mut sender, 0).is_ready() {}
        let (senders, tasks) = waiting_senders(&mailbox, 900);
        let mut batch = Vec::new();
        assert_eq!(mailbox.poll_take(&mut cx(), &mut batch), Poll::Ready(true));
        let waking = tokio::spawn(async move { mailbox.wake_senders().await });
        // In a task of its own: that of the test is in no queue.
        let observing = tokio::spawn(async move {
            let woken = || tasks.iter().map(|task| task.wake_ups()).sum::<usize>();
            let mut seen = vec![0];
            while !waking.is_finished() {
                seen.push(woken());
                requeue().await;
            }
            seen
        });
        let seen = observing.await.unwrap();
        assert!(
            seen.windows(2).all(|pair| pair[1] - pair[0] <= WAKE_GROUP),
            "{seen:?}"
        );
        assert_eq!(seen.last(), Some(&900));
        drop(senders);
    }

    #[tokio::test]
    async fn everything_arrives_from_thousands_that_push_or_stop_waiting() {
        const SENDERS: u32 = 2_000;
        const ITEMS: u32 = 20;
        let mailbox = mailbox(50);
        let senders = (0..SENDERS).map(|number| {
            let mailbox = Arc::clone(&mailbox);
            tokio::spawn(async move {
                let mut sender = Sender::new(mailbox);
                for item in 0..ITEMS {
                    let mut item = Some(number * ITEMS + item);
                    let mut polls = 0;
                    // Every third sender stops to wait for its last item, as if its connection had ended.
                    let gives_up = number % 3 == 0 && item == Some(number * ITEMS + ITEMS - 1);
                    poll_fn(|cx| {
                        polls += 1;
                        match sender.poll_push(cx, &mut item) {
                            Poll::Pending if gives_up && polls > number % 2 => Poll::Ready(Ok(())),
                            poll => poll,
                        }
                    })
                    .await
                    .unwrap();
                }
            })
        });
        let senders: Vec<_> = senders.collect();
        let mut batch = Vec::new();
        let mut last = vec![None; SENDERS as usize];
        let mut count = 0;
        let deadline = Instant::now() + Duration::from_secs(60);
        while senders.iter().any(|sender| !sender.is_finished()) || !mailbox.close_if_empty() {
            assert!(Instant::now() < deadline, "{count} have arrived");
            let taken = poll_fn(|cx| mailbox.poll_take(cx, &mut batch)).now_or_never();
            mailbox.wake_senders().await;
            for item in batch.drain(..) {
                let last = last[(item / ITEMS) as usize].replace(item);
                assert!(last.is_none_or(|last| last + 1 == item), "{last:?} {item}");
                count += 1;
            }
            if taken.is_none() {
                requeue().await;
            }
        }
        // At most those that gave up are missing.
        assert!(count >= ITEMS * SENDERS - SENDERS.div_ceil(3), "{count}");
    }

    #[test]
    fn a_sender_that_never_pauses_does_not_keep_out_another() {
        let mailbox = mailbox(100);
        let mut greedy: Vec<_> = (0..10).map(|_| Sender::new(Arc::clone(&mailbox))).collect();
        let mut patient = Sender::new(Arc::clone(&mailbox));
        let mut batch = Vec::new();
        // Those who are greedy are always first.
        for round in 0.. {
            for sender in &mut greedy {
                while push(sender, 0).is_ready() {}
            }
            if push(&mut patient, 7).is_ready() {
                break;
            }
            assert!(round < 2, "it has waited for {round} batches");
            assert_eq!(mailbox.poll_take(&mut cx(), &mut batch), Poll::Ready(true));
            assert!(batch.len() <= 4 * 100);
            batch.clear();
        }
    }

    #[test]
    fn an_item_that_is_heavier_than_the_capacity_does_not_wait_for_an_empty_mailbox() {
        let mailbox = Arc::new(Mailbox::new(10, Arc::new(MailboxPool::new(1_000_000))));
        let (mut light, mut heavy) = (
            Sender::new(Arc::clone(&mailbox)),
            Sender::new(Arc::clone(&mailbox)),
        );
        let fill = |light: &mut Sender<usize>| while light.poll_push(&mut cx(), &mut Some(1)).is_ready() {};
        fill(&mut light);
        let mut item = Some(100);
        let mut batches = 0;
        while heavy.poll_push(&mut cx(), &mut item).is_pending() {
            assert_eq!(mailbox.poll_take(&mut cx(), &mut Vec::new()), Poll::Ready(true));
            fill(&mut light);
            batches += 1;
            assert!(batches <= MAX_EXCESS + 1, "{batches}");
        }
    }

    #[test]
    fn all_mailboxes_together_are_bounded() {
        let pool = Arc::new(MailboxPool::new(10_000));
        let fill = || {
            let mailbox = Arc::new(Mailbox::new(8_000, Arc::clone(&pool)));
            let mut sender = Sender::new(Arc::clone(&mailbox));
            let count = (0..).take_while(|_| push(&mut sender, 0).is_ready()).count();
            (mailbox, count)
        };
        let (one, first) = fill();
        let (other, second) = fill();
        let (third, last) = fill();
        assert_eq!((first, second, last), (8_000, 4_096, 4_096));
        let mut batch = Vec::new();
        assert_eq!(one.poll_take(&mut cx(), &mut batch), Poll::Ready(true));
        drop((other, third));
        assert!(!pool.is_exceeded());
        // A batch counts until the next one is taken.
        assert_eq!(fill().1, 4_096);
        batch.clear();
        assert_eq!(one.poll_take(&mut cx(), &mut batch), Poll::Pending);
        assert_eq!(fill().1, 8_000);
    }

    #[test]
    fn an_empty_mailbox_keeps_little_memory() {
        let mailbox = mailbox(1_000);
        let mut sender = Sender::new(Arc::clone(&mailbox));
        let mut batch = Vec::new();
        for _ in 0..3 {
            while push(&mut sender, 0).is_ready() {}
            assert_eq!(mailbox.poll_take(&mut cx(), &mut batch), Poll::Ready(true));
            wake_a_group(&mailbox);
            batch.clear();
        }
        assert_eq!(mailbox.poll_take(&mut cx(), &mut batch), Poll::Pending);
        assert!(batch.capacity() + mailbox.state.lock().items.capacity() <= 2 * SPARE_CAPACITY);
    }

    #[test]
    fn mailboxes_that_fill_again_reuse_the_memory_of_others() {
        let pool = Arc::new(MailboxPool::new(1_000_000));
        for _ in 0..3 {
            let mailbox = Arc::new(Mailbox::new(10_000, Arc::clone(&pool)));
            let mut sender = Sender::new(Arc::clone(&mailbox));
            let mut batch = Vec::new();
            for item in 0.. {
                if push(&mut sender, item).is_pending() {
                    break;
                }
            }
            assert_eq!(mailbox.poll_take(&mut cx(), &mut batch), Poll::Ready(true));
            assert!(batch.iter().copied().eq(0..10_000));
            wake_a_group(&mailbox);
            batch.clear();
            assert_eq!(mailbox.poll_take(&mut cx(), &mut batch), Poll::Pending);
        }
        let spare = pool.spare.lock();
        assert!(spare.len() == 1 && spare[0].capacity() == MAX_SPARE_CAPACITY);
    }

    #[test]
    fn a_coalescing_consumer_is_woken_when_the_mailbox_is_full_or_closed() {
        let mailbox = mailbox(1);
        let mut sender = Sender::new(Arc::clone(&mailbox));
        assert_eq!(push(&mut sender, 1), Poll::Ready(Ok(())));
        assert_eq!(mailbox.poll_full(&cx()), Poll::Pending);
        assert_eq!(push(&mut sender, 2), Poll::Pending);
        assert!(mailbox.state.lock().coalescing.is_none(), "it was woken");
        assert_eq!(mailbox.poll_full(&cx()), Poll::Ready(()));
        // After the next batch there is room for two of the three that wait.
        let (mut senders, _tasks) = waiting_senders(&mailbox, 2);
        let mut batch = Vec::new();
        assert_eq!(mailbox.poll_take(&mut cx(), &mut batch), Poll::Ready(true));
        wake_a_group(&mailbox);
        for sender in [&mut sender, &mut senders[0]] {
            assert_eq!(push(sender, 2), Poll::Ready(Ok(())));
        }
        wake_a_group(&mailbox);
        assert_eq!(
            mailbox.poll_full(&cx()),
            Poll::Ready(()),
            "the last one has no room"
        );
        senders.pop();
        assert_eq!(mailbox.poll_full(&cx()), Poll::Pending);
        mailbox.close();
        assert!(mailbox.state.lock().coalescing.is_none(), "it was woken");
        assert_eq!(mailbox.poll_full(&cx()), Poll::Ready(()));
    }

    #[test]
    fn a_closed_mailbox_yields_its_items_and_accepts_no_more() {
        let mailbox = mailbox(2);
        let mut sender = Sender::new(Arc::clone(&mailbox));
        assert_eq!(push(&mut sender, 1), Poll::Ready(Ok(())));
        mailbox.close();
        assert_eq!(push(&mut sender, 2), Poll::Ready(Err(MailboxClosed)));
        assert_eq!(sender.push_last(2), Err(MailboxClosed));
        let mut batch = Vec::new();
        assert_eq!(mailbox.poll_take(&mut cx(), &mut batch), Poll::Ready(true));
        batch.clear();
        assert_eq!(mailbox.poll_take(&mut cx(), &mut batch), Poll::Ready(false));
    }
}
