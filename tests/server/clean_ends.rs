//! How a server ends, and what its limits say.

use std::time::Duration;

use chitchat::proto::{EventType, JoinMsgLeave, NoticeCode};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tonic::Code;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse};
use tonic_types::StatusExt;

use crate::harness::{Client, PATIENCE, TestServer, join};

#[tokio::test(flavor = "multi_thread")]
async fn draining_tells_everybody_and_ends_in_time() {
    let server = TestServer::start().await;
    let mut health = HealthClient::new(server.channel().await);
    let request = HealthCheckRequest {
        service: "itu.chitchat.ChatService".into(),
    };
    let mut watch = health.watch(request).await.unwrap().into_inner();
    let status = |response: Option<HealthCheckResponse>| response.unwrap().status();
    assert_eq!(status(watch.message().await.unwrap()), ServingStatus::Serving);
    let mut first_version = server.join("Alex").await;
    let mut newer = server.open().await;
    newer
        .send(JoinMsgLeave {
            wants_welcome: true,
            ..join("Ada")
        })
        .await;
    assert!(newer.next().await.welcome.is_some());
    newer.next().await;
    first_version.next().await;
    let mut knocking = server.open().await;
    // What was accepted before is finished: it comes before the end.
    for n in 0..50 {
        newer.say(0, &n.to_string()).await;
    }
    assert_eq!(newer.heard().await.2, "0");
    assert_eq!(server.get("/readyz").await, (200, "ready\n".into()));

    let ended = server.end();
    assert_eq!(status(watch.message().await.unwrap()), ServingStatus::NotServing);
    let mut last = newer.next().await;
    while last.notice.is_none() {
        last = newer.next().await;
    }
    let notice = last.notice.unwrap();
    assert_eq!(notice.code(), NoticeCode::Reconnect);
    assert!(notice.retry_delay.is_some());
    let end = newer.next_or_end().await.unwrap_err();
    assert_eq!(end.code(), Code::Unavailable);
    assert!(end.get_details_retry_info().unwrap().retry_delay.is_some());
    // The first version's client hears what was said, nothing that it does not know, and the end.
    let end = loop {
        match first_version.next_or_end().await {
            Ok(message) => assert_eq!((message.sender_name.as_str(), message.notice), ("Ada", None)),
            Err(end) => break end,
        }
    };
    assert_eq!(end.code(), Code::Unavailable);
    assert_eq!(knocking.end().await.code(), Code::Unavailable);
    timeout(PATIENCE, ended)
        .await
        .expect("the server ends")
        .unwrap()
        .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_never_goes_does_not_hold_the_server_up() {
    let server =
        TestServer::with(|config| config.drain_timeout = std::time::Duration::from_millis(200)).await;
    // One says nothing at all, one holds a stream that it does not end.
    let silent = TcpStream::connect(server.listen).await.unwrap();
    let unread = server.open().await;
    unread.send(join("Ada")).await;
    timeout(PATIENCE, server.end())
        .await
        .expect("the server ends")
        .unwrap()
        .unwrap();
    drop((silent, unread));
}

#[tokio::test]
async fn connections_beyond_the_limit_are_told_so() {
    let server = TestServer::with(|config| config.transport.max_connections = 2).await;
    let one = server.join("one").await;
    let _two = server.join("two").await;
    let call = chitchat::proto::chat_service_client::ChatServiceClient::new(server.channel().await)
        .chat(tokio_stream::pending())
        .await;
    let status = call.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted, "{status}");
    assert!(status.get_details_retry_info().is_some());
    assert_eq!(
        server
            .metric("chitchat_connections_refused_total{reason=\"limit\"}")
            .await,
        1.0
    );
    drop(one);
    server.until_metric("chitchat_connections_open", 1.0).await;
    server.join("three").await;
}

#[tokio::test]
async fn rooms_are_limited() {
    let server = TestServer::with(|config| config.hub.max_rooms = 2).await;
    let enter = async |room: &str| {
        let mut client: Client = server.open().await;
        client
            .send(JoinMsgLeave {
                room: room.into(),
                ..join("Ada")
            })
            .await;
        client.next_or_end().await.map(|_| client)
    };
    let _tea = enter("tea").await.unwrap();
    let _milk = enter("milk").await.unwrap();
    let full = enter("sugar").await.map(drop).unwrap_err();
    assert_eq!(full.code(), Code::ResourceExhausted, "{full}");
    assert_eq!(full.get_details_error_info().unwrap().reason, "TOO_MANY_ROOMS");
    assert!(full.get_details_retry_info().is_some());
}

#[tokio::test]
async fn a_full_room_says_so() {
    let server = TestServer::with(|config| config.rules.max_participants = 1).await;
    let _ada = server.join("Ada").await;
    let mut bob = server.open().await;
    bob.send(join("Bob")).await;
    let status = bob.end().await;
    assert_eq!(status.code(), Code::ResourceExhausted);
    assert!(status.get_details_retry_info().is_some());
}

/// Who takes nothing for too long is ended, for a reason that everybody can see; who has nothing to take is not.
#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_takes_nothing_is_ended() {
    let server = TestServer::with(|config| config.transport.stall_timeout = Duration::from_secs(1)).await;
    let mut quiet = server.join("Ada").await;
    let stalled = server.join("Bob").await;
    let mut talker = server.join("Cleo").await;
    // More than the windows of a stream and its connection hold.
    let text = "x".repeat(128);
    let mut left = Vec::new();
    for round in 0.. {
        for _ in 0..500 {
            talker.say(0, &text).await;
        }
        // Both who talk and who listen take what they are given.
        for _ in 0..500 {
            quiet.next().await;
            let heard = talker.next().await;
            if heard.r#type() == EventType::Leave {
                left.push(heard.sender_name);
            }
        }
        if !left.is_empty() {
            break;
        }
        assert!(round < 2_000, "nobody is ended");
    }
    assert_eq!(left, ["Bob"]);
    server
        .until_metric("chitchat_streams_ended_total{reason=\"slow\"}", 1.0)
        .await;
    drop(stalled);
    server.until_metric("chitchat_connected_clients", 2.0).await;
    quiet.say(0, "still here").await;
    while talker.heard().await.2 != "still here" {}
}

#[tokio::test(flavor = "multi_thread")]
async fn who_connects_and_says_nothing_does_not_hold_up_the_end() {
    let server = TestServer::with(|config| config.drain_timeout = 10 * PATIENCE).await;
    let _silent = TcpStream::connect(server.listen).await.unwrap();
    server.until_metric("chitchat_connections_open", 1.0).await;
    timeout(PATIENCE, server.end()).await.unwrap().unwrap().unwrap();
}
