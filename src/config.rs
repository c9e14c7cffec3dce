//! What a server is started with, checked as a whole before anything is bound.

use std::net::SocketAddr;
use std::time::Duration;

use crate::domain::Rules;
use crate::domain::limits::{MAX_MAX_MESSAGE_CHARS, MAX_TIMESTAMP};
use crate::hub::HubLimits;
use crate::rpc::TransportLimits;
use crate::telemetry::LogOptions;

/// The least that a room's feed may keep: many batches, so that who keeps up is never let go.
const MIN_FEED_BYTES: usize = 1 << 20;

/// Descriptors that are not for connections: listeners, files, the runtime's own.
const RESERVED_DESCRIPTORS: u64 = 64;

/// How many connections a server takes where neither a flag nor the descriptors say less.
const MAX_CONNECTIONS: usize = 100_000;

/// What a server is started with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Where chat clients connect.
    pub listen: SocketAddr,
    /// Where the admin port is.
    pub admin: SocketAddr,
    /// The rules of the rooms.
    pub rules: Rules,
    /// The limits of the hub.
    pub hub: HubLimits,
    /// The limits of the transport.
    pub transport: TransportLimits,
    /// How long draining may take.
    pub drain_timeout: Duration,
    /// What is logged.
    pub logs: LogOptions,
}

/// How many connections there may be at most, by the process's descriptors (after its soft limit was raised as far as
/// it goes).
#[must_use]
pub fn connections_possible() -> usize {
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
    let descriptors = if raised { maximum } else { current };
    descriptors.map_or(MAX_CONNECTIONS, |limit| {
        usize::try_from(limit.saturating_sub(RESERVED_DESCRIPTORS))
            .unwrap_or(MAX_CONNECTIONS)
            .min(MAX_CONNECTIONS)
    })
}

impl Config {
    /// Whether it holds together.
    ///
    /// # Errors
    ///
    /// Every mistake, a line each: which flag, its value, and what would be right.
    pub fn check(&self, connections_possible: usize) -> Result<(), Vec<String>> {
        let mut mistakes = Vec::new();
        let mut expect = |is_right: bool, mistake: String| {
            if !is_right {
                mistakes.push(mistake);
            }
        };
        let Rules {
            max_message_chars,
            max_clock_ahead,
            max_participants,
            allow_duplicate_names: _,
        } = self.rules;
        expect(
            (1..=MAX_MAX_MESSAGE_CHARS).contains(&max_message_chars),
            format!("--max-message-chars is {max_message_chars}; it must be 1 to {MAX_MAX_MESSAGE_CHARS}"),
        );
        expect(
            (1..=MAX_TIMESTAMP).contains(&max_clock_ahead),
            format!("--max-clock-ahead is {max_clock_ahead}; it must be 1 to 2^62"),
        );
        expect(
            max_participants > 0,
            format!("--max-participants is {max_participants}; it must be 1 or more"),
        );
        expect(
            self.hub.max_rooms > 0,
            format!("--max-rooms is {}; it must be 1 or more", self.hub.max_rooms),
        );
        expect(
            self.hub.feed_bytes >= MIN_FEED_BYTES,
            format!(
                "--feed-bytes is {}; it must be {MIN_FEED_BYTES} or more",
                self.hub.feed_bytes
            ),
        );
        let TransportLimits {
            max_connections,
            max_streams_per_connection,
            keepalive_interval,
            keepalive_timeout,
            ..
        } = self.transport;
        expect(
            (1..=connections_possible).contains(&max_connections),
            format!(
                "--max-connections is {max_connections}; it must be 1 to {connections_possible}, which is what the \
                 limit of open files (ulimit -n) allows"
            ),
        );
        expect(
            max_streams_per_connection > 0,
            format!("--max-streams-per-connection is {max_streams_per_connection}; it must be 1 or more"),
        );
        for (flag, value) in [
            ("--keepalive-interval", keepalive_interval),
            ("--keepalive-timeout", keepalive_timeout),
        ] {
            expect(
                value >= Duration::from_secs(1),
                format!(
                    "{flag} is {}; it must be 1s or more",
                    humantime::format_duration(value)
                ),
            );
        }
        expect(
            self.listen.port() == 0 || self.listen != self.admin,
            format!("--listen and --admin are both {}; they must differ", self.listen),
        );
        if let Err(error) = self.logs.check() {
            let filter = &self.logs.filter;
            expect(
                false,
                format!(
                    "--log is {filter:?}: {error}; it must be a level such as info, or target=level pairs"
                ),
            );
        }
        if mistakes.is_empty() {
            Ok(())
        } else {
            Err(mistakes)
        }
    }
}
