//! The first version's own log, replayed by clients that know nothing newer.

use chitchat::proto::{EventType, JoinMsgLeave};
use tonic::Code;

use crate::harness::{Client, TestServer, join, leave};

/// Each of `clients` hears this next.
async fn all_hear(clients: &mut [&mut Client], time: i64, sender: &str, text: &str) {
    for client in clients {
        assert_eq!(client.heard().await, (time, sender.to_owned(), text.to_owned()));
    }
}

#[tokio::test]
async fn the_first_versions_log_replays() {
    let server = TestServer::with(|config| config.rules.max_message_chars = 128).await;
    // The first version's clients count only what they send: their times lag behind the room's.
    let mut alex = server.open().await;
    alex.send(join("Alex\n")).await;
    all_hear(
        &mut [&mut alex],
        1,
        "Alex",
        "Participant Alex joined Chit Chat at logical time L=1",
    )
    .await;
    alex.say(1, "Hello World!\n").await;
    all_hear(&mut [&mut alex], 2, "Alex", "Hello World!").await;
    let mut aske = server.open().await;
    aske.send(join("Aske\n")).await;
    let joined = "Participant Aske joined Chit Chat at logical time L=3";
    all_hear(&mut [&mut alex, &mut aske], 3, "Aske", joined).await;
    aske.say(1, "Hello Alex").await;
    all_hear(&mut [&mut alex, &mut aske], 4, "Aske", "Hello Alex").await;
    alex.say(2, "How are you?").await;
    all_hear(&mut [&mut alex, &mut aske], 5, "Alex", "How are you?").await;

    // Alex alone hears of a message that was too long. Receiving it was an event; it has no place in the log.
    alex.say(3, &"x".repeat(354)).await;
    let notice = alex.next().await;
    assert_eq!(notice.msg_stream, "Message too long (354 chars). Limit is 128.");
    assert_eq!((notice.sender_id, notice.sender_name.as_str()), (0, "Server"));
    assert_eq!((notice.timestamp, notice.sequence), (6, 0));

    for time in [7, 8] {
        aske.say(time - 5, "fine").await;
        all_hear(&mut [&mut alex, &mut aske], time, "Aske", "fine").await;
    }
    let mut bob = server.open().await;
    bob.send(join("Bob")).await;
    let joined = "Participant Bob joined Chit Chat at logical time L=9";
    all_hear(&mut [&mut alex, &mut aske, &mut bob], 9, "Bob", joined).await;
    aske.say(4, "exitexit").await;
    all_hear(&mut [&mut alex, &mut aske, &mut bob], 10, "Aske", "exitexit").await;
    aske.send(leave(5)).await;
    assert_eq!(aske.next_or_end().await.unwrap_err().code(), Code::Ok);
    for client in [&mut alex, &mut bob] {
        let left = client.next().await;
        assert_eq!(left.r#type(), EventType::Leave);
        assert_eq!((left.timestamp, left.sender_name.as_str()), (11, "Aske"));
        assert_eq!(
            left.msg_stream,
            "Participant Aske left Chit Chat at logical time L=11"
        );
    }
    // An empty text is broadcast like any other.
    for (time, text) in [(12, "hi"), (13, "anybody?"), (14, "")] {
        bob.say(time - 11, text).await;
        all_hear(&mut [&mut alex, &mut bob], time, "Bob", text).await;
    }
    for time in [15, 16, 17] {
        alex.say(time - 11, "yes").await;
        all_hear(&mut [&mut alex, &mut bob], time, "Alex", "yes").await;
    }
}

#[tokio::test]
async fn a_client_without_newer_fields_gets_no_newer_messages() {
    let server = TestServer::start().await;
    let mut alex = server.open().await;
    let id = 7;
    alex.send(JoinMsgLeave { id, ..join("Alex") }).await;
    let joined = alex.next().await;
    assert_eq!(
        (joined.sender_id, joined.r#type(), joined.welcome),
        (7, EventType::Join, None)
    );
    assert_eq!((joined.room.as_str(), joined.sequence), ("lobby", 1));
    // What a room says to all is the same for all, newer fields included.
    assert!(joined.epoch > 0 && joined.broadcast_time.is_some());
    alex.send(leave(1)).await;
    assert_eq!(alex.next_or_end().await.unwrap_err().code(), Code::Ok);
}
