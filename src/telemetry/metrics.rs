//! The metrics of one server: handles that were made once, and the page that shows them.

use std::collections::HashMap;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, OnceLock, Weak};

use metrics::{Counter, Gauge, Key, Label, Level, Metadata, Recorder};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle, PrometheusRecorder};

use super::catalog::{self, CATALOG, Definition, Kind};
use super::histogram::Histogram;
use crate::domain::LamportTime;
use crate::rpc::{EventKindReceived, Reason, StreamEnd};
use crate::store::{Fill, Store};

/// The metrics of one server. Each has a recorder of its own, so that two servers in one process do not mix.
pub struct Metrics {
    handle: PrometheusHandle,
    pub(super) connected_clients: Gauge,
    pub(super) rooms_active: Gauge,
    pub(super) connections_open: Gauge,
    pub(super) refused_at_limit: Counter,
    pub(super) refused_protocol: Counter,
    pub(super) chat_streams_started: Counter,
    pub(super) deliveries: Counter,
    pub(super) subscribers_behind: Gauge,
    pub(super) resumes_complete: Counter,
    pub(super) resumes_incomplete: Counter,
    pub(super) lamport_rejected: Counter,
    pub(super) broadcast_latency: Histogram,
    pub(super) delivery_latency: Histogram,
    pub(super) store_append: Histogram,
    pub(super) store_sync: Histogram,
    pub(super) causality_violations: Counter,
    /// The store reports here itself, and must not keep itself alive by that.
    store: OnceLock<Weak<dyn Store>>,
    store_bytes: Gauge,
    store_events: Gauge,
    store_available: Gauge,
    streams_ended: HashMap<StreamEnd, Counter>,
    received: [Counter; 3],
    broadcast: [Counter; 3],
    rejected: HashMap<Reason, Counter>,
    lamport_time: Gauge,
    /// The latest time of any room; the gauge takes it over when it is shown.
    latest: AtomicI64,
}

const KINDS: [&str; 3] = ["join", "message", "leave"];

impl Metrics {
    /// Metrics that all stand at zero, for a server that takes at most so many connections.
    #[must_use]
    pub fn new(max_connections: usize) -> Self {
        let recorder = PrometheusBuilder::new().build_recorder();
        describe(&recorder);
        let gauge = |definition: &Definition| register_gauge(&recorder, definition, &[]);
        let counter = |definition: &Definition, labels: &[(&'static str, String)]| {
            register_counter(&recorder, definition, labels)
        };
        let kinds = |definition: &Definition| KINDS.map(|kind| counter(definition, &[("kind", kind.into())]));
        let version = ("version", env!("CARGO_PKG_VERSION").to_owned());
        register_gauge(&recorder, &catalog::BUILD_INFO, &[version]).set(1.0);
        let limit = u32::try_from(max_connections).unwrap_or(u32::MAX);
        gauge(&catalog::CONNECTIONS_LIMIT).set(limit);
        Self {
            handle: recorder.handle(),
            connected_clients: gauge(&catalog::CONNECTED_CLIENTS),
            rooms_active: gauge(&catalog::ROOMS_ACTIVE),
            connections_open: gauge(&catalog::CONNECTIONS_OPEN),
            refused_at_limit: counter(&catalog::CONNECTIONS_REFUSED, &[("reason", "limit".into())]),
            refused_protocol: counter(&catalog::CONNECTIONS_REFUSED, &[("reason", "protocol".into())]),
            chat_streams_started: counter(&catalog::STREAMS_STARTED, &[("method", "Chat".into())]),
            deliveries: counter(&catalog::DELIVERIES, &[]),
            subscribers_behind: gauge(&catalog::SUBSCRIBERS_BEHIND),
            resumes_complete: counter(&catalog::RESUMES, &[("outcome", "complete".into())]),
            resumes_incomplete: counter(&catalog::RESUMES, &[("outcome", "incomplete".into())]),
            lamport_rejected: counter(&catalog::LAMPORT_REJECTED, &[]),
            broadcast_latency: Histogram::default(),
            delivery_latency: Histogram::default(),
            store_append: Histogram::default(),
            store_sync: Histogram::default(),
            causality_violations: counter(&catalog::CAUSALITY_VIOLATIONS, &[]),
            store: OnceLock::new(),
            store_bytes: gauge(&catalog::STORE_BYTES),
            store_events: gauge(&catalog::STORE_EVENTS),
            store_available: gauge(&catalog::STORE_AVAILABLE),
            streams_ended: StreamEnd::ALL
                .into_iter()
                .map(|end| {
                    (
                        end,
                        counter(&catalog::STREAMS_ENDED, &[("reason", end.as_str().into())]),
                    )
                })
                .collect(),
            received: kinds(&catalog::EVENTS_RECEIVED),
            broadcast: kinds(&catalog::EVENTS_BROADCAST),
            rejected: Reason::ALL
                .into_iter()
                .map(|reason| {
                    let labels = [
                        ("reason", reason.as_str().to_lowercase()),
                        ("fault", reason.fault().as_str().into()),
                    ];
                    (reason, counter(&catalog::EVENTS_REJECTED, &labels))
                })
                .collect(),
            lamport_time: gauge(&catalog::LAMPORT_TIME),
            latest: AtomicI64::new(0),
        }
    }

    /// Shows how full `store` is from now on.
    pub fn watch(&self, store: &Arc<dyn Store>) {
        // A server has one store.
        self.store.set(Arc::downgrade(store)).ok();
    }

    #[expect(clippy::cast_precision_loss, reason = "a gauge is a float, exact up to 2^53")]
    fn ask_store(&self) {
        if let Some(Fill {
            events,
            bytes,
            available,
        }) = self.store.get().and_then(Weak::upgrade).map(|store| store.fill())
        {
            self.store_events.set(events as f64);
            self.store_bytes.set(bytes as f64);
            self.store_available
                .set(available.map_or(f64::INFINITY, |free| free as f64));
        }
    }

    /// All metrics in the Prometheus text format.
    #[must_use]
    pub fn render(&self) -> String {
        // Lamport times up to 2^53 are exact.
        #[expect(clippy::cast_precision_loss, reason = "a gauge is a float")]
        self.lamport_time.set(self.latest.load(Ordering::Relaxed) as f64);
        self.ask_store();
        let mut page = self.handle.render();
        self.broadcast_latency
            .render(&catalog::BROADCAST_LATENCY, &mut page);
        self.delivery_latency
            .render(&catalog::DELIVERY_LATENCY, &mut page);
        self.store_append.render(&catalog::STORE_APPEND, &mut page);
        self.store_sync.render(&catalog::STORE_SYNC, &mut page);
        page
    }

    pub(super) fn stream_ended(&self, end: StreamEnd) {
        if let Some(counter) = self.streams_ended.get(&end) {
            counter.increment(1);
        }
    }

    pub(super) fn event_received(&self, kind: EventKindReceived) {
        self.received[kind as usize].increment(1);
    }

    pub(super) fn event_broadcast(&self, kind: EventKindReceived, time: LamportTime) {
        self.broadcast[kind as usize].increment(1);
        self.latest.fetch_max(time.get(), Ordering::Relaxed);
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

const METADATA: Metadata<'static> = Metadata::new("chitchat", Level::INFO, None);

fn describe(recorder: &PrometheusRecorder) {
    for Definition { name, kind, help, .. } in CATALOG {
        match kind {
            Kind::Counter => recorder.describe_counter(name.into(), None, help.into()),
            Kind::Gauge => recorder.describe_gauge(name.into(), None, help.into()),
            // Histograms are our own, and describe themselves.
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
    // What was never set is not shown.
    gauge.set(0.0);
    gauge
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_shows_every_metric_from_the_start() {
        let page = Metrics::new(7).render();
        for definition in CATALOG {
            let kind = match definition.kind {
                Kind::Counter => "counter",
                Kind::Gauge => "gauge",
                Kind::Histogram => "histogram",
            };
            assert!(
                page.contains(&format!("# TYPE {} {kind}\n", definition.name)),
                "{}\n{page}",
                definition.name
            );
            assert!(
                page.contains(&format!("# HELP {} ", definition.name)),
                "{}",
                definition.name
            );
        }
        assert!(page.contains("chitchat_connections_limit 7\n"));
        assert!(page.contains("chitchat_events_rejected_total{reason=\"name_taken\",fault=\"client\"} 0\n"));
    }
}
