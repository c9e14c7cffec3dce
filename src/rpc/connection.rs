//! One connection: HTTP/2 with every limit set.

use std::convert::Infallible;
use std::future::poll_fn;
use std::pin::pin;
use std::time::Duration;

use http::{Request, Response};
use hyper::server::conn::http2;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::sync::CancellationToken;
use tonic::body::Body;
use tower::{Service, ServiceExt};

use super::connection_task::{self, StreamExecutor};
use super::corked_io::CorkedIo;
use super::prefixed_io::{NotHttp2, PrefixedIo};
use super::stall_detector::Watched;

/// Flow-control window of a connection. HTTP/2's library counts what frames lack to 256 bytes, as long as they are unread,
/// against half of it, and ends whoever exceeds that. One stream's window holds 7,281 frames of a byte each, with their
/// heads 1.8 MB by that count, so this is enough for two such streams and for thousands of messages of usual ones.
const CONNECTION_WINDOW: u32 = 8 << 20;

/// Flow-control window of a stream: what a client may send before it is read from.
const STREAM_WINDOW: u32 = 65_535;

/// What a connection may buffer for a stream that its client does not read.
const SEND_BUFFER: usize = 64 * 1024;

/// The longest list of request headers: room for a token, and for nothing that would be worth an attack.
const HEADER_LIST: u32 = 16 * 1024;

/// Streams that a client opened and reset before they were served: beyond this it is an attack ("rapid reset").
const PENDING_RESETS: usize = 20;

/// What a connection may be and do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TransportLimits {
    /// How many connections there may be.
    pub max_connections: usize,
    /// How many streams a connection may have open.
    pub max_streams_per_connection: u32,
    /// How long a connection may take to speak HTTP/2.
    pub handshake_timeout: Duration,
    /// How long a connection may be silent before it is asked for a sign of life.
    pub keepalive_interval: Duration,
    /// How long the sign may take before the connection counts as lost.
    pub keepalive_timeout: Duration,
    /// How long a client may take nothing of what a stream has for it before the stream is ended.
    pub stall_timeout: Duration,
}

impl Default for TransportLimits {
    fn default() -> Self {
        Self {
            max_connections: 10_000,
            max_streams_per_connection: 1_000,
            handshake_timeout: Duration::from_secs(10),
            keepalive_interval: Duration::from_secs(20),
            keepalive_timeout: Duration::from_secs(20),
            stall_timeout: Duration::from_secs(300),
        }
    }
}

/// Serves `io` until the client goes, or, after `draining`, until its streams have ended.
pub(super) async fn serve<T, S>(
    io: T,
    service: S,
    limits: TransportLimits,
    draining: CancellationToken,
) -> Result<(), NotHttp2>
where
    T: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send,
{
    // Who has not said anything yet is not waited for.
    let accepted = PrefixedIo::accept(io, limits.handshake_timeout);
    let Some(io) = draining.run_until_cancelled(accepted).await else {
        return Ok(());
    };
    let io = CorkedIo::new(io?);
    let service = service
        .map_request(|request: Request<hyper::body::Incoming>| request.map(Body::new))
        .map_response(|response| response.map(Watched::new));
    let opened = StreamExecutor::default();
    let mut connection = pin!(
        http2::Builder::new(opened.clone())
            .timer(TokioTimer::new())
            .initial_connection_window_size(CONNECTION_WINDOW)
            .initial_stream_window_size(STREAM_WINDOW)
            .max_send_buf_size(SEND_BUFFER)
            .max_header_list_size(HEADER_LIST)
            .max_concurrent_streams(limits.max_streams_per_connection)
            .max_pending_accept_reset_streams(PENDING_RESETS)
            .keep_alive_interval(limits.keepalive_interval)
            .keep_alive_timeout(limits.keepalive_timeout)
            .serve_connection(TokioIo::new(io.clone()), TowerToHyperService::new(service))
    );
    let mut drained = pin!(draining.cancelled());
    let mut is_draining = false;
    let connection = poll_fn(|cx| {
        if !is_draining && drained.as_mut().poll(cx).is_ready() {
            is_draining = true;
            connection.as_mut().graceful_shutdown();
        }
        connection.as_mut().poll(cx)
    });
    // How a connection ends is the client's affair: each stream has told what became of it.
    connection_task::run(connection, opened, io, limits.stall_timeout).await;
    Ok(())
}
