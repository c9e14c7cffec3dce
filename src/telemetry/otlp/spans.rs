//! Export of spans. A span is created only when it ends, from what was recorded until then; a message in flight has no open
//! span in the SDK.

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

use super::drop_counter::{CountingExporter, DropCounter};
use super::sampling::{RemoteParent, Sampler, SamplerOptions, SharedSampler};
use super::{DEFAULT_QUEUE_SIZE, positive_number, resource};
use crate::domain::TraceContext;

/// The name of the instrumentation scope.
const SCOPE: &str = "chitchat";

/// Creates spans and exports them. Clones share one queue.
#[derive(Clone)]
pub struct Tracer {
    sampler: Arc<Sampler>,
    processor: BoundedSpanProcessor,
    scope: InstrumentationScope,
    provider: SdkTracerProvider,
}

impl fmt::Debug for Tracer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tracer").finish_non_exhaustive()
    }
}

/// The ids of a sampled span.
#[derive(Debug, Clone)]
pub(crate) struct SpanIds {
    trace: TraceId,
    span: SpanId,
    /// `None` for the root of a trace.
    parent: Option<SpanId>,
    parent_is_remote: bool,
    state: TraceState,
}

/// A span that has ended.
#[derive(Debug)]
pub(crate) struct FinishedSpan {
    pub(crate) ids: SpanIds,
    pub(crate) name: &'static str,
    pub(crate) kind: SpanKind,
    pub(crate) start: SystemTime,
    pub(crate) end: SystemTime,
    pub(crate) attributes: Vec<KeyValue>,
    pub(crate) link: Option<SpanContext>,
    pub(crate) status: Status,
}

impl Tracer {
    /// Starts to export to the collector at `endpoint`. The service is named `service` unless the environment names it.
    /// If `should_retry`, failed exports are retried with the recommended policy of the SDK.
    ///
    /// Must be called within a Tokio runtime, which has to live until [`Tracer::shut_down`]. Does not wait for the collector.
    ///
    /// # Errors
    ///
    /// Fails if the endpoint or one of the `OTEL_*` variables that the SDK reads is invalid.
    pub fn start(
        endpoint: &str,
        sampler: &SamplerOptions,
        service: &'static str,
        should_retry: bool,
    ) -> Result<Self, ExporterBuildError> {
        let retry = if should_retry {
            RetryPolicy::recommended()
        } else {
            RetryPolicy::disabled()
        };
        let exporter = SpanExporter::builder()
            .with_tonic()
            .with_endpoint(endpoint)
            .with_retry_policy(retry)
            .build()?;
        let capacity = positive_number("OTEL_BSP_MAX_QUEUE_SIZE").unwrap_or(DEFAULT_QUEUE_SIZE);
        let counter = Arc::new(DropCounter::new("traces", capacity));
        let batches = BatchSpanProcessor::builder(CountingExporter::new(exporter, Arc::clone(&counter)))
            .with_batch_config(
                BatchConfigBuilder::default()
                    .with_max_queue_size(capacity)
                    .build(),
            );
        let mut batches = batches.build();
        let resource = resource(service);
        batches.set_resource(&resource);
        let processor = BoundedSpanProcessor {
            counter,
            batches: Arc::new(batches),
        };
        let sampler = Arc::new(Sampler::new(sampler));
        let provider = SdkTracerProvider::builder()
            .with_resource(resource)
            .with_sampler(SharedSampler(Arc::clone(&sampler)))
            .with_span_processor(processor.clone())
            .build();
        let scope = InstrumentationScope::builder(SCOPE)
            .with_version(env!("CARGO_PKG_VERSION"))
            .build();
        Ok(Self {
            sampler,
            processor,
            scope,
            provider,
        })
    }

    /// Returns an SDK tracer with the same queue, for `tracing` spans.
    pub(crate) fn sdk_tracer(&self) -> SdkTracer {
        self.provider.tracer_with_scope(self.scope.clone())
    }

    /// Returns how many spans were dropped.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.processor.counter.dropped()
    }

    /// Returns the ids of a new span, or `None` if it is not sampled. It is a child of `parent`, or a root span if there is
    /// none. If the queue has no capacity for `spans` spans, that many count as dropped and the result is `None`.
    pub(crate) fn sample(&self, parent: Option<&TraceContext>, spans: usize) -> Option<SpanIds> {
        let ids = match parent {
            None => SpanIds::root(TraceId::from(self.sampler.sample_root()?)),
            Some(parent) => {
                if !self.sampler.sample_remote(remote_parent(parent)) {
                    return None;
                }
                SpanIds {
                    trace: TraceId::from(parent.trace_id()),
                    span: new_span_id(),
                    parent: Some(SpanId::from(parent.span_id())),
                    parent_is_remote: true,
                    state: trace_state(parent),
                }
            }
        };
        self.processor.counter.check_capacity(spans).then_some(ids)
    }

    /// Returns the ids of a new root span that is to be linked to `origin`, or `None` if `origin` is not sampled or the queue
    /// is full. Without an origin, the span is sampled like any root span.
    pub(crate) fn sample_linked(&self, origin: Option<&TraceContext>) -> Option<SpanIds> {
        let Some(origin) = origin else {
            return self.sample(None, 1);
        };
        let is_recorded =
            self.sampler.sample_remote(remote_parent(origin)) && self.processor.counter.check_capacity(1);
        is_recorded.then(|| SpanIds::root(TraceId::from(rand::random::<u128>().max(1))))
    }

    /// Queues a span for export.
    pub(crate) fn export(&self, span: FinishedSpan) {
        let FinishedSpan {
            ids,
            name,
            kind,
            start,
            end,
            attributes,
            link,
            status,
        } = span;
        let mut links = SpanLinks::default();
        links.links.extend(link.map(Link::with_context));
        self.processor.on_end(SpanData {
            span_context: ids.span_context(),
            parent_span_id: ids.parent.unwrap_or(SpanId::INVALID),
            parent_span_is_remote: ids.parent_is_remote,
            span_kind: kind,
            name: name.into(),
            start_time: start,
            // The wall clock may have been set back.
            end_time: end.max(start),
            attributes,
            dropped_attributes_count: 0,
            events: SpanEvents::default(),
            links,
            status,
            instrumentation_scope: self.scope.clone(),
        });
    }

    /// Flushes the queue for at most `timeout` and drops the rest. Blocks, so do not call it from an async task.
    pub fn shut_down(&self, timeout: Duration) {
        // Shuts down the provider, not the processor alone: otherwise the provider would flush again when dropped.
        let result = self.provider.shutdown_with_timeout(timeout);
        self.processor.counter.close(&result);
    }
}

impl SpanIds {
    fn root(trace: TraceId) -> Self {
        Self {
            trace,
            span: new_span_id(),
            parent: None,
            parent_is_remote: false,
            state: TraceState::NONE,
        }
    }

    /// Returns the ids of a new child span.
    pub(crate) fn child(&self) -> Self {
        Self {
            span: new_span_id(),
            parent: Some(self.span),
            parent_is_remote: false,
            ..self.clone()
        }
    }

    /// Converts the ids to the type of the SDK.
    pub(crate) fn span_context(&self) -> SpanContext {
        SpanContext::new(
            self.trace,
            self.span,
            TraceFlags::SAMPLED,
            false,
            self.state.clone(),
        )
    }

    /// Converts the ids to the type that is sent over the wire.
    pub(crate) fn trace_context(&self) -> TraceContext {
        let trace = u128::from_be_bytes(self.trace.to_bytes());
        let span = u64::from_be_bytes(self.span.to_bytes());
        TraceContext::new(trace, span, true).with_tracestate(&self.state.header())
    }
}

/// Converts a received trace context to the type of the SDK.
pub(crate) fn remote_span_context(context: &TraceContext) -> SpanContext {
    let flags = TraceFlags::default().with_sampled(context.is_sampled());
    SpanContext::new(
        TraceId::from(context.trace_id()),
        SpanId::from(context.span_id()),
        flags,
        true,
        trace_state(context),
    )
}

fn remote_parent(context: &TraceContext) -> RemoteParent {
    RemoteParent {
        trace_id: context.trace_id(),
        is_sampled: context.is_sampled(),
    }
}

/// Parses `tracestate`. A malformed value counts as empty.
fn trace_state(context: &TraceContext) -> TraceState {
    context.tracestate().parse().unwrap_or_default()
}

fn new_span_id() -> SpanId {
    // Zero is not a valid span id.
    SpanId::from(rand::random::<u64>().max(1))
}

/// Converts an instant in the past to wall-clock time.
pub(crate) fn system_time(at: Instant) -> SystemTime {
    let now = SystemTime::now();
    now.checked_sub(at.elapsed()).unwrap_or(now)
}

/// A batch processor that counts the spans that its queue cannot take.
#[derive(Debug, Clone)]
struct BoundedSpanProcessor {
    counter: Arc<DropCounter>,
    batches: Arc<BatchSpanProcessor>,
}

impl SpanProcessor for BoundedSpanProcessor {
    fn on_start(&self, _: &mut Span, _: &Context) {}

    fn on_end(&self, span: SpanData) {
        if span.span_context.is_sampled() && self.counter.try_enqueue() {
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
        // `Tracer::start` has set it, before the batch processor was shared.
    }
}
