//! What must not be sent, what is answered, and that nobody else notices.

use chitchat::proto::chat_service_client::ChatServiceClient;
use chitchat::proto::{EventType, JoinMsgLeave, ListRoomsRequest, NoticeCode, SendMessageRequest};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tonic::{Code, Status};
use tonic_types::StatusExt;

use crate::harness::{Client, PATIENCE, TestServer, join, message};

/// A server with somebody in the lobby, who must not be disturbed.
async fn with_witness() -> (TestServer, Client) {
    let server = TestServer::start().await;
    let witness = server.join("Witness").await;
    (server, witness)
}

/// The witness can still talk, and has heard of nothing since `time`.
async fn undisturbed(witness: &mut Client, time: i64) {
    witness.say(0, "still here").await;
    assert_eq!(
        witness.heard().await,
        (time + 1, "Witness".into(), "still here".into())
    );
}

async fn refused(server: &TestServer, first: JoinMsgLeave) -> Status {
    let mut client = server.open().await;
    client.send(first).await;
    client.end().await
}

fn reason(status: &Status) -> String {
    status.get_details_error_info().unwrap().reason
}

#[tokio::test]
async fn the_first_message_is_a_join() {
    let (server, mut witness) = with_witness().await;
    for first in [
        message(0, "hi"),
        JoinMsgLeave {
            r#type: EventType::Leave.into(),
            ..join("Ada")
        },
    ] {
        let status = refused(&server, first).await;
        assert_eq!(
            (status.code(), reason(&status).as_str()),
            (Code::FailedPrecondition, "NOT_JOINED")
        );
    }
    let mut silent = server.open().await;
    silent.half_close();
    assert_eq!(silent.end().await.code(), Code::FailedPrecondition);
    undisturbed(&mut witness, 1).await;
}

#[tokio::test]
async fn names_that_are_taken_or_none_are_refused() {
    let (server, mut witness) = with_witness().await;
    for taken in ["Witness", "WITNESS", "Wіtness", " witness\n"] {
        let status = refused(&server, join(taken)).await;
        assert_eq!(
            (status.code(), reason(&status).as_str()),
            (Code::AlreadyExists, "NAME_TAKEN"),
            "{taken}"
        );
    }
    let status = refused(
        &server,
        JoinMsgLeave {
            id: witness.id,
            ..join("Ada")
        },
    )
    .await;
    assert_eq!(
        (status.code(), reason(&status).as_str()),
        (Code::AlreadyExists, "ID_TAKEN")
    );
    let long = "x".repeat(65);
    for none in ["", " \n", "a\u{1b}[2Jb", "a\u{202e}b", "a\u{200b}b", &long] {
        let status = refused(&server, join(none)).await;
        assert_eq!(
            (status.code(), reason(&status).as_str()),
            (Code::InvalidArgument, "NAME_INVALID"),
            "{none:?}"
        );
        let status = refused(
            &server,
            JoinMsgLeave {
                room: format!("{none}\u{7f}"),
                ..join("Ada")
            },
        )
        .await;
        assert_eq!(status.code(), Code::InvalidArgument);
    }
    undisturbed(&mut witness, 1).await;
}

#[tokio::test]
async fn duplicate_names_are_taken_where_they_are_allowed() {
    let server = TestServer::with(|config| config.rules.allow_duplicate_names = true).await;
    let mut one = server.join("Ada").await;
    let other = server.join("Ada").await;
    assert_ne!(one.id, other.id);
    assert_eq!(one.next().await.sender_id, other.id);
}

#[tokio::test]
async fn time_stamps_out_of_range_move_nobodys_clock() {
    let (server, mut witness) = with_witness().await;
    let out_of_range = [-1, i64::MIN, i64::MAX, i64::MAX - 1, 1 << 62, 1 << 40];
    for timestamp in out_of_range {
        let status = refused(
            &server,
            JoinMsgLeave {
                timestamp,
                ..join("Ada")
            },
        )
        .await;
        assert_eq!(
            (status.code(), reason(&status).as_str()),
            (Code::InvalidArgument, "TIMESTAMP_OUT_OF_RANGE")
        );
        witness.say(timestamp, "lost").await;
        let answer = witness.next().await;
        assert_eq!(answer.notice.unwrap().code(), NoticeCode::TimestampOutOfRange);
        assert_eq!((answer.timestamp, answer.sequence), (1, 0));
    }
    assert_eq!(
        server.metric("chitchat_lamport_rejected_total").await,
        2.0 * out_of_range.len() as f64
    );
    undisturbed(&mut witness, 1).await;
    // Who leaves at an impossible time leaves all the same.
    let mut ada = server.join("Ada").await;
    assert_eq!(witness.heard().await.0, 3);
    ada.send(crate::harness::leave(i64::MAX)).await;
    assert_eq!(ada.end().await.code(), Code::InvalidArgument);
    let left = witness.next().await;
    assert_eq!((left.r#type(), left.timestamp), (EventType::Leave, 4));
}

#[tokio::test]
async fn a_second_join_and_unknown_types_end_the_stream_and_the_participant_leaves() {
    let (server, mut witness) = with_witness().await;
    let mut time = 1;
    let unknown = JoinMsgLeave {
        r#type: 3,
        ..message(0, "hi")
    };
    for (wrong, code) in [
        (join("Ada"), Code::FailedPrecondition),
        (unknown.clone(), Code::InvalidArgument),
    ] {
        let mut ada = server.join("Ada").await;
        ada.send(wrong).await;
        assert_eq!(ada.end().await.code(), code);
        time += 2;
        assert_eq!(witness.next().await.r#type(), EventType::Join);
        let left = witness.next().await;
        assert_eq!((left.r#type(), left.timestamp), (EventType::Leave, time));
    }
    assert_eq!(refused(&server, unknown).await.code(), Code::InvalidArgument);
    undisturbed(&mut witness, time).await;
}

#[tokio::test]
async fn texts_that_cannot_be_said_are_answered_to_their_sender() {
    let (server, mut witness) = with_witness().await;
    let mut ada = server.join("Ada").await;
    assert_eq!(witness.heard().await.0, 2);
    let long = "é".repeat(2_001);
    let texts = [
        (long.as_str(), NoticeCode::MessageTooLong),
        ("\u{1b}[2J", NoticeCode::MessageInvalid),
    ];
    for (text, code) in texts {
        ada.say(0, text).await;
        let answer = ada.next().await;
        assert_eq!((answer.sender_id, answer.sequence), (0, 0));
        assert_eq!(answer.notice.unwrap().code(), code);
    }
    ada.say(0, &"é".repeat(2_000)).await;
    // Both refusals were events of the clock.
    assert_eq!((ada.heard().await.0, witness.heard().await.0), (5, 5));
}

#[tokio::test]
async fn a_message_beyond_all_limits_ends_its_stream_only() {
    let (server, mut witness) = with_witness().await;
    let channel = server.channel().await;
    let (mut ada, mut bob) = (Client::open(channel.clone()).await, Client::open(channel).await);
    for (client, name) in [(&mut ada, "Ada"), (&mut bob, "Bob")] {
        client.send(join(name)).await;
        assert_eq!(client.next().await.sender_name, name);
        assert_eq!(witness.next().await.sender_name, name);
    }
    ada.say(0, &"x".repeat(1 << 20)).await;
    assert_ne!(ada.end().await.code(), Code::Ok);
    let left = witness.next().await;
    assert_eq!(
        (left.r#type(), left.sender_name.as_str()),
        (EventType::Leave, "Ada")
    );
    // The other stream of the same connection goes on.
    assert_eq!(bob.next().await.sender_name, "Ada");
    bob.say(0, "hi").await;
    assert_eq!(bob.heard().await.2, "hi");
    assert_eq!(witness.heard().await.2, "hi");
}

#[tokio::test]
async fn garbage_on_the_port_is_turned_away() {
    let (server, mut witness) = with_witness().await;
    let garbage: [&[u8]; 4] = [
        b"GET / HTTP/1.1\r\n\r\n",
        b"\0\0\0\0\0\0\0\0",
        b"\x16\x03\x01\x02\x00\x01",
        b"PRI * HTTP/2.0\r\n\r\nXX",
    ];
    for bytes in garbage {
        let mut stream = TcpStream::connect(server.listen).await.unwrap();
        stream.write_all(bytes).await.unwrap();
        // It is closed, by an end or by a reset, and is told nothing.
        let mut answer = Vec::new();
        timeout(PATIENCE, stream.read_to_end(&mut answer))
            .await
            .expect("the connection is closed")
            .ok();
        assert!(answer.is_empty(), "{answer:?}");
    }
    // After the preface the answer is HTTP/2's own: GOAWAY.
    let mut stream = TcpStream::connect(server.listen).await.unwrap();
    stream
        .write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\nthis is no frame at all, whatever it may be")
        .await
        .unwrap();
    let mut answer = Vec::new();
    timeout(PATIENCE, stream.read_to_end(&mut answer))
        .await
        .expect("the connection is closed")
        .ok();
    server
        .until_metric(
            "chitchat_connections_refused_total{reason=\"protocol\"}",
            garbage.len() as f64,
        )
        .await;
    undisturbed(&mut witness, 1).await;
}

#[tokio::test]
async fn a_call_is_no_longer_than_a_message_can_be() {
    let (server, mut witness) = with_witness().await;
    let mut calls = ChatServiceClient::new(server.channel().await);
    for (len, code) in [(20_000, Code::InvalidArgument), (200_000, Code::OutOfRange)] {
        let request = SendMessageRequest {
            client_name: "bot".into(),
            msg: "x".repeat(len),
            ..SendMessageRequest::default()
        };
        assert_eq!(calls.send_message(request).await.unwrap_err().code(), code);
    }
    // The first was received and refused, which ticks the clock.
    undisturbed(&mut witness, 2).await;
}

#[tokio::test]
async fn what_is_refused_makes_no_room() {
    let (server, _witness) = with_witness().await;
    let mut calls = ChatServiceClient::new(server.channel().await);
    for first in [
        join("Server"),
        JoinMsgLeave {
            timestamp: i64::MAX,
            ..join("Ada")
        },
    ] {
        let first = JoinMsgLeave {
            room: "new".into(),
            ..first
        };
        refused(&server, first).await;
    }
    let post = |msg: &str| SendMessageRequest {
        room: "new".into(),
        client_name: "bot".into(),
        msg: msg.into(),
        ..SendMessageRequest::default()
    };
    let status = calls.send_message(post(&"x".repeat(20_000))).await.unwrap_err();
    assert_eq!(reason(&status), "MESSAGE_TOO_LONG");
    let mut rooms = async || {
        let listed = calls.list_rooms(ListRoomsRequest::default()).await.unwrap();
        let rooms = listed.into_inner().rooms;
        rooms.into_iter().map(|room| room.room).collect::<Vec<_>>()
    };
    assert_eq!(rooms().await, ["lobby"]);
    let refusals = [
        ("name_taken", 1.0),
        ("timestamp_out_of_range", 1.0),
        ("message_too_long", 1.0),
    ];
    for (reason, count) in refusals {
        let metric = format!("chitchat_events_rejected_total{{reason=\"{reason}\",");
        assert_eq!(server.metric(&metric).await, count, "{reason}");
    }
    calls.send_message(post("hi")).await.unwrap();
    let listed = calls.list_rooms(ListRoomsRequest::default()).await.unwrap();
    assert_eq!(listed.into_inner().rooms.len(), 2);
}
