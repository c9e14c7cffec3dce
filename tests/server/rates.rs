//! Clients that exceed their rate limits.

use chitchat::proto::{JoinMsgLeave, NoticeCode, SendMessageRequest};
use tonic::{Code, Status};
use tonic_types::StatusExt;

use crate::harness::{TestServer, join, message};

fn assert_limited(status: &Status, reason: &str) {
    assert_eq!(status.code(), Code::ResourceExhausted, "{status}");
    assert_eq!(status.get_details_error_info().unwrap().reason, reason);
    assert!(status.get_details_retry_info().unwrap().retry_delay.is_some());
}

#[tokio::test]
async fn a_participant_that_sends_too_fast_gets_a_notice_and_keeps_its_stream() {
    let server = TestServer::with(|config| config.transport.rates.messages = Some(1)).await;
    let mut fast = server.join("Ada").await;
    let mut other = server.join("Bob").await;
    fast.next().await;
    for n in 0..30 {
        fast.send(JoinMsgLeave {
            message_id: format!("m{n}"),
            ..message(0, "hi")
        })
        .await;
    }
    let (mut broadcast, mut rejected) = (0, Vec::new());
    while broadcast + rejected.len() < 30 {
        let received = fast.next().await;
        match received.notice {
            None => broadcast += 1,
            Some(notice) => {
                assert_eq!(notice.code(), NoticeCode::TooFast);
                assert!(notice.retry_delay.is_some());
                rejected.push(received.message_id);
            }
        }
    }
    // The burst, and one more for each second that this took.
    assert!((10..25).contains(&broadcast), "{broadcast}");
    assert_eq!(rejected[0], "m10");
    // Each participant has its own limit.
    other.say(0, "hello").await;
    while other.next_line().await.2 != "hello" {}
    while fast.next_line().await.2 != "hello" {}
    let rejections = "chitchat_events_rejected_total{reason=\"too_fast\"";
    assert_eq!(server.metric(rejections).await, rejected.len() as f64);
}

#[tokio::test]
async fn an_address_may_not_join_too_fast() {
    let server = TestServer::with(|config| config.transport.rates.joins = 1).await;
    let mut rejected = None;
    for n in 0..100 {
        let mut client = server.open().await;
        client.send(join(&format!("client {n}"))).await;
        if let Err(status) = client.try_next().await {
            rejected = Some((n, status));
            break;
        }
    }
    let (joined, status) = rejected.expect("a JOIN is rejected");
    assert!(joined >= 20, "{joined}");
    assert_limited(&status, "JOINS_TOO_FAST");
}

#[tokio::test]
async fn an_address_may_not_create_all_rooms() {
    let server = TestServer::with(|config| {
        config.transport.rates.new_rooms = 1;
        config.transport.rates.rooms_per_address = 3;
    })
    .await;
    let mut calls = server.client().await;
    let mut post = async |room: &str| {
        let request = SendMessageRequest {
            room: room.into(),
            client_name: "bot".into(),
            msg: "hi".into(),
            ..SendMessageRequest::default()
        };
        calls.send_message(request).await
    };
    for room in ["one", "two", "three"] {
        post(room).await.unwrap();
    }
    let refused = post("four").await.unwrap_err();
    assert_limited(&refused, "TOO_MANY_ROOMS_PER_ADDRESS");
    let in_new_room = JoinMsgLeave {
        room: "five".into(),
        ..join("Ada")
    };
    assert_limited(&server.end_after(in_new_room).await, "TOO_MANY_ROOMS_PER_ADDRESS");
    // Rooms that exist are not affected, nor is the lobby.
    post("three").await.unwrap();
    server.join("Bob").await;
}
