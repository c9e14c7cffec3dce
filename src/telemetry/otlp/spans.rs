//! Spans that are made when they are over, from what is known by then: no span is open while a message is on its way.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use opentelemetry::trace::{
    Link, SpanContext, SpanId, SpanKind, Status, TraceFlags, TraceId, TraceState, TracerProvider,
};
use opentelemetry::{Context, InstrumentationScope, KeyValue};
use opentelemetry_otlp::{ExporterBuildError, RetryPolicy, SpanExporter, WithExportConfig, WithTonicConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{
    BatchConfigBuilder, BatchSpanProcessor, SdkTracer, SdkTracerProvider, Span, SpanData, SpanEvents,
    SpanLinks, SpanProcessor,
};

use super::exporter::Booked;
use super::losses::Ledger;
use super::sampling::{Remote, SamplerOptions, Sampling, SharedSampling};
use super::{QUEUE, number, resource};
use crate::domain::TraceContext;

/// The library that the spans are of.
const SCOPE: &str = "chitchat";

/// Makes spans and exports them. Clones share one queue.
#[derive(Clone)]
pub struct Tracer {
    sampling: Arc<Sampling>,
    queue: Queue,
    scope: InstrumentationScope,
    provider: SdkTracerProvider,
}

impl fmt::Debug for Tracer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tracer").finish_non_exhaustive()
    }
}

/// Which span it is, and of what.
#[derive(Debug, Clone)]
pub(in crate::telemetry) struct Ids {
    trace: TraceId,
    span: SpanId,
    /// None where a trace begins.
    parent: Option<SpanId>,
    parent_is_remote: bool,
    state: TraceState,
}

/// A span that is over.
#[derive(Debug)]
pub(in crate::telemetry) struct Finished {
    pub(in crate::telemetry) ids: Ids,
    pub(in crate::telemetry) name: &'static str,
    pub(in crate::telemetry) kind: SpanKind,
    pub(in crate::telemetry) begun: SystemTime,
    pub(in crate::telemetry) ended: SystemTime,
    pub(in crate::telemetry) attributes: Vec<KeyValue>,
    pub(in crate::telemetry) link: Option<SpanContext>,
    pub(in crate::telemetry) status: Status,
}

impl Tracer {
    /// Begins to export to the collector at `endpoint`, as `service` unless the environment names it. Must be called
    /// within a Tokio runtime, which has to live until [`Tracer::shut_down`]; does not wait for the collector.
    ///
    /// `is_patient` says whether what cannot be exported is tried again a few times.
    ///
    /// # Errors
    ///
    /// When the endpoint or another of the `OTEL_*` variables makes no sense.
    pub fn start(
        endpoint: &str,
        sampler: &SamplerOptions,
        service: &'static str,
        is_patient: bool,
    ) -> Result<Self, ExporterBuildError> {
        let retry = if is_patient {
            RetryPolicy::recommended()
        } else {
            RetryPolicy::disabled()
        };
        let exporter = SpanExporter::builder()
            .with_tonic()
            .with_endpoint(endpoint)
            .with_retry_policy(retry)
            .build()?;
        let capacity = number("OTEL_BSP_MAX_QUEUE_SIZE").unwrap_or(QUEUE);
        let ledger = Arc::new(Ledger::new("traces", capacity));
        let batches = BatchSpanProcessor::builder(Booked::new(exporter, Arc::clone(&ledger)))
            .with_batch_config(
                BatchConfigBuilder::default()
                    .with_max_queue_size(capacity)
                    .build(),
            );
        let mut batches = batches.build();
        let resource = resource(service);
        batches.set_resource(&resource);
        let queue = Queue {
            ledger,
            batches: Arc::new(batches),
        };
        let sampling = Arc::new(Sampling::new(sampler));
        let provider = SdkTracerProvider::builder()
            .with_resource(resource)
            .with_sampler(SharedSampling(Arc::clone(&sampling)))
            .with_span_processor(queue.clone())
            .build();
        let scope = InstrumentationScope::builder(SCOPE)
            .with_version(env!("CARGO_PKG_VERSION"))
            .build();
        Ok(Self {
            sampling,
            queue,
            scope,
            provider,
        })
    }

    /// A tracer of the SDK over the same queue, for what is traced with `tracing`.
    #[must_use]
    pub fn sdk(&self) -> SdkTracer {
        self.provider.tracer_with_scope(self.scope.clone())
    }

    /// How many spans were lost so far.
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.queue.ledger.lost()
    }

    /// The ids of a span that goes on with `parent`, or begins a trace; none if it is not recorded. `spans` is how many
    /// spans the whole will have: where the queue has no room for them they are lost at once.
    pub(in crate::telemetry) fn begin(&self, parent: Option<&TraceContext>, spans: usize) -> Option<Ids> {
        let ids = match parent {
            None => Ids::root(TraceId::from(self.sampling.begin()?)),
            Some(parent) => {
                let remote = Remote {
                    trace_id: parent.trace_id(),
                    is_sampled: parent.is_sampled(),
                };
                if !self.sampling.goes_on(remote) {
                    return None;
                }
                Ids {
                    trace: TraceId::from(remote.trace_id),
                    span: new_span_id(),
                    parent: Some(SpanId::from(parent.span_id())),
                    parent_is_remote: true,
                    state: trace_state(parent),
                }
            }
        };
        self.queue.ledger.has_room(spans).then_some(ids)
    }

    /// The ids of a span that begins a trace of its own, and is recorded whenever what it was made for, `origin`, is.
    pub(in crate::telemetry) fn begin_linked(&self, origin: Option<&TraceContext>) -> Option<Ids> {
        let Some(origin) = origin else {
            return self.begin(None, 1);
        };
        let remote = Remote {
            trace_id: origin.trace_id(),
            is_sampled: origin.is_sampled(),
        };
        let ids = || Ids::root(TraceId::from(rand::random::<u128>().max(1)));
        (self.sampling.goes_on(remote) && self.queue.ledger.has_room(1)).then(ids)
    }

    /// Hands a span over to be exported.
    pub(in crate::telemetry) fn export(&self, finished: Finished) {
        let Finished {
            ids,
            name,
            kind,
            begun,
            ended,
            attributes,
            link,
            status,
        } = finished;
        let mut links = SpanLinks::default();
        links.links.extend(link.map(Link::with_context));
        self.queue.on_end(SpanData {
            span_context: ids.span_context(),
            parent_span_id: ids.parent.unwrap_or(SpanId::INVALID),
            parent_span_is_remote: ids.parent_is_remote,
            span_kind: kind,
            name: name.into(),
            start_time: begun,
            // The clock of the wall may have been set back.
            end_time: ended.max(begun),
            attributes,
            dropped_attributes_count: 0,
            events: SpanEvents::default(),
            links,
            status,
            instrumentation_scope: self.scope.clone(),
        });
    }

    /// Exports what waits, for at most this long; what is left then is lost. Blocks: not for a runtime's thread.
    pub fn shut_down(&self, timeout: Duration) {
        // Through the provider, which would else wait for the same again when it is dropped.
        let result = self.provider.shutdown_with_timeout(timeout);
        let reason = result.map_or_else(|error| error.to_string(), |()| "the end came first".to_owned());
        self.queue.ledger.close(&reason);
    }
}

impl Ids {
    fn root(trace: TraceId) -> Self {
        Self {
            trace,
            span: new_span_id(),
            parent: None,
            parent_is_remote: false,
            state: TraceState::NONE,
        }
    }

    /// The ids of a span below this one.
    pub(in crate::telemetry) fn child(&self) -> Self {
        Self {
            span: new_span_id(),
            parent: Some(self.span),
            parent_is_remote: false,
            ..self.clone()
        }
    }

    /// Which span it is, for the SDK.
    pub(in crate::telemetry) fn span_context(&self) -> SpanContext {
        SpanContext::new(
            self.trace,
            self.span,
            TraceFlags::SAMPLED,
            false,
            self.state.clone(),
        )
    }

    /// Which span it is, for others.
    pub(in crate::telemetry) fn trace_context(&self) -> TraceContext {
        let trace = u128::from_be_bytes(self.trace.to_bytes());
        let span = u64::from_be_bytes(self.span.to_bytes());
        TraceContext::new(trace, span, true).with_tracestate(&self.state.header())
    }
}

/// Which span of somebody else it is, for the SDK.
pub(in crate::telemetry) fn remote(context: &TraceContext) -> SpanContext {
    let flags = TraceFlags::default().with_sampled(context.is_sampled());
    SpanContext::new(
        TraceId::from(context.trace_id()),
        SpanId::from(context.span_id()),
        flags,
        true,
        trace_state(context),
    )
}

/// What others noted with their trace; nothing where it is malformed.
fn trace_state(context: &TraceContext) -> TraceState {
    context.tracestate().parse().unwrap_or_default()
}

fn new_span_id() -> SpanId {
    // Zero is no span id.
    SpanId::from(rand::random::<u64>().max(1))
}

/// The time of the wall at an instant of the past.
pub(in crate::telemetry) fn wall_time(at: Instant) -> SystemTime {
    let now = SystemTime::now();
    now.checked_sub(at.elapsed()).unwrap_or(now)
}

/// Spans that wait to be exported: a bounded number of them, whatever the collector does.
#[derive(Debug, Clone)]
struct Queue {
    ledger: Arc<Ledger>,
    batches: Arc<BatchSpanProcessor>,
}

impl SpanProcessor for Queue {
    fn on_start(&self, _: &mut Span, _: &Context) {}

    fn on_end(&self, span: SpanData) {
        if span.span_context.is_sampled() && self.ledger.admit() {
            self.batches.on_end(span);
        }
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.batches.force_flush()
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.batches.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, _: &Resource) {
        // The batches have had it from the beginning.
    }
}
