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

/// What a metric is measured in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// Seconds, with fractions; of a point in time, since 1970.
    Seconds,
    /// Bytes.
    Bytes,
    /// How many there are, or how many there were.
    Count,
}

impl Unit {
    /// Its name.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Seconds => "seconds",
            Self::Bytes => "bytes",
            Self::Count => "count",
        }
    }
}

impl Kind {
    /// Its name, as Prometheus writes it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
        }
    }
}

impl Definition {
    /// What it is measured in: the name says so, as Prometheus wants it.
    #[must_use]
    pub fn unit(&self) -> Unit {
        let name = self.name.strip_suffix("_total").unwrap_or(self.name);
        if name.ends_with("_seconds") {
            Unit::Seconds
        } else if name.ends_with("_bytes") {
            Unit::Bytes
        } else {
            Unit::Count
        }
    }
}

/// The catalogue as a page for people, in Markdown.
#[must_use]
pub fn document() -> String {
    let mut page = String::from(
        "# Metrics\n\n\
         What `/metrics` on the admin port shows, in its order. This page is written from \
         [`src/telemetry/catalog.rs`](../src/telemetry/catalog.rs);\n\
         after a change there: `UPDATE=1 cargo test --lib the_metrics_are_documented`.\n\n\
         No metric is labelled by room, user, message or address: those are on spans and log lines. The buckets of the \
         histograms are\n.0001 .00025 .0005 .001 .0025 .005 .01 .025 .05 .1 .25 .5 1 2.5 5 seconds. The `process_` \
         metrics exist on Linux only.\n\n\
         | name | type | unit | labels | meaning |\n| --- | --- | --- | --- | --- |\n",
    );
    for definition in CATALOG {
        let Definition {
            name,
            kind,
            labels,
            help,
        } = definition;
        let labels: Vec<_> = labels.iter().map(|label| format!("`{label}`")).collect();
        page.push_str(&format!(
            "| `{name}` | {} | {} | {} | {help} |\n",
            kind.as_str(),
            definition.unit().as_str(),
            labels.join(", ")
        ));
    }
    page
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
    &["version", "revision"],
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

pub(super) const TELEMETRY_DROPPED: Definition = counter(
    "chitchat_telemetry_dropped_total",
    &["signal"],
    "Spans and log records that could not be exported: the queue was full, or the collector did not take them.",
);
pub(super) const CALL_DURATION: Definition = Definition {
    labels: &["rpc_method", "rpc_response_status_code"],
    ..histogram(
        "rpc_server_call_duration_seconds",
        "How long calls with one answer took, by how they ended.",
    )
};

pub(super) const PROCESS_CPU: Definition = counter(
    "process_cpu_seconds_total",
    &[],
    "Processor time of all threads, user and system.",
);
pub(super) const PROCESS_RESIDENT: Definition =
    gauge("process_resident_memory_bytes", &[], "Resident memory.");
pub(super) const PROCESS_VIRTUAL: Definition = gauge("process_virtual_memory_bytes", &[], "Virtual memory.");
pub(super) const PROCESS_OPEN_FDS: Definition = gauge("process_open_fds", &[], "Open file descriptors.");
pub(super) const PROCESS_MAX_FDS: Definition =
    gauge("process_max_fds", &[], "How many file descriptors may be open.");
pub(super) const PROCESS_THREADS: Definition = gauge("process_threads", &[], "Threads.");
pub(super) const PROCESS_START: Definition = gauge(
    "process_start_time_seconds",
    &[],
    "When the process began, since 1970.",
);
pub(super) const TOKIO_WORKERS: Definition = gauge("tokio_workers", &[], "Threads that serve.");
pub(super) const TOKIO_TASKS: Definition = gauge("tokio_alive_tasks", &[], "Tasks that have not ended.");
pub(super) const TOKIO_QUEUE: Definition = gauge(
    "tokio_global_queue_depth",
    &[],
    "Tasks that are ready and wait for a thread: it stays near zero unless the threads are saturated.",
);
pub(super) const TOKIO_BUSY: Definition = counter(
    "tokio_workers_busy_seconds_total",
    &[],
    "Time that the threads that serve were busy, all together: its rate, by the number of threads, is how saturated \
     they are.",
);
pub(super) const TOKIO_PARKS: Definition = counter(
    "tokio_workers_parks_total",
    &[],
    "How often a thread that serves had nothing to do.",
);

/// Every metric of the server, in the order in which they are shown.
pub const CATALOG: &[Definition] = &[
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
    TELEMETRY_DROPPED,
    CALL_DURATION,
    PROCESS_CPU,
    PROCESS_RESIDENT,
    PROCESS_VIRTUAL,
    PROCESS_OPEN_FDS,
    PROCESS_MAX_FDS,
    PROCESS_THREADS,
    PROCESS_START,
    TOKIO_WORKERS,
    TOKIO_TASKS,
    TOKIO_QUEUE,
    TOKIO_BUSY,
    TOKIO_PARKS,
];

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::{env, fs};

    use super::*;

    #[test]
    fn the_metrics_are_documented() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/metrics.md");
        if env::var_os("UPDATE").is_some() {
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, document()).unwrap();
        }
        let written = fs::read_to_string(&path).unwrap_or_default();
        assert!(
            written == document(),
            "docs/metrics.md is out of date: run UPDATE=1 cargo test --lib the_metrics_are_documented"
        );
    }

    #[test]
    fn names_follow_the_rules_of_prometheus() {
        for definition in CATALOG {
            let name = definition.name;
            let prefixes = ["chitchat_", "process_", "tokio_", "rpc_"];
            assert!(prefixes.iter().any(|prefix| name.starts_with(prefix)), "{name}");
            assert_eq!(
                name.ends_with("_total"),
                definition.kind == Kind::Counter,
                "{name}"
            );
            assert!(definition.help.ends_with('.'), "{name}");
            if definition.kind == Kind::Histogram {
                assert_eq!(definition.unit(), Unit::Seconds, "{name}");
            }
        }
    }
}
