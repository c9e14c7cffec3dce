//! The response body of a Subscribe call: a room's events for a client that is not a participant.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http_body::{Body, Frame};
use tokio_util::sync::CancellationToken;
use tonic::Status;

use super::connection_budgets::{ConnectionBudgets, ConnectionInfo};
use super::convert::{origin, room_name};
use super::error::{RpcError, trailers};
use super::first_message::FirstMessageDeadline;
use super::inbound::{Inbound, InboundError};
use super::observer::{Observer, StreamingMethod};
use super::rates::Rates;
use super::stream_outcome::StreamOutcome;
use super::time_limit::StreamLimit;
use super::token_expiry::TokenExpiry;
use crate::auth::{Caller, Right, TokenError};
use crate::hub::{FeedItem, Hub, HubError, Reader, StartPosition};
use crate::proto::SubscribeRequest;
use crate::proto::subscribe_request::Start;
use crate::reason::Reason;

pub(super) struct SubscribeBody {
    hub: Arc<Hub>,
    budgets: Arc<ConnectionBudgets>,
    caller: Caller,
    token_expiry: Option<TokenExpiry>,
    rates: Arc<Rates>,
    limit: StreamLimit,
    state: State,
    outcome: StreamOutcome,
}

enum State {
    AwaitingRequest(Box<AwaitingRequest>),
    /// The room is handling the request.
    Subscribing(BoxFuture<'static, Result<Reader, HubError>>),
    Reading(Box<Reader>),
    /// The stream has ended; the status is sent next.
    Ending(Box<Status>),
    Ended,
}

struct AwaitingRequest {
    inbound: Inbound<SubscribeRequest>,
    deadline: FirstMessageDeadline,
}

impl SubscribeBody {
    pub(super) fn new(
        hub: Arc<Hub>,
        inbound: Inbound<SubscribeRequest>,
        draining: CancellationToken,
        rates: Arc<Rates>,
        limit: StreamLimit,
        connection: &ConnectionInfo,
        observer: Arc<dyn Observer>,
    ) -> Self {
        let awaiting = AwaitingRequest {
            inbound,
            deadline: FirstMessageDeadline::new(draining),
        };
        Self {
            hub,
            budgets: Arc::clone(&connection.budgets),
            caller: connection.caller.clone(),
            token_expiry: TokenExpiry::of(&connection.caller),
            rates,
            limit,
            state: State::AwaitingRequest(Box::new(awaiting)),
            outcome: StreamOutcome::new(StreamingMethod::Subscribe, connection.peer, observer),
        }
    }

    fn reject(&mut self, error: &RpcError) {
        error.report(&*self.outcome.observer);
        self.end(error.reason(), error.to_status());
    }

    fn end(&mut self, reason: Reason, status: Status) {
        self.outcome.reason = reason;
        self.outcome.detail = status.message().to_owned();
        self.state = State::Ending(Box::new(status));
    }

    fn poll_awaiting_request(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let State::AwaitingRequest(awaiting) = &mut self.state else {
            return Poll::Ready(());
        };
        if let Poll::Ready(error) = awaiting.deadline.poll(cx, Reason::RequestTimeout, "request") {
            self.reject(&error);
            return Poll::Ready(());
        }
        match ready!(awaiting.inbound.poll_next(cx)) {
            Some(Ok(request)) => self.subscribe(request),
            Some(Err(InboundError::Rejected(error))) => self.reject(&error),
            Some(Err(InboundError::Lost(status))) => self.end(Reason::ConnectionLost, status),
            None => self.reject(&RpcError::new(
                Reason::RequestMissing,
                "the stream ended before a request",
            )),
        }
        Poll::Ready(())
    }

    fn subscribe(&mut self, request: SubscribeRequest) {
        let start = match request.start {
            None => StartPosition::Tail,
            Some(Start::After(point)) => StartPosition::After(point.into()),
            Some(Start::Last(count)) => StartPosition::Last(count),
        };
        let address = self.outcome.peer.map(|peer| peer.ip());
        let room = self.rates.check_join(address).and_then(|()| {
            let room = room_name(&request.room)?;
            self.caller.check(Right::Read, &room)?;
            Ok(room)
        });
        match room {
            Ok(room) => {
                let (hub, budgets) = (Arc::clone(&self.hub), Arc::clone(&self.budgets));
                let origin = origin(&self.caller, self.outcome.peer, &room);
                self.state = State::Subscribing(Box::pin(async move {
                    budgets.load_room(&hub, &room).await?;
                    hub.subscribe(&room, start, origin).await
                }));
            }
            Err(error) => self.reject(&error),
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
        if let Poll::Ready(error) = this.limit.poll(cx)
            && !matches!(this.state, State::Ending(_) | State::Ended)
        {
            this.reject(&error);
        }
        loop {
            match &mut this.state {
                State::AwaitingRequest(_) => ready!(this.poll_awaiting_request(cx)),
                State::Subscribing(subscribing) => match ready!(subscribing.as_mut().poll(cx)) {
                    Ok(mut reader) => {
                        reader.share(this.budgets.read_permits(&this.hub));
                        this.state = State::Reading(Box::new(reader));
                    }
                    Err(error) => this.reject(&error.into()),
                },
                State::Reading(reader) => {
                    let expiry = this.token_expiry.as_mut();
                    if expiry.is_some_and(|expiry| expiry.poll_expired(cx).is_ready()) {
                        this.reject(&TokenError::Expired.into());
                        continue;
                    }
                    let error = match ready!(reader.poll_next(cx)) {
                        FeedItem::Events(bytes) | FeedItem::Notice(bytes) => {
                            return Poll::Ready(Some(Ok(Frame::data(bytes))));
                        }
                        FeedItem::Lagged => RpcError::fell_behind(),
                        FeedItem::Closed(reason) => reason.into(),
                    };
                    this.end(error.reason(), error.to_status());
                }
                State::Ending(status) => {
                    let frame = trailers(status);
                    this.state = State::Ended;
                    return Poll::Ready(Some(frame));
                }
                State::Ended => return Poll::Ready(None),
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self.state, State::Ended)
    }
}
