//! What those see who run the server.

use crate::harness::{TestServer, leave};

#[tokio::test]
async fn the_admin_port_answers() {
    let server = TestServer::start().await;
    assert_eq!(server.get("/livez").await, (200, "alive\n".into()));
    server.until_metric("chitchat_connected_clients", 0.0).await;
    assert_eq!(server.get("/readyz").await.0, 200);
    assert_eq!(server.get("/nothing").await.0, 404);
}

#[tokio::test]
async fn metrics_count_what_happens() {
    let server = TestServer::start().await;
    let mut ada = server.join("Ada").await;
    let mut bob = server.join("Bob").await;
    assert_eq!(server.metric("chitchat_connected_clients").await, 2.0);
    ada.next().await;
    for _ in 0..5 {
        ada.say(0, "hi").await;
        ada.next().await;
        bob.next().await;
    }
    bob.send(leave(0)).await;
    bob.end().await;
    ada.next().await;
    server.until_metric("chitchat_connected_clients", 1.0).await;
    assert_eq!(
        server
            .metric("chitchat_events_received_total{kind=\"message\"}")
            .await,
        5.0
    );
    assert_eq!(server.metric("chitchat_events_broadcast_total").await, 8.0);
    // Ada: two JOINs, five messages, one LEAVE. Bob: his JOIN, five messages.
    assert_eq!(server.metric("chitchat_deliveries_total").await, 14.0);
    assert_eq!(
        server.metric("chitchat_delivery_latency_seconds_count").await,
        14.0
    );
    assert_eq!(
        server.metric("chitchat_broadcast_latency_seconds_count").await,
        8.0
    );
    assert_eq!(server.metric("chitchat_lamport_time").await, 8.0);
    assert_eq!(
        server
            .metric("chitchat_streams_ended_total{reason=\"left\"}")
            .await,
        1.0
    );
}
