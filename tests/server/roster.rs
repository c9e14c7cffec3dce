//! Who is there, and how it becomes known that somebody is not.

use chitchat::proto::EventType;
use tonic::Code;

use crate::harness::{TestServer, leave};

#[tokio::test]
async fn a_client_that_vanishes_is_announced_once() {
    let server = TestServer::start().await;
    let mut witness = server.join("Witness").await;
    // The connection is cut: the channel goes with its only stream.
    drop(server.join("Ada").await);
    assert_eq!(witness.next().await.r#type(), EventType::Join);
    let left = witness.next().await;
    assert_eq!(
        left.msg_stream,
        "Participant Ada left Chit Chat at logical time L=3"
    );
    // Once: the next thing heard is what comes next.
    let again = server.join("Ada").await;
    assert_eq!(witness.heard().await.0, 4);
    witness.say(0, "hi").await;
    assert_eq!(witness.heard().await, (5, "Witness".into(), "hi".into()));
    drop(again);
    assert_eq!(witness.next().await.r#type(), EventType::Leave);
    server.until_metric("chitchat_connected_clients", 1.0).await;
    assert_eq!(
        server
            .metric("chitchat_streams_ended_total{reason=\"lost\"}")
            .await,
        2.0
    );
}

#[tokio::test]
async fn ending_ones_side_is_leaving() {
    let server = TestServer::start().await;
    let mut witness = server.join("Witness").await;
    let mut ada = server.join("Ada").await;
    assert_eq!(witness.next().await.r#type(), EventType::Join);
    ada.say(0, "bye").await;
    ada.half_close();
    assert_eq!(ada.heard().await.2, "bye");
    assert_eq!(ada.next_or_end().await.unwrap_err().code(), Code::Ok);
    assert_eq!(witness.heard().await.2, "bye");
    assert_eq!(witness.next().await.r#type(), EventType::Leave);
}

#[tokio::test]
async fn who_leaves_hears_everything_said_before_and_nothing_after() {
    let server = TestServer::start().await;
    let mut witness = server.join("Witness").await;
    let mut ada = server.join("Ada").await;
    witness.next().await;
    for n in 0..100 {
        ada.say(0, &n.to_string()).await;
    }
    ada.send(leave(0)).await;
    for n in 0..100 {
        assert_eq!(ada.heard().await.2, n.to_string());
        assert_eq!(witness.heard().await.2, n.to_string());
    }
    assert_eq!(ada.next_or_end().await.unwrap_err().code(), Code::Ok);
    assert_eq!(witness.next().await.r#type(), EventType::Leave);
}
