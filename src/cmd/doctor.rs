//! `chitchat doctor`: sends one message and checks each link of the chain from the server to the telemetry backends.

mod backends;
mod link;

use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use tokio::time::{Instant, timeout};
use tokio_stream::StreamExt as _;

use super::answer::is_repeated;
use super::base_url::BaseUrl;
use super::client_args::{self, ConnectArgs};
use super::parse;
use super::printer::{JsonArg, Printer};
use super::{Failure, client_runtime};
use crate::client::{
    ClientError, Connection, Event, Health, JoinOptions, RetryPolicy, SendObserver, Session, TlsError,
};
use crate::domain::{RoomName, TraceContext};
use crate::proto::ServerMessage;
use crate::telemetry::{ClientSpans, SendSpan};
use link::Link;

/// Check that telemetry of a message arrives
///
/// Joins a room, sends one traced message, leaves, and looks for its metric, trace and log line in each backend whose URL is
/// given. Prints one line per link, with a remedy if the link is broken. Exits with 0 if no link is broken, else with 69.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  chitchat doctor --admin http://127.0.0.1:9464
  chitchat doctor --prometheus http://127.0.0.1:9090 --tempo http://127.0.0.1:3200")]
pub(super) struct DoctorCommand {
    /// Room to send the message to. The lobby exists anyway; any other room is created
    #[arg(short, long, value_name = "ROOM", default_value = RoomName::LOBBY, value_parser = client_args::room)]
    room: RoomName,
    /// Admin port of the server, such as http://127.0.0.1:9464
    #[arg(
        long,
        env = "CHITCHAT_DOCTOR_ADMIN",
        value_name = "URL",
        help_heading = "Backends"
    )]
    admin: Option<BaseUrl>,
    /// Prometheus, such as http://127.0.0.1:9090
    #[arg(
        long,
        env = "CHITCHAT_DOCTOR_PROMETHEUS",
        value_name = "URL",
        help_heading = "Backends"
    )]
    prometheus: Option<BaseUrl>,
    /// Tempo, such as http://127.0.0.1:3200
    #[arg(
        long,
        env = "CHITCHAT_DOCTOR_TEMPO",
        value_name = "URL",
        help_heading = "Backends"
    )]
    tempo: Option<BaseUrl>,
    /// Loki, such as http://127.0.0.1:3100
    #[arg(
        long,
        env = "CHITCHAT_DOCTOR_LOKI",
        value_name = "URL",
        help_heading = "Backends"
    )]
    loki: Option<BaseUrl>,
    /// LogQL stream selector of the server's log lines
    #[arg(
        long,
        env = "CHITCHAT_DOCTOR_LOKI_SELECTOR",
        value_name = "LOGQL",
        default_value = "{service_name=\"chitchat\"}",
        help_heading = "Backends"
    )]
    loki_selector: String,
    /// How long to wait for each link
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = parse::timeout)]
    wait: Duration,
    #[command(flatten)]
    connect: ConnectArgs,
    #[command(flatten)]
    json: JsonArg,
}

// The links, in the order in which they are printed.
const SERVER: &str = "server";
const MESSAGE: &str = "message";
const METRICS: &str = "metrics";
const PROMETHEUS: &str = "prometheus";
const TEMPO: &str = "tempo";
const LOKI: &str = "loki";

/// What to do about a server that cannot be reached.
const fn remedy(error: &ClientError) -> &'static str {
    let ClientError::Tls { error, .. } = error else {
        return "start the server with `chitchat serve`, or give its address with --server";
    };
    match error {
        TlsError::Expired { .. } => "renew the certificate of --tls-cert on the server",
        TlsError::NotYetValid { .. } => "set the clock of this machine",
        TlsError::WrongName { .. } => {
            "use one of these names in --server, or give one with --server-name if the address is right"
        }
        TlsError::UnknownIssuer => {
            "give its CA certificate with --ca, and put the intermediate ones into --tls-cert on the server"
        }
        TlsError::InvalidCertificate(_) => "replace the certificate of --tls-cert on the server",
        TlsError::PlainText => "use http:// in --server, or start the server with --tls-cert and --tls-key",
        TlsError::Required => "use https:// in --server",
        TlsError::ClientCertificateRequired | TlsError::ClientCertificateRejected(_) => {
            "give a certificate from a CA in --tls-client-ca of the server with --cert and --key"
        }
        TlsError::NoHttp2 => "give the address of the port for gRPC with --server",
        TlsError::Handshake(_) => "check the server's log: connection_closed has the reason",
        TlsError::Options(_) | TlsError::Unsupported => "correct the options of this command",
    }
}

struct Acknowledged {
    /// The event, or the notice that the message had already been broadcast.
    broadcast: ServerMessage,
    elapsed: Duration,
    trace_id: String,
}

impl DoctorCommand {
    pub(super) fn run(self) -> Result<(), Failure> {
        client_runtime::run_traced(|spans| self.check(spans))
    }

    async fn check(self, spans: ClientSpans) -> Result<(), Failure> {
        let mut printer = Printer::new(&self.json);
        let mut broken = Vec::new();
        let mut print_link = |link: Link| {
            if link.is_broken() {
                broken.push(link.name);
            }
            printer.print(|| link.line(), || link.object())
        };
        let server = self.check_server().await;
        let is_reachable = !server.is_broken();
        print_link(server)?;
        if is_reachable {
            let before = match &self.admin {
                Some(admin) => Some(backends::message_count(admin).await),
                None => None,
            };
            match self.send(spans).await {
                Err(link) => print_link(link)?,
                Ok(acknowledged) => {
                    let Acknowledged {
                        broadcast,
                        elapsed,
                        trace_id,
                    } = &acknowledged;
                    let repeated = broadcast.notice.as_ref().map(|notice| notice.original_sequence);
                    let (sequence, time) = (repeated.unwrap_or(broadcast.sequence), broadcast.timestamp);
                    let room = &self.room;
                    print_link(Link::ok(
                        MESSAGE,
                        format!(
                            "acknowledged as event {sequence} of {room} at L={time} in {elapsed:.1?}, trace {trace_id}"
                        ),
                    ))?;
                    for link in self.check_backends(before, trace_id).await {
                        print_link(link)?;
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

    async fn check_server(&self) -> Link {
        let server = self.connect.server();
        let check = async {
            let connection = Connection::open(server, &self.connect.options()).await?;
            connection.health("").await
        };
        match check.await {
            Ok(Health::Serving) => Link::ok(SERVER, format!("{server} is SERVING")),
            Ok(state) => Link::broken(
                SERVER,
                format!("{server} is {}", state.as_str()),
                "check the server's log",
            ),
            Err(error) => Link::broken(SERVER, error.to_string(), remedy(&error)),
        }
    }

    /// Sends the message and waits for its acknowledgement.
    async fn send(&self, spans: ClientSpans) -> Result<Acknowledged, Link> {
        let remedy = "check the server's log; the reason is the server's answer";
        let broken = |seen: String| Link::broken(MESSAGE, seen, remedy);
        match timeout(self.wait, self.send_message(&spans)).await {
            Ok(Ok(acknowledged)) => Ok(acknowledged),
            Ok(Err(seen)) => Err(broken(seen)),
            Err(_) => {
                let waited = humantime::format_duration(self.wait);
                Err(broken(format!("not acknowledged within {waited}")))
            }
        }
    }

    /// The error is a line for users.
    async fn send_message(&self, spans: &ClientSpans) -> Result<Acknowledged, String> {
        const TEXT: &str = "A message of chitchat doctor: please ignore it.";
        let span = spans.start_send(self.room.as_str(), TEXT.len());
        let observer: Arc<dyn SendObserver> = match &span {
            Some(span) => Arc::<SendSpan>::clone(span),
            // Without an exporter there is no span, but the server still traces the message.
            None => {
                let (trace_id, span_id): (u128, u64) = rand::random();
                Arc::new(TraceContext::new(trace_id.max(1), span_id.max(1), true))
            }
        };
        let context = observer.trace_context();
        let trace_id = format!("{:032x}", context.trace_id());
        let join = JoinOptions::new(format!("doctor-{}", &trace_id[..8]))
            .room(self.room.as_str())
            .trace(context);
        let mut session = Session::join(
            self.connect.server(),
            &self.connect.options(),
            RetryPolicy::default(),
            join,
        )
        .await
        .map_err(|error| error.to_string())?;
        let sent_at = Instant::now();
        let message_id = session
            .send_with_observer(TEXT, Some(observer))
            .map_err(|error| error.to_string())?;
        let mut answer = None;
        while let Some(event) = session.try_next().await.map_err(|error| error.to_string())? {
            if let Event::Message(message) = event
                && message.message_id == message_id.as_str()
            {
                answer = Some((message, sent_at.elapsed()));
                session.leave();
            }
        }
        let (message, elapsed) = answer.ok_or_else(|| ClientError::Closed.to_string())?;
        if let Some(notice) = message.notice.as_ref().filter(|_| !is_repeated(&message)) {
            if let Some(span) = &span {
                span.record_rejected(&message.message_id);
            }
            let code = notice.code().as_str_name();
            return Err(format!("rejected with {code}: {}", message.msg_stream));
        }
        if let Some(span) = &span {
            span.record_acknowledged(&message);
        }
        Ok(Acknowledged {
            broadcast: *message,
            elapsed,
            trace_id,
        })
    }

    async fn check_backends(&self, before: Option<Result<f64, String>>, trace_id: &str) -> [Link; 4] {
        let wait = self.wait;
        let skipped = |name, flag: &str| Link::skipped(name, format!("no {flag} URL given"));
        let metrics = async {
            match (&self.admin, before) {
                (Some(admin), Some(Ok(before))) => backends::admin(admin, before, wait).await,
                (Some(_), Some(Err(seen))) => {
                    let remedy =
                        "check that --admin is the address that the server prints as (admin) when it starts";
                    Link::broken(METRICS, seen, remedy)
                }
                _ => skipped(METRICS, "--admin"),
            }
        };
        let prometheus = async {
            let Some(prometheus) = &self.prometheus else {
                return skipped(PROMETHEUS, "--prometheus");
            };
            match backends::server_time(prometheus).await {
                Ok(acknowledged) => backends::prometheus(prometheus, acknowledged, wait).await,
                Err(seen) => Link::broken(PROMETHEUS, seen, "check that Prometheus runs there"),
            }
        };
        let tempo = async {
            match &self.tempo {
                Some(tempo) => backends::tempo(tempo, trace_id, wait).await,
                None => skipped(TEMPO, "--tempo"),
            }
        };
        let loki = async {
            match &self.loki {
                Some(loki) => backends::loki(loki, &self.loki_selector, trace_id, wait).await,
                None => skipped(LOKI, "--loki"),
            }
        };
        tokio::join!(metrics, prometheus, tempo, loki).into()
    }
}
