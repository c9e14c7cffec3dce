//! A Chat stream whose JOIN was accepted.

use std::ops::ControlFlow;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tonic::{Code, Status};

use super::byte_budget::Reservation;
use super::convert::{first_sequence, message_id};
use super::error::RpcError;
use super::inbound::{Inbound, InboundError};
use super::observer::Observer;
use super::rates::MessageRate;
use super::token_expiry::{ExpiryState, TokenExpiry};
use crate::auth::TokenError;
use crate::domain::limits::{MAX_MESSAGE_ID_LEN, MAX_NAME_CHARS, SERVER_NAME};
use crate::domain::{Message, MessageId, Rules, Text, Timestamp, TraceContext};
use crate::hub::frame;
use crate::hub::{CloseReason, FeedItem, Member};
use crate::proto::{EventType, JoinMsgLeave, Limits, Notice, NoticeCode, ServerMessage, Welcome};
use crate::reason::Reason;

/// While more bytes than this wait to be sent to a client, its messages are not read: a client that sends must also receive.
/// Some thousand short messages.
const MAX_OUTBOUND_LAG: u64 = 256 * 1024;

/// How many messages of one client are handled before the stream yields to the other streams of the connection.
const MAX_BURST: usize = 128;

/// The same while [turns must be short](super::turns::AddressTurns::must_be_short).
const MAX_SHORT_BURST: usize = 32;

/// A Chat stream whose JOIN was accepted.
pub(super) struct JoinedStream {
    member: Member,
    rules: Rules,
    resume_grace: Duration,
    /// Whether the client may receive messages that the first version of the protocol did not have.
    uses_extensions: bool,
    /// The Welcome, until it is sent.
    welcome: Option<Bytes>,
    is_reading: bool,
    rate: MessageRate,
    /// Accounts for a message that waits for space in the room's mailbox.
    in_transit: Option<Reservation>,
    /// `None` if the client has no token.
    token_expiry: Option<TokenExpiry>,
    /// The notice that the newest message came too fast, until it is sent.
    notice: Option<Bytes>,
    /// Why the client's half of the stream ended, and the status unless it is OK. The stream ends with them once the room has
    /// confirmed it.
    inbound_end: Option<(Reason, Option<Status>)>,
}

/// How a stream ends.
pub(super) struct StreamEnd {
    pub(super) reason: Reason,
    pub(super) status: Status,
    /// A last message, sent before the status.
    pub(super) notice: Option<Bytes>,
}

impl StreamEnd {
    pub(super) const fn new(reason: Reason, status: Status) -> Self {
        Self {
            reason,
            status,
            notice: None,
        }
    }
}

impl From<RpcError> for StreamEnd {
    fn from(error: RpcError) -> Self {
        Self::new(error.reason(), error.to_status())
    }
}

/// What a stream sends to the client next.
pub(super) enum Output {
    Data(Bytes),
    End(StreamEnd),
}

impl JoinedStream {
    pub(super) fn new(
        member: Member,
        rules: Rules,
        resume_grace: Duration,
        uses_extensions: bool,
        rate: MessageRate,
        token_expiry: Option<TokenExpiry>,
    ) -> Self {
        let mut stream = Self {
            member,
            rules,
            resume_grace,
            uses_extensions,
            welcome: None,
            is_reading: true,
            rate,
            in_transit: None,
            token_expiry,
            notice: None,
            inbound_end: None,
        };
        if uses_extensions {
            stream.welcome = Some(frame::encode(&stream.welcome_message()));
        }
        stream
    }

    /// Polls for what goes to the client next, and handles what the client has sent.
    pub(super) fn poll_next(
        &mut self,
        cx: &mut Context<'_>,
        inbound: &mut Inbound<JoinMsgLeave>,
        observer: &dyn Observer,
    ) -> Poll<Output> {
        if let Some(private) = self.welcome.take().or_else(|| self.notice.take()) {
            return Poll::Ready(Output::Data(private));
        }
        if let Some(output) = self.poll_token(cx) {
            return Poll::Ready(output);
        }
        let output = match self.member.poll_next(cx) {
            // A notice answers a message of the client. Its next messages are not read before it has received the answer.
            Poll::Ready(FeedItem::Notice(bytes)) => return Poll::Ready(Output::Data(bytes)),
            Poll::Ready(FeedItem::Events(bytes)) => Poll::Ready(Output::Data(bytes)),
            Poll::Ready(FeedItem::Closed(reason)) => return Poll::Ready(Output::End(self.on_closed(reason))),
            Poll::Ready(FeedItem::Lagged) => {
                return Poll::Ready(Output::End(self.end_with_notice(&RpcError::fell_behind())));
            }
            Poll::Pending => Poll::Pending,
        };
        if self.is_reading && self.member.lag() <= MAX_OUTBOUND_LAG {
            self.read_inbound(cx, inbound, observer);
        }
        if output.is_pending()
            && let Some(notice) = self.notice.take()
        {
            return Poll::Ready(Output::Data(notice));
        }
        output
    }

    /// What the client receives because its token has expired, or is about to.
    fn poll_token(&mut self, cx: &mut Context<'_>) -> Option<Output> {
        while let Poll::Ready(state) = self.token_expiry.as_mut()?.poll(cx) {
            match state {
                ExpiryState::Expired => {
                    return Some(Output::End(RpcError::from(TokenError::Expired).into()));
                }
                ExpiryState::Soon(remaining) if self.uses_extensions => {
                    return Some(Output::Data(self.expiry_notice(remaining)));
                }
                ExpiryState::Soon(_) => {}
            }
        }
        None
    }

    fn expiry_notice(&self, remaining: Duration) -> Bytes {
        let notice = Notice {
            code: NoticeCode::TokenExpires.into(),
            expires_in: remaining.try_into().ok(),
            ..Notice::default()
        };
        let remaining = humantime::format_duration(remaining);
        frame::encode(&ServerMessage {
            msg_stream: format!("your token expires in {remaining}; join again with a new one"),
            notice: Some(notice),
            ..self.private_message()
        })
    }

    /// Handles what the client has sent, as long as the room's mailbox has space.
    fn read_inbound(
        &mut self,
        cx: &mut Context<'_>,
        inbound: &mut Inbound<JoinMsgLeave>,
        observer: &dyn Observer,
    ) {
        let max_burst = if inbound.turns().must_be_short() {
            MAX_SHORT_BURST
        } else {
            MAX_BURST
        };
        for _ in 0..max_burst {
            match self.member.poll_ready(cx) {
                Poll::Ready(Ok(())) => self.in_transit = None,
                // The room has stopped. The feed yields the reason, which ends this stream.
                Poll::Ready(Err(_)) => {
                    self.is_reading = false;
                    return;
                }
                Poll::Pending => {
                    if self.in_transit.is_none() {
                        match inbound.reserve(self.member.unsent_weight()) {
                            Ok(reservation) => self.in_transit = reservation,
                            // The session is not to blame, so it can be resumed.
                            Err(error) => {
                                error.report(observer);
                                self.detach(error.reason(), Some(error.to_status()));
                            }
                        }
                    }
                    return;
                }
            }
            let Poll::Ready(received) = inbound.poll_next(cx) else {
                return;
            };
            let flow = match received {
                Some(Ok(message)) => self.handle(&message, observer),
                Some(Err(InboundError::Lost(status))) => {
                    self.detach(Reason::ConnectionLost, Some(status));
                    ControlFlow::Break(())
                }
                Some(Err(InboundError::Rejected(error))) => {
                    self.reject(&error, observer);
                    ControlFlow::Break(())
                }
                // A lost connection can look the same, so a session that can be resumed gets its grace period. A client that
                // wants to leave at once sends LEAVE.
                None => {
                    self.detach(Reason::HalfClosed, None);
                    ControlFlow::Break(())
                }
            };
            if flow.is_break() {
                return;
            }
        }
        // There may be more: be polled again after the other streams.
        cx.waker().wake_by_ref();
    }

    fn handle(&mut self, message: &JoinMsgLeave, observer: &dyn Observer) -> ControlFlow<()> {
        let timestamp = Timestamp(message.timestamp);
        let trace = TraceContext::parse(&message.traceparent, &message.tracestate);
        let Ok(kind) = EventType::try_from(message.r#type) else {
            self.reject(&RpcError::unknown_type(message.r#type), observer);
            return ControlFlow::Break(());
        };
        observer.received(kind);
        match kind {
            EventType::Message => {
                if let Err(error) = self.rate.try_acquire(&message.message_id) {
                    error.report(observer);
                    self.notice = Some(self.notice(&error, &message.message_id));
                    // The next messages are not read before the client has received the answer.
                    return ControlFlow::Break(());
                }
                let message = Message {
                    timestamp,
                    text: Text::parse(&message.msg, self.rules.max_message_chars),
                    message_id: message_id(&message.message_id),
                    trace,
                };
                self.member.say(message, Instant::now());
                return ControlFlow::Continue(());
            }
            EventType::Leave => self.leave(Reason::Left, None, Some(timestamp), trace),
            EventType::Join => {
                let error = RpcError::new(
                    Reason::SecondJoin,
                    "this stream has joined already; open another stream to join again",
                );
                self.reject(&error, observer);
            }
        }
        ControlFlow::Break(())
    }

    fn reject(&mut self, error: &RpcError, observer: &dyn Observer) {
        error.report(observer);
        self.leave(error.reason(), Some(error.to_status()), None, None);
    }

    /// Ends the stream but not the session, which may be resumed.
    fn detach(&mut self, reason: Reason, status: Option<Status>) {
        self.is_reading = false;
        self.inbound_end = Some((reason, status));
        self.member.detach();
    }

    /// Ends the stream and the session: the participant leaves. Events that the room published before are still sent.
    fn leave(
        &mut self,
        reason: Reason,
        status: Option<Status>,
        timestamp: Option<Timestamp>,
        trace: Option<TraceContext>,
    ) {
        self.is_reading = false;
        self.inbound_end = Some((reason, status));
        self.member.leave(timestamp, trace);
    }

    fn on_closed(&mut self, reason: CloseReason) -> StreamEnd {
        match reason {
            CloseReason::Detached => {
                let (reason, status) = self.inbound_end.take().unwrap_or((Reason::Left, None));
                let status = status.unwrap_or_else(|| Status::new(Code::Ok, ""));
                StreamEnd::new(reason, status)
            }
            CloseReason::Rejected(rejection) => RpcError::from(&rejection).into(),
            // There is no notice for what a client can do nothing about.
            reason @ (CloseReason::Damaged | CloseReason::NameClaimed) => RpcError::from(reason).into(),
            reason => self.end_with_notice(&reason.into()),
        }
    }

    pub(super) fn end_with_notice(&self, error: &RpcError) -> StreamEnd {
        StreamEnd {
            reason: error.reason(),
            status: error.to_status(),
            notice: self.uses_extensions.then(|| self.notice(error, "")),
        }
    }

    /// A notice about `error`, which the message with the id `message_id` has caused, if it has one.
    fn notice(&self, error: &RpcError, message_id: &str) -> Bytes {
        let notice = Notice {
            code: error.reason().notice_code().into(),
            retry_delay: error.retry_delay().and_then(|delay| delay.try_into().ok()),
            ..Notice::default()
        };
        // An invalid id is not echoed.
        let message_id =
            MessageId::try_from(message_id).map_or_else(|_| String::new(), |id| id.as_str().into());
        frame::encode(&ServerMessage {
            msg_stream: error.to_status().message().into(),
            message_id,
            notice: Some(notice),
            ..self.private_message()
        })
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

    fn welcome_message(&self) -> ServerMessage {
        let info = self.member.info();
        // All limits are far below `u32::MAX`.
        let limit = |limit: usize| u32::try_from(limit).unwrap_or(u32::MAX);
        let limits = Limits {
            max_message_chars: limit(self.rules.max_message_chars),
            max_name_chars: limit(MAX_NAME_CHARS),
            max_room_chars: limit(MAX_NAME_CHARS),
            max_message_id_chars: limit(MAX_MESSAGE_ID_LEN),
            max_clock_ahead: self.rules.max_clock_ahead,
            resume_grace: self.resume_grace.try_into().ok(),
        };
        let welcome = Welcome {
            participant_id: info.participant.get(),
            session_token: info.session_token.clone().unwrap_or_default(),
            epoch: info.epoch.get(),
            sequence: info.start.after.get(),
            recovered: info.start.is_recovered,
            first_sequence: first_sequence(info.start.bounds),
            last_sequence: info.start.bounds.last.get(),
            limits: Some(limits),
        };
        ServerMessage {
            msg_stream: format!("Welcome to {}, {}.", self.member.room(), info.name),
            timestamp: info.start.time.get(),
            welcome: Some(welcome),
            ..self.private_message()
        }
    }
}

#[cfg(test)]
mod tests {
    use std::pin::Pin;
    use std::sync::Arc;
    use std::task::Waker;

    use http_body::Frame;
    use prost::Message as _;
    use tonic::body::Body;

    use super::super::connection_budgets::{BudgetLimits, ServerBudgets};
    use super::super::rates::{RateLimits, Rates};
    use super::*;
    use crate::hub::{Hub, HubOptions, JoinRequest};
    use crate::store::{MemoryStore, Retention};
    use crate::telemetry::{Metrics, OtlpPipeline, TelemetryObserver};

    /// A client that sends the same message without end.
    struct Repeated(Bytes);

    impl http_body::Body for Repeated {
        type Data = Bytes;
        type Error = Status;

        fn poll_frame(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
            Poll::Ready(Some(Ok(Frame::data(self.0.clone()))))
        }
    }

    #[tokio::test]
    async fn messages_that_wait_for_a_full_mailbox_take_no_more_than_their_budget() {
        let metrics = Arc::new(Metrics::new(1, OtlpPipeline::default()));
        let observer = Arc::new(TelemetryObserver::new(metrics, None));
        let store = Arc::new(MemoryStore::new(Retention::IN_MEMORY, 1));
        let options = HubOptions::default();
        let hub = Hub::new(Rules::default(), options, store, &[0; 32], observer.clone());
        let limits = BudgetLimits {
            received: 20_000,
            ..BudgetLimits::default()
        };
        let budgets = ServerBudgets::new(limits, 1).connection([127, 0, 0, 1].into());
        let rates = Rates::new(RateLimits::default());
        let mut streams = Vec::new();
        for n in 0..10 {
            let join = JoinMsgLeave {
                client_name: format!("client {n}"),
                ..JoinMsgLeave::default()
            };
            let request: JoinRequest = super::super::convert::join_request(join).unwrap();
            let member = hub.join(request, Instant::now()).await.unwrap();
            let stream = JoinedStream::new(
                member,
                Rules::default(),
                Duration::ZERO,
                false,
                rates.messages(),
                None,
            );
            let message = JoinMsgLeave {
                msg: "ü".repeat(2_000),
                r#type: EventType::Message.into(),
                ..JoinMsgLeave::default()
            };
            let payload = message.encode_to_vec();
            let len = u32::try_from(payload.len()).unwrap().to_be_bytes();
            let body = Body::new(Repeated([&[0], &len[..], &payload].concat().into()));
            streams.push((stream, Inbound::new(body, 10_000, Arc::clone(&budgets))));
        }
        // The room's actor does not run meanwhile, so its mailbox fills.
        let mut cx = Context::from_waker(Waker::noop());
        for _ in 0..20 {
            for (stream, inbound) in &mut streams {
                stream.read_inbound(&mut cx, inbound, &*observer);
            }
        }
        let waiting = streams.iter().filter(|(stream, _)| stream.in_transit.is_some());
        let rejected = streams.iter().filter(|(stream, _)| !stream.is_reading);
        assert_eq!((waiting.count(), rejected.count()), (3, 7));
        drop(streams);
        assert!(budgets.reserve_received(15_000).is_ok());
    }
}
