//! The parameters of a run.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use super::error::BenchError;
use super::payload_header::PAYLOAD_HEADER_LEN;
use super::process::Process;

/// The protocol of the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// Chit Chat's gRPC.
    Chitchat,
    /// The text protocol of nats-server.
    Nats,
    /// JetStream: nats-server with a stream, in which each message is stored, and a consumer for each client.
    JetStream,
    /// The publish/subscribe of redis-server.
    Redis,
    /// MQTT 3.1.1, QoS 0, as mosquitto speaks it.
    Mqtt,
    /// The limit server: length-prefixed texts over plain TCP.
    Limit,
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Chitchat => "chitchat",
            Self::Nats => "nats",
            Self::JetStream => "jetstream",
            Self::Redis => "redis",
            Self::Mqtt => "mqtt",
            Self::Limit => "limit",
        })
    }
}

/// When a publisher may send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Load {
    /// Closed loop: while fewer than this many of its messages are outstanding.
    Window(u32),
    /// As fast as flow control permits.
    Flood,
    /// Open loop: this many messages per second of all publishers together, on a fixed schedule.
    Rate(u64),
}

/// When a run ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Until {
    /// After a time, whose first part is not measured.
    Elapsed {
        /// Load before the measured time.
        warmup: Duration,
        /// The measured time.
        measured: Duration,
    },
    /// After this many messages of all publishers together; all of them are measured.
    Count(u64),
}

/// The HTTP/2 settings of the clients.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Http2Settings {
    /// `SETTINGS_MAX_FRAME_SIZE`, 16,384 to 16,777,215 bytes.
    pub max_frame_size: u32,
    /// The initial flow-control window of a stream, in bytes.
    pub stream_window: u32,
    /// The flow-control window of a connection, in bytes.
    pub connection_window: u32,
}

/// The parameters of a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// `host:port` of each server. The clients are spread over all of them.
    pub servers: Vec<String>,
    /// The file with the issuers of the servers' certificates (PEM); `None` for plain text.
    pub ca: Option<PathBuf>,
    /// The protocol of the servers.
    pub protocol: Protocol,
    /// The number of clients that only receive.
    pub subscribers: u32,
    /// The number of connections that the subscribers share; `None` means one per subscriber.
    pub connections: Option<u32>,
    /// The number of clients that send. Each has its own connection and also receives.
    pub publishers: u32,
    /// The number of rooms that the clients are distributed over.
    pub rooms: u32,
    /// The room of Chit Chat, if there is one and it is not a new one.
    pub room: Option<String>,
    /// The length of a text in bytes.
    pub payload: usize,
    /// When a publisher may send.
    pub load: Load,
    /// When the run ends.
    pub until: Until,
    /// How long to wait for missing deliveries while nothing arrives.
    pub drain_timeout: Duration,
    /// Keep the clients idle, then send one message.
    pub idle: bool,
    /// The process ids of the servers, to measure their resource usage.
    pub pids: Vec<u32>,
    /// The number of generator threads.
    pub threads: u32,
    /// The HTTP/2 settings of the clients.
    pub http2: Http2Settings,
    /// Whether to show progress on stderr.
    pub progress: bool,
}

/// A longer text may not fit into the smallest initial window of HTTP/2.
const MAX_PAYLOAD: usize = 32_768;
/// A payload header has 16 bits for the publisher.
const MAX_PUBLISHERS: u32 = 65_536;
/// More clients than one machine has ports for.
const MAX_CLIENTS: u32 = 1_000_000;
const MAX_THREADS: u32 = 64;
const MAX_SERVERS: usize = 64;
/// A server may consist of several processes.
const MAX_PIDS: usize = 256;
/// A day, so that no sum of times overflows 64 bits of nanoseconds.
const MAX_TIME: Duration = Duration::from_secs(86_400);
/// An upper bound for the number of open files other than connections.
const OTHER_FILES: u64 = 32;

impl Plan {
    /// The number of clients.
    pub fn clients(&self) -> u32 {
        self.subscribers.saturating_add(self.publishers)
    }

    /// Returns a line for each error in the plan; empty if the plan is valid.
    pub fn validate(&self) -> Vec<String> {
        let mut errors = Vec::new();
        let mut require = |right: bool, text: String| {
            if !right {
                errors.push(text);
            }
        };
        require(
            (1..=MAX_SERVERS).contains(&self.servers.len()),
            format!(
                "--server: {} addresses; must be 1 to {MAX_SERVERS}",
                self.servers.len()
            ),
        );
        require(
            self.servers.len() == 1 || self.protocol != Protocol::Limit,
            "--server: limit servers share nothing, so there can be only one".to_owned(),
        );
        let is_repeated =
            |(index, pid): (usize, &u32)| self.pids.iter().take(index).any(|other| other == pid);
        require(
            self.pids.len() <= MAX_PIDS && !self.pids.iter().enumerate().any(is_repeated),
            format!("--pid: at most {MAX_PIDS} processes, each once"),
        );
        require(
            (PAYLOAD_HEADER_LEN..=MAX_PAYLOAD).contains(&self.payload),
            format!(
                "--payload {}: must be {PAYLOAD_HEADER_LEN} to {MAX_PAYLOAD} bytes",
                self.payload
            ),
        );
        require(
            (1..=MAX_PUBLISHERS).contains(&self.publishers),
            format!("--publishers {}: must be 1 to {MAX_PUBLISHERS}", self.publishers),
        );
        require(
            self.clients() <= MAX_CLIENTS,
            format!(
                "--subscribers {}: at most {MAX_CLIENTS} clients can take part",
                self.subscribers
            ),
        );
        require(
            (1..=MAX_THREADS).contains(&self.threads),
            format!("--threads {}: must be 1 to {MAX_THREADS}", self.threads),
        );
        require(
            self.rooms >= 1 && (self.rooms <= self.publishers || self.idle),
            format!(
                "--rooms {}: must be 1 to the number of publishers ({}), or some rooms would have no messages",
                self.rooms, self.publishers
            ),
        );
        require(
            self.connections.is_none_or(|connections| connections >= 1),
            "--connections 0: must be at least 1".to_owned(),
        );
        require(
            self.connections.is_none()
                || matches!(
                    self.protocol,
                    Protocol::Chitchat | Protocol::Nats | Protocol::JetStream
                ),
            format!("--connections: {} serves one client a connection", self.protocol),
        );
        require(
            self.ca.is_none() || self.protocol == Protocol::Chitchat,
            format!("--ca: {} is spoken in plain text only", self.protocol),
        );
        require(
            self.rooms == 1 || self.protocol != Protocol::Limit,
            "--rooms: the limit server has one room".to_owned(),
        );
        require(
            self.room.is_none() || self.protocol == Protocol::Chitchat,
            format!("--room: {} has no rooms that can be chosen", self.protocol),
        );
        require(
            !matches!(self.load, Load::Window(0)),
            "--outstanding 0: must be at least 1, or nothing would be sent".to_owned(),
        );
        require(
            !matches!(self.load, Load::Rate(0)),
            "--rate 0: must be at least 1 message a second".to_owned(),
        );
        match self.until {
            Until::Elapsed { warmup, measured } => require(
                !measured.is_zero() && warmup <= MAX_TIME && measured <= MAX_TIME,
                "--warmup, --duration: the measured time must be above zero and at most a day".to_owned(),
            ),
            Until::Count(count) => require(
                count >= 1 && count <= u64::from(u32::MAX),
                format!("--count {count}: must be 1 to {}", u32::MAX),
            ),
        }
        require(
            (16_384..=16_777_215).contains(&self.http2.max_frame_size),
            format!(
                "--max-frame-size {}: must be 16384 to 16777215",
                self.http2.max_frame_size
            ),
        );
        let windows = 65_535..=0x7FFF_FFFF;
        require(
            windows.contains(&self.http2.stream_window) && windows.contains(&self.http2.connection_window),
            "--stream-window, --connection-window: must be 65535 to 2147483647".to_owned(),
        );
        errors
    }

    /// Checks that the limit on open files permits all connections of the plan.
    pub(super) fn check_files(&self) -> Result<(), BenchError> {
        let publisher_sockets: u64 = if self.protocol == Protocol::Redis { 2 } else { 1 };
        let subscribers = self
            .connections
            .map_or(self.subscribers, |limit| limit.min(self.subscribers));
        let needed = u64::from(subscribers) + u64::from(self.publishers) * publisher_sockets + OTHER_FILES;
        match Process::current().open_files() {
            Some(allowed) if allowed < needed => Err(BenchError::Plan(format!(
                "{needed} open files are needed but the limit is {allowed}: raise it (ulimit -n {needed}), or share connections with --connections"
            ))),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(crate) fn plan() -> Plan {
        Plan {
            servers: vec!["127.0.0.1:0".into()],
            ca: None,
            protocol: Protocol::Chitchat,
            subscribers: 3,
            connections: None,
            publishers: 2,
            rooms: 1,
            room: None,
            payload: 100,
            load: Load::Window(8),
            until: Until::Count(100),
            drain_timeout: Duration::from_secs(5),
            idle: false,
            pids: Vec::new(),
            threads: 1,
            http2: Http2Settings {
                max_frame_size: 16_384,
                stream_window: 1 << 20,
                connection_window: 4 << 20,
            },
            progress: false,
        }
    }

    #[test]
    fn a_valid_plan_has_no_errors() {
        assert_eq!(plan().validate(), Vec::<String>::new());
        assert_eq!(plan().check_files(), Ok(()));
    }

    #[test]
    fn every_error_is_reported() {
        let invalid = Plan {
            payload: 5,
            publishers: 0,
            threads: 0,
            load: Load::Window(0),
            ..plan()
        };
        assert_eq!(invalid.validate().len(), 5, "{:?}", invalid.validate());
        let redis = Plan {
            protocol: Protocol::Redis,
            connections: Some(1),
            ..plan()
        };
        assert_eq!(redis.validate().len(), 1);
        let limit = Plan {
            protocol: Protocol::Limit,
            rooms: 2,
            ..plan()
        };
        assert_eq!(limit.validate().len(), 1);
        let servers = |count| Plan {
            servers: vec!["127.0.0.1:0".into(); count],
            ..plan()
        };
        assert_eq!(servers(3).validate(), Vec::<String>::new());
        assert_eq!(
            servers(65).validate(),
            ["--server: 65 addresses; must be 1 to 64"]
        );
        assert_eq!(servers(0).validate().len(), 1);
        let pids = Plan {
            pids: vec![7, 8, 7],
            ..plan()
        };
        assert_eq!(pids.validate(), ["--pid: at most 256 processes, each once"]);
    }
}
