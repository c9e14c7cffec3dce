//! Fuzz targets: what clients send.

use std::collections::VecDeque;
use std::net::Ipv4Addr;
use std::pin::Pin;
use std::sync::{Arc, LazyLock};
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use http_body::Frame;
use prost::Message as _;
use tokio::runtime::Runtime;
use tonic::Status;
use tonic::body::Body;

use super::connection_budgets::{BudgetLimits, ServerBudgets};
use super::convert::join_request;
use super::frame_meter::{FrameMeter, ReadFrames};
use super::inbound::Inbound;
use super::moderation::{self, ModerationDecision};
use super::open_streams::{MAX_READ_BUFFER, OpenStreams};
use crate::domain::WallTime;
use crate::proto::{JoinMsgLeave, ModerateRequest};

/// The limit on the size of a message, in bytes.
const LIMIT: usize = 4_000;

/// For timeouts, which never elapse here.
static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    builder.enable_time().build().expect("a runtime with a timer")
});

/// A body of the given frames.
struct Frames(VecDeque<Bytes>);

impl http_body::Body for Frames {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        Poll::Ready(self.0.pop_front().map(|data| Ok(Frame::data(data))))
    }
}

/// The messages of a stream, in DATA frames of any size: the first byte is the size, the rest is the stream.
pub(crate) fn requests(bytes: &[u8]) {
    let Some((size, stream)) = bytes.split_first() else {
        return;
    };
    if let Ok(request) = ModerateRequest::decode(stream)
        && let Ok(reason) = moderation::reason(&request.reason)
    {
        ModerationDecision::parse(request, reason, WallTime::default()).ok();
    }
    let _runtime = RUNTIME.enter();
    let chunks = stream.chunks(usize::from(*size).max(1));
    let frames = Frames(chunks.map(Bytes::copy_from_slice).collect());
    let limits = BudgetLimits {
        received: 4 * LIMIT,
        ..BudgetLimits::default()
    };
    let budgets = ServerBudgets::new(limits, 1).connection(Ipv4Addr::LOCALHOST.into());
    let mut inbound: Inbound<JoinMsgLeave> = Inbound::new(Body::new(frames), LIMIT, Arc::clone(&budgets));
    let mut cx = Context::from_waker(Waker::noop());
    while let Poll::Ready(Some(Ok(message))) = inbound.poll_next(&mut cx) {
        join_request(message).ok();
    }
    drop(inbound);
    assert!(
        budgets.reserve_received(3 * LIMIT).is_ok(),
        "nothing is reserved any more"
    );
}

/// The bytes of a connection, in reads of any size.
pub(crate) fn frames(bytes: &[u8]) {
    let Some((size, bytes)) = bytes.split_first() else {
        return;
    };
    // More would be in several buffers.
    let bytes = &bytes[..bytes.len().min(MAX_READ_BUFFER)];
    let (mut whole, mut parts) = (FrameMeter::new(), FrameMeter::new());
    let [mut of_whole, mut of_parts] = [(); 2].map(|()| OpenStreams::default());
    for streams in [&mut of_whole, &mut of_parts] {
        streams.set_blocked(true);
    }
    let mut frames = Some(ReadFrames::default());
    for part in bytes.chunks(usize::from(*size).max(1)) {
        let read = parts.on_read(part, &mut of_parts).ok();
        frames = frames.zip(read).map(|(frames, read)| ReadFrames {
            work: frames.work + read.work,
            short: frames.short + read.short,
            ..read
        });
    }
    let read = whole.on_read(bytes, &mut of_whole).ok();
    assert_eq!(read, frames);
    if read.is_some() {
        assert_eq!(of_whole, of_parts);
    }
    whole.on_written(bytes, &mut of_whole);
}
