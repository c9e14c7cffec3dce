//! The task of one connection: polls the HTTP/2 connection and all of its streams.
//!
//! A broadcast wakes each connection once, and everything that its streams send in that poll goes to the socket in one
//! write. A task per stream would cost a wake-up and memory for each of them.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use futures_util::stream::{FuturesUnordered, Stream as _};
use parking_lot::Mutex;
use tokio::io::AsyncWrite;
use tokio::task::coop::{has_budget_remaining, unconstrained};
use tokio::time::{Instant, MissedTickBehavior, Sleep, interval_at};
use tokio_util::sync::CancellationToken;

use super::connection_budgets::{ConnectionBudgets, StalledStreams};
use super::corked_io::CorkedIo;
use super::observer::CutReason;
use super::stall_detector::StallDetector;
use super::sub_waker::SubWaker;
use super::turns::Turns;

/// How many times one poll of the task polls the streams and the connection at most, which is a turn. More than once, so that the streams
/// handle at once what the connection has read, and their responses go out in the same write. Bounded, so that a client that
/// never stops sending does not starve other connections.
const MAX_ROUNDS: usize = 4;

/// How many bytes that are sent to a client count as much work as a message from it. Both take about as long.
const SENT_BYTES_PER_WORK: u64 = 4 * 1024;

/// After how much work a turn ends that must be short: what fits into one write to the socket, or some messages.
const SHORT_TURN_WORK: u64 = 32;

/// How many new streams are polled per round: a thousand JOINs that arrive at once take tens of milliseconds.
const NEW_STREAMS_PER_ROUND: usize = 8;

/// The interval at which streams are looked for whose clients accept no data.
const STALL_TICK: Duration = Duration::from_secs(3);

/// After how many of these ticks a stream counts as stalled: it has accepted nothing for at least one interval.
const MIN_STALL_TICKS: u32 = 2;

/// A socket makes progress when it accepts this many bytes, or all that there are. While it does not, its connection counts as a
/// stalled stream too.
const SOCKET_PROGRESS: u64 = 16 * 1024;

type StreamFuture = Pin<Box<dyn Future<Output = ()> + Send>>;

/// The streams that hyper has spawned and that the connection's task has not taken yet.
#[derive(Default)]
pub(super) struct SpawnedStreams(Arc<Mutex<VecDeque<StreamFuture>>>);

impl SpawnedStreams {
    /// The executor that hyper spawns them on.
    pub(super) fn executor(&self) -> StreamExecutor {
        StreamExecutor(Arc::downgrade(&self.0))
    }
}

/// The executor that hyper spawns streams on. Queues them for the connection's task instead of spawning tokio tasks.
///
/// Each stream holds a clone of it, so it does not hold the queue: those that are in it when the connection ends would stay for ever.
#[derive(Clone)]
pub(super) struct StreamExecutor(Weak<Mutex<VecDeque<StreamFuture>>>);

impl<F> hyper::rt::Executor<F> for StreamExecutor
where
    F: Future<Output = ()> + Send + 'static,
{
    fn execute(&self, stream: F) {
        if let Some(spawned) = self.0.upgrade() {
            spawned.lock().push_back(Box::pin(stream));
        }
    }
}

/// The future of one stream.
struct StreamTask {
    stall_detector: Arc<StallDetector>,
    /// `None` once the stream is cancelled.
    future: Option<StreamFuture>,
    /// The waker of the last poll. Cancelling wakes it, so that [`FuturesUnordered`] polls and removes the stream.
    waker: Option<Waker>,
}

impl StreamTask {
    fn new(future: StreamFuture) -> Self {
        Self {
            stall_detector: Arc::default(),
            future: Some(future),
            waker: None,
        }
    }

    fn cancel(&mut self) {
        let future = self.future.take();
        self.stall_detector.end();
        self.stall_detector.scope(|| drop(future));
        if let Some(waker) = &self.waker {
            waker.wake_by_ref();
        }
    }
}

impl Future for StreamTask {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = &mut *self;
        let Some(future) = &mut this.future else {
            return Poll::Ready(());
        };
        match &mut this.waker {
            Some(waker) => waker.clone_from(cx.waker()),
            None => this.waker = Some(cx.waker().clone()),
        }
        this.stall_detector.scope(|| future.as_mut().poll(cx))
    }
}

/// The streams of one connection. `waker` is woken when any of them is.
struct Streams {
    spawned: SpawnedStreams,
    tasks: FuturesUnordered<StreamTask>,
    waker: SubWaker,
}

impl Streams {
    fn poll_woken(&mut self) {
        if self.waker.take_woken() {
            let mut cx = self.waker.context();
            while let Poll::Ready(Some(())) = Pin::new(&mut self.tasks).poll_next(&mut cx) {}
        }
    }

    /// Takes new streams, as many as one round polls.
    fn accept_spawned(&self) {
        let mut spawned = self.spawned.0.lock();
        for _ in 0..NEW_STREAMS_PER_ROUND {
            let Some(future) = spawned.pop_front() else {
                break;
            };
            self.tasks.push(StreamTask::new(future));
            self.waker.wake();
        }
    }

    /// Whether the next round is long: there are new streams, whose JOINs take long, or many that may have events.
    fn is_next_round_long(&self) -> bool {
        self.has_spawned() || self.are_many()
    }

    /// Whether there are so many that it may take long to poll them.
    fn are_many(&self) -> bool {
        self.tasks.len() > NEW_STREAMS_PER_ROUND
    }

    /// Whether new streams wait for another round.
    fn has_spawned(&self) -> bool {
        !self.spawned.0.lock().is_empty()
    }

    /// Cancels the streams that have stalled for `max_ticks`, or all that have stalled if there are too many of their address. Returns
    /// whether the connection should be closed: its socket has stalled, too, for `socket_ticks`, so h2 would keep what the cancelled streams
    /// have not sent, and not even close the connection if the client answers no PING.
    fn cancel_stalled(&mut self, max_ticks: u32, socket_ticks: u32, stalled: &StalledStreams) -> bool {
        let has_socket_stalled = socket_ticks >= MIN_STALL_TICKS;
        let mut count = usize::from(has_socket_stalled);
        for task in self.tasks.iter_mut() {
            task.stall_detector.tick();
            count += usize::from(task.stall_detector.stalled_ticks() >= MIN_STALL_TICKS);
        }
        let are_too_many = stalled.update(count);
        let limit = if are_too_many { MIN_STALL_TICKS } else { max_ticks };
        let mut is_cancelling = false;
        for task in self.tasks.iter_mut() {
            if task.stall_detector.stalled_ticks() >= limit {
                task.cancel();
                is_cancelling = true;
                count -= 1;
            }
        }
        stalled.update(count);
        has_socket_stalled && (are_too_many || is_cancelling || socket_ticks >= max_ticks)
    }
}

/// For how long a socket has stalled.
#[derive(Debug, Default)]
struct SocketStall {
    /// How many bytes it had accepted when it last made progress.
    accepted: u64,
    ticks: u32,
}

impl SocketStall {
    /// Counts a tick. Returns for how many it has stalled.
    const fn tick(&mut self, is_blocked: bool, accepted: u64) -> u32 {
        if is_blocked && accepted < self.accepted + SOCKET_PROGRESS {
            self.ticks += 1;
        } else {
            (self.accepted, self.ticks) = (accepted, 0);
        }
        self.ticks
    }
}

/// How long a connection may take to close after it was idle for too long.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(10);

/// Runs `connection`, which spawns its streams on the executor of `spawned` and writes to `io`, until it ends or a write fails. The
/// remaining streams are dropped. A stream whose client accepts no data for `stall_timeout` is cancelled; if the socket accepts none
/// either, all are dropped with the connection. A connection that has no stream for `idle_timeout` is told to close by `close`.
/// Returns why the connection ended, if the server has ended it for one of the reasons that are counted.
///
/// Cancellation safe: dropping the future drops the connection and its streams.
pub(super) async fn run<T: AsyncWrite + Unpin>(
    connection: impl Future,
    spawned: SpawnedStreams,
    io: CorkedIo<T>,
    stall_timeout: Duration,
    idle_timeout: Duration,
    close: &CancellationToken,
    budgets: &ConnectionBudgets,
) -> Option<CutReason> {
    let mut connection = pin!(connection);
    let connection_waker = SubWaker::new();
    let mut streams = Streams {
        spawned,
        tasks: FuturesUnordered::new(),
        waker: SubWaker::new(),
    };
    let period = STALL_TICK.min(stall_timeout / 3);
    let max_ticks = stall_timeout.as_millis().div_ceil(period.as_millis().max(1)) + 1;
    let max_ticks = u32::try_from(max_ticks).unwrap_or(u32::MAX);
    let mut stall_ticks = interval_at(Instant::now() + period, period);
    stall_ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut idle = IdleTimer::new(idle_timeout);
    let mut socket = SocketStall::default();
    let mut receipts = 0;
    let mut turns = Turns::new(Arc::clone(&budgets.address.turns));
    let mut cut = None;
    poll_fn(|cx| {
        let work_before = work_made(budgets, &io);
        ready!(turns.poll_begin(cx, work_before));
        let progress = poll_rounds(
            cx,
            |streams| {
                let must_be_short = || streams.are_many() || budgets.address.turns.must_be_short();
                let is_enough = || work_made(budgets, &io) - work_before >= SHORT_TURN_WORK;
                turns.is_busy() && (streams.has_spawned() || must_be_short() && is_enough())
            },
            connection.as_mut(),
            &connection_waker,
            &mut streams,
        );
        let write_and_check = poll_fn(|cx| {
            let is_broken = matches!(io.uncork(&mut connection_waker.context()), Poll::Ready(Err(_)));
            if is_broken || idle.poll(cx, streams.tasks.is_empty(), close).is_ready() {
                return Poll::Ready(());
            }
            let (is_blocked, accepted) = io.progress();
            budgets.unread.settle(is_blocked);
            // A connection for which nothing is held has no ticks, so that it costs nothing.
            let has_ticks = is_blocked || !streams.tasks.is_empty() || budgets.unread.has_any();
            while has_ticks && stall_ticks.poll_tick(cx).is_ready() {
                let socket_ticks = socket.tick(is_blocked, accepted);
                if streams.cancel_stalled(max_ticks, socket_ticks, &budgets.stalled) {
                    return Poll::Ready(());
                }
                let is_stuck = receipts == budgets.unread.receipts();
                receipts = budgets.unread.receipts();
                if !budgets.unread.may_last(is_stuck) {
                    cut = Some(CutReason::Unread);
                    return Poll::Ready(());
                }
            }
            if !is_blocked && streams.tasks.is_empty() {
                budgets.stalled.clear();
            }
            Poll::Pending
        });
        // A client that always sends something exhausts the budget of each turn.
        let is_over = pin!(unconstrained(write_and_check)).poll(cx).is_ready();
        if is_over || progress == Progress::Ended {
            return Poll::Ready(());
        }
        match progress {
            Progress::Unfinished => turns.end_and_wake(cx, streams.is_next_round_long()),
            Progress::Idle | Progress::Ended => turns.end(),
        }
        Poll::Pending
    })
    .await;
    cut.or_else(|| idle.is_closing.then_some(CutReason::Idle))
}

/// The work that a connection has made so far: for what its client has sent, and for what was sent to the client.
fn work_made<T>(budgets: &ConnectionBudgets, io: &CorkedIo<T>) -> u64 {
    budgets.work.load(Ordering::Relaxed) + io.written() / SENT_BYTES_PER_WORK
}

/// Closes a connection without streams.
struct IdleTimer {
    timeout: Duration,
    sleep: Pin<Box<Sleep>>,
    was_idle: bool,
    is_closing: bool,
}

impl IdleTimer {
    fn new(timeout: Duration) -> Self {
        Self {
            timeout,
            sleep: Box::pin(tokio::time::sleep(timeout)),
            was_idle: true,
            is_closing: false,
        }
    }

    /// Cancels `close` when the connection was idle for too long. Ready when it does not close in time either.
    fn poll(&mut self, cx: &mut Context<'_>, is_idle: bool, close: &CancellationToken) -> Poll<()> {
        let was_idle = std::mem::replace(&mut self.was_idle, is_idle);
        if !is_idle {
            return Poll::Pending;
        }
        if !was_idle {
            self.sleep.as_mut().reset(Instant::now() + self.timeout);
        }
        while self.sleep.as_mut().poll(cx).is_ready() {
            if self.is_closing {
                return Poll::Ready(());
            }
            self.is_closing = true;
            close.cancel();
            self.sleep.as_mut().reset(Instant::now() + CLOSE_TIMEOUT);
        }
        Poll::Pending
    }
}

/// How far a connection and its streams have come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Progress {
    Ended,
    /// There is more to do, after other tasks.
    Unfinished,
    /// They wait.
    Idle,
}

/// Polls the streams and the connection, whichever was woken, until neither makes progress, or the turn is over by `must_end`.
fn poll_rounds(
    cx: &mut Context<'_>,
    must_end: impl Fn(&Streams) -> bool,
    mut connection: Pin<&mut impl Future>,
    connection_waker: &SubWaker,
    streams: &mut Streams,
) -> Progress {
    for _ in 0..MAX_ROUNDS {
        streams.waker.begin_poll(cx.waker());
        connection_waker.begin_poll(cx.waker());
        streams.poll_woken();
        // It brings no more streams while some wait.
        if !streams.has_spawned()
            && connection_waker.take_woken()
            && connection
                .as_mut()
                .poll(&mut connection_waker.context())
                .is_ready()
        {
            return Progress::Ended;
        }
        streams.accept_spawned();
        // Not `&&`: both wakers must wake the task from now on.
        let is_idle = streams.waker.end_poll() & connection_waker.end_poll();
        // Without budget, what they wait for is the next budget. The runtime wakes them later.
        if !has_budget_remaining() {
            break;
        }
        if is_idle {
            return Progress::Idle;
        }
        if must_end(streams) {
            break;
        }
    }
    Progress::Unfinished
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::future::pending;
    use std::net::Ipv4Addr;

    use futures_util::FutureExt as _;
    use tokio::io::{AsyncWriteExt as _, duplex};
    use tokio::time::timeout;

    use super::super::connection_budgets::{BudgetLimits, ServerBudgets};
    use super::*;

    /// Runs a connection whose client does not read `bytes`. Returns whether the server closes it within a minute.
    async fn is_closed(bytes: usize, stalled_streams: usize, stall_timeout: Duration) -> bool {
        let (io, _client) = duplex(1);
        let io = CorkedIo::new(io);
        io.clone().write_all(&vec![0; bytes]).await.unwrap();
        let limits = BudgetLimits {
            stalled_streams,
            ..BudgetLimits::default()
        };
        let budgets = ServerBudgets::new(limits, 10).connection(Ipv4Addr::LOCALHOST.into());
        let hour = Duration::from_secs(3_600);
        let close = CancellationToken::new();
        let connection = run(
            pending::<()>(),
            SpawnedStreams::default(),
            io,
            stall_timeout,
            hour,
            &close,
            &budgets,
        );
        timeout(Duration::from_secs(60), connection).await.is_ok()
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_whose_socket_is_blocked_is_closed_when_too_many_are() {
        let hour = Duration::from_secs(3_600);
        for bytes in [2, 10, 100_000] {
            assert!(is_closed(bytes, 0, hour).await);
            assert!(!is_closed(bytes, 1, hour).await);
        }
        assert!(!is_closed(1, 0, hour).await);
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_whose_socket_is_blocked_is_closed_after_the_stall_timeout() {
        assert!(is_closed(2, 1, Duration::from_secs(30)).await);
        assert!(!is_closed(1, 1, Duration::from_secs(30)).await);
    }

    #[test]
    fn a_socket_that_accepts_a_byte_now_and_then_has_stalled() {
        let mut socket = SocketStall::default();
        assert_eq!(socket.tick(true, 100_000), 0);
        assert_eq!([1, 2, 3].map(|byte| socket.tick(true, 100_000 + byte)), [1, 2, 3]);
        assert_eq!(socket.tick(true, 100_000 + SOCKET_PROGRESS), 0);
        assert_eq!(socket.tick(true, 100_000 + SOCKET_PROGRESS), 1);
        assert_eq!(socket.tick(false, 100_000 + SOCKET_PROGRESS + 1), 0);
    }

    /// How often the connection of a client that is sent `bytes` each time is polled in its first turn, and in the second, when it is busy.
    fn polls_per_turn(bytes: usize, all: &ServerBudgets) -> [usize; 2] {
        let budgets = all.connection(Ipv4Addr::LOCALHOST.into());
        let (io, _client) = duplex(10 << 20);
        let io = CorkedIo::new(io);
        let polls = Cell::new(0);
        let mut output = io.clone();
        let connection = poll_fn(|cx| {
            polls.set(polls.get() + 1);
            assert!(pin!(output.write_all(&vec![0; bytes])).poll(cx).is_ready());
            cx.waker().wake_by_ref();
            Poll::<()>::Pending
        });
        let (hour, close) = (Duration::from_secs(3_600), CancellationToken::new());
        let running = run(
            connection,
            SpawnedStreams::default(),
            io,
            hour,
            hour,
            &close,
            &budgets,
        );
        let mut running = pin!(running);
        [(); 2].map(|()| {
            assert!(running.as_mut().now_or_never().is_none());
            budgets.work.fetch_add(10_000, Ordering::Relaxed);
            polls.take()
        })
    }

    #[tokio::test]
    async fn turns_of_busy_connections_end_by_what_they_have_cost_while_there_are_other_addresses() {
        let all = ServerBudgets::new(BudgetLimits::default(), 10);
        assert_eq!(polls_per_turn(128 * 1024, &all), [MAX_ROUNDS; 2]);
        let _other = all.connection(Ipv4Addr::new(127, 0, 0, 2).into());
        assert_eq!(polls_per_turn(128 * 1024, &all), [MAX_ROUNDS, 1]);
        assert_eq!(polls_per_turn(64 * 1024, &all), [MAX_ROUNDS, 2]);
        assert_eq!(polls_per_turn(100, &all), [MAX_ROUNDS; 2]);
    }

    #[tokio::test]
    async fn what_is_sent_counts_as_work() {
        let (io, _client) = duplex(1);
        let io = CorkedIo::new(io);
        let budgets = ServerBudgets::new(BudgetLimits::default(), 10).connection(Ipv4Addr::LOCALHOST.into());
        budgets.work.store(3, Ordering::Relaxed);
        assert_eq!(work_made(&budgets, &io), 3);
        io.clone().write_all(&[0; 100 * 1024]).await.unwrap();
        assert_eq!(work_made(&budgets, &io), 3 + 25);
        assert!(io.uncork(&mut Context::from_waker(Waker::noop())).is_pending());
        assert_eq!(work_made(&budgets, &io), 3 + 25);
    }

    #[tokio::test]
    async fn streams_that_wait_when_the_connection_ends_are_dropped() {
        let (io, _client) = duplex(1);
        let budgets = ServerBudgets::new(BudgetLimits::default(), 10).connection(Ipv4Addr::LOCALHOST.into());
        let (spawned, alive) = (SpawnedStreams::default(), Arc::new(()));
        let executor = spawned.executor();
        for _ in 0..2 * NEW_STREAMS_PER_ROUND {
            // As a stream of hyper does.
            let held = (executor.clone(), Arc::clone(&alive));
            hyper::rt::Executor::execute(&executor, async move {
                pending::<()>().await;
                drop(held);
            });
        }
        let (hour, close) = (Duration::from_secs(3_600), CancellationToken::new());
        let running = run(
            pending::<()>(),
            spawned,
            CorkedIo::new(io),
            hour,
            hour,
            &close,
            &budgets,
        );
        // The task is aborted after its first poll, in which it takes some of them.
        assert!(running.now_or_never().is_none());
        assert_eq!(Arc::strong_count(&alive), 1);
    }
}
