//! `chitchat doctor`: sends one message and looks, link by link, whether what it should leave behind has arrived.

mod backends;
mod base_url;
mod link;

use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use tokio::time::{Instant, timeout};

use super::client_arguments::ClientArguments;
use super::printer::{JsonArgument, Printer};
use super::server_address::patience;
use super::{Failure, client_runtime};
use crate::client::{Connection, Error, Event, Health, Join, Presence, Retry, Sending};
use crate::domain::{RoomName, TraceContext};
use crate::proto::ServerMessage;
use crate::telemetry::{ClientSpans, SendSpan};
use base_url::BaseUrl;
use link::Link;

/// Send one message and see where its metric, its trace and its log line arrive.
///
/// Joins a room of its own, says one thing under a trace, leaves, and asks each backend that is named for what that left
/// behind. Prints a line for each link, with what to do where one is broken, and succeeds when none is.
#[derive(Debug, Args)]
pub(super) struct DoctorCommand {
    /// The room that the message is sent to.
    #[arg(long, value_name = "ROOM", default_value = "doctor", value_parser = room)]
    room: RoomName,
    /// The server's admin port, like http://127.0.0.1:9464.
    #[arg(long, env = "CHITCHAT_DOCTOR_ADMIN", value_name = "URL")]
    admin: Option<BaseUrl>,
    /// Prometheus, like http://127.0.0.1:9090.
    #[arg(long, env = "CHITCHAT_DOCTOR_PROMETHEUS", value_name = "URL")]
    prometheus: Option<BaseUrl>,
    /// Tempo, like http://127.0.0.1:3200.
    #[arg(long, env = "CHITCHAT_DOCTOR_TEMPO", value_name = "URL")]
    tempo: Option<BaseUrl>,
    /// Loki, like http://127.0.0.1:3100.
    #[arg(long, env = "CHITCHAT_DOCTOR_LOKI", value_name = "URL")]
    loki: Option<BaseUrl>,
    /// Which of Loki's lines are the server's.
    #[arg(
        long,
        env = "CHITCHAT_DOCTOR_LOKI_SELECTOR",
        value_name = "LOGQL",
        default_value = "{service_name=\"chitchat\"}"
    )]
    loki_selector: String,
    /// How long to wait for each link.
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = patience)]
    wait: Duration,
    #[command(flatten)]
    client: ClientArguments,
    #[command(flatten)]
    json: JsonArgument,
}

/// The links, in the order in which they are shown.
const SERVER: &str = "server";
const MESSAGE: &str = "message";
const METRICS: &str = "metrics";
const PROMETHEUS: &str = "prometheus";
const TEMPO: &str = "tempo";
const LOKI: &str = "loki";

fn room(raw: &str) -> Result<RoomName, String> {
    RoomName::try_from(raw).map_err(|error| format!("it {error}"))
}

/// What a client that does not trace sends along, so that the server does.
#[derive(Debug)]
struct Bare(TraceContext);

impl Sending for Bare {
    fn context(&self) -> TraceContext {
        self.0.clone()
    }

    fn sent(&self, _: i64) {}
}

/// A message that was acknowledged.
struct Acknowledged {
    broadcast: ServerMessage,
    took: Duration,
    trace_id: String,
}

impl DoctorCommand {
    pub(super) fn run(self) -> Result<(), Failure> {
        client_runtime::run_traced(|spans| self.examine(spans))
    }

    async fn examine(self, spans: ClientSpans) -> Result<(), Failure> {
        let mut printer = Printer::new(&self.json);
        let mut broken = Vec::new();
        let mut tell = |link: Link| {
            if link.is_broken() {
                broken.push(link.name);
            }
            printer.either(|| link.line(), || link.object())
        };
        let server = self.server().await;
        let is_there = !server.is_broken();
        tell(server)?;
        if is_there {
            let before = match &self.admin {
                Some(admin) => Some(backends::counted(admin).await),
                None => None,
            };
            match self.send(spans).await {
                Err(link) => tell(link)?,
                Ok(acknowledged) => {
                    let Acknowledged {
                        broadcast,
                        took,
                        trace_id,
                    } = &acknowledged;
                    let (place, time) = (broadcast.sequence, broadcast.timestamp);
                    let room = &self.room;
                    tell(Link::ok(
                        MESSAGE,
                        format!(
                            "acknowledged as event {place} of {room} at L={time} in {took:.1?}, trace {trace_id}"
                        ),
                    ))?;
                    for link in self.backends(before, trace_id).await {
                        tell(link)?;
                    }
                }
            }
        }
        if broken.is_empty() {
            Ok(())
        } else {
            Err(Failure::Unavailable(format!("broken: {}", broken.join(", "))))
        }
    }

    async fn server(&self) -> Link {
        let server = self.client.server();
        let remedy = "start the server with `chitchat serve`, or say where it is with --server";
        let asked = async {
            let connection = Connection::open(server, &self.client.settings()).await?;
            connection.health("").await
        };
        match asked.await {
            Ok(Health::Serving) => Link::ok(SERVER, format!("{server} is SERVING")),
            Ok(state) => Link::broken(
                SERVER,
                format!("{server} is {}", state.as_str()),
                "look at the server's log",
            ),
            Err(error) => Link::broken(SERVER, error.to_string(), remedy),
        }
    }

    /// Sends the message and waits for its acknowledgement.
    async fn send(&self, spans: ClientSpans) -> Result<Acknowledged, Link> {
        let remedy = "look at the server's log; the reason is what the server said";
        let broken = |seen: String| Link::broken(MESSAGE, seen, remedy);
        match timeout(self.wait, self.say(&spans)).await {
            Ok(Ok(acknowledged)) => Ok(acknowledged),
            Ok(Err(error)) => Err(broken(error.to_string())),
            Err(_) => {
                let waited = humantime::format_duration(self.wait);
                Err(broken(format!("not acknowledged within {waited}")))
            }
        }
    }

    async fn say(&self, spans: &ClientSpans) -> Result<Acknowledged, Error> {
        const TEXT: &str = "How do you do?";
        let span = spans.send(self.room.as_str(), TEXT.len());
        let sending: Arc<dyn Sending> = match &span {
            Some(span) => Arc::<SendSpan>::clone(span),
            None => {
                let trace_id = rand::random::<u128>().max(1);
                Arc::new(Bare(TraceContext::new(
                    trace_id,
                    rand::random::<u64>().max(1),
                    true,
                )))
            }
        };
        let context = sending.context();
        let trace_id = format!("{:032x}", context.trace_id());
        let join = Join::new(format!("doctor-{}", &trace_id[..8]))
            .room(self.room.as_str())
            .trace(context);
        let mut presence = Presence::join(
            self.client.server(),
            &self.client.settings(),
            Retry::default(),
            join,
        )
        .await?;
        let asked = Instant::now();
        let message_id = presence.say_followed(TEXT, Some(sending))?;
        let mut acknowledged = None;
        while let Some(event) = presence.next().await? {
            if let Event::Message(message) = event
                && message.message_id == message_id.as_str()
            {
                if let Some(span) = &span {
                    span.acknowledged(&message);
                }
                acknowledged = Some(Acknowledged {
                    broadcast: *message,
                    took: asked.elapsed(),
                    trace_id: trace_id.clone(),
                });
                presence.leave();
            }
        }
        acknowledged.ok_or(Error::Over)
    }

    async fn backends(&self, before: Option<Result<f64, String>>, trace_id: &str) -> [Link; 4] {
        let (wait, absent) = (self.wait, |name, flag: &str| {
            Link::skipped(name, format!("no {flag} URL given"))
        });
        let metrics = async {
            match (&self.admin, before) {
                (Some(admin), Some(Ok(before))) => backends::admin(admin, before, wait).await,
                (Some(_), Some(Err(seen))) => {
                    let remedy =
                        "look whether --admin is the address that the server calls (admin) when it starts";
                    Link::broken(METRICS, seen, remedy)
                }
                _ => absent(METRICS, "--admin"),
            }
        };
        let prometheus = async {
            let Some(prometheus) = &self.prometheus else {
                return absent(PROMETHEUS, "--prometheus");
            };
            match backends::time_of(prometheus).await {
                Ok(acknowledged) => backends::prometheus(prometheus, acknowledged, wait).await,
                Err(seen) => Link::broken(PROMETHEUS, seen, "look whether Prometheus runs there"),
            }
        };
        let tempo = async {
            match &self.tempo {
                Some(tempo) => backends::tempo(tempo, trace_id, wait).await,
                None => absent(TEMPO, "--tempo"),
            }
        };
        let loki = async {
            match &self.loki {
                Some(loki) => backends::loki(loki, &self.loki_selector, trace_id, wait).await,
                None => absent(LOKI, "--loki"),
            }
        };
        tokio::join!(metrics, prometheus, tempo, loki).into()
    }
}
