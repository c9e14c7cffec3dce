//! What is there after a restart, and how clients come back.

use std::path::PathBuf;
use std::time::Duration;

use chitchat::config::StoreOptions;
use chitchat::proto::chat_service_client::ChatServiceClient;
use chitchat::proto::get_history_request::Page;
use chitchat::proto::subscribe_request::Start;
use chitchat::proto::{
    EventType, GetHistoryRequest, JoinMsgLeave, ListParticipantsRequest, ListRoomsRequest, NoticeCode,
    ResumePoint, SendMessageRequest, ServerMessage, SubscribeRequest, Welcome,
};
use chitchat::store::Durability;
use tonic::Code;

use crate::harness::{Client, TestServer, join, leave, message};

/// A data directory of its own, removed with the test.
struct Directory(PathBuf);

impl Directory {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("chitchat-{name}-{}", std::process::id()));
        std::fs::remove_dir_all(&path).ok();
        Self(path)
    }

    async fn serve(&self) -> TestServer {
        self.serve_with_grace(Duration::from_secs(60)).await
    }

    async fn serve_with_grace(&self, grace: Duration) -> TestServer {
        TestServer::with(|config| {
            config.store = StoreOptions::Disk {
                directory: self.0.clone(),
                durability: Durability::Os,
                accept_loss: false,
            };
            config.hub.resume_grace = grace;
        })
        .await
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.0).ok();
    }
}

/// A JOIN of a client that knows of resuming.
fn newer(name: &str) -> JoinMsgLeave {
    JoinMsgLeave {
        wants_welcome: true,
        ..join(name)
    }
}

fn back(name: &str, welcome: &Welcome, sequence: u64) -> JoinMsgLeave {
    let resume = Some(ResumePoint {
        epoch: welcome.epoch,
        sequence,
    });
    JoinMsgLeave {
        session_token: welcome.session_token.clone(),
        resume,
        ..join(name)
    }
}

/// Joins and gives the welcome.
async fn enter(server: &TestServer, first: JoinMsgLeave) -> (Client, Welcome) {
    let mut client = server.open().await;
    client.send(first).await;
    let welcome = client
        .next()
        .await
        .welcome
        .expect("the first message is the welcome");
    (client, welcome)
}

async fn sequences(client: &mut Client, count: usize) -> Vec<u64> {
    let mut heard = Vec::new();
    for _ in 0..count {
        heard.push(client.next().await.sequence);
    }
    heard
}

#[tokio::test(flavor = "multi_thread")]
async fn everybody_finds_themselves_in_the_same_room_after_a_restart() {
    let directory = Directory::new("restart");
    let server = directory.serve().await;
    let (mut ada, welcome) = enter(&server, newer("Ada")).await;
    assert!(!welcome.session_token.is_empty());
    assert_eq!(ada.next().await.sequence, 1);
    let alex = server.join("Alex").await;
    alex.say(5, "hello").await;
    let before = loop {
        let message = ada.next().await;
        if message.msg_stream == "hello" {
            break message;
        }
    };
    server.end().await.unwrap().unwrap();

    let server = directory.serve().await;
    // A first version's client cannot come back to its stay: it has left. Ada has not.
    let (mut ada, again) = enter(&server, back("Ada", &welcome, before.sequence)).await;
    assert_eq!(
        (again.epoch, again.participant_id),
        (welcome.epoch, welcome.participant_id)
    );
    assert!(again.recovered);
    let left = ada.next().await;
    assert_eq!(
        (left.r#type(), left.sender_name.as_str()),
        (EventType::Leave, "Alex")
    );
    assert_eq!(left.sequence, before.sequence + 1);
    assert!(left.timestamp > before.timestamp);
    ada.say(0, "still here").await;
    assert_eq!(ada.next().await.sequence, before.sequence + 2);
    let mut alex = server.join("Alex").await;
    assert_eq!(ada.next().await.sequence, before.sequence + 3);
    ada.send(leave(0)).await;
    assert_eq!(alex.next().await.sequence, before.sequence + 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_comes_back_in_time_was_never_gone() {
    let server = TestServer::with(|config| config.hub.resume_grace = Duration::from_secs(60)).await;
    let mut witness = server.join("Witness").await;
    let (mut ada, welcome) = enter(&server, newer("Ada")).await;
    assert_eq!(ada.next().await.sequence, 2);
    assert_eq!(witness.next().await.sequence, 2);
    drop(ada);
    server.until_metric("chitchat_connected_clients", 1.0).await;
    for _ in 0..10 {
        witness.say(0, "meanwhile").await;
        witness.next().await;
    }
    let (mut ada, again) = enter(&server, back("Ada", &welcome, 4)).await;
    assert_eq!(
        (again.participant_id, again.recovered, again.sequence),
        (welcome.participant_id, true, 4)
    );
    assert_eq!(sequences(&mut ada, 8).await, (5..=12).collect::<Vec<_>>());
    // Nobody heard of it: the next event is the next message.
    ada.say(0, "back").await;
    assert_eq!(ada.next().await.sequence, 13);
    let heard = witness.next().await;
    assert_eq!((heard.sequence, heard.msg_stream.as_str()), (13, "back"));
    assert_eq!(
        server
            .metric("chitchat_resumes_total{outcome=\"complete\"}")
            .await,
        1.0
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn who_does_not_come_back_in_time_leaves_once() {
    let server = TestServer::with(|config| config.hub.resume_grace = Duration::from_millis(50)).await;
    let mut witness = server.join("Witness").await;
    let (ada, welcome) = enter(&server, newer("Ada")).await;
    assert_eq!(witness.next().await.r#type(), EventType::Join);
    drop(ada);
    assert_eq!(witness.next().await.r#type(), EventType::Leave);
    // The stay is over: coming back is a new one, after everything that was missed.
    let (mut ada, again) = enter(&server, back("Ada", &welcome, 2)).await;
    assert!(again.recovered && again.participant_id != welcome.participant_id);
    let (left, joined) = (ada.next().await, ada.next().await);
    assert_eq!((left.r#type(), left.sequence), (EventType::Leave, 3));
    assert_eq!((joined.r#type(), joined.sequence), (EventType::Join, 4));
    assert_eq!(witness.next().await.sequence, 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_connection_takes_the_session_over() {
    let server = TestServer::start().await;
    let (mut older, welcome) = enter(&server, newer("Ada")).await;
    assert_eq!(older.next().await.sequence, 1);
    let (mut ada, again) = enter(&server, back("Ada", &welcome, 1)).await;
    assert_eq!(again.participant_id, welcome.participant_id);
    assert_eq!(older.next().await.notice.unwrap().code(), NoticeCode::TakenOver);
    assert_eq!(older.next_or_end().await.unwrap_err().code(), Code::Aborted);
    ada.say(0, "one Ada").await;
    assert_eq!(ada.next().await.sequence, 2);
    // The older connection's end does not end the session.
    drop(older);
    ada.say(0, "still one").await;
    assert_eq!(ada.next().await.sequence, 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn somebody_new_may_have_the_name_of_somebody_lost() {
    let server = TestServer::with(|config| config.hub.resume_grace = Duration::from_secs(60)).await;
    let mut witness = server.join("Witness").await;
    let (ada, welcome) = enter(&server, newer("Ada")).await;
    assert_eq!(witness.next().await.r#type(), EventType::Join);
    // While she is there nobody may.
    let mut other = server.open().await;
    other.send(join("ada")).await;
    assert_eq!(other.end().await.code(), Code::AlreadyExists);
    drop(ada);
    server.until_metric("chitchat_connected_clients", 1.0).await;
    let _other = server.join("ada").await;
    assert_eq!(witness.next().await.r#type(), EventType::Leave);
    assert_eq!(witness.next().await.r#type(), EventType::Join);
    let mut ada = server.open().await;
    ada.send(back("Ada", &welcome, 2)).await;
    assert_eq!(ada.end().await.code(), Code::AlreadyExists);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_place_that_means_nothing_is_not_recovered() {
    let server = TestServer::start().await;
    let (mut ada, welcome) = enter(&server, newer("Ada")).await;
    ada.next().await;
    for (n, (epoch, sequence)) in [(welcome.epoch + 1, 1), (welcome.epoch, 99), (0, 0)]
        .into_iter()
        .enumerate()
    {
        let resume = Some(ResumePoint { epoch, sequence });
        let first = JoinMsgLeave {
            resume,
            session_token: "forged.1.00".into(),
            ..join(&format!("Bob{n}"))
        };
        let (mut bob, welcome) = enter(&server, first).await;
        assert!(!welcome.recovered);
        assert_eq!(
            (welcome.first_sequence, welcome.last_sequence),
            (1, ada.next().await.sequence - 1)
        );
        assert_eq!(bob.next().await.sequence, welcome.sequence + 1);
        bob.send(leave(0)).await;
        assert_eq!(ada.next().await.r#type(), EventType::Leave);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_id_is_said_once_over_connections_and_restarts() {
    let directory = Directory::new("once");
    let mut answers = Vec::new();
    for _ in 0..2 {
        let server = directory.serve().await;
        for n in 0..3 {
            let mut ada = server.join(&format!("Ada{n}")).await;
            for _ in 0..2 {
                ada.send(JoinMsgLeave {
                    message_id: "m1".into(),
                    ..message(0, "once")
                })
                .await;
                answers.push(ada.next().await);
            }
            ada.send(leave(0)).await;
            ada.end().await;
        }
        server.end().await.unwrap().unwrap();
    }
    let original = answers.remove(0);
    assert_eq!((original.sequence, original.message_id.as_str()), (2, "m1"));
    for repeated in answers {
        let notice = repeated.notice.expect("it was said before");
        assert_eq!(
            (notice.code(), notice.original_sequence),
            (NoticeCode::MessageRepeated, 2)
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_is_behind_is_served_from_the_store() {
    let directory = Directory::new("behind");
    let server = TestServer::with(|config| {
        config.store = StoreOptions::Disk {
            directory: directory.0.clone(),
            durability: Durability::Os,
            accept_loss: false,
        };
        config.hub.feed_bytes = 1 << 20;
    })
    .await;
    let mut ada = server.join("Ada").await;
    // It says nothing more and reads nothing: what the transport takes for it is soon full.
    let mut slow = server.join("Slow").await;
    ada.next().await;
    let text = "x".repeat(2_000);
    let count: usize = 3_000;
    for n in 0..count {
        ada.say(0, &text).await;
        if n >= 100 {
            ada.next().await;
        }
    }
    for _ in 0..100 {
        ada.next().await;
    }
    for n in 0..count {
        let heard = slow.next().await;
        assert_eq!((heard.sequence, heard.msg_stream.len()), (n as u64 + 3, 2_000));
    }
    // It has caught up, and hears what comes next like everybody else.
    server.until_metric("chitchat_subscribers_behind", 0.0).await;
    ada.say(0, "live").await;
    assert_eq!(slow.next().await.msg_stream, "live");
    assert_eq!(
        server.metric("chitchat_deliveries_total").await,
        2.0 * (count as f64 + 1.0) + 3.0
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_calls_beside_chat_answer() {
    let server = TestServer::start().await;
    let mut calls = ChatServiceClient::new(server.channel().await);
    let missing = calls
        .get_history(GetHistoryRequest {
            room: "tea".into(),
            ..GetHistoryRequest::default()
        })
        .await;
    assert_eq!(missing.unwrap_err().code(), Code::NotFound);
    let post = |n: u64| SendMessageRequest {
        room: "tea".into(),
        client_name: "bot".into(),
        msg: format!("message {n}"),
        timestamp: 0,
        message_id: format!("m{n}"),
        ..SendMessageRequest::default()
    };
    for n in 1..=5 {
        let answer = calls.send_message(post(n)).await.unwrap().into_inner();
        let broadcast = answer.broadcast.unwrap();
        assert_eq!(
            (broadcast.sequence, broadcast.timestamp, answer.repeated),
            (n, n.cast_signed(), false)
        );
    }
    let again = calls.send_message(post(2)).await.unwrap().into_inner();
    assert!(again.repeated);
    assert_eq!(again.broadcast.unwrap().msg_stream, "message 2");
    let other = SendMessageRequest {
        msg: "another".into(),
        ..post(2)
    };
    assert_eq!(
        calls.send_message(other).await.unwrap_err().code(),
        Code::AlreadyExists
    );
    let long = SendMessageRequest {
        msg: "x".repeat(2_001),
        message_id: String::new(),
        ..post(1)
    };
    assert_eq!(
        calls.send_message(long).await.unwrap_err().code(),
        Code::InvalidArgument
    );

    let mut history = async |page: Option<Page>, limit: u32| -> Vec<u64> {
        let request = GetHistoryRequest {
            room: "tea".into(),
            page,
            limit,
        };
        let answer = calls.get_history(request).await.unwrap().into_inner();
        assert_eq!((answer.first_sequence, answer.last_sequence), (1, 5));
        answer
            .messages
            .iter()
            .map(|message: &ServerMessage| message.sequence)
            .collect()
    };
    assert_eq!(history(None, 2).await, [4, 5]);
    assert_eq!(history(None, 0).await, [1, 2, 3, 4, 5]);
    assert_eq!(history(Some(Page::AfterSequence(2)), 2).await, [3, 4]);
    assert_eq!(history(Some(Page::BeforeSequence(3)), 9).await, [1, 2]);
    assert!(history(Some(Page::AfterSequence(5)), 9).await.is_empty());

    let tail = async |start: Option<Start>| {
        let request = SubscribeRequest {
            room: "tea".into(),
            start,
        };
        ChatServiceClient::new(server.channel().await)
            .subscribe(request)
            .await
            .unwrap()
            .into_inner()
    };
    let mut last = tail(Some(Start::Last(2))).await;
    assert_eq!(last.message().await.unwrap().unwrap().sequence, 4);
    assert_eq!(last.message().await.unwrap().unwrap().sequence, 5);
    let epoch = server_epoch(&server).await;
    let mut after = tail(Some(Start::After(ResumePoint { epoch, sequence: 3 }))).await;
    assert_eq!(after.message().await.unwrap().unwrap().sequence, 4);
    let mut nowhere = tail(Some(Start::After(ResumePoint { epoch, sequence: 9 }))).await;
    assert_eq!(nowhere.message().await.unwrap_err().code(), Code::OutOfRange);
    // Who reads hears what is said, and is in nobody's roster.
    let (_ada, _) = enter(
        &server,
        JoinMsgLeave {
            room: "tea".into(),
            ..join("Ada")
        },
    )
    .await;
    assert_eq!(last.message().await.unwrap().unwrap().sender_name, "Ada");

    let mut calls = ChatServiceClient::new(server.channel().await);
    let request = ListParticipantsRequest { room: "tea".into() };
    let there = calls.list_participants(request).await.unwrap().into_inner();
    assert_eq!((there.sequence, there.participants.len()), (6, 1));
    assert_eq!(
        (
            there.participants[0].name.as_str(),
            there.participants[0].connected
        ),
        ("Ada", true)
    );
    server.join("Lobbyist").await;
    let request = ListRoomsRequest {
        page_size: 1,
        page_token: String::new(),
    };
    let first = calls.list_rooms(request).await.unwrap().into_inner();
    assert_eq!((first.rooms[0].room.as_str(), first.rooms.len()), ("lobby", 1));
    let request = ListRoomsRequest {
        page_size: 1,
        page_token: first.next_page_token,
    };
    let second = calls.list_rooms(request).await.unwrap().into_inner();
    let tea = &second.rooms[0];
    // Five messages, three that were refused or repeated, one JOIN.
    assert_eq!(
        (
            tea.room.as_str(),
            tea.participants,
            tea.last_sequence,
            tea.timestamp
        ),
        ("tea", 1, 6, 9)
    );
    assert!(second.next_page_token.is_empty());
}

async fn server_epoch(server: &TestServer) -> u64 {
    let mut calls = ChatServiceClient::new(server.channel().await);
    let request = GetHistoryRequest {
        room: "tea".into(),
        ..GetHistoryRequest::default()
    };
    calls.get_history(request).await.unwrap().into_inner().epoch
}
