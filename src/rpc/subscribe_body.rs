//! The response body of a Subscribe call: a room's events for somebody who is not in it.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http_body::{Body, Frame};
use tokio_stream::Stream;
use tokio_util::sync::CancellationToken;
use tonic::{Status, Streaming};

use super::error::{RpcError, trailers};
use super::first_message::FirstMessageDeadline;
use super::observer::{Method, Observer};
use super::reason::Reason;
use super::unary::room;
use crate::hub::{CloseReason, FeedItem, Hub, HubError, Reader, StartPosition};
use crate::proto::SubscribeRequest;
use crate::proto::subscribe_request::Start as Asked;

/// The response body of a Subscribe call.
pub(super) struct SubscribeBody {
    hub: Arc<Hub>,
    observer: Arc<dyn Observer>,
    phase: Phase,
}

enum Phase {
    /// The request is awaited.
    Asking(Box<Asking>),
    /// The room is being asked.
    Beginning(BoxFuture<'static, Result<Reader, HubError>>),
    Reading(Box<Reader>),
    Ending(Box<Status>),
    Done,
}

struct Asking {
    inbound: Streaming<SubscribeRequest>,
    threshold: FirstMessageDeadline,
}

impl SubscribeBody {
    pub(super) fn new(
        hub: Arc<Hub>,
        inbound: Streaming<SubscribeRequest>,
        draining: CancellationToken,
        observer: Arc<dyn Observer>,
    ) -> Self {
        observer.stream_started(Method::Subscribe);
        let asking = Asking {
            inbound,
            threshold: FirstMessageDeadline::new(draining),
        };
        Self {
            hub,
            observer,
            phase: Phase::Asking(Box::new(asking)),
        }
    }

    fn refuse(&mut self, error: &RpcError) {
        // What the room refused, the room has told.
        if !matches!(error, RpcError::Hub(HubError::Rejected(_))) {
            self.observer.rejected(error.reason());
        }
        self.end(error);
    }

    fn end(&mut self, error: &RpcError) {
        self.phase = Phase::Ending(Box::new(error.status().0));
    }

    fn poll_asking(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Phase::Asking(asking) = &mut self.phase else {
            return Poll::Ready(());
        };
        if let Poll::Ready(error) = asking.threshold.poll(cx, RpcError::RequestTimeout) {
            self.refuse(&error);
            return Poll::Ready(());
        }
        match ready!(Pin::new(&mut asking.inbound).poll_next(cx)) {
            Some(Ok(request)) => self.begin(request),
            Some(Err(status)) => {
                self.observer.rejected(Reason::Undecodable);
                self.phase = Phase::Ending(Box::new(status));
            }
            None => {
                let status = Status::invalid_argument("no request came");
                self.phase = Phase::Ending(Box::new(status));
            }
        }
        Poll::Ready(())
    }

    fn begin(&mut self, request: SubscribeRequest) {
        let start = match request.start {
            None => StartPosition::Tail,
            Some(Asked::After(point)) => StartPosition::After(point.into()),
            Some(Asked::Last(count)) => StartPosition::Last(count),
        };
        match room(&request.room) {
            Ok(room) => {
                let hub = Arc::clone(&self.hub);
                self.phase = Phase::Beginning(Box::pin(async move { hub.subscribe(&room, start).await }));
            }
            Err(error) => self.refuse(&error),
        }
    }
}

impl Body for SubscribeBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = &mut *self;
        loop {
            match &mut this.phase {
                Phase::Asking(_) => ready!(this.poll_asking(cx)),
                Phase::Beginning(beginning) => match ready!(beginning.as_mut().poll(cx)) {
                    Ok(reader) => this.phase = Phase::Reading(Box::new(reader)),
                    Err(error) => this.refuse(&RpcError::Hub(error)),
                },
                Phase::Reading(reader) => {
                    let error = match ready!(reader.poll_next(cx)) {
                        FeedItem::Events(bytes) | FeedItem::Notice(bytes) => {
                            return Poll::Ready(Some(Ok(Frame::data(bytes))));
                        }
                        FeedItem::Lagged => RpcError::FellBehind,
                        FeedItem::Closed(CloseReason::Draining(delay)) => RpcError::Draining(delay),
                        FeedItem::Closed(_) => RpcError::Failed,
                    };
                    this.end(&error);
                }
                Phase::Ending(status) => {
                    let frame = trailers(status);
                    this.phase = Phase::Done;
                    return Poll::Ready(Some(frame));
                }
                Phase::Done => return Poll::Ready(None),
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self.phase, Phase::Done)
    }
}
