//! What clients get that use newer fields.

use chitchat::proto::{EventType, JoinMsgLeave, NoticeCode};

use crate::harness::{TestServer, join, leave, message};

#[tokio::test]
async fn a_newer_client_is_welcomed_before_anything_else() {
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
async fn rooms_do_not_hear_one_another() {
    let server = TestServer::start().await;
    let mut lobby = server.join("Ada").await;
    let mut tea = server.open().await;
    // The same name and the same id: another room is another world.
    tea.send(JoinMsgLeave {
        room: "tea".into(),
        id: lobby.id,
        ..join("Ada")
    })
    .await;
    assert!(tea.next().await.welcome.is_some());
    assert_eq!(tea.next().await.r#type(), EventType::Join);
    lobby.say(0, "lobby").await;
    tea.say(0, "tea").await;
    assert_eq!(lobby.heard().await.2, "lobby");
    let heard = tea.next().await;
    assert_eq!(
        (heard.msg_stream.as_str(), heard.room.as_str(), heard.sequence),
        ("tea", "tea", 2)
    );
}

#[tokio::test]
async fn a_message_id_is_said_once() {
    let server = TestServer::start().await;
    let mut ada = server.join("Ada").await;
    let named = |text: &str| chitchat::proto::JoinMsgLeave {
        message_id: "m1".into(),
        ..message(0, text)
    };
    ada.send(named("once")).await;
    let original = ada.next().await;
    assert_eq!((original.message_id.as_str(), original.sequence), ("m1", 2));
    ada.send(named("once")).await;
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
        ("m1", 0, 3)
    );
    ada.send(named("another")).await;
    let taken = ada.next().await.notice.unwrap();
    assert_eq!(
        (taken.code(), taken.original_sequence),
        (NoticeCode::MessageIdTaken, 2)
    );
    // A new connection is no way around it.
    let mut bob = server.join("Bob").await;
    bob.send(named("once")).await;
    assert_eq!(
        bob.next().await.notice.unwrap().code(),
        NoticeCode::MessageRepeated
    );
}

#[tokio::test]
async fn a_trace_context_comes_out_as_it_went_in() {
    let server = TestServer::start().await;
    let mut ada = server.join("Ada").await;
    let traceparent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let said = JoinMsgLeave {
        traceparent: traceparent.into(),
        tracestate: "a=1".into(),
        ..message(0, "hi")
    };
    ada.send(said).await;
    let heard = ada.next().await;
    assert_eq!(
        (heard.traceparent.as_str(), heard.tracestate.as_str()),
        (traceparent, "a=1")
    );
    ada.send(leave(0)).await;
}
