//! The admin port: liveness, readiness and metrics over HTTP. It is read-only and shows no chat data.

use std::io;
use std::net::{IpAddr, SocketAddr};
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
use tokio::sync::Semaphore;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::blocking::blocking;
use crate::rpc::client_prefix;
use crate::telemetry::Metrics;

/// Maximum number of connections; a further one takes the place of another. Only a few probes and collectors connect here, and
/// without a limit, idle clients could use up the process's file descriptors and so block the gRPC port.
pub const MAX_CONNECTIONS: usize = 32;

/// How many pages of metrics are rendered at a time. Clients that ask and leave must not be able to start more.
const MAX_RENDERS: usize = 2;

/// Maximum lifetime of a connection, including its response. Equals the default scrape timeout of Prometheus.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(10);

/// Whether the server accepts clients: true from the end of the recovery to the beginning of the shutdown.
#[derive(Debug, Clone, Default)]
pub struct Readiness(Arc<AtomicBool>);

impl Readiness {
    /// Changes the state that `/readyz` returns.
    pub fn set(&self, is_ready: bool) {
        self.0.store(is_ready, Ordering::Release);
    }

    /// Whether the server accepts clients.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

/// The HTTP server of the admin port.
pub struct AdminServer {
    listener: TcpListener,
    router: Router,
}

#[derive(Clone)]
struct AdminState {
    readiness: Readiness,
    metrics: Arc<Metrics>,
    renders: Arc<Semaphore>,
}

impl AdminServer {
    /// Listens on `address`. Port 0 binds a free port. Must be called within a Tokio runtime.
    ///
    /// # Errors
    ///
    /// If the address cannot be bound.
    pub async fn bind(address: SocketAddr, readiness: Readiness, metrics: Arc<Metrics>) -> io::Result<Self> {
        let router = Router::new()
            .route("/livez", get(async || "alive\n"))
            .route("/readyz", get(readyz))
            .route("/metrics", get(metrics_page))
            .with_state(AdminState {
                readiness,
                metrics,
                renders: Arc::new(Semaphore::new(MAX_RENDERS)),
            });
        Ok(Self {
            listener: TcpListener::bind(address).await?,
            router,
        })
    }

    /// The bound address.
    ///
    /// # Errors
    ///
    /// If the operating system does not return it.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves until `shutdown` is cancelled. Open connections are closed then.
    pub async fn serve(self, shutdown: CancellationToken) {
        shutdown.run_until_cancelled(self.serve_all()).await;
    }

    /// Never completes. Dropping the future drops the connections.
    async fn serve_all(mut self) {
        let mut connections = Connections::default();
        loop {
            // axum's `accept` retries where that of `TcpListener` returns an error.
            let (stream, peer) = Listener::accept(&mut self.listener).await;
            connections.make_space();
            connections.spawn(peer.ip(), respond(stream, self.router.clone()));
        }
    }
}

/// The open connections. Dropping them closes them.
#[derive(Default)]
struct Connections {
    tasks: JoinSet<()>,
    /// The [prefixes](client_prefix) of their clients, the oldest first.
    open: Vec<(IpAddr, AbortHandle)>,
}

impl Connections {
    fn spawn(&mut self, peer: IpAddr, connection: impl Future<Output = ()> + Send + 'static) {
        self.open
            .push((client_prefix(peer), self.tasks.spawn(connection)));
    }

    /// Closes the oldest connection of the address that has the most, if there are too many: a client that opens many and
    /// sends no requests must not keep probes from being answered.
    fn make_space(&mut self) {
        while self.tasks.try_join_next().is_some() {}
        self.open.retain(|(_, task)| !task.is_finished());
        if self.open.len() < MAX_CONNECTIONS {
            return;
        }
        let count = |address: IpAddr| self.open.iter().filter(|(peer, _)| *peer == address).count();
        let most = self.open.iter().map(|(peer, _)| count(*peer)).max();
        if let Some(oldest) = self.open.iter().position(|(peer, _)| Some(count(*peer)) == most) {
            self.open.remove(oldest).1.abort();
        }
    }
}

/// Serves one request and closes the connection, after [`CONNECTION_TIMEOUT`] at the latest: a client may send no request, or
/// not read the response. Keeping connections alive would need a timeout for each further request.
async fn respond(stream: impl AsyncRead + AsyncWrite + Unpin, router: Router) {
    let connection = http1::Builder::new()
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    // Errors affect this client alone.
    timeout(CONNECTION_TIMEOUT, connection).await.ok();
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
    // The semaphore is never closed.
    let permit = state.renders.acquire_owned().await.ok();
    // Reads files.
    match blocking(permit, move || state.metrics.render()).await {
        Ok(page) => (headers, page).into_response(),
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;
    use std::net::Ipv6Addr;

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};
    use tokio::time::Instant;

    use super::*;

    /// The response to `request`, and how long the connection lasts.
    async fn exchange(request: &str) -> (String, Duration) {
        let (mut client, server) = duplex(1024);
        let router = Router::new().route("/livez", get(async || "alive\n"));
        let begun = Instant::now();
        let (_, answer) = tokio::join!(respond(server, router), async {
            client.write_all(request.as_bytes()).await.unwrap();
            let mut answer = String::new();
            client.read_to_string(&mut answer).await.unwrap();
            answer
        });
        (answer, begun.elapsed())
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_without_a_request_is_disconnected() {
        for incomplete in ["", "GET /livez HTTP/1.1\r\nHost: "] {
            let (answer, lasted) = exchange(incomplete).await;
            assert_eq!(answer, "");
            assert!(
                (CONNECTION_TIMEOUT..CONNECTION_TIMEOUT * 2).contains(&lasted),
                "{lasted:?}"
            );
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_does_not_read_is_disconnected() {
        let (mut client, server) = duplex(64);
        let router = Router::new().route("/metrics", get(async || "long\n".repeat(1_000)));
        client.write_all(b"GET /metrics HTTP/1.1\r\n\r\n").await.unwrap();
        let begun = Instant::now();
        respond(server, router).await;
        assert!(begun.elapsed() >= CONNECTION_TIMEOUT);
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_closes_after_its_response() {
        let (answer, lasted) = exchange("GET /livez HTTP/1.1\r\nHost: admin\r\n\r\n").await;
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
        assert!(answer.to_lowercase().contains("connection: close"), "{answer}");
        assert!(answer.ends_with("alive\n"), "{answer}");
        assert_eq!(lasted, Duration::ZERO);
    }

    #[tokio::test]
    async fn one_network_does_not_take_the_connections_of_others() {
        let mut connections = Connections::default();
        let own: IpAddr = [192, 0, 2, 1].into();
        connections.spawn(own, pending());
        for host in 1..100 {
            connections.make_space();
            let address = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, host);
            connections.spawn(address.into(), pending());
        }
        assert_eq!(connections.open.len(), MAX_CONNECTIONS);
        assert_eq!(connections.open[0].0, own);
    }
}
