//! The catalog of all metrics. Registration, rendering and documentation all read it.

/// The type of a metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A number that only increases.
    Counter,
    /// A number that goes up and down.
    Gauge,
    /// A distribution of latencies, in seconds.
    Histogram,
}

/// The definition of a metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Definition {
    /// The full name, with unit and `_total` suffix.
    pub name: &'static str,
    /// The type.
    pub kind: Kind,
    /// The names of the labels.
    pub labels: &'static [&'static str],
    /// The help text: one or two sentences.
    pub help: &'static str,
}

/// The unit of a metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// Seconds, with fractions. Points in time are Unix times.
    Seconds,
    /// Bytes.
    Bytes,
    /// A dimensionless number.
    Count,
}

impl Unit {
    /// Returns the name of the unit.
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
    /// Returns the name of the type in the Prometheus text format.
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
    /// Returns the unit, which the naming conventions of Prometheus put into the name.
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

/// Renders the catalog as the Markdown page `docs/metrics.md`.
#[must_use]
pub fn document() -> String {
    let mut page = String::from(
        "# Metrics\n\n\
         The metrics on `/metrics` of the admin port, in the same order. This page is generated from \
         [`src/telemetry/catalog.rs`](../src/telemetry/catalog.rs);\n\
         after a change there, run `UPDATE=1 cargo test --lib the_metrics_are_documented`.\n\n\
         No metric has a room, user, message or address as a label: spans and log lines have them. The buckets of the \
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
    "Always 1. The labels identify the running build.",
);
pub(super) const CONNECTED_CLIENTS: Definition = gauge(
    "chitchat_connected_clients",
    &[],
    "Open Chat streams that have joined a room.",
);
pub(super) const ROOMS_ACTIVE: Definition =
    gauge("chitchat_rooms_active", &[], "Rooms that are loaded in memory.");
pub(super) const CONNECTIONS_OPEN: Definition =
    gauge("chitchat_connections_open", &[], "Open transport connections.");
pub(super) const CONNECTIONS_LIMIT: Definition = gauge(
    "chitchat_connections_limit",
    &[],
    "The limit of transport connections.",
);
pub(super) const CONNECTIONS_REFUSED: Definition = counter(
    "chitchat_connections_refused_total",
    &["reason"],
    "Refused connections. Reason limit: the limit of connections was reached; protocol: no valid HTTP/2 preface in time.",
);
pub(super) const STREAMS_STARTED: Definition = counter(
    "chitchat_streams_started_total",
    &["method"],
    "Streams opened by clients.",
);
pub(super) const STREAMS_ENDED: Definition = counter(
    "chitchat_streams_ended_total",
    &["reason"],
    "Chat streams that ended, by reason.",
);
pub(super) const EVENTS_RECEIVED: Definition = counter(
    "chitchat_events_received_total",
    &["kind"],
    "Events received from clients and decoded.",
);
pub(super) const EVENTS_REJECTED: Definition = counter(
    "chitchat_events_rejected_total",
    &["reason", "fault"],
    "Rejected events and requests, by reason and by who is at fault.",
);
pub(super) const EVENTS_BROADCAST: Definition = counter(
    "chitchat_events_broadcast_total",
    &["kind"],
    "Events that were accepted and published to their room.",
);
pub(super) const DELIVERIES: Definition = counter(
    "chitchat_deliveries_total",
    &[],
    "Events handed to a subscriber's transport.",
);
pub(super) const BROADCAST_LATENCY: Definition = histogram(
    "chitchat_broadcast_latency_seconds",
    "Time from decoding an event until it is handed to the transport of the last live subscriber. One sample per event.",
);
pub(super) const DELIVERY_LATENCY: Definition = histogram(
    "chitchat_delivery_latency_seconds",
    "Time from decoding an event until it is handed to a subscriber's transport. One sample per delivery.",
);
pub(super) const STORE_APPEND: Definition = histogram(
    "chitchat_store_append_seconds",
    "Time from handing a batch to the store until it is durable. One sample per batch.",
);
pub(super) const STORE_SYNC: Definition = histogram(
    "chitchat_store_sync_seconds",
    "Time to write a commit and to make it as durable as --durability requires.",
);
pub(super) const STORE_BYTES: Definition = gauge(
    "chitchat_store_bytes",
    &[],
    "Size of the store in bytes, on disk with the overhead of the database.",
);
pub(super) const STORE_EVENTS: Definition = gauge("chitchat_store_events", &[], "Events in the store.");
pub(super) const STORE_AVAILABLE: Definition = gauge(
    "chitchat_store_available_bytes",
    &[],
    "Free bytes on the file system of the data directory; +Inf if the logs are in memory.",
);
pub(super) const CAUSALITY_VIOLATIONS: Definition = counter(
    "chitchat_causality_violations_total",
    &[],
    "Events whose sequence or Lamport time did not follow the previous event, checked before each broadcast. Must stay 0.",
);
pub(super) const SUBSCRIBERS_BEHIND: Definition = gauge(
    "chitchat_subscribers_behind",
    &[],
    "Lagging subscribers, which are served from the store instead of the feed.",
);
pub(super) const RESUMES: Definition = counter(
    "chitchat_resumes_total",
    &["outcome"],
    "Clients that resumed after the last event they had seen. Outcome complete: they received every event after it.",
);
pub(super) const LAMPORT_TIME: Definition = gauge(
    "chitchat_lamport_time",
    &[],
    "The highest Lamport time of all rooms.",
);
pub(super) const LAMPORT_REJECTED: Definition = counter(
    "chitchat_lamport_rejected_total",
    &[],
    "Timestamps that were rejected because they were negative or too far ahead.",
);

pub(super) const TELEMETRY_DROPPED: Definition = counter(
    "chitchat_telemetry_dropped_total",
    &["signal"],
    "Spans and log records that were dropped because the queue was full or the export failed.",
);
pub(super) const CALL_DURATION: Definition = Definition {
    labels: &["rpc_method", "rpc_response_status_code"],
    ..histogram(
        "rpc_server_call_duration_seconds",
        "Duration of unary calls, by status code.",
    )
};

pub(super) const PROCESS_CPU: Definition = counter(
    "process_cpu_seconds_total",
    &[],
    "CPU time of all threads, user and system.",
);
pub(super) const PROCESS_RESIDENT: Definition =
    gauge("process_resident_memory_bytes", &[], "Resident memory.");
pub(super) const PROCESS_VIRTUAL: Definition = gauge("process_virtual_memory_bytes", &[], "Virtual memory.");
pub(super) const PROCESS_OPEN_FDS: Definition = gauge("process_open_fds", &[], "Open file descriptors.");
pub(super) const PROCESS_MAX_FDS: Definition =
    gauge("process_max_fds", &[], "The limit of open file descriptors.");
pub(super) const PROCESS_THREADS: Definition = gauge("process_threads", &[], "Threads.");
pub(super) const PROCESS_START: Definition = gauge(
    "process_start_time_seconds",
    &[],
    "Start time of the process, as Unix time.",
);
pub(super) const TOKIO_WORKERS: Definition =
    gauge("tokio_workers", &[], "Worker threads of the Tokio runtime.");
pub(super) const TOKIO_TASKS: Definition = gauge("tokio_alive_tasks", &[], "Tasks that are alive.");
pub(super) const TOKIO_QUEUE: Definition = gauge(
    "tokio_global_queue_depth",
    &[],
    "Tasks in the global queue of the runtime. It stays near zero unless the workers are saturated.",
);
pub(super) const TOKIO_BUSY: Definition = counter(
    "tokio_workers_busy_seconds_total",
    &[],
    "Time that all workers were busy, in total. Its rate divided by the number of workers is their saturation.",
);
pub(super) const TOKIO_PARKS: Definition = counter(
    "tokio_workers_parks_total",
    &[],
    "Times that a worker parked because it had nothing to do.",
);

/// All metrics of the server, in the order of the `/metrics` page.
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
    fn names_follow_the_conventions_of_prometheus() {
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
