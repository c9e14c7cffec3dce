//! `chitchat tail`: prints the events of a room as they happen.

use std::io;
use std::pin::pin;
use std::time::{Duration, SystemTime};

use clap::Args;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tokio_stream::StreamExt as _;

use super::client_args::{ConnectArgs, RetryArg, RoomArgs};
use super::parse::integer;
use super::printer::{JsonArg, Printer};
use super::stderr::{RECONNECTED, RECONNECTING, note};
use super::{Failure, client_runtime, history};
use crate::client::{Event, HistoryQuery, StartPosition, Subscription};
use crate::signals::Signals;
use crate::telemetry::ClientSpans;

/// Interval at which stdout is checked for a closed reader.
const HANGUP_CHECK_INTERVAL: Duration = Duration::from_millis(200);

/// Print the events of a room as they happen, without joining it
///
/// Prints the newest events, then each event as it happens, until it is interrupted. If the connection is lost, it
/// reconnects and continues with the event after the last one printed.
#[derive(Debug, Args)]
pub(super) struct TailCommand {
    /// Number of past events to start with
    #[arg(short = 'n', long, value_name = "N", default_value_t = 10, value_parser = integer::<u32>)]
    last: u32,
    /// Continue with events as they happen (the default)
    #[arg(long, overrides_with = "no_follow")]
    follow: bool,
    /// Exit after the past events
    #[arg(long, overrides_with = "follow")]
    no_follow: bool,
    /// Exit after this many events [default: unlimited]
    #[arg(long, value_name = "N", value_parser = integer::<u64>)]
    count: Option<u64>,
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
        let mut printer = Printer::new(&self.json);
        let mut remaining = self.count.unwrap_or(u64::MAX);
        if self.no_follow {
            let connection = self.connect.connect().await?;
            let query = HistoryQuery {
                limit: self.last.into(),
                after: None,
                before: None,
            };
            return history::print(&connection, self.room.room(), query, remaining, &mut printer).await;
        }
        let mut subscription = Subscription::open(
            self.connect.server(),
            &self.connect.options(),
            self.retry.policy(),
            self.room.room().as_str(),
            StartPosition::Last(self.last),
        )
        .await?;
        let mut signals = Signals::listen()
            .map_err(|error| Failure::Software(format!("cannot listen for signals: {error}")))?;
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
