//! The ways to leave a room, and the LEAVE events.

use chitchat::proto::EventType;
use tonic::Code;

use crate::harness::{TestServer, leave};

#[tokio::test]
async fn a_lost_connection_is_announced_once() {
    let server = TestServer::start().await;
    let mut witness = server.join("Witness").await;
    // Dropping the client drops the only stream of its channel, which closes the connection.
    drop(server.join("Ada").await);
    assert_eq!(witness.next().await.r#type(), EventType::Join);
    let left = witness.next().await;
    assert_eq!(
        left.msg_stream,
        "Participant Ada left Chit Chat at logical time L=3"
    );
    // There is no second LEAVE before the next JOIN.
    let again = server.join("Ada").await;
    assert_eq!(witness.next_line().await.0, 4);
    witness.say(0, "hi").await;
    assert_eq!(witness.next_line().await, (5, "Witness".into(), "hi".into()));
    drop(again);
    assert_eq!(witness.next().await.r#type(), EventType::Leave);
    server.wait_for_metric("chitchat_connected_clients", 1.0).await;
    assert_eq!(
        server
            .metric("chitchat_streams_ended_total{reason=\"lost\"")
            .await,
        2.0
    );
}

#[tokio::test]
async fn a_half_close_leaves_the_room() {
    let server = TestServer::start().await;
    let mut witness = server.join("Witness").await;
    let mut ada = server.join("Ada").await;
    assert_eq!(witness.next().await.r#type(), EventType::Join);
    ada.say(0, "bye").await;
    ada.half_close();
    assert_eq!(ada.next_line().await.2, "bye");
    assert_eq!(ada.try_next().await.unwrap_err().code(), Code::Ok);
    assert_eq!(witness.next_line().await.2, "bye");
    assert_eq!(witness.next().await.r#type(), EventType::Leave);
}

#[tokio::test]
async fn a_leaving_participant_receives_everything_before_its_leave_and_nothing_after() {
    let server = TestServer::start().await;
    let mut witness = server.join("Witness").await;
    let mut ada = server.join("Ada").await;
    witness.next().await;
    for n in 0..100 {
        ada.say(0, &n.to_string()).await;
    }
    ada.send(leave(0)).await;
    for n in 0..100 {
        assert_eq!(ada.next_line().await.2, n.to_string());
        assert_eq!(witness.next_line().await.2, n.to_string());
    }
    assert_eq!(ada.try_next().await.unwrap_err().code(), Code::Ok);
    assert_eq!(witness.next().await.r#type(), EventType::Leave);
}
