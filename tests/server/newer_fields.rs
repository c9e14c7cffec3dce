//! Clients that use the fields which the first version did not have.

use chitchat::proto::{EventType, JoinMsgLeave, NoticeCode};

use crate::harness::{TestServer, join, join_wanting_welcome, leave, message};

#[tokio::test]
async fn the_welcome_precedes_all_other_messages() {
    let server = TestServer::start().await;
    let mut ada = server.open().await;
    ada.send(JoinMsgLeave {
        room: "tea".into(),
        ..join("Ada")
    })
    .await;
    let first = ada.next().await;
    let welcome = first.welcome.expect("the first message is the welcome");
    assert_eq!(
        (first.sender_id, first.sequence, first.room.as_str()),
        (0, 0, "tea")
    );
    assert_eq!(
        (welcome.sequence, welcome.last_sequence, welcome.recovered),
        (0, 0, false)
    );
    assert_eq!(welcome.limits.unwrap().max_message_chars, 2_000);
    let joined = ada.next().await;
    assert_eq!(
        (joined.sender_id, joined.sequence),
        (welcome.participant_id, welcome.sequence + 1)
    );
    assert_eq!(joined.epoch, welcome.epoch);
}

#[tokio::test]
async fn rooms_are_independent() {
    let server = TestServer::start().await;
    // Names and ids are per room.
    let join_in = |room: &str| JoinMsgLeave {
        room: room.into(),
        id: 7,
        ..join_wanting_welcome("Ada")
    };
    let (mut lobby, _) = server.join_with(join_in("lobby")).await;
    let (mut tea, _) = server.join_with(join_in("tea")).await;
    for client in [&mut lobby, &mut tea] {
        assert_eq!(client.next().await.r#type(), EventType::Join);
    }
    lobby.say(0, "lobby").await;
    tea.say(0, "tea").await;
    assert_eq!(lobby.next_line().await.2, "lobby");
    let received = tea.next().await;
    assert_eq!(
        (
            received.msg_stream.as_str(),
            received.room.as_str(),
            received.sequence
        ),
        ("tea", "tea", 2)
    );
}

#[tokio::test]
async fn a_message_id_is_broadcast_once() {
    let server = TestServer::start().await;
    let mut ada = server.join("Ada").await;
    let with_id = |text: &str| JoinMsgLeave {
        message_id: "m1".into(),
        ..message(0, text)
    };
    ada.send(with_id("once")).await;
    let original = ada.next().await;
    assert_eq!((original.message_id.as_str(), original.sequence), ("m1", 2));
    ada.send(with_id("once")).await;
    let repeated = ada.next().await;
    let notice = repeated.notice.unwrap();
    assert_eq!(
        (notice.code(), notice.original_sequence),
        (NoticeCode::MessageRepeated, 2)
    );
    assert_eq!(
        (
            repeated.message_id.as_str(),
            repeated.sequence,
            repeated.timestamp
        ),
        ("m1", 0, original.timestamp)
    );
    ada.send(with_id("another")).await;
    let taken = ada.next().await.notice.unwrap();
    assert_eq!(
        (taken.code(), taken.original_sequence),
        (NoticeCode::MessageIdTaken, 2)
    );
    // This holds for other participants too.
    let mut bob = server.join("Bob").await;
    bob.send(with_id("once")).await;
    assert_eq!(
        bob.next().await.notice.unwrap().code(),
        NoticeCode::MessageRepeated
    );
}

#[tokio::test]
async fn a_trace_context_is_forwarded_unchanged() {
    let server = TestServer::start().await;
    let mut ada = server.join("Ada").await;
    let traceparent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let traced = JoinMsgLeave {
        traceparent: traceparent.into(),
        tracestate: "a=1".into(),
        ..message(0, "hi")
    };
    ada.send(traced).await;
    let received = ada.next().await;
    assert_eq!(
        (received.traceparent.as_str(), received.tracestate.as_str()),
        (traceparent, "a=1")
    );
    ada.send(leave(0)).await;
}
