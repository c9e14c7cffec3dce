//! Where connections come in.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http::{Request, Response};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::body::Body;
use tower::{Service, service_fn};

use super::connection::{self, TransportLimits};
use super::error::too_many_connections;
use super::observer::Observer;

/// How many connections may wait to be accepted, as far as the system allows: one that finds no place comes again a second
/// later.
const BACKLOG: u32 = 4_096;

/// How many connections beyond the limit are told so at a time; further ones wait to be accepted.
const TURNED_AWAY_AT_ONCE: usize = 16;

/// How long a connection beyond the limit has to hear why.
const TURNED_AWAY_IN: Duration = Duration::from_secs(2);

/// How long to wait when the system has no descriptor or memory left for a connection: asking again at once would only
/// keep it busy.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// A port on which connections come in, and the tasks that serve them.
pub struct Listener {
    listener: TcpListener,
    limits: TransportLimits,
    observer: Arc<dyn Observer>,
    connections: Arc<Semaphore>,
    turned_away: Arc<Semaphore>,
    tasks: TaskTracker,
}

impl Listener {
    /// Listens on `address`; its port may be 0 for a free one. Must be called within a Tokio runtime.
    ///
    /// # Errors
    ///
    /// When the address cannot be bound.
    pub async fn bind(
        address: SocketAddr,
        limits: TransportLimits,
        observer: Arc<dyn Observer>,
    ) -> io::Result<Self> {
        let socket = match address {
            SocketAddr::V4(_) => TcpSocket::new_v4(),
            SocketAddr::V6(_) => TcpSocket::new_v6(),
        }?;
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        let listener = socket.listen(BACKLOG)?;
        Ok(Self {
            listener,
            limits,
            observer,
            connections: Arc::new(Semaphore::new(limits.max_connections)),
            turned_away: Arc::new(Semaphore::new(TURNED_AWAY_AT_ONCE)),
            tasks: TaskTracker::new(),
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

    /// Serves `service` on every connection until `draining` is cancelled; then accepts nobody more, asks every
    /// connection to end when its streams have, and returns when all have. It is for the caller to bound that wait:
    /// when the future is dropped, or `cut` is cancelled, what is still open is cut.
    pub async fn serve<S>(self, service: S, draining: CancellationToken, cut: CancellationToken)
    where
        S: Service<Request<Body>, Response = Response<Body>, Error = Infallible> + Clone + Send + 'static,
        S::Future: Send,
    {
        // Dropped with this future.
        let cut = cut.child_token();
        let _guard = cut.clone().drop_guard();
        while let Some((stream, peer)) = self.accept(&draining).await {
            // Short messages must not wait for one another. Without it they are only later.
            stream.set_nodelay(true).ok();
            match Arc::clone(&self.connections).try_acquire_owned() {
                Ok(permit) => self.spawn(stream, peer, service.clone(), permit, &draining, &cut),
                Err(_) => self.turn_away(stream, peer, &draining, &cut).await,
            }
        }
        drop(self.listener);
        self.tasks.close();
        self.tasks.wait().await;
    }

    async fn accept(&self, draining: &CancellationToken) -> Option<(TcpStream, SocketAddr)> {
        loop {
            let accepted = tokio::select! {
                () = draining.cancelled() => return None,
                accepted = self.listener.accept() => accepted,
            };
            match accepted {
                Ok(accepted) => return Some(accepted),
                // Of one connection: it is gone, the next may be well.
                Err(error)
                    if matches!(
                        error.kind(),
                        io::ErrorKind::ConnectionAborted
                            | io::ErrorKind::ConnectionRefused
                            | io::ErrorKind::ConnectionReset
                    ) => {}
                Err(_) => tokio::time::sleep(ACCEPT_RETRY).await,
            }
        }
    }

    fn spawn<S>(
        &self,
        stream: TcpStream,
        peer: SocketAddr,
        service: S,
        permit: OwnedSemaphorePermit,
        draining: &CancellationToken,
        cut: &CancellationToken,
    ) where
        S: Service<Request<Body>, Response = Response<Body>, Error = Infallible> + Clone + Send + 'static,
        S::Future: Send,
    {
        let (observer, limits) = (Arc::clone(&self.observer), self.limits);
        let (draining, cut) = (draining.clone(), cut.clone());
        self.tasks.spawn(async move {
            observer.connection(true);
            // Made in here, it has one place in the task's memory; handed in, it would have two.
            let connection = connection::serve(stream, service, limits, draining);
            let served = cut.run_until_cancelled(connection).await;
            if matches!(served, Some(Err(_))) {
                observer.connection_not_http2(peer);
            }
            observer.connection(false);
            drop(permit);
        });
    }

    /// Tells a connection beyond the limit so, on every call it makes within a short time.
    async fn turn_away(
        &self,
        stream: TcpStream,
        peer: SocketAddr,
        draining: &CancellationToken,
        cut: &CancellationToken,
    ) {
        let limit = self.limits.max_connections;
        let permit = tokio::select! {
            () = draining.cancelled() => return,
            permit = Arc::clone(&self.turned_away).acquire_owned() => permit,
        };
        self.observer.connection_refused(peer, limit);
        let service = service_fn(move |_: Request<Body>| async move {
            Ok::<_, Infallible>(too_many_connections(limit).into_http())
        });
        let connection = connection::serve(stream, service, self.limits, draining.clone());
        let cut = cut.clone();
        self.tasks.spawn(async move {
            // However it ended, it was told what there is to tell.
            let _ended = cut
                .run_until_cancelled(tokio::time::timeout(TURNED_AWAY_IN, connection))
                .await;
            drop(permit);
        });
    }
}
