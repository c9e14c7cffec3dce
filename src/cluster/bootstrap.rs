//! Where a replica begins: with a checkpoint of its own or of another replica, or with the first message of the command log.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep};
use tracing::{info, warn};

use super::checkpoint::Checkpoint;
use super::checkpoint_dir::CheckpointDir;
use super::checkpoint_transfer::{self, TransferError};
use super::membership::CUT_OFF;
use super::message::LogPosition;
use super::nats::{NatsError, Stream};
use super::observer::Observer;

/// How long to wait before something is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// How often to log why a replica cannot begin.
pub(super) const WARN_INTERVAL: Duration = Duration::from_secs(60);

/// A replica that cannot begin turns to another server, which may not be cut off: the first time after [`CUT_OFF`], and later each time after twice as long,
/// up to this.
const MAX_SWITCH_INTERVAL: Duration = Duration::from_secs(60);

/// What a replica may begin with.
pub(crate) struct Bootstrap {
    pub(crate) directory: Option<Arc<CheckpointDir>>,
    /// The newest checkpoint in it.
    pub(crate) local: Option<Checkpoint>,
    /// The largest checkpoint that fits into the memory, in bytes.
    pub(crate) max_len: u64,
    /// The position of the checkpoint, once that is of no use any more.
    pub(crate) dropped_at: Option<LogPosition>,
}

/// Why a replica cannot begin yet.
#[derive(Debug, thiserror::Error)]
enum NotYet {
    #[error(transparent)]
    Nats(#[from] NatsError),
    #[error("the stream begins at {first}, this replica has nothing that goes on there, and {error}")]
    Truncated {
        first: LogPosition,
        error: TransferError,
    },
    #[error(
        "the stream ends at {last}, and this replica's checkpoint is at {applied}: if the stream was made anew, remove the data directories \
         of all replicas"
    )]
    StreamBehind { last: LogPosition, applied: LogPosition },
    #[error(
        "the stream has another message at {0}, the position of this replica's checkpoint: it was made anew, or restored to an earlier message. Stop \
         all replicas and remove their data directories"
    )]
    Replaced(LogPosition),
}

impl Bootstrap {
    /// Waits until it is known where to begin. `None` is the beginning of the command log. Can be dropped at any time.
    pub(crate) async fn run(mut self, stream: &mut Stream, observer: &dyn Observer) -> Option<Checkpoint> {
        let mut warned = None;
        let (mut switched_at, mut switch_interval) = (Instant::now(), CUT_OFF);
        loop {
            match self.attempt(stream).await {
                Ok(checkpoint) => {
                    if let Some(checkpoint) = &checkpoint {
                        let (position, rooms) = (checkpoint.id.position, checkpoint.rooms.len());
                        info!(event = "checkpoint_loaded", %position, rooms, "beginning with a checkpoint");
                    }
                    return checkpoint;
                }
                Err(error) => {
                    // Another reason is said at once.
                    let reason = std::mem::discriminant(&error);
                    let is_said = |(said, at): (_, Instant)| said == reason && at.elapsed() < WARN_INTERVAL;
                    if !warned.is_some_and(is_said) {
                        warned = Some((reason, Instant::now()));
                        warn!(event = "replica_waiting", %error, "this replica cannot begin yet");
                    }
                    if switched_at.elapsed() >= switch_interval {
                        switched_at = Instant::now();
                        switch_interval = (switch_interval * 2).min(MAX_SWITCH_INTERVAL);
                        warn!(event = "nats_switched", "turning to another NATS server");
                        observer.server_switched();
                        stream.switch_server();
                    }
                }
            }
            sleep(RETRY).await;
        }
    }

    async fn attempt(&mut self, stream: &Stream) -> Result<Option<Checkpoint>, NotYet> {
        let applied = self.local.as_ref().map(|local| local.id.position);
        // With the message that the checkpoint is of: if it is the same, so is the stream.
        let from = applied.unwrap_or(LogPosition::default().next());
        let first = stream.first_from(from).await?;
        if let (Some(applied), Some((first, _))) = (self.dropped_at, first)
            && first == from
        {
            // The stream that the checkpoint was of does not have its beginning any more.
            return Err(NotYet::Replaced(applied));
        }
        match (&self.local, first) {
            (Some(local), Some((position, fingerprint))) if position == from => {
                if local.id.fingerprint.matches(fingerprint) {
                    Ok(self.local.take())
                } else {
                    Err(NotYet::Replaced(position))
                }
            }
            (Some(_), None) => {
                // A server of NATS that lags does not have the newest message, but has it soon.
                let last = stream.last().await?.unwrap_or_default();
                Err(NotYet::StreamBehind { last, applied: from })
            }
            (_, Some((first, _))) if first > from => {
                // It is of no use any more, and takes as much memory as the one that is read now.
                self.dropped_at = self
                    .local
                    .take()
                    .map(|local| local.id.position)
                    .or(self.dropped_at);
                let fetched = self.fetch(stream, first).await;
                fetched
                    .map(Some)
                    .map_err(|error| NotYet::Truncated { first, error })
            }
            (_, Some(_)) => {
                // That is faster than to read all of the stream.
                match self.fetch(stream, LogPosition::default()).await {
                    Ok(checkpoint) => return Ok(Some(checkpoint)),
                    Err(TransferError::NoOffer) => {}
                    Err(error) => {
                        warn!(event = "checkpoint_refused", %error, "cannot begin with the checkpoint of another replica; reading the whole stream");
                    }
                }
                Ok(None)
            }
            (None, None) => match self.dropped_at {
                Some(applied) => {
                    let last = LogPosition::default();
                    Err(NotYet::StreamBehind { last, applied })
                }
                None => Ok(None),
            },
        }
    }

    async fn fetch(&self, stream: &Stream, needed: LogPosition) -> Result<Checkpoint, TransferError> {
        let directory = self.directory.as_ref();
        checkpoint_transfer::fetch(stream, directory, needed, self.max_len).await
    }
}
