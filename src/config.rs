//! The server's configuration, validated as a whole before any port is bound.

use std::fmt::Display;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use crate::admin;
use crate::auth::AuthOptions;
use crate::cluster::ClusterOptions;
use crate::domain::Rules;
use crate::domain::limits::{MAX_CLOCK_AHEAD_CEILING, MAX_MESSAGE_CHARS_CEILING, per_address};
use crate::hub::HubOptions;
use crate::memory_plan::{MemoryPlan, connection_bytes, room_bytes, transport_bytes};
use crate::procfs::memory_limit;
use crate::rpc::{Network, ServerTls, TlsFiles, TransportLimits};
use crate::store::{DiskOptions, Durability, Retention};
use crate::telemetry::{LogFormat, LogOptions};

/// Minimum of `--feed-bytes`: several batches, so that a subscriber that keeps up never lags.
const MIN_FEED_BYTES: usize = 1 << 20;

/// Minimum of `--retain-events`: enough for what a client misses during a short disconnection.
const MIN_RETAINED_EVENTS: u64 = 1_000;

/// Minimum of `--retain-bytes` and `--retain-total-bytes`.
const MIN_RETAINED_BYTES: u64 = 1 << 20;

/// File descriptors that gRPC connections must leave free beside those of the store: one for each connection of the admin
/// port, and 32 for listeners, files and the runtime, which are 16 of an idle server.
const RESERVED_DESCRIPTORS: u64 = 32 + admin::MAX_CONNECTIONS as u64;

/// Minimum of `--max-memory`.
const MIN_MEMORY: u64 = 128 << 20;

/// The memory to plan with if the system does not say how much there is: that of the compose file.
const DEFAULT_MEMORY: u64 = 512 << 20;

/// Maximum of `--max-connections`, unless the limit of open files allows fewer.
const MAX_CONNECTIONS: u64 = 100_000;

/// Where the rooms' logs are stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StoreOptions {
    /// In memory. The logs are lost when the process ends.
    Memory,
    /// On disk.
    Disk {
        /// The data directory. Created if it does not exist.
        directory: PathBuf,
        /// What an acknowledged event survives.
        durability: Durability,
        /// Whether to start even though a log has lost acknowledged events at its end. The log then gets a new epoch.
        accept_loss: bool,
        /// How long to wait until another server that uses the directory has ended.
        wait: Option<Duration>,
    },
}

/// The default of `--data-dir`.
pub const DEFAULT_DATA_DIR: &str = "./chitchat-data";

/// The configuration of a server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// The address of the gRPC port. Port 0 binds a free port.
    pub listen: SocketAddr,
    /// The server's certificate. `None` if the gRPC port does not use TLS.
    pub tls: Option<TlsFiles>,
    /// The proxies whose connections begin with a header of the PROXY protocol.
    pub proxies: Vec<Network>,
    /// Whether other machines may reach the gRPC port without TLS.
    pub insecure: bool,
    /// Which tokens the server accepts. `None` if it requires none.
    pub auth: Option<AuthOptions>,
    /// The address of the admin port. Port 0 binds a free port.
    pub admin: SocketAddr,
    /// The rules of every room.
    pub rules: Rules,
    /// The limits and timings of the hub.
    pub hub: HubOptions,
    /// Where the rooms' logs are stored.
    pub store: StoreOptions,
    /// The other replicas, if there are any.
    pub cluster: Option<ClusterOptions>,
    /// How much of each log is retained.
    pub retention: Retention,
    /// The limits of the transport.
    pub transport: TransportLimits,
    /// The memory that the process may use, in bytes. The limits must fit into it.
    pub max_memory: u64,
    /// Maximum duration of a graceful shutdown.
    pub drain_timeout: Duration,
    /// The format and the level of the log that the process writes.
    pub logs: LogOptions,
}

impl Default for Config {
    /// The configuration of a command line without flags, except that `max_connections` does not depend on the limit of open
    /// files.
    fn default() -> Self {
        let local = |port| SocketAddr::from(([127, 0, 0, 1], port));
        Self {
            listen: local(50_052),
            tls: None,
            proxies: Vec::new(),
            insecure: false,
            auth: None,
            admin: local(9_464),
            rules: Rules::default(),
            hub: HubOptions::default(),
            store: StoreOptions::Disk {
                directory: DEFAULT_DATA_DIR.into(),
                durability: Durability::Sync,
                accept_loss: false,
                wait: None,
            },
            cluster: None,
            retention: Retention::ON_DISK,
            transport: TransportLimits::default(),
            max_memory: DEFAULT_MEMORY,
            drain_timeout: Duration::from_secs(8),
            logs: LogOptions {
                format: LogFormat::Auto,
                filter: "info".into(),
            },
        }
    }
}

/// Raises the process's soft limit of open files (`RLIMIT_NOFILE`) to the hard limit. Returns that limit; `None` if there is
/// none.
pub fn raise_fd_limit() -> Option<u64> {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let raised = setrlimit(
        Resource::Nofile,
        Rlimit {
            current: maximum,
            maximum,
        },
    )
    .is_ok();
    if raised { maximum } else { current }
}

/// How many file descriptors a server needs beside those of its gRPC connections.
const fn reserved_descriptors(is_in_memory: bool, retention: &Retention) -> u64 {
    let segments = if is_in_memory {
        0
    } else {
        DiskOptions::max_segments(retention)
    };
    RESERVED_DESCRIPTORS + segments
}

/// How many gRPC connections the limit of open files allows, at most 100,000.
pub fn connection_ceiling(fd_limit: Option<u64>, is_in_memory: bool, retention: &Retention) -> usize {
    let reserved = reserved_descriptors(is_in_memory, retention);
    let connections = fd_limit.map_or(MAX_CONNECTIONS, |limit| limit.saturating_sub(reserved));
    usize::try_from(connections.min(MAX_CONNECTIONS)).unwrap_or(usize::MAX)
}

/// The default of `--max-memory`: what the cgroup or the machine has.
pub fn system_memory() -> u64 {
    memory_limit().unwrap_or(DEFAULT_MEMORY)
}

/// The default of `--max-connections`: as many as fit into their share of the memory, and at most `connection_ceiling`.
pub fn default_max_connections(plan: &MemoryPlan, connection_ceiling: usize, is_tls: bool) -> usize {
    let fitting = usize::try_from(plan.connections / connection_bytes(is_tls)).unwrap_or(usize::MAX);
    fitting.clamp(1, connection_ceiling.max(1))
}

/// The default of `--max-connections-per-address`: three quarters of all, so that a single address never takes all of them.
pub const fn default_max_connections_per_address(max_connections: usize) -> usize {
    per_address(max_connections)
}

impl Config {
    /// Validates the configuration. `fd_limit` is the limit of open files, see [`raise_fd_limit`].
    ///
    /// # Errors
    ///
    /// All mistakes, one line each: the flag, its value, and the valid range.
    pub fn check(&self, fd_limit: Option<u64>) -> Result<(), Vec<String>> {
        let mut mistakes = Mistakes::default();
        self.check_rooms(&mut mistakes);
        self.check_connections(fd_limit, &mut mistakes);
        self.check_retention(&mut mistakes);
        self.check_memory(&mut mistakes);
        self.check_tls(&mut mistakes);
        self.check_cluster(&mut mistakes);
        if let Err(error) = self.logs.check() {
            let filter = &self.logs.filter;
            mistakes.0.push(format!(
                "--log is {filter:?}: {error}; it must be a level such as info, or target=level pairs"
            ));
        }
        if mistakes.0.is_empty() {
            Ok(())
        } else {
            Err(mistakes.0)
        }
    }

    fn check_rooms(&self, mistakes: &mut Mistakes) {
        let Rules {
            max_message_chars,
            max_clock_ahead,
            max_participants,
            allow_duplicate_names: _,
        } = self.rules;
        mistakes.require(
            (1..=MAX_MESSAGE_CHARS_CEILING).contains(&max_message_chars),
            "--max-message-chars",
            max_message_chars,
            format!("1 to {MAX_MESSAGE_CHARS_CEILING}"),
        );
        mistakes.require(
            (1..=MAX_CLOCK_AHEAD_CEILING).contains(&max_clock_ahead),
            "--max-clock-ahead",
            max_clock_ahead,
            format!("1 to {MAX_CLOCK_AHEAD_CEILING}"),
        );
        mistakes.require_at_least("--max-participants", max_participants, 1);
        mistakes.require_at_least("--max-rooms", self.hub.max_rooms, 1);
        mistakes.require_at_least("--feed-bytes", self.hub.feed_bytes, MIN_FEED_BYTES);
    }

    fn check_connections(&self, fd_limit: Option<u64>, mistakes: &mut Mistakes) {
        let TransportLimits {
            max_connections,
            max_connections_per_address,
            max_streams_per_connection,
            handshake_timeout,
            idle_timeout,
            keepalive_interval,
            keepalive_timeout,
            stall_timeout,
            max_stream_age,
            rates,
            budgets: _,
        } = self.transport;
        mistakes.require_at_least("--message-rate", rates.messages.unwrap_or(1), 1);
        mistakes.require_at_least("--join-rate", rates.joins, 1);
        mistakes.require_at_least("--new-room-rate", rates.new_rooms, 1);
        mistakes.require_at_least("--max-rooms-per-address", rates.rooms_per_address, 1);
        let is_in_memory = self.store == StoreOptions::Memory;
        let connection_ceiling = connection_ceiling(fd_limit, is_in_memory, &self.retention);
        if connection_ceiling == 0 {
            let min = reserved_descriptors(is_in_memory, &self.retention) + 1;
            mistakes.0.push(format!(
                "the limit of open files (ulimit -n) allows no connections; it must be {min} or more, or --retain-total-bytes \
                 lower"
            ));
        } else {
            mistakes.require(
                (1..=connection_ceiling).contains(&max_connections),
                "--max-connections",
                max_connections,
                format!(
                    "1 to {connection_ceiling}, which is what the limit of open files (ulimit -n) allows"
                ),
            );
        }
        mistakes.require_at_least("--max-connections-per-address", max_connections_per_address, 1);
        mistakes.require_at_least("--max-streams-per-connection", max_streams_per_connection, 1);
        for (flag, value) in [
            ("--handshake-timeout", handshake_timeout),
            ("--idle-timeout", idle_timeout),
            ("--keepalive-interval", keepalive_interval),
            ("--keepalive-timeout", keepalive_timeout),
            ("--stall-timeout", stall_timeout),
            ("--max-stream-age", max_stream_age.unwrap_or(Duration::MAX)),
        ] {
            let is_valid = value >= Duration::from_secs(1);
            mistakes.require(is_valid, flag, humantime::format_duration(value), "1s or more");
        }
        if self.listen.port() != 0 && self.listen == self.admin {
            mistakes.0.push(format!(
                "--listen and --admin are both {}; they must differ",
                self.listen
            ));
        }
    }

    fn check_tls(&self, mistakes: &mut Mistakes) {
        match &self.tls {
            Some(files) => mistakes.0.extend(
                ServerTls::load(files.clone())
                    .err()
                    .map(|error| error.to_string()),
            ),
            None if self.insecure || self.listen.ip().is_loopback() => {}
            None => mistakes.0.push(format!(
                "--listen is {}, which other machines can reach, and there is no TLS; set --tls-cert and --tls-key, or \
                 --insecure if a proxy or the network encrypts",
                self.listen
            )),
        }
    }

    fn check_cluster(&self, mistakes: &mut Mistakes) {
        let Some(cluster) = &self.cluster else {
            return;
        };
        if self.store != StoreOptions::Memory {
            mistakes.0.push(
                "--cluster needs --data-dir for its checkpoints, or --in-memory to run without checkpoints"
                    .into(),
            );
        }
        let interval = cluster.checkpoint_interval;
        mistakes.require(
            interval >= Duration::from_secs(1),
            "--checkpoint-interval",
            humantime::format_duration(interval),
            "1s or more",
        );
        let address = cluster.nats.addresses().err();
        mistakes
            .0
            .extend(address.map(|error| format!("--cluster: {error}")));
        mistakes.0.extend(cluster.nats.check_credentials());
        mistakes.0.extend(cluster.read_secret().err());
    }

    /// Whether what clients can fill fits into the memory.
    fn check_memory(&self, mistakes: &mut Mistakes) {
        mistakes.require(
            self.max_memory >= MIN_MEMORY,
            "--max-memory",
            self.max_memory,
            format!("{MIN_MEMORY} or more"),
        );
        let connections = u64::try_from(self.transport.max_connections).unwrap_or(u64::MAX);
        let connections = connections.saturating_mul(connection_bytes(self.tls.is_some()));
        let logs = match self.store {
            StoreOptions::Memory => self.retention.max_total_bytes,
            StoreOptions::Disk { .. } => 0,
        };
        let transport = transport_bytes(&self.transport.budgets);
        let feed = u64::try_from(self.hub.feed_bytes).unwrap_or(u64::MAX);
        let rooms = room_bytes(&self.hub.budgets).max(feed);
        let needed = [connections, logs, transport, rooms]
            .into_iter()
            .fold(0, u64::saturating_add);
        if needed > self.max_memory {
            let mib = |bytes: u64| bytes.div_ceil(1 << 20);
            let [needed, limit, connections, logs, transport, rooms] =
                [needed, self.max_memory, connections, logs, transport, rooms].map(mib);
            mistakes.0.push(format!(
                "the limits need {needed} MiB, and --max-memory is {limit} MiB: {connections} MiB for --max-connections, {logs} \
                 MiB for --retain-total-bytes in memory, {transport} MiB for messages, responses and streams, {rooms} MiB for \
                 the mailboxes and feeds of rooms (--feed-bytes); lower one of them"
            ));
        }
    }

    fn check_retention(&self, mistakes: &mut Mistakes) {
        let Retention {
            max_events,
            max_bytes,
            max_age,
            max_total_bytes,
        } = self.retention;
        mistakes.require_at_least("--retain-events", max_events, MIN_RETAINED_EVENTS);
        mistakes.require_at_least("--retain-bytes", max_bytes, MIN_RETAINED_BYTES);
        if let Some(max_age) = max_age {
            let age = humantime::format_duration(max_age);
            let is_valid = max_age >= Duration::from_secs(1);
            mistakes.require(
                is_valid,
                "--retain-age",
                age,
                "1s or more; without it there is no limit",
            );
        }
        mistakes.require_at_least("--retain-total-bytes", max_total_bytes, MIN_RETAINED_BYTES);
    }
}

/// The mistakes in a configuration, one line each.
#[derive(Default)]
struct Mistakes(Vec<String>);

impl Mistakes {
    fn require(&mut self, is_valid: bool, flag: &str, value: impl Display, valid: impl Display) {
        if !is_valid {
            self.0.push(format!("{flag} is {value}; it must be {valid}"));
        }
    }

    fn require_at_least<T: Display + PartialOrd>(&mut self, flag: &str, value: T, min: T) {
        self.require(value >= min, flag, value, format_args!("{min} or more"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_configuration_is_valid() {
        assert_eq!(Config::default().check(None), Ok(()));
    }

    #[test]
    fn all_mistakes_are_reported_at_once() {
        let mut config = Config::default();
        config.rules.max_message_chars = 0;
        config.hub.feed_bytes = 7;
        config.transport.max_connections = 101;
        config.logs.filter = "=loud=".into();
        config.admin = config.listen;
        let mistakes = config.check(Some(64 + 169 + 100)).unwrap_err();
        assert_eq!(mistakes.len(), 5, "{mistakes:#?}");
        assert_eq!(mistakes[0], "--max-message-chars is 0; it must be 1 to 100000");
    }

    #[test]
    fn plain_text_beyond_this_machine_must_be_asked_for() {
        for (listen, insecure, mistakes) in [
            ("127.0.0.2:1", false, 0),
            ("[::1]:1", false, 0),
            ("0.0.0.0:1", false, 1),
            ("[::]:1", false, 1),
            ("192.0.2.1:1", false, 1),
            ("0.0.0.0:1", true, 0),
        ] {
            let config = Config {
                listen: listen.parse().unwrap(),
                insecure,
                ..Config::default()
            };
            let found = config.check(None).err().unwrap_or_default();
            assert_eq!(found.len(), mistakes, "{listen}: {found:?}");
        }
    }

    #[test]
    fn a_certificate_that_cannot_be_read_is_a_mistake() {
        let config = Config {
            tls: Some(TlsFiles {
                certificate: "missing.pem".into(),
                key: "missing.pem".into(),
                client_ca: None,
            }),
            ..Config::default()
        };
        let mistakes = config.check(None).unwrap_err();
        let is_named = |line: &String| line.starts_with("--tls-cert missing.pem cannot be read: ");
        assert!(mistakes.iter().any(is_named), "{mistakes:?}");
    }

    #[test]
    fn limits_that_do_not_fit_into_the_memory_are_refused() {
        let mut config = Config {
            store: StoreOptions::Memory,
            retention: Retention::IN_MEMORY,
            ..Config::default()
        };
        let mistakes = config.check(None).unwrap_err();
        assert_eq!(mistakes.len(), 1, "{mistakes:?}");
        assert!(
            mistakes[0].starts_with("the limits need 728 MiB, and --max-memory is 512 MiB: 184 MiB for"),
            "{mistakes:?}"
        );
        config.max_memory = 729 << 20;
        assert_eq!(config.check(None), Ok(()));
    }

    #[test]
    fn a_limit_of_open_files_that_allows_no_connections_is_named() {
        let mut config = Config::default();
        config.transport.max_connections =
            default_max_connections(&MemoryPlan::new(1 << 30, false, 4), 0, false);
        let mistakes = config.check(Some(233)).unwrap_err();
        assert_eq!(
            mistakes,
            [
                "the limit of open files (ulimit -n) allows no connections; it must be 234 or more, or --retain-total-bytes lower"
            ]
        );
    }
}
