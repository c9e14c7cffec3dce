//! The admin port: health and metrics.

use std::net::SocketAddr;

use chitchat::admin::MAX_CONNECTIONS;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::harness::{TIMEOUT, TestServer, leave};

#[tokio::test]
async fn the_admin_port_serves_liveness_and_readiness() {
    let server = TestServer::start().await;
    assert_eq!(server.get("/livez").await, (200, "alive\n".into()));
    server.wait_for_metric("chitchat_connected_clients", 0.0).await;
    assert_eq!(server.get("/readyz").await.0, 200);
    assert_eq!(server.get("/nothing").await.0, 404);
}

#[tokio::test]
async fn metrics_count_events_and_deliveries() {
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
    server.wait_for_metric("chitchat_connected_clients", 1.0).await;
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
            .metric("chitchat_streams_ended_total{reason=\"left\"")
            .await,
        1.0
    );
}

/// Whether the admin port answers; even while it has as many connections as it may have.
async fn is_alive(admin: SocketAddr) -> bool {
    let mut stream = TcpStream::connect(admin).await.unwrap();
    // A connection that was closed already may be reset.
    stream.write_all(b"GET /livez HTTP/1.1\r\n\r\n").await.ok();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.ok();
    answer.starts_with("HTTP/1.1 200 ")
}

#[tokio::test]
async fn idle_connections_to_the_admin_port_give_way_to_new_ones() {
    let server = TestServer::start().await;
    let mut silent = Vec::new();
    for _ in 0..MAX_CONNECTIONS {
        silent.push(TcpStream::connect(server.admin).await.unwrap());
    }
    for _ in 0..8 {
        assert!(is_alive(server.admin).await);
    }
    // The oldest is closed long before it times out.
    let closed = timeout(TIMEOUT, silent[0].read(&mut [0])).await.unwrap();
    assert!(closed.is_err() || closed.unwrap() == 0);
    // Chat clients are not affected.
    server.join("Ada").await;
}
