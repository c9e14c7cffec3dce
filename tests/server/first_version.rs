//! Clients of the first version: its log is replayed, and they get none of the newer messages.

use chitchat::proto::{EventType, JoinMsgLeave};
use tonic::Code;

use crate::harness::{Client, TestServer, join, leave};

/// Asserts that this is the next message of each of `clients`.
async fn assert_all_receive(clients: &mut [&mut Client], time: i64, sender: &str, text: &str) {
    for client in clients {
        assert_eq!(
            client.next_line().await,
            (time, sender.to_owned(), text.to_owned())
        );
    }
}

#[tokio::test]
async fn the_log_of_the_first_version_replays() {
    let server = TestServer::with(|config| config.rules.max_message_chars = 128).await;
    // Clients of the first version count only their own messages, so their times lag behind the room's.
    let mut alex = server.open().await;
    alex.send(join("Alex\n")).await;
    assert_all_receive(
        &mut [&mut alex],
        1,
        "Alex",
        "Participant Alex joined Chit Chat at logical time L=1",
    )
    .await;
    alex.say(1, "Hello World!\n").await;
    assert_all_receive(&mut [&mut alex], 2, "Alex", "Hello World!").await;
    let mut aske = server.open().await;
    aske.send(join("Aske\n")).await;
    let joined = "Participant Aske joined Chit Chat at logical time L=3";
    assert_all_receive(&mut [&mut alex, &mut aske], 3, "Aske", joined).await;
    aske.say(1, "Hello Alex").await;
    assert_all_receive(&mut [&mut alex, &mut aske], 4, "Aske", "Hello Alex").await;
    alex.say(2, "How are you?").await;
    assert_all_receive(&mut [&mut alex, &mut aske], 5, "Alex", "How are you?").await;

    // A message that is too long is answered to Alex alone. It advances the clock and has no sequence.
    alex.say(3, &"x".repeat(354)).await;
    let notice = alex.next().await;
    assert_eq!(notice.msg_stream, "Message too long (354 chars). Limit is 128.");
    assert_eq!((notice.sender_id, notice.sender_name.as_str()), (0, "Server"));
    assert_eq!((notice.timestamp, notice.sequence), (6, 0));

    for time in [7, 8] {
        aske.say(time - 5, "fine").await;
        assert_all_receive(&mut [&mut alex, &mut aske], time, "Aske", "fine").await;
    }
    let mut bob = server.open().await;
    bob.send(join("Bob")).await;
    let joined = "Participant Bob joined Chit Chat at logical time L=9";
    assert_all_receive(&mut [&mut alex, &mut aske, &mut bob], 9, "Bob", joined).await;
    aske.say(4, "exitexit").await;
    assert_all_receive(&mut [&mut alex, &mut aske, &mut bob], 10, "Aske", "exitexit").await;
    aske.send(leave(5)).await;
    assert_eq!(aske.try_next().await.unwrap_err().code(), Code::Ok);
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
        assert_all_receive(&mut [&mut alex, &mut bob], time, "Bob", text).await;
    }
    for time in [15, 16, 17] {
        alex.say(time - 11, "yes").await;
        assert_all_receive(&mut [&mut alex, &mut bob], time, "Alex", "yes").await;
    }
}

#[tokio::test]
async fn a_client_of_the_first_version_gets_no_welcome() {
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
    // Events are the same for all clients, newer fields included.
    assert!(joined.epoch > 0 && joined.broadcast_time.is_some());
    alex.send(leave(1)).await;
    assert_eq!(alex.try_next().await.unwrap_err().code(), Code::Ok);
}
