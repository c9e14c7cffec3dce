//! The hub of a replica, between callers and a command log that tests hold in their hands.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::fixtures;
use super::message::{Content, LogPosition, Message, RoomCommand};
use super::replica::{SUBMISSIONS, deliver};
use super::rules::{ClusterRules, FoldVersions};
use super::state_machine::{Applied, StateMachine};
use crate::domain::{Command, End, EndStage, Epoch, Moderation, Post, RoomName, Rules, WallTime};
use crate::hub::{Hub, HubError, HubOptions, JoinRequest, Member, PostOutcome, RequestMeta, Submission};
use crate::store::{MemoryStore, Retention};
use crate::telemetry::{Metrics, OtlpPipeline, TelemetryObserver};

/// A hub, and the command log of which it is the only replica.
pub(crate) struct Replicated {
    pub(crate) hub: Arc<Hub>,
    pub(crate) store: Arc<MemoryStore>,
    pub(crate) submitted: mpsc::Receiver<Submission>,
    pub(crate) state_machine: StateMachine,
    pub(crate) incarnation: LogPosition,
    pub(crate) number: u64,
}

impl Replicated {
    pub(crate) async fn new(options: HubOptions) -> Self {
        Self::with_retention(options, Retention::IN_MEMORY).await
    }

    pub(crate) async fn with_retention(options: HubOptions, retention: Retention) -> Self {
        let metrics = Arc::new(Metrics::new(1, OtlpPipeline::default()));
        let observer = Arc::new(TelemetryObserver::new(metrics, None));
        let (submissions, submitted) = mpsc::channel(SUBMISSIONS);
        let store = Arc::new(MemoryStore::replicated(retention));
        let hub = Hub::replicated(
            Rules::default(),
            options,
            Arc::clone(&store),
            &[7; 32],
            observer,
            submissions,
        );
        let mut replicated = Self {
            hub,
            store,
            submitted,
            state_machine: StateMachine::new(),
            incarnation: LogPosition::default(),
            number: 0,
        };
        replicated.begin().await;
        replicated.hub.end_suspension();
        replicated
    }

    /// Begins an incarnation.
    pub(crate) async fn begin(&mut self) {
        let nonce = self.state_machine.applied().get();
        let hello = Content::Hello {
            nonce,
            rules: ClusterRules::new(Rules::default(), 10),
            supported: FoldVersions::supported(),
            name: "r1".into(),
            version: "1".into(),
        };
        self.incarnation = self.apply(hello).await;
        self.number = 0;
    }

    pub(crate) async fn apply(&mut self, content: Content) -> LogPosition {
        let (position, at) = (
            self.state_machine.applied().next(),
            WallTime::from_millis(1_700_000_000_000),
        );
        match self
            .state_machine
            .apply(position, Message { at, content })
            .unwrap()
        {
            Applied::Batch { decisions, .. } => deliver(&self.hub, decisions, true, at).await.unwrap(),
            Applied::Fenced { decisions, .. } => deliver(&self.hub, decisions, false, at).await.unwrap(),
            Applied::Hello { .. } => {}
            other => panic!("{other:?}"),
        }
        position
    }

    /// Gives commands their positions.
    pub(crate) async fn order(&mut self, submissions: Vec<Submission>) {
        let command = |submission: Submission| RoomCommand {
            room: submission.room,
            epoch: submission.epoch,
            request: submission.request,
            command: submission.command,
        };
        self.number += 1;
        let batch = Content::Batch {
            incarnation: self.incarnation,
            number: self.number,
            commands: submissions.into_iter().map(command).collect(),
        };
        self.apply(batch).await;
    }

    pub(crate) async fn submitted(&mut self) -> Submission {
        self.submitted.recv().await.unwrap()
    }

    /// Gives the next command that is submitted its position.
    pub(crate) async fn order_next(&mut self) {
        let submission = self.submitted().await;
        self.order(vec![submission]).await;
    }

    pub(crate) fn post(&self) -> JoinHandle<Result<PostOutcome, HubError>> {
        let (hub, post) = (Arc::clone(&self.hub), post());
        tokio::spawn(async move { hub.post(&tea(), post, RequestMeta::now()).await })
    }

    pub(crate) fn join(&self, name: &str) -> JoinHandle<Result<Member, HubError>> {
        self.join_with(join(name))
    }

    pub(crate) fn join_with(&self, request: JoinRequest) -> JoinHandle<Result<Member, HubError>> {
        let hub = Arc::clone(&self.hub);
        tokio::spawn(async move { hub.join(request, Instant::now()).await })
    }

    pub(crate) fn moderate(&self, moderation: Moderation) -> JoinHandle<Result<usize, HubError>> {
        let hub = Arc::clone(&self.hub);
        tokio::spawn(async move { hub.moderate(&tea(), moderation, |_| {}).await })
    }

    /// Another replica writes a command for the room of this epoch.
    pub(crate) async fn order_other(
        &mut self,
        other: LogPosition,
        number: u64,
        epoch: Option<Epoch>,
        command: Command,
    ) {
        let command = RoomCommand {
            room: tea(),
            epoch,
            request: 1,
            command,
        };
        let batch = Content::Batch {
            incarnation: other,
            number,
            commands: vec![command],
        };
        let (position, at) = (
            self.state_machine.applied().next(),
            WallTime::from_millis(1_700_000_000_000),
        );
        let message = Message { at, content: batch };
        let Applied::Batch { decisions, .. } = self.state_machine.apply(position, message).unwrap() else {
            panic!("it has no effect");
        };
        deliver(&self.hub, decisions, false, at).await.unwrap();
    }

    /// Somebody posts to the room, and then it is quiet for long.
    pub(crate) async fn begin_room(&mut self) -> Option<Epoch> {
        let posted = self.post();
        self.order_next().await;
        posted.await.unwrap().unwrap();
        self.state_machine.epoch(&tea())
    }

    /// Waits until the end of the room is proposed. What comes before gets its position.
    pub(crate) async fn proposal(&mut self) -> Submission {
        loop {
            let submission = self.submitted().await;
            if end(&submission).is_some() {
                return submission;
            }
            self.order(vec![submission]).await;
        }
    }
}

pub(crate) fn end(submission: &Submission) -> Option<EndStage> {
    match submission.command {
        Command::End(End { stage, .. }) => Some(stage),
        _ => None,
    }
}

pub(crate) fn tea() -> RoomName {
    RoomName::try_from("tea").unwrap()
}

pub(crate) fn post() -> Post {
    fixtures::post(None)
}

pub(crate) fn join(name: &str) -> JoinRequest {
    JoinRequest {
        room: tea(),
        join: fixtures::join(name),
        session_token: None,
        resume_point: None,
        history: 0,
    }
}

/// With events that expire at once.
pub(crate) fn expiring() -> Retention {
    Retention {
        max_age: Some(Duration::from_secs(1)),
        ..Retention::IN_MEMORY
    }
}
