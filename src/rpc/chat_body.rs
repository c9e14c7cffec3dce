//! The response body of a Chat call: the whole conversation with one client, as a state machine that the transport
//! polls whenever the client has room for more.
//!
//! The body reads the client's side too, so a stream costs no task of its own, and a client that does not read is not
//! read from: the transport does not poll the body while the client's flow-control window is shut.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Instant;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http_body::{Body, Frame};
use tokio_stream::Stream;
use tokio_util::sync::CancellationToken;
use tonic::{Status, Streaming};

use super::admission::join_request;
use super::error::{RpcError, trailers};
use super::first_message::{FirstMessageDeadline, RETRY};
use super::joined_stream::{Ended, JoinedStream, Output};
use super::observer::{JoinAccepted, Method, Observer, ParticipantInfo, StreamEnd};
use super::reason::Reason;
use super::stall_detector;
use crate::domain::{Timestamp, TraceContext};
use crate::hub::{Hub, HubError, Member};
use crate::proto::{EventType, JoinMsgLeave};

/// The response body of a Chat call.
pub(super) struct ChatBody {
    hub: Arc<Hub>,
    inbound: Streaming<JoinMsgLeave>,
    phase: Phase,
    stats: StreamStats,
}

enum Phase {
    /// Nobody yet: the JOIN is awaited.
    AwaitingJoin(FirstMessageDeadline),
    /// A JOIN is on its way through the room.
    Joining(Box<Joining>),
    /// A participant.
    Joined(Box<JoinedStream>),
    /// The status is left to be sent, perhaps after a last message.
    Ending {
        farewell: Option<Bytes>,
        status: Box<Status>,
    },
    /// Nothing is left.
    Done,
}

struct Joining {
    member: BoxFuture<'static, Result<Member, HubError>>,
    is_newer: bool,
    received: Instant,
    sender: Option<TraceContext>,
    claimed: Timestamp,
}

/// Counts a stream from its beginning to its end, however it ends.
struct StreamStats {
    observer: Arc<dyn Observer>,
    visitor: Option<ParticipantInfo>,
    end: StreamEnd,
    detail: String,
}

impl Drop for StreamStats {
    fn drop(&mut self) {
        if stall_detector::has_stalled() {
            self.end = StreamEnd::Slow;
            self.detail = "the client takes nothing".into();
        }
        self.observer
            .stream_ended(self.end, self.visitor.as_ref(), &self.detail);
    }
}

impl ChatBody {
    pub(super) fn new(
        hub: Arc<Hub>,
        inbound: Streaming<JoinMsgLeave>,
        draining: CancellationToken,
        observer: Arc<dyn Observer>,
    ) -> Self {
        observer.stream_started(Method::Chat);
        let stats = StreamStats {
            observer,
            visitor: None,
            end: StreamEnd::Lost,
            detail: String::new(),
        };
        Self {
            hub,
            inbound,
            phase: Phase::AwaitingJoin(FirstMessageDeadline::new(draining)),
            stats,
        }
    }

    fn end(&mut self, ended: Ended) {
        let Ended {
            end,
            status,
            farewell,
        } = ended;
        self.stats.end = end;
        self.stats.detail = status.message().to_owned();
        self.phase = Phase::Ending {
            farewell,
            status: Box::new(status),
        };
    }

    fn refuse(&mut self, error: &RpcError) {
        let end = match error {
            RpcError::Draining(_) => StreamEnd::Drain,
            _ => StreamEnd::Refused,
        };
        self.end(Ended {
            end,
            status: error.status().0,
            farewell: None,
        });
    }

    fn poll_awaiting_join(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Phase::AwaitingJoin(threshold) = &mut self.phase else {
            return Poll::Ready(());
        };
        if let Poll::Ready(error) = threshold.poll(cx, RpcError::JoinTimeout) {
            self.refuse(&error);
            return Poll::Ready(());
        }
        let received = ready!(Pin::new(&mut self.inbound).poll_next(cx));
        let request = match received {
            Some(Ok(message)) if message.r#type == EventType::Join as i32 => {
                self.stats.observer.received(EventType::Join);
                join_request(message)
            }
            Some(Ok(message)) => Err(match EventType::try_from(message.r#type) {
                Ok(_) => RpcError::NotJoin,
                Err(_) => RpcError::UnknownType(message.r#type),
            }),
            Some(Err(status)) => {
                self.stats.observer.rejected(Reason::Undecodable);
                self.end(Ended {
                    end: StreamEnd::Refused,
                    status,
                    farewell: None,
                });
                return Poll::Ready(());
            }
            None => Err(RpcError::NoJoin),
        };
        match request {
            Ok(request) => {
                let received = Instant::now();
                let (sender, claimed) = (request.join.trace.clone(), request.join.timestamp);
                let is_newer = request.join.is_resumable;
                let hub = Arc::clone(&self.hub);
                self.phase = Phase::Joining(Box::new(Joining {
                    member: Box::pin(async move { hub.join(request, received).await }),
                    is_newer,
                    received,
                    sender,
                    claimed,
                }));
            }
            Err(error) => {
                self.stats.observer.rejected(error.reason());
                self.refuse(&error);
            }
        }
        Poll::Ready(())
    }

    fn poll_joining(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Phase::Joining(joining) = &mut self.phase else {
            return Poll::Ready(());
        };
        match ready!(joining.member.as_mut().poll(cx)) {
            Ok(mut member) => {
                let entry = member.info();
                let mut visitor = ParticipantInfo {
                    room: member.room().to_string(),
                    participant: entry.participant.get(),
                    name: entry.name.to_string(),
                    trace: None,
                };
                let arrival = JoinAccepted {
                    received: joining.received,
                    sender: joining.sender.as_ref(),
                    claimed: joining.claimed,
                    time: entry.joined.map_or(entry.start.time, |(_, time)| time),
                    sequence: entry.joined.map(|(sequence, _)| sequence),
                };
                visitor.trace = self.stats.observer.joined(&visitor, &arrival);
                member.set_stream_trace(visitor.trace.clone());
                self.stats.visitor = Some(visitor);
                let session = JoinedStream::new(
                    member,
                    *self.hub.rules(),
                    self.hub.options().resume_grace,
                    joining.is_newer,
                );
                self.phase = Phase::Joined(Box::new(session));
            }
            Err(error) => {
                let error = match error {
                    HubError::Draining => RpcError::Draining(RETRY),
                    error => RpcError::Hub(error),
                };
                // What the room refused, the room has told.
                if !matches!(error, RpcError::Hub(HubError::Rejected(_))) {
                    self.stats.observer.rejected(error.reason());
                }
                self.refuse(&error);
            }
        }
        Poll::Ready(())
    }
}

impl Body for ChatBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = &mut *self;
        loop {
            match &mut this.phase {
                Phase::AwaitingJoin(_) => ready!(this.poll_awaiting_join(cx)),
                Phase::Joining(_) => ready!(this.poll_joining(cx)),
                Phase::Joined(session) => {
                    match ready!(session.poll_next(cx, &mut this.inbound, &*this.stats.observer)) {
                        Output::Data(bytes) => return Poll::Ready(Some(Ok(Frame::data(bytes)))),
                        Output::Ended(ended) => this.end(ended),
                    }
                }
                Phase::Ending {
                    farewell: farewell @ Some(_),
                    ..
                } => {
                    return Poll::Ready(farewell.take().map(|bytes| Ok(Frame::data(bytes))));
                }
                Phase::Ending { status, .. } => {
                    let frame = trailers(status);
                    this.phase = Phase::Done;
                    return Poll::Ready(Some(frame));
                }
                Phase::Done => return Poll::Ready(None),
            }
        }
    }

    /// True only when all was sent: a body that says so at its creation would be replaced by an empty one.
    fn is_end_stream(&self) -> bool {
        matches!(self.phase, Phase::Done)
    }
}
