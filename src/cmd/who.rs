//! `chitchat who`: lists the participants of a room.

use clap::Args;

use super::client_args::{ConnectArgs, RoomArgs};
use super::printer::{JsonArg, Printer};
use super::{Failure, client_runtime, json};
use crate::client::{Connection, escape};
use crate::proto::{ListParticipantsRequest, Participant};

/// The largest page that the server returns.
const PAGE_SIZE: u32 = 1_000;

/// List the participants of a room, in the order of their names
#[derive(Debug, Args)]
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
        let mut printer = Printer::new(&self.json);
        for participant in &participants {
            printer.print(
                || format_participant(participant),
                || json::participant(participant),
            )?;
        }
        Ok(())
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

/// `Ada (participant 1000001, here since L=4)`.
fn format_participant(participant: &Participant) -> String {
    let name = escape::name(&participant.name);
    let Participant {
        id, joined_timestamp, ..
    } = participant;
    let lost = if participant.connected {
        ""
    } else {
        ", connection lost"
    };
    format!("{name} (participant {id}, here since L={joined_timestamp}{lost})")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_participant_is_formatted_as_one_line() {
        let mut ada = Participant {
            id: 7,
            name: "A\nda".into(),
            joined_timestamp: 4,
            connected: true,
        };
        assert_eq!(format_participant(&ada), r"A\nda (participant 7, here since L=4)");
        ada.connected = false;
        assert_eq!(
            format_participant(&ada),
            r"A\nda (participant 7, here since L=4, connection lost)"
        );
    }
}
