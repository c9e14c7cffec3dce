//! `chitchat who`: who is in a room.

use clap::Args;

use super::client_arguments::ClientArguments;
use super::printer::{JsonArgument, Printer};
use super::room_argument::RoomArgument;
use super::{Failure, client_runtime, json};
use crate::client::escape;
use crate::proto::{ListParticipantsRequest, Participant};

/// List who is in a room, by name.
#[derive(Debug, Args)]
pub(super) struct WhoCommand {
    #[command(flatten)]
    of: RoomArgument,
    #[command(flatten)]
    client: ClientArguments,
    #[command(flatten)]
    json: JsonArgument,
}

impl WhoCommand {
    pub(super) fn run(self) -> Result<(), Failure> {
        client_runtime::run(self.list())
    }

    async fn list(self) -> Result<(), Failure> {
        let request = ListParticipantsRequest {
            room: self.of.room.as_str().to_owned(),
        };
        let answer = self.client.connect().await?.list_participants(request).await?;
        let mut printer = Printer::new(&self.json);
        for participant in &answer.participants {
            printer.either(|| line_of(participant), || json::participant(participant))?;
        }
        Ok(())
    }
}

/// `Ada (participant 1000001, here since L=4)`.
fn line_of(participant: &Participant) -> String {
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
    fn a_participant_is_a_line() {
        let mut ada = Participant {
            id: 7,
            name: "A\nda".into(),
            joined_timestamp: 4,
            connected: true,
        };
        assert_eq!(line_of(&ada), r"A\nda (participant 7, here since L=4)");
        ada.connected = false;
        assert_eq!(
            line_of(&ada),
            r"A\nda (participant 7, here since L=4, connection lost)"
        );
    }
}
