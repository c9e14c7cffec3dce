//! The flags of `chitchat serve`. Each is an environment variable too.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args as ClapArgs;

use crate::cmd::parse::{duration, size, whole};
use crate::config::{Config, DEFAULT_DATA_DIR, StoreOptions};
use crate::domain::Rules;
use crate::domain::limits::{DEFAULT_MAX_CLOCK_AHEAD, DEFAULT_MAX_MESSAGE_CHARS, DEFAULT_MAX_PARTICIPANTS};
use crate::hub::HubOptions;
use crate::rpc::TransportLimits;
use crate::store::{Durability, Retention};
use crate::telemetry::{DEFAULT_REMOTE_LIMIT_PER_SECOND, LogFormat, LogOptions};

/// Run the server.
#[derive(Debug, ClapArgs)]
pub struct Args {
    /// Where chat clients connect; port 0 takes a free one
    #[arg(
        long,
        env = "CHITCHAT_LISTEN",
        value_name = "ADDR",
        default_value = "127.0.0.1:50052",
        help_heading = "Ports"
    )]
    listen: SocketAddr,

    /// Where /livez, /readyz and /metrics are; port 0 takes a free one
    #[arg(
        long,
        env = "CHITCHAT_ADMIN",
        value_name = "ADDR",
        default_value = "127.0.0.1:9464",
        help_heading = "Ports"
    )]
    admin: SocketAddr,

    /// Where the rooms' logs are kept
    #[arg(long, env = "CHITCHAT_DATA_DIR", value_name = "DIR", default_value = DEFAULT_DATA_DIR, help_heading = "Store")]
    data_dir: PathBuf,

    /// Keeps the logs in memory only: they are gone with the process
    #[arg(long, env = "CHITCHAT_IN_MEMORY", help_heading = "Store")]
    in_memory: bool,

    /// What an acknowledged message survives: sync = a power cut, os = the end of the process
    #[arg(
        long,
        env = "CHITCHAT_DURABILITY",
        value_name = "WHAT",
        default_value = "sync",
        help_heading = "Store"
    )]
    durability: Durability,

    /// Goes on where acknowledged events are gone from the end of a room's log, after damage to the disk: the room gets a new epoch. A log of which even the room's name is gone is let go. Without it such a start is refused
    #[arg(long, env = "CHITCHAT_ACCEPT_LOSS", help_heading = "Store")]
    accept_loss: bool,

    /// How many of a room's newest events are kept, at least 1000 [default: 1000000, in memory 100000]
    #[arg(
        long,
        env = "CHITCHAT_RETAIN_EVENTS",
        value_name = "N",
        value_parser = whole::<u64>,
        help_heading = "Store"
    )]
    retain_events: Option<u64>,

    /// How much of a room's newest events is kept, at least 1MiB [default: 256MiB, in memory 32MiB]
    #[arg(
        long,
        env = "CHITCHAT_RETAIN_BYTES",
        value_name = "SIZE",
        value_parser = size::<u64>,
        help_heading = "Store"
    )]
    retain_bytes: Option<u64>,

    /// How old a room's events may be; 0s = however old
    #[arg(long, env = "CHITCHAT_RETAIN_AGE", value_name = "TIME", value_parser = humantime::parse_duration, default_value = "0s", help_heading = "Store")]
    retain_age: Duration,

    /// How much of all rooms' events is kept, at least 1MiB; the largest gives way [default: 8GiB, in memory 256MiB]
    #[arg(
        long,
        env = "CHITCHAT_RETAIN_TOTAL_BYTES",
        value_name = "SIZE",
        value_parser = size::<u64>,
        help_heading = "Store"
    )]
    retain_total_bytes: Option<u64>,

    /// How long a client that lost its connection has to come back before it leaves
    #[arg(long, env = "CHITCHAT_RESUME_GRACE", value_name = "TIME", value_parser = duration, default_value = "10s", help_heading = "Rooms")]
    resume_grace: Duration,

    /// The longest text, in characters
    #[arg(long, env = "CHITCHAT_MAX_MESSAGE_CHARS", value_name = "N", default_value_t = DEFAULT_MAX_MESSAGE_CHARS, value_parser = whole::<usize>, help_heading = "Rooms")]
    max_message_chars: usize,

    /// How far a client's Lamport time may be ahead of its room's
    #[arg(long, env = "CHITCHAT_MAX_CLOCK_AHEAD", value_name = "N", default_value_t = DEFAULT_MAX_CLOCK_AHEAD, help_heading = "Rooms")]
    max_clock_ahead: i64,

    /// How many may be in a room at a time
    #[arg(long, env = "CHITCHAT_MAX_PARTICIPANTS", value_name = "N", default_value_t = DEFAULT_MAX_PARTICIPANTS, value_parser = whole::<usize>, help_heading = "Rooms")]
    max_participants: usize,

    /// How many rooms there may be
    #[arg(long, env = "CHITCHAT_MAX_ROOMS", value_name = "N", default_value_t = HubOptions::default().max_rooms, value_parser = whole::<usize>, help_heading = "Rooms")]
    max_rooms: usize,

    /// Lets several participants of a room have the same name
    #[arg(long, env = "CHITCHAT_ALLOW_DUPLICATE_NAMES", help_heading = "Rooms")]
    allow_duplicate_names: bool,

    /// How much a room keeps in memory for readers that are behind, at least 1MiB
    #[arg(long, env = "CHITCHAT_FEED_BYTES", value_name = "SIZE", default_value = "4MiB", value_parser = size::<usize>, help_heading = "Rooms")]
    feed_bytes: usize,

    /// The longest that events of a busy room with many subscribers are gathered, to be told together; 0s = not at all. The first
    /// event after a pause never waits
    #[arg(long, env = "CHITCHAT_COALESCE", value_name = "TIME", value_parser = duration, default_value = "50ms", help_heading = "Rooms")]
    coalesce: Duration,

    /// How many connections there may be [default: as many as the limit of open files allows, at most 100000]
    #[arg(
        long,
        env = "CHITCHAT_MAX_CONNECTIONS",
        value_name = "N",
        value_parser = whole::<usize>,
        help_heading = "Connections"
    )]
    max_connections: Option<usize>,

    /// How many streams a connection may have open
    #[arg(long, env = "CHITCHAT_MAX_STREAMS_PER_CONNECTION", value_name = "N", default_value_t = TransportLimits::default().max_streams_per_connection, value_parser = whole::<u32>, help_heading = "Connections")]
    max_streams_per_connection: u32,

    /// How long a connection may be silent before it is asked for a sign of life
    #[arg(long, env = "CHITCHAT_KEEPALIVE_INTERVAL", value_name = "TIME", value_parser = duration, default_value = "20s", help_heading = "Connections")]
    keepalive_interval: Duration,

    /// How long the sign of life may take before the connection counts as lost
    #[arg(long, env = "CHITCHAT_KEEPALIVE_TIMEOUT", value_name = "TIME", value_parser = duration, default_value = "20s", help_heading = "Connections")]
    keepalive_timeout: Duration,

    /// How long a client may take nothing of what waits for it before its stream is ended
    #[arg(long, env = "CHITCHAT_STALL_TIMEOUT", value_name = "TIME", value_parser = duration, default_value = "5m", help_heading = "Connections")]
    stall_timeout: Duration,

    /// How long the server may take to end, after SIGTERM or SIGINT or when the store has failed
    #[arg(long, env = "CHITCHAT_DRAIN_TIMEOUT", value_name = "TIME", value_parser = duration, default_value = "8s", help_heading = "Process")]
    drain_timeout: Duration,

    /// How many threads serve [default: one a core]
    #[arg(
        long,
        env = "CHITCHAT_WORKER_THREADS",
        value_name = "N",
        value_parser = clap::value_parser!(u16).range(1..=1024),
        help_heading = "Process"
    )]
    pub(super) worker_threads: Option<u16>,

    /// What is logged: a level (error, warn, info, debug, trace), or target=level pairs
    #[arg(
        long,
        env = "CHITCHAT_LOG",
        value_name = "FILTER",
        default_value = "info",
        help_heading = "Process"
    )]
    log: String,

    /// How log lines look
    #[arg(
        long,
        env = "CHITCHAT_LOG_FORMAT",
        value_name = "FORMAT",
        default_value = "auto",
        help_heading = "Process"
    )]
    log_format: LogFormat,

    /// How many messages per second are traced because their sender asked for it; beyond that the server's own sampler decides [default: 1000]
    #[arg(long, env = "CHITCHAT_TRACE_REMOTE_LIMIT", value_name = "N", value_parser = whole::<u32>, help_heading = "Process")]
    trace_remote_limit: Option<u32>,

    /// The former name of --trace-remote-limit
    #[arg(long, env = "CHITCHAT_TRACE_WISHES", value_name = "N", value_parser = whole::<u32>, hide = true)]
    trace_wishes: Option<u32>,
}

impl Args {
    pub(super) fn trace_remote_limit(&self) -> u32 {
        self.trace_remote_limit
            .or(self.trace_wishes)
            .unwrap_or(DEFAULT_REMOTE_LIMIT_PER_SECOND)
    }

    /// The configuration, on a system that allows so many connections.
    pub(super) fn into_config(self, connection_ceiling: usize) -> Config {
        let kept = if self.in_memory {
            Retention::IN_MEMORY
        } else {
            Retention::ON_DISK
        };
        Config {
            listen: self.listen,
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
                resume_grace: self.resume_grace,
                coalesce: self.coalesce,
                retain_age: (!self.retain_age.is_zero()).then_some(self.retain_age),
            },
            retention: Retention {
                max_events: self.retain_events.unwrap_or(kept.max_events),
                max_bytes: self.retain_bytes.unwrap_or(kept.max_bytes),
                max_age: (!self.retain_age.is_zero()).then_some(self.retain_age),
                max_total_bytes: self.retain_total_bytes.unwrap_or(kept.max_total_bytes),
            },
            store: if self.in_memory {
                StoreOptions::Memory
            } else {
                StoreOptions::Disk {
                    directory: self.data_dir,
                    durability: self.durability,
                    accept_loss: self.accept_loss,
                }
            },
            transport: TransportLimits {
                max_connections: self.max_connections.unwrap_or(connection_ceiling),
                max_streams_per_connection: self.max_streams_per_connection,
                keepalive_interval: self.keepalive_interval,
                keepalive_timeout: self.keepalive_timeout,
                stall_timeout: self.stall_timeout,
                ..TransportLimits::default()
            },
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
    struct Alone {
        #[command(flatten)]
        args: Args,
    }

    fn args(flags: &[&str]) -> Args {
        let arguments = ["serve"].iter().chain(flags);
        Alone::try_parse_from(arguments).unwrap().args
    }

    fn config(flags: &[&str]) -> Config {
        args(flags).into_config(17)
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
    fn without_flags_it_is_the_default_configuration() {
        let mut default = Config::default();
        default.transport.max_connections = 17;
        assert_eq!(config(&[]), default);
    }

    #[test]
    fn what_the_help_says_of_defaults_is_so() {
        for (flags, kept) in [
            (&[][..], ["256MiB", "8GiB"]),
            (&["--in-memory"], ["32MiB", "256MiB"]),
        ] {
            let [bytes, total] = kept.map(|raw| size::<u64>(raw).unwrap());
            let retention = config(flags).retention;
            assert_eq!((retention.max_bytes, retention.max_total_bytes), (bytes, total));
        }
    }
}
