//! `chitchat moderate`: decides about what others do in a room.

use std::time::Duration;

use clap::{Args, Subcommand};

use super::client_args::{ConnectArgs, room};
use super::parse::timeout;
use super::printer::{JsonArg, Printer};
use super::stderr::note;
use super::{Failure, client_runtime, json};
use crate::client::escape;
use crate::domain::RoomName;
use crate::proto::moderate_request::Action;
use crate::proto::moderation_target::Target;
use crate::proto::{Ban, ListBansRequest, ModerateRequest, ModerationTarget, RoomAction};

/// Remove or ban participants, close or delete a room
///
/// Needs a token with the right "moderate" in the room.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  chitchat moderate remove tea --name Eve --reason 'no advertising, please'
  chitchat moderate ban tea --address 192.0.2.7 --for 1h
  chitchat moderate close tea --profile work")]
pub(super) struct ModerateCommand {
    #[command(subcommand)]
    command: ModerateSubcommand,
}

#[derive(Debug, Subcommand)]
enum ModerateSubcommand {
    /// Make participants leave; they may join again
    // Instead of what is in the group, there may be an id.
    #[command(mut_group("BanArgs", |group| group.required(false)))]
    Remove {
        #[command(flatten)]
        room: RoomCall,
        #[command(flatten)]
        target: RemoveArgs,
        #[command(flatten)]
        reason: ReasonArg,
    },
    /// Keep somebody out for a time, and make them leave
    Ban {
        #[command(flatten)]
        room: RoomCall,
        #[command(flatten)]
        target: BanArgs,
        /// How long
        #[arg(long = "for", value_name = "TIME", value_parser = timeout)]
        duration: Duration,
        #[command(flatten)]
        reason: ReasonArg,
    },
    /// End a ban
    Unban {
        #[command(flatten)]
        room: RoomCall,
        #[command(flatten)]
        target: BanArgs,
    },
    /// List the bans
    Bans {
        #[command(flatten)]
        room: RoomCall,
        #[command(flatten)]
        json: JsonArg,
    },
    /// Let nobody join or send messages; participants and readers stay
    Close(RoomCall),
    /// Reopen a closed room
    Reopen(RoomCall),
    /// Delete the room with all its messages and bans
    Delete(RoomCall),
}

#[derive(Debug, Args)]
struct RoomCall {
    /// Name of the room
    #[arg(value_name = "ROOM", value_parser = room)]
    room: RoomName,
    #[command(flatten)]
    connect: ConnectArgs,
}

#[derive(Debug, Args)]
struct ReasonArg {
    /// Why; those who are removed or banned are told
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
    reason: String,
}

#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
struct BanArgs {
    /// Whoever uses this name, in any spelling that looks alike
    #[arg(long)]
    name: Option<String>,
    /// Whoever has a token of this subject
    #[arg(long, value_name = "TEXT")]
    subject: Option<String>,
    /// Whoever comes from this IP address (IPv6: from its /64 network)
    #[arg(long, value_name = "IP")]
    address: Option<String>,
}

/// The ids of the flags in [`BanArgs`].
const BAN_FLAGS: [&str; 3] = ["name", "subject", "address"];

#[derive(Debug, Args)]
struct RemoveArgs {
    /// The participant with this id, as "chitchat who" lists it
    #[arg(
        long,
        allow_negative_numbers = true,
        required_unless_present_any = BAN_FLAGS,
        conflicts_with_all = BAN_FLAGS
    )]
    id: Option<i32>,
    #[command(flatten)]
    target: Option<BanArgs>,
}

impl BanArgs {
    fn into_target(self) -> ModerationTarget {
        let address = self.address.map(Target::Address);
        let target = address
            .or(self.subject.map(Target::Subject))
            .or(self.name.map(Target::Name));
        ModerationTarget { target }
    }
}

impl ModerateCommand {
    pub(super) fn run(self) -> Result<(), Failure> {
        client_runtime::run(self.command.execute())
    }
}

impl ModerateSubcommand {
    async fn execute(self) -> Result<(), Failure> {
        let none = ReasonArg {
            reason: String::new(),
        };
        let (room, action, reason) = match self {
            Self::Bans { room, json } => return list(room, &json).await,
            Self::Remove { room, target, reason } => {
                let target = match target.id {
                    Some(id) => ModerationTarget {
                        target: Some(Target::ParticipantId(id)),
                    },
                    None => target.target.map(BanArgs::into_target).unwrap_or_default(),
                };
                (room, Action::Remove(target), reason)
            }
            Self::Ban {
                room,
                target,
                duration,
                reason,
            } => {
                let ban = Ban {
                    target: Some(target.into_target()),
                    duration: duration.try_into().ok(),
                    ..Ban::default()
                };
                (room, Action::Ban(ban), reason)
            }
            Self::Unban { room, target } => (room, Action::Unban(target.into_target()), none),
            Self::Close(room) => (room, Action::RoomAction(RoomAction::Close.into()), none),
            Self::Reopen(room) => (room, Action::RoomAction(RoomAction::Reopen.into()), none),
            Self::Delete(room) => (room, Action::RoomAction(RoomAction::Delete.into()), none),
        };
        let removes = matches!(action, Action::Remove(_) | Action::Ban(_));
        let request = ModerateRequest {
            room: room.room.to_string(),
            reason: reason.reason,
            action: Some(action),
        };
        let removed = room.connect.connect().await?.moderate(request).await?.removed;
        if removes {
            let line = match removed {
                1 => "1 participant has left".to_owned(),
                count => format!("{count} participants have left"),
            };
            Printer::new(&JsonArg::default()).print(|| line, || json::removed(removed))?;
        }
        Ok(())
    }
}

async fn list(room: RoomCall, json: &JsonArg) -> Result<(), Failure> {
    let request = ListBansRequest {
        room: room.room.to_string(),
    };
    let listed = room.connect.connect().await?.list_bans(request).await?;
    let mut printer = Printer::new(json);
    if listed.closed {
        // Not on standard output, which has a line for each ban.
        note("the room is closed");
    }
    for ban in &listed.bans {
        printer.print(|| format_ban(ban), || json::ban(ban))?;
    }
    Ok(())
}

/// `name Bob until 2026-11-26T12:00:00Z: spam`.
fn format_ban(ban: &Ban) -> String {
    let target = match ban.target.as_ref().and_then(|target| target.target.as_ref()) {
        Some(Target::Name(name)) => format!("name {}", escape::name(name)),
        Some(Target::Subject(subject)) => format!("subject {}", escape::name(subject)),
        Some(Target::Address(address)) => format!("address {}", escape::name(address)),
        Some(Target::ParticipantId(_)) | None => "somebody".to_owned(),
    };
    let until = ban.expire_time.map(|time| time.to_string()).unwrap_or_default();
    let reason = match ban.reason.as_str() {
        "" => String::new(),
        reason => format!(": {}", escape::text(reason)),
    };
    format!("{target} until {until}{reason}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ban_is_formatted_as_one_line() {
        let mut ban = Ban {
            target: Some(ModerationTarget {
                target: Some(Target::Name("B\nob".into())),
            }),
            expire_time: Some(prost_types::Timestamp {
                seconds: 1_795_694_400,
                nanos: 0,
            }),
            reason: "sp\u{1b}am".into(),
            ..Ban::default()
        };
        assert_eq!(
            format_ban(&ban),
            r"name B\nob until 2026-11-26T12:00:00Z: sp\u{1b}am"
        );
        ban.reason.clear();
        assert_eq!(format_ban(&ban), r"name B\nob until 2026-11-26T12:00:00Z");
    }
}
