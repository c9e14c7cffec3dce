//! Limits on unary calls: the size of requests, the memory of requests and responses, and the number of queries at a time.

use std::convert::Infallible;
use std::future::{poll_fn, ready};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body::{Body as HttpBody, Frame};
use tokio::time::{Instant, Sleep};
use tokio_util::sync::{CancellationToken, DropGuard, WaitForCancellationFutureOwned};
use tonic::Status;
use tonic::body::Body;
use tower::Service;

use super::byte_budget::Reservation;
use super::connection_budgets::{
    ConnectionBudgets, QueryPermits, ReadingRequest, ReflectionPermits, run_query,
};
use super::error::RpcError;
use super::framing::{HEADER_LEN, PARTIAL_TIMEOUT, payload_len, too_slow};
use super::observer::Observer;
use super::time_limit::{LimitedBody, deadline, respond_by};
use crate::reason::Reason;

/// Maximum size of a request that contains no text, in bytes: names, tokens and positions.
pub(super) const SMALL_REQUEST: usize = 4 * 1024;

/// What is reserved for the response of a command before it is carried out, because afterwards it is too late to
/// reject the call. A larger response may exceed the budget.
const COMMAND_RESPONSE: usize = 1024;

/// The paths of server reflection, whose requests are streams.
const REFLECTION: &str = "/grpc.reflection.";

/// How long such a stream may last. There are few, and each must become free for others.
const MAX_REFLECTION: Duration = Duration::from_secs(60);

/// The limits of one method.
#[derive(Clone, Copy)]
struct MethodLimits {
    request: usize,
    kind: MethodKind,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum MethodKind {
    /// Reads a part of the store or of a room into memory.
    Query,
    /// Has an effect.
    Command,
    /// The response is a stream of small messages, or a single one.
    Other,
}

/// Passes requests to `S` within the limits.
#[derive(Clone)]
pub struct UnaryLimits<S> {
    inner: S,
    /// Maximum size of a `SendMessage` request, in bytes.
    post_limit: usize,
    draining: CancellationToken,
    observer: Arc<dyn Observer>,
}

impl<S> UnaryLimits<S> {
    /// Wraps `inner`. Requests with a text may have `post_limit` bytes. When `draining` is cancelled, streams of requests end.
    pub fn new(
        inner: S,
        post_limit: usize,
        draining: CancellationToken,
        observer: Arc<dyn Observer>,
    ) -> Self {
        Self {
            inner,
            post_limit,
            draining,
            observer,
        }
    }

    fn method(&self, path: &str) -> MethodLimits {
        let (request, kind) = match path.strip_prefix("/itu.chitchat.ChatService/") {
            Some("SendMessage") => (self.post_limit, MethodKind::Command),
            Some("Moderate") => (SMALL_REQUEST, MethodKind::Command),
            Some("GetHistory" | "ListRooms" | "ListParticipants" | "ListBans") => {
                (SMALL_REQUEST, MethodKind::Query)
            }
            _ => (SMALL_REQUEST, MethodKind::Other),
        };
        MethodLimits { request, kind }
    }
}

impl<S> Service<Request<Body>> for UnaryLimits<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let method = self.method(request.uri().path());
        let is_reflection = request.uri().path().starts_with(REFLECTION);
        let cancel = is_reflection.then(|| self.draining.child_token());
        let mut deadline = deadline(request.headers());
        let budgets = ConnectionBudgets::of(request.extensions());
        let observer = Arc::clone(&self.observer);
        let permits = match is_reflection.then(|| budgets.start_reflection()).transpose() {
            Ok(permits) => permits,
            Err(error) => {
                error.report(&*observer);
                return Box::pin(ready(Ok(error.to_status().into_http())));
            }
        };
        if is_reflection {
            let latest = Instant::now() + MAX_REFLECTION;
            deadline = Some(deadline.map_or(latest, |deadline| deadline.min(latest)));
        }
        let request = request.map(|body| {
            Body::new(RequestBody {
                limit: method.request,
                cancelled: cancel.clone().map(|cancel| Box::pin(cancel.cancelled_owned())),
                ..RequestBody::new(body, Arc::clone(&budgets), Arc::clone(&observer))
            })
        });
        let response = self.inner.call(request);
        Box::pin(async move {
            let responding = async {
                match method.kind {
                    MethodKind::Other => {
                        let Ok(response) = response.await;
                        Ok(match deadline {
                            Some(deadline) => {
                                response.map(|body| Body::new(LimitedBody::new(body, deadline)))
                            }
                            None => response,
                        })
                    }
                    MethodKind::Command => respond_to_command(response, &budgets).await,
                    MethodKind::Query => run_query(respond_to_query(response, Arc::clone(&budgets))).await?,
                }
            };
            let stream = cancel.map(CancellationToken::drop_guard).zip(permits);
            Ok(match respond_by(deadline, responding).await {
                Ok(response) => complete_error(response, &*observer).map(|rest| match stream {
                    Some(stream) => Body::new(ResponseBody {
                        first: None,
                        rest,
                        _stream: Some(stream),
                    }),
                    None => rest,
                }),
                Err(error) => {
                    error.report(&*observer);
                    error.to_status().into_http()
                }
            })
        })
    }
}

type CallResult = Result<Response<Body>, Infallible>;

async fn respond_to_command(
    response: impl Future<Output = CallResult>,
    budgets: &ConnectionBudgets,
) -> Result<Response<Body>, RpcError> {
    let reservation = budgets.responses.try_reserve(COMMAND_RESPONSE);
    let mut reservation = reservation.ok_or_else(budget_exceeded)?;
    let Ok(mut response) = response.await;
    if let Some(first) = first_frame(&mut response).await {
        reservation.resize(data_len(&first));
        response = with_first_frame(response, first, reservation);
    }
    Ok(response)
}

async fn respond_to_query(
    response: impl Future<Output = CallResult>,
    budgets: Arc<ConnectionBudgets>,
) -> Result<Response<Body>, RpcError> {
    // Does not begin what cannot be answered.
    let reservation = budgets.responses.try_reserve(1);
    let mut reservation = reservation.ok_or_else(budget_exceeded)?;
    let Ok(mut response) = response.await;
    // Dropped when the memory of the response is reserved.
    let _permits = response.extensions_mut().remove::<QueryPermits>();
    if let Some(first) = first_frame(&mut response).await {
        if !reservation.try_resize(data_len(&first)) {
            return Err(budget_exceeded());
        }
        response = with_first_frame(response, first, reservation);
    }
    Ok(response)
}

fn budget_exceeded() -> RpcError {
    RpcError::new(
        Reason::ResponseBudgetExceeded,
        "too many responses wait to be read; read them before the next call",
    )
}

/// What the body of a response yields.
type ResponseFrame = Result<Frame<Bytes>, Status>;

/// Takes the first frame from `response`, if it has one: the message, or the error if that cannot be encoded. tonic would encode the message
/// only when the client accepts data, and until then hold it in a form that takes more memory.
async fn first_frame(response: &mut Response<Body>) -> Option<ResponseFrame> {
    let body = response.body_mut();
    if body.is_end_stream() {
        return None;
    }
    poll_fn(|cx| Pin::new(&mut *body).poll_frame(cx)).await
}

/// The length of the message, in bytes.
fn data_len(frame: &ResponseFrame) -> usize {
    let data = frame.as_ref().ok().and_then(Frame::data_ref);
    data.map_or(0, Bytes::len)
}

/// Puts the first frame back.
fn with_first_frame(
    response: Response<Body>,
    first: ResponseFrame,
    reservation: Reservation,
) -> Response<Body> {
    response.map(|rest| {
        Body::new(ResponseBody {
            first: Some(first.map(|frame| frame.map_data(|data| reservation.attach_to(data)))),
            rest,
            _stream: None,
        })
    })
}

/// Adds the details that every error has to one that tonic made.
fn complete_error(response: Response<Body>, observer: &dyn Observer) -> Response<Body> {
    let Some(error) = error_of_decoder(response.headers()) else {
        return response;
    };
    error.report(observer);
    error.to_status().into_http()
}

/// The error, if the response is one of tonic's decoder: all others have details, except for an unknown method or service.
fn error_of_decoder(headers: &HeaderMap) -> Option<RpcError> {
    let status = Status::from_header_map(headers).filter(|status| status.details().is_empty())?;
    (status.code() == tonic::Code::Internal)
        .then(|| RpcError::new(Reason::Undecodable, status.message().to_owned()))
}

/// A response.
struct ResponseBody {
    /// Its first frame, if that was taken from the rest.
    first: Option<ResponseFrame>,
    rest: Body,
    /// Of a stream of requests: ends it when the response is dropped.
    _stream: Option<(DropGuard, ReflectionPermits)>,
}

impl HttpBody for ResponseBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        match self.first.take() {
            Some(first) => Poll::Ready(Some(first)),
            None => Pin::new(&mut self.rest).poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.first.is_none() && self.rest.is_end_stream()
    }
}

/// A request body that reserves memory for messages that have arrived in part, before tonic allocates it.
struct RequestBody {
    body: Body,
    limit: usize,
    /// If the client may send any number of messages and keep the stream open: until the server drains, or the response is dropped.
    cancelled: Option<Pin<Box<WaitForCancellationFutureOwned>>>,
    budgets: Arc<ConnectionBudgets>,
    request: ReadingRequest,
    observer: Arc<dyn Observer>,
    header: Vec<u8>,
    /// How much of the current message is missing. Zero between messages.
    missing: usize,
    reservation: Option<Reservation>,
    /// The time limit of the current message of a stream, or of a whole request.
    timeout: Option<Pin<Box<Sleep>>>,
}

impl RequestBody {
    fn new(body: Body, budgets: Arc<ConnectionBudgets>, observer: Arc<dyn Observer>) -> Self {
        Self {
            body,
            limit: SMALL_REQUEST,
            cancelled: None,
            request: budgets.begin_reading(),
            budgets,
            observer,
            header: Vec::new(),
            missing: 0,
            reservation: None,
            timeout: Some(Box::pin(tokio::time::sleep(PARTIAL_TIMEOUT))),
        }
    }

    fn receive(&mut self, mut data: &[u8]) -> Result<(), RpcError> {
        self.request.read(data);
        while !data.is_empty() {
            if self.missing == 0 {
                let (header, rest) = data.split_at(data.len().min(HEADER_LEN - self.header.len()));
                self.header.extend_from_slice(header);
                data = rest;
                if let Some(header) = self.header.first_chunk() {
                    self.missing = payload_len(header, self.limit)?;
                    self.reservation = self.budgets.reserve_received(HEADER_LEN + self.missing)?;
                    self.header.clear();
                    if self.missing == 0 {
                        self.complete();
                    }
                }
            } else {
                let len = data.len().min(self.missing);
                self.missing -= len;
                data = &data[len..];
                if self.missing == 0 {
                    self.complete();
                }
            }
        }
        let is_partial = self.missing > 0 || !self.header.is_empty();
        if is_partial && self.timeout.is_none() {
            self.timeout = Some(Box::pin(tokio::time::sleep(PARTIAL_TIMEOUT)));
        }
        Ok(())
    }

    fn complete(&mut self) {
        self.reservation = None;
        if self.cancelled.is_some() {
            self.timeout = None;
        }
    }

    fn fail(&self, error: &RpcError) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        error.report(&*self.observer);
        Poll::Ready(Some(Err(error.to_status())))
    }
}

impl HttpBody for RequestBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = &mut *self;
        let Poll::Ready(frame) = Pin::new(&mut this.body).poll_frame(cx) else {
            this.request.wait();
            if let Some(cancelled) = &mut this.cancelled
                && cancelled.as_mut().poll(cx).is_ready()
            {
                return Poll::Ready(None);
            }
            if let Some(timeout) = &mut this.timeout {
                std::task::ready!(timeout.as_mut().poll(cx));
                this.timeout = None;
                return this.fail(&too_slow());
            }
            return Poll::Pending;
        };
        if let Some(Ok(frame)) = &frame
            && let Some(data) = frame.data_ref()
            && let Err(error) = this.receive(data)
        {
            return this.fail(&error);
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use futures_util::FutureExt as _;
    use tokio::sync::mpsc;
    use tokio::time::timeout;
    use tower::service_fn;

    use super::super::connection_budgets::{BudgetLimits, ServerBudgets};
    use super::*;
    use crate::telemetry::{Metrics, OtlpPipeline, TelemetryObserver};

    /// A body that yields what the function returns, again and again.
    struct Repeated(fn() -> Poll<Option<ResponseFrame>>);

    impl HttpBody for Repeated {
        type Data = Bytes;
        type Error = Status;

        fn poll_frame(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<ResponseFrame>> {
            self.0()
        }
    }

    fn limits<S>(inner: S) -> UnaryLimits<S> {
        let metrics = Arc::new(Metrics::new(1, OtlpPipeline::default()));
        let observer = Arc::new(TelemetryObserver::new(metrics, None));
        UnaryLimits::new(inner, 0, CancellationToken::new(), observer)
    }

    #[tokio::test]
    async fn an_error_of_the_encoder_reaches_the_client() {
        let error: fn() -> _ = || {
            let mut trailers = HeaderMap::new();
            let added = Status::out_of_range("too large").add_header(&mut trailers);
            Poll::Ready(Some(added.map(|()| Frame::trailers(trailers))))
        };
        let mut limits = limits(service_fn(move |_| {
            ready(Ok(Response::new(Body::new(Repeated(error)))))
        }));
        for method in ["SendMessage", "GetHistory"] {
            let request = Request::builder().uri(format!("/itu.chitchat.ChatService/{method}"));
            let response = limits.call(request.body(Body::empty()).unwrap()).await.unwrap();
            let mut body = response.into_body();
            let frame = poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await;
            let trailers = frame.unwrap().unwrap().into_trailers().unwrap();
            assert_eq!(trailers["grpc-status"], "11", "{method}");
        }
    }

    #[tokio::test]
    async fn a_query_holds_permits_and_memory_only_while_it_runs_although_its_connection_waits_for_a_turn() {
        const PAGE: &[u8] = &[0; 1000];
        let server = ServerBudgets::new(
            BudgetLimits {
                queries: 1,
                responses: 4 * PAGE.len(),
                ..BudgetLimits::default()
            },
            10,
        );
        let reading = service_fn(|request: Request<Body>| async move {
            let permits = ConnectionBudgets::of(request.extensions()).start_query().await;
            let page: fn() -> _ = || Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(PAGE)))));
            let mut response = Response::new(Body::new(Repeated(page)));
            response.extensions_mut().insert(permits);
            Ok(response)
        });
        let mut limits = limits(reading);
        let mut call = || {
            let connection = server.connection(Ipv4Addr::LOCALHOST.into());
            let request = Request::builder().uri("/itu.chitchat.ChatService/GetHistory");
            let request = request.extension(connection).body(Body::empty());
            limits.call(request.unwrap())
        };
        // None of these connections gets another turn.
        let mut calls = [call(), call(), call()];
        for call in &mut calls {
            assert!(call.now_or_never().is_none());
        }
        let other = server.connection([127, 0, 0, 2].into());
        let running = async {
            while other.responses.try_reserve(PAGE.len() + 1).is_some() {
                tokio::task::yield_now().await;
            }
        };
        let ran = timeout(Duration::from_secs(10), running).await;
        ran.expect("the queries run");
        assert!(other.start_query().now_or_never().is_some());
        let refused = call().await.unwrap();
        assert_eq!(refused.headers()["grpc-status"], "8");
        drop(calls);
        assert!(other.responses.try_reserve(3 * PAGE.len()).is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_reads_the_requests_of_a_reflection_stream_ends_with_its_response() {
        let (requests, mut received) = mpsc::channel(1);
        let reflection = service_fn(move |request: Request<Body>| {
            requests.try_send(request.into_body()).unwrap();
            ready(Ok(Response::new(Body::new(Repeated(|| Poll::Pending)))))
        });
        let mut limits = limits(reflection);
        let request = Request::builder()
            .uri("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo")
            .body(Body::new(Repeated(|| Poll::Pending)))
            .unwrap();
        let response = limits.call(request).await.unwrap();
        let mut requests = received.recv().await.unwrap();
        assert!(poll_fn(|cx| Poll::Ready(Pin::new(&mut requests).poll_frame(cx).is_pending())).await);
        drop(response);
        assert!(
            poll_fn(|cx| Pin::new(&mut requests).poll_frame(cx))
                .await
                .is_none()
        );
    }
}
