//! The options of a replica.

use std::path::PathBuf;
use std::time::Duration;

use sha2::{Digest as _, Sha256};

use super::nats::NatsOptions;
use crate::regular_file;

/// The minimum length of the shared secret, in bytes.
const MIN_SECRET_LEN: usize = 32;

/// The longest name of a replica, in characters. Each heartbeat has it.
pub(super) const MAX_NAME_LEN: usize = 64;

/// The options of one of several replicas.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClusterOptions {
    /// How to reach the command log.
    pub nats: NatsOptions,
    /// The file with the secret that session tokens are signed with. All replicas must have the same.
    pub secret: PathBuf,
    /// What the replica is called where operators look.
    pub name: String,
    /// The directory for checkpoints; `None` if there are none.
    pub data_dir: Option<PathBuf>,
    /// How long to wait until another process has left it.
    pub wait: Option<Duration>,
    /// How often a checkpoint is written.
    pub checkpoint_interval: Duration,
    /// How long messages remain in the stream although all of them are in checkpoints.
    pub keep: Duration,
}

impl ClusterOptions {
    /// The secret that session tokens are signed with.
    ///
    /// # Errors
    ///
    /// What is wrong, with the flag.
    pub fn read_secret(&self) -> Result<[u8; 32], String> {
        let path = self.secret.display();
        let secret =
            regular_file::read(&self.secret).map_err(|error| format!("--cluster-secret {path} {error}"))?;
        let secret = secret.trim_ascii();
        if secret.len() < MIN_SECRET_LEN {
            return Err(format!(
                "--cluster-secret {path} has {} bytes; it must have at least {MIN_SECRET_LEN} random ones",
                secret.len()
            ));
        }
        Ok(Sha256::digest(secret).into())
    }
}
