//! What a replica reports.

use std::time::Duration;

/// Observes a replica. Its methods must not block.
pub trait Observer: Send + Sync + 'static {
    /// Called every few milliseconds.
    fn observed(&self, state: &ReplicaStats);

    /// Called after a message of the command log was applied. It was either pushed or fetched.
    fn applied(&self, is_fetched: bool);

    /// Called after a batch of this replica was received from the command log and applied, with how long ago it was written.
    fn batch_committed(&self, took: Duration);

    /// Called after batches were written again.
    fn resent(&self, batches: usize);

    /// Called after NATS has refused to store a message of this replica.
    fn publish_failed(&self);

    /// Called after one had no effect, for one of the [reasons](IGNORED).
    fn ignored(&self, reason: &'static str);

    /// Called after a replica was fenced.
    fn fenced(&self, is_own: bool);

    /// Called when the replica turns to another NATS server.
    fn server_switched(&self);

    /// Called every few milliseconds: with how many messages the newest checkpoint is behind what was applied, if this replica writes any.
    fn checkpoint_lag(&self, messages: u64);

    /// Called after a checkpoint was written, with its size in bytes; `None` if that has failed.
    fn checkpoint_finished(&self, bytes: Option<u64>);

    /// Called every minute with the size of the stream and the size at which it is full, in bytes.
    fn stream_observed(&self, bytes: u64, max_bytes: u64);

    /// Called after this replica has removed messages from the beginning of the stream.
    fn stream_truncated(&self, messages: u64);
}

/// What a replica is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReplicaStats {
    /// Whether clients are accepted.
    pub is_ready: bool,
    /// How many replicas are alive.
    pub replicas: usize,
    /// How many of them have diverged.
    pub diverged: usize,
    /// The time since it received a message of its own.
    pub silence: Duration,
    /// The position of the last message that it has applied.
    pub applied: u64,
    /// How many later messages it knows of.
    pub lag: u64,
    /// How many of its batches it has written and not received yet.
    pub in_flight: usize,
    /// The size of the commands that wait to be written, in bytes.
    pub waiting: usize,
}

/// Why messages have no effect.
pub const IGNORED: [&str; 4] = ["repeated", "early", "fenced", "other"];
