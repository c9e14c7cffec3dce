//! Whether the other side of a stream still takes what it is given.
//!
//! The transport asks a response body for more only when the client has taken what came before. So a body that has
//! given something and is not asked again belongs to a client that takes nothing, and nobody but the task that runs the
//! stream can end it: the body itself is never polled again.

use std::cell::RefCell;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;
use tonic::Status;

/// How often a stream is looked at, with nothing taken between, before it counts as stalled.
pub(super) const STALL_TICKS: u8 = 4;

/// Nothing waits for the client.
const IDLE: u8 = u8::MAX;

thread_local! {
    /// The watch of the stream that is being polled or dropped.
    static CURRENT: RefCell<Option<Arc<StallDetector>>> = const { RefCell::new(None) };
}

/// Watches one stream. What it holds is how often the stream was looked at since its client was given something that it
/// has not taken, or [`IDLE`]. It begins with zero: a call that is never answered stalls as well.
#[derive(Debug, Default)]
pub(super) struct StallDetector(AtomicU8);

impl StallDetector {
    /// Looks at the stream. True when it has stalled.
    pub(super) fn tick(&self) -> bool {
        // Only the stream's own task comes here, so there is no race to lose.
        match self.0.load(Ordering::Relaxed) {
            IDLE => false,
            looks => {
                self.0.store((looks + 1).min(STALL_TICKS), Ordering::Relaxed);
                looks + 1 >= STALL_TICKS
            }
        }
    }

    fn has_stalled(&self) -> bool {
        self.0.load(Ordering::Relaxed) == STALL_TICKS
    }

    /// Does `work` as this watch's stream.
    pub(super) fn scope<T>(self: &Arc<Self>, work: impl FnOnce() -> T) -> T {
        CURRENT.set(Some(Arc::clone(self)));
        let done = work();
        CURRENT.set(None);
        done
    }
}

/// Whether the stream that is being dropped has stalled.
pub(super) fn has_stalled() -> bool {
    CURRENT.with_borrow(|watch| watch.as_ref().is_some_and(|watch| watch.has_stalled()))
}

pin_project! {
    /// A response body that tells its stream's watch whether it waits for the client.
    pub(super) struct Watched<B> {
        #[pin]
        body: B,
        watch: Option<Arc<StallDetector>>,
    }
}

impl<B> Watched<B> {
    /// Of the stream that is being polled.
    pub(super) fn new(body: B) -> Self {
        Self {
            body,
            watch: CURRENT.with_borrow(Clone::clone),
        }
    }
}

impl<B: Body<Data = Bytes, Error = Status>> Body for Watched<B> {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let me = self.project();
        let polled = me.body.poll_frame(cx);
        if let Some(watch) = me.watch {
            let looks = if polled.is_pending() { IDLE } else { 0 };
            watch.0.store(looks, Ordering::Relaxed);
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use super::*;

    type Polled = Poll<Option<Result<Frame<Bytes>, Status>>>;

    struct Script(VecDeque<Polled>);

    impl Body for Script {
        type Data = Bytes;
        type Error = Status;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
            self.0.pop_front().unwrap_or(Poll::Pending)
        }
    }

    fn data() -> Polled {
        Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(b"x")))))
    }

    #[test]
    fn a_stream_stalls_when_nothing_is_taken_and_not_when_nothing_is_given() {
        let watch = Arc::new(StallDetector::default());
        let script = Script([Poll::Pending, data(), data()].into());
        let mut body = watch.scope(|| Box::pin(Watched::new(script)));
        let mut poll = || {
            body.as_mut()
                .poll_frame(&mut Context::from_waker(std::task::Waker::noop()))
        };
        assert!(poll().is_pending());
        for _ in 0..3 * STALL_TICKS {
            assert!(!watch.tick());
        }
        assert!(poll().is_ready());
        for _ in 1..STALL_TICKS {
            assert!(!watch.tick());
        }
        // The client took it and got more.
        assert!(poll().is_ready());
        for _ in 1..STALL_TICKS {
            assert!(!watch.tick());
        }
        assert!(!watch.scope(has_stalled));
        assert!(watch.tick());
        assert!(watch.scope(has_stalled));
        assert!(!has_stalled());
    }
}
