//! Serves one HTTP/2 connection, with every limit set.

use std::convert::Infallible;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use http::header::{AUTHORIZATION, CONTENT_TYPE, TE};
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, Uri};
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::sync::CancellationToken;
use tonic::body::Body;
use tower::{Service, ServiceExt};

use super::connection_budgets::{BudgetLimits, ConnectionBudgets, Peer};
use super::connection_task::{self, SpawnedStreams};
use super::corked_io::CorkedIo;
use super::observer::{CutReason, Observer, SetupError};
use super::prefixed_io::PrefixedIo;
use super::rates::RateLimits;
use super::stall_detector::MonitoredBody;
use super::unread::STREAM_WINDOW;
use crate::auth::{CachedToken, MAX_TOKEN_BYTES};

/// Flow-control window of a connection, in bytes. The budget for what is unread bounds what it holds, so this does not need to. h2 charges
/// each unread DATA frame at least 256 bytes and closes the connection when the charge exceeds half this window: it tolerates two million of
/// them, more than fit into the windows of a thousand streams of short messages.
const CONNECTION_WINDOW: u32 = 1 << 30;

/// How many bytes h2 buffers per stream for a client that does not read.
const SEND_BUFFER: usize = 64 * 1024;

/// Maximum size of the request headers of a stream, in bytes. Leaves room for an authorization token.
const MAX_HEADER_LIST_SIZE: u32 = 16 * 1024;

/// The limits and timeouts of the gRPC port's connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TransportLimits {
    /// Maximum number of connections.
    pub max_connections: usize,
    /// Maximum number of connections from one address: of IPv6, from a /64 network.
    pub max_connections_per_address: usize,
    /// Maximum number of open streams per connection.
    pub max_streams_per_connection: u32,
    /// The rates that clients may not exceed.
    pub rates: RateLimits,
    /// The memory that the messages and responses in transit may take.
    pub budgets: BudgetLimits,
    /// Time limit for the TLS handshake, and then for the HTTP/2 preface.
    pub handshake_timeout: Duration,
    /// How long a connection may have no stream before it is closed.
    pub idle_timeout: Duration,
    /// How long the server may receive nothing from a connection before it sends a PING.
    pub keepalive_interval: Duration,
    /// How long the server waits for the PING to be acknowledged before it closes the connection.
    pub keepalive_timeout: Duration,
    /// How long a stream may have data that its client does not accept. Then the stream is cancelled, at most a third of
    /// this time late.
    pub stall_timeout: Duration,
    /// The age at which a stream is ended, give or take a tenth, so that its client connects again. `None` if streams may last for
    /// ever.
    pub max_stream_age: Option<Duration>,
}

impl Default for TransportLimits {
    fn default() -> Self {
        Self {
            max_connections: 7_500,
            max_connections_per_address: 5_625,
            max_streams_per_connection: 1_000,
            rates: RateLimits::default(),
            budgets: BudgetLimits::default(),
            handshake_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(60),
            keepalive_interval: Duration::from_secs(20),
            keepalive_timeout: Duration::from_secs(20),
            stall_timeout: Duration::from_secs(300),
            max_stream_age: None,
        }
    }
}

/// The headers of a request that anybody reads.
const KNOWN_HEADERS: [HeaderName; 8] = [
    AUTHORIZATION,
    CONTENT_TYPE,
    TE,
    HeaderName::from_static("grpc-accept-encoding"),
    HeaderName::from_static("grpc-encoding"),
    HeaderName::from_static("grpc-timeout"),
    HeaderName::from_static("traceparent"),
    HeaderName::from_static("tracestate"),
];

/// How much of a header is kept, in bytes, unless it is a token: as much as a `tracestate` may have.
const MAX_HEADER_LEN: usize = 512;

/// How much of a token is kept: enough to see that it is too long.
const MAX_AUTHORIZATION_LEN: usize = MAX_TOKEN_BYTES + 16;

/// How much is kept of a header that is repeated.
const MAX_REPEATED_LEN: usize = 16;

/// Maximum length of a path that is kept, in bytes: longer than that of any method.
const MAX_PATH_LEN: usize = 128;

/// Drops the other headers, and all of the URI but the path. Hundreds of short headers fit into [`MAX_HEADER_LIST_SIZE`], and take 84 KB
/// as long as the request waits for its turn or for its body. Two values of each header are kept, so that one that must not be repeated is
/// noticed.
fn keep_known_headers<B>(request: &mut Request<B>) {
    let mut kept = HeaderMap::with_capacity(KNOWN_HEADERS.len());
    for name in KNOWN_HEADERS {
        let max_len = if name == AUTHORIZATION {
            MAX_AUTHORIZATION_LEN
        } else {
            MAX_HEADER_LEN
        };
        let values = request.headers().get_all(&name).iter();
        for (value, max_len) in values.zip([max_len, MAX_REPEATED_LEN]) {
            let bytes = &value.as_bytes()[..value.len().min(max_len)];
            if let Ok(value) = HeaderValue::from_bytes(bytes) {
                kept.append(&name, value);
            }
        }
    }
    *request.headers_mut() = kept;
    // A copy: what h2 has is a part of the buffer that it was read into. A longer path, which no method has, is replaced.
    let path = Some(request.uri().path()).filter(|path| path.len() <= MAX_PATH_LEN);
    let path = path.and_then(|path| Uri::try_from(path).ok());
    *request.uri_mut() = path.unwrap_or_default();
}

/// How a connection ended.
#[derive(Debug)]
pub(super) enum ConnectionEnd {
    /// The client or the network closed it, or the server has drained.
    Closed,
    /// It did not become an HTTP/2 connection.
    SetupFailed(SetupError),
    /// The server closed it.
    Cut(CutReason),
}

/// Serves `io` until the client closes the connection or, once `draining` is cancelled, until its streams have ended.
pub(super) async fn serve<T, S>(
    io: T,
    peer: SocketAddr,
    service: S,
    limits: TransportLimits,
    budgets: Arc<ConnectionBudgets>,
    observer: Arc<dyn Observer>,
    draining: CancellationToken,
) -> ConnectionEnd
where
    T: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send,
{
    // A connection that has not sent the preface has no streams to wait for.
    let accepted = PrefixedIo::accept(io, limits.handshake_timeout, Arc::clone(&budgets));
    let Some(io) = draining.run_until_cancelled(accepted).await else {
        return ConnectionEnd::Closed;
    };
    let Ok(io) = io else {
        return ConnectionEnd::SetupFailed(SetupError::NotHttp2);
    };
    let io = CorkedIo::new(io);
    let stream_budgets = Arc::clone(&budgets);
    let cached_token = Arc::<CachedToken>::default();
    // hyper calls it at once, and only polls the future later.
    let service = service_fn(move |mut request: Request<hyper::body::Incoming>| {
        let permit = stream_budgets.open_stream();
        keep_known_headers(&mut request);
        request.extensions_mut().insert(Arc::clone(&stream_budgets));
        request.extensions_mut().insert(Peer(peer));
        request.extensions_mut().insert(Arc::clone(&cached_token));
        let (service, observer) = (service.clone(), Arc::clone(&observer));
        async move {
            let (response, permit) = match permit {
                Ok(permit) => (service.oneshot(request.map(Body::new)).await?, Some(permit)),
                Err(error) => {
                    error.report(&*observer);
                    (error.to_status().into_http(), None)
                }
            };
            Ok::<_, Infallible>(response.map(|body| MonitoredBody::new(body, permit)))
        }
    });
    let spawned = SpawnedStreams::default();
    let mut connection = pin!(
        http2::Builder::new(spawned.executor())
            .timer(TokioTimer::new())
            .initial_connection_window_size(CONNECTION_WINDOW)
            .initial_stream_window_size(STREAM_WINDOW)
            .max_send_buf_size(SEND_BUFFER)
            .max_header_list_size(MAX_HEADER_LIST_SIZE)
            .max_concurrent_streams(limits.max_streams_per_connection)
            // h2 closes a connection with more streams that its client has reset before they were accepted (CVE-2023-44487). A gateway may
            // cancel all of its calls at once.
            .max_pending_accept_reset_streams(limits.max_streams_per_connection as usize)
            // By default h2 closes a connection after 1,024 frames in its whole life that came too late, for streams that had
            // ended, together with its innocent streams. `FrameMeter` limits their rate instead.
            .max_local_error_reset_streams(None)
            .keep_alive_interval(limits.keepalive_interval)
            .keep_alive_timeout(limits.keepalive_timeout)
            .serve_connection(TokioIo::new(io.clone()), service)
    );
    let close = draining.child_token();
    let mut closed = pin!(close.cancelled());
    let mut is_closing = false;
    let connection = poll_fn(|cx| {
        if !is_closing && closed.as_mut().poll(cx).is_ready() {
            is_closing = true;
            connection.as_mut().graceful_shutdown();
        }
        connection.as_mut().poll(cx)
    });
    // Errors of the connection need no report: each stream reports its own end.
    let cut = connection_task::run(
        connection,
        spawned,
        io.clone(),
        limits.stall_timeout,
        limits.idle_timeout,
        &close,
        &budgets,
    )
    .await;
    let is_flood = io.with(PrefixedIo::is_flood);
    let Some(reason) = is_flood.then_some(CutReason::Flood).or(cut) else {
        return ConnectionEnd::Closed;
    };
    if reason != CutReason::Idle {
        budgets.count_cut();
    }
    ConnectionEnd::Cut(reason)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_that_nobody_reads_are_dropped() {
        let mut request = Request::new(());
        let headers = request.headers_mut();
        for n in 0..480 {
            let name: HeaderName = format!("h{n}").parse().unwrap();
            headers.insert(name, HeaderValue::from_static(""));
            headers.append(AUTHORIZATION, HeaderValue::from_static("Bearer x"));
        }
        headers.insert("grpc-timeout", HeaderValue::from_static("1S"));
        *request.uri_mut() = Uri::from_static("http://localhost/itu.chitchat.ChatService/Chat?x=1");
        keep_known_headers(&mut request);
        let headers = request.headers();
        assert_eq!(headers.len(), 3);
        assert_eq!(headers.get_all(AUTHORIZATION).iter().count(), 2);
        assert!(headers.contains_key("grpc-timeout") && headers.capacity() < 32);
        assert_eq!(*request.uri(), "/itu.chitchat.ChatService/Chat");
    }

    #[test]
    fn long_headers_and_paths_are_cut() {
        let mut request = Request::new(());
        let long = HeaderValue::from_str(&"x".repeat(15_000)).unwrap();
        request.headers_mut().insert("traceparent", long.clone());
        for _ in 0..2 {
            request.headers_mut().append(AUTHORIZATION, long.clone());
        }
        *request.uri_mut() = Uri::try_from(format!("/{}", "x".repeat(15_000))).unwrap();
        keep_known_headers(&mut request);
        let lengths: Vec<_> = request.headers().values().map(HeaderValue::len).collect();
        assert_eq!(lengths, [MAX_AUTHORIZATION_LEN, MAX_REPEATED_LEN, MAX_HEADER_LEN]);
        assert_eq!(*request.uri(), "/");
    }
}
