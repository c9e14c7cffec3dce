//! The flags of `chitchat serve`. Each can also be set by an environment variable.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args as ClapArgs;

use crate::auth::{Anonymous, AuthOptions};
use crate::cluster::ClusterOptions;
use crate::cmd::cluster::NatsIdentity;
use crate::cmd::parse::{duration, integer, size, socket_address};
use crate::config::{
    Config, DEFAULT_DATA_DIR, StoreOptions, connection_ceiling, default_max_connections,
    default_max_connections_per_address,
};
use crate::domain::Rules;
use crate::domain::limits::{DEFAULT_MAX_CLOCK_AHEAD, DEFAULT_MAX_MESSAGE_CHARS, DEFAULT_MAX_PARTICIPANTS};
use crate::hub::HubOptions;
use crate::memory_plan::MemoryPlan;
use crate::rpc::{Network, RateLimits, TlsFiles, TransportLimits};
use crate::store::{Durability, Retention};
use crate::telemetry::{DEFAULT_REMOTE_LIMIT_PER_SECOND, LogFormat, LogOptions};

/// Run the server
#[derive(Debug, ClapArgs)]
#[command(after_help = "Examples:
  chitchat serve                                    the log is in ./chitchat-data
  chitchat serve --in-memory --listen 127.0.0.1:0   for a test
  chitchat serve --listen 0.0.0.0:50052 --tls-cert server.pem --tls-key server-key.pem")]
pub struct Args {
    /// Address for clients (gRPC); port 0 = any free port
    #[arg(
        long,
        env = "CHITCHAT_LISTEN",
        value_name = "ADDR",
        value_parser = socket_address,
        default_value = "127.0.0.1:50052",
        help_heading = "Ports"
    )]
    listen: SocketAddr,

    /// Address for /livez, /readyz and /metrics (HTTP); port 0 = any free port
    #[arg(
        long,
        env = "CHITCHAT_ADMIN",
        value_name = "ADDR",
        value_parser = socket_address,
        default_value = "127.0.0.1:9464",
        help_heading = "Ports"
    )]
    admin: SocketAddr,

    /// Certificate of the server and the intermediate CA certificates, without the root (PEM); replaced while the server runs when the file
    /// changes or on SIGHUP
    #[arg(
        long,
        env = "CHITCHAT_TLS_CERT",
        value_name = "FILE",
        requires = "tls_key",
        help_heading = "TLS"
    )]
    tls_cert: Option<PathBuf>,

    /// Private key of --tls-cert (PEM)
    #[arg(
        long,
        env = "CHITCHAT_TLS_KEY",
        value_name = "FILE",
        requires = "tls_cert",
        help_heading = "TLS"
    )]
    tls_key: Option<PathBuf>,

    /// Accept only clients with a certificate that one of the CA certificates in this file has signed (PEM)
    #[arg(
        long,
        env = "CHITCHAT_TLS_CLIENT_CA",
        value_name = "FILE",
        requires = "tls_cert",
        help_heading = "TLS"
    )]
    tls_client_ca: Option<PathBuf>,

    /// Let other machines connect without TLS; has no effect with --tls-cert
    #[arg(long, env = "CHITCHAT_INSECURE", help_heading = "TLS")]
    insecure: bool,

    /// Require tokens that are signed with one of the keys in this file: a JSON Web Key Set, or one public key (PEM); read again when
    /// it changes or on SIGHUP
    #[arg(
        long,
        env = "CHITCHAT_AUTH_KEYS",
        value_name = "FILE",
        requires_all = ["auth_issuer", "auth_audience"],
        help_heading = "Tokens"
    )]
    auth_keys: Option<PathBuf>,

    /// Issuer that tokens must have (iss)
    #[arg(
        long,
        env = "CHITCHAT_AUTH_ISSUER",
        value_name = "TEXT",
        requires = "auth_keys",
        help_heading = "Tokens"
    )]
    auth_issuer: Option<String>,

    /// Audience that tokens must be for (aud): a name of this server
    #[arg(
        long,
        env = "CHITCHAT_AUTH_AUDIENCE",
        value_name = "TEXT",
        requires = "auth_keys",
        help_heading = "Tokens"
    )]
    auth_audience: Option<String>,

    /// What callers without a token may do with --auth-keys, in all rooms: nothing, read, or also join, send and create rooms
    /// [default: none]
    #[arg(
        long,
        env = "CHITCHAT_ANONYMOUS",
        value_name = "WHAT",
        requires = "auth_keys",
        help_heading = "Tokens"
    )]
    anonymous: Option<Anonymous>,

    /// Directory for the rooms' logs [default: ./chitchat-data]; with --cluster for checkpoints, with which a replica starts again and
    /// which others can have
    #[arg(long, env = "CHITCHAT_DATA_DIR", value_name = "DIR", help_heading = "Store")]
    data_dir: Option<PathBuf>,

    /// If another server uses the data directory, wait until it has ended, at most this long: for a restart in which the new
    /// server starts before the old one is stopped
    #[arg(
        long,
        env = "CHITCHAT_WAIT_FOR_DATA_DIR",
        value_name = "TIME",
        value_parser = duration,
        help_heading = "Store"
    )]
    wait_for_data_dir: Option<Duration>,

    /// Keep the logs in memory only; they are lost when the process ends. With --cluster, write no checkpoints
    #[arg(long, env = "CHITCHAT_IN_MEMORY", help_heading = "Store")]
    in_memory: bool,

    /// Addresses of NATS servers, separated by commas, like nats://host:4222 or tls://user:password@host:4222: this server is one of
    /// several replicas that share all rooms. `chitchat cluster init` prepares NATS
    #[arg(
        long,
        env = "CHITCHAT_CLUSTER",
        value_name = "URL",
        value_delimiter = ',',
        requires = "cluster_secret",
        hide_env_values = true,
        help_heading = "Cluster"
    )]
    cluster: Vec<String>,

    /// File with the secret that session tokens are signed with, at least 32 bytes; the same on all replicas
    #[arg(
        long,
        env = "CHITCHAT_CLUSTER_SECRET",
        value_name = "FILE",
        requires = "cluster",
        help_heading = "Cluster"
    )]
    cluster_secret: Option<PathBuf>,

    #[command(flatten)]
    nats_identity: NatsIdentity,

    /// Name of this replica in `chitchat cluster status` [default: the address of --listen]
    #[arg(
        long,
        env = "CHITCHAT_REPLICA_NAME",
        value_name = "NAME",
        requires = "cluster",
        help_heading = "Cluster"
    )]
    replica_name: Option<String>,

    /// How often this replica writes a checkpoint to --data-dir, unless nothing has happened, at least 1s
    #[arg(
        long,
        env = "CHITCHAT_CHECKPOINT_INTERVAL",
        value_name = "TIME",
        value_parser = duration,
        default_value = "5m",
        help_heading = "Cluster"
    )]
    checkpoint_interval: Duration,

    /// Minimum time to keep messages of the NATS stream that two replicas have in checkpoints; ignored while the stream is more than three
    /// quarters full
    #[arg(
        long,
        env = "CHITCHAT_CLUSTER_KEEP",
        value_name = "TIME",
        value_parser = duration,
        default_value = "24h",
        help_heading = "Cluster"
    )]
    cluster_keep: Duration,

    /// What acknowledged messages survive: sync = a power failure, os = a crash of the process
    #[arg(
        long,
        env = "CHITCHAT_DURABILITY",
        value_name = "WHAT",
        default_value = "sync",
        help_heading = "Store"
    )]
    durability: Durability,

    /// Start even if acknowledged events are lost after disk damage: everything is read, what is valid is kept, and the rooms
    /// concerned get a new epoch. A log whose room name is lost is removed. Without this flag the server refuses to start
    #[arg(long, env = "CHITCHAT_ACCEPT_LOSS", help_heading = "Store")]
    accept_loss: bool,

    /// Number of events that each room retains, the newest ones; at least 1000 [default: 1000000, in memory 100000]
    #[arg(
        long,
        env = "CHITCHAT_RETAIN_EVENTS",
        value_name = "N",
        value_parser = integer::<u64>,
        help_heading = "Store"
    )]
    retain_events: Option<u64>,

    /// Size of the events that each room retains, the newest ones; at least 1MiB [default: 256MiB, in memory 32MiB]
    #[arg(
        long,
        env = "CHITCHAT_RETAIN_BYTES",
        value_name = "SIZE",
        value_parser = size::<u64>,
        help_heading = "Store"
    )]
    retain_bytes: Option<u64>,

    /// Age up to which each room retains events, at least 1s [default: no limit]
    #[arg(
        long,
        env = "CHITCHAT_RETAIN_AGE",
        value_name = "TIME",
        value_parser = duration,
        help_heading = "Store"
    )]
    retain_age: Option<Duration>,

    /// Size of the events that all rooms together retain, at least 1MiB; beyond it the largest rooms lose their oldest events
    /// [default: 8GiB, in memory 256MiB or half of the memory]
    #[arg(
        long,
        env = "CHITCHAT_RETAIN_TOTAL_BYTES",
        value_name = "SIZE",
        value_parser = size::<u64>,
        help_heading = "Store"
    )]
    retain_total_bytes: Option<u64>,

    /// How long a participant whose connection is lost may take to resume before it leaves the room
    #[arg(long, env = "CHITCHAT_RESUME_GRACE", value_name = "TIME", value_parser = duration, default_value = "10s", help_heading = "Rooms")]
    resume_grace: Duration,

    /// Maximum length of a message in characters, 1 to 100000
    #[arg(long, env = "CHITCHAT_MAX_MESSAGE_CHARS", value_name = "N", default_value_t = DEFAULT_MAX_MESSAGE_CHARS, value_parser = integer::<usize>, help_heading = "Rooms")]
    max_message_chars: usize,

    /// How far the Lamport timestamp of a client may be ahead of the room's clock, 1 to 1000000000
    #[arg(long, env = "CHITCHAT_MAX_CLOCK_AHEAD", value_name = "N", default_value_t = DEFAULT_MAX_CLOCK_AHEAD, help_heading = "Rooms")]
    max_clock_ahead: i64,

    /// Maximum number of participants in a room, at least 1; three quarters of them may come from one address
    #[arg(long, env = "CHITCHAT_MAX_PARTICIPANTS", value_name = "N", default_value_t = DEFAULT_MAX_PARTICIPANTS, value_parser = integer::<usize>, help_heading = "Rooms")]
    max_participants: usize,

    /// Maximum number of rooms, at least 1
    #[arg(long, env = "CHITCHAT_MAX_ROOMS", value_name = "N", default_value_t = HubOptions::default().max_rooms, value_parser = integer::<usize>, help_heading = "Rooms")]
    max_rooms: usize,

    /// Allow several participants of a room to have the same name
    #[arg(long, env = "CHITCHAT_ALLOW_DUPLICATE_NAMES", help_heading = "Rooms")]
    allow_duplicate_names: bool,

    /// Size of the recent events that each room keeps in memory for slow readers, at least 1MiB; readers further behind are
    /// served from the log
    #[arg(long, env = "CHITCHAT_FEED_BYTES", value_name = "SIZE", default_value = "4MiB", value_parser = size::<usize>, help_heading = "Rooms")]
    feed_bytes: usize,

    /// Longest delay by which a busy room with many subscribers batches its events; 0s = no batching. The first event after
    /// a pause is not delayed
    #[arg(long, env = "CHITCHAT_COALESCE", value_name = "TIME", value_parser = duration, default_value = "50ms", help_heading = "Rooms")]
    coalesce: Duration,

    /// Maximum number of connections; one takes about 25KiB, with TLS 35KiB [default: as many as fit into three eighths of the
    /// memory and the limit of open files, at most 100000]
    #[arg(
        long,
        env = "CHITCHAT_MAX_CONNECTIONS",
        value_name = "N",
        value_parser = integer::<usize>,
        help_heading = "Connections"
    )]
    max_connections: Option<usize>,

    /// Maximum number of connections from one address, at least 1; an IPv6 network of 64 bits counts as one address
    /// [default: three quarters of all]
    #[arg(
        long,
        env = "CHITCHAT_MAX_CONNECTIONS_PER_ADDRESS",
        value_name = "N",
        value_parser = integer::<usize>,
        help_heading = "Connections"
    )]
    max_connections_per_address: Option<usize>,

    /// Maximum number of concurrent streams on a connection, at least 1
    #[arg(long, env = "CHITCHAT_MAX_STREAMS_PER_CONNECTION", value_name = "N", default_value_t = TransportLimits::default().max_streams_per_connection, value_parser = integer::<u32>, help_heading = "Connections")]
    max_streams_per_connection: u32,

    /// Messages per second that one participant may send, at least 1, with bursts of ten times as many [default: no limit]
    #[arg(long, env = "CHITCHAT_MESSAGE_RATE", value_name = "N", value_parser = integer::<u32>, help_heading = "Connections")]
    message_rate: Option<u32>,

    /// Joins and subscriptions per second from one address, at least 1, with bursts of twenty times as many
    #[arg(long, env = "CHITCHAT_JOIN_RATE", value_name = "N", default_value_t = RateLimits::default().joins, value_parser = integer::<u32>, help_heading = "Connections")]
    join_rate: u32,

    /// Maximum number of existing rooms that one address has created, at least 1 [default: a quarter of all]
    #[arg(long, env = "CHITCHAT_MAX_ROOMS_PER_ADDRESS", value_name = "N", value_parser = integer::<usize>, help_heading = "Connections")]
    max_rooms_per_address: Option<usize>,

    /// Rooms per minute that one address may create, at least 1, with an initial burst of as many as may exist
    #[arg(long, env = "CHITCHAT_NEW_ROOM_RATE", value_name = "N", default_value_t = RateLimits::default().new_rooms, value_parser = integer::<u32>, help_heading = "Connections")]
    new_room_rate: u32,

    /// Addresses or networks of proxies, separated by commas, whose connections begin with a header of the PROXY protocol
    /// (version 2): limits per address and logs then see their clients
    #[arg(
        long,
        env = "CHITCHAT_PROXY_PROTOCOL_FROM",
        value_name = "NET",
        value_delimiter = ',',
        help_heading = "Ports"
    )]
    proxy_protocol_from: Vec<Network>,

    /// How long a new connection may take for the TLS handshake, and then to begin with HTTP/2, at least 1s
    #[arg(long, env = "CHITCHAT_HANDSHAKE_TIMEOUT", value_name = "TIME", value_parser = duration, default_value = "10s", help_heading = "Connections")]
    handshake_timeout: Duration,

    /// How long a connection may have no stream before it is closed, at least 1s
    #[arg(long, env = "CHITCHAT_IDLE_TIMEOUT", value_name = "TIME", value_parser = duration, default_value = "1m", help_heading = "Connections")]
    idle_timeout: Duration,

    /// Interval between HTTP/2 keepalive pings on an idle connection, at least 1s
    #[arg(long, env = "CHITCHAT_KEEPALIVE_INTERVAL", value_name = "TIME", value_parser = duration, default_value = "20s", help_heading = "Connections")]
    keepalive_interval: Duration,

    /// How long to wait for the answer to a keepalive ping before the connection is closed, at least 1s
    #[arg(long, env = "CHITCHAT_KEEPALIVE_TIMEOUT", value_name = "TIME", value_parser = duration, default_value = "20s", help_heading = "Connections")]
    keepalive_timeout: Duration,

    /// How long a client may read nothing, or very little, while data waits for it before its stream is ended, at least 1s
    #[arg(long, env = "CHITCHAT_STALL_TIMEOUT", value_name = "TIME", value_parser = duration, default_value = "5m", help_heading = "Connections")]
    stall_timeout: Duration,

    /// End streams of this age, give or take a tenth, so that their clients connect again and a load balancer can distribute
    /// them anew, at least 1s [default: no limit]
    #[arg(long, env = "CHITCHAT_MAX_STREAM_AGE", value_name = "TIME", value_parser = duration, help_heading = "Connections")]
    max_stream_age: Option<Duration>,

    /// Memory that the process may use, at least 128MiB; limits that need more are refused, and other defaults depend on it
    /// [default: what the cgroup or the machine has]
    #[arg(long, env = "CHITCHAT_MAX_MEMORY", value_name = "SIZE", value_parser = size::<u64>, help_heading = "Process")]
    max_memory: Option<u64>,

    /// How long a graceful shutdown may take, after SIGTERM or SIGINT or when the store has failed
    #[arg(long, env = "CHITCHAT_DRAIN_TIMEOUT", value_name = "TIME", value_parser = duration, default_value = "8s", help_heading = "Process")]
    drain_timeout: Duration,

    /// Number of worker threads, 1 to 1024 [default: one per core]
    #[arg(
        long,
        env = "CHITCHAT_WORKER_THREADS",
        value_name = "N",
        value_parser = clap::value_parser!(u16).range(1..=1024),
        help_heading = "Process"
    )]
    pub(super) worker_threads: Option<u16>,

    /// What to log: a level (error, warn, info, debug, trace), or target=level pairs separated by commas. SIGUSR1 switches to
    /// debug, the next SIGUSR1 back; without TLS and tokens, SIGHUP does the same
    #[arg(
        long,
        env = "CHITCHAT_LOG",
        value_name = "FILTER",
        default_value = "info",
        help_heading = "Process"
    )]
    log: String,

    /// Format of log lines
    #[arg(
        long,
        env = "CHITCHAT_LOG_FORMAT",
        value_name = "FORMAT",
        default_value = "auto",
        help_heading = "Process"
    )]
    log_format: LogFormat,

    /// Maximum number of messages per second that are traced because their senders request it; beyond it the server's
    /// own sampler decides [default: 1000]
    #[arg(
        long,
        env = "CHITCHAT_TRACE_REMOTE_LIMIT",
        value_name = "N",
        value_parser = integer::<u32>,
        help_heading = "Process"
    )]
    trace_remote_limit: Option<u32>,

    /// Former name of `--trace-remote-limit`.
    #[arg(long, env = "CHITCHAT_TRACE_WISHES", hide = true, value_parser = integer::<u32>)]
    trace_wishes: Option<u32>,
}

impl Args {
    /// How many messages per second may be traced because their senders request it.
    pub(super) fn trace_remote_limit(&self) -> u32 {
        self.trace_remote_limit
            .or(self.trace_wishes)
            .unwrap_or(DEFAULT_REMOTE_LIMIT_PER_SECOND)
    }

    /// Checks the configuration as a start does.
    #[cfg(any(feature = "fuzzing", test))]
    pub(in crate::cmd) fn fuzz(self) {
        self.contradictions();
        let fd_limit = Some(10_000);
        self.into_config(fd_limit, 1 << 30, 1).check(fd_limit).ok();
    }

    /// Flags that contradict each other, one line each.
    pub(super) fn contradictions(&self) -> Vec<String> {
        let data_dir = self.data_dir.as_ref().filter(|_| self.in_memory);
        let line = data_dir.map(|data_dir| {
            format!(
                "--in-memory and --data-dir {} exclude each other; remove one of them (an empty CHITCHAT_DATA_DIR counts as not \
                 set)",
                data_dir.display()
            )
        });
        line.into_iter().collect()
    }

    /// Converts the flags to the server's configuration. The system allows `fd_limit` open files, and has `system_memory` bytes
    /// of memory and this many `processors`.
    pub(super) fn into_config(self, fd_limit: Option<u64>, system_memory: u64, processors: usize) -> Config {
        let max_memory = self.max_memory.unwrap_or(system_memory);
        // The data directory of a replica has checkpoints alone.
        let replica_dir = self.data_dir.clone().filter(|_| self.cluster_secret.is_some());
        let in_memory = self.in_memory || replica_dir.is_some();
        let plan = MemoryPlan::new(max_memory, in_memory, processors);
        let default_retention = if in_memory {
            Retention {
                max_total_bytes: Retention::IN_MEMORY.max_total_bytes.min(plan.logs),
                ..Retention::IN_MEMORY
            }
        } else {
            Retention::ON_DISK
        };
        let max_age = self.retain_age;
        let retention = Retention {
            max_events: self.retain_events.unwrap_or(default_retention.max_events),
            max_bytes: self.retain_bytes.unwrap_or(default_retention.max_bytes),
            max_age,
            max_total_bytes: self
                .retain_total_bytes
                .unwrap_or(default_retention.max_total_bytes),
        };
        let max_connections = self.max_connections.unwrap_or_else(|| {
            let ceiling = connection_ceiling(fd_limit, in_memory, &retention);
            default_max_connections(&plan, ceiling, self.tls_cert.is_some())
        });
        Config {
            listen: self.listen,
            tls: self
                .tls_cert
                .zip(self.tls_key)
                .map(|(certificate, key)| TlsFiles {
                    certificate,
                    key,
                    client_ca: self.tls_client_ca,
                }),
            proxies: self.proxy_protocol_from,
            insecure: self.insecure,
            auth: self.auth_keys.zip(self.auth_issuer.zip(self.auth_audience)).map(
                |(keys, (issuer, audience))| AuthOptions {
                    keys,
                    issuer,
                    audience,
                    anonymous: self.anonymous.unwrap_or_default(),
                },
            ),
            admin: self.admin,
            rules: Rules {
                max_message_chars: self.max_message_chars,
                max_clock_ahead: self.max_clock_ahead,
                max_participants: self.max_participants,
                allow_duplicate_names: self.allow_duplicate_names,
            },
            hub: HubOptions {
                max_rooms: self.max_rooms,
                feed_bytes: self.feed_bytes,
                budgets: plan.rooms,
                resume_grace: self.resume_grace,
                coalesce: self.coalesce,
                retain_age: max_age,
            },
            cluster: self.cluster_secret.map(|secret| ClusterOptions {
                nats: self.nats_identity.options(self.cluster),
                secret,
                name: self.replica_name.unwrap_or_else(|| self.listen.to_string()),
                data_dir: replica_dir,
                wait: self.wait_for_data_dir,
                checkpoint_interval: self.checkpoint_interval,
                keep: self.cluster_keep,
            }),
            retention,
            store: if in_memory {
                StoreOptions::Memory
            } else {
                StoreOptions::Disk {
                    directory: self.data_dir.unwrap_or_else(|| DEFAULT_DATA_DIR.into()),
                    durability: self.durability,
                    accept_loss: self.accept_loss,
                    wait: self.wait_for_data_dir,
                }
            },
            transport: TransportLimits {
                max_connections,
                max_connections_per_address: self
                    .max_connections_per_address
                    .unwrap_or_else(|| default_max_connections_per_address(max_connections)),
                max_streams_per_connection: self.max_streams_per_connection,
                keepalive_interval: self.keepalive_interval,
                keepalive_timeout: self.keepalive_timeout,
                stall_timeout: self.stall_timeout,
                max_stream_age: self.max_stream_age,
                handshake_timeout: self.handshake_timeout,
                idle_timeout: self.idle_timeout,
                rates: RateLimits {
                    messages: self.message_rate,
                    joins: self.join_rate,
                    new_rooms: self.new_room_rate,
                    rooms_per_address: self
                        .max_rooms_per_address
                        .unwrap_or_else(|| (self.max_rooms / 4).max(1)),
                    ..RateLimits::default()
                },
                budgets: plan.transport,
            },
            max_memory,
            drain_timeout: self.drain_timeout,
            logs: LogOptions {
                format: self.log_format,
                filter: self.log,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        args: Args,
    }

    fn args(flags: &[&str]) -> Args {
        let arguments = ["serve"].iter().chain(flags);
        Cli::try_parse_from(arguments).unwrap().args
    }

    fn config(flags: &[&str]) -> Config {
        args(flags).into_config(Some(64 + 169 + 17), 512 << 20, 4)
    }

    #[test]
    fn a_renamed_flag_keeps_its_old_name() {
        for (flags, limit) in [
            (&[][..], 1_000),
            (&["--trace-wishes=7"], 7),
            (&["--trace-remote-limit=8"], 8),
            (&["--trace-remote-limit=8", "--trace-wishes=7"], 8),
        ] {
            assert_eq!(args(flags).trace_remote_limit(), limit);
        }
    }

    #[test]
    fn the_default_flags_give_the_default_configuration() {
        let mut default = Config::default();
        (
            default.transport.max_connections,
            default.transport.max_connections_per_address,
        ) = (17, 13);
        assert_eq!(config(&[]), default);
    }

    #[test]
    fn a_data_directory_and_memory_exclude_each_other() {
        assert_eq!(args(&["--in-memory"]).contradictions(), [""; 0]);
        assert_eq!(args(&["--data-dir", "x"]).contradictions(), [""; 0]);
        assert_eq!(
            args(&["--in-memory", "--data-dir", "x"]).contradictions().len(),
            1
        );
    }

    #[test]
    fn the_default_retention_is_as_the_help_says() {
        for (flags, sizes) in [
            (&[][..], ["256MiB", "8GiB"]),
            (&["--in-memory"], ["32MiB", "256MiB"]),
        ] {
            let [bytes, total] = sizes.map(|raw| size::<u64>(raw).unwrap());
            let retention = config(flags).retention;
            assert_eq!((retention.max_bytes, retention.max_total_bytes), (bytes, total));
        }
    }
}
