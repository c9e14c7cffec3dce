//! Metrics and spans of unary calls.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context as TaskContext, Poll, ready};
use std::time::{Instant, SystemTime};

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body::{Body as HttpBody, Frame, SizeHint};
use opentelemetry::trace::{FutureExt as _, SpanKind, Status, TraceContextExt};
use opentelemetry::{Context, KeyValue};
use pin_project_lite::pin_project;
use tonic::body::Body;
use tonic::{Code, Status as GrpcStatus};
use tower::{Layer, Service};

use super::attributes;
use super::metrics::{CODE_NAMES, HEALTH_CHECK, MEASURED_METHODS, Metrics};
use super::otlp::{FinishedSpan, SpanIds, Tracer};
use crate::domain::TraceContext;

/// A `tower` layer that measures and traces unary calls. Streaming calls pass through unmeasured, because the client decides
/// how long they last.
#[derive(Clone)]
pub struct UnaryCallLayer {
    metrics: Arc<Metrics>,
    tracer: Option<Tracer>,
}

impl UnaryCallLayer {
    /// Creates a layer that records into `metrics`. Without a `tracer` it records no spans.
    #[must_use]
    pub const fn new(metrics: Arc<Metrics>, tracer: Option<Tracer>) -> Self {
        Self { metrics, tracer }
    }
}

impl<S> Layer<S> for UnaryCallLayer {
    type Service = UnaryCallService<S>;

    fn layer(&self, inner: S) -> UnaryCallService<S> {
        UnaryCallService {
            inner,
            layer: self.clone(),
        }
    }
}

/// The service of [`UnaryCallLayer`].
#[derive(Clone)]
pub struct UnaryCallService<S> {
    inner: S,
    layer: UnaryCallLayer,
}

impl<S> Service<Request<Body>> for UnaryCallService<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, cx: &mut TaskContext<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        let method = request
            .uri()
            .path()
            .strip_prefix('/')
            .and_then(|path| MEASURED_METHODS.into_iter().find(|method| *method == path));
        let Some(method) = method else {
            return Box::pin(self.inner.call(request));
        };
        let mut call = Call::start(self.layer.clone(), method, request.headers());
        let context = call.ids.as_ref().map(|ids| {
            request.extensions_mut().insert(Arc::new(ids.trace_context()));
            Context::new().with_remote_span_context(ids.span_context())
        });
        let response = self.inner.call(request);
        Box::pin(async move {
            let response = match context {
                Some(context) => response.with_context(context).await,
                None => response.await,
            }?;
            call.read_status(response.headers());
            Ok(response.map(|body| Body::new(MeasuredBody { body, call })))
        })
    }
}

/// A call in progress. It is recorded when it is dropped, which also covers calls that the client cancels.
struct Call {
    layer: UnaryCallLayer,
    method: &'static str,
    started_at: Instant,
    start_time: SystemTime,
    ids: Option<SpanIds>,
    code: Option<Code>,
}

impl Call {
    fn start(layer: UnaryCallLayer, method: &'static str, headers: &HeaderMap) -> Self {
        let tracer = layer.tracer.as_ref().filter(|_| method != HEALTH_CHECK);
        let header = |name| {
            headers
                .get(name)
                .and_then(|value| value.to_str().ok())
                .unwrap_or_default()
        };
        let ids = tracer.and_then(|tracer| {
            let parent = TraceContext::parse(header("traceparent"), header("tracestate"));
            tracer.sample(parent.as_ref(), 1)
        });
        Self {
            layer,
            method,
            started_at: Instant::now(),
            start_time: SystemTime::now(),
            ids,
            code: None,
        }
    }

    /// Reads the status code of the call from headers or trailers, if they contain it.
    fn read_status(&mut self, headers: &HeaderMap) {
        if headers.contains_key(GrpcStatus::GRPC_STATUS) {
            self.code = GrpcStatus::from_header_map(headers).map(|status| status.code());
        }
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        let took = self.started_at.elapsed();
        // Without a status, the client has cancelled the call.
        let code = self.code.unwrap_or(Code::Cancelled);
        self.layer.metrics.record_call(self.method, code, took);
        if let (Some(ids), Some(tracer)) = (self.ids.take(), &self.layer.tracer) {
            let mut attributes = Vec::from(attributes::rpc_attributes(self.method));
            attributes.push(KeyValue::new(
                "rpc.response.status_code",
                CODE_NAMES[code as usize],
            ));
            let mut status = Status::Unset;
            if is_server_error(code) {
                attributes.push(KeyValue::new("error.type", CODE_NAMES[code as usize]));
                status = Status::error("");
            }
            tracer.export(FinishedSpan {
                ids,
                name: self.method,
                kind: SpanKind::Server,
                start: self.start_time,
                end: self.start_time + took,
                attributes,
                link: None,
                status,
            });
        }
    }
}

pin_project! {
    /// A response body that ends the call when it ends.
    struct MeasuredBody {
        #[pin]
        body: Body,
        call: Call,
    }
}

impl HttpBody for MeasuredBody {
    type Data = Bytes;
    type Error = GrpcStatus;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut TaskContext<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, GrpcStatus>>> {
        let this = self.project();
        let frame = ready!(this.body.poll_frame(cx));
        if let Some(Ok(frame)) = &frame
            && let Some(trailers) = frame.trailers_ref()
        {
            this.call.read_status(trailers);
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Returns whether OpenTelemetry's conventions count a code as an error of the server.
const fn is_server_error(code: Code) -> bool {
    matches!(
        code,
        Code::Unknown
            | Code::DeadlineExceeded
            | Code::Unimplemented
            | Code::Internal
            | Code::Unavailable
            | Code::DataLoss
    )
}
