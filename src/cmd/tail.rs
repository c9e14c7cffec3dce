//! `chitchat tail`: prints the events of a room as they happen.

use std::io;
use std::pin::pin;
use std::time::{Duration, SystemTime};

use clap::Args;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tokio::time::Instant;
use tokio_stream::StreamExt as _;
use tonic::Code;

use super::client_args::{ConnectArgs, RetryArg, RoomArgs};
use super::message_format::TimeArg;
use super::parse::integer;
use super::printer::{JsonArg, Printer};
use super::stderr::{RECONNECTED, RECONNECTING, note};
use super::{Failure, client_runtime, history};
use crate::client::{ClientError, Event, HistoryQuery, StartPosition, Subscription};
use crate::signals::Signals;
use crate::telemetry::ClientSpans;

/// Interval at which a room that does not exist is looked for.
const ROOM_CHECK_INTERVAL: Duration = Duration::from_millis(500);
/// The most past events with which the server starts a stream.
const MAX_START: u32 = 10_000;

/// Interval at which stdout is checked for a closed reader.
const HANGUP_CHECK_INTERVAL: Duration = Duration::from_millis(200);

/// Print the events of a room as they happen
///
/// Does not join the room. Prints the newest events, then each event as it happens, until it is interrupted. If the connection is lost, it
/// reconnects and continues with the event after the last one printed. The second and each further line of a text begins with `  | `.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  chitchat tail tea -n 100            the newest 100 events, and what follows
  chitchat tail tea --follow --json   for a program, also before the room exists
  chitchat tail tea -n 5 --no-follow")]
pub(super) struct TailCommand {
    /// Number of past events to start with
    #[arg(short = 'n', long, value_name = "N", default_value_t = 10, value_parser = integer::<u32>)]
    last: u32,
    /// Continue with events as they happen. This is the default; with the flag, also wait for a room that does not exist yet
    #[arg(short, long, overrides_with = "no_follow")]
    follow: bool,
    /// Exit after the past events
    #[arg(long, overrides_with = "follow")]
    no_follow: bool,
    /// Exit after this many events [default: unlimited]
    #[arg(long, value_name = "N", value_parser = integer::<u64>)]
    count: Option<u64>,
    #[command(flatten)]
    time: TimeArg,
    #[command(flatten)]
    room: RoomArgs,
    #[command(flatten)]
    connect: ConnectArgs,
    #[command(flatten)]
    retry: RetryArg,
    #[command(flatten)]
    json: JsonArg,
}

impl TailCommand {
    pub(super) fn run(self) -> Result<(), Failure> {
        client_runtime::run_traced(|spans| self.tail(spans))
    }

    async fn tail(self, spans: ClientSpans) -> Result<(), Failure> {
        let mut printer = Printer::with_format(&self.json, self.time.format());
        let mut remaining = self.count.unwrap_or(u64::MAX);
        if self.no_follow {
            let connection = self.connect.connect().await?;
            let query = HistoryQuery {
                limit: self.last.into(),
                after: None,
                before: None,
            };
            return history::print(
                &connection,
                self.room.room(),
                query,
                remaining,
                |_| true,
                &mut printer,
            )
            .await;
        }
        let mut signals = Signals::listen()
            .map_err(|error| Failure::Software(format!("cannot listen for signals: {error}")))?;
        let mut subscription = tokio::select! {
            subscription = self.subscribe() => subscription?,
            signal = signals.next() => return Err(Failure::Interrupted(signal)),
        };
        let mut stdout_closed = pin!(stdout_closed());
        while remaining > 0 && !printer.is_closed() {
            let event = tokio::select! {
                () = &mut stdout_closed => return Ok(()),
                event = subscription.try_next() => event?,
                signal = signals.next() => return Err(Failure::Interrupted(signal)),
            };
            // The stream ends only with an error.
            let Some(event) = event else { break };
            match event {
                Event::Message(message) => {
                    let received_at = SystemTime::now();
                    printer.message(&message)?;
                    // A reader has no Lamport clock of its own.
                    spans.record_received(&message, message.timestamp, received_at);
                    // Private notices do not count.
                    remaining -= u64::from(message.sequence > 0);
                }
                Event::Reconnecting { attempt: 1, .. } => note(RECONNECTING),
                Event::Reconnecting { .. } => {}
                Event::Resumed { .. } => note(RECONNECTED),
                Event::Gap(gap) => note(gap),
            }
        }
        Ok(())
    }
}

impl TailCommand {
    /// Subscribes to the room. With --follow, waits until it exists.
    async fn subscribe(&self) -> Result<Subscription, Failure> {
        let (options, mut start) = (self.connect.options(), self.last);
        let mut answered_at = None;
        loop {
            let opened = Subscription::open(
                self.connect.server(),
                &options,
                self.retry.policy(),
                self.room.room().as_str(),
                StartPosition::Last(start),
            );
            let error = match opened.await {
                Ok(subscription) => return Ok(subscription),
                Err(error) => error,
            };
            let is_missing =
                matches!(&error, ClientError::Rejected(rejection) if rejection.code == Code::NotFound);
            if is_missing && self.follow {
                if answered_at.is_none() {
                    note(format_args!("waiting for the room {}", self.room.room()));
                }
                answered_at = Some(Instant::now());
                // Everything in it will have happened after this command began.
                start = MAX_START;
            } else if !(error.is_transient()
                && answered_at.is_some_and(|at| at.elapsed() < self.retry.policy().patience))
            {
                return Err(error.into());
            }
            tokio::time::sleep(ROOM_CHECK_INTERVAL).await;
        }
    }
}

/// Completes when stdout is a pipe or socket whose reader has closed it (`| head -1`). Cancel safe.
async fn stdout_closed() {
    let stdout = io::stdout();
    loop {
        tokio::time::sleep(HANGUP_CHECK_INTERVAL).await;
        // ERR and HUP are reported without being requested.
        let mut fds = [PollFd::new(&stdout, PollFlags::empty())];
        let ready = poll(&mut fds, Some(&Timespec::default()));
        if ready.is_ok_and(|count| count > 0) && fds[0].revents().intersects(PollFlags::ERR | PollFlags::HUP)
        {
            return;
        }
    }
}
