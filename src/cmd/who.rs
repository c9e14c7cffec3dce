//! `chitchat who`: lists the participants of a room.

use clap::Args;

use super::client_args::{ConnectArgs, RoomArgs};
use super::printer::{JsonArg, Printer};
use super::table::Align;
use super::{Failure, client_runtime, json};
use crate::client::{Connection, escape};
use crate::proto::{ListParticipantsRequest, Participant};

/// The largest page that the server returns.
const PAGE_SIZE: u32 = 1_000;

/// List the participants of a room
///
/// They are in the order of their names.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  chitchat who              who is in the lobby
  chitchat who tea --json   for a program")]
pub(super) struct WhoCommand {
    #[command(flatten)]
    room: RoomArgs,
    #[command(flatten)]
    connect: ConnectArgs,
    #[command(flatten)]
    json: JsonArg,
}

impl WhoCommand {
    pub(super) fn run(self) -> Result<(), Failure> {
        client_runtime::run(self.list())
    }

    async fn list(self) -> Result<(), Failure> {
        let connection = self.connect.connect().await?;
        let mut participants = list(&connection, self.room.room().as_str()).await?;
        participants.sort_by(|a, b| (&a.name, a.id).cmp(&(&b.name, b.id)));
        Printer::new(&self.json).table(ALIGNMENT, HEADER, &participants, row, json::participant)
    }
}

/// Reads all pages of the list of a room's participants.
pub(super) async fn list(connection: &Connection, room: &str) -> Result<Vec<Participant>, Failure> {
    let mut request = ListParticipantsRequest {
        room: room.to_owned(),
        page_size: PAGE_SIZE,
        ..ListParticipantsRequest::default()
    };
    let mut participants = Vec::new();
    loop {
        let page = connection.list_participants(request.clone()).await?;
        let is_last = page.next_page_token.is_empty() || page.participants.is_empty();
        participants.extend(page.participants);
        if is_last {
            return Ok(participants);
        }
        request.page_token = page.next_page_token;
    }
}

const HEADER: [&str; 4] = ["NAME", "ID", "SINCE", "CONNECTION"];
const ALIGNMENT: [Align; 4] = [Align::Left, Align::Right, Align::Left, Align::Left];

fn row(participant: &Participant) -> [String; 4] {
    let connection = if participant.connected { "yes" } else { "lost" };
    [
        escape::name(&participant.name).into_owned(),
        participant.id.to_string(),
        format!("L={}", participant.joined_timestamp),
        connection.to_owned(),
    ]
}
