//! When a replica takes checkpoints, and how: the order goes on meanwhile.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tracing::{info, warn};

use super::checkpoint::{self, CheckpointError, CheckpointId};
use super::checkpoint_dir::CheckpointDir;
use super::message::Durable;
use super::partition::Partition;
use super::partition_state::{PartitionState, RoomStates};
use crate::hub::Hub;

/// A checkpoint is taken when the order has grown by so many bytes, although the newest one is young.
const MAX_BYTES: u64 = 64 << 20;

/// But not before so much time has passed, nor after a failure.
const MIN_INTERVAL: Duration = Duration::from_secs(30);

/// How long to wait until all rooms have got as far as the order.
const REACH_TIMEOUT: Duration = Duration::from_secs(10);

/// How often to look whether a room has.
const REACH_INTERVAL: Duration = Duration::from_millis(2);

/// Whoever stops a replica.
#[derive(Debug)]
pub(crate) struct StopRequest {
    /// Sent once nothing that a last checkpoint needs can be lost any more, or there will be none.
    pub(crate) reached: oneshot::Sender<()>,
    /// Sent, or dropped, once the checkpoint is written.
    pub(crate) written: oneshot::Sender<()>,
}

/// Takes the checkpoints of one replica.
pub(crate) struct Checkpointer {
    directory: Arc<CheckpointDir>,
    hub: Arc<Hub>,
    interval: Duration,
    /// What was applied since the newest checkpoint was taken.
    bytes: u64,
    /// Whether any of it was more than a heartbeat.
    has_changed: bool,
    /// When the newest one was taken.
    taken_at: Duration,
    job: Option<JoinHandle<Result<CheckpointId, CheckpointError>>>,
    /// Who waits for the job.
    stopping: Option<oneshot::Sender<()>>,
}

/// What has become of a checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Finished {
    Written(CheckpointId),
    Failed,
}

impl Checkpointer {
    pub(crate) fn new(
        directory: Arc<CheckpointDir>,
        hub: Arc<Hub>,
        interval: Duration,
        now: Duration,
    ) -> Self {
        Self {
            directory,
            hub,
            interval,
            bytes: 0,
            has_changed: false,
            taken_at: now,
            job: None,
            stopping: None,
        }
    }

    /// The newest checkpoint, as heartbeats say it.
    pub(crate) fn durable(&self) -> Option<Durable> {
        self.directory.newest().map(|newest| Durable {
            directory: self.directory.id(),
            place: newest.place,
        })
    }

    /// A message of this length was applied.
    pub(crate) const fn on_applied(&mut self, len: usize, is_heartbeat: bool) {
        self.bytes = self.bytes.saturating_add(len as u64);
        self.has_changed |= !is_heartbeat;
    }

    /// Takes a checkpoint if it is time to. Also returns what has become of the one before.
    pub(crate) async fn poll(&mut self, now: Duration, partition: &Partition) -> Option<Finished> {
        if let Some(job) = self.job.take_if(|job| job.is_finished()) {
            let written = job
                .await
                .unwrap_or(Err(CheckpointError::Malformed("it cannot be encoded")));
            self.stopping = None;
            return Some(match written {
                Ok(id) => Finished::Written(id),
                Err(error) => {
                    warn!(event = "checkpoint_failed", %error, "cannot write a checkpoint");
                    // Nothing is durable that was not before.
                    self.has_changed = true;
                    self.taken_at = now.min((now + MIN_INTERVAL).saturating_sub(self.interval));
                    Finished::Failed
                }
            });
        }
        let age = now.saturating_sub(self.taken_at);
        let is_due = (self.has_changed && age >= self.interval)
            || (self.bytes >= MAX_BYTES && age >= self.interval.min(MIN_INTERVAL));
        if is_due && self.job.is_none() {
            self.take(now, partition, None);
        }
        None
    }

    /// Takes a last checkpoint, or lets the one that is being written be the last.
    pub(crate) fn stop(&mut self, request: StopRequest, now: Duration, partition: &Partition) {
        let StopRequest { reached, written } = request;
        self.stopping = Some(written);
        if self.job.is_some() {
            reached.send(()).ok();
        } else if self.bytes > 0 {
            self.take(now, partition, Some(reached));
        } else {
            self.stopping = None;
        }
    }

    /// Other replicas decide otherwise: a replica that begins with one of the checkpoints would do so again.
    pub(crate) fn set_aside(&self) {
        if let Err(error) = self.directory.set_aside() {
            warn!(event = "checkpoint_failed", %error, "cannot set the checkpoints aside; remove them");
        }
    }

    fn take(&mut self, now: Duration, partition: &Partition, reached: Option<oneshot::Sender<()>>) {
        let (state, rooms) = partition.state();
        (self.bytes, self.has_changed, self.taken_at) = (0, false, now);
        let (directory, hub) = (Arc::clone(&self.directory), Arc::clone(&self.hub));
        let job = move || write(&directory, &hub, &state, rooms, reached);
        self.job = Some(tokio::task::spawn_blocking(job));
    }
}

/// Writes a checkpoint. Blocks until the rooms have got as far as the state, and on the disk.
pub(super) fn write(
    directory: &CheckpointDir,
    hub: &Hub,
    state: &PartitionState,
    rooms: RoomStates,
    reached: Option<oneshot::Sender<()>>,
) -> Result<CheckpointId, CheckpointError> {
    let started = Instant::now();
    for (name, replicated) in &rooms {
        while !hub.has_reached(name, replicated.epoch, replicated.room.last()) {
            if started.elapsed() > REACH_TIMEOUT {
                return Err(CheckpointError::NotReached(name.clone()));
            }
            std::thread::sleep(REACH_INTERVAL);
        }
    }
    if let Some(reached) = reached {
        reached.send(()).ok();
    }
    let count = rooms.len();
    let mut new = directory.create()?;
    let id = checkpoint::write(&mut new, state, rooms, |name, epoch, last| {
        hub.retained(name, epoch, last)
            .ok_or_else(|| CheckpointError::NotReached(name.clone()))
    })?;
    directory.commit(new, id)?;
    let CheckpointId { place, len, .. } = id;
    info!(event = "checkpoint_written", %place, bytes = len, rooms = count, took = ?started.elapsed(), "wrote a checkpoint");
    Ok(id)
}
