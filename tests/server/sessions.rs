//! Sessions: restarts, resumption and takeover.

use std::time::Duration;

use chitchat::proto::{EventType, JoinMsgLeave, NoticeCode, ResumePoint, Welcome};
use tonic::Code;

use crate::harness::{Client, TestServer, join, join_wanting_welcome, leave, message};

/// A JOIN that resumes the session of `welcome` after `sequence`.
fn resume(name: &str, welcome: &Welcome, sequence: u64) -> JoinMsgLeave {
    let resume = Some(ResumePoint {
        epoch: welcome.epoch,
        sequence,
    });
    JoinMsgLeave {
        session_token: welcome.session_token.clone(),
        resume,
        ..join(name)
    }
}

async fn sequences(client: &mut Client, count: usize) -> Vec<u64> {
    let mut sequences = Vec::new();
    for _ in 0..count {
        sequences.push(client.next().await.sequence);
    }
    sequences
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_can_be_resumed_after_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let server = TestServer::stored_in(directory.path(), |_| {}).await;
    let (mut ada, welcome) = server.join_with(join_wanting_welcome("Ada")).await;
    assert!(!welcome.session_token.is_empty());
    assert_eq!(ada.next().await.sequence, 1);
    let alex = server.join("Alex").await;
    alex.say(5, "hello").await;
    let before = loop {
        let message = ada.next().await;
        if message.msg_stream == "hello" {
            break message;
        }
    };
    server.shut_down().await;

    let server = TestServer::stored_in(directory.path(), |_| {}).await;
    // A client of the first version cannot resume, so Alex has left. Ada has not.
    let (mut ada, again) = server.join_with(resume("Ada", &welcome, before.sequence)).await;
    assert_eq!(
        (again.epoch, again.participant_id),
        (welcome.epoch, welcome.participant_id)
    );
    assert!(again.recovered);
    let left = ada.next().await;
    assert_eq!(
        (left.r#type(), left.sender_name.as_str()),
        (EventType::Leave, "Alex")
    );
    assert_eq!(left.sequence, before.sequence + 1);
    assert!(left.timestamp > before.timestamp);
    ada.say(0, "still here").await;
    assert_eq!(ada.next().await.sequence, before.sequence + 2);
    let mut alex = server.join("Alex").await;
    assert_eq!(ada.next().await.sequence, before.sequence + 3);
    ada.send(leave(0)).await;
    assert_eq!(alex.next().await.sequence, before.sequence + 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_participant_may_resume_within_the_grace_period() {
    let server = TestServer::with(|config| config.hub.resume_grace = Duration::from_secs(60)).await;
    let mut witness = server.join("Witness").await;
    let (mut ada, welcome) = server.join_with(join_wanting_welcome("Ada")).await;
    assert_eq!(ada.next().await.sequence, 2);
    assert_eq!(witness.next().await.sequence, 2);
    drop(ada);
    server.wait_for_metric("chitchat_connected_clients", 1.0).await;
    for _ in 0..10 {
        witness.say(0, "meanwhile").await;
        witness.next().await;
    }
    let (mut ada, again) = server.join_with(resume("Ada", &welcome, 4)).await;
    assert_eq!(
        (again.participant_id, again.recovered, again.sequence),
        (welcome.participant_id, true, 4)
    );
    assert_eq!(sequences(&mut ada, 8).await, (5..=12).collect::<Vec<_>>());
    // There was no LEAVE or JOIN: the next event is the next message.
    ada.say(0, "back").await;
    assert_eq!(ada.next().await.sequence, 13);
    let received = witness.next().await;
    assert_eq!((received.sequence, received.msg_stream.as_str()), (13, "back"));
    assert_eq!(
        server
            .metric("chitchat_resumes_total{outcome=\"complete\"}")
            .await,
        1.0
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_participant_leaves_when_the_grace_period_ends() {
    let server = TestServer::with(|config| config.hub.resume_grace = Duration::from_millis(50)).await;
    let mut witness = server.join("Witness").await;
    let (ada, welcome) = server.join_with(join_wanting_welcome("Ada")).await;
    assert_eq!(witness.next().await.r#type(), EventType::Join);
    drop(ada);
    assert_eq!(witness.next().await.r#type(), EventType::Leave);
    // The session has expired: the client gets a new one, and the events that it missed.
    let (mut ada, again) = server.join_with(resume("Ada", &welcome, 2)).await;
    assert!(again.recovered && again.participant_id != welcome.participant_id);
    let (left, joined) = (ada.next().await, ada.next().await);
    assert_eq!((left.r#type(), left.sequence), (EventType::Leave, 3));
    assert_eq!((joined.r#type(), joined.sequence), (EventType::Join, 4));
    assert_eq!(witness.next().await.sequence, 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_stream_takes_over_the_session() {
    let server = TestServer::start().await;
    let (mut older, welcome) = server.join_with(join_wanting_welcome("Ada")).await;
    assert_eq!(older.next().await.sequence, 1);
    let (mut ada, again) = server.join_with(resume("Ada", &welcome, 1)).await;
    assert_eq!(again.participant_id, welcome.participant_id);
    assert_eq!(older.next().await.notice.unwrap().code(), NoticeCode::TakenOver);
    assert_eq!(older.try_next().await.unwrap_err().code(), Code::Aborted);
    ada.say(0, "one Ada").await;
    assert_eq!(ada.next().await.sequence, 2);
    // The end of the older stream does not end the session.
    drop(older);
    ada.say(0, "still one").await;
    assert_eq!(ada.next().await.sequence, 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_participant_may_take_the_name_of_a_lost_one() {
    let server = TestServer::with(|config| config.hub.resume_grace = Duration::from_secs(60)).await;
    let mut witness = server.join("Witness").await;
    let (ada, welcome) = server.join_with(join_wanting_welcome("Ada")).await;
    assert_eq!(witness.next().await.r#type(), EventType::Join);
    // Not while the other is connected.
    assert_eq!(server.end_after(join("ada")).await.code(), Code::AlreadyExists);
    drop(ada);
    server.wait_for_metric("chitchat_connected_clients", 1.0).await;
    let _other = server.join("ada").await;
    assert_eq!(witness.next().await.r#type(), EventType::Leave);
    assert_eq!(witness.next().await.r#type(), EventType::Join);
    let status = server.end_after(resume("Ada", &welcome, 2)).await;
    assert_eq!(status.code(), Code::AlreadyExists);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rejected_join_makes_nobody_leave() {
    let server = TestServer::with(|config| config.hub.resume_grace = Duration::from_secs(60)).await;
    let mut witness = server.join("Witness").await;
    let join_as_7 = |name| JoinMsgLeave {
        id: 7,
        ..join_wanting_welcome(name)
    };
    let (ada, welcome) = server.join_with(join_as_7("Ada")).await;
    assert_eq!(witness.next().await.r#type(), EventType::Join);
    drop(ada);
    server.wait_for_metric("chitchat_connected_clients", 1.0).await;
    // The id is that of a lost participant, but the name is taken.
    let status = server.end_after(join_as_7("Witness")).await;
    assert_eq!(status.code(), Code::AlreadyExists);
    let (_ada, again) = server.join_with(resume("Ada", &welcome, 2)).await;
    assert!(again.recovered);
    assert_eq!(again.participant_id, 7);
    witness.say(0, "nobody left").await;
    assert_eq!(witness.next().await.msg_stream, "nobody left");
}

#[tokio::test(flavor = "multi_thread")]
async fn only_accepted_joins_count_as_resumed() {
    let server = TestServer::start().await;
    let (_ada, welcome) = server.join_with(join_wanting_welcome("Ada")).await;
    let without_token = JoinMsgLeave {
        session_token: String::new(),
        ..resume("Ada", &welcome, 1)
    };
    assert_eq!(server.end_after(without_token).await.code(), Code::AlreadyExists);
    assert_eq!(server.metric("chitchat_resumes_total").await, 0.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_older_stream_is_silent_after_the_welcome_of_a_newer_one() {
    let server = TestServer::start().await;
    let (mut older, mut welcome) = server.join_with(join_wanting_welcome("Ada")).await;
    for round in 0..40 {
        for _ in 0..20 {
            older.say(0, "from the older stream").await;
        }
        let (newer, again) = server
            .join_with(resume("Ada", &welcome, welcome.last_sequence))
            .await;
        for _ in 0..20 {
            // The stream may have ended.
            older.try_say("from the older stream").await;
        }
        newer.say(0, "from the newer stream").await;
        older = newer;
        loop {
            let message = older.next().await;
            if message.msg_stream == "from the newer stream" {
                break;
            }
            assert!(
                message.sequence <= again.last_sequence,
                "round {round}: {message:?}"
            );
        }
        welcome = again;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_time_that_notices_show_survives_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let mut shown = 0;
    for _ in 0..2 {
        let server = TestServer::stored_in(directory.path(), |_| {}).await;
        let mut ada = server.join("Ada").await;
        for _ in 0..5 {
            ada.say(1_000_000, &"x".repeat(2_001)).await;
            let notice = ada.next().await;
            assert!(notice.timestamp > shown, "{} <= {shown}", notice.timestamp);
            // The text was rejected, so its timestamp does not count.
            assert!(notice.timestamp < 1_000);
            shown = notice.timestamp;
        }
        server.shut_down().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_resume_point_is_not_recovered() {
    let server = TestServer::start().await;
    let (mut ada, welcome) = server.join_with(join_wanting_welcome("Ada")).await;
    ada.next().await;
    for (n, (epoch, sequence)) in [(welcome.epoch + 1, 1), (welcome.epoch, 99), (0, 0)]
        .into_iter()
        .enumerate()
    {
        let resume = Some(ResumePoint { epoch, sequence });
        let first = JoinMsgLeave {
            resume,
            session_token: "forged.1.00".into(),
            ..join(&format!("Bob{n}"))
        };
        let (mut bob, welcome) = server.join_with(first).await;
        assert!(!welcome.recovered);
        assert_eq!(
            (welcome.first_sequence, welcome.last_sequence),
            (1, ada.next().await.sequence - 1)
        );
        assert_eq!(bob.next().await.sequence, welcome.sequence + 1);
        bob.send(leave(0)).await;
        assert_eq!(ada.next().await.r#type(), EventType::Leave);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_id_is_broadcast_once_across_connections_and_restarts() {
    let directory = tempfile::tempdir().unwrap();
    let mut answers = Vec::new();
    for _ in 0..2 {
        let server = TestServer::stored_in(directory.path(), |_| {}).await;
        for n in 0..3 {
            let mut ada = server.join(&format!("Ada{n}")).await;
            for _ in 0..2 {
                ada.send(JoinMsgLeave {
                    message_id: "m1".into(),
                    ..message(0, "once")
                })
                .await;
                answers.push(ada.next().await);
            }
            ada.send(leave(0)).await;
            ada.end().await;
        }
        server.shut_down().await;
    }
    let original = answers.remove(0);
    assert_eq!((original.sequence, original.message_id.as_str()), (2, "m1"));
    for repeated in answers {
        let notice = repeated.notice.expect("it was broadcast before");
        assert_eq!(
            (notice.code(), notice.original_sequence),
            (NoticeCode::MessageRepeated, 2)
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_reader_is_served_from_the_store() {
    let directory = tempfile::tempdir().unwrap();
    let server = TestServer::stored_in(directory.path(), |config| config.hub.feed_bytes = 1 << 20).await;
    let mut ada = server.join("Ada").await;
    // This client does not read, so the buffers of its connection are soon full.
    let mut slow = server.join("Slow").await;
    ada.next().await;
    let text = "x".repeat(2_000);
    let count: usize = 3_000;
    for n in 0..count {
        ada.say(0, &text).await;
        if n >= 100 {
            ada.next().await;
        }
    }
    for _ in 0..100 {
        ada.next().await;
    }
    for n in 0..count {
        let received = slow.next().await;
        assert_eq!(
            (received.sequence, received.msg_stream.len()),
            (n as u64 + 3, 2_000)
        );
    }
    // It has caught up and receives further events from the feed.
    server.wait_for_metric("chitchat_subscribers_behind", 0.0).await;
    ada.say(0, "live").await;
    assert_eq!(slow.next().await.msg_stream, "live");
    // The other one receives it, too, but maybe later.
    let deliveries = 2.0 * (count as f64 + 1.0) + 3.0;
    server
        .wait_for_metric("chitchat_deliveries_total", deliveries)
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_resumed_session_keeps_its_name_and_rejects_invalid_timestamps() {
    let server = TestServer::with(|config| config.rules.allow_duplicate_names = true).await;
    let (ada, welcome) = server.join_with(join_wanting_welcome("Ada")).await;
    let resume = |timestamp| JoinMsgLeave {
        session_token: welcome.session_token.clone(),
        timestamp,
        ..join("Somebody Else")
    };
    for timestamp in [-1, i64::MAX] {
        let status = server.end_after(resume(timestamp)).await;
        assert_eq!(status.code(), Code::InvalidArgument);
    }
    // The session still exists, and is not ended by another participant of the same name while its client is lost.
    drop(ada);
    server.wait_for_metric("chitchat_connected_clients", 0.0).await;
    let mut namesake = server.join("Ada").await;
    let mut again = server.open().await;
    again.send(resume(0)).await;
    let first = again.next().await;
    assert_eq!(first.msg_stream, "Welcome to lobby, Ada.");
    assert_eq!(first.welcome.unwrap().participant_id, welcome.participant_id);
    namesake.send(message(0, "nobody left")).await;
    let received = namesake.next().await;
    assert_eq!(
        (received.sequence, received.msg_stream.as_str()),
        (3, "nobody left")
    );
}
