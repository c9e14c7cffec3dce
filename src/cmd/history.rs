//! `chitchat history`: prints past events of a room.

use clap::Args;
use tokio_stream::StreamExt as _;

use super::client_args::{ConnectArgs, RoomArgs};
use super::parse::integer;
use super::printer::{JsonArg, Printer};
use super::stderr::note;
use super::{Failure, client_runtime};
use crate::client::{Connection, Event, History, HistoryQuery};
use crate::domain::RoomName;

/// Print past events of a room, oldest first
///
/// Prints the newest events; or, with --after, the first events after a sequence number.
#[derive(Debug, Args)]
pub(super) struct HistoryCommand {
    /// Print at most this many events
    #[arg(short = 'n', long, value_name = "N", default_value_t = 100, value_parser = integer::<u64>)]
    limit: u64,
    /// Print only events after this sequence number, the oldest of them if there are more than --limit
    #[arg(long, value_name = "SEQUENCE", value_parser = integer::<u64>)]
    after: Option<u64>,
    /// Print only events before this sequence number
    #[arg(long, value_name = "SEQUENCE", value_parser = integer::<u64>)]
    before: Option<u64>,
    #[command(flatten)]
    room: RoomArgs,
    #[command(flatten)]
    connect: ConnectArgs,
    #[command(flatten)]
    json: JsonArg,
}

impl HistoryCommand {
    pub(super) fn run(self) -> Result<(), Failure> {
        client_runtime::run(self.print())
    }

    async fn print(self) -> Result<(), Failure> {
        let connection = self.connect.connect().await?;
        let query = HistoryQuery {
            limit: self.limit,
            after: self.after,
            before: self.before,
        };
        let mut printer = Printer::new(&self.json);
        print(&connection, self.room.room(), query, u64::MAX, &mut printer).await
    }
}

/// Prints the events that `query` selects, at most `max_events` of them. Gaps are reported on stderr.
pub(super) async fn print(
    connection: &Connection,
    room: &RoomName,
    query: HistoryQuery,
    max_events: u64,
    printer: &mut Printer,
) -> Result<(), Failure> {
    let mut history = History::open(connection, room.as_str(), query).await?;
    let mut remaining = max_events;
    while remaining > 0
        && !printer.is_closed()
        && let Some(event) = history.try_next().await?
    {
        match event {
            Event::Message(message) => {
                printer.message(&message)?;
                remaining -= 1;
            }
            Event::Gap(gap) => note(gap),
            Event::Reconnecting { .. } | Event::Resumed { .. } => {}
        }
    }
    Ok(())
}
