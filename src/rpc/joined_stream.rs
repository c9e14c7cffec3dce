//! A participant's stream after its JOIN was accepted.

use std::error::Error as _;
use std::ops::ControlFlow;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio_stream::Stream;
use tonic::{Status, Streaming};

use super::error::RpcError;
use super::observer::{Observer, StreamEnd};
use super::reason::Reason;
use crate::domain::limits::{MAX_MESSAGE_ID_LEN, MAX_NAME_CHARS, SERVER_NAME};
use crate::domain::{Message, MessageId, Rules, Text, Timestamp, TraceContext};
use crate::hub::frame;
use crate::hub::{CloseReason, FeedItem, Member};
use crate::proto::{EventType, JoinMsgLeave, Limits, Notice, NoticeCode, ServerMessage, Welcome};

/// A client is read from only while it has less than this to read itself, in bytes: who talks must listen. It leaves a
/// talker in a busy room some thousand short messages of slack.
const READ_LAG: u64 = 256 * 1024;

/// How many messages of a client are taken in a row before others get their turn.
const BURST: usize = 128;

/// A participant's stream after its JOIN was accepted.
pub(super) struct JoinedStream {
    member: Member,
    rules: Rules,
    resume_grace: Duration,
    /// Whether the client is sent messages that the first version did not have.
    is_newer: bool,
    /// The welcome, until it is sent.
    welcome: Option<Bytes>,
    inbound: Inbound,
    /// How the client's side ended, once it has.
    ending: Option<(StreamEnd, Option<Status>)>,
}

enum Inbound {
    Open,
    Closed,
}

/// How a session ends.
pub(super) struct Ended {
    pub(super) end: StreamEnd,
    pub(super) status: Status,
    /// A last message before the status.
    pub(super) farewell: Option<Bytes>,
}

/// What a session yields.
pub(super) enum Output {
    Data(Bytes),
    Ended(Ended),
}

impl JoinedStream {
    pub(super) fn new(member: Member, rules: Rules, resume_grace: Duration, is_newer: bool) -> Self {
        let mut session = Self {
            member,
            rules,
            resume_grace,
            is_newer,
            welcome: None,
            inbound: Inbound::Open,
            ending: None,
        };
        if is_newer {
            session.welcome = Some(frame::private(&session.welcome_message()));
        }
        session
    }

    /// What goes to the client next. Takes what the client sends along the way.
    pub(super) fn poll_next(
        &mut self,
        cx: &mut Context<'_>,
        inbound: &mut Streaming<JoinMsgLeave>,
        observer: &dyn Observer,
    ) -> Poll<Output> {
        if let Some(welcome) = self.welcome.take() {
            return Poll::Ready(Output::Data(welcome));
        }
        let piece = self.member.poll_next(cx);
        if let Poll::Ready(FeedItem::Closed(end)) = piece {
            return Poll::Ready(Output::Ended(self.ended(end)));
        }
        if let Poll::Ready(FeedItem::Lagged) = piece {
            return Poll::Ready(Output::Ended(self.failed(StreamEnd::Slow, &RpcError::FellBehind)));
        }
        // While notices wait the client is answered first.
        let may_read = !matches!(piece, Poll::Ready(FeedItem::Notice(_)));
        if may_read && matches!(self.inbound, Inbound::Open) && self.member.lag() <= READ_LAG {
            self.read(cx, inbound, observer);
        }
        match piece {
            Poll::Ready(FeedItem::Events(bytes) | FeedItem::Notice(bytes)) => {
                Poll::Ready(Output::Data(bytes))
            }
            _ => Poll::Pending,
        }
    }

    /// Takes what the client has sent, as long as the room has place for it.
    fn read(&mut self, cx: &mut Context<'_>, inbound: &mut Streaming<JoinMsgLeave>, observer: &dyn Observer) {
        for _ in 0..BURST {
            match self.member.poll_ready(cx) {
                Poll::Ready(Ok(())) => {}
                // The room has ended, and this stream's end is in the feed.
                Poll::Ready(Err(_)) => {
                    self.inbound = Inbound::Closed;
                    return;
                }
                Poll::Pending => return,
            }
            let received = match Pin::new(&mut *inbound).poll_next(cx) {
                Poll::Pending => return,
                Poll::Ready(received) => received,
            };
            let flow = match received {
                Some(Ok(message)) => self.take(message, observer),
                // A connection that breaks is no leave. What the transport reports has a cause, what cannot be decoded
                // has none.
                Some(Err(status)) if status.source().is_some() => {
                    self.inbound = Inbound::Closed;
                    self.ending = Some((StreamEnd::Lost, Some(status)));
                    self.member.detach();
                    ControlFlow::Break(())
                }
                // What cannot be decoded ends the stream, for everybody else as if the client had left.
                Some(Err(status)) => {
                    observer.rejected(Reason::Undecodable);
                    self.leave(StreamEnd::Refused, Some(status), None, None);
                    ControlFlow::Break(())
                }
                // A stream that was cut reads like one that was ended: who can come back has the time to, and says LEAVE
                // to leave.
                None => {
                    self.inbound = Inbound::Closed;
                    self.ending = Some((StreamEnd::Closed, None));
                    self.member.detach();
                    ControlFlow::Break(())
                }
            };
            if flow.is_break() {
                return;
            }
        }
        // There may be more: it is taken when others have had their turn.
        cx.waker().wake_by_ref();
    }

    fn take(&mut self, message: JoinMsgLeave, observer: &dyn Observer) -> ControlFlow<()> {
        let timestamp = Timestamp(message.timestamp);
        match EventType::try_from(message.r#type) {
            Ok(kind @ EventType::Message) => {
                observer.received(kind);
                let id = message.message_id.as_str();
                let said = Message {
                    timestamp,
                    text: Text::parse(&message.msg, self.rules.max_message_chars),
                    message_id: (!id.is_empty()).then(|| MessageId::try_from(id)),
                    trace: TraceContext::parse(&message.traceparent, &message.tracestate),
                };
                self.member.say(said, Instant::now());
                return ControlFlow::Continue(());
            }
            Ok(kind @ EventType::Leave) => {
                observer.received(kind);
                let trace = TraceContext::parse(&message.traceparent, &message.tracestate);
                self.leave(StreamEnd::Left, None, Some(timestamp), trace);
            }
            Ok(kind @ EventType::Join) => {
                observer.received(kind);
                self.refuse(&RpcError::SecondJoin, observer);
            }
            Err(_) => self.refuse(&RpcError::UnknownType(message.r#type), observer),
        }
        ControlFlow::Break(())
    }

    fn refuse(&mut self, error: &RpcError, observer: &dyn Observer) {
        observer.rejected(error.reason());
        self.leave(StreamEnd::Refused, Some(error.status().0), None, None);
    }

    /// The client goes, or has to: the room hears of it, and what the room said before still goes out.
    fn leave(
        &mut self,
        end: StreamEnd,
        status: Option<Status>,
        timestamp: Option<Timestamp>,
        trace: Option<TraceContext>,
    ) {
        self.inbound = Inbound::Closed;
        self.ending = Some((end, status));
        self.member.leave(timestamp, trace);
    }

    fn ended(&mut self, end: CloseReason) -> Ended {
        match end {
            CloseReason::Left => {
                let (end, status) = self.ending.take().unwrap_or((StreamEnd::Left, None));
                Ended {
                    end,
                    status: status.unwrap_or_else(|| Status::new(tonic::Code::Ok, "")),
                    farewell: None,
                }
            }
            CloseReason::Rejected(refusal) => self.failed(StreamEnd::Refused, &RpcError::Refused(refusal)),
            CloseReason::TakenOver => self.failed(StreamEnd::TakenOver, &RpcError::TakenOver),
            CloseReason::Draining(delay) => self.failed(StreamEnd::Drain, &RpcError::Draining(delay)),
            CloseReason::Failed => self.failed(StreamEnd::Error, &RpcError::Failed),
        }
    }

    fn failed(&self, end: StreamEnd, error: &RpcError) -> Ended {
        let (status, retry) = error.status();
        let code = match error {
            RpcError::Draining(_) | RpcError::Failed => Some(NoticeCode::Reconnect),
            RpcError::FellBehind => Some(NoticeCode::FellBehind),
            RpcError::TakenOver => Some(NoticeCode::TakenOver),
            _ => None,
        };
        let farewell = code
            .filter(|_| self.is_newer)
            .map(|code| frame::private(&self.farewell_message(code, status.message(), retry)));
        Ended {
            end,
            status,
            farewell,
        }
    }

    fn private_message(&self) -> ServerMessage {
        ServerMessage {
            sender_name: SERVER_NAME.into(),
            r#type: EventType::Message.into(),
            timestamp: self.member.time(),
            room: self.member.room().to_string(),
            epoch: self.member.info().epoch.get(),
            ..ServerMessage::default()
        }
    }

    fn farewell_message(&self, code: NoticeCode, words: &str, retry: Option<Duration>) -> ServerMessage {
        let retry_delay = retry.and_then(|delay| delay.try_into().ok());
        ServerMessage {
            msg_stream: words.into(),
            notice: Some(Notice {
                code: code.into(),
                retry_delay,
                original_sequence: 0,
            }),
            ..self.private_message()
        }
    }

    fn welcome_message(&self) -> ServerMessage {
        let entry = self.member.info();
        // The domain's limits are far below what these fields hold.
        let small = |limit: usize| u32::try_from(limit).unwrap_or(u32::MAX);
        let limits = Limits {
            max_message_chars: small(self.rules.max_message_chars),
            max_name_chars: small(MAX_NAME_CHARS),
            max_room_chars: small(MAX_NAME_CHARS),
            max_message_id_chars: small(MAX_MESSAGE_ID_LEN),
            max_clock_ahead: self.rules.max_clock_ahead,
            resume_grace: self.resume_grace.try_into().ok(),
        };
        // Of an empty log nothing is kept, which the wire shows as zero.
        let is_empty = entry.start.bounds.last < entry.start.bounds.first;
        let welcome = Welcome {
            participant_id: entry.participant.get(),
            session_token: entry.session_token.clone().unwrap_or_default(),
            epoch: entry.epoch.get(),
            sequence: entry.start.after.get(),
            recovered: entry.start.is_recovered,
            first_sequence: if is_empty {
                0
            } else {
                entry.start.bounds.first.get()
            },
            last_sequence: entry.start.bounds.last.get(),
            limits: Some(limits),
        };
        let words = format!("Welcome to {}, {}.", self.member.room(), entry.name);
        let timestamp = entry.start.time.get();
        ServerMessage {
            msg_stream: words,
            timestamp,
            welcome: Some(welcome),
            ..self.private_message()
        }
    }
}
