//! `chitchat rooms`: lists the rooms of a server.

use clap::Args;

use super::client_args::ConnectArgs;
use super::printer::{JsonArg, Printer};
use super::table::Align;
use super::{Failure, client_runtime, json};
use crate::client::escape;
use crate::proto::{ListRoomsRequest, RoomSummary};

/// List the rooms of the server
///
/// Prints the number of participants, the sequence numbers of the events that can be read, and the Lamport time of each room, in
/// the order of their names.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  chitchat rooms
  chitchat rooms --server https://chat.example:50052 --json")]
pub(super) struct RoomsCommand {
    #[command(flatten)]
    connect: ConnectArgs,
    #[command(flatten)]
    json: JsonArg,
}

impl RoomsCommand {
    pub(super) fn run(self) -> Result<(), Failure> {
        client_runtime::run(self.list())
    }

    async fn list(self) -> Result<(), Failure> {
        let connection = self.connect.connect().await?;
        let mut rooms = Vec::new();
        let mut page_token = String::new();
        loop {
            let request = ListRoomsRequest {
                page_size: 0,
                page_token: page_token.clone(),
            };
            let page = connection.list_rooms(request).await?;
            rooms.extend(page.rooms);
            if page.next_page_token.is_empty() {
                break;
            }
            if page.next_page_token == page_token {
                return Err(Failure::Protocol(
                    "the server's list of rooms does not end: a page refers to itself as the next one"
                        .to_owned(),
                ));
            }
            page_token = page.next_page_token;
        }
        Printer::new(&self.json).table(ALIGNMENT, HEADER, &rooms, row, json::room)
    }
}

const HEADER: [&str; 4] = ["ROOM", "PARTICIPANTS", "EVENTS", "TIME"];
const ALIGNMENT: [Align; 4] = [Align::Left, Align::Right, Align::Left, Align::Left];

fn row(room: &RoomSummary) -> [String; 4] {
    let events = match (room.first_sequence, room.last_sequence) {
        (0, _) => "none".to_owned(),
        (first, last) => format!("{first} to {last}"),
    };
    [
        escape::name(&room.room).into_owned(),
        room.participants.to_string(),
        events,
        format!("L={}", room.timestamp),
    ]
}
