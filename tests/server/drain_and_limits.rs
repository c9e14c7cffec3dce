//! Draining, and the limits on connections, rooms, participants and slow readers.

use std::time::Duration;

use chitchat::proto::{EventType, JoinMsgLeave, NoticeCode};
use tokio::net::TcpStream;
use tonic::Code;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse};
use tonic_types::StatusExt;

use crate::harness::{Client, TIMEOUT, TestServer, join, join_wanting_welcome, wait_for_shutdown};

#[tokio::test(flavor = "multi_thread")]
async fn draining_notifies_all_clients_and_ends_within_the_timeout() {
    let server = TestServer::start().await;
    let mut health = HealthClient::new(server.channel().await);
    let request = HealthCheckRequest {
        service: "itu.chitchat.ChatService".into(),
    };
    let mut watch = health.watch(request).await.unwrap().into_inner();
    let status = |response: Option<HealthCheckResponse>| response.unwrap().status();
    assert_eq!(status(watch.message().await.unwrap()), ServingStatus::Serving);
    let mut first_version = server.join("Alex").await;
    let (mut newer, _) = server.join_with(join_wanting_welcome("Ada")).await;
    newer.next().await;
    first_version.next().await;
    let mut not_joined = server.open().await;
    // Messages that were accepted before the drain are delivered before the stream ends.
    for n in 0..50 {
        newer.say(0, &n.to_string()).await;
    }
    assert_eq!(newer.next_line().await.2, "0");
    assert_eq!(server.get("/readyz").await, (200, "ready\n".into()));

    let running = server.begin_drain();
    assert_eq!(status(watch.message().await.unwrap()), ServingStatus::NotServing);
    let mut last = newer.next().await;
    while last.notice.is_none() {
        last = newer.next().await;
    }
    let notice = last.notice.unwrap();
    assert_eq!(notice.code(), NoticeCode::Reconnect);
    assert!(notice.retry_delay.is_some());
    let end = newer.try_next().await.unwrap_err();
    assert_eq!(end.code(), Code::Unavailable);
    assert!(end.get_details_retry_info().unwrap().retry_delay.is_some());
    // A client of the first version gets no notice, only the messages and the status.
    let end = loop {
        match first_version.try_next().await {
            Ok(message) => assert_eq!((message.sender_name.as_str(), message.notice), ("Ada", None)),
            Err(end) => break end,
        }
    };
    assert_eq!(end.code(), Code::Unavailable);
    assert_eq!(not_joined.end().await.code(), Code::Unavailable);
    wait_for_shutdown(running).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_does_not_disconnect_does_not_prolong_the_drain() {
    let server = TestServer::with(|config| config.drain_timeout = Duration::from_millis(200)).await;
    // One connection stays silent, one has a stream that its client does not end.
    let silent = TcpStream::connect(server.listen).await.unwrap();
    let unread = server.open().await;
    unread.send(join("Ada")).await;
    server.shut_down().await;
    drop((silent, unread));
}

#[tokio::test]
async fn rooms_over_the_limit_are_rejected() {
    let server = TestServer::with(|config| config.hub.max_rooms = 2).await;
    let enter = async |room: &str| {
        let mut client: Client = server.open().await;
        client
            .send(JoinMsgLeave {
                room: room.into(),
                ..join("Ada")
            })
            .await;
        client.try_next().await.map(|_| client)
    };
    let _tea = enter("tea").await.unwrap();
    let _milk = enter("milk").await.unwrap();
    let full = enter("sugar").await.map(drop).unwrap_err();
    assert_eq!(full.code(), Code::ResourceExhausted, "{full}");
    assert_eq!(full.get_details_error_info().unwrap().reason, "TOO_MANY_ROOMS");
    assert!(full.get_details_retry_info().is_some());
    // There is always a place for the lobby.
    server.join("Bob").await;
}

#[tokio::test]
async fn a_full_room_rejects_a_join() {
    let server = TestServer::with(|config| config.rules.max_participants = 1).await;
    let _ada = server.join("Ada").await;
    let status = server.end_after(join("Bob")).await;
    assert_eq!(status.code(), Code::ResourceExhausted);
    assert!(status.get_details_retry_info().is_some());
}

/// A stream that is not read for the stall timeout is ended; a stream on which there is nothing to read is not.
#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_does_not_read_is_disconnected() {
    let server = TestServer::with(|config| config.transport.stall_timeout = Duration::from_secs(1)).await;
    let mut quiet = server.join("Ada").await;
    let stalled = server.join("Bob").await;
    let mut talker = server.join("Cleo").await;
    // More than the flow-control windows of the stream and its connection hold.
    let text = "x".repeat(128);
    let mut left = Vec::new();
    for round in 0.. {
        for _ in 0..500 {
            talker.say(0, &text).await;
        }
        for _ in 0..500 {
            quiet.next().await;
            let message = talker.next().await;
            if message.r#type() == EventType::Leave {
                left.push(message.sender_name);
            }
        }
        if !left.is_empty() {
            break;
        }
        assert!(round < 2_000, "no participant is disconnected");
    }
    assert_eq!(left, ["Bob"]);
    server
        .wait_for_metric("chitchat_streams_ended_total{reason=\"slow\"", 1.0)
        .await;
    drop(stalled);
    server.wait_for_metric("chitchat_connected_clients", 2.0).await;
    quiet.say(0, "still here").await;
    while talker.next_line().await.2 != "still here" {}
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_connection_does_not_prolong_the_drain() {
    let server = TestServer::with(|config| config.drain_timeout = 10 * TIMEOUT).await;
    let _silent = TcpStream::connect(server.listen).await.unwrap();
    server.wait_for_metric("chitchat_connections_open", 1.0).await;
    server.shut_down().await;
}
