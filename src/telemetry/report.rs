//! The observer of the hub and the transport: what they tell becomes metrics and log lines.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tracing::{debug, error, info, warn};

use super::metrics::Metrics;
use crate::domain::{EventKind, LamportTime, Refusal, RoomName, Sequence};
use crate::rpc::{EventKindReceived, Reason, StreamEnd, Visitor};
use crate::{hub, rpc, store};

/// Turns what the hub and the transport tell into metrics and log lines.
#[derive(Clone)]
pub struct Report {
    metrics: Arc<Metrics>,
}

impl Report {
    /// Reports into these metrics, and into the process's log.
    #[must_use]
    pub const fn new(metrics: Arc<Metrics>) -> Self {
        Self { metrics }
    }
}

impl hub::Observer for Report {
    fn broadcast(&self, kind: &EventKind, time: LamportTime) {
        let kind = match kind {
            EventKind::Joined => EventKindReceived::Join,
            EventKind::Said { .. } => EventKindReceived::Message,
            EventKind::Left => EventKindReceived::Leave,
        };
        self.metrics.event_broadcast(kind, time);
    }

    fn refused(&self, refusal: &Refusal) {
        self.metrics.event_rejected(Reason::from(refusal));
        if let Refusal::Clock(error) = refusal {
            // A client can send these as fast as the wire carries them.
            debug!(event = "clock_refused", %error, "time stamp refused");
        }
    }

    fn delivered(&self, events: u32, latency: Duration) {
        self.metrics.deliveries.increment(events.into());
        self.metrics.delivery_latency.record(latency, events);
    }

    fn completed(&self, events: u32, latency: Duration) {
        self.metrics.broadcast_latency.record(latency, events);
    }

    fn connected(&self, connected: bool) {
        step(&self.metrics.connected_clients, connected);
    }

    fn room(&self, exists: bool) {
        step(&self.metrics.rooms_active, exists);
    }

    fn behind(&self, behind: bool) {
        step(&self.metrics.subscribers_behind, behind);
    }

    fn replayed(&self, events: u32) {
        self.metrics.deliveries.increment(events.into());
    }

    fn stored(&self, latency: Duration) {
        self.metrics.store_append.record(latency, 1);
    }

    fn violated(&self, room: &RoomName, sequence: Sequence) {
        self.metrics.causality_violations.increment(1);
        error!(event = "causality_violated", %room, %sequence, "an event does not follow on the one before");
    }

    fn resumed(&self, is_complete: bool) {
        let outcome = if is_complete {
            &self.metrics.resumes_complete
        } else {
            &self.metrics.resumes_incomplete
        };
        outcome.increment(1);
    }
}

impl store::Observer for Report {
    fn committed(&self, took: Duration) {
        self.metrics.store_sync.record(took, 1);
    }
}

impl rpc::Observer for Report {
    fn connection(&self, open: bool) {
        step(&self.metrics.connections_open, open);
    }

    fn connection_refused(&self, peer: SocketAddr, limit: usize) {
        self.metrics.refused_at_limit.increment(1);
        self.metrics.event_rejected(Reason::TooManyConnections);
        warn!(event = "connection_refused", %peer, limit, "connection refused: there are as many as may be");
    }

    fn connection_unintelligible(&self, peer: SocketAddr) {
        self.metrics.refused_protocol.increment(1);
        info!(event = "connection_closed", %peer, reason = "protocol", "connection closed: it does not speak HTTP/2");
    }

    fn stream_started(&self) {
        self.metrics.chat_streams_started.increment(1);
    }

    fn received(&self, kind: EventKindReceived) {
        self.metrics.event_received(kind);
    }

    fn rejected(&self, reason: Reason) {
        self.metrics.event_rejected(reason);
    }

    fn joined(&self, visitor: &Visitor) {
        let Visitor {
            room,
            participant,
            name,
        } = visitor;
        info!(event = "client_joined", room, participant, name, "client joined");
    }

    fn stream_ended(&self, end: StreamEnd, visitor: Option<&Visitor>, detail: &str) {
        self.metrics.stream_ended(end);
        let reason = end.as_str();
        match visitor {
            Some(Visitor {
                room,
                participant,
                name,
            }) if end == StreamEnd::Lost => {
                info!(
                    event = "client_lost",
                    room, participant, name, reason, "client lost"
                );
            }
            Some(Visitor {
                room,
                participant,
                name,
            }) => {
                info!(
                    event = "client_left",
                    room, participant, name, reason, detail, "client left"
                );
            }
            None if end == StreamEnd::Refused => {
                info!(event = "client_refused", reason, detail, "client refused");
            }
            None => {}
        }
    }
}

fn step(gauge: &metrics::Gauge, up: bool) {
    if up {
        gauge.increment(1.0);
    } else {
        gauge.decrement(1.0);
    }
}
