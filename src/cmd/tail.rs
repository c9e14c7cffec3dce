//! `chitchat tail`: reads a room as it goes on, without joining it.

use std::pin::pin;
use std::time::SystemTime;

use clap::Args;

use super::aside::{RECONNECTED, RECONNECTING, aside};
use super::client_arguments::ClientArguments;
use super::hangup::hangup;
use super::number::whole;
use super::printer::{JsonArgument, Printer};
use super::retry_argument::RetryArgument;
use super::room_argument::RoomArgument;
use super::{Failure, client_runtime, history};
use crate::client::{Event, Excerpt, Follower, Start};
use crate::shutdown::Signals;
use crate::telemetry::ClientSpans;

/// Read a room as it goes on, without joining it.
///
/// Prints the newest events and then each one as it happens, until it is interrupted. After a lost connection it goes on
/// with the event after the last one printed.
#[derive(Debug, Args)]
pub(super) struct TailCommand {
    /// How many of the newest events to begin with.
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = whole::<u32>)]
    last: u32,
    /// Go on with what happens next (the default).
    #[arg(long, overrides_with = "no_follow")]
    follow: bool,
    /// Stop after the newest events.
    #[arg(long, overrides_with = "follow")]
    no_follow: bool,
    /// Stop after this many events.
    #[arg(long, value_name = "N", value_parser = whole::<u64>)]
    count: Option<u64>,
    #[command(flatten)]
    of: RoomArgument,
    #[command(flatten)]
    client: ClientArguments,
    #[command(flatten)]
    retry: RetryArgument,
    #[command(flatten)]
    json: JsonArgument,
}

impl TailCommand {
    pub(super) fn run(self) -> Result<(), Failure> {
        client_runtime::run_traced(|spans| self.tail(spans))
    }

    async fn tail(self, spans: ClientSpans) -> Result<(), Failure> {
        let mut printer = Printer::new(&self.json);
        let mut rest = self.count.unwrap_or(u64::MAX);
        if self.no_follow {
            let connection = self.client.connect().await?;
            let excerpt = Excerpt {
                limit: self.last.into(),
                after: None,
                before: None,
            };
            return history::print(&connection, &self.of.room, excerpt, rest, &mut printer).await;
        }
        let mut follower = Follower::open(
            self.client.server(),
            &self.client.settings(),
            self.retry.retry(),
            self.of.room.as_str(),
            Start::Last(self.last),
        )
        .await?;
        let mut signals = Signals::listen()
            .map_err(|error| Failure::Software(format!("cannot listen for signals: {error}")))?;
        let mut hangup = pin!(hangup());
        while rest > 0 && !printer.is_closed() {
            let event = tokio::select! {
                () = &mut hangup => return Ok(()),
                event = follower.next() => event?,
                signal = signals.next() => return Err(Failure::Interrupted(signal)),
            };
            match event {
                Event::Message(message) => {
                    let began = SystemTime::now();
                    printer.message(&message)?;
                    // Who only reads has no clock of its own.
                    spans.received(&message, message.timestamp, began);
                    // A notice is no event.
                    rest -= u64::from(message.sequence > 0);
                }
                Event::Reconnecting { attempt: 1, .. } => aside(RECONNECTING),
                Event::Reconnecting { .. } => {}
                Event::Resumed { .. } => aside(RECONNECTED),
                Event::Hole(hole) => aside(hole),
            }
        }
        Ok(())
    }
}
