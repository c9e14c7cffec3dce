//! What NATS must be like: its servers, and the configuration of the stream.

use std::time::Duration;

use async_nats::Client;
use bytes::Bytes;
use futures_util::StreamExt as _;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::timeout;

use super::import::IMPORT_POSITION;
use super::membership::{HEARTBEAT, safe_position};
use super::message::{Content, LogPosition, Message, NewestCheckpoint};
use super::nats::{
    Delivered, FETCHED_MESSAGES, NatsError, NatsOptions, REPUBLISHED, STREAM, SUBJECT, SUBJECTS, Stream,
    call, publish_error, stream_info,
};
use super::truncation::{self, StreamExtent};
use crate::wall_clock::wall_time;

/// Since this version a server syncs once for many messages.
const MIN_VERSION: (u64, u64) = (2, 15);

/// A batch and the records of a checkpoint fit into this many bytes; it is what a server accepts unless it is told otherwise.
const MIN_MAX_PAYLOAD: usize = 1 << 20;

/// JetStream's code of the error that there is no such stream.
const STREAM_NOT_FOUND: u64 = 10_059;

/// How many of the newest messages are searched for heartbeats.
const SCANNED_MESSAGES: usize = FETCHED_MESSAGES;

/// A replica whose newest heartbeat is older than this counts as dead.
const LIVENESS_TIMEOUT: Duration = Duration::from_secs(10);

/// Each live replica writes a heartbeat within this time.
const LISTEN_TIME: Duration = HEARTBEAT.saturating_mul(2);

/// How long an answer may take.
const READ_TIMEOUT: Duration = Duration::from_secs(3);

/// The name of the connection of an operator, and so of its inbox.
const NAME: &str = "setup";

/// How long to wait for the reason why there is no answer.
const DENIAL_DELAY: Duration = Duration::from_millis(200);

/// The connection of an operator.
pub(crate) struct NatsAdmin {
    client: Client,
    options: NatsOptions,
    /// What NATS denies to the user of this connection.
    denied: watch::Receiver<Option<String>>,
}

/// A NATS server.
#[derive(Debug)]
pub(crate) struct Server {
    pub(crate) name: String,
    pub(crate) version: String,
    /// The length of the longest message that it accepts, in bytes.
    pub(crate) max_payload: usize,
}

impl Server {
    /// What is wrong with it, one line each.
    pub(crate) fn wrong(&self) -> Vec<String> {
        let payload = (self.max_payload < MIN_MAX_PAYLOAD).then(|| {
            format!(
                "its max_payload is {}; it must be {MIN_MAX_PAYLOAD} or more",
                self.max_payload
            )
        });
        wrong_version(&self.version).into_iter().chain(payload).collect()
    }
}

/// A replica that has written lately.
#[derive(Debug)]
pub(crate) struct ReplicaStatus {
    pub(crate) incarnation: LogPosition,
    pub(crate) name: String,
    pub(crate) version: String,
    /// When it has last written, by its own clock, in milliseconds.
    pub(crate) seen_at: u64,
    /// How many messages it had not applied yet.
    pub(crate) lag: u64,
    /// Its newest checkpoint.
    pub(crate) checkpoint: Option<NewestCheckpoint>,
}

impl NatsAdmin {
    pub(crate) async fn connect(options: NatsOptions) -> Result<Self, NatsError> {
        let (client, denied) = options.connect_once(NAME).await?;
        Ok(Self {
            client,
            options,
            denied,
        })
    }

    /// Waits for an answer of JetStream's API. A request that NATS denies has none, so this does not wait for it.
    async fn unless_denied(
        &self,
        answer: impl Future<Output = Result<Value, (u64, NatsError)>>,
    ) -> Result<Value, (u64, NatsError)> {
        let mut denied = self.denied.clone();
        tokio::select! {
            answer = answer => answer,
            Some(denied) = denial(&mut denied) => Err((0, NatsError::Denied(denied))),
        }
    }

    /// The servers, each asked by itself; or why one cannot be.
    pub(crate) async fn servers(&self) -> Vec<(String, Result<Server, NatsError>)> {
        let mut servers = Vec::new();
        for address in &self.options.servers {
            let one = NatsOptions {
                servers: vec![address.clone()],
                ..self.options.clone()
            };
            let shown = address.rsplit('@').next().unwrap_or_default().to_owned();
            let server = one.connect_once(NAME).await.map(|(client, _)| {
                let info = client.server_info();
                Server {
                    name: info.server_name,
                    version: info.version,
                    max_payload: info.max_payload,
                }
            });
            servers.push((shown, server));
        }
        servers
    }

    /// The stream's configuration and state, as JetStream says; `None` if there is no stream.
    pub(crate) async fn stream(&self) -> Result<Option<Value>, NatsError> {
        match self.unless_denied(stream_info(&self.client)).await {
            Ok(answer) => Ok(Some(answer)),
            Err((STREAM_NOT_FOUND, _)) => Ok(None),
            Err((_, error)) => Err(error),
        }
    }

    /// Makes the stream.
    pub(crate) async fn create_stream(&self, replicas: u64, max_bytes: u64) -> Result<Value, NatsError> {
        let mut config = required(replicas);
        config["name"] = STREAM.into();
        config["max_bytes"] = max_bytes.into();
        let subject = format!("$JS.API.STREAM.CREATE.{STREAM}");
        let created = call(&self.client, "creating the stream", subject, &config);
        let created = self.unless_denied(created).await;
        created.map_err(|(_, error)| error)
    }

    /// Reads the newest heartbeats of the stream that JetStream describes so. If the messages that were read span less than two intervals of
    /// heartbeats, or do not reach the end of the stream, also waits for the next ones.
    pub(crate) async fn replicas(&self, info: &Value) -> Result<Vec<ReplicaStatus>, NatsError> {
        let (stream, mut subscriptions) =
            Stream::subscribe(self.client.clone(), self.options.addresses()?).await?;
        let mut scan = HeartbeatScan::default();
        let StreamExtent { first, last, .. } = StreamExtent::from_info(info);
        let from = LogPosition::new(first.max(last.saturating_sub(SCANNED_MESSAGES as u64) + 1));
        stream.fetch(from, SCANNED_MESSAGES).await;
        while let Ok(Some(message)) = timeout(READ_TIMEOUT, subscriptions.fetched.next()).await {
            match Delivered::from_message(message) {
                Some(Delivered::Message {
                    position, payload, ..
                }) => scan.record(position, &payload),
                _ => break,
            }
        }
        let is_whole = scan.newest >= LogPosition::new(last);
        if !is_whole || (from > LogPosition::new(first) && scan.span() < LISTEN_TIME) {
            let listening = async {
                while let Some(message) = subscriptions.published.next().await {
                    if let Some(Delivered::Message {
                        position, payload, ..
                    }) = Delivered::from_message(message)
                    {
                        scan.record(position, &payload);
                    }
                }
            };
            timeout(LISTEN_TIME, listening).await.ok();
        }
        let replicas = scan.replicas;
        let mut denied = self.denied.clone();
        match timeout(DENIAL_DELAY, denial(&mut denied)).await {
            Ok(Some(denied)) if replicas.is_empty() => Err(NatsError::Denied(denied)),
            _ => Ok(replicas),
        }
    }

    /// Makes an empty stream begin with the position of the checkpoint that an import has written, and with its mark.
    pub(crate) async fn begin_after_import(&self, mark: &[u8]) -> Result<(), NatsError> {
        let failed = |why: String| NatsError::Request {
            what: "writing the beginning of the stream",
            why,
        };
        let mark = Bytes::copy_from_slice(mark);
        for position in 1..=IMPORT_POSITION.get() {
            // Nobody applies them: a replica that has not the checkpoint ends if it meets one.
            let acknowledged = self.client.request(SUBJECT, mark.clone()).await;
            let acknowledged = acknowledged.map_err(|error| failed(error.to_string()))?;
            if let Some(why) = publish_error(&acknowledged) {
                return Err(failed(why));
            }
            let answer: Value = serde_json::from_slice(&acknowledged.payload).unwrap_or_default();
            if answer["seq"].as_u64() != Some(position) {
                return Err(failed(
                    "somebody else has written to the stream meanwhile; remove and make it anew".into(),
                ));
            }
        }
        truncation::purge(&self.client, IMPORT_POSITION.get())
            .await
            .map(drop)
    }

    /// Removes the messages that the checkpoints of two live replicas have and that are older than `keep`; if the stream is nearly full, also
    /// younger ones. Returns how many.
    pub(crate) async fn truncate(&self, info: &Value, keep: Duration) -> Result<Option<u64>, NatsError> {
        let extent = StreamExtent::from_info(info);
        let mut replicas = self.replicas(info).await?;
        replicas.sort_unstable_by_key(|replica| replica.incarnation);
        let now = wall_time().as_millis();
        let lives = |replica: &&ReplicaStatus| {
            u128::from(now.saturating_sub(replica.seen_at)) < LIVENESS_TIMEOUT.as_millis()
        };
        let living = replicas.iter().filter(lives);
        match safe_position(living.filter_map(|replica| replica.checkpoint)) {
            Some(safe) => truncation::truncate(&self.client, &extent, safe, keep)
                .await
                .map(Some),
            None => Ok(None),
        }
    }
}

/// What replicas say of themselves.
#[derive(Debug, Default)]
struct HeartbeatScan {
    replicas: Vec<ReplicaStatus>,
    newest: LogPosition,
    /// The times of the oldest and the newest message, in milliseconds.
    times: Option<(u64, u64)>,
}

impl HeartbeatScan {
    fn record(&mut self, position: LogPosition, payload: &[u8]) {
        self.newest = self.newest.max(position);
        let Ok(message) = Message::decode(payload) else {
            return;
        };
        let at = message.at.as_millis();
        let (oldest, newest) = self.times.unwrap_or((at, at));
        self.times = Some((oldest.min(at), newest.max(at)));
        let Content::Heartbeat {
            incarnation,
            applied,
            digest: _,
            checkpoint,
            name,
            version,
        } = message.content
        else {
            return;
        };
        let status = ReplicaStatus {
            incarnation,
            name: name.to_string(),
            version: version.to_string(),
            seen_at: at,
            lag: position.get().saturating_sub(applied.get().saturating_add(1)),
            checkpoint,
        };
        match self
            .replicas
            .iter_mut()
            .find(|known| known.incarnation == incarnation)
        {
            Some(known) => *known = status,
            None => self.replicas.push(status),
        }
    }

    fn span(&self) -> Duration {
        let (oldest, newest) = self.times.unwrap_or_default();
        Duration::from_millis(newest - oldest)
    }
}

/// Waits until something is denied.
async fn denial(denied: &mut watch::Receiver<Option<String>>) -> Option<String> {
    let denied = denied.wait_for(Option::is_some).await.ok()?;
    denied.clone()
}

/// What is wrong with the version of a server, if anything is.
fn wrong_version(version: &str) -> Option<String> {
    let mut numbers = version
        .split(['.', '-'])
        .map(|number| number.parse().unwrap_or(0));
    let found = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    (found < MIN_VERSION).then(|| {
        let (major, minor) = MIN_VERSION;
        format!("its version is {version}; it must be {major}.{minor} or later")
    })
}

/// What the stream's configuration must have.
fn required(replicas: u64) -> Value {
    json!({
        "subjects": [SUBJECTS],
        "retention": "limits",
        "storage": "file",
        "num_replicas": replicas,
        // A stream that is full refuses what is new, rather than to forget what is old.
        "discard": "new",
        "max_msgs": -1,
        "max_age": 0,
        "max_msgs_per_subject": -1,
        "deny_delete": true,
        "allow_direct": true,
        "allow_rollup_hdrs": false,
        "republish": { "src": SUBJECTS, "dest": REPUBLISHED },
    })
}

/// What is wrong with the stream's configuration, one line each.
pub(crate) fn wrong_config(config: &Value, replicas: u64) -> Vec<String> {
    let Value::Object(required) = required(replicas) else {
        return Vec::new();
    };
    let mut wrong: Vec<String> = required
        .iter()
        .filter(|(name, value)| config.get(name.as_str()).unwrap_or(&Value::Null) != *value)
        .map(|(name, value)| {
            let found = config.get(name.as_str()).unwrap_or(&Value::Null);
            format!("{name} of the stream {STREAM} is {found}; it must be {value}")
        })
        .collect();
    if config
        .get("max_bytes")
        .and_then(Value::as_i64)
        .is_none_or(|max| max <= 0)
    {
        wrong.push(format!(
            "max_bytes of the stream {STREAM} is not set; it must be, so that a stream that is full refuses messages before the disk is"
        ));
    }
    wrong
}

/// The names of the servers that store the stream, its leader first. None of a server that is alone.
pub(crate) fn peers(stream: &Value) -> Vec<String> {
    let raft = &stream["cluster"];
    let followers = raft["replicas"].as_array().into_iter().flatten();
    let names = followers.map(|peer| &peer["name"]);
    std::iter::once(&raft["leader"])
        .chain(names)
        .filter_map(|name| name.as_str().map(str::to_owned))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::WallTime;

    #[test]
    fn the_newest_heartbeat_of_each_replica_counts() {
        let mut scan = HeartbeatScan::default();
        assert_eq!(scan.span(), Duration::ZERO);
        for (position, incarnation, at) in [(7, 1, 1_000), (8, 2, 1_500), (9, 1, 2_250)] {
            let message = Message {
                at: WallTime::from_millis(at),
                content: Content::Heartbeat {
                    incarnation: LogPosition::new(incarnation),
                    applied: LogPosition::new(position - 1),
                    digest: 0,
                    checkpoint: None,
                    name: format!("r{incarnation}").into(),
                    version: "1".into(),
                },
            };
            scan.record(LogPosition::new(position), &message.encode());
        }
        scan.record(LogPosition::new(10), b"what no program understands");
        let seen = |replica: &ReplicaStatus| (replica.name.clone(), replica.seen_at, replica.lag);
        let seen: Vec<_> = scan.replicas.iter().map(seen).collect();
        assert_eq!(seen, [("r1".into(), 2_250, 0), ("r2".into(), 1_500, 0)]);
        assert_eq!(scan.span(), Duration::from_millis(1_250));
        assert_eq!(scan.newest, LogPosition::new(10));
    }

    #[test]
    fn what_is_wrong_is_said() {
        let mut config = required(3);
        config["max_bytes"] = 1_000.into();
        assert_eq!(wrong_config(&config, 3), Vec::<String>::new());
        config["discard"] = "old".into();
        config["num_replicas"] = 1.into();
        config["max_bytes"] = (-1).into();
        let wrong = wrong_config(&config, 3);
        assert_eq!(wrong.len(), 3, "{wrong:?}");
        assert!(wrong.contains(&r#"discard of the stream CHAT-0 is "old"; it must be "new""#.to_owned()));
        assert!(wrong.contains(&"num_replicas of the stream CHAT-0 is 1; it must be 3".to_owned()));
    }

    #[test]
    fn the_servers_that_store_the_stream_are_those_of_its_raft_group() {
        let stream =
            json!({ "cluster": { "leader": "n2", "replicas": [{ "name": "n1" }, { "name": "n3" }] } });
        assert_eq!(peers(&stream), ["n2", "n1", "n3"]);
        assert_eq!(peers(&json!({})), Vec::<String>::new());
    }

    #[test]
    fn servers_that_reject_long_messages_are_noticed() {
        let server = |max_payload: usize| Server {
            name: "n1".into(),
            version: "2.15.2".into(),
            max_payload,
        };
        assert_eq!(server(1 << 20).wrong(), Vec::<String>::new());
        assert_eq!(
            server(65_536).wrong(),
            ["its max_payload is 65536; it must be 1048576 or more"]
        );
    }

    #[test]
    fn old_servers_are_noticed() {
        for (version, is_wrong) in [
            ("2.15.0", false),
            ("2.16.1-RC.1", false),
            ("3.0.0", false),
            ("2.14.9", true),
            ("", true),
        ] {
            assert_eq!(wrong_version(version).is_some(), is_wrong, "{version}");
        }
    }
}
