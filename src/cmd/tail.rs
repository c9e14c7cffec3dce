//! `chitchat tail`: prints the events of a room as they happen.

use std::io;
use std::pin::pin;
use std::time::{Duration, SystemTime};

use clap::Args;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep};
use tokio_stream::StreamExt as _;
use tonic::Code;

use super::client_args::{ConnectArgs, RetryArg, RoomArgs};
use super::message_format::TimeArg;
use super::output::{self, Output};
use super::parse::integer;
use super::printer::{JsonArg, Printer};
use super::stderr::{RECONNECTED, RECONNECTING};
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
    /// Number of past events to start with; at most 10000 unless --no-follow is given
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
                self.max_events(),
                |_| true,
                &mut printer,
            )
            .await;
        }
        if self.last > MAX_START {
            return Err(Failure::Usage(format!(
                "-n {}: at most {MAX_START} past events can be followed; --no-follow has no limit",
                self.last
            )));
        }
        let mut signals = Signals::listen()
            .map_err(|error| Failure::Software(format!("cannot listen for signals: {error}")))?;
        // Writing can block, which must not keep a signal from ending the command.
        let (output, notes) = (Output::stdout()?, Output::stderr()?);
        let ended = tokio::select! {
            ended = self.follow(&printer, &output, &notes, spans) => ended,
            signal = signals.next() => Err(Failure::Interrupted(signal)),
        };
        let is_interrupted = matches!(ended, Err(Failure::Interrupted(_)));
        output::close(ended, (output, notes), &mut signals, is_interrupted).await
    }

    fn max_events(&self) -> u64 {
        self.count.unwrap_or(u64::MAX)
    }

    /// Writes events until there were enough or the output is closed.
    async fn follow(
        &self,
        printer: &Printer,
        output: &Output,
        notes: &Output,
        spans: ClientSpans,
    ) -> Result<(), Failure> {
        let mut subscription = self.subscribe(notes).await?;
        let mut stdout_closed = pin!(stdout_closed());
        let mut remaining = self.max_events();
        while remaining > 0 {
            let received = tokio::select! {
                received = receive(&mut subscription, output) => received,
                () = output.closed() => return Ok(()),
                () = &mut stdout_closed => return Ok(()),
            };
            let Some((permit, event)) = received else {
                return Ok(());
            };
            // The stream ends only with an error.
            let Some(event) = event? else { break };
            match event {
                Event::Message(message) => {
                    let received_at = SystemTime::now();
                    permit.send(printer.format_message(&message));
                    // A reader has no Lamport clock of its own.
                    spans.record_received(&message, message.timestamp, received_at);
                    // Private notices do not count.
                    remaining -= u64::from(message.sequence > 0);
                }
                Event::Reconnecting { attempt: 1, .. } => notes.try_send(RECONNECTING.to_owned()),
                Event::Reconnecting { .. } => {}
                Event::Resumed { .. } => notes.try_send(RECONNECTED.to_owned()),
                Event::Gap(gap) => notes.try_send(gap.to_string()),
            }
        }
        Ok(())
    }

    /// Subscribes to the room. With --follow, waits until it exists.
    async fn subscribe(&self, notes: &Output) -> Result<Subscription, Failure> {
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
                    notes.try_send(format!("waiting for the room {}", self.room.room()));
                }
                answered_at = Some(Instant::now());
                // Everything in it will have happened after this command began.
                start = MAX_START;
            } else if !(error.is_transient()
                && answered_at.is_some_and(|at| at.elapsed() < self.retry.policy().patience))
            {
                return Err(error.into());
            }
            sleep(ROOM_CHECK_INTERVAL).await;
        }
    }
}

/// Waits for capacity to write an event, then for the event; `None` if the output accepts no more lines. Cancel safe.
async fn receive<'a>(
    subscription: &mut Subscription,
    output: &'a Output,
) -> Option<(mpsc::Permit<'a, String>, Result<Option<Event>, ClientError>)> {
    let permit = output.reserve().await?;
    Some((permit, subscription.try_next().await))
}

/// Completes when stdout is a pipe or socket whose reader has closed it (`| head -1`). Cancel safe.
async fn stdout_closed() {
    let stdout = io::stdout();
    loop {
        sleep(HANGUP_CHECK_INTERVAL).await;
        // ERR and HUP are reported without being requested.
        let mut fds = [PollFd::new(&stdout, PollFlags::empty())];
        let ready = poll(&mut fds, Some(&Timespec::default()));
        if ready.is_ok_and(|count| count > 0) && fds[0].revents().intersects(PollFlags::ERR | PollFlags::HUP)
        {
            return;
        }
    }
}
