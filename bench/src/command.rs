//! The command line of `chitchat-bench`.

use std::io::{IsTerminal, Write};
use std::time::Duration;

use chitchat::client::ServerAddress;
use chitchat::cmd::{Failure, duration, run_traced, whole};
use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::{BenchError, Http2Settings, Load, Plan, Protocol, Until};

/// Put load on a server and check every delivery: lost, duplicated, out of order.
///
/// Exits with 0 only when nothing was lost, duplicated, reordered or refused and no connection was cut; with 76 when the
/// server broke one of these promises. Run it against a server of its own, not one that people use.
#[derive(Debug, Parser)]
#[command(
    name = "chitchat-bench",
    version,
    max_term_width = 100,
    args_conflicts_with_subcommands = true
)]
pub struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    bench: Bench,
}

#[derive(Debug, Subcommand)]
enum Command {
    #[command(hide = true)]
    LimitServer(LimitServer),
}

#[derive(Debug, Args)]
struct Bench {
    /// The server: host:port or http://host:port (plain TCP, no TLS).
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:50052")]
    server: ServerAddress,
    /// What the server speaks.
    #[arg(long, value_enum, default_value_t = Spoken::Chitchat)]
    protocol: Spoken,

    /// Clients that only read.
    #[arg(long, value_name = "N", default_value_t = 100, help_heading = "Clients", value_parser = whole::<u32>)]
    subscribers: u32,
    /// Clients that send (and read), each on a connection of its own.
    #[arg(long, value_name = "N", default_value_t = 4, help_heading = "Clients", value_parser = whole::<u32>)]
    publishers: u32,
    /// Connections that the subscribers share [default: one each].
    #[arg(long, value_name = "N", help_heading = "Clients", value_parser = whole::<u32>)]
    connections: Option<u32>,
    /// Rooms over which the clients are spread; with one room it is the lobby.
    #[arg(long, value_name = "N", default_value_t = 1, help_heading = "Clients", value_parser = whole::<u32>)]
    rooms: u32,

    /// Closed loop: each publisher sends while fewer than N of its messages have not come back.
    #[arg(long, value_name = "N", default_value_t = 256, help_heading = "Load", value_parser = whole::<u32>)]
    outstanding: u32,
    /// As fast as flow control permits.
    #[arg(long, conflicts_with_all = ["outstanding", "rate"], help_heading = "Load")]
    flood: bool,
    /// Open loop: N messages a second in total on a fixed timetable; latency counts from the intended time.
    #[arg(long, value_name = "N", conflicts_with = "outstanding", help_heading = "Load", value_parser = whole::<u64>)]
    rate: Option<u64>,
    /// Holds the clients without load, then sends one message and tells when it has reached everybody.
    #[arg(
        long,
        conflicts_with_all = ["outstanding", "rate", "flood", "count", "duration", "warmup", "publishers"],
        help_heading = "Load"
    )]
    idle: bool,
    /// Length of a text in bytes.
    #[arg(long, value_name = "BYTES", default_value_t = 100, help_heading = "Load", value_parser = whole::<usize>)]
    payload: usize,
    /// Load before the measured time.
    #[arg(long, value_name = "TIME", default_value = "2s", value_parser = duration, help_heading = "Load")]
    warmup: Duration,
    /// The measured time.
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = duration, help_heading = "Load")]
    duration: Duration,
    /// Send N messages in all instead, and measure until the last delivery.
    #[arg(long, value_name = "N", conflicts_with_all = ["warmup", "duration"], help_heading = "Load")]
    count: Option<u64>,
    /// How long to wait for missing deliveries while nothing arrives.
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = duration, help_heading = "Load")]
    patience: Duration,

    /// The server's process: tells its CPU time per delivery and its memory per client (Linux).
    #[arg(long, value_name = "PID", help_heading = "Report", value_parser = whole::<u32>)]
    pid: Option<u32>,
    /// One JSON object instead of a table.
    #[arg(long, help_heading = "Report")]
    json: bool,

    /// Threads of the generator.
    #[arg(long, value_name = "N", default_value_t = 1, help_heading = "Generator", value_parser = whole::<u32>)]
    threads: u32,
    /// The largest HTTP/2 frame that the clients announce.
    #[arg(
        long,
        value_name = "BYTES",
        default_value_t = 16_384,
        help_heading = "Generator", value_parser = whole::<u32>)]
    max_frame_size: u32,
    /// The HTTP/2 window of a stream that the clients announce.
    #[arg(long, value_name = "BYTES", default_value_t = 1 << 20, help_heading = "Generator", value_parser = whole::<u32>)]
    stream_window: u32,
    /// The HTTP/2 window of a connection that the clients announce.
    #[arg(long, value_name = "BYTES", default_value_t = 4 << 20, help_heading = "Generator", value_parser = whole::<u32>)]
    connection_window: u32,
}

/// Serve the least that a fan-out over TCP can cost, for `chitchat-bench --protocol limit`.
#[derive(Debug, Args)]
struct LimitServer {
    /// Where to listen; port 0 = any free one, which is printed.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:0")]
    listen: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Spoken {
    /// Chit Chat's gRPC.
    Chitchat,
    /// nats-server.
    Nats,
    /// redis-server.
    Redis,
    /// MQTT 3.1.1 at QoS 0: mosquitto.
    Mqtt,
    /// `chitchat-bench limit-server`.
    Limit,
}

impl Cli {
    /// Runs what the command line asks for.
    ///
    /// # Errors
    ///
    /// When the run cannot be made, or when the server broke a promise.
    pub fn run(self) -> Result<(), Failure> {
        match self.command {
            Some(Command::LimitServer(server)) => server.run(),
            None => self.bench.run(),
        }
    }
}

impl Bench {
    fn plan(self) -> Plan {
        let protocol = match self.protocol {
            Spoken::Chitchat => Protocol::Chitchat,
            Spoken::Nats => Protocol::Nats,
            Spoken::Redis => Protocol::Redis,
            Spoken::Mqtt => Protocol::Mqtt,
            Spoken::Limit => Protocol::Limit,
        };
        let load = match self.rate {
            Some(rate) => Load::Rate(rate),
            None if self.flood => Load::Flood,
            None => Load::Window(self.outstanding),
        };
        let until = match self.count {
            _ if self.idle => Until::Count(1),
            Some(count) => Until::Count(count),
            None => Until::Elapsed {
                warmup: self.warmup,
                measured: self.duration,
            },
        };
        Plan {
            server: self.server.to_string(),
            protocol,
            subscribers: self.subscribers,
            connections: self.connections,
            publishers: if self.idle { 1 } else { self.publishers },
            rooms: self.rooms,
            payload: self.payload,
            load,
            until,
            patience: self.patience,
            idle: self.idle,
            pid: self.pid,
            threads: self.threads,
            http2: Http2Settings {
                max_frame_size: self.max_frame_size,
                stream_window: self.stream_window,
                connection_window: self.connection_window,
            },
            progress: std::io::stderr().is_terminal(),
        }
    }

    fn run(self) -> Result<(), Failure> {
        let json = self.json;
        let plan = self.plan();
        let mistakes = plan.mistakes();
        if !mistakes.is_empty() {
            return Err(Failure::Usage(mistakes.join("; ")));
        }
        let running = plan.clone();
        let report = run_traced(async move |spans| {
            let run = tokio::task::spawn_blocking(move || crate::run_traced(running, &spans));
            let report = run
                .await
                .map_err(|error| Failure::Software(format!("the benchmark ended: {error}")))?;
            Ok(report?)
        })?;
        let mut stdout = std::io::stdout().lock();
        let shown = if json {
            writeln!(stdout, "{}", report.to_json(&plan))
        } else {
            write!(stdout, "{}", report.table(&plan))
        };
        shown
            .and_then(|()| stdout.flush())
            .map_err(|error| Failure::Io(format!("stdout: {error}")))?;
        let broken = report.broken();
        if broken.is_empty() {
            Ok(())
        } else {
            Err(Failure::Protocol(broken.join(", ")))
        }
    }
}

impl LimitServer {
    fn run(self) -> Result<(), Failure> {
        Ok(crate::serve_limit(&self.listen, |address| {
            // Nobody may be reading; the server serves all the same.
            drop(writeln!(std::io::stdout().lock(), "{address}"));
        })?)
    }
}

impl From<BenchError> for Failure {
    fn from(error: BenchError) -> Self {
        match error {
            BenchError::Plan(text) => Self::Usage(text),
            BenchError::Unavailable(text) => Self::Unavailable(text),
            BenchError::Refused(text) => Self::Rejected(text),
            BenchError::Io(text) => Self::Io(text),
            BenchError::Software(text) => Self::Software(text),
        }
    }
}
