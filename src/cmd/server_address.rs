//! The argument that every client command shares: which server.

use std::time::Duration;

use clap::Args;

use super::duration::duration;
use crate::client::ServerAddress;

#[derive(Debug, Args)]
pub(super) struct ServerArgument {
    /// The server: host:port or http://host:port.
    #[arg(
        long,
        env = "CHITCHAT_SERVER",
        value_name = "ADDR",
        default_value = "127.0.0.1:50052"
    )]
    pub(super) server: ServerAddress,
}

/// Reads how long to wait for an answer: `3s`, `500ms`, `1m 30s`.
pub(super) fn patience(raw: &str) -> Result<Duration, String> {
    match duration(raw) {
        Ok(Duration::ZERO) => Err("nothing answers in no time; expected a duration like 2m".into()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patience_is_a_duration_above_zero() {
        assert_eq!(patience("500ms"), Ok(Duration::from_millis(500)));
        for wrong in ["", "0s", "3", "soon", "-1s"] {
            assert!(patience(wrong).unwrap_err().ends_with("like 2m"), "{wrong}");
        }
    }
}
