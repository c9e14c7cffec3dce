//! `chitchat serve`: the server.

mod args;
mod server;

use std::io;

pub use args::Args;
pub use server::Server;

use super::Failure;
use crate::config::connections_possible;
use crate::shutdown::Signals;
use crate::telemetry::init_logs;

/// Runs a server until it is asked to end.
///
/// # Errors
///
/// When the configuration is wrong, a port cannot be bound, or the system refuses what a server needs.
pub fn run(args: Args) -> Result<(), Failure> {
    let threads = args.worker_threads;
    let possible = connections_possible();
    let config = args.into_config(possible);
    config.check(possible).map_err(Failure::Config)?;
    let _logs = init_logs(&config.logs).map_err(|error| Failure::Config(vec![format!("--log: {error}")]))?;
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    if let Some(threads) = threads {
        runtime.worker_threads(threads.get());
    }
    let runtime = runtime
        .enable_all()
        .build()
        .map_err(|error| system("start its threads", &error))?;
    runtime.block_on(async {
        let mut signals = Signals::listen().map_err(|error| system("listen for signals", &error))?;
        let server = Server::bind(config).await?;
        eprintln!(
            "chitchat: listening on {} (gRPC) and {} (admin)",
            server.listen(),
            server.admin()
        );
        let served = server.run(async move {
            let first = signals.next().await;
            // Whoever asks twice does not want to wait.
            tokio::spawn(async move {
                let second = signals.next().await;
                eprintln!("chitchat: {second} after {first}: ending at once");
                std::process::exit(EXIT_AT_ONCE);
            });
            first
        });
        served.await
    })
}

/// The exit code of a process that was told to end at once, as a shell gives it for SIGINT.
const EXIT_AT_ONCE: i32 = 130;

fn system(what: &str, error: &io::Error) -> Failure {
    Failure::Software(format!("cannot {what}: {error}"))
}
