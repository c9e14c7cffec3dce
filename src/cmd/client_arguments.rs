//! The arguments that the client commands share: which server, and how long to wait for it.

use std::time::Duration;

use clap::Args;

use super::Failure;
use super::server_address::{ServerArgument, patience};
use crate::client::{Connection, ServerAddress, Settings};

#[derive(Debug, Args)]
pub(super) struct ClientArguments {
    #[command(flatten)]
    at: ServerArgument,
    /// How long to wait for the server's answers before giving up on it.
    #[arg(long, env = "CHITCHAT_TIMEOUT", value_name = "TIME", default_value = "10s", value_parser = patience)]
    pub(super) timeout: Duration,
}

impl ClientArguments {
    pub(super) const fn server(&self) -> &ServerAddress {
        &self.at.server
    }

    pub(super) fn settings(&self) -> Settings {
        Settings {
            answer_within: self.timeout,
            ..Settings::default()
        }
    }

    pub(super) async fn connect(&self) -> Result<Connection, Failure> {
        Ok(Connection::open(self.server(), &self.settings()).await?)
    }
}
