//! What to do: which server, how many clients, how much load, for how long.

use std::fmt;
use std::time::Duration;

use super::error::BenchError;
use super::process::Process;
use super::stamp::STAMP_LEN;

/// What the server speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// Chit Chat's own: gRPC.
    Chitchat,
    /// The text protocol of nats-server.
    Nats,
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
            Self::Redis => "redis",
            Self::Mqtt => "mqtt",
            Self::Limit => "limit",
        })
    }
}

/// When a publisher may send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Load {
    /// When fewer than this many of its messages have not come back to it.
    Window(u32),
    /// Whenever flow control permits.
    Flood,
    /// On a fixed timetable, this many messages per second of all publishers together.
    Rate(u64),
}

/// When a run is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Until {
    /// After a time, of which the first part does not count.
    Elapsed {
        /// Load that is not measured yet.
        warmup: Duration,
        /// Load that is measured.
        measured: Duration,
    },
    /// After this many messages of all publishers together; all of them count.
    Count(u64),
}

/// What the generator announces about itself in HTTP/2.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Http2Settings {
    /// The largest frame it takes (16,384 to 16,777,215).
    pub max_frame_size: u32,
    /// How much the server may send on a stream before it hears from the generator.
    pub stream_window: u32,
    /// How much the server may send on a connection before it hears from the generator.
    pub connection_window: u32,
}

/// A benchmark.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// `host:port` of the server.
    pub server: String,
    /// What the server speaks.
    pub protocol: Protocol,
    /// How many clients only read.
    pub subscribers: u32,
    /// How many connections the subscribers share; `None` = one each.
    pub connections: Option<u32>,
    /// How many clients send. Each has a connection of its own and reads what everybody sends.
    pub publishers: u32,
    /// Over how many rooms the clients are spread.
    pub rooms: u32,
    /// How long a text is, in bytes.
    pub payload: usize,
    /// When a publisher may send.
    pub load: Load,
    /// When the run is over.
    pub until: Until,
    /// How long nothing may arrive while the rest is awaited before it is given up.
    pub patience: Duration,
    /// Only hold the clients, then send one message.
    pub idle: bool,
    /// The server's process, when its resources are to be measured.
    pub pid: Option<u32>,
    /// Over how many threads the generator spreads its connections.
    pub threads: u32,
    /// What is announced in HTTP/2.
    pub http2: Http2Settings,
    /// Whether to show the progress on stderr.
    pub progress: bool,
}

/// Longer texts do not fit into the smallest initial window of HTTP/2 with certainty.
const MAX_PAYLOAD: usize = 32_768;
/// A stamp has 16 bits for the publisher.
const MAX_PUBLISHERS: u32 = 65_536;
/// The most clients of one run: far more than one machine's addresses allow.
const MAX_CLIENTS: u32 = 1_000_000;
/// The most threads of the generator.
const MAX_THREADS: u32 = 64;
/// The longest run: a stamp counts nanoseconds in 64 bits, and a day is long enough for anybody.
const MAX_TIME: Duration = Duration::from_secs(86_400);
/// Files that the generator has open besides its connections.
const OTHER_FILES: u64 = 32;

impl Plan {
    /// How many clients take part.
    pub fn clients(&self) -> u32 {
        self.subscribers.saturating_add(self.publishers)
    }

    /// Everything that is wrong with the plan.
    pub fn mistakes(&self) -> Vec<String> {
        let mut mistakes = Vec::new();
        let mut demand = |right: bool, text: String| {
            if !right {
                mistakes.push(text);
            }
        };
        demand(
            (STAMP_LEN..=MAX_PAYLOAD).contains(&self.payload),
            format!(
                "--payload {}: must be {STAMP_LEN} to {MAX_PAYLOAD} bytes",
                self.payload
            ),
        );
        demand(
            (1..=MAX_PUBLISHERS).contains(&self.publishers),
            format!("--publishers {}: must be 1 to {MAX_PUBLISHERS}", self.publishers),
        );
        demand(
            self.clients() <= MAX_CLIENTS,
            format!(
                "--subscribers {}: at most {MAX_CLIENTS} clients can take part",
                self.subscribers
            ),
        );
        demand(
            (1..=MAX_THREADS).contains(&self.threads),
            format!("--threads {}: must be 1 to {MAX_THREADS}", self.threads),
        );
        demand(
            self.rooms >= 1 && (self.rooms <= self.publishers || self.idle),
            format!(
                "--rooms {}: must be 1 to the number of publishers ({}), or some rooms would hear nothing",
                self.rooms, self.publishers
            ),
        );
        demand(
            self.connections.is_none_or(|connections| connections >= 1),
            "--connections 0: must be at least 1".to_owned(),
        );
        demand(
            self.connections.is_none() || matches!(self.protocol, Protocol::Chitchat | Protocol::Nats),
            format!("--connections: {} serves one client a connection", self.protocol),
        );
        demand(
            self.rooms == 1 || self.protocol != Protocol::Limit,
            "--rooms: the limit server has one room".to_owned(),
        );
        demand(
            !matches!(self.load, Load::Window(0)),
            "--outstanding 0: must be at least 1, or nothing would be sent".to_owned(),
        );
        demand(
            !matches!(self.load, Load::Rate(0)),
            "--rate 0: must be at least 1 message a second".to_owned(),
        );
        match self.until {
            Until::Elapsed { warmup, measured } => demand(
                !measured.is_zero() && warmup <= MAX_TIME && measured <= MAX_TIME,
                "--warmup, --duration: the measured time must be above zero and at most a day".to_owned(),
            ),
            Until::Count(count) => demand(
                count >= 1 && count <= u64::from(u32::MAX),
                format!("--count {count}: must be 1 to {}", u32::MAX),
            ),
        }
        demand(
            (16_384..=16_777_215).contains(&self.http2.max_frame_size),
            format!(
                "--max-frame-size {}: must be 16384 to 16777215",
                self.http2.max_frame_size
            ),
        );
        let windows = 65_535..=0x7FFF_FFFF;
        demand(
            windows.contains(&self.http2.stream_window) && windows.contains(&self.http2.connection_window),
            "--stream-window, --connection-window: must be 65535 to 2147483647".to_owned(),
        );
        mistakes
    }

    /// Whether this process may open all the connections of the plan.
    pub(super) fn check_files(&self) -> Result<(), BenchError> {
        let publisher_sockets: u64 = if self.protocol == Protocol::Redis { 2 } else { 1 };
        let subscribers = self
            .connections
            .map_or(self.subscribers, |limit| limit.min(self.subscribers));
        let needed = u64::from(subscribers) + u64::from(self.publishers) * publisher_sockets + OTHER_FILES;
        match Process::own().open_files() {
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
            server: "127.0.0.1:0".into(),
            protocol: Protocol::Chitchat,
            subscribers: 3,
            connections: None,
            publishers: 2,
            rooms: 1,
            payload: 100,
            load: Load::Window(8),
            until: Until::Count(100),
            patience: Duration::from_secs(5),
            idle: false,
            pid: None,
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
    fn a_sound_plan_has_no_mistakes() {
        assert_eq!(plan().mistakes(), Vec::<String>::new());
        assert_eq!(plan().check_files(), Ok(()));
    }

    #[test]
    fn every_mistake_is_reported() {
        let wrong = Plan {
            payload: 5,
            publishers: 0,
            threads: 0,
            load: Load::Window(0),
            ..plan()
        };
        assert_eq!(wrong.mistakes().len(), 5, "{:?}", wrong.mistakes());
        let redis = Plan {
            protocol: Protocol::Redis,
            connections: Some(1),
            ..plan()
        };
        assert_eq!(redis.mistakes().len(), 1);
        let limit = Plan {
            protocol: Protocol::Limit,
            rooms: 2,
            ..plan()
        };
        assert_eq!(limit.mistakes().len(), 1);
    }
}
