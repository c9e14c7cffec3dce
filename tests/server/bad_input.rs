//! Invalid input: how it is answered, and that other participants notice nothing of it.

use chitchat::proto::{EventType, JoinMsgLeave, ListRoomsRequest, NoticeCode, SendMessageRequest};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tonic::{Code, Status};
use tonic_types::StatusExt;

use crate::harness::{Client, TIMEOUT, TestServer, join, leave, message};

/// A server, and a participant in its lobby.
async fn with_witness() -> (TestServer, Client) {
    let server = TestServer::start().await;
    let witness = server.join("Witness").await;
    (server, witness)
}

/// Asserts that the witness can still send messages, and that the room's clock still was at `time`.
async fn assert_undisturbed(witness: &mut Client, time: i64) {
    witness.say(0, "still here").await;
    assert_eq!(
        witness.next_line().await,
        (time + 1, "Witness".into(), "still here".into())
    );
}

fn reason(status: &Status) -> String {
    status.get_details_error_info().unwrap().reason
}

/// Asserts that a stream which begins with `first` is rejected.
async fn assert_rejected(server: &TestServer, first: JoinMsgLeave, code: Code, expected: &str) {
    let status = server.end_after(first.clone()).await;
    assert_eq!(
        (status.code(), reason(&status).as_str()),
        (code, expected),
        "{first:?}"
    );
}

#[tokio::test]
async fn the_first_message_must_be_a_join() {
    let (server, mut witness) = with_witness().await;
    for first in [
        message(0, "hi"),
        JoinMsgLeave {
            r#type: EventType::Leave.into(),
            ..join("Ada")
        },
    ] {
        assert_rejected(&server, first, Code::FailedPrecondition, "NOT_JOINED").await;
    }
    let mut silent = server.open().await;
    silent.half_close();
    assert_eq!(silent.end().await.code(), Code::FailedPrecondition);
    assert_undisturbed(&mut witness, 1).await;
}

#[tokio::test]
async fn taken_and_invalid_names_are_rejected() {
    let (server, mut witness) = with_witness().await;
    for taken in ["Witness", "WITNESS", "Wіtness", " witness\n"] {
        assert_rejected(&server, join(taken), Code::AlreadyExists, "NAME_TAKEN").await;
    }
    let id_taken = JoinMsgLeave {
        id: witness.id,
        ..join("Ada")
    };
    assert_rejected(&server, id_taken, Code::AlreadyExists, "ID_TAKEN").await;
    let long = "x".repeat(65);
    let imitations = [
        "Server: maintenance",
        "Ada: I agree",
        "Participant Witness left Chit Chat at logical time L=9",
        "\u{1d159}",
        "\u{e000}",
        "\u{301}",
    ];
    for imitation in imitations {
        assert_rejected(&server, join(imitation), Code::InvalidArgument, "NAME_INVALID").await;
    }
    for invalid in ["", " \n", "a\u{1b}[2Jb", "a\u{202e}b", "a\u{200b}b", &long] {
        assert_rejected(&server, join(invalid), Code::InvalidArgument, "NAME_INVALID").await;
        let in_invalid_room = JoinMsgLeave {
            room: format!("{invalid}\u{7f}"),
            ..join("Ada")
        };
        let status = server.end_after(in_invalid_room).await;
        assert_eq!(status.code(), Code::InvalidArgument);
    }
    assert_undisturbed(&mut witness, 1).await;
}

#[tokio::test]
async fn duplicate_names_can_be_allowed() {
    let server = TestServer::with(|config| config.rules.allow_duplicate_names = true).await;
    let mut one = server.join("Ada").await;
    let other = server.join("Ada").await;
    assert_ne!(one.id, other.id);
    assert_eq!(one.next().await.sender_id, other.id);
}

#[tokio::test]
async fn timestamps_out_of_range_do_not_advance_the_clock() {
    let (server, mut witness) = with_witness().await;
    let out_of_range = [-1, i64::MIN, i64::MAX, i64::MAX - 1, 1 << 62, 1 << 40];
    for timestamp in out_of_range {
        let first = JoinMsgLeave {
            timestamp,
            ..join("Ada")
        };
        assert_rejected(&server, first, Code::InvalidArgument, "TIMESTAMP_OUT_OF_RANGE").await;
        witness.say(timestamp, "lost").await;
        let answer = witness.next().await;
        assert_eq!(answer.notice.unwrap().code(), NoticeCode::TimestampOutOfRange);
        assert_eq!((answer.timestamp, answer.sequence), (1, 0));
    }
    assert_eq!(
        server.metric("chitchat_lamport_rejected_total").await,
        2.0 * out_of_range.len() as f64
    );
    assert_undisturbed(&mut witness, 1).await;
    // A LEAVE with an invalid timestamp is rejected, but the participant leaves.
    let mut ada = server.join("Ada").await;
    assert_eq!(witness.next_line().await.0, 3);
    ada.send(leave(i64::MAX)).await;
    assert_eq!(ada.end().await.code(), Code::InvalidArgument);
    let left = witness.next().await;
    assert_eq!((left.r#type(), left.timestamp), (EventType::Leave, 4));
}

#[tokio::test]
async fn a_second_join_or_an_unknown_type_ends_the_stream_with_a_leave() {
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
    assert_eq!(server.end_after(unknown).await.code(), Code::InvalidArgument);
    assert_undisturbed(&mut witness, time).await;
}

#[tokio::test]
async fn an_invalid_text_is_answered_to_its_sender_alone() {
    let (server, mut witness) = with_witness().await;
    let mut ada = server.join("Ada").await;
    assert_eq!(witness.next_line().await.0, 2);
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
    // Only the text that is too long advanced the clock.
    assert_eq!((ada.next_line().await.0, witness.next_line().await.0), (4, 4));
}

#[tokio::test]
async fn a_message_over_the_decode_limit_ends_only_its_stream() {
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
    // The other stream of the same connection continues.
    assert_eq!(bob.next().await.sender_name, "Ada");
    bob.say(0, "hi").await;
    assert_eq!(bob.next_line().await.2, "hi");
    assert_eq!(witness.next_line().await.2, "hi");
}

async fn read_to_end(stream: &mut TcpStream) -> Vec<u8> {
    let mut received = Vec::new();
    let closed = timeout(TIMEOUT, stream.read_to_end(&mut received)).await;
    // A reset is an error, after which what was received before is still there.
    closed.expect("the connection is closed").ok();
    received
}

#[tokio::test]
async fn connections_that_do_not_speak_http2_are_closed() {
    let (server, mut witness) = with_witness().await;
    let garbage: [(&[u8], &str); 4] = [
        (b"GET / HTTP/1.1\r\n\r\n", "HTTP/1.1 505 "),
        (b"\x16\x03\x01\x02\x00\x01", "HTTP/1.1 400 "),
        (b"\0\0\0\0\0\0\0\0", ""),
        (b"PRI * HTTP/2.0\r\n\r\nXX", ""),
    ];
    for (bytes, answer) in garbage {
        let mut stream = TcpStream::connect(server.listen).await.unwrap();
        stream.write_all(bytes).await.unwrap();
        let response = read_to_end(&mut stream).await;
        assert!(response.starts_with(answer.as_bytes()), "{response:?}");
        assert_eq!(response.is_empty(), answer.is_empty(), "{response:?}");
    }
    // After the preface the server may send a GOAWAY.
    let mut stream = TcpStream::connect(server.listen).await.unwrap();
    stream
        .write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\nthese bytes are not an HTTP/2 frame header")
        .await
        .unwrap();
    read_to_end(&mut stream).await;
    server
        .wait_for_metric("chitchat_connections_refused_total{reason=\"protocol\"}", 3.0)
        .await;
    server
        .wait_for_metric("chitchat_connections_refused_total{reason=\"tls\"}", 1.0)
        .await;
    assert_undisturbed(&mut witness, 1).await;
}

#[tokio::test]
async fn unary_requests_over_the_decode_limit_are_rejected() {
    let (server, mut witness) = with_witness().await;
    let mut calls = server.client().await;
    for (len, code) in [(20_000, Code::InvalidArgument), (200_000, Code::OutOfRange)] {
        let request = SendMessageRequest {
            client_name: "bot".into(),
            msg: "x".repeat(len),
            ..SendMessageRequest::default()
        };
        assert_eq!(calls.send_message(request).await.unwrap_err().code(), code);
    }
    // The first was decoded and then rejected, which advances the clock.
    assert_undisturbed(&mut witness, 2).await;
}

#[tokio::test]
async fn rejected_requests_create_no_room() {
    let (server, _witness) = with_witness().await;
    let mut calls = server.client().await;
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
        server.end_after(first).await;
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
    let rejections = [
        ("name_taken", 1.0),
        ("timestamp_out_of_range", 1.0),
        ("message_too_long", 1.0),
    ];
    for (reason, count) in rejections {
        let metric = format!("chitchat_events_rejected_total{{reason=\"{reason}\",");
        assert_eq!(server.metric(&metric).await, count, "{reason}");
    }
    calls.send_message(post("hi")).await.unwrap();
    let listed = calls.list_rooms(ListRoomsRequest::default()).await.unwrap();
    assert_eq!(listed.into_inner().rooms.len(), 2);
}
