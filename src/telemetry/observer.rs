//! Implements the observer traits of the hub, the store and the transport.

use std::error::Error;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use opentelemetry::trace::{SpanKind, Status, TraceContextExt};
use opentelemetry::{Context, ContextGuard};
use tracing::field::display;
use tracing::{debug, error, info, warn};

use super::attributes::{MessageAttributes, rpc_attributes};
use super::log_limits::{LogEvent, Permit};
use super::message_spans::{MessageSpans, record_rejected};
use super::metrics::Metrics;
use super::otlp::{FinishedSpan, SpanIds, Tracer, remote_span_context, system_time};
use crate::domain::{LamportTime, Rejection, RoomName, Sequence, TraceContext};
use crate::hub::{AcceptedEvent, MessageTrace, RejectedMessage};
use crate::proto::EventType;
use crate::reason::Reason;
use crate::rpc::{
    ConnectionLimit, CutReason, JoinAccepted, ModerationReport, ParticipantInfo, SetupError, StreamEnded,
    StreamingMethod, Throttle,
};
use crate::{auth, cluster, hub, rpc, store};

/// The target of log lines that are kept as evidence.
const AUDIT_TARGET: &str = "audit";

/// Records what the hub, the store and the transport report as metrics, log lines and spans.
#[derive(Clone)]
pub struct TelemetryObserver {
    metrics: Arc<Metrics>,
    tracer: Option<Tracer>,
}

impl TelemetryObserver {
    /// Creates an observer. Without a `tracer` it records no spans.
    #[must_use]
    pub const fn new(metrics: Arc<Metrics>, tracer: Option<Tracer>) -> Self {
        Self { metrics, tracer }
    }

    /// Records that new connections use a certificate that expires at `not_after`.
    pub fn certificate_in_use(&self, not_after: Option<SystemTime>) {
        self.metrics.set_certificate_expiry(not_after);
        let time = not_after.map(|at| humantime::format_rfc3339_seconds(at).to_string());
        if not_after.is_some_and(|at| at <= SystemTime::now()) {
            error!(
                event = "certificate_expired",
                not_after = time,
                "the certificate has expired: clients refuse it"
            );
        } else {
            info!(
                event = "certificate_loaded",
                not_after = time,
                "certificate loaded"
            );
        }
    }

    fn permit(&self, event: LogEvent) -> Option<Permit> {
        self.metrics.log_limits.permit(event)
    }

    /// Records the `join` span, if the JOIN is sampled.
    fn join_span(&self, participant_info: &ParticipantInfo, accepted: &JoinAccepted<'_>) -> Option<SpanIds> {
        let tracer = self.tracer.as_ref()?;
        let ids = tracer.sample(accepted.trace, 1)?;
        let attributes = MessageAttributes {
            room: participant_info.room.as_str().into(),
            event_type: EventType::Join,
            message_id: None,
            body_size: None,
            sequence: accepted.sequence.map(Sequence::get),
            lamport_time: accepted.time.get(),
            received_time: Some(accepted.client_time.0),
        };
        let mut attributes = attributes.to_vec();
        attributes.extend(rpc_attributes("itu.chitchat.ChatService/Chat"));
        tracer.export(FinishedSpan {
            ids: ids.clone(),
            name: "join",
            kind: SpanKind::Server,
            start: system_time(accepted.received_at),
            end: SystemTime::now(),
            attributes,
            link: None,
            status: Status::Unset,
        });
        Some(ids)
    }
}

/// Adds the ids of `trace` to the log lines of this thread until the guard is dropped.
fn enter_trace(trace: Option<&TraceContext>) -> Option<ContextGuard> {
    trace.map(|trace| {
        let context = Context::new().with_remote_span_context(remote_span_context(trace));
        context.attach()
    })
}

impl hub::Observer for TelemetryObserver {
    fn event_stored(&self, kind: EventType, time: LamportTime) {
        self.metrics.event_broadcast(kind, time);
    }

    fn trace_message(&self, accepted: &AcceptedEvent<'_>) -> Option<Box<dyn MessageTrace>> {
        let spans = MessageSpans::start(self.tracer.as_ref()?, accepted)?;
        Some(Box::new(spans))
    }

    fn command_rejected(&self, rejection: &Rejection) {
        self.metrics.event_rejected(Reason::from(rejection));
        if let Rejection::Clock(error) = rejection
            && let Some(Permit { suppressed }) = self.permit(LogEvent::ClockRefused)
        {
            debug!(event = "clock_refused", %error, suppressed, "timestamp rejected");
        }
    }

    fn message_rejected(&self, rejected: &RejectedMessage<'_>) {
        if let Some(tracer) = &self.tracer {
            record_rejected(tracer, rejected);
        }
    }

    fn delivered(&self, events: u32, latency: Duration) {
        self.metrics.deliveries.increment(events.into());
        self.metrics.delivery_latency.record(latency, events);
    }

    fn fan_out_completed(&self, events: u32, latency: Duration) {
        self.metrics.broadcast_latency.record(latency, events);
    }

    fn participant_connected(&self) {
        self.metrics.connected_clients.increment(1.0);
    }

    fn participant_disconnected(&self) {
        self.metrics.connected_clients.decrement(1.0);
    }

    fn page_read_throttled(&self) {
        self.metrics.throttled_page_reads.increment(1);
    }

    fn room_loaded(&self) {
        self.metrics.rooms_active.increment(1.0);
    }

    fn room_unloaded(&self) {
        self.metrics.rooms_active.decrement(1.0);
    }

    fn lag_started(&self) {
        self.metrics.lagging_subscribers.increment(1.0);
    }

    fn lag_ended(&self) {
        self.metrics.lagging_subscribers.decrement(1.0);
    }

    fn delivered_from_store(&self, events: u32) {
        self.metrics.deliveries.increment(events.into());
    }

    fn batch_stored(&self, latency: Duration) {
        self.metrics.store_append.record(latency, 1);
    }

    fn causality_violated(&self, room: &RoomName, sequence: Sequence) {
        self.metrics.causality_violations.increment(1);
        error!(event = "causality_violated", %room, %sequence, "an event does not follow the previous one");
    }

    fn resumed(&self, is_recovered: bool) {
        let outcome = if is_recovered {
            &self.metrics.resumes_complete
        } else {
            &self.metrics.resumes_incomplete
        };
        outcome.increment(1);
    }
}

#[allow(clippy::cast_precision_loss, reason = "for display")]
const fn float(number: u64) -> f64 {
    number as f64
}

impl cluster::Observer for TelemetryObserver {
    #[expect(clippy::cast_precision_loss, reason = "a gauge is a float, exact up to 2^53")]
    fn observed(&self, state: &cluster::ReplicaStats) {
        let metrics = &self.metrics;
        metrics.cluster_ready.set(f64::from(u8::from(state.is_ready)));
        metrics.cluster_replicas.set(state.replicas as f64);
        metrics.cluster_diverged.set(state.diverged as f64);
        metrics.cluster_silence.set(state.silence.as_secs_f64());
        metrics.cluster_position.set(state.applied as f64);
        metrics.cluster_lag.set(state.lag as f64);
        metrics.cluster_in_flight.set(state.in_flight as f64);
        metrics.cluster_waiting.set(state.waiting as f64);
    }

    fn applied(&self, is_fetched: bool) {
        self.metrics.cluster_applied.increment(1);
        self.metrics.cluster_fetched.increment(is_fetched.into());
    }

    fn batch_committed(&self, took: Duration) {
        self.metrics.cluster_order.record(took, 1);
    }

    fn resent(&self, batches: usize) {
        self.metrics.cluster_resent.increment(batches as u64);
    }

    fn publish_failed(&self) {
        self.metrics.cluster_refused.increment(1);
    }

    fn ignored(&self, reason: &'static str) {
        for (name, counter) in cluster::IGNORED.iter().zip(&self.metrics.cluster_ignored) {
            if *name == reason {
                counter.increment(1);
            }
        }
    }

    fn fenced(&self, is_own: bool) {
        self.metrics.cluster_lost[usize::from(!is_own)].increment(1);
    }

    fn server_switched(&self) {
        self.metrics.cluster_switches.increment(1);
    }

    fn checkpoint_lag(&self, messages: u64) {
        self.metrics.cluster_checkpoint_lag.set(float(messages));
    }

    fn checkpoint_finished(&self, bytes: Option<u64>) {
        self.metrics.cluster_checkpoints[usize::from(bytes.is_none())].increment(1);
        if let Some(bytes) = bytes {
            self.metrics.cluster_checkpoint_bytes.set(float(bytes));
        }
    }

    fn stream_observed(&self, bytes: u64, max_bytes: u64) {
        self.metrics.cluster_stream_bytes.set(float(bytes));
        self.metrics.cluster_stream_max_bytes.set(float(max_bytes));
    }

    fn stream_truncated(&self, messages: u64) {
        self.metrics.cluster_truncated.increment(messages);
    }
}

impl store::Observer for TelemetryObserver {
    fn committed(&self, took: Duration) {
        self.metrics.store_sync.record(took, 1);
    }

    fn rewritten(&self, bytes: u64) {
        self.metrics.store_rewritten.increment(bytes);
    }

    fn write_stalled(&self) {
        self.metrics.store_waits.increment(1);
    }
}

impl auth::Observer for TelemetryObserver {
    fn keys_reloaded(&self, count: usize) {
        self.metrics.auth_keys_reloads.increment(1);
        info!(event = "auth_keys_loaded", count, "keys of tokens loaded");
    }

    fn keys_reload_failed(&self, error: &dyn Error) {
        self.metrics.auth_keys_reload_failures.increment(1);
        error!(event = "auth_keys_reload_failed", %error, "the keys of tokens were not replaced; the previous ones are still in use");
    }
}

impl rpc::Observer for TelemetryObserver {
    fn connection_opened(&self) {
        self.metrics.connections_open.increment(1.0);
    }

    fn connection_closed(&self) {
        self.metrics.connections_open.decrement(1.0);
    }

    fn connection_rejected(&self, peer: SocketAddr, limit: ConnectionLimit) {
        self.metrics.event_rejected(Reason::TooManyConnections);
        let (counter, limit, which) = match limit {
            ConnectionLimit::Server(limit) => (&self.metrics.refused_at_limit, limit, "server"),
            ConnectionLimit::Address(limit) => (&self.metrics.refused_address, limit, "address"),
        };
        counter.increment(1);
        if let Some(Permit { suppressed }) = self.permit(LogEvent::ConnectionRefused) {
            warn!(event = "connection_refused", %peer, limit, of = which, suppressed, "connection refused: a limit of connections is reached");
        }
    }

    fn connection_cut(&self, peer: SocketAddr, reason: CutReason) {
        match reason {
            CutReason::Idle => {
                self.metrics.cut_idle.increment(1);
                if let Some(Permit { suppressed }) = self.permit(LogEvent::ConnectionClosed) {
                    debug!(event = "connection_closed", %peer, reason = "idle", suppressed, "connection closed: it had no stream");
                }
            }
            CutReason::Flood => {
                self.metrics.cut_flood.increment(1);
                if let Some(Permit { suppressed }) = self.permit(LogEvent::ConnectionClosed) {
                    warn!(event = "connection_closed", %peer, reason = "flood", suppressed, "connection closed: it sent too many frames that carry no data");
                }
            }
            CutReason::Unread => {
                self.metrics.cut_unread.increment(1);
                if let Some(Permit { suppressed }) = self.permit(LogEvent::ConnectionClosed) {
                    warn!(event = "connection_closed", %peer, reason = "unread", suppressed, "connection closed: it sent more than its streams read, headers or TLS records without an end, requests without accepting the answers, or many requests at a time");
                }
            }
        }
    }

    fn throttled(&self, throttle: Throttle) {
        self.metrics.throttled[throttle as usize].increment(1);
    }

    fn accept_failed(&self, error: &io::Error) {
        self.metrics.accept_errors.increment(1);
        if let Some(Permit { suppressed }) = self.permit(LogEvent::AcceptFailed) {
            warn!(event = "accept_failed", %error, suppressed, "a connection could not be accepted");
        }
    }

    fn connection_setup_failed(&self, peer: SocketAddr, error: &SetupError) {
        let (counter, reason) = match error {
            SetupError::NotHttp2 => (&self.metrics.refused_protocol, "protocol"),
            SetupError::PlainText => (&self.metrics.refused_plain_text, "plain_text"),
            SetupError::UnexpectedTls => (&self.metrics.refused_tls, "tls"),
            SetupError::ProxyHeader(_) => (&self.metrics.refused_proxy_header, "proxy_header"),
            SetupError::TooManyHandshakes => (&self.metrics.refused_address, "address"),
            SetupError::Timeout | SetupError::Handshake(_) => (&self.metrics.refused_handshake, "handshake"),
        };
        counter.increment(1);
        if let Some(Permit { suppressed }) = self.permit(LogEvent::ConnectionClosed) {
            info!(event = "connection_closed", %peer, reason, suppressed, "connection closed: {error}");
        }
    }

    fn tls_reloaded(&self, not_after: Option<SystemTime>) {
        self.metrics.tls_reloads.increment(1);
        self.certificate_in_use(not_after);
    }

    fn tls_reload_failed(&self, error: &dyn Error) {
        self.metrics.tls_reload_failures.increment(1);
        error!(event = "tls_reload_failed", %error, "the certificate was not replaced; the previous one is still in use");
    }

    fn stream_started(&self, method: StreamingMethod) {
        self.metrics.streams_started[method as usize].increment(1);
    }

    fn received(&self, kind: EventType) {
        self.metrics.event_received(kind);
    }

    fn rejected(&self, reason: Reason) {
        self.metrics.event_rejected(reason);
    }

    fn authentication_failed(&self, peer: Option<SocketAddr>, reason: Reason, detail: &str) {
        self.metrics.event_rejected(reason);
        if let Some(Permit { suppressed }) = self.permit(LogEvent::ClientRefused) {
            let reason = reason.as_str().to_lowercase();
            let peer = peer.map(display);
            info!(
                event = "client_refused",
                peer, reason, detail, suppressed, "client refused"
            );
        }
    }

    fn moderated(&self, report: &ModerationReport<'_>) {
        self.metrics.moderation_actions[report.action as usize].increment(1);
        let ModerationReport {
            subject,
            peer,
            room,
            action,
            target,
            duration,
            reason,
            removed,
        } = *report;
        // Not limited: what a moderator does is always on record.
        info!(
            target: AUDIT_TARGET,
            event = "moderated",
            subject,
            peer = peer.map(display),
            %room,
            action = action.as_str(),
            whom = target,
            duration_seconds = duration.map(|duration| duration.as_secs()),
            reason,
            removed,
            "a moderator has decided"
        );
    }

    fn joined(
        &self,
        participant_info: &ParticipantInfo,
        accepted: &JoinAccepted<'_>,
    ) -> Option<Arc<TraceContext>> {
        let trace = self
            .join_span(participant_info, accepted)
            .map(|ids| Arc::new(ids.trace_context()));
        let _guard = enter_trace(trace.as_deref());
        let ParticipantInfo {
            room,
            participant,
            name,
            peer,
            trace: _,
        } = participant_info;
        let peer = peer.map(display);
        if accepted.sequence.is_some() {
            if let Some(Permit { suppressed }) = self.permit(LogEvent::ClientJoined) {
                info!(
                    event = "client_joined",
                    room, participant, name, peer, suppressed, "client joined"
                );
            }
        } else if let Some(Permit { suppressed }) = self.permit(LogEvent::ClientResumed) {
            info!(
                event = "client_resumed",
                room, participant, name, peer, suppressed, "client resumed"
            );
        }
        trace
    }

    fn stream_ended(&self, ended: &StreamEnded<'_>) {
        let StreamEnded {
            method,
            reason: why,
            peer,
            participant: participant_info,
            detail,
        } = *ended;
        let reason = why.stream_end_label(participant_info.is_some());
        self.metrics.stream_ended(reason, method);
        let peer = peer.map(display);
        let Some(ParticipantInfo {
            room,
            participant,
            name,
            trace,
            peer: _,
        }) = participant_info
        else {
            if why.is_rejection()
                && why != Reason::Draining
                && let Some(Permit { suppressed }) = self.permit(LogEvent::ClientRefused)
            {
                info!(
                    event = "client_refused",
                    peer, reason, detail, suppressed, "client refused"
                );
            }
            return;
        };
        let _guard = enter_trace(trace.as_deref());
        if why == Reason::ConnectionLost {
            if let Some(Permit { suppressed }) = self.permit(LogEvent::ClientLost) {
                info!(
                    event = "client_lost",
                    room, participant, name, peer, reason, suppressed, "client lost"
                );
            }
        } else if let Some(Permit { suppressed }) = self.permit(LogEvent::ClientLeft) {
            info!(
                event = "client_left",
                room, participant, name, peer, reason, detail, suppressed, "client left"
            );
        }
    }
}
