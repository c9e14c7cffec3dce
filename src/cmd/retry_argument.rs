//! The argument that the commands share which outlast a connection: for how long.

use std::time::Duration;

use clap::Args;

use super::duration::duration;
use crate::client::Retry;

#[derive(Debug, Args)]
pub(super) struct RetryArgument {
    /// How long to keep trying when the connection is lost or the server stops answering; 0s = not at all. A server that is
    /// not there at first is not waited for.
    #[arg(long, env = "CHITCHAT_PATIENCE", value_name = "TIME", default_value = "2m", value_parser = duration)]
    patience: Duration,
}

impl RetryArgument {
    pub(super) fn retry(&self) -> Retry {
        Retry {
            patience: self.patience,
            ..Retry::default()
        }
    }
}
