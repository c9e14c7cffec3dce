//! Detects streams whose client accepts no data.
//!
//! hyper gives h2 a whole chunk of a response as soon as the client accepts one byte of it, and asks for the next chunk at once. So
//! only the chunks themselves tell whether they are sent: [`TrackedChunk`] reports when h2 has written one, or enough of it. If there
//! are some for long and none is written, the connection's task ends the stream: its body is not polled then, and cannot.
//!
//! A response ends when all of its data is written, not before. Its stream would otherwise be gone, and with it what it counts for,
//! while h2 still holds its data and nobody could end it.

use std::cell::RefCell;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use futures_util::task::AtomicWaker;
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;
use tonic::Status;

use super::connection_budgets::StreamPermit;

/// How much of a chunk must be written to count as progress, in bytes, unless all of it is: as much as a page of events has. Less does not
/// count, because a client that accepts single bytes makes h2 hold as much as one that accepts none.
const PROGRESS_BYTES: usize = 64 * 1024;

thread_local! {
    /// The detector of the stream that is being polled or dropped on this thread.
    static CURRENT: RefCell<Option<Arc<StallDetector>>> = const { RefCell::new(None) };
}

/// Counts the ticks for which the client of one stream has accepted none of the data that there is for it.
#[derive(Debug, Default)]
pub(super) struct StallDetector {
    /// The chunks of data that h2 has not written completely.
    unsent: AtomicU32,
    /// The ticks since it has last written one, or [`PROGRESS_BYTES`] of one.
    ticks: AtomicU32,
    /// Whether the stream was ended because of that.
    has_stalled: AtomicBool,
    /// The waker of the body, while it waits until nothing is unsent.
    waker: AtomicWaker,
}

impl StallDetector {
    /// Counts a tick.
    pub(super) fn tick(&self) {
        if self.has_unsent() {
            // Only the connection's task calls this and writes, so load and store do not race.
            let ticks = self.ticks.load(Ordering::Relaxed).saturating_add(1);
            self.ticks.store(ticks, Ordering::Relaxed);
        }
    }

    /// The number of ticks for which the client has accepted nothing or too little.
    pub(super) fn stalled_ticks(&self) -> u32 {
        if self.has_unsent() && !self.has_stalled() {
            self.ticks.load(Ordering::Relaxed)
        } else {
            0
        }
    }

    /// The stream ends because it has stalled for too long.
    pub(super) fn end(&self) {
        self.has_stalled.store(true, Ordering::Relaxed);
    }

    fn has_stalled(&self) -> bool {
        self.has_stalled.load(Ordering::Relaxed)
    }

    fn has_unsent(&self) -> bool {
        self.unsent.load(Ordering::Acquire) > 0
    }

    fn on_progress(&self) {
        self.ticks.store(0, Ordering::Relaxed);
    }

    fn track(self: &Arc<Self>, bytes: Bytes) -> TrackedChunk {
        if self.unsent.fetch_add(1, Ordering::AcqRel) == 0 {
            self.on_progress();
        }
        TrackedChunk {
            bytes,
            written: 0,
            detector: Arc::clone(self),
        }
    }

    /// Ready when nothing is unsent.
    fn poll_sent(&self, cx: &Context<'_>) -> Poll<()> {
        if self.has_unsent() {
            self.waker.register(cx.waker());
            // It may have been written meanwhile.
            if self.has_unsent() {
                return Poll::Pending;
            }
        }
        Poll::Ready(())
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

/// A chunk of a response, which its stream's detector counts until it is written or dropped.
#[derive(Debug)]
pub(super) struct TrackedChunk {
    bytes: Bytes,
    /// How much of it was written since the last progress.
    written: usize,
    detector: Arc<StallDetector>,
}

impl Buf for TrackedChunk {
    fn remaining(&self) -> usize {
        self.bytes.remaining()
    }

    fn chunk(&self) -> &[u8] {
        self.bytes.chunk()
    }

    fn advance(&mut self, count: usize) {
        self.bytes.advance(count);
        self.written += count;
        if self.written >= PROGRESS_BYTES {
            self.written = 0;
            self.detector.on_progress();
        }
    }
}

impl Drop for TrackedChunk {
    fn drop(&mut self) {
        self.detector.on_progress();
        if self.detector.unsent.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.detector.waker.wake();
        }
    }
}

/// What [`Body::poll_frame`] is ready with, of a body with this data.
type FrameResult<D> = Option<Result<Frame<D>, Status>>;

pin_project! {
    /// A response body whose data its stream's detector counts, and which ends when all of it is written.
    pub(super) struct MonitoredBody<B> {
        #[pin]
        body: B,
        detector: Arc<StallDetector>,
        // How the body has ended, until it may.
        end: Option<FrameResult<TrackedChunk>>,
        permit: Option<StreamPermit>,
    }
}

impl<B> MonitoredBody<B> {
    /// Wraps the body of the stream that is being polled.
    pub(super) fn new(body: B, permit: Option<StreamPermit>) -> Self {
        Self {
            body,
            detector: CURRENT.with_borrow(Clone::clone).unwrap_or_default(),
            end: None,
            permit,
        }
    }
}

impl<B: Body<Data = Bytes, Error = Status>> Body for MonitoredBody<B> {
    type Data = TrackedChunk;
    type Error = Status;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<FrameResult<TrackedChunk>> {
        let this = self.project();
        let detector = &*this.detector;
        let end = match this.end.take() {
            Some(end) => end,
            None => match ready!(this.body.poll_frame(cx)) {
                Some(Ok(frame)) => {
                    let is_data = frame.is_data();
                    let frame = frame.map_data(|bytes| detector.track(bytes));
                    if is_data {
                        return Poll::Ready(Some(Ok(frame)));
                    }
                    Some(Ok(frame))
                }
                // The stream is reset, and so nothing of it is sent any more.
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                None => None,
            },
        };
        if detector.poll_sent(cx).is_pending() {
            *this.end = Some(end);
            return Poll::Pending;
        }
        Poll::Ready(end)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream() && !self.detector.has_unsent()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::task::Waker;

    use http::HeaderMap;

    use super::*;

    /// A body that returns the given results in turn.
    struct Script(VecDeque<Poll<FrameResult<Bytes>>>);

    impl Body for Script {
        type Data = Bytes;
        type Error = Status;

        fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<FrameResult<Bytes>> {
            self.0.pop_front().unwrap_or(Poll::Pending)
        }
    }

    fn data() -> Poll<FrameResult<Bytes>> {
        Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(b"xyz")))))
    }

    #[test]
    fn a_stream_stalls_while_none_of_its_data_is_written_and_ends_when_all_of_it_is() {
        let detector = Arc::new(StallDetector::default());
        let trailers = Poll::Ready(Some(Ok(Frame::trailers(HeaderMap::new()))));
        let script = Script([Poll::Pending, data(), data(), Poll::Pending, trailers].into());
        let mut body = detector.scope(|| Box::pin(MonitoredBody::new(script, None)));
        let mut poll = || {
            let cx = &mut Context::from_waker(Waker::noop());
            body.as_mut().poll_frame(cx).map(|frame| frame.unwrap().unwrap())
        };
        let ticks = |count: u32| {
            (0..count).for_each(|_| detector.tick());
            detector.stalled_ticks()
        };
        assert!(poll().is_pending());
        assert_eq!(ticks(9), 0);
        let mut chunks: Vec<_> = (0..2)
            .map(|_| match poll() {
                Poll::Ready(frame) => frame.into_data().unwrap(),
                Poll::Pending => panic!("there is data"),
            })
            .collect();
        // That the body has nothing more does not mean that the client has taken what there was.
        assert!(poll().is_pending());
        assert_eq!(ticks(3), 3);
        // Nor does it count that it takes a byte now and then.
        chunks[0].advance(1);
        assert_eq!(ticks(2), 5);
        drop(chunks.pop());
        assert!(poll().is_pending(), "the end waits for the data");
        assert_eq!(ticks(3), 3);
        assert!(!detector.scope(has_stalled));
        drop(chunks);
        assert_eq!(ticks(1), 0);
        assert!(matches!(poll(), Poll::Ready(frame) if frame.is_trailers()));
    }

    #[test]
    fn a_long_piece_may_take_long_as_long_as_enough_of_it_is_written() {
        let detector = Arc::new(StallDetector::default());
        let mut chunk = detector.track(Bytes::from(vec![0; 3 * PROGRESS_BYTES]));
        let mut write = |count| {
            detector.tick();
            chunk.advance(count);
            detector.stalled_ticks()
        };
        assert_eq!(write(PROGRESS_BYTES - 1), 1);
        assert_eq!([write(1), write(PROGRESS_BYTES - 1), write(1)], [0, 1, 0]);
    }

    #[test]
    fn a_stream_that_was_ended_has_stalled() {
        let detector = Arc::new(StallDetector::default());
        let _piece = detector.track(Bytes::from_static(b"x"));
        detector.tick();
        detector.end();
        assert_eq!(detector.stalled_ticks(), 0);
        assert!(detector.scope(has_stalled));
        assert!(!has_stalled());
    }
}
