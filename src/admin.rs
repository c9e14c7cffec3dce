//! The admin port: is it alive, is it ready, what do its metrics say. It shows no chat data and changes nothing.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use axum::response::IntoResponse;
use axum::routing::get;
use axum::serve::Listener;
use hyper::server::conn::http1;
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::telemetry::Metrics;

/// How many connections there may be at a time. Who asks here are a few probes and collectors; without a limit, clients
/// that say nothing would take every descriptor of the process, and with them the chat port.
pub const MAX_CONNECTIONS: usize = 32;

/// How long a connection may last, from being accepted to having taken its answer. That is Prometheus's own patience.
const CONNECTION_TIME: Duration = Duration::from_secs(10);

/// Whether the server takes clients: set when it can, unset when it drains.
#[derive(Debug, Clone, Default)]
pub struct Readiness(Arc<AtomicBool>);

impl Readiness {
    /// Says so.
    pub fn set(&self, is_ready: bool) {
        self.0.store(is_ready, Ordering::Release);
    }

    /// Whether it is.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

/// The admin port.
pub struct AdminServer {
    listener: TcpListener,
    router: Router,
}

#[derive(Clone)]
struct AdminState {
    readiness: Readiness,
    metrics: Arc<Metrics>,
}

impl AdminServer {
    /// Listens on `address`; its port may be 0 for a free one. Must be called within a Tokio runtime.
    ///
    /// # Errors
    ///
    /// When the address cannot be bound.
    pub async fn bind(address: SocketAddr, readiness: Readiness, metrics: Arc<Metrics>) -> io::Result<Self> {
        let router = Router::new()
            .route("/livez", get(async || "alive\n"))
            .route("/readyz", get(readyz))
            .route("/metrics", get(metrics_page))
            .with_state(AdminState { readiness, metrics });
        Ok(Self {
            listener: TcpListener::bind(address).await?,
            router,
        })
    }

    /// The address that is bound.
    ///
    /// # Errors
    ///
    /// When the system does not say.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves until `end` is cancelled. Whoever is still connected then is cut off.
    pub async fn serve(self, end: CancellationToken) {
        end.run_until_cancelled(self.serve_all()).await;
    }

    /// Never ends. When it is dropped, the connections are too.
    async fn serve_all(mut self) {
        let mut connections = JoinSet::new();
        loop {
            // The listener's own `accept` would fail where this one tries again.
            let (stream, _) = Listener::accept(&mut self.listener).await;
            while connections.try_join_next().is_some() {}
            if connections.len() < MAX_CONNECTIONS {
                connections.spawn(answer(stream, self.router.clone()));
            }
        }
    }
}

/// Serves one request and closes the connection, also that of a client that does not ask, or does not take its answer.
/// A connection that is kept for further requests would need a time for each of these.
async fn answer(stream: impl AsyncRead + AsyncWrite + Unpin, router: Router) {
    let connection = http1::Builder::new()
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    // However it ended, nobody but the client need know.
    timeout(CONNECTION_TIME, connection).await.ok();
}

async fn readyz(State(state): State<AdminState>) -> impl IntoResponse {
    if state.readiness.is_ready() {
        (StatusCode::OK, "ready\n")
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "not ready\n")
    }
}

async fn metrics_page(State(state): State<AdminState>) -> impl IntoResponse {
    let headers = [
        (CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8"),
        (CACHE_CONTROL, "no-store"),
    ];
    (headers, state.metrics.render())
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};
    use tokio::time::Instant;

    use super::*;

    /// What a client hears that sends `request` and waits, and for how long it hears it.
    async fn hear(request: &str) -> (String, Duration) {
        let (mut client, server) = duplex(1024);
        let router = Router::new().route("/livez", get(async || "alive\n"));
        let begun = Instant::now();
        let (_, answer) = tokio::join!(answer(server, router), async {
            client.write_all(request.as_bytes()).await.unwrap();
            let mut answer = String::new();
            client.read_to_string(&mut answer).await.unwrap();
            answer
        });
        (answer, begun.elapsed())
    }

    #[tokio::test(start_paused = true)]
    async fn who_does_not_ask_is_not_waited_for() {
        for silent in ["", "GET /livez HTTP/1.1\r\nHost: "] {
            let (answer, lasted) = hear(silent).await;
            assert_eq!(answer, "");
            assert!(
                (CONNECTION_TIME..CONNECTION_TIME * 2).contains(&lasted),
                "{lasted:?}"
            );
        }
    }

    #[tokio::test(start_paused = true)]
    async fn who_does_not_take_the_answer_is_not_waited_for() {
        let (mut client, server) = duplex(64);
        let router = Router::new().route("/metrics", get(async || "long\n".repeat(1_000)));
        client.write_all(b"GET /metrics HTTP/1.1\r\n\r\n").await.unwrap();
        let begun = Instant::now();
        answer(server, router).await;
        assert!(begun.elapsed() >= CONNECTION_TIME);
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_ends_with_its_answer() {
        let (answer, lasted) = hear("GET /livez HTTP/1.1\r\nHost: admin\r\n\r\n").await;
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
        assert!(answer.to_lowercase().contains("connection: close"), "{answer}");
        assert!(answer.ends_with("alive\n"), "{answer}");
        assert_eq!(lasted, Duration::ZERO);
    }
}
