//! The rooms of a replica, between callers and an order that the tests hold in their hands.

use std::sync::Arc;
use std::time::Instant;

use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::message::{Content, Message, Place, RoomCommand};
use super::partition::{Applied, Partition};
use super::replica::{SUBMISSIONS, deliver};
use crate::domain::{
    self, Join, Moderation, Name, Origin, Post, Rejection, RoomName, Rules, Sequence, Text, Timestamp,
    WallTime,
};
use crate::hub::{
    CloseReason, FeedItem, Hub, HubError, HubOptions, JoinRequest, Member, PostOutcome, RequestMeta,
    ResumePoint, Submission,
};
use crate::store::{MemoryStore, Retention};
use crate::telemetry::{Metrics, OtlpPipeline, TelemetryObserver};

/// A hub, and the order of which it is the only replica.
struct Replicated {
    hub: Arc<Hub>,
    submitted: mpsc::Receiver<Submission>,
    partition: Partition,
    incarnation: Place,
    number: u64,
}

impl Replicated {
    async fn new(options: HubOptions) -> Self {
        let metrics = Arc::new(Metrics::new(1, OtlpPipeline::default()));
        let observer = Arc::new(TelemetryObserver::new(metrics, None));
        let (submissions, submitted) = mpsc::channel(SUBMISSIONS);
        let store = Arc::new(MemoryStore::replicated(Retention::IN_MEMORY));
        let hub = Hub::replicated(Rules::default(), options, store, &[7; 32], observer, submissions);
        let mut replicated = Self {
            hub,
            submitted,
            partition: Partition::new(options.max_rooms),
            incarnation: Place::default(),
            number: 0,
        };
        replicated.begin().await;
        replicated.hub.resume();
        replicated
    }

    /// Begins an incarnation.
    async fn begin(&mut self) {
        let nonce = self.partition.applied().get();
        let hello = Content::Hello {
            nonce,
            rules: Rules::default(),
            name: "r1".into(),
            version: "1".into(),
        };
        self.incarnation = self.apply(hello).await;
        self.number = 0;
    }

    async fn apply(&mut self, content: Content) -> Place {
        let (place, at) = (
            self.partition.applied().next(),
            WallTime::from_millis(1_700_000_000_000),
        );
        match self.partition.apply(place, Message { at, content }).unwrap() {
            Applied::Batch { decisions, .. } => deliver(&self.hub, decisions, true, at).await,
            Applied::Lost { decisions, .. } => deliver(&self.hub, decisions, false, at).await,
            Applied::Hello { .. } => {}
            other => panic!("{other:?}"),
        }
        place
    }

    /// Gives commands their places.
    async fn order(&mut self, submissions: Vec<Submission>) {
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

    async fn submitted(&mut self) -> Submission {
        self.submitted.recv().await.unwrap()
    }

    /// Gives the next command that is submitted its place.
    async fn order_next(&mut self) {
        let submission = self.submitted().await;
        self.order(vec![submission]).await;
    }

    fn post(&self) -> JoinHandle<Result<PostOutcome, HubError>> {
        let (hub, post) = (Arc::clone(&self.hub), post());
        tokio::spawn(async move { hub.post(&tea(), post, RequestMeta::now()).await })
    }

    fn join(&self, name: &str) -> JoinHandle<Result<Member, HubError>> {
        self.join_with(join(name))
    }

    fn join_with(&self, request: JoinRequest) -> JoinHandle<Result<Member, HubError>> {
        let hub = Arc::clone(&self.hub);
        tokio::spawn(async move { hub.join(request, Instant::now()).await })
    }

    fn moderate(&self, moderation: Moderation) -> JoinHandle<Result<usize, HubError>> {
        let hub = Arc::clone(&self.hub);
        tokio::spawn(async move { hub.moderate(&tea(), moderation, |_| {}).await })
    }
}

fn tea() -> RoomName {
    RoomName::try_from("tea").unwrap()
}

fn post() -> Post {
    Post {
        name: Name::try_from("poster").unwrap(),
        origin: Origin::default(),
        message: domain::Message {
            timestamp: Timestamp(0),
            text: Text::parse("hi", 10),
            message_id: None,
            trace: None,
        },
    }
}

fn join(name: &str) -> JoinRequest {
    JoinRequest {
        room: tea(),
        join: Join {
            session: None,
            id: None,
            name: Name::try_from(name).unwrap(),
            owner: None,
            origin: Origin::default(),
            timestamp: Timestamp(0),
            is_resumable: true,
            trace: None,
        },
        session_token: None,
        resume_point: None,
        history: 0,
    }
}

/// The reason for which a stream closes.
async fn closed(member: &mut Member) -> CloseReason {
    loop {
        if let FeedItem::Closed(reason) = std::future::poll_fn(|cx| member.poll_next(cx)).await {
            return reason;
        }
    }
}

const DELETED: Result<(), HubError> = Err(HubError::Rejected(Rejection::RoomDeleted));

#[tokio::test]
async fn what_was_on_its_way_to_a_deleted_room_does_not_create_it_again() {
    let mut replicated = Replicated::new(HubOptions::default()).await;
    let ada = replicated.join("Ada");
    replicated.order_next().await;
    let mut ada = ada.await.unwrap().unwrap();
    let epoch = ada.info().epoch;

    let deletion = replicated.moderate(Moderation::Delete);
    let deletion_submitted = replicated.submitted().await;
    let (posted, joined) = (replicated.post(), replicated.join("Bob"));
    let late = vec![replicated.submitted().await, replicated.submitted().await];
    assert!(late.iter().all(|submission| submission.epoch == Some(epoch)));
    replicated.order(vec![deletion_submitted]).await;
    assert_eq!(deletion.await.unwrap(), Ok(0));
    assert_eq!(
        closed(&mut ada).await,
        CloseReason::Rejected(Rejection::RoomDeleted)
    );
    replicated.order(late).await;
    assert_eq!(posted.await.unwrap().map(drop), DELETED);
    assert_eq!(joined.await.unwrap().map(drop), DELETED);
    assert!(!replicated.hub.has_room(&tea()));

    // Whoever may create the room can do so.
    let anew = replicated.join("Ada");
    let submission = replicated.submitted().await;
    assert_eq!(submission.epoch, None);
    replicated.order(vec![submission]).await;
    let mut anew = anew.await.unwrap().unwrap();
    assert!(anew.info().epoch > epoch && replicated.hub.has_room(&tea()));
    assert_eq!(anew.info().participant, ada.info().participant);
    // The end of a stream of the room that is gone does not detach anybody in this one.
    drop(ada);
    anew.leave(None, None);
    replicated.order_next().await;
    assert_eq!(closed(&mut anew).await, CloseReason::Left);
}

#[tokio::test]
async fn a_command_that_is_rejected_does_not_create_a_room() {
    let mut replicated = Replicated::new(HubOptions::default()).await;
    let mut request = join("Ada");
    request.join.timestamp = Timestamp(i64::MAX);
    let rejected = replicated.join_with(request.clone()).await.unwrap();
    assert!(matches!(rejected, Err(HubError::Rejected(_))), "at once");
    // Whoever waits while another JOIN creates the room.
    let (one, other) = (replicated.join("Ada"), replicated.join("Ada"));
    let submissions = vec![replicated.submitted().await, replicated.submitted().await];
    replicated.order(submissions).await;
    let results = [one.await.unwrap(), other.await.unwrap()];
    assert_eq!(results.iter().filter(|result| result.is_ok()).count(), 1);
    assert!(replicated.hub.has_room(&tea()));
}

#[tokio::test]
async fn a_token_of_a_room_that_this_replica_does_not_know_yet_resumes_the_session() {
    let mut first = Replicated::new(HubOptions::default()).await;
    let mut second = Replicated::new(HubOptions::default()).await;
    let ada = first.join("Ada");
    let submission = first.submitted().await;
    let (room, epoch, request, command) = (tea(), None, submission.request, submission.command.clone());
    first.order(vec![submission]).await;
    let ada = ada.await.unwrap().unwrap();
    // The other replica has not applied it when the client goes there.
    let mut resume = join("Ada");
    resume.session_token.clone_from(&ada.info().session_token);
    resume.resume_point = Some(ResumePoint {
        epoch: ada.info().epoch.get(),
        sequence: Sequence::new(1),
    });
    let resumed = second.join_with(resume);
    let late = second.submitted().await;
    assert_eq!(late.epoch, Some(ada.info().epoch));
    let creation = Submission {
        room,
        epoch,
        // No caller of the second replica waits for it.
        request: request + 1_000,
        command,
    };
    second.order(vec![creation]).await;
    second.order(vec![late]).await;
    let resumed = resumed.await.unwrap().unwrap();
    assert_eq!(resumed.info().joined, None);
    assert_eq!(resumed.info().participant, ada.info().participant);
}
