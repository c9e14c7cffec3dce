//! When a replica takes checkpoints, and how: the command log goes on meanwhile.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tracing::{info, warn};

use super::checkpoint::{self, CheckpointError, CheckpointId};
use super::checkpoint_dir::CheckpointDir;
use super::fingerprint::Fingerprint;
use super::message::NewestCheckpoint;
use super::state_machine::StateMachine;
use super::state_machine_snapshot::{ReplicatedRooms, StateMachineSnapshot};
use crate::domain::{Epoch, RoomName};
use crate::hub::Hub;

/// A checkpoint is taken when the command log has grown by so many bytes, although the newest one is young.
const MAX_BYTES: u64 = 64 << 20;

/// But not before so much time has passed, nor after a failure.
const MIN_INTERVAL: Duration = Duration::from_secs(30);

/// How long to wait until all rooms have got as far as the command log.
const REACH_TIMEOUT: Duration = Duration::from_secs(10);

/// How often to look whether a room has.
const REACH_INTERVAL: Duration = Duration::from_millis(2);

/// A request for a last checkpoint, before the replica stops.
#[derive(Debug)]
pub(crate) struct StopRequest {
    /// Sent once all rooms have reached its position, so that they may end. Dropped if none is taken.
    pub(crate) reached: oneshot::Sender<()>,
    /// Sent, or dropped, once the checkpoint is written.
    pub(crate) written: oneshot::Sender<()>,
}

/// The rooms of a checkpoint that have ended since it was taken: the hub does not have them any more. Whoever begins with the checkpoint gets to their
/// end, too, before it is ready, so nobody misses what they had retained.
#[derive(Debug, Clone, Default)]
pub(super) struct EndedRooms(Arc<Mutex<BTreeSet<(RoomName, Epoch)>>>);

impl EndedRooms {
    pub(super) fn insert(&self, room: RoomName, epoch: Epoch) {
        self.0.lock().insert((room, epoch));
    }

    fn contains(&self, room: &RoomName, epoch: Epoch) -> bool {
        self.0.lock().contains(&(room.clone(), epoch))
    }
}

/// A checkpoint that is being written.
struct Job {
    task: JoinHandle<Result<CheckpointId, CheckpointError>>,
    /// The newest epoch of its rooms.
    newest_epoch: Option<Epoch>,
    ended: EndedRooms,
    /// Who waits until it has ended.
    _written: Option<oneshot::Sender<()>>,
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
    job: Option<Job>,
    /// For the last checkpoint, once the job has ended.
    queued_stop: Option<StopRequest>,
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
            queued_stop: None,
        }
    }

    /// The newest checkpoint, as heartbeats say it.
    pub(crate) fn newest(&self) -> Option<NewestCheckpoint> {
        self.directory.newest().map(|newest| NewestCheckpoint {
            directory: self.directory.id(),
            position: newest.position,
        })
    }

    /// A message of this length was applied.
    pub(crate) const fn on_applied(&mut self, len: usize, is_heartbeat: bool) {
        self.bytes = self.bytes.saturating_add(len as u64);
        self.has_changed |= !is_heartbeat;
    }

    /// A room was decided upon and is not there any more. To be called before the hub removes it.
    pub(crate) fn on_ended(&self, room: &RoomName, epoch: Epoch) {
        // Those that began later are not in the checkpoint.
        if let Some(job) = &self.job
            && Some(epoch) <= job.newest_epoch
        {
            job.ended.insert(room.clone(), epoch);
        }
    }

    /// Takes a checkpoint if it is time to: `newest` is the fingerprint of the newest message that was applied. Also returns what has become of the
    /// one before.
    pub(crate) async fn poll(
        &mut self,
        now: Duration,
        state_machine: &StateMachine,
        newest: Fingerprint,
    ) -> Option<Finished> {
        if let Some(job) = self.job.take_if(|job| job.task.is_finished()) {
            let written = job
                .task
                .await
                .unwrap_or(Err(CheckpointError::Malformed("it cannot be encoded")));
            if let Some(request) = self.queued_stop.take() {
                self.stop(request, now, state_machine, newest);
            }
            return Some(match written {
                Ok(id) => Finished::Written(id),
                Err(error) => {
                    warn!(event = "checkpoint_failed", %error, "cannot write a checkpoint");
                    // Nothing is durable that was not before.
                    self.has_changed = true;
                    // It is tried again after that time, or the interval if that is shorter.
                    self.taken_at = now.min((now + MIN_INTERVAL).saturating_sub(self.interval));
                    Finished::Failed
                }
            });
        }
        let age = now.saturating_sub(self.taken_at);
        let is_due = (self.has_changed && age >= self.interval)
            || (self.bytes >= MAX_BYTES && age >= self.interval.min(MIN_INTERVAL));
        if is_due && self.job.is_none() {
            self.take(now, state_machine, newest, None);
        }
        None
    }

    /// Takes a last checkpoint, after the one that is being written.
    pub(crate) fn stop(
        &mut self,
        request: StopRequest,
        now: Duration,
        state_machine: &StateMachine,
        newest: Fingerprint,
    ) {
        if self.job.is_some() {
            self.queued_stop = Some(request);
        } else if self.bytes > 0 {
            self.take(now, state_machine, newest, Some(request));
        }
    }

    /// Other replicas decide differently: a replica that begins with one of the checkpoints would do so again.
    pub(crate) fn set_aside(&self) {
        if let Err(error) = self.directory.set_aside() {
            warn!(event = "checkpoint_failed", %error, "cannot set the checkpoints aside; remove them");
        }
    }

    fn take(
        &mut self,
        now: Duration,
        state_machine: &StateMachine,
        newest: Fingerprint,
        stop: Option<StopRequest>,
    ) {
        let (reached, written) = stop
            .map(|StopRequest { reached, written }| (reached, written))
            .unzip();
        let (state, rooms) = state_machine.state();
        (self.bytes, self.has_changed, self.taken_at) = (0, false, now);
        let (directory, hub) = (Arc::clone(&self.directory), Arc::clone(&self.hub));
        let (newest_epoch, ended) = (state.newest_epoch, EndedRooms::default());
        let when_ended = ended.clone();
        let task = move || write(&directory, &hub, state, newest, rooms, &when_ended, reached);
        self.job = Some(Job {
            task: tokio::task::spawn_blocking(task),
            newest_epoch,
            ended,
            _written: written,
        });
    }
}

/// Writes a checkpoint. Blocks until the rooms have got as far as the state, and on the disk.
pub(super) fn write(
    directory: &CheckpointDir,
    hub: &Hub,
    state: StateMachineSnapshot,
    newest: Fingerprint,
    rooms: ReplicatedRooms,
    ended: &EndedRooms,
    reached: Option<oneshot::Sender<()>>,
) -> Result<CheckpointId, CheckpointError> {
    let started = Instant::now();
    for (name, replicated) in &rooms {
        while !hub.has_reached(name, replicated.epoch, replicated.room.last())
            && !ended.contains(name, replicated.epoch)
        {
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
    let id = checkpoint::write(&mut new, state, newest, rooms, |name, epoch, last| {
        match hub.retained(name, epoch, last) {
            Some(records) => Ok(records),
            // As if nothing of it were retained.
            None if ended.contains(name, epoch) => Ok(Vec::new()),
            None => Err(CheckpointError::NotReached(name.clone())),
        }
    })?;
    directory.commit(new, id)?;
    let CheckpointId { position, len, .. } = id;
    info!(event = "checkpoint_written", %position, bytes = len, rooms = count, took = ?started.elapsed(), "wrote a checkpoint");
    Ok(id)
}
