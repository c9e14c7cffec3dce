//! The response body of a Chat call: one state machine for the whole stream, which hyper polls whenever the client has
//! accepted what it returned before.
//!
//! Polling the body also reads the client's messages. So a stream needs no task of its own, and a client that does not read
//! is not read from: once its window is exhausted, h2 and hyper hold one more chunk of the body each, and it is not polled.

use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Instant;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http_body::{Body, Frame};
use tokio_util::sync::CancellationToken;
use tonic::Status;

use super::connection_budgets::{ConnectionBudgets, ConnectionInfo};
use super::convert::{join_request, origin};
use super::error::{RpcError, trailers};
use super::first_message::FirstMessageDeadline;
use super::inbound::{Inbound, InboundError};
use super::joined_stream::{JoinedStream, Output, StreamEnd};
use super::observer::{JoinAccepted, Observer, ParticipantInfo, StreamingMethod};
use super::rates::Rates;
use super::stream_outcome::StreamOutcome;
use super::time_limit::StreamLimit;
use super::token_expiry::TokenExpiry;
use crate::auth::{Caller, Right};
use crate::domain::{Timestamp, TraceContext};
use crate::hub::{Hub, HubError, JoinRequest, Member};
use crate::proto::{EventType, JoinMsgLeave};
use crate::reason::Reason;

pub(super) struct ChatBody {
    hub: Arc<Hub>,
    budgets: Arc<ConnectionBudgets>,
    caller: Caller,
    inbound: Inbound<JoinMsgLeave>,
    rates: Arc<Rates>,
    limit: StreamLimit,
    state: State,
    outcome: StreamOutcome,
}

enum State {
    AwaitingJoin(FirstMessageDeadline),
    /// The room is handling the JOIN.
    Joining(Box<Joining>),
    Joined(Box<JoinedStream>),
    /// The stream has ended; the last notice, if any, and the status are sent next.
    Ending {
        notice: Option<Bytes>,
        status: Box<Status>,
    },
    Ended,
}

struct Joining {
    member: BoxFuture<'static, Result<Member, RpcError>>,
    uses_extensions: bool,
    received_at: Instant,
    trace: Option<TraceContext>,
    client_time: Timestamp,
}

impl ChatBody {
    pub(super) fn new(
        hub: Arc<Hub>,
        inbound: Inbound<JoinMsgLeave>,
        draining: CancellationToken,
        rates: Arc<Rates>,
        limit: StreamLimit,
        connection: &ConnectionInfo,
        observer: Arc<dyn Observer>,
    ) -> Self {
        Self {
            hub,
            budgets: Arc::clone(&connection.budgets),
            caller: connection.caller.clone(),
            inbound,
            rates,
            limit,
            state: State::AwaitingJoin(FirstMessageDeadline::new(draining)),
            outcome: StreamOutcome::new(StreamingMethod::Chat, connection.peer, observer),
        }
    }

    fn end(&mut self, end: StreamEnd) {
        let StreamEnd {
            reason,
            status,
            notice,
        } = end;
        self.outcome.reason = reason;
        self.outcome.detail = status.message().to_owned();
        self.state = State::Ending {
            notice,
            status: Box::new(status),
        };
    }

    /// Ends the stream if it has lasted as long as it may.
    fn poll_limit(&mut self, cx: &mut Context<'_>) {
        let Poll::Ready(error) = self.limit.poll(cx) else {
            return;
        };
        match &self.state {
            State::Joined(stream) => self.end(stream.end_with_notice(&error)),
            State::AwaitingJoin(_) | State::Joining(_) => self.reject(error),
            State::Ending { .. } | State::Ended => {}
        }
    }

    fn poll_awaiting_join(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let State::AwaitingJoin(deadline) = &mut self.state else {
            return Poll::Ready(());
        };
        if let Poll::Ready(error) = deadline.poll(cx, Reason::JoinTimeout, "JOIN") {
            self.reject(error);
            return Poll::Ready(());
        }
        let request = match ready!(self.inbound.poll_next(cx)) {
            Some(Ok(message)) => self.check_first_message(message),
            Some(Err(InboundError::Rejected(error))) => Err(error),
            Some(Err(InboundError::Lost(status))) => {
                self.end(StreamEnd::new(Reason::ConnectionLost, status));
                return Poll::Ready(());
            }
            None => Err(RpcError::new(
                Reason::NotJoined,
                "the stream ended before a JOIN; the first message of a stream is a JOIN",
            )),
        };
        let limited = request.and_then(|request| {
            let is_new_room = !self.hub.has_room(&request.room);
            self.caller.check_write(&request.room, is_new_room)?;
            // A participant receives what is said.
            self.caller.check(Right::Read, &request.room)?;
            let address = self.outcome.peer.map(|peer| peer.ip());
            self.rates.check_join(address)?;
            self.rates.check_room(address, &request.room, &self.hub)?;
            Ok((request, is_new_room))
        });
        match limited {
            Ok((request, is_new_room)) => self.join(request, is_new_room),
            Err(error) => self.reject(error),
        }
        Poll::Ready(())
    }

    fn check_first_message(&self, mut message: JoinMsgLeave) -> Result<JoinRequest, RpcError> {
        match EventType::try_from(message.r#type) {
            Ok(EventType::Join) => {
                self.outcome.observer.received(EventType::Join);
                let name = self.caller.name(&message.client_name)?.to_owned();
                message.client_name = name;
                let mut request = join_request(message)?;
                request.join.owner = self.caller.name_owner();
                request.join.origin = origin(&self.caller, self.outcome.peer, &request.room);
                Ok(request)
            }
            Ok(EventType::Message | EventType::Leave) => Err(RpcError::new(
                Reason::NotJoined,
                "the first message of a stream is a JOIN",
            )),
            Err(_) => Err(RpcError::unknown_type(message.r#type)),
        }
    }

    fn join(&mut self, request: JoinRequest, is_new_room: bool) {
        let (hub, budgets) = (Arc::clone(&self.hub), Arc::clone(&self.budgets));
        let (caller, rates) = (self.caller.clone(), Arc::clone(&self.rates));
        let address = self.outcome.peer.map(|peer| peer.ip());
        let received_at = Instant::now();
        self.state = State::Joining(Box::new(Joining {
            uses_extensions: request.join.is_resumable,
            received_at,
            trace: request.join.trace.clone(),
            client_time: request.join.timestamp,
            member: Box::pin(async move {
                budgets.load_room(&hub, &request.room).await?;
                join(&hub, &caller, &rates, address, request, is_new_room, received_at).await
            }),
        }));
    }

    fn reject(&mut self, error: RpcError) {
        error.report(&*self.outcome.observer);
        self.end(error.into());
    }

    fn poll_joining(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let State::Joining(joining) = &mut self.state else {
            return Poll::Ready(());
        };
        match ready!(joining.member.as_mut().poll(cx)) {
            Ok(member) => self.on_joined(member),
            Err(error) => self.reject(error),
        }
        Poll::Ready(())
    }

    fn on_joined(&mut self, mut member: Member) {
        let State::Joining(joining) = &self.state else {
            return;
        };
        let info = member.info();
        let mut participant = ParticipantInfo {
            room: member.room().to_string(),
            participant: info.participant.get(),
            name: info.name.to_string(),
            peer: self.outcome.peer,
            trace: None,
        };
        let accepted = JoinAccepted {
            received_at: joining.received_at,
            trace: joining.trace.as_ref(),
            client_time: joining.client_time,
            time: info.joined.map_or(info.start.time, |(_, time)| time),
            sequence: info.joined.map(|(sequence, _)| sequence),
        };
        participant.trace = self.outcome.observer.joined(&participant, &accepted);
        member.set_stream_trace(participant.trace.clone());
        member.share_reads(self.budgets.read_permits(&self.hub));
        self.outcome.participant = Some(participant);
        let stream = JoinedStream::new(
            member,
            *self.hub.rules(),
            self.hub.options().resume_grace,
            joining.uses_extensions,
            self.rates.messages(),
            TokenExpiry::of(&self.caller),
        );
        self.state = State::Joined(Box::new(stream));
    }
}

/// Joins a room. If it ends meanwhile, joins the one that begins then.
async fn join(
    hub: &Arc<Hub>,
    caller: &Caller,
    rates: &Rates,
    address: Option<IpAddr>,
    mut request: JoinRequest,
    is_new_room: bool,
    received_at: Instant,
) -> Result<Member, RpcError> {
    match hub.join(request.clone(), received_at).await {
        Err(HubError::RoomEnded) => {}
        joined => return Ok(joined?),
    }
    // The session has ended with the room.
    request.session_token = None;
    rates.check_room_again(caller, address, &request.room, hub, is_new_room)?;
    Ok(hub.join(request, received_at).await?)
}

impl Body for ChatBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = &mut *self;
        this.poll_limit(cx);
        loop {
            match &mut this.state {
                State::AwaitingJoin(_) => ready!(this.poll_awaiting_join(cx)),
                State::Joining(_) => ready!(this.poll_joining(cx)),
                State::Joined(stream) => {
                    match ready!(stream.poll_next(cx, &mut this.inbound, &*this.outcome.observer)) {
                        Output::Data(bytes) => return Poll::Ready(Some(Ok(Frame::data(bytes)))),
                        Output::End(end) => this.end(end),
                    }
                }
                State::Ending { notice, status } => {
                    if let Some(bytes) = notice.take() {
                        return Poll::Ready(Some(Ok(Frame::data(bytes))));
                    }
                    let frame = trailers(status);
                    this.state = State::Ended;
                    return Poll::Ready(Some(frame));
                }
                State::Ended => return Poll::Ready(None),
            }
        }
    }

    /// Must be false until the trailers are sent: tonic replaces a body that is at its end from the start with an empty
    /// body.
    fn is_end_stream(&self) -> bool {
        matches!(self.state, State::Ended)
    }
}

#[cfg(test)]
mod tests {
    use super::super::rates::RateLimits;
    use super::*;
    use crate::cluster::hub_fixtures::{self, Replicated, expiring};
    use crate::hub::HubOptions;

    #[tokio::test(start_paused = true)]
    async fn whoever_joins_a_room_that_ends_meanwhile_begins_another_if_the_address_may() {
        for (new_rooms, is_allowed) in [(10, true), (0, false)] {
            let mut replicated = Replicated::with_retention(HubOptions::default(), expiring()).await;
            replicated.hub.set_proposing_ends(true);
            let epoch = replicated.begin_room().await;
            let proposal = replicated.proposal().await;
            let hub = Arc::clone(&replicated.hub);
            let rates = Rates::new(RateLimits {
                rooms_per_address: new_rooms,
                ..RateLimits::default()
            });
            let joined = tokio::spawn(async move {
                let (caller, request) = (Caller::Unrestricted, hub_fixtures::join("Ada"));
                join(&hub, &caller, &rates, None, request, false, Instant::now()).await
            });
            let late = replicated.submitted().await;
            replicated.order(vec![proposal, late]).await;
            if is_allowed {
                replicated.order_next().await;
                let member = joined.await.unwrap().ok().unwrap();
                assert!(Some(member.info().epoch) > epoch);
            } else {
                let rejected = joined.await.unwrap().err().unwrap();
                assert_eq!(rejected.reason(), Reason::TooManyRoomsPerAddress);
            }
        }
    }
}
