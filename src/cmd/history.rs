//! `chitchat history`: what happened in a room.

use clap::Args;

use super::aside::aside;
use super::client_arguments::ClientArguments;
use super::number::whole;
use super::printer::{JsonArgument, Printer};
use super::room_argument::RoomArgument;
use super::{Failure, client_runtime};
use crate::client::{Connection, Event, Excerpt, History};
use crate::domain::RoomName;

/// Print what happened in a room.
///
/// Prints the newest events, or those that follow or precede a sequence; always the oldest of them first.
#[derive(Debug, Args)]
pub(super) struct HistoryCommand {
    /// At most this many events: the first ones with --after, else the newest.
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = whole::<u64>)]
    limit: u64,
    /// Only the events after the one of this sequence.
    #[arg(long, value_name = "SEQUENCE", value_parser = whole::<u64>)]
    after: Option<u64>,
    /// Only the events before the one of this sequence.
    #[arg(long, value_name = "SEQUENCE", value_parser = whole::<u64>)]
    before: Option<u64>,
    #[command(flatten)]
    of: RoomArgument,
    #[command(flatten)]
    client: ClientArguments,
    #[command(flatten)]
    json: JsonArgument,
}

impl HistoryCommand {
    pub(super) fn run(self) -> Result<(), Failure> {
        client_runtime::run(self.read())
    }

    async fn read(self) -> Result<(), Failure> {
        let connection = self.client.connect().await?;
        let excerpt = Excerpt {
            limit: self.limit,
            after: self.after,
            before: self.before,
        };
        let mut printer = Printer::new(&self.json);
        print(&connection, &self.of.room, excerpt, u64::MAX, &mut printer).await
    }
}

/// Prints an excerpt of a room's log, but no more than `most` events of it. What is missing in between is said beside it.
pub(super) async fn print(
    connection: &Connection,
    room: &RoomName,
    excerpt: Excerpt,
    most: u64,
    printer: &mut Printer,
) -> Result<(), Failure> {
    let mut history = History::open(connection, room.as_str(), excerpt).await?;
    let mut rest = most;
    while rest > 0
        && !printer.is_closed()
        && let Some(event) = history.next().await?
    {
        match event {
            Event::Message(message) => {
                printer.message(&message)?;
                rest -= 1;
            }
            Event::Hole(hole) => aside(hole),
            Event::Reconnecting { .. } | Event::Resumed { .. } => {}
        }
    }
    Ok(())
}
