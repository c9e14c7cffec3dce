//! Where a replica begins: with a checkpoint of its own or of another replica, or with the first message of the order.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep};
use tracing::{info, warn};

use super::checkpoint::Checkpoint;
use super::checkpoint_dir::CheckpointDir;
use super::checkpoint_transfer::{self, TransferError};
use super::message::Place;
use super::nats::{NatsError, Stream};

/// How long to wait before something is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// How often is said why a replica cannot begin.
const WARN_INTERVAL: Duration = Duration::from_secs(60);

/// What a replica may begin with.
pub(crate) struct Bootstrap {
    pub(crate) directory: Option<Arc<CheckpointDir>>,
    /// The newest checkpoint in it.
    pub(crate) local: Option<Checkpoint>,
    /// The largest checkpoint that fits into the memory, in bytes.
    pub(crate) max_len: u64,
}

/// Why a replica cannot begin yet.
#[derive(Debug, thiserror::Error)]
enum NotYet {
    #[error(transparent)]
    Nats(#[from] NatsError),
    #[error("the stream begins at {first}, this replica has everything up to {applied}, and {error}")]
    Truncated {
        first: Place,
        applied: Place,
        error: TransferError,
    },
    #[error(
        "the stream ends at {last}, and this replica's checkpoint is at {applied}: if the stream was made anew, remove the data directories \
         of all replicas"
    )]
    OtherStream { last: Place, applied: Place },
}

impl Bootstrap {
    /// Waits until it is known where to begin. `None` is the beginning of the order. Can be dropped at any time.
    pub(crate) async fn run(mut self, stream: &Stream) -> Option<Checkpoint> {
        let mut warned_at: Option<Instant> = None;
        loop {
            match self.attempt(stream).await {
                Ok(checkpoint) => {
                    if let Some(checkpoint) = &checkpoint {
                        let (place, rooms) = (checkpoint.id.place, checkpoint.rooms.len());
                        info!(event = "checkpoint_loaded", %place, rooms, "beginning with a checkpoint");
                    }
                    return checkpoint;
                }
                Err(error) => {
                    if warned_at.is_none_or(|at| at.elapsed() >= WARN_INTERVAL) {
                        warned_at = Some(Instant::now());
                        warn!(event = "replica_waiting", %error, "this replica cannot begin yet");
                    }
                }
            }
            sleep(RETRY).await;
        }
    }

    async fn attempt(&mut self, stream: &Stream) -> Result<Option<Checkpoint>, NotYet> {
        let applied = self
            .local
            .as_ref()
            .map_or(Place::default(), |local| local.id.place);
        let first = stream.first_from(applied.next()).await?;
        if let Some(first) = first
            && first > applied.next()
        {
            let needed = Place::new(first.get().saturating_sub(1));
            let fetched = self.fetch(stream, needed).await;
            return fetched.map(Some).map_err(|error| NotYet::Truncated {
                first,
                applied,
                error,
            });
        }
        if self.local.is_some() {
            // A server of NATS that lags does not have the newest message, but has it soon.
            let last = stream.last().await?.unwrap_or_default();
            if last < applied {
                return Err(NotYet::OtherStream { last, applied });
            }
            return Ok(self.local.take());
        }
        if first.is_some() {
            // That is faster than to read all of the stream.
            match self.fetch(stream, Place::default()).await {
                Ok(checkpoint) => return Ok(Some(checkpoint)),
                Err(TransferError::NoOffer) => {}
                Err(error) => {
                    warn!(event = "checkpoint_refused", %error, "cannot begin with the checkpoint of another replica; reading the whole stream");
                }
            }
        }
        Ok(None)
    }

    async fn fetch(&self, stream: &Stream, needed: Place) -> Result<Checkpoint, TransferError> {
        let directory = self.directory.as_ref();
        checkpoint_transfer::fetch(stream, directory, needed, self.max_len).await
    }
}
