//! Checkpoints of rooms that run.

use std::fs;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;

use super::checkpoint::{self, Checkpoint, CheckpointError};
use super::checkpoint_dir::CheckpointDir;
use super::checkpointer::{self, EndedRooms};
use super::fingerprint::Fingerprint;
use super::fixtures;
use super::message::{Content, LogPosition, Message, RoomCommand};
use super::replica::deliver;
use super::rules::{ClusterRules, FoldVersions};
use super::state_machine::{Applied, StateMachine};
use super::state_machine_snapshot::{ReplicatedRooms, StateMachineSnapshot};
use crate::domain::{
    Attachment, Command, Join, Moderation, Outcome, RoomName, Rules, Say, Sequence, WallTime,
};
use crate::hub::{Hub, HubOptions, Submission};
use crate::store::{MemoryStore, Record, Retention, frames};
use crate::telemetry::{Metrics, OtlpPipeline, TelemetryObserver};

const MAX_ROOMS: usize = 20_000;

/// A replica without a command log: its commands are applied at once.
struct Replica {
    state_machine: StateMachine,
    hub: Arc<Hub>,
    submitted: mpsc::Receiver<Submission>,
    incarnation: LogPosition,
    number: u64,
}

impl Replica {
    fn new(state_machine: StateMachine) -> Self {
        let metrics = Arc::new(Metrics::new(1, OtlpPipeline::default()));
        let observer = Arc::new(TelemetryObserver::new(metrics, None));
        let store = Arc::new(MemoryStore::replicated(Retention::IN_MEMORY));
        let options = HubOptions {
            resume_grace: Duration::from_millis(1),
            ..HubOptions::default()
        };
        let (submissions, submitted) = mpsc::channel(1_024);
        let hub = Hub::replicated(Rules::default(), options, store, &[0; 32], observer, submissions);
        hub.end_suspension();
        Self {
            state_machine,
            hub,
            submitted,
            incarnation: LogPosition::new(1),
            number: 0,
        }
    }

    /// One that has said hello.
    fn begin() -> Self {
        let mut replica = Self::new(StateMachine::new());
        let content = Content::Hello {
            nonce: 7,
            rules: ClusterRules::new(Rules::default(), MAX_ROOMS),
            supported: FoldVersions::supported(),
            name: "r".into(),
            version: "1".into(),
        };
        let at = WallTime::from_millis(1_700_000_000_000);
        replica
            .state_machine
            .apply(LogPosition::new(1), Message { at, content })
            .unwrap();
        replica
    }

    fn restore(checkpoint: Checkpoint) -> Self {
        let replica = Self::new(checkpoint.state_machine);
        for room in checkpoint.rooms {
            replica.hub.restore_room(room).unwrap();
        }
        replica
    }

    /// Applies a batch of commands. Returns the attachments that it makes.
    async fn apply(&mut self, commands: Vec<(RoomName, Command)>) -> Vec<Attachment> {
        let position = self.state_machine.applied().next();
        let at = WallTime::from_millis(1_700_000_000_000 + position.get());
        self.number += 1;
        let commands = commands.into_iter().map(|(room, command)| RoomCommand {
            room,
            epoch: None,
            request: 1,
            command,
        });
        let content = Content::Batch {
            incarnation: self.incarnation,
            number: self.number,
            commands: commands.collect(),
        };
        let applied = self
            .state_machine
            .apply(position, Message { at, content })
            .unwrap();
        let Applied::Batch { decisions, .. } = applied else {
            panic!("{applied:?}");
        };
        let mut attachments = Vec::new();
        for decision in &decisions {
            if let Ok((_, Outcome::Joined { attachment, .. })) = &decision.outcome {
                attachments.push(*attachment);
            }
        }
        deliver(&self.hub, decisions, false, at).await.unwrap();
        attachments
    }

    async fn write(&self, directory: &Arc<CheckpointDir>) {
        let state = self.state_machine.state();
        self.write_state(directory, state, EndedRooms::default()).await;
    }

    /// Writes the checkpoint of a state that was taken before, since when some rooms have ended.
    async fn write_state(
        &self,
        directory: &Arc<CheckpointDir>,
        (state, rooms): (StateMachineSnapshot, ReplicatedRooms),
        ended: EndedRooms,
    ) {
        let (directory, hub) = (Arc::clone(directory), Arc::clone(&self.hub));
        let newest = Fingerprint::default();
        let write = move || checkpointer::write(&directory, &hub, state, newest, rooms, &ended, None);
        tokio::task::spawn_blocking(write).await.unwrap().unwrap();
    }

    /// The events that a room retains, as frames.
    fn log(&self, room: &RoomName) -> Vec<Vec<u8>> {
        let (_, rooms) = self.state_machine.state();
        let replicated = &rooms[room];
        let (epoch, last) = (replicated.epoch, replicated.room.last());
        wait_until(|| self.hub.has_reached(room, epoch, last));
        let records = self.hub.retained(room, epoch, last).unwrap();
        let events = records.into_iter().flat_map(|record| frames(record.frames));
        events.map(|frame| frame.to_vec()).collect()
    }
}

fn wait_until(holds: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !holds() {
        assert!(Instant::now() < deadline);
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn room(n: usize) -> RoomName {
    RoomName::try_from(format!("room{n}").as_str()).unwrap()
}

fn join(name: &str) -> Command {
    Command::Join(Join {
        owner: Some("owner".into()),
        ..fixtures::join(name)
    })
}

fn say(attachment: Attachment, n: usize) -> Command {
    Command::Say(Say {
        attachment,
        message: fixtures::message(&"hi ".repeat(30), Some(format!("m{n}"))),
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_begins_with_a_checkpoint_has_the_same_logs_and_decides_alike() {
    let parent = tempfile::tempdir().unwrap();
    let directory = Arc::new(CheckpointDir::open(parent.path()).unwrap());
    let mut replica = Replica::begin();
    let mut members = Vec::new();
    for n in 0..3 {
        members.extend(replica.apply(vec![(room(n), join("Ada"))]).await);
    }
    for n in 0..900 {
        replica.apply(vec![(room(n % 3), say(members[n % 3], n))]).await;
    }
    let lost = replica.apply(vec![(room(2), join("Bob"))]).await[0];
    replica.apply(vec![(room(2), Command::Detach(lost))]).await;
    replica.write(&directory).await;

    let checkpoint = directory.load().unwrap().unwrap();
    assert_eq!(
        checkpoint.state_machine.state().0,
        replica.state_machine.state().0
    );
    // Small records are joined.
    assert!(checkpoint.rooms.iter().all(|room| room.records.len() < 10));
    let mut restored = Replica::restore(checkpoint);
    restored.number = replica.number;
    for n in 0..3 {
        assert!(restored.log(&room(n)) == replica.log(&room(n)), "room {n}");
    }
    // The grace period of who was lost goes on, and nobody else leaves.
    let expired = tokio::time::timeout(Duration::from_secs(10), restored.submitted.recv()).await;
    assert_eq!(expired.unwrap().unwrap().command, Command::ExpireGrace(lost));
    assert!(restored.submitted.is_empty());
    // A repeat is one for both, and what is new is the same for both.
    for n in [3, 899, 900, 901, 902] {
        for replica in [&mut replica, &mut restored] {
            let command = (room(n % 3), say(members[n % 3], n));
            let expire = (room(2), Command::ExpireGrace(lost));
            replica.apply(vec![command, expire]).await;
        }
        assert_eq!(
            restored.state_machine.digest(),
            replica.state_machine.digest(),
            "{n}"
        );
    }
    for n in 0..3 {
        assert!(restored.log(&room(n)) == replica.log(&room(n)), "room {n}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_room_that_ends_while_a_checkpoint_is_taken_is_in_it_without_its_log() {
    let parent = tempfile::tempdir().unwrap();
    let directory = Arc::new(CheckpointDir::open(parent.path()).unwrap());
    let mut replica = Replica::begin();
    for n in 0..2 {
        let ada = replica.apply(vec![(room(n), join("Ada"))]).await[0];
        replica.apply(vec![(room(n), say(ada, n))]).await;
    }
    let state = replica.state_machine.state();
    let (position, number, epoch) = (state.0.applied, replica.number, state.1[&room(1)].epoch);
    let delete = || vec![(room(1), Command::Moderate(Moderation::Delete))];
    // The room's actor follows: it makes the log, and removes it at the end.
    assert!(!replica.log(&room(1)).is_empty());
    replica.apply(delete()).await;
    wait_until(|| !replica.hub.has_reached(&room(1), epoch, Sequence::ZERO));
    let ended = EndedRooms::default();
    ended.insert(room(1), epoch);
    replica.write_state(&directory, state, ended).await;
    let checkpoint = directory.load().unwrap().unwrap();
    assert_eq!(checkpoint.id.position, position);
    let records: Vec<_> = checkpoint
        .rooms
        .iter()
        .map(|room| room.records.is_empty())
        .collect();
    assert_eq!(records, [false, true]);
    // Who begins with it gets to the end of the room, too.
    let mut restored = Replica::restore(checkpoint);
    restored.number = number;
    restored.apply(delete()).await;
    assert_eq!(restored.state_machine.digest(), replica.state_machine.digest());
    assert!(restored.log(&room(0)) == replica.log(&room(0)));
}

/// Records of events whose messages have one byte.
fn record(first: u64, events: u8) -> Record {
    let frames = (0..events).flat_map(|event| [0, 0, 0, 0, 1, event]);
    Record {
        first: Sequence::new(first),
        events: events.into(),
        at: WallTime::from_millis(first),
        resumable: vec![0],
        frames: frames.collect::<Vec<u8>>().into(),
    }
}

#[tokio::test]
async fn records_are_joined_and_cut_off_at_the_newest_event() {
    let mut replica = Replica::begin();
    let ada = replica.apply(vec![(room(0), join("Ada"))]).await[0];
    for n in 0..4 {
        replica.apply(vec![(room(0), say(ada, n))]).await;
    }
    let with = |records: Vec<Record>| {
        let (state, rooms) = replica.state_machine.state();
        let mut bytes = Vec::new();
        let id = checkpoint::write(&mut bytes, state, Fingerprint::default(), rooms, |_, _, last| {
            assert_eq!(last, Sequence::new(5));
            Ok(records.clone())
        });
        assert_eq!(id.unwrap().len, bytes.len() as u64);
        let read = checkpoint::read(&bytes[..], bytes.len() as u64);
        read.map(|mut read| read.rooms.remove(0).records)
    };
    // The newest record goes on after the position.
    let joined = with(vec![record(2, 2), record(4, 9), record(13, 1)]).unwrap();
    assert_eq!(joined.len(), 1);
    let expected = Record {
        events: 4,
        at: WallTime::from_millis(4),
        resumable: vec![0, 2],
        frames: [&record(2, 2).frames[..], &record(4, 2).frames[..]]
            .concat()
            .into(),
        ..record(2, 2)
    };
    assert_eq!(joined[0], expected);
    // Retention may have removed everything up to there.
    assert_eq!(with(vec![record(6, 1)]).unwrap(), []);
    let missing = with(vec![record(2, 2)]);
    assert!(matches!(
        missing,
        Err(CheckpointError::Malformed("records are missing"))
    ));
}

/// How long it takes, and how large it is: `cargo test --release --lib large_checkpoint -- --ignored --nocapture`.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "measures"]
async fn a_large_checkpoint_is_written_and_loaded() {
    let number = |name: &str, default| std::env::var(name).map_or(default, |value| value.parse().unwrap());
    let (rooms, messages) = (number("ROOMS", 1_000), number("MESSAGES", 1_000));
    let parent = tempfile::tempdir().unwrap();
    let directory = Arc::new(CheckpointDir::open(parent.path()).unwrap());
    let mut replica = Replica::begin();
    let mut members = Vec::new();
    for n in 0..rooms {
        members.extend(replica.apply(vec![(room(n), join("Ada"))]).await);
    }
    let started = Instant::now();
    for message in 0..messages {
        // Batches as a producer writes them.
        for first in (0..rooms).step_by(250) {
            let batch = first..(first + 250).min(rooms);
            let commands = batch.map(|n| (room(n), say(members[n], message)));
            replica.apply(commands.collect()).await;
        }
    }
    replica.log(&room(rooms - 1));
    let applied = started.elapsed();
    let started = Instant::now();
    let state = replica.state_machine.state();
    let taken = started.elapsed();
    drop(state);
    let started = Instant::now();
    replica.write(&directory).await;
    let written = started.elapsed();
    let len = directory.newest().unwrap().len;
    let started = Instant::now();
    let checkpoint = directory.load().unwrap().unwrap();
    let read = started.elapsed();
    let started = Instant::now();
    let restored = Replica::restore(checkpoint);
    restored.log(&room(rooms - 1));
    println!(
        "{rooms} rooms x {messages} messages: applied in {applied:.1?}; state taken in {taken:.1?}, written in {written:.1?}, {len} bytes; \
         read in {read:.1?}, restored in {:.1?}",
        started.elapsed()
    );
}

/// Writes the input of the fuzz target: `UPDATE=1 cargo test --lib checkpoint_corpus`.
#[tokio::test]
async fn the_checkpoint_corpus_is_read() {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus/checkpoints/rooms");
    let mut replica = Replica::begin();
    for n in 0..2 {
        let ada = replica.apply(vec![(room(n), join("Ada"))]).await[0];
        replica.apply(vec![(room(n), say(ada, n))]).await;
    }
    let (state, rooms) = replica.state_machine.state();
    let mut bytes = Vec::new();
    checkpoint::write(&mut bytes, state, Fingerprint::default(), rooms, |_, _, _| {
        Ok(vec![record(1, 1), record(2, 1)])
    })
    .unwrap();
    // Without the beginning and the end, which the target adds.
    let content = &bytes[8..bytes.len() - 13];
    if std::env::var_os("UPDATE").is_some() {
        fs::write(&path, content).unwrap();
    }
    assert!(fs::read(&path).unwrap() == content, "UPDATE=1 writes it");
}
