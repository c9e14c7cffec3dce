//! The queue in which a room's commands get their order.
//!
//! Many senders put items in, one consumer takes out all there are at once: under load the batches grow by themselves,
//! and what a batch costs (a wake-up, a write, a sync) is shared by all of it.
//!
//! Promises:
//!
//! - First in, first out; so each sender's items keep their order.
//! - Bounded by weight. A sender that finds the queue full waits, and is woken when the consumer has taken a batch.
//! - An item that is put in with [`Sender::push_reserved`] never waits. Only what can happen once in a sender's life
//!   goes that way (its departure), so the senders' number bounds it.
//!
//! It does not promise fairness between waiting senders: they are all woken and race.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

/// How much of the queue's capacity an item takes.
pub trait Weight {
    /// The weight, about the bytes that the item occupies.
    fn weight(&self) -> usize;
}

/// The consumer is gone: nothing that is put in would be taken out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the queue is closed")]
pub struct Closed;

/// The queue.
#[derive(Debug)]
pub struct Inbox<T> {
    capacity: usize,
    state: Mutex<State<T>>,
}

#[derive(Debug)]
struct State<T> {
    items: Vec<T>,
    weight: usize,
    closed: bool,
    consumer: Option<Waker>,
    /// The consumer, while it lets items gather until there is no room for more.
    gathering: Option<Waker>,
    /// Senders that found the queue full since the last batch was taken.
    waiting: Vec<Waker>,
    /// Counts the batches taken: a ticket of an earlier one has been called.
    batch: u64,
}

/// A sender's place among the waiting, so that it is there only once however often it is polled.
#[derive(Debug, Clone, Copy)]
struct Ticket {
    batch: u64,
    index: usize,
}

impl<T: Weight> Inbox<T> {
    /// A queue that holds items of at most `capacity` together. An item that is heavier by itself gets in when the
    /// queue is empty.
    #[must_use]
    pub const fn new(capacity: usize) -> Self {
        Self {
            capacity,
            state: Mutex::new(State {
                items: Vec::new(),
                weight: 0,
                closed: false,
                consumer: None,
                gathering: None,
                waiting: Vec::new(),
                batch: 0,
            }),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State<T>> {
        // Nothing in here panics while the lock is held.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes everything there is, in order, by swapping it with `batch`, which must be empty (its memory is used
    /// again). Pending while there is nothing; false when the queue is closed and everything has been taken. Only one
    /// task may wait here.
    pub fn poll_take(&self, cx: &mut Context<'_>, batch: &mut Vec<T>) -> Poll<bool> {
        let mut state = self.lock();
        if state.items.is_empty() {
            if state.closed {
                return Poll::Ready(false);
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
        state.weight = 0;
        state.batch += 1;
        let waiting = std::mem::take(&mut state.waiting);
        drop(state);
        waiting.into_iter().for_each(Waker::wake);
        Poll::Ready(true)
    }

    /// Ready when somebody waits for room, or the queue is closed: when there is no use in letting more items gather.
    /// For the consumer.
    pub fn poll_full(&self, cx: &Context<'_>) -> Poll<()> {
        let mut state = self.lock();
        if state.closed || !state.waiting.is_empty() {
            return Poll::Ready(());
        }
        state.gathering = Some(cx.waker().clone());
        Poll::Pending
    }

    /// Lets nothing more in. What is in can still be taken.
    pub fn close(&self) {
        let mut state = self.lock();
        state.closed = true;
        let waiting = std::mem::take(&mut state.waiting);
        let consumer = state.consumer.take().into_iter().chain(state.gathering.take());
        drop(state);
        waiting.into_iter().chain(consumer).for_each(Waker::wake);
    }

    /// Closes the queue if nothing is in it; whether it did.
    pub fn close_if_empty(&self) -> bool {
        let mut state = self.lock();
        // Whoever waits to put something in will find it open or closed, and was woken when it was emptied.
        state.closed |= state.items.is_empty();
        state.closed
    }

    /// Whether the queue was closed.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.lock().closed
    }
}

/// A hand that puts items in.
#[derive(Debug)]
pub struct Sender<T> {
    inbox: Arc<Inbox<T>>,
    ticket: Option<Ticket>,
}

impl<T: Weight> Sender<T> {
    /// A sender for this queue.
    #[must_use]
    pub const fn new(inbox: Arc<Inbox<T>>) -> Self {
        Self { inbox, ticket: None }
    }

    /// Puts `item` in, leaving none in its place. While the queue is full it is pending and the item stays.
    ///
    /// # Errors
    ///
    /// When the queue is closed; the item stays then too.
    pub fn poll_push(&mut self, cx: &mut Context<'_>, item: &mut Option<T>) -> Poll<Result<(), Closed>> {
        let Some(weight) = item.as_ref().map(Weight::weight) else {
            return Poll::Ready(Ok(()));
        };
        let mut state = self.inbox.lock();
        if state.closed {
            return Poll::Ready(Err(Closed));
        }
        if state.weight > 0 && state.weight + weight > self.inbox.capacity {
            match self.ticket.filter(|ticket| ticket.batch == state.batch) {
                Some(ticket) => state.waiting[ticket.index].clone_from(cx.waker()),
                None => {
                    self.ticket = Some(Ticket {
                        batch: state.batch,
                        index: state.waiting.len(),
                    });
                    state.waiting.push(cx.waker().clone());
                }
            }
            let gathering = state.gathering.take();
            drop(state);
            if let Some(waker) = gathering {
                waker.wake();
            }
            return Poll::Pending;
        }
        let consumer = item.take().and_then(|item| state.push(item, weight));
        drop(state);
        if let Some(waker) = consumer {
            waker.wake();
        }
        Poll::Ready(Ok(()))
    }

    /// Puts `item` in without waiting, full or not. For what a sender does once.
    ///
    /// # Errors
    ///
    /// When the queue is closed.
    pub fn push_reserved(&self, item: T) -> Result<(), Closed> {
        let weight = item.weight();
        let mut state = self.inbox.lock();
        if state.closed {
            return Err(Closed);
        }
        let consumer = state.push(item, weight);
        drop(state);
        if let Some(waker) = consumer {
            waker.wake();
        }
        Ok(())
    }
}

impl<T> State<T> {
    /// Puts it in; gives the consumer to wake if it waits.
    fn push(&mut self, item: T, weight: usize) -> Option<Waker> {
        self.items.push(item);
        self.weight += weight;
        self.consumer.take()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    impl Weight for u32 {
        fn weight(&self) -> usize {
            1
        }
    }

    fn cx() -> Context<'static> {
        Context::from_waker(Waker::noop())
    }

    fn push(sender: &mut Sender<u32>, item: u32) -> Poll<Result<(), Closed>> {
        sender.poll_push(&mut cx(), &mut Some(item))
    }

    #[test]
    fn items_come_out_in_order_all_at_once() {
        let inbox = Arc::new(Inbox::new(9));
        let (mut one, mut other) = (Sender::new(Arc::clone(&inbox)), Sender::new(Arc::clone(&inbox)));
        let mut batch = Vec::new();
        assert_eq!(inbox.poll_take(&mut cx(), &mut batch), Poll::Pending);
        for (sender, item) in [(&mut one, 1), (&mut other, 2)] {
            assert_eq!(push(sender, item), Poll::Ready(Ok(())));
        }
        assert_eq!(push(&mut one, 3), Poll::Ready(Ok(())));
        assert_eq!(inbox.poll_take(&mut cx(), &mut batch), Poll::Ready(true));
        assert_eq!(batch, [1, 2, 3]);
    }

    #[test]
    fn a_full_queue_makes_senders_wait_once_each() {
        let inbox = Arc::new(Inbox::new(2));
        let mut sender = Sender::new(Arc::clone(&inbox));
        for item in 0..2 {
            assert_eq!(push(&mut sender, item), Poll::Ready(Ok(())));
        }
        for _ in 0..5 {
            assert_eq!(push(&mut sender, 2), Poll::Pending);
        }
        assert_eq!(inbox.lock().waiting.len(), 1);
        assert_eq!(sender.push_reserved(9), Ok(()));
        let mut batch = Vec::new();
        assert_eq!(inbox.poll_take(&mut cx(), &mut batch), Poll::Ready(true));
        assert_eq!(batch, [0, 1, 9]);
        assert!(inbox.lock().waiting.is_empty());
        assert_eq!(push(&mut sender, 2), Poll::Ready(Ok(())));
    }

    #[test]
    fn who_lets_items_gather_hears_when_there_is_no_room_for_more() {
        let inbox = Arc::new(Inbox::new(1));
        let mut sender = Sender::new(Arc::clone(&inbox));
        assert_eq!(push(&mut sender, 1), Poll::Ready(Ok(())));
        assert_eq!(inbox.poll_full(&cx()), Poll::Pending);
        assert_eq!(push(&mut sender, 2), Poll::Pending);
        assert!(inbox.lock().gathering.is_none(), "it was woken");
        assert_eq!(inbox.poll_full(&cx()), Poll::Ready(()));
        let mut batch = Vec::new();
        assert_eq!(inbox.poll_take(&mut cx(), &mut batch), Poll::Ready(true));
        assert_eq!(inbox.poll_full(&cx()), Poll::Pending);
        inbox.close();
        assert!(inbox.lock().gathering.is_none(), "it was woken");
        assert_eq!(inbox.poll_full(&cx()), Poll::Ready(()));
    }

    #[test]
    fn a_closed_queue_gives_what_it_has_and_takes_nothing() {
        let inbox = Arc::new(Inbox::new(2));
        let mut sender = Sender::new(Arc::clone(&inbox));
        assert_eq!(push(&mut sender, 1), Poll::Ready(Ok(())));
        inbox.close();
        assert_eq!(push(&mut sender, 2), Poll::Ready(Err(Closed)));
        assert_eq!(sender.push_reserved(2), Err(Closed));
        let mut batch = Vec::new();
        assert_eq!(inbox.poll_take(&mut cx(), &mut batch), Poll::Ready(true));
        batch.clear();
        assert_eq!(inbox.poll_take(&mut cx(), &mut batch), Poll::Ready(false));
    }
}
