//! `chitchat send`: posts messages without joining.

use std::io::stdin;
use std::pin::pin;
use std::time::Duration;

use clap::Args;
use tokio::time::timeout;
use tonic::Code;

use super::client_args::{ConnectArgs, NameArg, RetryArg, RoomArg};
use super::failure::Rejections;
use super::lines::Lines;
use super::printer::{JsonArg, Printer};
use super::stderr::note;
use super::{Failure, client_runtime, json};
use crate::client::{ClientError, PublishAck, Publisher, Rejection, SendObserver, escape, format_message};
use crate::domain::Name;
use crate::telemetry::ClientSpans;

/// The text that stands for stdin.
const STDIN: &str = "-";

/// How long to wait for the server before a note says so.
const NOTE_DELAY: Duration = Duration::from_secs(1);

/// Post messages to a room without joining it
///
/// Posts TEXT, or each line of stdin that is not empty, and prints each message as it was broadcast. A message is
/// broadcast once, even if its response is lost and it is sent again. Exits with 0 if all messages were broadcast, with 65 if the
/// server rejected one.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  chitchat send --room tea 'The backup is done'
  make 2>&1 | chitchat send --room builds --name ci   each line is a message")]
pub(super) struct SendCommand {
    /// Text of the message; `-` or nothing = each line of stdin is a message
    text: Option<String>,
    #[command(flatten)]
    name: NameArg,
    #[command(flatten)]
    room: RoomArg,
    #[command(flatten)]
    connect: ConnectArgs,
    #[command(flatten)]
    retry: RetryArg,
    #[command(flatten)]
    json: JsonArg,
}

impl SendCommand {
    pub(super) fn run(self) -> Result<(), Failure> {
        client_runtime::run_traced(|spans| self.send(spans))
    }

    async fn send(self, spans: ClientSpans) -> Result<(), Failure> {
        let policy = self.retry.policy();
        let patience = policy.patience;
        let timeout = self.connect.timeout;
        let room = self.room.room.as_str();
        let text = self.text.as_deref().filter(|text| *text != STDIN).map(str::trim);
        if text.is_some_and(str::is_empty) {
            return Err(Failure::Usage("the text is empty".to_owned()));
        }
        let mut names = self.name.candidates().into_iter();
        let name = names
            .next()
            .map_or_else(String::new, |name| name.as_str().to_owned());
        let options = self.connect.options();
        let opening = Publisher::open(self.connect.server(), &options, policy, name, room);
        let mut publisher = note_if_slow(opening, timeout, || false).await?;
        let throttled = publisher.throttled();
        let is_throttled = || *throttled.borrow();
        let mut printer = Printer::new(&self.json);
        if let Some(text) = text {
            let publishing = publish(&mut publisher, &mut names, &spans, room, text);
            return match note_if_slow(publishing, patience, is_throttled).await {
                Ok(ack) => print(&mut printer, &ack),
                Err(error) => Err(match rejected_text(&error) {
                    Some(rejection) => Failure::Data(escape::text(&rejection.to_string()).into_owned()),
                    None => error.into(),
                }),
            };
        }

        let mut lines = Lines::new(stdin().lock());
        let mut rejections = Rejections::default();
        while let Some(line) = lines.next()? {
            let text = line.text.trim();
            if text.is_empty() {
                continue;
            }
            let publishing = publish(&mut publisher, &mut names, &spans, room, text);
            match note_if_slow(publishing, patience, is_throttled).await {
                Ok(ack) => print(&mut printer, &ack)?,
                Err(error) => match rejected_text(&error) {
                    Some(rejection) => rejections.add(line.number, &rejection.to_string()),
                    None => return Err(Failure::from(error).at_line(line.number)),
                },
            }
        }
        rejections.into_result()
    }
}

/// Awaits `response`. If it takes longer than [`NOTE_DELAY`], and the server has not answered that it has to, prints a note that
/// the request is retried for `patience`.
async fn note_if_slow<T>(
    response: impl Future<Output = T>,
    patience: Duration,
    is_throttled: impl Fn() -> bool,
) -> T {
    let mut response = pin!(response);
    loop {
        match timeout(NOTE_DELAY, &mut response).await {
            Ok(response) => return response,
            Err(_) if is_throttled() => {}
            Err(_) => break,
        }
    }
    if patience > NOTE_DELAY {
        let patience = humantime::format_duration(patience);
        note(format_args!(
            "no answer from the server yet; trying for {patience}"
        ));
    }
    response.await
}

/// Posts `text` and, while the publisher's name is taken, renames it to the next of `names`.
async fn publish(
    publisher: &mut Publisher,
    names: &mut impl Iterator<Item = Name>,
    spans: &ClientSpans,
    room: &str,
    text: &str,
) -> Result<PublishAck, ClientError> {
    let span = spans.start_send(room, text.len());
    let observer = span.as_deref().map(|span| span as &dyn SendObserver);
    let ack = loop {
        let ack = publisher.publish_with_observer(text, observer).await;
        match &ack {
            Err(error) if error.is_name_taken() => match names.next() {
                Some(name) => publisher.set_name(name.as_str()),
                None => break ack,
            },
            _ => break ack,
        }
    };
    if let (Some(span), Ok(ack)) = (&span, &ack) {
        span.record_acknowledged(&ack.broadcast);
    }
    ack
}

/// The rejection, if its status is `InvalidArgument`, which is attributed to the text: the name and the room were validated
/// before.
fn rejected_text(error: &ClientError) -> Option<&Rejection> {
    match error {
        ClientError::Rejected(rejection) if rejection.code == Code::InvalidArgument => Some(rejection),
        _ => None,
    }
}

fn print(printer: &mut Printer, ack: &PublishAck) -> Result<(), Failure> {
    printer.print(
        || match ack.broadcast.sender_id {
            // Only the position of a repeated message is known if the server no longer retains its event.
            0 => format!("broadcast before, as event {}", ack.broadcast.sequence),
            _ => format_message(&ack.broadcast),
        },
        || json::published(ack),
    )
}
