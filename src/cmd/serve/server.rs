//! Assembles the server from its parts.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinError;
use tokio::time::{Instant, sleep, timeout_at};
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
use tonic_health::ServingStatus;
use tonic_health::pb::health_server::HealthServer;
use tonic_health::server::HealthReporter;
use tower::Layer;
use tracing::{Instrument, info, info_span, warn};

use crate::admin::{AdminServer, Readiness};
use crate::auth::Authenticator;
use crate::cluster::{
    Bootstrap, CheckpointDir, ClusterOptions, ConnectedReplica, Replica, ReplicaError, SUBMISSIONS,
    StopRequest,
};
use crate::cmd::Failure;
use crate::config::{Config, StoreOptions};
use crate::hub::{Hub, Submission};
use crate::proto::DESCRIPTOR_SET;
use crate::proto::chat_service_server::ChatServiceServer;
use crate::rpc::{
    AuthenticationService, CHAT_SERVICE, HealthChecks, Listener, Rates, ServerTls, StreamingService,
    UnaryLimits, UnaryService, decode_limit,
};
use crate::store::{self, DiskOptions, DiskStore, MemoryStore, Store, StoreError, StoreUsage};
use crate::telemetry::{Metrics, OtlpPipeline, TelemetryObserver, UnaryCallLayer};

/// Decode limit in bytes for requests to the health and reflection services, which consist of a name.
const SMALL_REQUEST_BYTES: usize = 4 * 1024;

/// The average delay after which clients are asked to reconnect when the server drains: long enough for another server to
/// take over.
const RECONNECT_DELAY: Duration = Duration::from_secs(1);

/// How often to try whether another server still uses the data directory.
const LOCK_INTERVAL: Duration = Duration::from_millis(20);

/// The drain timeout divided by this is reserved for exporting the last spans and log lines.
const FLUSH_DIVISOR: u32 = 4;

/// A checkpoint that a replica loads may take `--max-memory` divided by this.
const CHECKPOINT_DIVISOR: u64 = 2;

/// The drain timeout divided by this is reserved for the exit of the process.
pub(super) const EXIT_DIVISOR: u32 = 16;

/// A server whose ports are bound and whose rooms are recovered.
pub struct Server {
    config: Config,
    hub: Arc<Hub>,
    /// The replica, if there are several, and what the hub submits to it.
    cluster: Option<(ConnectedReplica, mpsc::Receiver<Submission>)>,
    listener: Listener,
    tls: Option<Arc<ServerTls>>,
    authenticator: Option<Arc<Authenticator>>,
    admin: AdminServer,
    readiness: Readiness,
    observer: TelemetryObserver,
    calls: UnaryCallLayer,
    otlp: OtlpPipeline,
    local_addr: SocketAddr,
    admin_addr: SocketAddr,
}

impl Server {
    /// Opens the store, binds the ports and recovers the rooms. Must be called within a Tokio runtime.
    ///
    /// # Errors
    ///
    /// [`Failure::Config`] if the certificate or the keys of tokens cannot be used, [`Failure::Unavailable`] if a port cannot be bound, [`Failure::Io`] if the store cannot be opened,
    /// [`Failure::Data`] if it is damaged.
    pub async fn bind(config: Config) -> Result<Self, Failure> {
        Self::bind_with(config, OtlpPipeline::default(), None).await
    }

    /// Like [`Server::bind`]; also exports traces and logs through `otlp`, which [`Server::run`] shuts down at its end. Serves
    /// on `socket`, if a service manager has passed one, in place of the configured address.
    ///
    /// # Errors
    ///
    /// The errors of [`Server::bind`].
    pub async fn bind_with(
        config: Config,
        otlp: OtlpPipeline,
        socket: Option<TcpListener>,
    ) -> Result<Self, Failure> {
        let metrics = Arc::new(Metrics::new(config.transport.max_connections, otlp.clone()));
        let observer = TelemetryObserver::new(Arc::clone(&metrics), otlp.tracer().cloned());
        let calls = UnaryCallLayer::new(Arc::clone(&metrics), otlp.tracer().cloned());
        let tls = config.tls.clone().map(ServerTls::load).transpose();
        let tls = tls.map_err(|error| Failure::Config(vec![error.to_string()]))?;
        if let Some(tls) = &tls {
            observer.certificate_in_use(tls.not_after());
        }
        let tls = tls.map(Arc::new);
        let authenticator = config.auth.clone().map(Authenticator::load).transpose();
        let authenticator = authenticator.map_err(|error| Failure::Config(vec![error.to_string()]))?;
        let recover = async || {
            let opened = open_store(&config, Arc::new(observer.clone())).await?;
            let StoreUsage { rooms, events, .. } = opened.0.usage();
            info!(event = "store_recovered", rooms, events, "store recovered");
            Ok::<_, Failure>(opened)
        };
        let hub_observer = Arc::new(observer.clone());
        let (hub, cluster) = if let Some(options) = &config.cluster {
            let store = Arc::new(MemoryStore::replicated(config.retention));
            let shared: Arc<dyn Store> = Arc::<MemoryStore>::clone(&store);
            metrics.observe_store(&shared);
            let secret = options
                .read_secret()
                .map_err(|error| Failure::Config(vec![error]))?;
            let max_len = config.max_memory / CHECKPOINT_DIVISOR;
            let bootstrap = load_checkpoint(options, max_len).await?;
            let (submissions, submitted) = mpsc::channel(SUBMISSIONS);
            let hub = Hub::replicated(
                config.rules,
                config.hub,
                store,
                &secret,
                hub_observer,
                submissions,
            );
            let observer = Arc::new(observer.clone());
            let connected = Replica::connect(options, bootstrap, Arc::clone(&hub), observer);
            let connected = connected.await?;
            (hub, Some((connected, submitted)))
        } else {
            let (store, secret) = recover().instrument(info_span!("recover")).await?;
            metrics.observe_store(&store);
            let hub = Hub::new(config.rules, config.hub, store, &secret, hub_observer);
            (hub, None)
        };
        let readiness = Readiness::default();
        let rpc_observer = Arc::new(observer.clone());
        let listener = match socket {
            Some(socket) => Listener::from_std(socket, config.transport, tls.clone(), rpc_observer),
            None => Listener::bind(config.listen, config.transport, tls.clone(), rpc_observer),
        };
        let listener = listener
            .map_err(|error| cannot_bind("--listen", config.listen, &error))?
            .with_proxies(config.proxies.clone());
        let admin = AdminServer::bind(config.admin, readiness.clone(), metrics)
            .await
            .map_err(|error| cannot_bind("--admin", config.admin, &error))?;
        if cluster.is_none() {
            hub.recover_unfinished_rooms();
        }
        let local_addr = listener
            .local_addr()
            .map_err(|error| cannot_bind("--listen", config.listen, &error))?;
        let admin_addr = admin
            .local_addr()
            .map_err(|error| cannot_bind("--admin", config.admin, &error))?;
        Ok(Self {
            config,
            hub,
            cluster,
            listener,
            tls,
            authenticator: authenticator.map(Arc::new),
            admin,
            readiness,
            observer,
            calls,
            otlp,
            local_addr,
            admin_addr,
        })
    }

    /// The bound address of the gRPC port.
    #[must_use]
    pub const fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// TLS of the gRPC port, if it uses it.
    #[must_use]
    pub const fn tls(&self) -> Option<&Arc<ServerTls>> {
        self.tls.as_ref()
    }

    /// The verification of tokens, if the server requires them.
    #[must_use]
    pub const fn authenticator(&self) -> Option<&Arc<Authenticator>> {
        self.authenticator.as_ref()
    }

    /// The bound address of the admin port.
    #[must_use]
    pub const fn admin_addr(&self) -> SocketAddr {
        self.admin_addr
    }

    /// Serves until `shutdown` completes, then drains and returns within the drain timeout. The output of `shutdown` is the
    /// cause that is logged. If the store fails, the server drains without waiting for `shutdown`.
    ///
    /// # Errors
    ///
    /// [`Failure::Io`] if the store has failed. Acknowledged events are stored nevertheless, unless the data directory was
    /// removed.
    ///
    /// # Cancel safety
    ///
    /// Not safe: if the future is dropped, the server continues in background tasks and is not drained.
    pub async fn run(self, shutdown: impl Future<Output = &'static str>) -> Result<(), Failure> {
        let health = HealthReporter::new();
        if self.cluster.is_none() {
            // No client can query this before the listener accepts connections.
            set_health(&health, ServingStatus::Serving).await;
            self.readiness.set(true);
        } else {
            set_health(&health, ServingStatus::NotServing).await;
        }

        let (draining, abort, stop_admin) = (
            CancellationToken::new(),
            CancellationToken::new(),
            CancellationToken::new(),
        );
        let health_checks = HealthChecks::new(health.clone(), draining.clone());
        let routes = self.routes(health_checks, draining.clone());
        let (listen, admin) = (self.local_addr, self.admin_addr);
        info!(event = "serving", %listen, %admin, version = env!("CARGO_PKG_VERSION"), "serving");
        let serving = tokio::spawn(self.listener.serve(routes, draining.clone(), abort.clone()));
        let replica_stopped = CancellationToken::new();
        let mut replica_ended = None;
        let mut stop_replica = None;
        if let Some(((replica, subscriptions, mut ready), submitted)) = self.cluster {
            let stopping = replica_stopped.clone();
            let (stop, stops) = mpsc::channel(1);
            stop_replica = Some(stop);
            replica_ended = Some(tokio::spawn(async move {
                stopping
                    .run_until_cancelled(replica.run(subscriptions, submitted, stops))
                    .await
            }));
            let (watching, readiness, health) = (draining.clone(), self.readiness.clone(), health.clone());
            let watch = async move {
                while ready.changed().await.is_ok() {
                    let is_ready = *ready.borrow_and_update();
                    info!(event = "replica_ready", is_ready, "whether clients are welcome");
                    readiness.set(is_ready);
                    let status = if is_ready {
                        ServingStatus::Serving
                    } else {
                        ServingStatus::NotServing
                    };
                    set_health(&health, status).await;
                }
            };
            tokio::spawn(async move { watching.run_until_cancelled(watch).await });
        } else {
            let stopping = draining.clone();
            let hub = Arc::clone(&self.hub);
            tokio::spawn(async move { stopping.run_until_cancelled(hub.end_unused_rooms()).await });
        }
        #[cfg(all(target_os = "linux", target_env = "gnu"))]
        {
            let stopping = draining.clone();
            tokio::spawn(async move {
                stopping
                    .run_until_cancelled(super::heap_trimmer::trim_periodically())
                    .await
            });
        }
        if let Some(tls) = self.tls {
            let (watching, observer) = (draining.clone(), Arc::new(self.observer.clone()));
            tokio::spawn(async move { watching.run_until_cancelled(tls.watch(observer)).await });
        }
        if let Some(authenticator) = self.authenticator {
            let (watching, observer) = (draining.clone(), Arc::new(self.observer.clone()));
            let watch = authenticator.watch(observer);
            tokio::spawn(async move { watching.run_until_cancelled(watch).await });
        }
        let serving_admin = tokio::spawn(self.admin.serve(stop_admin.clone()));

        let mut replica_error = None;
        let ended = async {
            match &mut replica_ended {
                Some(ended) => replica_failure(ended.await),
                None => std::future::pending().await,
            }
        };
        let cause = tokio::select! {
            cause = shutdown => cause,
            () = self.hub.failed().cancelled() => "store failed",
            error = ended => {
                // Nothing that is still on its way will be answered.
                self.hub.fence().await;
                replica_error = error;
                "replica failed"
            }
        };
        let drain_timeout = self.config.drain_timeout;
        let deadline = Instant::now() + drain_timeout;
        info!(event = "draining", cause, timeout = ?drain_timeout, "draining");
        self.readiness.set(false);
        set_health(&health, ServingStatus::NotServing).await;
        draining.cancel();
        // Reserve time to export the telemetry of the drain itself.
        let flush_time = if self.otlp.is_enabled() {
            drain_timeout / FLUSH_DIVISOR
        } else {
            Duration::ZERO
        };
        let written = match stop_replica {
            Some(stop) => take_last_checkpoint(&stop, drain_timeout / FLUSH_DIVISOR).await,
            None => None,
        };
        let drain = async {
            self.hub.drain(RECONNECT_DELAY).await;
            end_watches(health).await;
            serving.await
        };
        let drain = drain.instrument(info_span!("drain", cause));
        if timeout_at(deadline - flush_time, drain).await.is_err() {
            warn!(event = "cut", "cutting the streams that have not ended in time");
        }
        if let Some(written) = written
            && timeout_at(deadline - flush_time, written).await.is_err()
        {
            warn!(event = "checkpoint_failed", "the last checkpoint takes too long");
        }
        replica_stopped.cancel();
        abort.cancel();
        stop_admin.cancel();
        // It ends, because its token was cancelled above.
        serving_admin.await.ok();
        let flushed_by = deadline - drain_timeout / EXIT_DIVISOR;
        self.otlp.shut_down(flushed_by.into_std()).await;
        if let Some(failure) = replica_error {
            return Err(failure);
        }
        store_result(&self.hub)
    }

    /// The services on the gRPC port.
    fn routes(
        &self,
        health: HealthChecks,
        draining: CancellationToken,
    ) -> <UnaryCallLayer as Layer<AuthenticationService<StreamingService<UnaryLimits<Routes>>>>>::Service
    {
        let observer = Arc::new(self.observer.clone());
        let rates = Arc::new(Rates::new(self.config.transport.rates));
        let unary = UnaryService::new(Arc::clone(&self.hub), Arc::clone(&rates), observer.clone());
        let post_limit = decode_limit(self.config.rules.max_message_chars);
        let chat = ChatServiceServer::new(unary).max_decoding_message_size(post_limit);
        let health = HealthServer::new(health).max_decoding_message_size(SMALL_REQUEST_BYTES);
        let routes = add_reflection(Routes::new(chat).add_service(health)).prepare();
        let limited = UnaryLimits::new(routes, post_limit, draining.clone(), observer.clone());
        let max_age = self.config.transport.max_stream_age;
        let hub = Arc::clone(&self.hub);
        let service = StreamingService::new(
            limited,
            hub,
            draining,
            Arc::clone(&rates),
            max_age,
            observer.clone(),
        );
        let authenticator = self.authenticator.clone();
        self.calls.layer(AuthenticationService::new(
            service,
            authenticator,
            rates,
            observer,
        ))
    }
}

/// Why the task of the replica has ended; `None` if it was stopped.
fn replica_failure(ended: Result<Option<ReplicaError>, JoinError>) -> Option<Failure> {
    match ended {
        Ok(error) => error.map(|error| match error {
            error if error.is_misconfiguration() => Failure::Config(vec![format!("ended because {error}")]),
            error => Failure::Unavailable(format!("ended because {error}")),
        }),
        Err(error) => Some(Failure::Software(format!(
            "ended because the task of the replica failed: {error}"
        ))),
    }
}

/// Makes the replica take a checkpoint, if it takes any, and waits until the rooms need not go on for it. What is returned is ready once it is
/// written.
async fn take_last_checkpoint(
    stop: &mpsc::Sender<StopRequest>,
    timeout: Duration,
) -> Option<oneshot::Receiver<()>> {
    let ((reached, when_reached), (written, when_written)) = (oneshot::channel(), oneshot::channel());
    stop.try_send(StopRequest { reached, written }).ok()?;
    tokio::time::timeout(timeout, when_reached).await.ok()?.ok()?;
    Some(when_written)
}

/// Opens the data directory of a replica, and loads its newest checkpoint.
async fn load_checkpoint(options: &ClusterOptions, max_len: u64) -> Result<Bootstrap, Failure> {
    let mut bootstrap = Bootstrap {
        directory: None,
        local: None,
        dropped_at: None,
        max_len,
    };
    let Some(path) = options.data_dir.clone() else {
        return Ok(bootstrap);
    };
    let directory = Arc::new(wait_for_lock(&path, options.wait, || CheckpointDir::open(&path)).await?);
    let loading = Arc::clone(&directory);
    let loaded = tokio::task::spawn_blocking(move || loading.load()).await;
    let loaded = loaded.map_err(|_| Failure::Software("cannot load a checkpoint".into()))?;
    bootstrap.local = loaded.map_err(|error| {
        Failure::Io(format!(
            "cannot read the data directory {}: {error}",
            path.display()
        ))
    })?;
    bootstrap.directory = Some(directory);
    Ok(bootstrap)
}

/// Opens a data directory. If another server uses it, waits until that has ended, but not longer than `wait`.
async fn wait_for_lock<T>(
    directory: &Path,
    wait: Option<Duration>,
    open: impl Fn() -> Result<T, StoreError>,
) -> Result<T, StoreError> {
    let mut opened = open();
    if let (Err(StoreError::Locked(_)), Some(wait)) = (&opened, wait) {
        let deadline = Instant::now() + wait;
        info!(event = "waiting", directory = %directory.display(), "waiting until another server has ended");
        while matches!(opened, Err(StoreError::Locked(_))) && Instant::now() < deadline {
            sleep(LOCK_INTERVAL).await;
            opened = open();
        }
    }
    opened
}

/// An error if the store has failed.
fn store_result(hub: &Hub) -> Result<(), Failure> {
    if !hub.failed().is_cancelled() {
        return Ok(());
    }
    Err(Failure::Io(match hub.cause() {
        // The directory may have been removed together with the events.
        Some(cause @ StoreError::Directory { .. }) => format!("ended because it {cause}"),
        Some(cause) => format!("ended because {cause}; what was acknowledged is stored"),
        None => "ended because the store failed".into(),
    }))
}

/// Opens the store. Also returns the secret that session tokens are signed with.
async fn open_store(
    config: &Config,
    observer: Arc<dyn store::Observer>,
) -> Result<(Arc<dyn Store>, [u8; 32]), Failure> {
    match &config.store {
        // The rooms do not outlive the process, so the session tokens do not have to either.
        StoreOptions::Memory => {
            let store = MemoryStore::new(config.retention, config.hub.max_rooms);
            Ok((Arc::new(store), rand::random()))
        }
        StoreOptions::Disk {
            directory,
            durability,
            accept_loss,
            wait,
        } => {
            let options = DiskOptions {
                durability: *durability,
                retention: config.retention,
                max_rooms: config.hub.max_rooms,
                accept_loss: *accept_loss,
            };
            let open = || DiskStore::open(directory, options, Arc::clone(&observer));
            let opened = wait_for_lock(directory, *wait, open).await;
            let store = opened?;
            if store.torn_bytes() > 0 {
                let bytes = store.torn_bytes();
                warn!(
                    event = "store_truncated",
                    bytes, "a crash had interrupted a write; its remains were truncated"
                );
            }
            let secret = store.secret();
            Ok((Arc::new(store), secret))
        }
    }
}

async fn set_health(health: &HealthReporter, status: ServingStatus) {
    for service in ["", CHAT_SERVICE] {
        health.set_service_status(service, status).await;
    }
}

/// Ends the `Watch` streams of the health service, which would keep their connections open. `Check` still works.
async fn end_watches(mut health: HealthReporter) {
    for service in ["", CHAT_SERVICE] {
        health.clear_service_status(service).await;
    }
    set_health(&health, ServingStatus::NotServing).await;
}

/// Adds server reflection, v1 and v1alpha.
fn add_reflection(routes: Routes) -> Routes {
    let builder = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
            // Lets tools decode error details.
            .register_encoded_file_descriptor_set(tonic_types::pb::FILE_DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_reflection::pb::v1alpha::FILE_DESCRIPTOR_SET)
    };
    match (builder().build_v1(), builder().build_v1alpha()) {
        (Ok(v1), Ok(v1alpha)) => routes
            .add_service(v1.max_decoding_message_size(SMALL_REQUEST_BYTES))
            .add_service(v1alpha.max_decoding_message_size(SMALL_REQUEST_BYTES)),
        // Does not happen: the descriptors are part of this build, and a test queries them.
        (Err(error), _) | (_, Err(error)) => {
            warn!(event = "no_reflection", %error, "serving without reflection");
            routes
        }
    }
}

fn cannot_bind(flag: &str, address: SocketAddr, error: &io::Error) -> Failure {
    Failure::Unavailable(format!(
        "cannot bind {flag} {address}: {error}; choose another address, or port 0"
    ))
}

#[cfg(test)]
mod tests {
    use tokio_stream::StreamExt as _;
    use tonic::Request;
    use tonic_health::pb::HealthCheckRequest;
    use tonic_health::pb::health_server::Health as _;
    use tonic_health::server::HealthService;

    use super::*;

    #[tokio::test]
    async fn a_replica_whose_task_panics_is_a_failure() {
        let task = tokio::spawn(async { panic!("as a bug would") });
        let failure = replica_failure(task.await);
        assert!(matches!(failure, Some(Failure::Software(_))), "{failure:?}");
        assert_eq!(replica_failure(Ok(None)), None, "it was stopped");
    }

    #[tokio::test]
    async fn ending_the_watches_does_not_end_checks() {
        let health = HealthReporter::new();
        set_health(&health, ServingStatus::NotServing).await;
        let service = HealthService::from_health_reporter(health.clone());
        let request = || {
            Request::new(HealthCheckRequest {
                service: CHAT_SERVICE.into(),
            })
        };
        let mut watch = service.watch(request()).await.unwrap().into_inner();
        let not_serving = i32::from(tonic_health::pb::health_check_response::ServingStatus::NotServing);
        assert_eq!(watch.next().await.unwrap().unwrap().status, not_serving);
        end_watches(health).await;
        assert!(watch.next().await.is_none());
        let answer = service.check(request()).await.unwrap().into_inner();
        assert_eq!(answer.status, not_serving);
    }
}
