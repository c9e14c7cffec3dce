//! `chitchat health`: asks a server whether it serves.

use std::io::Write as _;
use std::time::Duration;

use clap::Args;

use super::server_address::{ServerArgument, patience};
use super::{Failure, client_runtime};
use crate::client::{Connection, Health, Settings};

/// Ask a server whether it serves; for container health checks.
///
/// Prints the state and succeeds when it is SERVING.
#[derive(Debug, Args)]
pub(super) struct HealthCommand {
    #[command(flatten)]
    at: ServerArgument,
    /// The service to ask about, itu.chitchat.ChatService for instance [default: the server as a whole].
    #[arg(long, value_name = "NAME", default_value = "", hide_default_value = true)]
    service: String,
    /// How long to wait for the answer.
    #[arg(long, env = "CHITCHAT_TIMEOUT", value_name = "TIME", default_value = "3s", value_parser = patience)]
    timeout: Duration,
}

impl HealthCommand {
    pub(super) fn run(self) -> Result<(), Failure> {
        client_runtime::run(self.ask())
    }

    async fn ask(self) -> Result<(), Failure> {
        let server = &self.at.server;
        let settings = Settings {
            answer_within: self.timeout,
            ..Settings::default()
        };
        let asking = async {
            Connection::open(server, &settings)
                .await?
                .health(&self.service)
                .await
        };
        // One deadline for both steps.
        let state = tokio::time::timeout(self.timeout, asking).await.map_err(|_| {
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
