//! The argument that the commands about a room share: which one.

use clap::Args;

use crate::domain::RoomName;

#[derive(Debug, Args)]
pub(super) struct RoomArgument {
    /// The room.
    #[arg(long, env = "CHITCHAT_ROOM", value_parser = room, default_value = RoomName::LOBBY)]
    pub(super) room: RoomName,
}

fn room(raw: &str) -> Result<RoomName, String> {
    RoomName::try_from(raw).map_err(|error| format!("it {error}"))
}
