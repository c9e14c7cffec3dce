//! Several servers with one command log: every replica applies the same messages in the same order, and so decides alike.
//!
//! The command log is a stream that stores what replicas write, gives each message a `LogPosition`, and shows all of them to
//! everybody. It may refuse a message, store it although nobody learns of that, or store it twice. A replica
//!
//! 1. gives the commands of its clients to its `Producer`, which writes them as numbered batches until they have come
//!    back,
//! 2. takes the messages of all replicas from the stream, each once and in turn, as its `StreamReader` says,
//! 3. applies them to its `StateMachine`, which has all rooms, and answers its clients with what has become of their
//!    commands,
//! 4. says every second that it lives, and which others do not (`Membership`).
//!
//! All of these are pure: no I/O, no clock, no randomness; times arrive with the calls. A `Replica` joins them to NATS and to the hub; it
//! stops if it cannot decode a message, or decides differently from most others.
mod bootstrap;
mod checkpoint;
mod checkpoint_dir;
#[cfg(test)]
mod checkpoint_tests;
mod checkpoint_transfer;
mod checkpointer;
mod credentials;
mod export;
mod fingerprint;
#[cfg(test)]
mod fixtures;
#[cfg(test)]
pub(crate) mod hub_fixtures;
#[cfg(test)]
mod hub_tests;
mod import;
mod membership;
mod message;
mod nats;
mod nats_admin;
mod observer;
mod options;
mod producer;
mod replica;
mod rules;
#[cfg(test)]
mod simulation_tests;
mod state_machine;
mod state_machine_snapshot;
mod stream_reader;
mod truncation;

pub(crate) use bootstrap::Bootstrap;
pub(crate) use checkpoint_dir::{CheckpointDir, read_file};
pub(crate) use checkpointer::StopRequest;
pub use credentials::Credentials;
pub(crate) use export::export;
pub(crate) use import::{ImportError, Imported, import};
pub use nats::{NatsError, NatsOptions};
pub(crate) use nats_admin::{NatsAdmin, peers, wrong_config};
pub use observer::{IGNORED, Observer, ReplicaStats};
pub use options::ClusterOptions;
pub(crate) use replica::{ConnectedReplica, Replica, ReplicaError, SUBMISSIONS};

#[cfg(any(feature = "fuzzing", test))]
pub(crate) use checkpoint::fuzz_checkpoints;

/// Fuzz target: what replicas read from the command log.
#[cfg(any(feature = "fuzzing", test))]
pub(crate) fn fuzz_messages(bytes: &[u8]) {
    if let Ok(message) = message::Message::decode(bytes) {
        assert_eq!(message.encode(), bytes, "{message:?}");
        let mut state_machine = state_machine::StateMachine::new();
        state_machine
            .apply(message::LogPosition::default().next(), message)
            .ok();
    }
}
