//! The streams of one connection, which run within the connection's task.
//!
//! A broadcast wakes each connection once, and what its streams then write goes to the socket in the same turn: a task
//! for each stream would cost another wake-up and its memory.

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use futures_util::stream::{FuturesUnordered, Stream as _};
use tokio::io::AsyncWrite;
use tokio::task::coop::has_budget_remaining;
use tokio::time::{Instant, Sleep};

use super::corked_io::CorkedIo;
use super::stall_detector::{STALL_TICKS, StallDetector};
use super::sub_waker::SubWaker;

/// How often the streams and their connection are gone through in one turn: what a connection has read its streams take
/// at once, and what they answer goes out with it. A client that sends without an end does not keep the others waiting.
const PASSES: usize = 4;

type BoxFuture = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Takes the streams that a connection opens: what the HTTP/2 library spawns them with.
#[derive(Clone, Default)]
pub(super) struct StreamExecutor(Arc<Mutex<Vec<BoxFuture>>>);

impl<F> hyper::rt::Executor<F> for StreamExecutor
where
    F: Future<Output = ()> + Send + 'static,
{
    fn execute(&self, stream: F) {
        let stream = Box::pin(stream);
        // Nothing panics while the lock is held.
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(stream);
    }
}

/// One stream, until it ends or is ended.
struct StreamTask {
    watch: Arc<StallDetector>,
    future: Option<BoxFuture>,
    /// Who is told that it was ended.
    waker: Option<Waker>,
}

impl StreamTask {
    fn end(&mut self) {
        let future = self.future.take();
        self.watch.scope(|| drop(future));
        if let Some(waker) = &self.waker {
            waker.wake_by_ref();
        }
    }
}

impl Future for StreamTask {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let me = &mut *self;
        let Some(future) = &mut me.future else {
            return Poll::Ready(());
        };
        if me.waker.as_ref().is_none_or(|waker| !waker.will_wake(cx.waker())) {
            me.waker = Some(cx.waker().clone());
        }
        me.watch.scope(|| future.as_mut().poll(cx))
    }
}

/// Runs `connection`, whose streams come to `opened` and which writes to `io`, until it ends or cannot write; the streams
/// that are left are dropped. Whoever takes nothing of what a stream has for it, for `stall_timeout`, loses that stream.
///
/// Cancellation safe: dropping the future drops the connection and its streams.
pub(super) async fn run<T: AsyncWrite + Unpin>(
    connection: impl Future,
    opened: StreamExecutor,
    io: CorkedIo<T>,
    stall_timeout: Duration,
) {
    let mut connection = pin!(connection);
    let mut streams = FuturesUnordered::<StreamTask>::new();
    let period = stall_timeout / u32::from(STALL_TICKS - 1);
    let mut look_at = pin!(tokio::time::sleep(period));
    let (stream_waker, connection_waker) = (Arc::new(SubWaker::default()), Arc::new(SubWaker::default()));
    let [for_streams, for_connection] =
        [&stream_waker, &connection_waker].map(|waker| Waker::from(Arc::clone(waker)));
    // The first time nobody has to ask for it.
    for_connection.wake_by_ref();
    let mut turn = |cx: &mut Context<'_>| {
        if poll_interval(look_at.as_mut(), period, cx) {
            for stream in streams.iter_mut().filter(|stream| stream.watch.tick()) {
                stream.end();
            }
        }
        for _ in 0..PASSES {
            stream_waker.begin_poll(cx.waker());
            connection_waker.begin_poll(cx.waker());
            if stream_waker.take_woken() {
                let mut cx = Context::from_waker(&for_streams);
                while let Poll::Ready(Some(())) = Pin::new(&mut streams).poll_next(&mut cx) {}
            }
            let mut cx = Context::from_waker(&for_connection);
            if connection_waker.take_woken() && connection.as_mut().poll(&mut cx).is_ready() {
                return Poll::Ready(());
            }
            let mut opened = opened.0.lock().unwrap_or_else(PoisonError::into_inner);
            for future in opened.drain(..) {
                streams.push(StreamTask {
                    watch: Arc::default(),
                    future: Some(future),
                    waker: None,
                });
                for_streams.wake_by_ref();
            }
            drop(opened);
            // Both, so that what rings from now on wakes the task.
            let (streams_rest, connection_rests) = (stream_waker.end_poll(), connection_waker.end_poll());
            if streams_rest && connection_rests {
                return Poll::Pending;
            }
            if !has_budget_remaining() {
                break;
            }
        }
        // The others have their turn.
        cx.waker().wake_by_ref();
        Poll::Pending
    };
    poll_fn(|cx| {
        let ended = turn(cx);
        match io.uncork(&mut Context::from_waker(&for_connection)) {
            Poll::Ready(Err(_)) => Poll::Ready(()),
            _ => ended,
        }
    })
    .await;
}

/// Whether `period` has passed, which begins anew then.
fn poll_interval(mut sleep: Pin<&mut Sleep>, period: Duration, cx: &mut Context<'_>) -> bool {
    let mut has_passed = false;
    while sleep.as_mut().poll(cx).is_ready() {
        sleep.as_mut().reset(Instant::now() + period);
        has_passed = true;
    }
    has_passed
}
