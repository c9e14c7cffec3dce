//! The metrics of one server, and the `/metrics` page.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::{Duration, SystemTime};

use metrics::{Counter, Gauge, Key, Label, Level, Metadata, Recorder};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle, PrometheusRecorder};
use tokio::runtime::Handle;
use tonic::Code;

use super::attributes::event_type;
use super::catalog::{self, CATALOG, Definition, Kind};
use super::histogram::Histogram;
use super::log_limits::LogLimits;
use super::otlp::OtlpPipeline;
use super::process::{process_metrics, runtime_metrics};
use crate::cluster;
use crate::domain::LamportTime;
use crate::proto::EventType;
use crate::reason::Reason;
use crate::rpc::{ModerationAction, StreamingMethod, Throttle};
use crate::store::{Store, StoreUsage};

/// The unary methods that are measured.
pub(super) const MEASURED_METHODS: [&str; 7] = [
    "itu.chitchat.ChatService/SendMessage",
    "itu.chitchat.ChatService/GetHistory",
    "itu.chitchat.ChatService/ListRooms",
    "itu.chitchat.ChatService/ListParticipants",
    "itu.chitchat.ChatService/Moderate",
    "itu.chitchat.ChatService/ListBans",
    HEALTH_CHECK,
];

/// Measured but not traced: orchestrators call it every few seconds, and its spans carry no information.
pub(super) const HEALTH_CHECK: &str = "grpc.health.v1.Health/Check";

/// The names of the gRPC status codes, indexed by code.
pub(super) const CODE_NAMES: [&str; 17] = [
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
];

/// The metrics of one server. Each instance has its own recorder, so that several servers can share a process.
pub struct Metrics {
    handle: PrometheusHandle,
    pub(super) connected_clients: Gauge,
    pub(super) rooms_active: Gauge,
    pub(super) connections_open: Gauge,
    pub(super) refused_at_limit: Counter,
    pub(super) refused_address: Counter,
    pub(super) refused_protocol: Counter,
    pub(super) refused_plain_text: Counter,
    pub(super) refused_tls: Counter,
    pub(super) refused_handshake: Counter,
    pub(super) refused_proxy_header: Counter,
    pub(super) certificate_expiry: Gauge,
    pub(super) auth_keys_reloads: Counter,
    pub(super) auth_keys_reload_failures: Counter,
    pub(super) tls_reloads: Counter,
    pub(super) tls_reload_failures: Counter,
    pub(super) cut_idle: Counter,
    pub(super) cut_flood: Counter,
    pub(super) cut_unread: Counter,
    pub(super) throttled: [Counter; Throttle::ALL.len()],
    pub(super) throttled_page_reads: Counter,
    pub(super) accept_errors: Counter,
    pub(super) streams_started: [Counter; StreamingMethod::ALL.len()],
    pub(super) moderation_actions: [Counter; ModerationAction::ALL.len()],
    pub(super) deliveries: Counter,
    pub(super) lagging_subscribers: Gauge,
    pub(super) resumes_complete: Counter,
    pub(super) resumes_incomplete: Counter,
    pub(super) lamport_rejected: Counter,
    pub(super) broadcast_latency: Histogram,
    pub(super) delivery_latency: Histogram,
    pub(super) store_append: Histogram,
    pub(super) store_sync: Histogram,
    pub(super) causality_violations: Counter,
    /// Weak, because the store holds this as its observer.
    store: OnceLock<Weak<dyn Store>>,
    pub(super) store_rewritten: Counter,
    pub(super) store_waits: Counter,
    pub(super) cluster_ready: Gauge,
    pub(super) cluster_replicas: Gauge,
    pub(super) cluster_diverged: Gauge,
    pub(super) cluster_silence: Gauge,
    pub(super) cluster_position: Gauge,
    pub(super) cluster_lag: Gauge,
    pub(super) cluster_in_flight: Gauge,
    pub(super) cluster_waiting: Gauge,
    pub(super) cluster_order: Histogram,
    pub(super) cluster_resent: Counter,
    pub(super) cluster_fetched: Counter,
    pub(super) cluster_refused: Counter,
    pub(super) cluster_applied: Counter,
    pub(super) cluster_ignored: [Counter; cluster::IGNORED.len()],
    pub(super) cluster_lost: [Counter; 2],
    pub(super) cluster_switches: Counter,
    pub(super) cluster_checkpoint_lag: Gauge,
    pub(super) cluster_checkpoint_bytes: Gauge,
    /// Written, failed.
    pub(super) cluster_checkpoints: [Counter; 2],
    pub(super) cluster_stream_bytes: Gauge,
    pub(super) cluster_stream_max_bytes: Gauge,
    pub(super) cluster_truncated: Counter,
    store_bytes: Gauge,
    store_retained: Gauge,
    store_garbage: Gauge,
    store_segments: Gauge,
    store_events: Gauge,
    store_available: Gauge,
    /// Unary calls, by index in `MEASURED_METHODS` and status code.
    calls: [[Histogram; CODE_NAMES.len()]; MEASURED_METHODS.len()],
    /// By the label that [`Reason::stream_end_label`] returns, for each [`StreamingMethod`].
    streams_ended: HashMap<&'static str, [Counter; StreamingMethod::ALL.len()]>,
    pub(super) log_limits: LogLimits,
    received: [Counter; 3],
    broadcast: [Counter; 3],
    rejected: HashMap<Reason, Counter>,
    dropped_spans: Counter,
    dropped_logs: Counter,
    /// The source of the counts of dropped spans and log records.
    otlp: OtlpPipeline,
    lamport_time: Gauge,
    /// The highest Lamport time so far. The gauge is set from it when the page is rendered.
    max_lamport_time: AtomicI64,
}

/// The kinds of events, indexed by their protobuf number.
const KINDS: [EventType; 3] = [EventType::Join, EventType::Message, EventType::Leave];

impl Metrics {
    /// Registers all metrics of a server that accepts at most `max_connections` and exports to `otlp`.
    #[must_use]
    pub fn new(max_connections: usize, otlp: OtlpPipeline) -> Self {
        let recorder = PrometheusBuilder::new().build_recorder();
        describe(&recorder);
        let gauge = |definition: &Definition| register_gauge(&recorder, definition, &[]);
        let counter = |definition: &Definition, labels: &[(&'static str, String)]| {
            register_counter(&recorder, definition, labels)
        };
        let kinds = |definition: &Definition| {
            KINDS.map(|kind| counter(definition, &[("kind", event_type(kind).into())]))
        };
        let build = [
            ("version", env!("CARGO_PKG_VERSION").to_owned()),
            ("revision", env!("CHITCHAT_REVISION").to_owned()),
        ];
        register_gauge(&recorder, &catalog::BUILD_INFO, &build).set(1.0);
        let limit = u32::try_from(max_connections).unwrap_or(u32::MAX);
        gauge(&catalog::CONNECTIONS_LIMIT).set(limit);
        let certificate_expiry = gauge(&catalog::TLS_CERTIFICATE_EXPIRY);
        certificate_expiry.set(f64::INFINITY);
        Self {
            handle: recorder.handle(),
            connected_clients: gauge(&catalog::CONNECTED_CLIENTS),
            rooms_active: gauge(&catalog::ROOMS_ACTIVE),
            connections_open: gauge(&catalog::CONNECTIONS_OPEN),
            refused_at_limit: counter(&catalog::CONNECTIONS_REFUSED, &[("reason", "limit".into())]),
            refused_address: counter(&catalog::CONNECTIONS_REFUSED, &[("reason", "address".into())]),
            cut_idle: counter(&catalog::CONNECTIONS_CUT, &[("reason", "idle".into())]),
            cut_flood: counter(&catalog::CONNECTIONS_CUT, &[("reason", "flood".into())]),
            cut_unread: counter(&catalog::CONNECTIONS_CUT, &[("reason", "unread".into())]),
            throttled: Throttle::ALL
                .map(|throttle| counter(&catalog::THROTTLED, &[("limit", throttle.as_str().into())])),
            throttled_page_reads: counter(&catalog::THROTTLED, &[("limit", "page_reads".into())]),
            accept_errors: counter(&catalog::ACCEPT_ERRORS, &[]),
            refused_protocol: counter(&catalog::CONNECTIONS_REFUSED, &[("reason", "protocol".into())]),
            refused_plain_text: counter(&catalog::CONNECTIONS_REFUSED, &[("reason", "plain_text".into())]),
            refused_tls: counter(&catalog::CONNECTIONS_REFUSED, &[("reason", "tls".into())]),
            refused_handshake: counter(&catalog::CONNECTIONS_REFUSED, &[("reason", "handshake".into())]),
            refused_proxy_header: counter(
                &catalog::CONNECTIONS_REFUSED,
                &[("reason", "proxy_header".into())],
            ),
            certificate_expiry,
            auth_keys_reloads: counter(&catalog::AUTH_KEYS_RELOADS, &[("outcome", "success".into())]),
            auth_keys_reload_failures: counter(&catalog::AUTH_KEYS_RELOADS, &[("outcome", "failure".into())]),
            tls_reloads: counter(&catalog::TLS_RELOADS, &[("outcome", "success".into())]),
            tls_reload_failures: counter(&catalog::TLS_RELOADS, &[("outcome", "failure".into())]),
            moderation_actions: ModerationAction::ALL.map(|action| {
                counter(
                    &catalog::MODERATION_ACTIONS,
                    &[("action", action.as_str().into())],
                )
            }),
            streams_started: StreamingMethod::ALL
                .map(|method| counter(&catalog::STREAMS_STARTED, &[("method", method.as_str().into())])),
            deliveries: counter(&catalog::DELIVERIES, &[]),
            lagging_subscribers: gauge(&catalog::LAGGING_SUBSCRIBERS),
            resumes_complete: counter(&catalog::RESUMES, &[("outcome", "complete".into())]),
            resumes_incomplete: counter(&catalog::RESUMES, &[("outcome", "incomplete".into())]),
            lamport_rejected: counter(&catalog::LAMPORT_REJECTED, &[]),
            broadcast_latency: Histogram::default(),
            delivery_latency: Histogram::default(),
            store_append: Histogram::default(),
            store_sync: Histogram::default(),
            causality_violations: counter(&catalog::CAUSALITY_VIOLATIONS, &[]),
            store: OnceLock::new(),
            store_rewritten: counter(&catalog::STORE_REWRITTEN, &[]),
            store_waits: counter(&catalog::STORE_WAITS, &[]),
            cluster_ready: {
                let ready = gauge(&catalog::CLUSTER_READY);
                ready.set(1.0);
                ready
            },
            cluster_replicas: gauge(&catalog::CLUSTER_REPLICAS),
            cluster_diverged: gauge(&catalog::CLUSTER_DIVERGED),
            cluster_silence: gauge(&catalog::CLUSTER_SILENCE),
            cluster_position: gauge(&catalog::CLUSTER_PLACE),
            cluster_lag: gauge(&catalog::CLUSTER_LAG),
            cluster_in_flight: gauge(&catalog::CLUSTER_IN_FLIGHT),
            cluster_waiting: gauge(&catalog::CLUSTER_WAITING),
            cluster_order: Histogram::default(),
            cluster_resent: counter(&catalog::CLUSTER_RESENT, &[]),
            cluster_fetched: counter(&catalog::CLUSTER_FETCHED, &[]),
            cluster_refused: counter(&catalog::CLUSTER_REFUSED, &[]),
            cluster_applied: counter(&catalog::CLUSTER_APPLIED, &[]),
            cluster_ignored: cluster::IGNORED
                .map(|reason| counter(&catalog::CLUSTER_IGNORED, &[("reason", reason.into())])),
            cluster_lost: ["own", "other"]
                .map(|replica| counter(&catalog::CLUSTER_LOST, &[("replica", replica.into())])),
            cluster_switches: counter(&catalog::CLUSTER_SWITCHES, &[]),
            cluster_checkpoint_lag: gauge(&catalog::CLUSTER_CHECKPOINT_LAG),
            cluster_checkpoint_bytes: gauge(&catalog::CLUSTER_CHECKPOINT_BYTES),
            cluster_checkpoints: ["written", "failed"]
                .map(|result| counter(&catalog::CLUSTER_CHECKPOINTS, &[("result", result.into())])),
            cluster_stream_bytes: gauge(&catalog::CLUSTER_STREAM_BYTES),
            cluster_stream_max_bytes: gauge(&catalog::CLUSTER_STREAM_MAX_BYTES),
            cluster_truncated: counter(&catalog::CLUSTER_TRUNCATED, &[]),
            store_bytes: gauge(&catalog::STORE_BYTES),
            store_retained: gauge(&catalog::STORE_RETAINED),
            store_garbage: gauge(&catalog::STORE_GARBAGE),
            store_segments: gauge(&catalog::STORE_SEGMENTS),
            store_events: gauge(&catalog::STORE_EVENTS),
            store_available: gauge(&catalog::STORE_AVAILABLE),
            calls: Default::default(),
            streams_ended: Reason::ALL
                .into_iter()
                .map(|reason| {
                    let label = reason.stream_end_label(true);
                    let counters = StreamingMethod::ALL.map(|method| {
                        let labels = [("reason", label.into()), ("method", method.as_str().into())];
                        counter(&catalog::STREAMS_ENDED, &labels)
                    });
                    (label, counters)
                })
                .collect(),
            log_limits: LogLimits::new(|event| {
                counter(&catalog::LOG_LINES_LEFT_OUT, &[("event", event.as_str().into())])
            }),
            received: kinds(&catalog::EVENTS_RECEIVED),
            broadcast: kinds(&catalog::EVENTS_BROADCAST),
            rejected: Reason::ALL
                .into_iter()
                .filter(|reason| reason.is_rejection())
                .map(|reason| {
                    let labels = [
                        ("reason", reason.as_str().to_lowercase()),
                        ("fault", reason.fault().into()),
                    ];
                    (reason, counter(&catalog::EVENTS_REJECTED, &labels))
                })
                .collect(),
            dropped_spans: counter(&catalog::TELEMETRY_DROPPED, &[("signal", "traces".into())]),
            dropped_logs: counter(&catalog::TELEMETRY_DROPPED, &[("signal", "logs".into())]),
            otlp,
            lamport_time: gauge(&catalog::LAMPORT_TIME),
            max_lamport_time: AtomicI64::new(0),
        }
    }

    /// Sets the store whose usage the `/metrics` page shows. Only the first call has an effect, because a server has one
    /// store. The store is held weakly; once it is dropped, the page shows its last usage.
    pub fn observe_store(&self, store: &Arc<dyn Store>) {
        self.store.set(Arc::downgrade(store)).ok();
    }

    /// Sets when the server's certificate expires; zero if that is not known.
    pub fn set_certificate_expiry(&self, not_after: Option<SystemTime>) {
        let since_epoch = not_after.and_then(|at| at.duration_since(SystemTime::UNIX_EPOCH).ok());
        self.certificate_expiry
            .set(since_epoch.unwrap_or_default().as_secs_f64());
    }

    #[expect(clippy::cast_precision_loss, reason = "a gauge is a float, exact up to 2^53")]
    fn update_store_gauges(&self) {
        if let Some(StoreUsage {
            events,
            retained,
            bytes,
            garbage,
            segments,
            available,
            ..
        }) = self
            .store
            .get()
            .and_then(Weak::upgrade)
            .map(|store| store.usage())
        {
            self.store_events.set(events as f64);
            self.store_bytes.set(bytes as f64);
            self.store_retained.set(retained as f64);
            self.store_garbage.set(garbage as f64);
            self.store_segments.set(segments as f64);
            self.store_available
                .set(available.map_or(f64::INFINITY, |free| free as f64));
        }
    }

    /// Renders all metrics in the Prometheus text format, in the order of the catalog. Blocks while it reads `/proc` and the
    /// free space of the disk. The metrics of the Tokio runtime are included only if called within one.
    #[must_use]
    pub fn render(&self) -> String {
        #[expect(clippy::cast_precision_loss, reason = "a gauge is a float, exact up to 2^53")]
        self.lamport_time
            .set(self.max_lamport_time.load(Ordering::Relaxed) as f64);
        self.update_store_gauges();
        self.dropped_spans.absolute(self.otlp.dropped_spans());
        self.dropped_logs.absolute(self.otlp.dropped_logs());
        let mut page = self.handle.render();
        self.broadcast_latency
            .render(&catalog::BROADCAST_LATENCY, &mut page);
        self.delivery_latency
            .render(&catalog::DELIVERY_LATENCY, &mut page);
        self.store_append.render(&catalog::STORE_APPEND, &mut page);
        self.store_sync.render(&catalog::STORE_SYNC, &mut page);
        self.cluster_order.render(&catalog::CLUSTER_ORDER, &mut page);
        self.render_calls(&mut page);
        let runtime = Handle::try_current().ok();
        let runtime = runtime.map(|handle| runtime_metrics(&handle.metrics()));
        for (definition, value) in process_metrics().into_iter().chain(runtime.into_iter().flatten()) {
            let Definition { name, kind, help, .. } = definition;
            let kind = kind.as_str();
            // Writing to a string cannot fail.
            write!(
                page,
                "# HELP {name} {help}\n# TYPE {name} {kind}\n{name} {value}\n\n"
            )
            .unwrap_or_default();
        }
        in_catalog_order(&page)
    }

    /// Records a unary call. Methods that are not in `MEASURED_METHODS` are ignored.
    pub(super) fn record_call(&self, method: &str, code: Code, took: Duration) {
        if let Some(method) = MEASURED_METHODS.iter().position(|known| *known == method) {
            self.calls[method][code as usize].record(took, 1);
        }
    }

    fn render_calls(&self, page: &mut String) {
        let name = catalog::CALL_DURATION.name;
        Histogram::render_head(&catalog::CALL_DURATION, page);
        for (method, by_code) in MEASURED_METHODS.iter().zip(&self.calls) {
            for (code, calls) in CODE_NAMES.iter().zip(by_code) {
                // Error codes appear only once they have occurred.
                if *code == "OK" || !calls.is_empty() {
                    let labels = format!("rpc_method=\"{method}\",rpc_response_status_code=\"{code}\"");
                    calls.render_series(name, &labels, page);
                }
            }
        }
        page.push('\n');
    }

    pub(super) fn stream_ended(&self, reason: &'static str, method: StreamingMethod) {
        if let Some(counters) = self.streams_ended.get(reason) {
            counters[method as usize].increment(1);
        }
    }

    pub(super) fn event_received(&self, kind: EventType) {
        self.received[kind as usize].increment(1);
    }

    pub(super) fn event_broadcast(&self, kind: EventType, time: LamportTime) {
        self.broadcast[kind as usize].increment(1);
        self.max_lamport_time.fetch_max(time.get(), Ordering::Relaxed);
    }

    pub(super) fn event_rejected(&self, reason: Reason) {
        if let Some(counter) = self.rejected.get(&reason) {
            counter.increment(1);
        }
        if reason == Reason::TimestampOutOfRange {
            self.lamport_rejected.increment(1);
        }
    }
}

/// Sorts the metric families of a page into the order of the catalog.
fn in_catalog_order(page: &str) -> String {
    let mut families: Vec<&str> = page.split("\n\n").map(str::trim).collect();
    families.retain(|family| !family.is_empty());
    families.sort_by_key(|family| {
        let name = family.split(' ').nth(2).unwrap_or_default();
        CATALOG.iter().position(|definition| definition.name == name)
    });
    families.iter().flat_map(|family| [*family, "\n\n"]).collect()
}

const METADATA: Metadata<'static> = Metadata::new("chitchat", Level::INFO, None);

fn describe(recorder: &PrometheusRecorder) {
    for &Definition { name, kind, help, .. } in CATALOG {
        match kind {
            Kind::Counter => recorder.describe_counter(name.into(), None, help.into()),
            Kind::Gauge => recorder.describe_gauge(name.into(), None, help.into()),
            // Histograms are rendered without the recorder.
            Kind::Histogram => {}
        }
    }
}

fn key(definition: &Definition, labels: &[(&'static str, String)]) -> Key {
    debug_assert!(
        labels.iter().map(|(label, _)| label).eq(definition.labels),
        "{}",
        definition.name
    );
    let labels: Vec<Label> = labels
        .iter()
        .map(|(label, value)| Label::new(*label, value.clone()))
        .collect();
    Key::from_parts(definition.name, labels)
}

fn register_counter(
    recorder: &PrometheusRecorder,
    definition: &Definition,
    labels: &[(&'static str, String)],
) -> Counter {
    recorder.register_counter(&key(definition, labels), &METADATA)
}

fn register_gauge(
    recorder: &PrometheusRecorder,
    definition: &Definition,
    labels: &[(&'static str, String)],
) -> Gauge {
    let gauge = recorder.register_gauge(&key(definition, labels), &METADATA);
    // The recorder does not render gauges that were never set.
    gauge.set(0.0);
    gauge
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the label names of a sample, without `le`.
    fn labels(sample: &str) -> Vec<&str> {
        let Some((_, labels)) = sample.split_once('{') else {
            return Vec::new();
        };
        labels
            .split(',')
            .filter_map(|pair| Some(pair.split_once('=')?.0))
            .filter(|label| *label != "le")
            .collect()
    }

    #[tokio::test]
    async fn the_page_shows_exactly_the_catalog_in_its_order() {
        let metrics = Metrics::new(7, OtlpPipeline::default());
        metrics.record_call(MEASURED_METHODS[0], Code::NotFound, Duration::from_millis(3));
        let page = metrics.render();
        let shown: Vec<&str> = page.lines().filter(|line| line.starts_with("# TYPE ")).collect();
        let expected: Vec<String> = CATALOG
            .iter()
            .map(|definition| format!("# TYPE {} {}", definition.name, definition.kind.as_str()))
            .collect();
        assert_eq!(shown, expected, "{page}");
        for definition in CATALOG {
            let name = definition.name;
            let help = format!("# HELP {name} {}\n", definition.help);
            assert!(page.contains(&help), "{help}");
            let belongs = |line: &&str| {
                let sample = line.split(['{', ' ']).next().unwrap_or_default();
                let sample = ["_bucket", "_sum", "_count"]
                    .iter()
                    .filter(|_| definition.kind == Kind::Histogram)
                    .find_map(|suffix| sample.strip_suffix(suffix))
                    .unwrap_or(sample);
                sample == name
            };
            let samples: Vec<&str> = page.lines().filter(belongs).collect();
            assert!(!samples.is_empty(), "{name}");
            for sample in samples {
                assert_eq!(labels(sample), definition.labels, "{sample}");
            }
        }
        assert!(page.contains("chitchat_connections_limit 7\n"));
        assert!(page.contains("chitchat_events_rejected_total{reason=\"name_taken\",fault=\"client\"} 0\n"));
        assert!(page.contains(
            "rpc_server_call_duration_seconds_count{rpc_method=\"itu.chitchat.ChatService/SendMessage\",\
             rpc_response_status_code=\"NOT_FOUND\"} 1\n"
        ));
    }
}
