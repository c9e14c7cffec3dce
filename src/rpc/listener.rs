//! Accepts connections and serves each in a task of its own.

use std::convert::Infallible;
use std::future::ready;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use http::{Request, Response};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::body::Body;
use tower::{Service, service_fn};

use super::connection::{self, ConnectionEnd, TransportLimits};
use super::connection_budgets::{ConnectionBudgets, ServerBudgets};
use super::error::RpcError;
use super::observer::{ConnectionLimit, Observer, SetupError, ThrottleReporter};
use super::proxy_protocol::{Network, read_header};
use super::rates::AddressRate;
use super::server_tls::ServerTls;
use super::transport::{Accepted, Handshakes, Transport};
use crate::rate_limiter::Rate;
use crate::reason::Reason;
use crate::run_queue::requeue;

/// Length of the accept queue; Linux caps it at `net.core.somaxconn`. When the queue is full, Linux ignores new connections,
/// and the client's kernel retries after a second.
const BACKLOG: u32 = 4_096;

/// How many connections are accepted before other tasks run. Thousands may begin at once.
const ACCEPTS: u32 = 8;

/// How many connections beyond the limit are served an error at the same time. Further ones are closed without one.
const MAX_REJECTING: usize = 16;

/// How long a connection is served an error, beyond the limit or without the TLS that the port requires.
const REJECT_TIMEOUT: Duration = Duration::from_secs(2);

/// How long to wait after `accept` failed for lack of file descriptors or memory, rather than spin.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// How many connections of proxies may not have sent the address of their client yet. A proxy sends it at once.
const MAX_PROXY_HEADERS: usize = 256;

/// A connection of a proxy with the address of its client, or that of the proxy and what is wrong.
type ProxiedConnection = Result<(TcpStream, SocketAddr), (SocketAddr, SetupError)>;

/// What counts a connection until it is dropped.
type Permits = [OwnedSemaphorePermit; 2];

/// A bound port and the tasks that serve its connections.
pub struct Listener {
    listener: TcpListener,
    limits: TransportLimits,
    tls: Option<Arc<ServerTls>>,
    /// The proxies whose connections begin with the address of their client.
    proxies: Vec<Network>,
    observer: Arc<dyn Observer>,
    budgets: ServerBudgets,
    connections: Arc<Semaphore>,
    rejecting: Arc<Semaphore>,
    handshakes: Arc<AddressRate>,
    tasks: TaskTracker,
}

impl Listener {
    /// Listens on `address`, with TLS if it is given. Port 0 binds a free port. Must be called within a Tokio runtime.
    ///
    /// # Errors
    ///
    /// If the address cannot be bound.
    pub fn bind(
        address: SocketAddr,
        limits: TransportLimits,
        tls: Option<Arc<ServerTls>>,
        observer: Arc<dyn Observer>,
    ) -> io::Result<Self> {
        let socket = match address {
            SocketAddr::V4(_) => TcpSocket::new_v4(),
            SocketAddr::V6(_) => TcpSocket::new_v6(),
        }?;
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        Ok(Self::new(socket.listen(BACKLOG)?, limits, tls, observer))
    }

    /// Serves on a socket that listens already. Must be called within a Tokio runtime.
    ///
    /// # Errors
    ///
    /// If the socket cannot be used.
    pub fn from_std(
        listener: std::net::TcpListener,
        limits: TransportLimits,
        tls: Option<Arc<ServerTls>>,
        observer: Arc<dyn Observer>,
    ) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        Ok(Self::new(TcpListener::from_std(listener)?, limits, tls, observer))
    }

    fn new(
        listener: TcpListener,
        limits: TransportLimits,
        tls: Option<Arc<ServerTls>>,
        observer: Arc<dyn Observer>,
    ) -> Self {
        let throttled = Arc::clone(&observer);
        let throttling = ThrottleReporter::new(move |throttle| throttled.throttled(throttle));
        Self {
            listener,
            limits,
            tls,
            proxies: Vec::new(),
            budgets: ServerBudgets::new(limits.budgets, limits.max_connections_per_address)
                .reporting_to(throttling),
            observer,
            connections: Arc::new(Semaphore::new(limits.max_connections)),
            rejecting: Arc::new(Semaphore::new(MAX_REJECTING)),
            handshakes: Arc::new(AddressRate::new(Rate::new(
                limits.rates.handshakes,
                Duration::from_secs(1),
                // When the server has restarted, all connections of a proxy begin at once.
                u32::try_from(limits.max_connections_per_address)
                    .unwrap_or(u32::MAX)
                    .max(limits.rates.handshakes),
            ))),
            tasks: TaskTracker::new(),
        }
    }

    /// Reads the addresses of clients from the connections of `proxies` (PROXY protocol, version 2).
    #[must_use]
    pub fn with_proxies(self, proxies: Vec<Network>) -> Self {
        Self { proxies, ..self }
    }

    /// The bound address.
    ///
    /// # Errors
    ///
    /// If the operating system does not return it.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves `service` on every connection until `draining` is cancelled. Then stops accepting, sends every connection a
    /// GOAWAY so that it closes once its streams have ended, and returns when all are closed. The caller bounds that wait:
    /// cancelling `abort` or dropping the future closes the remaining connections at once.
    pub async fn serve<S>(self, service: S, draining: CancellationToken, abort: CancellationToken)
    where
        S: Service<Request<Body>, Response = Response<Body>, Error = Infallible> + Clone + Send + 'static,
        S::Future: Send,
    {
        let abort = abort.child_token();
        let _guard = abort.clone().drop_guard();
        let mut headers = JoinSet::new();
        let mut accepted = 0_u32;
        while let Some((stream, peer)) = self.accept(&draining, &mut headers).await {
            // Disables Nagle's algorithm, so that short messages do not wait for acknowledgements. Failure only costs latency.
            stream.set_nodelay(true).ok();
            let budgets = self.budgets.connection(peer.ip());
            match self.admit(&budgets) {
                Ok(permits) => {
                    let service = service.clone();
                    self.spawn((stream, peer), service, budgets, permits, &draining, &abort);
                    accepted = accepted.wrapping_add(1);
                    if accepted.is_multiple_of(ACCEPTS) {
                        requeue().await;
                    }
                }
                Err(limit) => self.reject(stream, peer, limit, budgets, &draining, &abort),
            }
        }
        drop(self.listener);
        self.tasks.close();
        self.tasks.wait().await;
    }

    /// The next connection with the address of its client. `headers` are the connections of proxies from which that is read.
    async fn accept(
        &self,
        draining: &CancellationToken,
        headers: &mut JoinSet<ProxiedConnection>,
    ) -> Option<(TcpStream, SocketAddr)> {
        loop {
            let accepted = tokio::select! {
                () = draining.cancelled() => return None,
                Some(read) = headers.join_next() => match read {
                    Ok(Ok(connection)) => return Some(connection),
                    Ok(Err((peer, error))) => {
                        self.observer.connection_setup_failed(peer, &error);
                        continue;
                    }
                    Err(_) => continue,
                },
                accepted = self.listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, peer)) if self.proxies.iter().any(|proxy| proxy.contains(peer.ip())) => {
                    if headers.len() < MAX_PROXY_HEADERS {
                        headers.spawn(read_client_address(stream, peer, self.limits.handshake_timeout));
                    } else {
                        self.observer
                            .connection_rejected(peer, ConnectionLimit::Server(MAX_PROXY_HEADERS));
                    }
                }
                Ok(accepted) => return Some(accepted),
                // Errors of this connection, not of the listener.
                Err(error)
                    if matches!(
                        error.kind(),
                        io::ErrorKind::ConnectionAborted
                            | io::ErrorKind::ConnectionRefused
                            | io::ErrorKind::ConnectionReset
                    ) => {}
                Err(error) => {
                    self.observer.accept_failed(&error);
                    sleep(ACCEPT_RETRY).await;
                }
            }
        }
    }

    /// Counts a connection, unless a limit is reached.
    fn admit(&self, budgets: &ConnectionBudgets) -> Result<Permits, ConnectionLimit> {
        let TransportLimits {
            max_connections,
            max_connections_per_address,
            ..
        } = self.limits;
        let address = Arc::clone(&budgets.address.connections)
            .try_acquire_owned()
            .map_err(|_| ConnectionLimit::Address(max_connections_per_address))?;
        let connection = Arc::clone(&self.connections)
            .try_acquire_owned()
            .map_err(|_| ConnectionLimit::Server(max_connections))?;
        Ok([connection, address])
    }

    fn spawn<S>(
        &self,
        (stream, peer): (TcpStream, SocketAddr),
        service: S,
        budgets: Arc<ConnectionBudgets>,
        permits: Permits,
        draining: &CancellationToken,
        abort: &CancellationToken,
    ) where
        S: Service<Request<Body>, Response = Response<Body>, Error = Infallible> + Clone + Send + 'static,
        S::Future: Send,
    {
        let (observer, limits, tls) = (Arc::clone(&self.observer), self.limits, self.tls());
        let (draining, abort) = (draining.clone(), abort.clone());
        self.tasks.spawn(async move {
            let _counted = OpenConnection::new(&*observer);
            // Created inside the async block and not moved: otherwise it would occupy its memory twice.
            let connection = pin!(serve(
                (stream, peer),
                tls,
                service,
                limits,
                budgets,
                Arc::clone(&observer),
                draining,
            ));
            let served = abort.run_until_cancelled(connection).await;
            match served {
                Some(ConnectionEnd::SetupFailed(error)) => observer.connection_setup_failed(peer, &error),
                Some(ConnectionEnd::Cut(reason)) => observer.connection_cut(peer, reason),
                Some(ConnectionEnd::Closed) | None => {}
            }
            drop(permits);
        });
    }

    fn tls(&self) -> Option<Handshakes> {
        Some(Handshakes {
            tls: Arc::clone(self.tls.as_ref()?),
            rate: Arc::clone(&self.handshakes),
        })
    }

    /// Answers every call on a connection beyond the limit with an error, for [`REJECT_TIMEOUT`].
    fn reject(
        &self,
        stream: TcpStream,
        peer: SocketAddr,
        limit: ConnectionLimit,
        budgets: Arc<ConnectionBudgets>,
        draining: &CancellationToken,
        abort: &CancellationToken,
    ) {
        self.observer.connection_rejected(peer, limit);
        // Never waits: those who come next may be within the limits.
        let Ok(permit) = Arc::clone(&self.rejecting).try_acquire_owned() else {
            return;
        };
        let message = match limit {
            ConnectionLimit::Server(limit) => {
                format!("the server has {limit} connections, which is the limit; try again later")
            }
            ConnectionLimit::Address(limit) => {
                format!("your address has {limit} connections, which is the limit; close one of them")
            }
        };
        let connection = serve(
            (stream, peer),
            self.tls(),
            error_service(RpcError::new(Reason::TooManyConnections, message)),
            self.limits,
            budgets,
            Arc::clone(&self.observer),
            draining.clone(),
        );
        let abort = abort.clone();
        self.tasks.spawn(async move {
            // It does not matter whether the client, the timeout or the shutdown ended it.
            let _ended = abort
                .run_until_cancelled(timeout(REJECT_TIMEOUT, connection))
                .await;
            drop(permit);
        });
    }
}

/// Counts an open connection, also if its task panics.
struct OpenConnection<'a>(&'a dyn Observer);

impl<'a> OpenConnection<'a> {
    fn new(observer: &'a dyn Observer) -> Self {
        observer.connection_opened();
        Self(observer)
    }
}

impl Drop for OpenConnection<'_> {
    fn drop(&mut self) {
        self.0.connection_closed();
    }
}

/// Reads the address of its client from a proxy's connection.
async fn read_client_address(mut stream: TcpStream, proxy: SocketAddr, limit: Duration) -> ProxiedConnection {
    match timeout(limit, read_header(&mut stream)).await {
        Ok(Ok(client)) => Ok((stream, client.unwrap_or(proxy))),
        Ok(Err(error)) => Err((proxy, SetupError::ProxyHeader(error))),
        Err(_) => Err((
            proxy,
            SetupError::ProxyHeader(io::Error::from(io::ErrorKind::TimedOut).into()),
        )),
    }
}

/// Serves a connection, after the TLS handshake if there is `tls`.
async fn serve<S>(
    (stream, peer): (TcpStream, SocketAddr),
    tls: Option<Handshakes>,
    service: S,
    limits: TransportLimits,
    budgets: Arc<ConnectionBudgets>,
    observer: Arc<dyn Observer>,
    draining: CancellationToken,
) -> ConnectionEnd
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send,
{
    let delay = budgets.delay_after_cuts();
    // A connection that is not set up has no streams to wait for.
    let accepting = async {
        sleep(delay).await;
        let budgets = Arc::clone(&budgets);
        Transport::accept(stream, peer, tls.as_ref(), budgets, limits.handshake_timeout).await
    };
    // Boxed, so that it takes no memory in the task once it is completed.
    let Some(accepted) = draining.run_until_cancelled(Box::pin(accepting)).await else {
        return ConnectionEnd::Closed;
    };
    drop(tls);
    match accepted {
        Ok(Accepted::Ready(io)) => {
            connection::serve(io, peer, service, limits, budgets, observer, draining).await
        }
        Ok(Accepted::PlaintextOnTlsPort(io)) => {
            let message = "this port requires TLS; connect with https://";
            let service = error_service(RpcError::new(Reason::TlsRequired, message));
            // Boxed, because it is rare and would take memory in the task of every connection.
            let serving = Box::pin(connection::serve(
                io, peer, service, limits, budgets, observer, draining,
            ));
            timeout(REJECT_TIMEOUT, serving).await.ok();
            ConnectionEnd::SetupFailed(SetupError::PlainText)
        }
        Err(error) => ConnectionEnd::SetupFailed(error),
    }
}

/// A service that answers every call with `error`.
fn error_service(
    error: RpcError,
) -> impl Service<Request<Body>, Response = Response<Body>, Error = Infallible, Future: Send>
+ Clone
+ Send
+ 'static {
    service_fn(move |_: Request<Body>| ready(Ok(error.to_status().into_http())))
}
