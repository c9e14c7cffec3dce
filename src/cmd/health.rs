//! `chitchat health`: queries the health service.

use std::io::Write as _;
use std::time::Duration;

use clap::Args;

use super::client_args::ServerArg;
use super::parse::timeout;
use super::{Failure, client_runtime};
use crate::client::{Connection, Health};

/// Ask whether the server is serving, for health checks
///
/// Queries the health service. Prints the state (SERVING, NOT_SERVING, UNKNOWN or SERVICE_UNKNOWN). Exits with 0 if it is SERVING, else with 69.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  chitchat health
  chitchat health --server https://chat.example:50052 --timeout 1s")]
pub(super) struct HealthCommand {
    #[command(flatten)]
    server: ServerArg,
    /// Service to query, such as itu.chitchat.ChatService [default: the whole server]
    #[arg(long, value_name = "NAME", default_value = "", hide_default_value = true)]
    service: String,
    /// How long to wait for the connection and the response together
    #[arg(long, env = "CHITCHAT_TIMEOUT", value_name = "TIME", default_value = "3s", value_parser = timeout, help_heading = "Connection")]
    timeout: Duration,
}

impl HealthCommand {
    pub(super) fn run(self) -> Result<(), Failure> {
        client_runtime::run(self.check())
    }

    async fn check(self) -> Result<(), Failure> {
        let server = &self.server.server;
        let options = self.server.options(self.timeout);
        let check = async {
            Connection::open(server, &options)
                .await?
                .health(&self.service)
                .await
        };
        let state = tokio::time::timeout(self.timeout, check).await.map_err(|_| {
            let waited = humantime::format_duration(self.timeout);
            Failure::Unavailable(format!("{server} did not answer within {waited}"))
        })??;
        writeln!(std::io::stdout(), "{}", state.as_str())
            .map_err(|error| Failure::Io(format!("cannot write to stdout: {error}")))?;
        match state {
            Health::Serving => Ok(()),
            Health::ServiceUnknown => Err(Failure::Unavailable(format!(
                "{server} has no service {:?}",
                self.service
            ))),
            state => Err(Failure::Unavailable(format!("{server} is {}", state.as_str()))),
        }
    }
}
