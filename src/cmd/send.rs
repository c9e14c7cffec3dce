//! `chitchat send`: posts messages without joining.

use std::io::stdin;
use std::pin::pin;
use std::time::Duration;

use clap::Args;
use serde_json::json;
use tokio::time::timeout;
use tonic::Code;

use super::client_arguments::ClientArguments;
use super::lines::Lines;
use super::name_argument::NameArgument;
use super::printer::{JsonArgument, Printer};
use super::retry_argument::RetryArgument;
use super::room_argument::RoomArgument;
use super::{Failure, client_runtime, json};
use crate::client::{Error, Join, Posted, Poster, Sending, escape, line_of};
use crate::domain::RoomName;
use crate::telemetry::ClientSpans;

/// When whoever waits for an answer is told so.
const TELL_AFTER: Duration = Duration::from_secs(1);

/// Post messages to a room without joining it.
///
/// Posts the text, or every line of the input that is not empty, and prints each as it was broadcast. Succeeds when all
/// of them were; each is broadcast once, even when its answer is lost and it has to be sent again.
#[derive(Debug, Args)]
pub(super) struct SendCommand {
    /// What to say [default: every line of the input].
    text: Option<String>,
    #[command(flatten)]
    by: NameArgument,
    #[command(flatten)]
    at: RoomArgument,
    #[command(flatten)]
    client: ClientArguments,
    #[command(flatten)]
    retry: RetryArgument,
    #[command(flatten)]
    json: JsonArgument,
}

impl SendCommand {
    pub(super) fn run(self) -> Result<(), Failure> {
        client_runtime::run_traced(|spans| self.send(spans))
    }

    async fn send(self, spans: ClientSpans) -> Result<(), Failure> {
        let who = Join::new(self.by.name.as_str()).room(self.at.room.as_str());
        let retry = self.retry.retry();
        let (settings, patience) = (self.client.settings(), retry.patience);
        let opening = Poster::open(self.client.server(), &settings, retry, who);
        let mut poster = told_of_waiting(opening, patience).await?;
        let mut printer = Printer::new(&self.json);
        if let Some(text) = &self.text {
            let posting = post(&mut poster, &spans, &self.at.room, text.trim());
            return match told_of_waiting(posting, patience).await {
                Ok(posted) => print(&mut printer, &posted),
                Err(error) => Err(refused_text(&error).map_or_else(|| error.into(), Failure::Data)),
            };
        }

        let mut lines = Lines::new(stdin().lock());
        let mut refused: Option<(u64, String)> = None;
        let mut refusals = 0_u64;
        while let Some(line) = lines.next()? {
            let text = line.text.trim();
            if text.is_empty() {
                continue;
            }
            let posting = post(&mut poster, &spans, &self.at.room, text);
            match told_of_waiting(posting, patience).await {
                Ok(posted) => print(&mut printer, &posted)?,
                Err(error) => {
                    let Some(reason) = refused_text(&error) else {
                        return Err(Failure::from(error).of_line(line.number));
                    };
                    refusals += 1;
                    refused.get_or_insert((line.number, reason));
                }
            }
        }
        match (refused, refusals) {
            (None, _) => Ok(()),
            (Some((number, reason)), 1) => Err(Failure::Data(format!(
                "the server refused line {number}: {reason}"
            ))),
            (Some((number, reason)), count) => Err(Failure::Data(format!(
                "the server refused {count} lines, the first of them line {number}: {reason}"
            ))),
        }
    }
}

/// Awaits what is tried again for as long as `patience`. Whoever watches is told when it takes long.
async fn told_of_waiting<T>(answer: impl Future<Output = T>, patience: Duration) -> T {
    let mut answer = pin!(answer);
    match timeout(TELL_AFTER, &mut answer).await {
        Ok(answer) => answer,
        Err(_) => {
            if patience > TELL_AFTER {
                let patience = humantime::format_duration(patience);
                eprintln!("chitchat: no answer from the server yet; trying for {patience}");
            }
            answer.await
        }
    }
}

async fn post(
    poster: &mut Poster,
    spans: &ClientSpans,
    room: &RoomName,
    text: &str,
) -> Result<Posted, Error> {
    let span = spans.send(room.as_str(), text.len());
    let sending = span.as_deref().map(|span| span as &dyn Sending);
    let posted = poster.post_followed(text, sending).await;
    if let (Some(span), Ok(posted)) = (&span, &posted) {
        span.acknowledged(&posted.broadcast);
    }
    posted
}

/// The server's reason, if it was the text that it refused.
fn refused_text(error: &Error) -> Option<String> {
    match error {
        Error::Refused(refusal) if refusal.code == Code::InvalidArgument => {
            Some(escape::text(&refusal.to_string()).into_owned())
        }
        _ => None,
    }
}

fn print(printer: &mut Printer, posted: &Posted) -> Result<(), Failure> {
    printer.either(
        || match posted.broadcast.sender_id {
            // Of a repeated one that is not kept any more, only the place is known.
            0 => format!("broadcast before, as event {}", posted.broadcast.sequence),
            _ => line_of(&posted.broadcast),
        },
        || json!({ "broadcast": json::message(&posted.broadcast), "repeated": posted.repeated }),
    )
}
