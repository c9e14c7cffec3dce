//! The catalog of all metrics. Registration, rendering and documentation all read it.

/// The definition of a metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Definition {
    /// The full name, with unit and `_total` suffix.
    pub name: &'static str,
    /// The Prometheus type.
    pub kind: Kind,
    /// The names of the labels, in the order in which samples have them.
    pub labels: &'static [&'static str],
    /// The help text: one or two sentences.
    pub help: &'static str,
}

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

const fn histogram(name: &'static str, labels: &'static [&'static str], help: &'static str) -> Definition {
    Definition {
        name,
        kind: Kind::Histogram,
        labels,
        help,
    }
}

/// Declares each metric as a constant, and [`CATALOG`] as the list of all of them.
macro_rules! catalog {
    ($($name:ident = $definition:expr;)*) => {
        $(pub(super) const $name: Definition = $definition;)*

        /// All metrics of the server, in the order of the `/metrics` page.
        pub const CATALOG: &[Definition] = &[$($name),*];
    };
}

catalog! {
    BUILD_INFO = gauge(
        "chitchat_build_info",
        &["version", "revision"],
        "Always 1. The labels identify the running build.",
    );
    CONNECTED_CLIENTS = gauge(
        "chitchat_connected_clients",
        &[],
        "Open Chat streams that have joined a room.",
    );
    ROOMS_ACTIVE = gauge("chitchat_rooms_active", &[], "Rooms that are loaded in memory.");
    CONNECTIONS_OPEN = gauge("chitchat_connections_open", &[], "Open transport connections.");
    CONNECTIONS_LIMIT = gauge(
        "chitchat_connections_limit",
        &[],
        "The limit of transport connections.",
    );
    CONNECTIONS_REFUSED = counter(
        "chitchat_connections_refused_total",
        &["reason"],
        "Refused connections. Reason limit: the limit of connections was reached; address: that of one address, or too many TLS handshakes from it; protocol: no valid HTTP/2 preface in time; plain_text: no TLS, which the server requires; tls: TLS, which the server does not use; handshake: the TLS handshake failed, or was not completed in time; proxy_header: a proxy did not begin with a valid header of the PROXY protocol.",
    );
    CONNECTIONS_CUT = counter(
        "chitchat_connections_cut_total",
        &["reason"],
        "Connections that the server closed. Reason idle: no stream for --idle-timeout; flood: too many frames that carry no data; unread: the server held too much for it, such as data that its streams had not read, header blocks and TLS records without an end, and responses that it did not accept.",
    );
    THROTTLED = counter(
        "chitchat_throttled_total",
        &["limit"],
        "How many times a client began to wait because of a limit. Limit cuts: a new connection is delayed, because many from its address were closed; short_frames: nothing is read from a connection, because its address sends too many short frames or TLS records; unread: nothing, or little at a time, until less of what it or its address has sent is unread; turns: a busy or new connection waits for others from its address; queries: a query waits for others; page_reads: a subscriber that lags waits for others to read the log.",
    );
    TLS_CERTIFICATE_EXPIRY = gauge(
        "chitchat_tls_certificate_expiry_timestamp_seconds",
        &[],
        "When the server's certificate, or the first one of its issuers, expires, as Unix time; +Inf without TLS.",
    );
    AUTH_KEYS_RELOADS = counter(
        "chitchat_auth_keys_reloads_total",
        &["outcome"],
        "How often the keys of tokens were read again, because their file had changed or on request. Outcome failure: the file was not valid, and the server uses what it had before.",
    );
    TLS_RELOADS = counter(
        "chitchat_tls_reloads_total",
        &["outcome"],
        "How often the server's certificate was read again, because its files had changed or on request. Outcome failure: the files were not valid, and the server uses what it had before.",
    );
    ACCEPT_ERRORS = counter(
        "chitchat_accept_errors_total",
        &[],
        "Connections that could not be accepted, most often because the file descriptors are used up.",
    );
    STREAMS_STARTED = counter(
        "chitchat_streams_started_total",
        &["method"],
        "Streams opened by clients.",
    );
    STREAMS_ENDED = counter(
        "chitchat_streams_ended_total",
        &["reason", "method"],
        "Streams that ended, by reason.",
    );
    MODERATION_ACTIONS = counter(
        "chitchat_moderation_actions_total",
        &["action"],
        "What moderators have done. Each has a log line with target audit.",
    );
    EVENTS_RECEIVED = counter(
        "chitchat_events_received_total",
        &["kind"],
        "Events received from clients and decoded.",
    );
    EVENTS_REJECTED = counter(
        "chitchat_events_rejected_total",
        &["reason", "fault"],
        "Rejected events and requests, by reason and by who is at fault.",
    );
    EVENTS_BROADCAST = counter(
        "chitchat_events_broadcast_total",
        &["kind"],
        "Events that were accepted and published to their room.",
    );
    DELIVERIES = counter(
        "chitchat_deliveries_total",
        &[],
        "Events handed to a subscriber's transport.",
    );
    BROADCAST_LATENCY = histogram(
        "chitchat_broadcast_latency_seconds",
        &[],
        "Time from decoding an event until it is handed to the transport of the last live subscriber. One sample per event.",
    );
    DELIVERY_LATENCY = histogram(
        "chitchat_delivery_latency_seconds",
        &[],
        "Time from decoding an event until it is handed to a subscriber's transport. One sample per delivery.",
    );
    STORE_APPEND = histogram(
        "chitchat_store_append_seconds",
        &[],
        "Time from handing a batch to the store until it is durable. One sample per batch.",
    );
    STORE_SYNC = histogram(
        "chitchat_store_sync_seconds",
        &[],
        "Time to write a commit and to make it as durable as --durability requires.",
    );
    STORE_BYTES = gauge(
        "chitchat_store_bytes",
        &[],
        "Size of the store in bytes: on disk that of all segments.",
    );
    STORE_RETAINED = gauge(
        "chitchat_store_retained_bytes",
        &[],
        "Bytes of the events that are retained, as retention counts them."
    );
    STORE_GARBAGE = gauge(
        "chitchat_store_garbage_bytes",
        &[],
        "Bytes on disk of what is not retained any more and has not been removed yet."
    );
    STORE_SEGMENTS = gauge("chitchat_store_segments", &[], "Segments of the log.");
    STORE_REWRITTEN = counter(
        "chitchat_store_rewritten_bytes_total",
        &[],
        "Bytes of the log that were rewritten without what is not retained any more."
    );
    STORE_WAITS = counter(
        "chitchat_store_waits_total",
        &[],
        "Commits that were delayed or waited because garbage grew faster than segments were rewritten, so that the disk does not fill."
    );
    CLUSTER_READY = gauge(
        "chitchat_cluster_ready",
        &[],
        "Whether this replica has caught up with the command log and receives its own messages from it: 1 or 0. Always 1 without --cluster."
    );
    CLUSTER_REPLICAS = gauge(
        "chitchat_cluster_replicas",
        &[],
        "Live replicas, as this one sees it; 0 without --cluster."
    );
    CLUSTER_DIVERGED = gauge(
        "chitchat_cluster_diverged_replicas",
        &[],
        "Replicas whose decisions differ from this one's. Must be 0."
    );
    CLUSTER_SILENCE = gauge(
        "chitchat_cluster_silence_seconds",
        &[],
        "Time since this replica last received a message of its own from the command log. After 2 s it is not ready, after 5 s it ends its streams."
    );
    CLUSTER_PLACE = gauge(
        "chitchat_cluster_applied_place",
        &[],
        "The position in the command log of the last message that this replica has applied."
    );
    CLUSTER_LAG = gauge(
        "chitchat_cluster_lag_messages",
        &[],
        "Messages that this replica knows to be in the command log and has not applied."
    );
    CLUSTER_IN_FLIGHT = gauge(
        "chitchat_cluster_in_flight_batches",
        &[],
        "Batches of this replica that were written and not yet received from the command log."
    );
    CLUSTER_WAITING = gauge(
        "chitchat_cluster_waiting_bytes",
        &[],
        "Bytes of commands that wait to be written. At 4 MiB the replica accepts no more until some were written."
    );
    CLUSTER_ORDER = histogram(
        "chitchat_cluster_order_duration_seconds",
        &[],
        "Time from writing a batch to the command log until this replica has received and applied it. One sample per batch of this replica."
    );
    CLUSTER_RESENT = counter(
        "chitchat_cluster_resent_batches_total",
        &[],
        "Batches that were written again, because they were not received from the command log in time."
    );
    CLUSTER_FETCHED = counter(
        "chitchat_cluster_fetched_messages_total",
        &[],
        "Applied messages that were fetched from the stream instead of pushed: all after a start, later those that fill gaps."
    );
    CLUSTER_REFUSED = counter(
        "chitchat_cluster_publications_refused_total",
        &[],
        "Messages of this replica that NATS refused to store, because the stream is full, for example. They are written again."
    );
    CLUSTER_APPLIED = counter(
        "chitchat_cluster_applied_messages_total",
        &[],
        "Messages of the command log that this replica has applied: batches of commands, and heartbeats."
    );
    CLUSTER_IGNORED = counter(
        "chitchat_cluster_ignored_messages_total",
        &["reason"],
        "Messages of the command log without effect. Reason repeated: a batch that was applied before; early: one before it is missing; fenced: of a replica that was fenced; other: a replica was to be fenced but had written meanwhile, has other rules, or does not support the version."
    );
    CLUSTER_LOST = counter(
        "chitchat_cluster_lost_replicas_total",
        &["replica"],
        "Replicas that were fenced: the others had not heard of them for 5 s. Replica own: this one, which was silent, and has begun anew; other: another one."
    );
    CLUSTER_SWITCHES = counter(
        "chitchat_cluster_server_switches_total",
        &[],
        "How often this replica has turned to another NATS server, because it did not receive its own messages."
    );
    CLUSTER_CHECKPOINT_LAG = gauge(
        "chitchat_cluster_checkpoint_lag_messages",
        &[],
        "Messages of the command log that this replica has applied since its newest checkpoint; 0 without --data-dir."
    );
    CLUSTER_CHECKPOINT_BYTES = gauge(
        "chitchat_cluster_checkpoint_bytes",
        &[],
        "Size of the newest checkpoint that this replica has written since its start."
    );
    CLUSTER_CHECKPOINTS = counter(
        "chitchat_cluster_checkpoints_total",
        &["result"],
        "Checkpoints that this replica has written, and that it could not write. Result: written, failed."
    );
    CLUSTER_STREAM_BYTES = gauge(
        "chitchat_cluster_stream_bytes",
        &[],
        "Size of the stream of NATS that has the command log, as of the last minute; 0 if this replica may not ask for it."
    );
    CLUSTER_STREAM_MAX_BYTES = gauge(
        "chitchat_cluster_stream_max_bytes",
        &[],
        "Size at which the stream refuses messages."
    );
    CLUSTER_TRUNCATED = counter(
        "chitchat_cluster_truncated_messages_total",
        &[],
        "Messages that this replica has removed from the beginning of the stream, because two replicas have checkpoints."
    );
    STORE_EVENTS = gauge("chitchat_store_events", &[], "Events in the store.");
    STORE_AVAILABLE = gauge(
        "chitchat_store_available_bytes",
        &[],
        "Free bytes on the file system of the data directory; +Inf if the logs are in memory.",
    );
    CAUSALITY_VIOLATIONS = counter(
        "chitchat_causality_violations_total",
        &[],
        "Events whose sequence or Lamport time did not follow the previous event, checked before each broadcast. Must stay 0.",
    );
    LAGGING_SUBSCRIBERS = gauge(
        "chitchat_subscribers_behind",
        &[],
        "Lagging subscribers, which are served from the store instead of the feed.",
    );
    RESUMES = counter(
        "chitchat_resumes_total",
        &["outcome"],
        "Clients that resumed after the last event they had seen. Outcome complete: they received every event after it.",
    );
    LAMPORT_TIME = gauge(
        "chitchat_lamport_time",
        &[],
        "The highest Lamport time of all rooms.",
    );
    LAMPORT_REJECTED = counter(
        "chitchat_lamport_rejected_total",
        &[],
        "Timestamps that were rejected because they were negative or too far ahead.",
    );
    LOG_LINES_LEFT_OUT = counter(
        "chitchat_log_lines_left_out_total",
        &["event"],
        "Log lines that were left out because clients caused too many of the same event.",
    );
    TELEMETRY_DROPPED = counter(
        "chitchat_telemetry_dropped_total",
        &["signal"],
        "Spans and log records that were dropped because the queue was full or the export failed.",
    );
    CALL_DURATION = histogram(
        "rpc_server_call_duration_seconds",
        &["rpc_method", "rpc_response_status_code"],
        "Duration of unary calls, by status code.",
    );
    PROCESS_CPU = counter(
        "process_cpu_seconds_total",
        &[],
        "CPU time of all threads, user and system.",
    );
    PROCESS_RESIDENT = gauge("process_resident_memory_bytes", &[], "Resident memory.");
    PROCESS_VIRTUAL = gauge("process_virtual_memory_bytes", &[], "Virtual memory.");
    PROCESS_OPEN_FDS = gauge("process_open_fds", &[], "Open file descriptors.");
    PROCESS_MAX_FDS = gauge("process_max_fds", &[], "The limit of open file descriptors.");
    PROCESS_THREADS = gauge("process_threads", &[], "Threads.");
    PROCESS_START = gauge(
        "process_start_time_seconds",
        &[],
        "Start time of the process, as Unix time.",
    );
    TOKIO_WORKERS = gauge("tokio_workers", &[], "Worker threads of the Tokio runtime.");
    TOKIO_TASKS = gauge("tokio_alive_tasks", &[], "Tasks that are alive.");
    TOKIO_QUEUE = gauge(
        "tokio_global_queue_depth",
        &[],
        "Tasks in the global queue of the runtime. It stays near zero unless the workers are saturated.",
    );
    TOKIO_BUSY = counter(
        "tokio_workers_busy_seconds_total",
        &[],
        "Time that all workers were busy, in total. Its rate divided by the number of workers is their saturation.",
    );
    TOKIO_PARKS = counter(
        "tokio_workers_parks_total",
        &[],
        "Times that a worker parked because it had nothing to do.",
    );
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::{env, fs};

    use super::*;

    /// Returns the unit, which the naming conventions of Prometheus put into the name.
    fn unit(definition: &Definition) -> &'static str {
        match definition.name.trim_end_matches("_total") {
            name if name.ends_with("_seconds") => "seconds",
            name if name.ends_with("_bytes") => "bytes",
            _ => "count",
        }
    }

    /// Renders the catalog as the Markdown page `docs/metrics.md`.
    fn document() -> String {
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
                unit(definition),
                labels.join(", ")
            ));
        }
        page
    }

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
                assert_eq!(unit(definition), "seconds", "{name}");
            }
        }
    }
}
