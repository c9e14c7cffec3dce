//! Calls with one answer: how long each takes and how it ends, and its span.

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
use super::call_names::{METHODS, code_name};
use super::metrics::Metrics;
use super::otlp::{Finished, Ids, Tracer};
use crate::domain::TraceContext;

/// The one that is measured and not traced: it comes every few seconds and says nothing.
const HEALTH: &str = "grpc.health.v1.Health/Check";

/// Measures and traces the calls with one answer.
#[derive(Clone)]
pub struct CallLayer {
    metrics: Arc<Metrics>,
    tracer: Option<Tracer>,
}

impl CallLayer {
    /// Measures into these metrics, and traces with this tracer if there is one.
    #[must_use]
    pub const fn new(metrics: Arc<Metrics>, tracer: Option<Tracer>) -> Self {
        Self { metrics, tracer }
    }
}

impl<S> Layer<S> for CallLayer {
    type Service = ServedCalls<S>;

    fn layer(&self, inner: S) -> ServedCalls<S> {
        ServedCalls {
            inner,
            layer: self.clone(),
        }
    }
}

/// A service whose calls with one answer are measured and traced.
#[derive(Clone)]
pub struct ServedCalls<S> {
    inner: S,
    layer: CallLayer,
}

impl<S> Service<Request<Body>> for ServedCalls<S>
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
            .and_then(|path| METHODS.into_iter().find(|method| *method == path));
        let Some(method) = method else {
            return Box::pin(self.inner.call(request));
        };
        let mut call = Call::begin(self.layer.clone(), method, request.headers());
        let context = call.ids.as_ref().map(|ids| {
            request.extensions_mut().insert(Arc::new(ids.trace_context()));
            Context::new().with_remote_span_context(ids.span_context())
        });
        let answer = self.inner.call(request);
        Box::pin(async move {
            let response = match context {
                Some(context) => answer.with_context(context).await,
                None => answer.await,
            }?;
            call.heard(response.headers());
            Ok(response.map(|body| Body::new(Measured { body, call })))
        })
    }
}

/// One call, from its first byte to its last. Told when it is dropped.
struct Call {
    layer: CallLayer,
    method: &'static str,
    began: Instant,
    began_at: SystemTime,
    ids: Option<Ids>,
    code: Option<Code>,
}

impl Call {
    fn begin(layer: CallLayer, method: &'static str, headers: &HeaderMap) -> Self {
        let tracer = layer.tracer.as_ref().filter(|_| method != HEALTH);
        let field = |name| {
            headers
                .get(name)
                .and_then(|value| value.to_str().ok())
                .unwrap_or_default()
        };
        let ids = tracer.and_then(|tracer| {
            let parent = TraceContext::parse(field("traceparent"), field("tracestate"));
            tracer.begin(parent.as_ref(), 1)
        });
        Self {
            layer,
            method,
            began: Instant::now(),
            began_at: SystemTime::now(),
            ids,
            code: None,
        }
    }

    /// Takes in how the call ended, if that is said here.
    fn heard(&mut self, headers: &HeaderMap) {
        if headers.contains_key(GrpcStatus::GRPC_STATUS) {
            self.code = GrpcStatus::from_header_map(headers).map(|status| status.code());
        }
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        let took = self.began.elapsed();
        // Who goes before the answer does not hear it.
        let code = self.code.unwrap_or(Code::Cancelled);
        self.layer.metrics.call_served(self.method, code, took);
        if let (Some(ids), Some(tracer)) = (self.ids.take(), &self.layer.tracer) {
            let mut attributes = Vec::from(attributes::of_call(self.method));
            attributes.push(KeyValue::new("rpc.response.status_code", code_name(code)));
            let mut status = Status::Unset;
            if is_fault_of_server(code) {
                attributes.push(KeyValue::new("error.type", code_name(code)));
                status = Status::error("");
            }
            tracer.export(Finished {
                ids,
                name: self.method,
                kind: SpanKind::Server,
                begun: self.began_at,
                ended: self.began_at + took,
                attributes,
                link: None,
                status,
            });
        }
    }
}

pin_project! {
    /// The answer of a call that is measured.
    struct Measured {
        #[pin]
        body: Body,
        call: Call,
    }
}

impl HttpBody for Measured {
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
            this.call.heard(trailers);
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

/// The codes that the conventions count as a server's errors.
const fn is_fault_of_server(code: Code) -> bool {
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
