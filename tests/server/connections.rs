//! Connections that use the server's resources without making calls.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tonic::Code;
use tonic_types::StatusExt;

use crate::harness::{TIMEOUT, TestServer, join, message};
use crate::raw_http2::{
    ACK, DATA, GOAWAY, PING, PRIORITY, RawConnection, SETTINGS, WINDOW_UPDATE, call, data, frame,
};

fn cut(reason: &str) -> String {
    format!("chitchat_connections_cut_total{{reason=\"{reason}\"}}")
}

#[tokio::test(flavor = "multi_thread")]
async fn floods_of_frames_without_data_are_cut() {
    let server = TestServer::start().await;
    let mut ada = server.join("Ada").await;
    let floods = [
        frame(PRIORITY, 0, 3, &[0, 0, 0, 1, 5]),
        frame(WINDOW_UPDATE, 0, 0, &[0, 0, 0, 1]),
        frame(PING, ACK, 0, &[0; 8]),
        frame(SETTINGS, 0, 0, &[]),
        // An unknown type.
        frame(200, 0, 0, &[0; 8]),
    ];
    for (index, flood) in floods.iter().enumerate() {
        let mut connection = RawConnection::open(&server, 65_535).await;
        let (mut reading, mut writing) = connection.socket.split();
        let flooding = async {
            let frames = flood.repeat(1_000);
            while writing.write_all(&frames).await.is_ok() {}
        };
        let answers = async {
            let mut answers = Vec::new();
            // The connection is reset.
            reading.read_to_end(&mut answers).await.ok();
        };
        timeout(TIMEOUT, async { tokio::join!(flooding, answers) })
            .await
            .expect("the flood is cut");
        server.wait_for_metric(&cut("flood"), (index + 1) as f64).await;
    }
    ada.say(0, "still here").await;
    assert_eq!(ada.next_line().await.2, "still here");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_without_streams_is_closed_even_if_it_answers_pings() {
    let server = TestServer::with(|config| {
        config.transport.idle_timeout = Duration::from_secs(3);
        config.transport.keepalive_interval = Duration::from_secs(1);
    })
    .await;
    let mut ada = server.join("Ada").await;
    let mut idle = RawConnection::open(&server, 65_535).await;
    let (mut has_pinged, mut has_said_goodbye) = (false, false);
    while let Some(received) = idle.try_next().await {
        match (received.kind, received.flags) {
            (PING, 0) => {
                has_pinged = true;
                idle.send(&frame(PING, ACK, 0, &received.payload)).await;
            }
            (GOAWAY, _) => has_said_goodbye = true,
            _ => {}
        }
    }
    assert!(has_pinged && has_said_goodbye);
    server.wait_for_metric(&cut("idle"), 1.0).await;
    // A connection with an open stream is kept, even if nothing is sent on it.
    ada.say(0, "still here").await;
    assert_eq!(ada.next_line().await.2, "still here");
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_that_come_after_a_refused_join_do_not_end_other_streams() {
    let server = TestServer::start().await;
    let mut gateway = RawConnection::open(&server, 65_535).await;
    let innocent = 1;
    gateway
        .send(&[call(innocent, "Chat"), data(innocent, &join("Ada"))].concat())
        .await;
    let refused: Vec<u32> = (3..).step_by(2).take(1_500).collect();
    for batch in refused.chunks(100) {
        for stream in batch {
            // An invalid name.
            gateway
                .send(&[call(*stream, "Chat"), data(*stream, &join(""))].concat())
                .await;
        }
        let mut ended = 0;
        while ended < batch.len() {
            let received = gateway.next().await;
            assert_ne!(received.kind, GOAWAY);
            ended += usize::from(received.is_end_of_stream());
        }
    }
    for stream in &refused {
        gateway.send(&data(*stream, &message(0, "too late"))).await;
    }
    assert_eq!(gateway.ping().await, PING);
    gateway.send(&data(innocent, &message(0, "still here"))).await;
    loop {
        let received = gateway.next().await;
        let is_mine = received.payload.windows(10).any(|bytes| bytes == b"still here");
        if received.kind == DATA && is_mine {
            break;
        }
    }
}

#[tokio::test]
async fn connections_over_a_limit_are_rejected_with_a_status() {
    for reason in ["limit", "address"] {
        let server = TestServer::with(|config| {
            let limits = &mut config.transport;
            match reason {
                "limit" => limits.max_connections = 2,
                _ => limits.max_connections_per_address = 2,
            }
        })
        .await;
        let one = server.join("one").await;
        let _two = server.join("two").await;
        let status = server
            .client()
            .await
            .chat(tokio_stream::pending())
            .await
            .unwrap_err();
        assert_eq!(status.code(), Code::ResourceExhausted, "{status}");
        assert!(status.get_details_retry_info().is_some());
        let refused = format!("chitchat_connections_refused_total{{reason=\"{reason}\"}}");
        assert_eq!(server.metric(&refused).await, 1.0);
        drop(one);
        server.wait_for_metric("chitchat_connections_open", 1.0).await;
        server.join("three").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_over_the_limit_do_not_delay_later_ones() {
    let server = TestServer::with(|config| config.transport.max_connections = 1).await;
    let ada = server.join("Ada").await;
    let mut silent = Vec::new();
    for _ in 0..100 {
        silent.push(TcpStream::connect(server.listen).await.unwrap());
    }
    let refused = "chitchat_connections_refused_total{reason=\"limit\"}";
    server.wait_for_metric(refused, 100.0).await;
    drop(ada);
    server.wait_for_metric("chitchat_connections_open", 0.0).await;
    server.join("Bob").await;
    drop(silent);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_comes_from_an_address_whose_connections_are_cut_waits_and_others_do_not() {
    let server = TestServer::start().await;
    let mut floods = Vec::new();
    for _ in 0..100 {
        floods.push(RawConnection::open(&server, 65_535).await);
    }
    let flood = frame(PRIORITY, 0, 3, &[0, 0, 0, 1, 5]).repeat(9_000);
    for connection in &mut floods {
        // Fails once the connection is cut. A slow server earns it some frames meanwhile.
        while connection.socket.write_all(&flood).await.is_ok() {}
    }
    server.wait_for_metric(&cut("flood"), 100.0).await;
    let mut same = RawConnection::open(&server, 65_535).await;
    let mut other = RawConnection::open_from([127, 0, 0, 9], &server, 65_535).await;
    tokio::select! {
        _ = same.socket.readable() => panic!("it does not wait"),
        () = async { for _ in 0..20 { assert_eq!(other.ping().await, PING); } } => {}
    }
    assert_eq!(same.next().await.kind, SETTINGS);
}
