//! The argument that the commands share which say something: as whom.

use clap::Args;

use crate::domain::Name;

#[derive(Debug, Args)]
pub(super) struct NameArgument {
    /// What you are called in the room.
    #[arg(long, env = "CHITCHAT_NAME", value_parser = name)]
    pub(super) name: Name,
}

fn name(raw: &str) -> Result<Name, String> {
    Name::try_from(raw).map_err(|error| format!("it {error}"))
}
