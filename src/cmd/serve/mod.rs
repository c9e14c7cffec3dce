//! `chitchat serve`: runs the server.

mod args;
#[cfg(all(target_os = "linux", target_env = "gnu"))]
mod heap_trimmer;
mod server;

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::thread::available_parallelism;

use listenfd::ListenFd;
use opentelemetry_otlp::ExporterBuildError;
use tracing::warn;

pub use args::Args;
pub use server::Server;

use super::Failure;
use super::stderr::note;
use crate::config::{Config, raise_fd_limit, system_memory};
use crate::signals::{ControlSignal, ControlSignals, Signals};
use crate::telemetry::{LogFormat, LogGuard, OtlpOptions, OtlpPipeline, init_logs};

/// After how many polls of tasks a worker that has more of them looks at the sockets and timers. Each look costs a system call, but with
/// Tokio's 61 a client that sends little waits for so many turns of those that send without pause.
const EVENT_INTERVAL: u32 = 16;

/// How many I/O events a worker takes when it looks at the sockets. Tokio's default of 1,024 could wake 1,024 tasks at once. But thousands of
/// sockets may be ready whose connections wait for a turn, and with 16 events each second look, others would wait behind those for 100 ms.
const MAX_IO_EVENTS: usize = 64;

/// After how many polls a worker looks at the global queue before its own. Tasks that other threads wake are there, such as a room whose
/// events the store's writer has made durable. By default Tokio adapts this number to how long polls take, up to 127.
const GLOBAL_QUEUE_INTERVAL: u32 = 2;

/// Runs a server until a signal stops it and it has drained. Must not be called within a Tokio runtime. A second signal
/// exits the process at once.
///
/// # Errors
///
/// If the configuration is wrong, a port cannot be bound, or the store cannot be opened or fails.
pub fn run(args: Args) -> Result<(), Failure> {
    let threads = args.worker_threads;
    let fd_limit = raise_fd_limit();
    let trace_remote_limit = args.trace_remote_limit();
    let contradictions = args.contradictions();
    let processors = available_parallelism().map_or(1, usize::from);
    let mut config = args.into_config(fd_limit, system_memory(), processors);
    let socket = passed_socket()?;
    if let Some((_, address)) = &socket {
        config.listen = *address;
    }
    let mut mistakes = contradictions;
    mistakes.extend(config.check(fd_limit).err().unwrap_or_default());
    let mut otlp_options = OtlpOptions::from_env().unwrap_or_else(|wrong| {
        mistakes.extend(wrong);
        OtlpOptions::default()
    });
    if !mistakes.is_empty() {
        return Err(Failure::Config(mistakes));
    }
    otlp_options.sampler.remote_limit_per_second = trace_remote_limit;
    // Half of the time that is reserved for the exit, so that the process exits before the drain's deadline.
    let exit_timeout = config.drain_timeout / (2 * server::EXIT_DIVISOR);
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    if let Some(threads) = threads {
        runtime.worker_threads(threads.into());
    }
    let runtime = runtime
        .event_interval(EVENT_INTERVAL)
        .max_io_events_per_tick(MAX_IO_EVENTS)
        .global_queue_interval(GLOBAL_QUEUE_INTERVAL)
        .enable_all()
        .build()
        .map_err(|error| system_error("start its threads", &error))?;
    let served = runtime.block_on(async {
        let otlp = OtlpPipeline::start(&otlp_options, SERVICE_NAME).map_err(otlp_error)?;
        let logs = init_logs(&config.logs, &otlp)
            .map_err(|error| Failure::Config(vec![format!("--log: {error}")]))?;
        if std::env::var_os("RUST_LOG").is_some_and(|filter| !filter.is_empty()) {
            warn!(
                event = "rust_log_ignored",
                "RUST_LOG has no effect; set --log or CHITCHAT_LOG"
            );
        }
        serve(config, otlp, logs, socket.map(|(socket, _)| socket)).await
    });
    // Dropping the runtime would wait for its blocking threads without a timeout, and a DNS lookup in one of them can take
    // longer than the rest of the drain timeout. The store has been closed by tasks, whose threads end at once.
    runtime.shutdown_timeout(exit_timeout);
    served
}

/// Default for `OTEL_SERVICE_NAME`.
const SERVICE_NAME: &str = "chitchat";

fn otlp_error(error: ExporterBuildError) -> Failure {
    Failure::Config(vec![format!("OTEL_EXPORTER_OTLP_*: {error}")])
}

/// The socket that a service manager has passed, and its address, by the protocol of systemd.
fn passed_socket() -> Result<Option<(TcpListener, SocketAddr)>, Failure> {
    let socket = ListenFd::from_env().take_tcp_listener(0);
    let with_address = socket.and_then(|socket| {
        let address = socket.as_ref().map(TcpListener::local_addr).transpose()?;
        Ok(socket.zip(address))
    });
    with_address.map_err(|error| system_error("use the socket in LISTEN_FDS", &error))
}

async fn serve(
    config: Config,
    otlp: OtlpPipeline,
    mut logs: LogGuard,
    socket: Option<TcpListener>,
) -> Result<(), Failure> {
    let no_signals = |error: io::Error| system_error("listen for signals", &error);
    let mut signals = Signals::listen().map_err(no_signals)?;
    let mut requests = ControlSignals::listen().map_err(no_signals)?;
    let is_json = config.logs.format == LogFormat::Json;
    let server = tokio::select! {
        server = Server::bind_with(config, otlp, socket) => server?,
        // It may wait for another server.
        signal = signals.next() => {
            note(format_args!("{signal} before it was ready"));
            return Ok(());
        }
    };
    let (tls, authenticator) = (server.tls().cloned(), server.authenticator().cloned());
    // A container's stderr is parsed together with its log, so it contains nothing but JSON if the log does. The event
    // `serving` has the same addresses.
    if !is_json {
        note(format_args!(
            "listening on {} (gRPC{}) and {} (admin)",
            server.local_addr(),
            if tls.is_some() { " over TLS" } else { "" },
            server.admin_addr()
        ));
    }
    let served = server.run(async move {
        let first = signals.next().await;
        tokio::spawn(async move {
            let second = signals.second().await;
            note(format_args!("{second} after {first}: ending at once"));
            std::process::exit(second.exit_code().into());
        });
        first.as_str()
    });
    let handle_control_signals = async {
        while let Some(request) = requests.next().await {
            let has_files = tls.is_some() || authenticator.is_some();
            if request == ControlSignal::User1 || !has_files {
                logs.toggle_verbose();
                continue;
            }
            if let Some(tls) = &tls {
                tls.request_reload();
            }
            if let Some(authenticator) = &authenticator {
                authenticator.request_reload();
            }
        }
    };
    tokio::select! {
        served = served => served,
        () = handle_control_signals => Err(Failure::Software("the signals have ended".into())),
    }
}

fn system_error(what: &str, error: &io::Error) -> Failure {
    Failure::Software(format!("cannot {what}: {error}"))
}
