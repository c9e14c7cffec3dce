//! Fair turns between connections.
//!
//! The runtime runs tasks in the order in which they are woken, so a thousand connections that always have something to do would
//! delay everybody else by a thousand turns. Of the busy connections only some are in the runtime's queue at a time; the others, and new
//! connections, wait for their turns: the addresses in turn, those of one address first come first served. Connections that send and receive
//! little do not wait at all.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::coop::unconstrained;
use tokio::task::yield_now;
use tokio::time::Instant;
use tokio_util::sync::PollSemaphore;

use super::observer::{Throttle, ThrottleReporter};
use crate::rate_limiter::{Rate, RateLimiter};
use crate::run_queue::SATURATING_TASKS;

/// The interval over which work is counted.
const INTERVAL: Duration = Duration::from_millis(100);

/// How much work the connections of one address make in [`INTERVAL`] without being busy: a thousand messages, sixty calls, or 4 MB that are
/// sent to them. A connection is busy while it has made more than an equal part of it.
const QUIET_WORK: u32 = 1_000;

/// The least part, which is enough for two calls.
const MIN_QUIET_WORK: u32 = 32;

/// The least part while all connections of an address together have made more than [`QUIET_WORK`] and there are clients at other addresses:
/// enough for a message and its answer. Thousands of connections that each make a little more would be as many turns at a time.
const MIN_QUIET_WORK_IN_CROWD: u32 = 2;

/// For how long at most a connection stays busy after it has made too much work.
const MAX_DEBT: Duration = Duration::from_secs(1);

/// What the turns of all addresses share.
#[derive(Debug)]
pub(super) struct AllTurns {
    /// For those that have a permit of their address.
    permits: Arc<Semaphore>,
    /// How many connections wait for one of them.
    waiting: AtomicUsize,
    /// How many addresses have connections.
    addresses: AtomicUsize,
}

impl AllTurns {
    fn with_permits(permits: usize) -> Self {
        Self {
            permits: Arc::new(Semaphore::new(permits)),
            waiting: AtomicUsize::new(0),
            addresses: AtomicUsize::new(0),
        }
    }
}

impl Default for AllTurns {
    fn default() -> Self {
        Self::with_permits(*SATURATING_TASKS)
    }
}

/// What the connections of one address share.
#[derive(Debug)]
pub(super) struct AddressTurns {
    /// For the busy and new connections that may run.
    permits: Arc<Semaphore>,
    connections: AtomicU32,
    /// The work of all connections.
    limiter: Mutex<RateLimiter>,
    all: Arc<AllTurns>,
    throttling: ThrottleReporter,
}

impl AddressTurns {
    /// Of an address without connections.
    pub(super) fn new(all: Arc<AllTurns>, throttling: ThrottleReporter) -> Self {
        all.addresses.fetch_add(1, Ordering::Relaxed);
        Self {
            permits: Arc::new(Semaphore::new(*SATURATING_TASKS)),
            connections: AtomicU32::new(0),
            limiter: Mutex::default(),
            all,
            throttling,
        }
    }

    /// Whether turns must be short, because there are clients at other addresses: what they send passes through several tasks, and may
    /// wait for a turn of each busy connection before each. Long turns are cheaper.
    pub(super) fn must_be_short(&self) -> bool {
        self.all.addresses.load(Ordering::Relaxed) > 1
    }

    /// Counts `new` work of a connection. Returns with how much in [`INTERVAL`] a connection is not busy.
    fn record(&self, new: u32, now: Instant) -> u32 {
        let rate = Rate::new(QUIET_WORK, INTERVAL, QUIET_WORK);
        let debt = self.limiter.lock().record(new, rate, MAX_DEBT, now);
        let least = if debt.is_zero() || !self.must_be_short() {
            MIN_QUIET_WORK
        } else {
            MIN_QUIET_WORK_IN_CROWD
        };
        let connections = self.connections.load(Ordering::Relaxed).max(1);
        (QUIET_WORK / connections).max(least)
    }
}

impl Drop for AddressTurns {
    fn drop(&mut self) {
        self.all.addresses.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Lets a busy connection run: the permit of its address, and one of all if there are clients at other addresses. An address has no more
/// connections in line for the latter than it has permits, so the addresses take turns, however many connections they have.
#[derive(Debug)]
struct Permit {
    // Dropped first: whoever gets the permit of the address needs it.
    _all: Option<OwnedSemaphorePermit>,
    _address: OwnedSemaphorePermit,
}

/// Counts a connection that waits for a permit of all.
#[derive(Debug)]
struct Waiting(Arc<AllTurns>);

impl Waiting {
    fn new(all: &Arc<AllTurns>) -> Self {
        all.waiting.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(all))
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The turns of one connection.
#[derive(Debug)]
pub(super) struct Turns {
    address: Arc<AddressTurns>,
    permits: PollSemaphore,
    all_permits: PollSemaphore,
    /// Held while it waits for a permit of all.
    address_permit: Option<OwnedSemaphorePermit>,
    waiting: Option<Waiting>,
    /// Held during a turn, and after it until others have had theirs.
    permit: Option<Permit>,
    is_over: bool,
    /// Whether it is in line for a permit, which it must take even if it is not busy any more.
    is_waiting: bool,
    /// Whether it has not been in line yet. A client may have opened thousands, of which nobody knows whether they will be busy.
    is_new: bool,
    /// Whether it has made more work than its part.
    is_busy: bool,
    limiter: RateLimiter,
    /// The work that `limiter` has counted.
    counted: u64,
}

impl Turns {
    pub(super) fn new(address: Arc<AddressTurns>) -> Self {
        address.connections.fetch_add(1, Ordering::Relaxed);
        Self {
            permits: PollSemaphore::new(Arc::clone(&address.permits)),
            all_permits: PollSemaphore::new(Arc::clone(&address.all.permits)),
            address_permit: None,
            waiting: None,
            address,
            permit: None,
            is_over: false,
            is_waiting: false,
            is_new: true,
            is_busy: false,
            limiter: RateLimiter::default(),
            counted: 0,
        }
    }

    /// Waits until the connection, which has made `work` so far, may run.
    pub(super) fn poll_begin(&mut self, cx: &mut Context<'_>, work: u64) -> Poll<()> {
        let new = u32::try_from(work - self.counted).unwrap_or(u32::MAX);
        self.counted = work;
        let now = Instant::now();
        let quiet = self.address.record(new, now);
        let rate = Rate::new(quiet, INTERVAL, quiet);
        let debt = self.limiter.record(new, rate, MAX_DEBT, now);
        if std::mem::take(&mut self.is_over) {
            self.permit = None;
        }
        self.is_busy = !debt.is_zero();
        let needs_permit = std::mem::take(&mut self.is_new) || self.is_busy;
        if self.is_waiting || needs_permit && self.permit.is_none() {
            self.poll_acquire(cx)
        } else {
            Poll::Ready(())
        }
    }

    /// Whether the connection has made more work than its part, so that others may wait for its turns.
    pub(super) const fn is_busy(&self) -> bool {
        self.is_busy
    }

    /// Ends the turn of a connection that waits for something.
    pub(super) fn end(&mut self) {
        self.permit = None;
    }

    /// Ends the turn of a connection that has more to do, and wakes its task for the next one.
    ///
    /// If its turns are long (`is_long`), or those of several addresses wait, a busy connection keeps its permit and is woken only
    /// after the runtime has looked at the sockets, which it does rarely while tasks wake each other.
    pub(super) fn end_and_wake(&mut self, cx: &mut Context<'_>, is_long: bool) {
        let must_yield = is_long || self.address.all.waiting.load(Ordering::Relaxed) > 0;
        self.is_over = must_yield && self.is_busy;
        let is_ready = if self.is_over {
            pin!(yield_now()).poll(cx).is_ready()
        } else {
            self.permit = None;
            !self.is_busy || self.poll_acquire(cx).is_ready()
        };
        if is_ready {
            cx.waker().wake_by_ref();
        }
    }

    fn poll_acquire(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        // The budget of the task may be exhausted, but it must wait in line for the next one.
        let permit = pin!(unconstrained(poll_fn(|cx| self.poll_permits(cx)))).poll(cx);
        let was_waiting = std::mem::replace(&mut self.is_waiting, permit.is_pending());
        if self.is_waiting && !was_waiting {
            self.address.throttling.report(Throttle::Turns);
        }
        permit.map(|permit| self.permit = permit)
    }

    /// `None` if there are no permits any more, which does not happen.
    fn poll_permits(&mut self, cx: &mut Context<'_>) -> Poll<Option<Permit>> {
        if self.address_permit.is_none() {
            self.address_permit = ready!(self.permits.poll_acquire(cx));
        }
        let mut all = None;
        if self.waiting.is_some() || self.address.must_be_short() {
            let Poll::Ready(permit) = self.all_permits.poll_acquire(cx) else {
                let all = &self.address.all;
                self.waiting.get_or_insert_with(|| Waiting::new(all));
                return Poll::Pending;
            };
            all = permit;
        }
        self.waiting = None;
        let permit = |address| Permit {
            _all: all,
            _address: address,
        };
        Poll::Ready(self.address_permit.take().map(permit))
    }
}

impl Drop for Turns {
    fn drop(&mut self) {
        self.address.connections.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use super::*;

    fn address(permits: usize) -> Arc<AddressTurns> {
        address_of(permits, Arc::default())
    }

    fn address_of(permits: usize, all: Arc<AllTurns>) -> Arc<AddressTurns> {
        let mut address = AddressTurns::new(all, ThrottleReporter::default());
        address.permits = Arc::new(Semaphore::new(permits));
        Arc::new(address)
    }

    /// Turns of connections that have had some.
    fn connections<const N: usize>(address: &Arc<AddressTurns>) -> [Turns; N] {
        [(); N].map(|()| {
            let mut turns = Turns::new(Arc::clone(address));
            turns.is_new = false;
            turns
        })
    }

    #[test]
    fn turns_must_be_short_while_there_are_clients_at_other_addresses() {
        let all = Arc::<AllTurns>::default();
        let one = address_of(1, Arc::clone(&all));
        assert!(!one.must_be_short());
        let other = address_of(1, all);
        assert!(one.must_be_short() && other.must_be_short());
        drop(one);
        assert!(!other.must_be_short());
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_of_many_that_make_much_work_together_is_busy_sooner() {
        let all = Arc::<AllTurns>::default();
        let crowd = address_of(1, Arc::clone(&all));
        let mut cx = Context::from_waker(Waker::noop());
        let mut connections = connections::<1_000>(&crowd);
        let mut count_busy = |work: u64| {
            let turns = connections.iter_mut().map(|turns| {
                _ = turns.poll_begin(&mut cx, turns.counted + work);
                turns.end();
                turns.is_busy()
            });
            turns.filter(|is_busy| *is_busy).count()
        };
        // Nobody else has a connection.
        assert_eq!(count_busy(20), 0);
        let _other = address_of(1, all);
        assert_eq!(count_busy(10), 1_000);
        tokio::time::advance(2 * MAX_DEBT).await;
        // The first ones do not make too much.
        assert_eq!(count_busy(20), 950);
        tokio::time::advance(2 * MAX_DEBT).await;
        for _ in 0..20 {
            assert_eq!(count_busy(2), 0);
            tokio::time::advance(INTERVAL).await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn busy_connections_take_turns_and_others_do_not_wait() {
        let address = address(1);
        let mut cx = Context::from_waker(Waker::noop());
        let [mut one, mut other, mut quiet] = connections(&address);
        assert!(one.poll_begin(&mut cx, 2_000).is_ready());
        assert!(other.poll_begin(&mut cx, 2_000).is_pending());
        assert!(quiet.poll_begin(&mut cx, 300).is_ready());
        // It has more to do, but when the runtime comes back to it, the other one is first.
        one.end_and_wake(&mut cx, true);
        assert!(other.poll_begin(&mut cx, 2_000).is_pending());
        assert!(one.poll_begin(&mut cx, 2_000).is_pending());
        assert!(other.poll_begin(&mut cx, 2_000).is_ready());
        other.end();
        assert!(one.poll_begin(&mut cx, 2_000).is_ready());
        assert!(quiet.poll_begin(&mut cx, 2_000).is_pending());
        one.end();
        assert!(quiet.poll_begin(&mut cx, 2_000).is_ready());
        quiet.end();
        assert!(one.poll_begin(&mut cx, 4_000).is_ready());
        // A pause as short as that between its bursts does not make it quiet.
        tokio::time::advance(INTERVAL).await;
        assert!(other.poll_begin(&mut cx, 2_000).is_pending());
        one.end();
        assert!(other.poll_begin(&mut cx, 2_000).is_ready());
        other.end();
        assert!(one.poll_begin(&mut cx, 4_000).is_ready());
        // Once it has been quiet it needs no turn.
        tokio::time::advance(MAX_DEBT + INTERVAL).await;
        assert!(other.poll_begin(&mut cx, 2_300).is_ready());
    }

    #[test]
    fn new_connections_wait_while_others_of_their_address_are_busy() {
        let address = address(1);
        let mut cx = Context::from_waker(Waker::noop());
        let [mut busy] = connections(&address);
        let [mut one, mut other] = [(); 2].map(|()| Turns::new(Arc::clone(&address)));
        assert!(busy.poll_begin(&mut cx, 2_000).is_ready());
        assert!(one.poll_begin(&mut cx, 0).is_pending() && other.poll_begin(&mut cx, 0).is_pending());
        busy.end_and_wake(&mut cx, false);
        assert!(one.poll_begin(&mut cx, 0).is_ready() && other.poll_begin(&mut cx, 0).is_pending());
        assert!(busy.poll_begin(&mut cx, 2_000).is_pending());
        // Only its first turn waits for those of others.
        one.end_and_wake(&mut cx, false);
        assert!(one.poll_begin(&mut cx, 1).is_ready() && !one.is_busy());
        assert!(other.poll_begin(&mut cx, 0).is_ready());
        other.end();
        assert!(busy.poll_begin(&mut cx, 2_000).is_ready() && busy.is_busy());
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_has_more_to_do_waits_for_those_who_came_before() {
        let address = address(1);
        let mut cx = Context::from_waker(Waker::noop());
        let [mut one, mut other] = connections(&address);
        assert!(one.poll_begin(&mut cx, 2_000).is_ready());
        assert!(other.poll_begin(&mut cx, 2_000).is_pending());
        one.end_and_wake(&mut cx, false);
        assert!(other.poll_begin(&mut cx, 2_000).is_ready());
        assert!(one.poll_begin(&mut cx, 2_000).is_pending());
        other.end();
        assert!(one.poll_begin(&mut cx, 2_000).is_ready());
    }

    #[tokio::test(start_paused = true)]
    async fn busy_addresses_take_turns_and_let_the_runtime_look_at_the_sockets() {
        let all = Arc::new(AllTurns::with_permits(1));
        let [crowd, few] = [2, 1].map(|permits| address_of(permits, Arc::clone(&all)));
        let mut cx = Context::from_waker(Waker::noop());
        let [mut one, mut other, mut third] = connections(&crowd);
        let [mut lonely] = connections(&few);
        assert!(one.poll_begin(&mut cx, 2_000).is_ready());
        for turns in [&mut other, &mut third, &mut lonely] {
            assert!(turns.poll_begin(&mut cx, 2_000).is_pending());
        }
        // The permit of its address waits with the second one, and the third one waits for that.
        one.end_and_wake(&mut cx, false);
        assert!(
            other.poll_begin(&mut cx, 2_000).is_pending(),
            "it has its permit still"
        );
        assert!(one.poll_begin(&mut cx, 2_000).is_pending());
        for turns in [&mut other, &mut lonely, &mut third, &mut one] {
            assert!(turns.poll_begin(&mut cx, 2_000).is_ready());
            turns.end();
        }
        assert_eq!(all.waiting.load(Ordering::Relaxed), 0);
        assert!(other.poll_begin(&mut cx, 4_000).is_ready());
        assert!(one.poll_begin(&mut cx, 4_000).is_pending());
        drop(one);
        assert_eq!(all.waiting.load(Ordering::Relaxed), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_that_is_quiet_when_its_turn_comes_leaves_it_to_the_next() {
        let address = address(1);
        let mut cx = Context::from_waker(Waker::noop());
        let [mut one, mut other] = connections(&address);
        assert!(one.poll_begin(&mut cx, 2_000).is_ready());
        assert!(other.poll_begin(&mut cx, 2_000).is_pending());
        tokio::time::advance(2 * INTERVAL).await;
        assert!(other.poll_begin(&mut cx, 2_000).is_pending());
        tokio::time::advance(MAX_DEBT + INTERVAL).await;
        one.end();
        assert!(other.poll_begin(&mut cx, 2_000).is_ready());
        other.end();
        assert!(one.poll_begin(&mut cx, 4_000).is_ready());
    }

    #[tokio::test(start_paused = true)]
    async fn the_connections_of_an_address_share_what_they_may_do_without_turns() {
        let address = address(0);
        let mut cx = Context::from_waker(Waker::noop());
        let [mut one, mut other] = connections(&address);
        let work = u64::from(QUIET_WORK);
        assert!(one.poll_begin(&mut cx, work / 2).is_ready());
        assert!(one.poll_begin(&mut cx, work / 2 + 1).is_pending());
        drop(one);
        assert!(other.poll_begin(&mut cx, work).is_ready());
    }
}
