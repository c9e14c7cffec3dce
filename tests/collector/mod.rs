//! An OTLP collector over gRPC that keeps the spans and log records it receives.
#![allow(
    dead_code,
    missing_docs,
    unreachable_pub,
    reason = "each test uses another part of it"
)]

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use opentelemetry_proto::tonic::collector::logs::v1::logs_service_server::{LogsService, LogsServiceServer};
use opentelemetry_proto::tonic::collector::logs::v1::{ExportLogsServiceRequest, ExportLogsServiceResponse};
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue, any_value::Value};
use opentelemetry_proto::tonic::trace::v1::Span as WireSpan;
use tokio::runtime::Runtime;
use tonic::service::Routes;
use tonic::{Request, Response, Status};

/// Upper bound for every wait. Even a busy machine needs much less.
const TIMEOUT: Duration = Duration::from_secs(30);

/// Attribute values by name. Numbers are formatted in decimal.
pub type Attributes = BTreeMap<String, String>;

/// A span, with the attributes of the resource that exported it.
#[derive(Debug, Clone)]
pub struct Span {
    pub name: String,
    pub kind: i32,
    pub trace: String,
    pub id: String,
    pub parent: String,
    /// Trace id and span id of each link.
    pub links: Vec<(String, String)>,
    pub attributes: Attributes,
    pub resource: Attributes,
    pub start: u64,
    pub end: u64,
    pub is_error: bool,
}

/// A log record, with the attributes of the resource that exported it.
#[derive(Debug, Clone)]
pub struct Record {
    pub body: String,
    pub trace: String,
    pub span: String,
    pub attributes: Attributes,
    pub resource: Attributes,
}

#[derive(Default)]
struct Received {
    spans: Mutex<Vec<Span>>,
    records: Mutex<Vec<Record>>,
    changed: Condvar,
}

/// A running collector. Stops when dropped.
pub struct Collector {
    pub endpoint: String,
    received: Arc<Received>,
    _runtime: Runtime,
}

impl Collector {
    /// Starts a collector on a free port.
    pub fn start() -> Self {
        Self::start_at(SocketAddr::from(([127, 0, 0, 1], 0)))
    }

    /// Starts a collector on `address`.
    pub fn start_at(address: SocketAddr) -> Self {
        let runtime = Runtime::new().unwrap();
        let received = Arc::new(Received::default());
        let services = Services(Arc::clone(&received));
        let listener = runtime.block_on(tokio::net::TcpListener::bind(address)).unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let routes = Routes::new(TraceServiceServer::new(services.clone()))
            .add_service(LogsServiceServer::new(services))
            .prepare();
        runtime.spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let service = hyper_util::service::TowerToHyperService::new(routes.clone());
                let io = hyper_util::rt::TokioIo::new(stream);
                let executor = hyper_util::rt::TokioExecutor::new();
                tokio::spawn(
                    hyper::server::conn::http2::Builder::new(executor).serve_connection(io, service),
                );
            }
        });
        Self {
            endpoint,
            received,
            _runtime: runtime,
        }
    }

    /// Waits until there are `count` spans of this name, and returns them.
    pub fn spans(&self, name: &str, count: usize) -> Vec<Span> {
        let named = |spans: &[Span]| -> Vec<Span> {
            spans.iter().filter(|span| span.name == name).cloned().collect()
        };
        let deadline = Instant::now() + TIMEOUT;
        let mut spans = self.received.spans.lock().unwrap();
        loop {
            let found = named(&spans);
            if found.len() >= count {
                return found;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(
                !left.is_zero(),
                "{} of {count} {name:?} in {spans:#?}",
                found.len()
            );
            spans = self.received.changed.wait_timeout(spans, left).unwrap().0;
        }
    }

    /// All spans received so far.
    pub fn all_spans(&self) -> Vec<Span> {
        self.received.spans.lock().unwrap().clone()
    }

    /// Waits for a log record whose attribute `event` has this value, and returns the first one.
    pub fn record(&self, event: &str) -> Record {
        let deadline = Instant::now() + TIMEOUT;
        let mut records = self.received.records.lock().unwrap();
        loop {
            let is_it = |record: &&Record| record.attributes.get("event").is_some_and(|name| name == event);
            if let Some(record) = records.iter().find(is_it) {
                return record.clone();
            }
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "no {event:?} in {records:#?}");
            records = self.received.changed.wait_timeout(records, left).unwrap().0;
        }
    }

    /// All records received so far.
    pub fn all_records(&self) -> Vec<Record> {
        self.received.records.lock().unwrap().clone()
    }
}

#[derive(Clone)]
struct Services(Arc<Received>);

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn value(value: Option<AnyValue>) -> String {
    match value.and_then(|value| value.value) {
        Some(Value::StringValue(text)) => text,
        Some(Value::IntValue(number)) => number.to_string(),
        Some(Value::BoolValue(yes)) => yes.to_string(),
        Some(Value::DoubleValue(number)) => number.to_string(),
        other => format!("{other:?}"),
    }
}

fn attributes(attributes: Vec<KeyValue>) -> Attributes {
    attributes
        .into_iter()
        .map(|pair| (pair.key, value(pair.value)))
        .collect()
}

fn span(wire: WireSpan, resource: &Attributes) -> Span {
    Span {
        name: wire.name,
        kind: wire.kind,
        trace: hex(&wire.trace_id),
        id: hex(&wire.span_id),
        parent: hex(&wire.parent_span_id),
        links: wire
            .links
            .iter()
            .map(|link| (hex(&link.trace_id), hex(&link.span_id)))
            .collect(),
        attributes: attributes(wire.attributes),
        resource: resource.clone(),
        start: wire.start_time_unix_nano,
        end: wire.end_time_unix_nano,
        is_error: wire.status.is_some_and(|status| status.code == 2),
    }
}

#[tonic::async_trait]
impl TraceService for Services {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let mut spans = self.0.spans.lock().unwrap();
        for of_resource in request.into_inner().resource_spans {
            let resource = attributes(of_resource.resource.unwrap_or_default().attributes);
            let wires = of_resource.scope_spans.into_iter().flat_map(|scope| scope.spans);
            spans.extend(wires.map(|wire| span(wire, &resource)));
        }
        self.0.changed.notify_all();
        Ok(Response::new(Default::default()))
    }
}

#[tonic::async_trait]
impl LogsService for Services {
    async fn export(
        &self,
        request: Request<ExportLogsServiceRequest>,
    ) -> Result<Response<ExportLogsServiceResponse>, Status> {
        let mut records = self.0.records.lock().unwrap();
        for of_resource in request.into_inner().resource_logs {
            let resource = attributes(of_resource.resource.unwrap_or_default().attributes);
            let wires = of_resource
                .scope_logs
                .into_iter()
                .flat_map(|scope| scope.log_records);
            records.extend(wires.map(|wire| Record {
                body: value(wire.body),
                trace: hex(&wire.trace_id),
                span: hex(&wire.span_id),
                attributes: attributes(wire.attributes),
                resource: resource.clone(),
            }));
        }
        self.0.changed.notify_all();
        Ok(Response::new(Default::default()))
    }
}
