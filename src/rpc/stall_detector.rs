//! Detects streams whose client accepts no data.
//!
//! hyper polls a response body only when the client has accepted the data before. So a body that has returned data and is not
//! polled again belongs to a stalled client. The body itself cannot notice that, precisely because it is not polled: the
//! connection's task ends the stream.

use std::cell::RefCell;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;
use tonic::Status;

use super::budget::StreamPermit;

/// The stream waits for events, not for the client.
const IDLE: u32 = u32::MAX;

/// The stream was ended because its client accepts no data.
const STALLED: u32 = IDLE - 1;

thread_local! {
    /// The detector of the stream that is being polled or dropped on this thread.
    static CURRENT: RefCell<Option<Arc<StallDetector>>> = const { RefCell::new(None) };
}

/// Counts the ticks since the body of one stream returned data that the client has not accepted, or is [`IDLE`] or [`STALLED`].
#[derive(Debug)]
pub(super) struct StallDetector(AtomicU32);

impl Default for StallDetector {
    /// A call that has not responded yet waits for the server, not for the client.
    fn default() -> Self {
        Self(AtomicU32::new(IDLE))
    }
}

impl StallDetector {
    /// Counts a tick.
    pub(super) fn tick(&self) {
        // Only the connection's task calls this and polls the body, so load and store do not race.
        let ticks = self.0.load(Ordering::Relaxed);
        if ticks < STALLED - 1 {
            self.0.store(ticks + 1, Ordering::Relaxed);
        }
    }

    /// The number of ticks for which the client has accepted nothing.
    pub(super) fn stalled_ticks(&self) -> u32 {
        match self.0.load(Ordering::Relaxed) {
            IDLE | STALLED => 0,
            ticks => ticks,
        }
    }

    /// The stream ends because it has stalled for too long.
    pub(super) fn end(&self) {
        self.0.store(STALLED, Ordering::Relaxed);
    }

    fn has_stalled(&self) -> bool {
        self.0.load(Ordering::Relaxed) == STALLED
    }

    /// Runs `work`, which polls or drops the stream, with this detector as [`CURRENT`].
    pub(super) fn scope<T>(self: &Arc<Self>, work: impl FnOnce() -> T) -> T {
        CURRENT.set(Some(Arc::clone(self)));
        let done = work();
        CURRENT.set(None);
        done
    }
}

/// Whether the stream that is being polled or dropped has stalled.
pub(super) fn has_stalled() -> bool {
    CURRENT.with_borrow(|detector| detector.as_ref().is_some_and(|detector| detector.has_stalled()))
}

pin_project! {
    /// A response body that keeps its stream's detector up to date.
    pub(super) struct MonitoredBody<B> {
        #[pin]
        body: B,
        detector: Option<Arc<StallDetector>>,
        permit: Option<StreamPermit>,
    }
}

impl<B> MonitoredBody<B> {
    /// Wraps the body of the stream that is being polled.
    pub(super) fn new(body: B, permit: Option<StreamPermit>) -> Self {
        Self {
            body,
            detector: CURRENT.with_borrow(Clone::clone),
            permit,
        }
    }
}

impl<B: Body<Data = Bytes, Error = Status>> Body for MonitoredBody<B> {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = self.project();
        let polled = this.body.poll_frame(cx);
        if let Some(detector) = this.detector {
            let ticks = if polled.is_pending() { IDLE } else { 0 };
            detector.0.store(ticks, Ordering::Relaxed);
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
    use std::task::Waker;

    use super::*;

    type Polled = Poll<Option<Result<Frame<Bytes>, Status>>>;

    /// A body that returns the given results in turn.
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
    fn a_stream_stalls_when_its_data_is_not_accepted_but_not_when_it_is_idle() {
        let detector = Arc::new(StallDetector::default());
        let script = Script([Poll::Pending, data(), data()].into());
        let mut body = detector.scope(|| Box::pin(MonitoredBody::new(script, None)));
        let mut poll = || body.as_mut().poll_frame(&mut Context::from_waker(Waker::noop()));
        assert!(poll().is_pending());
        let ticks = |count: u32| {
            (0..count).for_each(|_| detector.tick());
            detector.stalled_ticks()
        };
        assert_eq!(ticks(9), 0);
        assert!(poll().is_ready());
        assert_eq!(ticks(3), 3);
        // The client has accepted the data and gets more.
        assert!(poll().is_ready());
        assert_eq!(ticks(2), 2);
        assert!(!detector.scope(has_stalled));
        detector.end();
        assert_eq!(ticks(1), 0);
        assert!(detector.scope(has_stalled));
        assert!(!has_stalled());
    }
}
