//! Every metric, declared once: what registers, renders or documents metrics takes them from here.

/// What a metric counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Only grows.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Latencies in buckets, in seconds.
    Histogram,
}

/// One metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Definition {
    /// Its full name.
    pub name: &'static str,
    /// What it counts.
    pub kind: Kind,
    /// Its labels.
    pub labels: &'static [&'static str],
    /// What it means.
    pub help: &'static str,
}

const fn counter(name: &'static str, labels: &'static [&'static str], help: &'static str) -> Definition {
    Definition {
        name,
        kind: Kind::Counter,
        labels,
        help,
    }
}

const fn gauge(name: &'static str, labels: &'static [&'static str], help: &'static str) -> Definition {
    Definition {
        name,
        kind: Kind::Gauge,
        labels,
        help,
    }
}

const fn histogram(name: &'static str, help: &'static str) -> Definition {
    Definition {
        name,
        kind: Kind::Histogram,
        labels: &[],
        help,
    }
}

pub(super) const BUILD_INFO: Definition = gauge(
    "chitchat_build_info",
    &["version"],
    "Always 1; the labels say what runs.",
);
pub(super) const CONNECTED_CLIENTS: Definition = gauge(
    "chitchat_connected_clients",
    &[],
    "Chat streams that have joined and not ended.",
);
pub(super) const ROOMS_ACTIVE: Definition = gauge(
    "chitchat_rooms_active",
    &[],
    "Rooms that the server holds in memory.",
);
pub(super) const CONNECTIONS_OPEN: Definition =
    gauge("chitchat_connections_open", &[], "Transport connections.");
pub(super) const CONNECTIONS_LIMIT: Definition = gauge(
    "chitchat_connections_limit",
    &[],
    "How many transport connections there may be.",
);
pub(super) const CONNECTIONS_REFUSED: Definition = counter(
    "chitchat_connections_refused_total",
    &["reason"],
    "Connections that were turned away: limit = there were as many as may be, protocol = no HTTP/2 came in time.",
);
pub(super) const STREAMS_STARTED: Definition = counter(
    "chitchat_streams_started_total",
    &["method"],
    "Streams that clients opened.",
);
pub(super) const STREAMS_ENDED: Definition = counter(
    "chitchat_streams_ended_total",
    &["reason"],
    "Chat streams that ended, by why they did.",
);
pub(super) const EVENTS_RECEIVED: Definition = counter(
    "chitchat_events_received_total",
    &["kind"],
    "Events decoded from clients.",
);
pub(super) const EVENTS_REJECTED: Definition = counter(
    "chitchat_events_rejected_total",
    &["reason", "fault"],
    "What was refused, by why and by whose fault.",
);
pub(super) const EVENTS_BROADCAST: Definition = counter(
    "chitchat_events_broadcast_total",
    &["kind"],
    "Events that were accepted and fanned out.",
);
pub(super) const DELIVERIES: Definition = counter(
    "chitchat_deliveries_total",
    &[],
    "Events handed to a subscriber's transport.",
);
pub(super) const BROADCAST_LATENCY: Definition = histogram(
    "chitchat_broadcast_latency_seconds",
    "From decoded off the wire to handed to the transport of the last live subscriber, an event each.",
);
pub(super) const DELIVERY_LATENCY: Definition = histogram(
    "chitchat_delivery_latency_seconds",
    "From decoded off the wire to handed to a subscriber's transport, a delivery each.",
);
pub(super) const STORE_APPEND: Definition = histogram(
    "chitchat_store_append_seconds",
    "From given to the store to durable, a batch each.",
);
pub(super) const STORE_SYNC: Definition = histogram(
    "chitchat_store_sync_seconds",
    "Writing one commit and making it as durable as --durability says.",
);
pub(super) const STORE_BYTES: Definition = gauge(
    "chitchat_store_bytes",
    &[],
    "Bytes that the store takes, on disk with all that the database needs beside the events.",
);
pub(super) const STORE_EVENTS: Definition = gauge("chitchat_store_events", &[], "Events that are kept.");
pub(super) const STORE_AVAILABLE: Definition = gauge(
    "chitchat_store_available_bytes",
    &[],
    "Bytes that are free where the data directory is; +Inf where the logs are in memory.",
);
pub(super) const CAUSALITY_VIOLATIONS: Definition = counter(
    "chitchat_causality_violations_total",
    &[],
    "Events that did not follow on the one before in sequence and Lamport time, by the check before each broadcast. Must stay 0.",
);
pub(super) const SUBSCRIBERS_BEHIND: Definition = gauge(
    "chitchat_subscribers_behind",
    &[],
    "Subscribers that are served from the store instead of the feed.",
);
pub(super) const RESUMES: Definition = counter(
    "chitchat_resumes_total",
    &["outcome"],
    "Clients that named the last event they had seen: complete = they got all that followed.",
);
pub(super) const LAMPORT_TIME: Definition = gauge(
    "chitchat_lamport_time",
    &[],
    "The latest Lamport time of any room.",
);
pub(super) const LAMPORT_REJECTED: Definition = counter(
    "chitchat_lamport_rejected_total",
    &[],
    "Time stamps that were refused because they were negative or too far ahead.",
);

/// Every metric of the server.
pub const CATALOG: [Definition; 24] = [
    BUILD_INFO,
    CONNECTED_CLIENTS,
    ROOMS_ACTIVE,
    CONNECTIONS_OPEN,
    CONNECTIONS_LIMIT,
    CONNECTIONS_REFUSED,
    STREAMS_STARTED,
    STREAMS_ENDED,
    EVENTS_RECEIVED,
    EVENTS_REJECTED,
    EVENTS_BROADCAST,
    DELIVERIES,
    BROADCAST_LATENCY,
    DELIVERY_LATENCY,
    STORE_APPEND,
    STORE_SYNC,
    STORE_BYTES,
    STORE_EVENTS,
    STORE_AVAILABLE,
    CAUSALITY_VIOLATIONS,
    SUBSCRIBERS_BEHIND,
    RESUMES,
    LAMPORT_TIME,
    LAMPORT_REJECTED,
];
