//! Several servers with one order: every replica applies the same messages in the same order, and so decides alike.
//!
//! The order is a stream that stores what replicas write, gives each message a `Place`, and shows all of them to
//! everybody. It may refuse a message, store it although nobody learns of that, or store it twice. A replica
//!
//! 1. gives the commands of its clients to its `Producer`, which writes them as numbered batches until they have come
//!    back,
//! 2. takes the messages of all replicas from the stream, each once and in turn, as its `Follower` says,
//! 3. applies them to its `Partition`, which has all rooms, and answers its clients with what has become of their
//!    commands,
//! 4. says every second that it lives, and which others do not (`Presence`).
//!
//! All of these are pure: no I/O, no clock, no randomness; times arrive with the calls. A `Replica` joins them to NATS and to the hub; it
//! stops if it cannot decode a message, or decides otherwise than most others.
mod credentials;
mod follower;
#[cfg(test)]
mod hub_tests;
mod message;
mod nats;
mod partition;
mod presence;
mod producer;
mod replica;
mod setup;
#[cfg(test)]
mod simulation_tests;

use std::path::PathBuf;

use sha2::{Digest as _, Sha256};

use crate::regular_file;

pub use credentials::Credentials;
pub use nats::{NatsError, NatsOptions};
pub(crate) use replica::{ConnectedReplica, Replica, ReplicaError, SUBMISSIONS};
pub use replica::{IGNORED, Observer, ReplicaState};
pub(crate) use setup::{Setup, peers, wrong_config};

/// The minimum length of the shared secret, in bytes.
const MIN_SECRET_LEN: usize = 32;

/// The options of one of several replicas.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClusterOptions {
    /// How to reach the order.
    pub nats: NatsOptions,
    /// The file with the secret that session tokens are signed with. All replicas must have the same.
    pub secret: PathBuf,
    /// What the replica is called where operators look.
    pub name: String,
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
                "--cluster-secret {path} has {} bytes; it must have at least {MIN_SECRET_LEN}, of which nobody can guess anything",
                secret.len()
            ));
        }
        Ok(Sha256::digest(secret).into())
    }
}

/// Fuzz target: what replicas read from their common order.
#[cfg(any(feature = "fuzzing", test))]
pub(crate) fn fuzz_messages(bytes: &[u8]) {
    if let Ok(message) = message::Message::decode(bytes) {
        assert_eq!(message.encode(), bytes, "{message:?}");
        let mut partition = partition::Partition::new(1);
        partition.apply(message::Place::default().next(), message).ok();
    }
}
