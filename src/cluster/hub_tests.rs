//! The rooms of a replica, between callers and a command log that the tests hold in their hands.

use std::sync::Arc;
use std::time::Duration;

use super::hub_fixtures::{Replicated, end, expiring, join, tea};
use super::message::Content;
use super::replica::SUBMISSIONS;
use super::rules::{ClusterRules, FoldVersions};
use crate::domain::{Command, End, EndStage, Moderation, Origin, Rejection, Rules, Sequence, Timestamp};
use crate::hub::{
    CloseReason, FeedItem, HubError, HubOptions, Member, ResumePoint, StartPosition, Submission,
};
use crate::store::{Retention, Store as _};

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
    assert_eq!(closed(&mut anew).await, CloseReason::Detached);
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
        generation: 0,
    };
    second.order(vec![creation]).await;
    second.order(vec![late]).await;
    let resumed = resumed.await.unwrap().unwrap();
    assert_eq!(resumed.info().joined, None);
    assert_eq!(resumed.info().participant, ada.info().participant);
}

const SUSPENDED: Result<(), HubError> = Err(HubError::Suspended);

#[tokio::test]
async fn a_suspension_ends_streams_and_calls_of_a_room_whose_mailbox_is_blocked() {
    let mut replicated = Replicated::new(HubOptions::default()).await;
    let ada = replicated.join("Ada");
    replicated.order_next().await;
    let mut ada = ada.await.unwrap().unwrap();
    // More than the queue of the command log and the mailbox hold.
    let posts: Vec<_> = (0..3 * SUBMISSIONS).map(|_| replicated.post()).collect();
    while replicated.submitted.len() < SUBMISSIONS {
        tokio::task::yield_now().await;
    }
    replicated.hub.suspend();
    assert_eq!(closed(&mut ada).await, CloseReason::Failed);
    for post in posts {
        assert_eq!(post.await.unwrap().map(drop), SUSPENDED);
    }
    assert_eq!(replicated.post().await.unwrap().map(drop), SUSPENDED, "at once");
}

#[tokio::test]
async fn nobody_waits_for_what_was_submitted_to_an_incarnation_that_is_lost() {
    let mut replicated = Replicated::new(HubOptions::default()).await;
    let posted = replicated.post();
    let lost = replicated.submitted().await;
    replicated.hub.suspend();
    assert_eq!(posted.await.unwrap().map(drop), SUSPENDED);
    replicated.hub.fence().await;
    assert!(lost.generation < replicated.hub.generation());
    // It would wait for the answer otherwise.
    let hub = Arc::clone(&replicated.hub);
    let drained = tokio::spawn(async move { hub.drain(Duration::ZERO).await });
    tokio::time::timeout(Duration::from_secs(5), drained)
        .await
        .unwrap()
        .unwrap();
}

#[tokio::test]
async fn a_decision_of_a_moderator_is_reported_although_its_caller_was_suspended() {
    let mut replicated = Replicated::new(HubOptions::default()).await;
    let ada = replicated.join("Ada");
    replicated.order_next().await;
    let _ada = ada.await.unwrap().unwrap();
    let (report, mut reported) = tokio::sync::oneshot::channel();
    let hub = Arc::clone(&replicated.hub);
    let decision = tokio::spawn(async move {
        let report = |removed| {
            report.send(removed).ok();
        };
        hub.moderate(&tea(), Moderation::Close, report).await
    });
    let submission = replicated.submitted().await;
    replicated.hub.suspend();
    assert_eq!(decision.await.unwrap().map(drop), SUSPENDED);
    assert!(reported.try_recv().is_err(), "it may yet have no effect");
    replicated.order(vec![submission]).await;
    assert_eq!(reported.await, Ok(0));
}

#[tokio::test]
async fn grace_periods_end_once_and_only_when_the_replica_takes_part() {
    let options = HubOptions {
        resume_grace: Duration::ZERO,
        ..HubOptions::default()
    };
    let mut replicated = Replicated::new(options).await;
    let mut members = Vec::new();
    for name in ["Ada", "Bob"] {
        let joined = replicated.join(name);
        replicated.order_next().await;
        members.push(joined.await.unwrap().unwrap());
    }
    drop(members);
    let detached = vec![replicated.submitted().await, replicated.submitted().await];
    // As while the replica reads the stream.
    replicated.hub.suspend();
    replicated.order(detached).await;
    // The room has applied it when it asks for more.
    let queue_len = 64;
    for _ in 0..=queue_len {
        replicated.hub.apply_ordered(&tea(), Vec::new()).await.unwrap();
    }
    assert!(replicated.submitted.try_recv().is_err());
    replicated.hub.end_suspension();
    let expired = [replicated.submitted().await, replicated.submitted().await];
    let is_expired = |submission: &Submission| matches!(submission.command, Command::ExpireGrace(_));
    assert!(expired.iter().all(is_expired));
    // They were lost with the incarnation, so they are submitted again.
    replicated.hub.fence().await;
    replicated.hub.end_suspension();
    let again = vec![replicated.submitted().await, replicated.submitted().await];
    assert!(again.iter().all(is_expired));
    replicated.order(again).await;
    assert!(replicated.submitted.try_recv().is_err());
}

#[tokio::test]
async fn a_command_that_its_room_cannot_apply_is_fatal() {
    let mut replicated = Replicated::new(HubOptions::default()).await;
    let ada = replicated.join("Ada");
    replicated.order_next().await;
    let _ada = ada.await.unwrap().unwrap();
    let store = replicated.store.clone();
    store.delete_log(store.find(&tea()).unwrap().id).await.unwrap();
    drop(replicated.post());
    replicated.order_next().await;
    replicated.hub.failed().cancelled().await;
    let room = replicated.hub.apply_ordered(&tea(), Vec::new()).await;
    assert_eq!(room, Err(HubError::Failed));
}

#[tokio::test(start_paused = true)]
async fn a_room_that_nobody_needs_ends_and_whoever_joins_meanwhile_begins_another() {
    let mut replicated = Replicated::with_retention(HubOptions::default(), expiring()).await;
    replicated.hub.set_proposing_ends(true);
    let epoch = replicated.begin_room().await;
    let ada = replicated.join("Ada");
    replicated.order_next().await;
    let mut ada = ada.await.unwrap().unwrap();
    let token = ada.info().session_token.clone();
    ada.leave(None, None);
    replicated.order_next().await;
    drop(ada);
    let proposal = replicated.proposal().await;
    assert_eq!(
        (end(&proposal), proposal.epoch),
        (Some(EndStage::Proposed), epoch)
    );
    let joined = replicated.join("Bob");
    let late = replicated.submitted().await;
    assert_eq!(late.epoch, epoch);
    replicated.order(vec![proposal]).await;
    replicated.order(vec![late]).await;
    assert!(matches!(joined.await.unwrap(), Err(HubError::RoomEnded)));
    assert!(!replicated.hub.has_room(&tea()));
    let (epoch, last) = (epoch.unwrap(), Sequence::new(3));
    // Its actor ends, too.
    let mut waited = 0;
    while replicated.hub.running() > 0 && waited < 1_000 {
        tokio::time::sleep(Duration::from_secs(1)).await;
        waited += 1;
    }
    assert_eq!(replicated.hub.running(), 0);
    // A client with the token of a session in it is told so, and begins another one without it.
    let mut request = join("Ada");
    request.session_token = token;
    request.resume_point = Some(ResumePoint {
        epoch: epoch.get(),
        sequence: last,
    });
    let resumed = replicated.join_with(request.clone());
    let submission = replicated.submitted().await;
    assert_eq!(submission.epoch, Some(epoch));
    replicated.order(vec![submission]).await;
    assert!(matches!(resumed.await.unwrap(), Err(HubError::RoomEnded)));
    request.session_token = None;
    let joined = replicated.join_with(request);
    replicated.order_next().await;
    let joined = joined.await.unwrap().unwrap();
    assert!(joined.info().epoch > epoch && !joined.info().start.is_recovered);
}

#[tokio::test(start_paused = true)]
async fn a_replica_agrees_to_the_end_of_a_room_unless_somebody_reads_it_or_its_log_has_not_expired() {
    for (retention, is_read, agrees) in [
        (expiring(), false, true),
        (expiring(), true, false),
        (Retention::IN_MEMORY, false, false),
    ] {
        let mut replicated = Replicated::with_retention(HubOptions::default(), retention).await;
        let epoch = replicated.begin_room().await;
        let hello = Content::Hello {
            nonce: 77,
            rules: ClusterRules::new(Rules::default(), 10),
            supported: FoldVersions::supported(),
            name: "r2".into(),
            version: "1".into(),
        };
        let other = replicated.apply(hello).await;
        let reader = replicated
            .hub
            .subscribe(&tea(), StartPosition::Tail, Origin::default())
            .await
            .unwrap();
        let reader = is_read.then_some(reader);
        let proposal = Command::End(End {
            last: Sequence::new(1),
            stage: EndStage::Proposed,
        });
        replicated.order_other(other, 1, epoch, proposal).await;
        let answer = tokio::time::timeout(Duration::from_secs(900), replicated.submitted()).await;
        assert_eq!(answer.is_ok(), agrees);
        if let Ok(answer) = answer {
            assert_eq!(end(&answer), Some(EndStage::Agreed));
            replicated.order(vec![answer]).await;
            assert_eq!(replicated.state_machine.epoch(&tea()), None);
        }
        drop(reader);
    }
}
