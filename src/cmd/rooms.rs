//! `chitchat rooms`: lists the rooms of a server.

use clap::Args;

use super::client_args::ConnectArgs;
use super::printer::{JsonArg, Printer};
use super::{Failure, client_runtime, json};
use crate::client::escape;
use crate::proto::{ListRoomsRequest, RoomSummary};

/// List the rooms, in the order of their names
#[derive(Debug, Args)]
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
        let mut printer = Printer::new(&self.json);
        let mut page_token = String::new();
        while !printer.is_closed() {
            let request = ListRoomsRequest {
                page_size: 0,
                page_token: page_token.clone(),
            };
            let page = connection.list_rooms(request).await?;
            for room in &page.rooms {
                printer.print(|| format_room(room), || json::room(room))?;
            }
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
        Ok(())
    }
}

/// `tea: 3 participants, events 1 to 42, L=57`.
fn format_room(room: &RoomSummary) -> String {
    let name = escape::name(&room.room);
    let people = match room.participants {
        1 => "1 participant".to_owned(),
        count => format!("{count} participants"),
    };
    let events = match (room.first_sequence, room.last_sequence) {
        (0, _) => "no events".to_owned(),
        (first, last) => format!("events {first} to {last}"),
    };
    format!("{name}: {people}, {events}, L={}", room.timestamp)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_room_is_formatted_as_one_line() {
        let mut tea = RoomSummary {
            room: "tea".into(),
            participants: 3,
            epoch: 1,
            first_sequence: 1,
            last_sequence: 42,
            timestamp: 57,
        };
        assert_eq!(format_room(&tea), "tea: 3 participants, events 1 to 42, L=57");
        (tea.participants, tea.first_sequence, tea.last_sequence) = (1, 0, 0);
        assert_eq!(format_room(&tea), "tea: 1 participant, no events, L=57");
    }
}
