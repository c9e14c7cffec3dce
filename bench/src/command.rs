//! The command line of `chitchat-bench`.

use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::time::Duration;

use chitchat::client::{ConnectOptions, Connection, ServerAddress, TlsOptions};
use chitchat::cmd::{Failure, duration, integer, run_traced};
use chitchat::domain::RoomName;
use chitchat::proto::ListParticipantsRequest;
use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::{BenchError, Http2Settings, Load, Plan, Protocol, Until};

/// Put load on a server and check every delivery: lost, duplicated, out of order.
///
/// Exits with 0 only when nothing was lost, duplicated, reordered or rejected and no connection was cut; with 76 when the
/// server broke one of these promises. Use a dedicated server, not one in production.
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
    /// The server: host:port or, with --ca, https://host:port for TLS. The clients are spread over several servers that serve the
    /// same rooms: separate their addresses by commas.
    #[arg(
        short,
        long,
        env = "CHITCHAT_SERVER",
        value_name = "ADDR,...",
        value_delimiter = ',',
        default_value = "127.0.0.1:50052"
    )]
    server: Vec<ServerAddress>,
    /// The issuers of the certificates of servers with TLS (PEM).
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
    /// The protocol of the servers.
    #[arg(long, value_enum, default_value_t = ProtocolArg::Chitchat)]
    protocol: ProtocolArg,

    /// Number of clients that only receive.
    #[arg(long, value_name = "N", default_value_t = 100, help_heading = "Clients", value_parser = integer::<u32>)]
    subscribers: u32,
    /// Number of clients that send and receive, each on its own connection.
    #[arg(long, value_name = "N", default_value_t = 4, help_heading = "Clients", value_parser = integer::<u32>)]
    publishers: u32,
    /// Number of connections that the subscribers share [default: one per subscriber].
    #[arg(long, value_name = "N", help_heading = "Clients", value_parser = integer::<u32>)]
    connections: Option<u32>,
    /// Number of rooms that the clients are distributed over. They are new ones.
    #[arg(long, value_name = "N", default_value_t = 1, help_heading = "Clients", value_parser = integer::<u32>)]
    rooms: u32,
    /// Use this room of Chit Chat instead of a new one. Nobody may be in it.
    #[arg(short, long, value_name = "ROOM", conflicts_with = "rooms", help_heading = "Clients", value_parser = room)]
    room: Option<RoomName>,

    /// Closed loop: each publisher sends while fewer than N of its messages are outstanding.
    #[arg(long, value_name = "N", default_value_t = 256, help_heading = "Load", value_parser = integer::<u32>)]
    outstanding: u32,
    /// As fast as flow control permits.
    #[arg(long, conflicts_with_all = ["outstanding", "rate"], help_heading = "Load")]
    flood: bool,
    /// Open loop: N messages per second in total on a fixed schedule; latency is measured from the scheduled time.
    #[arg(long, value_name = "N", conflicts_with = "outstanding", help_heading = "Load", value_parser = integer::<u64>)]
    rate: Option<u64>,
    /// Keep the clients idle, then send one message and report when it has reached everybody.
    #[arg(
        long,
        conflicts_with_all = ["outstanding", "rate", "flood", "count", "duration", "warmup", "publishers"],
        help_heading = "Load"
    )]
    idle: bool,
    /// Length of a text in bytes.
    #[arg(long, value_name = "BYTES", default_value_t = 100, help_heading = "Load", value_parser = integer::<usize>)]
    payload: usize,
    /// Load before the measured time.
    #[arg(long, value_name = "TIME", default_value = "2s", value_parser = duration, help_heading = "Load")]
    warmup: Duration,
    /// Length of the measured time.
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = duration, help_heading = "Load")]
    duration: Duration,
    /// Send N messages in total instead, and measure until the last delivery.
    #[arg(long, value_name = "N", conflicts_with_all = ["warmup", "duration"], help_heading = "Load")]
    count: Option<u64>,
    /// How long to wait for missing deliveries while nothing arrives.
    #[arg(long, alias = "patience", value_name = "TIME", default_value = "5s", value_parser = duration, help_heading = "Load")]
    drain_timeout: Duration,

    /// Process ids of the servers: report their CPU time per delivery and their memory per client, in total (Linux).
    #[arg(long, value_name = "PID,...", value_delimiter = ',', help_heading = "Report", value_parser = integer::<u32>)]
    pid: Vec<u32>,
    /// Write one JSON object instead of a table.
    #[arg(long, help_heading = "Report")]
    json: bool,

    /// Number of generator threads.
    #[arg(long, value_name = "N", default_value_t = 1, help_heading = "Generator", value_parser = integer::<u32>)]
    threads: u32,
    /// HTTP/2 maximum frame size of the clients.
    #[arg(
        long,
        value_name = "BYTES",
        default_value_t = 16_384,
        help_heading = "Generator", value_parser = integer::<u32>)]
    max_frame_size: u32,
    /// HTTP/2 stream window of the clients.
    #[arg(long, value_name = "BYTES", default_value_t = 1 << 20, help_heading = "Generator", value_parser = integer::<u32>)]
    stream_window: u32,
    /// HTTP/2 connection window of the clients.
    #[arg(long, value_name = "BYTES", default_value_t = 4 << 20, help_heading = "Generator", value_parser = integer::<u32>)]
    connection_window: u32,
}

/// Serve the least that a fan-out over TCP can cost, for `chitchat-bench --protocol limit`.
#[derive(Debug, Args)]
struct LimitServer {
    /// Address to listen on. With port 0 a free port is chosen and printed.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:0")]
    listen: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum ProtocolArg {
    /// Chit Chat's gRPC.
    Chitchat,
    /// nats-server.
    Nats,
    /// JetStream of nats-server, in the stream BENCH with the subjects bench.>, which must exist.
    Jetstream,
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
    fn plan(&self) -> Plan {
        let protocol = match self.protocol {
            ProtocolArg::Chitchat => Protocol::Chitchat,
            ProtocolArg::Nats => Protocol::Nats,
            ProtocolArg::Jetstream => Protocol::JetStream,
            ProtocolArg::Redis => Protocol::Redis,
            ProtocolArg::Mqtt => Protocol::Mqtt,
            ProtocolArg::Limit => Protocol::Limit,
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
            servers: self
                .server
                .iter()
                .map(|server| server.to_string().trim_start_matches("https://").to_owned())
                .collect(),
            ca: self.ca.clone(),
            protocol,
            subscribers: self.subscribers,
            connections: self.connections,
            publishers: if self.idle { 1 } else { self.publishers },
            rooms: self.rooms,
            room: self.room.as_ref().map(|room| room.as_str().to_owned()),
            payload: self.payload,
            load,
            until,
            drain_timeout: self.drain_timeout,
            idle: self.idle,
            pids: self.pid.clone(),
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
        if self
            .server
            .iter()
            .any(|server| server.is_tls() != self.ca.is_some())
        {
            let text = "an address with https:// needs --ca, and --ca such an address".to_owned();
            return Err(Failure::Usage(text));
        }
        let plan = self.plan();
        let errors = plan.validate();
        if !errors.is_empty() {
            return Err(Failure::Usage(errors.join("; ")));
        }
        let running = plan.clone();
        // Any of them: they have the same rooms.
        let (server, room) = (self.server.into_iter().next(), self.room);
        let options = ConnectOptions {
            tls: TlsOptions {
                ca: self.ca,
                ..TlsOptions::default()
            },
            ..ConnectOptions::default()
        };
        let report = run_traced(async move |spans| {
            if let (Some(server), Some(room)) = (server, room) {
                refuse_if_occupied(&server, &options, &room).await?;
            }
            let run = tokio::task::spawn_blocking(move || crate::run_traced(running, &spans));
            let report = run
                .await
                .map_err(|error| Failure::Software(format!("the run failed: {error}")))?;
            Ok(report?)
        })?;
        let mut stdout = std::io::stdout().lock();
        let written = if json {
            writeln!(stdout, "{}", report.to_json(&plan))
        } else {
            write!(stdout, "{}", report.table(&plan))
        };
        written
            .and_then(|()| stdout.flush())
            .map_err(|error| Failure::Io(format!("stdout: {error}")))?;
        let violations = report.violations();
        if violations.is_empty() {
            Ok(())
        } else {
            Err(Failure::Protocol(violations.join(", ")))
        }
    }
}

fn room(raw: &str) -> Result<RoomName, String> {
    RoomName::try_from(raw).map_err(|error| format!("it {error}"))
}

/// Fails if somebody is in the room: a run puts more into its log than anybody can read.
async fn refuse_if_occupied(
    server: &ServerAddress,
    options: &ConnectOptions,
    room: &RoomName,
) -> Result<(), Failure> {
    let connection = Connection::open(server, options).await?;
    let request = ListParticipantsRequest {
        room: room.as_str().to_owned(),
        page_size: 1,
        ..ListParticipantsRequest::default()
    };
    match connection.list_participants(request).await.map_err(Failure::from) {
        Ok(page) if page.participants.is_empty() => Ok(()),
        Ok(_) => Err(Failure::Usage(format!("--room {room}: somebody is in this room"))),
        // A new room.
        Err(Failure::NotFound(_)) => Ok(()),
        Err(failure) => Err(failure),
    }
}

impl LimitServer {
    fn run(self) -> Result<(), Failure> {
        Ok(crate::serve_limit(&self.listen, |address| {
            // A closed stdout does not stop the server.
            drop(writeln!(std::io::stdout().lock(), "{address}"));
        })?)
    }
}

impl From<BenchError> for Failure {
    fn from(error: BenchError) -> Self {
        match error {
            BenchError::Plan(text) => Self::Usage(text),
            BenchError::Unavailable(text) => Self::Unavailable(text),
            BenchError::Rejected(text) => Self::Rejected(text),
            BenchError::Io(text) => Self::Io(text),
            BenchError::Software(text) => Self::Software(text),
        }
    }
}
