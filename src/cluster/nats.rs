//! NATS: the connection, and the stream that has the command log.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant, SystemTime};

use async_nats::{
    AuthError, Client, ConnectErrorKind, ConnectOptions, Event, HeaderMap, Message, ServerAddr, ServerError,
    Subscriber,
};
use bytes::Bytes;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::timeout;
use tracing::{error, info, warn};

use super::credentials::Credentials;
use super::fingerprint::Fingerprint;
use super::message::LogPosition;

/// The stream that has the command log of all rooms.
pub(crate) const STREAM: &str = "CHAT-0";

/// What the stream stores, what replicas publish, and where the stream's leader republishes what it has stored.
pub(crate) const SUBJECTS: &str = "chat.0.>";
pub(crate) const SUBJECT: &str = "chat.0.order";
pub(crate) const REPUBLISHED: &str = "live.chat.0.>";

/// How many messages are read at once, and how many bytes.
pub(crate) const FETCHED_MESSAGES: usize = 1_000;
const FETCHED_BYTES: usize = 4 << 20;

/// How many messages wait in the client for the replica. More than one answer has; what does not fit is read again.
const QUEUE_LEN: usize = 2 * FETCHED_MESSAGES;

const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

/// How long to wait for the answer to each attempt but the last, which waits for [`REQUEST_TIMEOUT`].
const RETRY_TIMEOUTS: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(2)];

/// How often the same denied permission is logged: what is written again and again is denied again and again.
const DENIAL_INTERVAL: Duration = Duration::from_secs(10);

/// How to reach the NATS servers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NatsOptions {
    /// Their addresses, `nats://` or `tls://`, perhaps with a user and a password, or a token.
    pub servers: Vec<String>,
    /// The certificates that theirs are signed with, beside those of the system (PEM).
    pub ca: Option<PathBuf>,
    /// The client's certificate and its key (PEM).
    pub certificate: Option<(PathBuf, PathBuf)>,
    /// What proves who connects, if the addresses do not contain it.
    pub credentials: Option<Credentials>,
}

/// Why NATS cannot be used. `Display` says what failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NatsError {
    /// An address is wrong.
    #[error(
        "{address:?} is not the address of a NATS server ({why}); it must be like nats://host:4222 or tls://host:4222"
    )]
    Address {
        /// The address, without what is secret.
        address: String,
        /// What is wrong.
        why: String,
    },
    /// No server accepts the connection.
    #[error("cannot connect to NATS: {0}")]
    Connect(String),
    /// A file with a secret is wrong.
    #[error("{0}")]
    Credentials(String),
    /// The servers do not accept the key, the password or the certificate.
    #[error(
        "NATS does not accept this user (authorization violation): its key, password or token is not one of those in the configuration of \
         the servers"
    )]
    Unauthorized,
    /// The user may not do what it must.
    #[error("NATS denies it to this user: {0}")]
    Denied(String),
    /// A server does not accept messages as long as those of this replica.
    #[error(
        "max_payload of the NATS server {server} is {max_payload} bytes; the longest message of this replica, with its --max-message-chars, \
         has {needed}: raise max_payload in the configuration of the NATS servers"
    )]
    Payload {
        /// The name of the server.
        server: String,
        /// The longest message that it accepts, in bytes.
        max_payload: usize,
        /// The longest message that a replica writes, in bytes.
        needed: usize,
    },
    /// A request was not answered, or with an error.
    #[error("{what}: {why}")]
    Request {
        /// The request.
        what: &'static str,
        /// The answer.
        why: String,
    },
}

impl NatsOptions {
    /// The addresses, parsed.
    ///
    /// # Errors
    ///
    /// One of them is wrong.
    pub fn addresses(&self) -> Result<Vec<ServerAddr>, NatsError> {
        let parse = |address: &String| {
            address.parse::<ServerAddr>().map_err(|error| NatsError::Address {
                // Without a password.
                address: address.rsplit('@').next().unwrap_or_default().into(),
                why: error.to_string(),
            })
        };
        self.servers.iter().map(parse).collect()
    }

    /// What is wrong with the files that they name, if anything is.
    #[must_use]
    pub fn check_credentials(&self) -> Option<String> {
        self.credentials.as_ref()?.sign(b"").err()
    }

    /// Connects to one of the servers, sooner or later. Answers come to the [inbox] of this name.
    ///
    /// # Errors
    ///
    /// An address or a certificate is wrong, or the first server that can be reached does not accept the user.
    pub(crate) async fn connect(&self, name: &str) -> Result<Client, NatsError> {
        let options = || {
            let denial = Mutex::new((String::new(), Instant::now()));
            let denial = Arc::new(denial);
            self.options(name).event_callback(move |event| {
                log_event(&event, &denial);
                std::future::ready(())
            })
        };
        match self.connect_with(options()).await {
            Err(NatsError::Connect(why)) => {
                warn!(event = "nats", "cannot connect to NATS, and tries again: {why}");
                self.connect_with(options().retry_on_initial_connect()).await
            }
            connected => connected,
        }
    }

    /// Connects to one of the servers now. Also returns what shows that something is denied to the user.
    ///
    /// # Errors
    ///
    /// None of them accepts.
    pub(crate) async fn connect_once(
        &self,
        name: &str,
    ) -> Result<(Client, watch::Receiver<Option<String>>), NatsError> {
        let (denials, denied) = watch::channel(None);
        let options = self.options(name).event_callback(move |event| {
            if let Some(what) = denial(&event) {
                denials.send_replace(Some(what.to_owned()));
            }
            std::future::ready(())
        });
        Ok((self.connect_with(options).await?, denied))
    }

    async fn connect_with(&self, options: ConnectOptions) -> Result<Client, NatsError> {
        let connected = options.connect(self.addresses()?).await;
        connected.map_err(|error| match error.kind() {
            ConnectErrorKind::AuthorizationViolation => NatsError::Unauthorized,
            ConnectErrorKind::Authentication => NatsError::Credentials(
                self.check_credentials()
                    .unwrap_or_else(|| format!("cannot prove to NATS who this is: {error}")),
            ),
            _ => NatsError::Connect(error.to_string()),
        })
    }

    /// The client library ignores the user in an address. The first address that has one decides who connects to all servers.
    fn authentication(&self) -> ConnectOptions {
        if let Some(credentials) = self.credentials.clone() {
            return ConnectOptions::with_auth_callback(move |nonce| {
                std::future::ready(credentials.sign(&nonce).map_err(AuthError::new))
            });
        }
        let addresses = self.addresses().unwrap_or_default();
        let user = addresses
            .iter()
            .find_map(|address| Some((address.username()?, address.password())));
        match user {
            Some((user, Some(password))) => {
                ConnectOptions::with_user_and_password(decode(user), decode(password))
            }
            Some((token, None)) => ConnectOptions::with_token(decode(token)),
            None => ConnectOptions::new(),
        }
    }

    fn options(&self, name: &str) -> ConnectOptions {
        let mut options = self
            .authentication()
            .name(name)
            .custom_inbox_prefix(inbox(name))
            .retain_servers_order()
            .ignore_discovered_servers()
            .ping_interval(Duration::from_secs(2))
            .connection_timeout(Duration::from_secs(2))
            .request_timeout(Some(REQUEST_TIMEOUT))
            .subscription_capacity(QUEUE_LEN)
            .reconnect_delay_callback(|attempts| match attempts {
                0 | 1 => Duration::ZERO,
                attempts => Duration::from_secs(1)
                    .min(Duration::from_millis(100) * u32::try_from(attempts).unwrap_or(10)),
            });
        if let Some(ca) = &self.ca {
            options = options.add_root_certificates(ca.clone());
        }
        if let Some((certificate, key)) = &self.certificate {
            options = options.add_client_certificate(certificate.clone(), key.clone());
        }
        options
    }
}

/// The part of a user or a password in an address, as it was before it was encoded for a URL.
fn decode(part: &str) -> String {
    let mut decoded = Vec::with_capacity(part.len());
    let mut rest = part.as_bytes();
    while let [first, after @ ..] = rest {
        let encoded = match after {
            [high, low, ..] if *first == b'%' => {
                let digit = |byte: &u8| char::from(*byte).to_digit(16);
                digit(high)
                    .zip(digit(low))
                    .and_then(|(high, low)| u8::try_from(high * 16 + low).ok())
            }
            _ => None,
        };
        decoded.push(encoded.unwrap_or(*first));
        rest = if encoded.is_some() { &after[2..] } else { after };
    }
    String::from_utf8_lossy(&decoded).into_owned()
}

/// The prefix of the subjects that answers come to. Only the user that has it may subscribe to them, so that nobody reads the
/// answers of others.
pub(crate) fn inbox(name: &str) -> String {
    let token = |c: char| {
        if c.is_ascii_alphanumeric() || c == '-' {
            c
        } else {
            '_'
        }
    };
    format!("_INBOX.{}", name.chars().map(token).collect::<String>())
}

/// What is denied to the user, with the subject, if an event says so.
fn denial(event: &Event) -> Option<&str> {
    match event {
        Event::ServerError(ServerError::Other(text))
            if text.to_ascii_lowercase().contains("permissions violation") =>
        {
            Some(text)
        }
        _ => None,
    }
}

fn log_event(event: &Event, last: &Mutex<(String, Instant)>) {
    match (event, denial(event)) {
        (Event::Connected, _) => info!(event = "nats_connected", "connected to NATS"),
        (_, Some(denied)) => {
            let mut last = last.lock();
            if last.0 != denied || last.1.elapsed() > DENIAL_INTERVAL {
                *last = (denied.to_owned(), Instant::now());
                error!(
                    event = "nats_permission_denied",
                    denied, "NATS denies to this replica what it needs"
                );
            }
        }
        _ => warn!(event = "nats", "NATS: {event}"),
    }
}

/// A message of the stream, or what else comes with an answer.
#[derive(Debug)]
pub(crate) enum Delivered {
    Message {
        position: LogPosition,
        /// The position before it in the answer, or in the stream.
        previous: LogPosition,
        fingerprint: Fingerprint,
        payload: Bytes,
    },
    /// An answer is complete. The newest position that the server knows of.
    End(LogPosition),
    /// The server answers with an error.
    Failed(String),
}

fn number(headers: &HeaderMap, name: &str) -> Option<u64> {
    headers.get(name)?.as_str().parse().ok()
}

/// When the stream has stored a message, in nanoseconds since 1970.
fn stored_at(headers: &HeaderMap) -> Option<u64> {
    let time = humantime::parse_rfc3339(headers.get("Nats-Time-Stamp")?.as_str()).ok()?;
    let time = time.duration_since(SystemTime::UNIX_EPOCH).ok()?;
    u64::try_from(time.as_nanos()).ok()
}

/// The position and the fingerprint of a message that the stream has stored.
fn identity(headers: &HeaderMap, payload: &[u8]) -> Option<(LogPosition, Fingerprint)> {
    let position = LogPosition::new(number(headers, "Nats-Sequence")?);
    let stored_at = stored_at(headers)?;
    Some((position, Fingerprint::new(payload, Some(stored_at))))
}

impl Delivered {
    /// `None` if the message is not understood.
    pub(crate) fn from_message(message: Message) -> Option<Self> {
        let headers = message.headers.as_ref();
        let status = message.status.map_or(200, |status| status.as_u16());
        Some(match status {
            200 => {
                let (position, fingerprint) = identity(headers?, &message.payload)?;
                Self::Message {
                    position,
                    previous: LogPosition::new(number(headers?, "Nats-Last-Sequence")?),
                    fingerprint,
                    payload: message.payload,
                }
            }
            // The end of the answer.
            204 => {
                let pending = number(headers?, "Nats-Num-Pending")?;
                Self::End(LogPosition::new(
                    number(headers?, "Nats-Last-Sequence")?.saturating_add(pending),
                ))
            }
            // There is no message from the position on that was asked for, which the subject of the answer ends with.
            404 => {
                let asked: u64 = message.subject.as_str().rsplit('.').next()?.parse().ok()?;
                Self::End(LogPosition::new(asked.saturating_sub(1)))
            }
            _ => Self::Failed(message.description.unwrap_or_else(|| format!("status {status}"))),
        })
    }
}

/// The stream, as a replica uses it. Nothing here waits for an answer: it comes through one of the subscriptions, or not at all.
pub(crate) struct Stream {
    client: Client,
    servers: Vec<ServerAddr>,
    /// Where answers come: to reads, and to what was published.
    inbox: String,
    /// How often the client had connected when its server was last checked, and when a message was last taken.
    connects: u64,
    connects_before: u64,
}

/// What comes from the stream.
pub(crate) struct Subscriptions {
    pub(crate) published: Subscriber,
    pub(crate) fetched: Subscriber,
    pub(crate) acknowledged: Subscriber,
}

impl Stream {
    pub(crate) async fn subscribe(
        client: Client,
        servers: Vec<ServerAddr>,
    ) -> Result<(Self, Subscriptions), NatsError> {
        let inbox = client.new_inbox();
        let subscribe = async |subject: String| {
            let subscribed = client.subscribe(subject).await;
            subscribed.map_err(|error| NatsError::Connect(error.to_string()))
        };
        let subscriptions = Subscriptions {
            published: subscribe(REPUBLISHED.into()).await?,
            fetched: subscribe(format!("{inbox}.get.*")).await?,
            acknowledged: subscribe(format!("{inbox}.ack")).await?,
        };
        let stream = Self {
            client,
            servers,
            inbox,
            connects: 0,
            connects_before: 0,
        };
        Ok((stream, subscriptions))
    }

    pub(crate) const fn client(&self) -> &Client {
        &self.client
    }

    /// The first message at `position` or later; `None` if the server that answers has none.
    pub(crate) async fn first_from(
        &self,
        position: LogPosition,
    ) -> Result<Option<(LogPosition, Fingerprint)>, NatsError> {
        let request = json!({ "seq": position.get(), "next_by_subj": SUBJECTS });
        direct_get(&self.client, "reading the stream", &request).await
    }

    /// The newest message that the server has that answers.
    pub(crate) async fn last(&self) -> Result<Option<LogPosition>, NatsError> {
        let request = json!({ "last_by_subj": SUBJECT });
        let last = direct_get(&self.client, "reading the stream", &request).await?;
        Ok(last.map(|(position, _)| position))
    }

    pub(crate) fn is_connected(&self) -> bool {
        self.client.connection_state() == async_nats::connection::State::Connected
    }

    /// Whether the client has connected since the last call.
    pub(crate) fn has_reconnected(&mut self) -> bool {
        let connects = self.client.statistics().connects.load(Ordering::Relaxed);
        std::mem::replace(&mut self.connects_before, connects) != connects
    }

    /// What is wrong with a server to which the client has connected since the last call, if messages of `needed` bytes are too long for
    /// it. Also says whether that was the first server.
    pub(crate) fn check_server(&mut self, needed: usize) -> Option<(NatsError, bool)> {
        let connects = self.client.statistics().connects.load(Ordering::Relaxed);
        let before = std::mem::replace(&mut self.connects, connects);
        if connects == before {
            return None;
        }
        let info = self.client.server_info();
        (info.max_payload < needed).then(|| {
            let error = NatsError::Payload {
                server: info.server_name,
                max_payload: info.max_payload,
                needed,
            };
            (error, before == 0)
        })
    }

    /// Writes a message, unless there is no connection. It is known to be stored once it is received from the stream.
    pub(crate) async fn publish(&self, message: Bytes) {
        if self.is_connected() {
            let reply = format!("{}.ack", self.inbox);
            let published = self.client.publish_with_reply(SUBJECT, reply, message).await;
            if let Err(error) = published {
                warn!(event = "nats", "cannot publish: {error}");
            }
        }
    }

    /// Asks any server that has the stream for the messages from `position` on.
    pub(crate) async fn fetch(&self, position: LogPosition, count: usize) {
        if self.is_connected() {
            let request = format!("{{\"seq\":{position},\"batch\":{count},\"max_bytes\":{FETCHED_BYTES}}}");
            let (subject, reply) = (
                format!("$JS.API.DIRECT.GET.{STREAM}"),
                format!("{}.get.{position}", self.inbox),
            );
            let asked = self
                .client
                .publish_with_reply(subject, reply, request.into())
                .await;
            if let Err(error) = asked {
                warn!(event = "nats", "cannot read: {error}");
            }
        }
    }

    /// Turns to the next server, because the current one seems to be cut off from the others although its connection works.
    pub(crate) fn switch_server(&mut self) {
        self.servers.rotate_left(1);
        let (client, servers) = (self.client.clone(), self.servers.clone());
        tokio::spawn(async move {
            let switch = async {
                client.set_server_pool(servers.as_slice()).await.ok();
                client.force_reconnect().await.ok();
            };
            // While it is not connected, it tries all servers anyway.
            tokio::time::timeout(Duration::from_secs(1), switch).await.ok();
        });
    }
}

/// The first message that the stream has stored at `time` or later.
pub(crate) async fn first_since(client: &Client, time: SystemTime) -> Result<Option<LogPosition>, NatsError> {
    let time = humantime::format_rfc3339_millis(time).to_string();
    let request = json!({ "start_time": time, "next_by_subj": SUBJECTS });
    let first = direct_get(client, "looking for the oldest message to keep", &request).await?;
    Ok(first.map(|(position, _)| position))
}

/// Asks any server that has the stream for one message.
async fn direct_get(
    client: &Client,
    what: &'static str,
    request: &Value,
) -> Result<Option<(LogPosition, Fingerprint)>, NatsError> {
    let failed = |why: String| NatsError::Request { what, why };
    let subject = format!("$JS.API.DIRECT.GET.{STREAM}");
    let answered = client.request(subject, request.to_string().into()).await;
    let answer = answered.map_err(|error| failed(error.to_string()))?;
    let status = answer.status.map_or(200, |status| status.as_u16());
    match status {
        404 => Ok(None),
        200 => {
            let headers = answer.headers.as_ref();
            let message = headers.and_then(|headers| identity(headers, &answer.payload));
            message
                .map(Some)
                .ok_or_else(|| failed("the answer is not understood".into()))
        }
        _ => Err(failed(
            answer.description.unwrap_or_else(|| format!("status {status}")),
        )),
    }
}

/// Why NATS did not store a message, if this acknowledgement says so.
pub(crate) fn publish_error(message: &Message) -> Option<String> {
    if message.status.is_some_and(|status| status.as_u16() == 503) {
        return Some(format!(
            "no stream stores it; run `chitchat cluster init` ({STREAM})"
        ));
    }
    let answer: Value = serde_json::from_slice(&message.payload).ok()?;
    Some(answer.get("error")?.get("description")?.as_str()?.into())
}

/// The stream's configuration and state, as JetStream says. Asks again if there is no answer: a request is lost on the way to a server to which
/// the one of this connection has no route yet, as in the first second of a cluster of NATS servers.
///
/// # Errors
///
/// Those of [`call`].
pub(crate) async fn stream_info(client: &Client) -> Result<Value, (u64, NatsError)> {
    let ask = || {
        let subject = format!("$JS.API.STREAM.INFO.{STREAM}");
        call(client, "asking for the stream", subject, &Value::Null)
    };
    for patience in RETRY_TIMEOUTS {
        if let Ok(answer) = timeout(patience, ask()).await {
            return answer;
        }
    }
    ask().await
}

/// Calls JetStream's API.
///
/// # Errors
///
/// There is no answer, or it is an error: with its code, or 0.
pub(crate) async fn call(
    client: &Client,
    what: &'static str,
    subject: String,
    request: &Value,
) -> Result<Value, (u64, NatsError)> {
    let failed = |why: String| NatsError::Request { what, why };
    let payload = if request.is_null() {
        Bytes::new()
    } else {
        request.to_string().into()
    };
    let answered = client.request(subject, payload).await;
    let answer = answered.map_err(|error| (0, failed(error.to_string())))?;
    let answer: Value =
        serde_json::from_slice(&answer.payload).map_err(|error| (0, failed(error.to_string())))?;
    match answer.get("error") {
        None => Ok(answer),
        Some(error) => {
            let code = error.get("err_code").and_then(Value::as_u64).unwrap_or_default();
            let description = error
                .get("description")
                .and_then(Value::as_str)
                .unwrap_or_default();
            Err((code, failed(description.into())))
        }
    }
}
