//! The unary calls and Subscribe.

use chitchat::proto::chat_service_client::ChatServiceClient;
use chitchat::proto::get_history_request::Page;
use chitchat::proto::subscribe_request::Start;
use chitchat::proto::{
    GetHistoryRequest, JoinMsgLeave, ListParticipantsRequest, ListRoomsRequest, ResumePoint,
    SendMessageRequest, ServerMessage, SubscribeRequest,
};
use tonic::transport::Channel;
use tonic::{Code, Streaming};

use crate::harness::{TestServer, join};

fn post(n: u64) -> SendMessageRequest {
    SendMessageRequest {
        room: "tea".into(),
        client_name: "bot".into(),
        msg: format!("message {n}"),
        timestamp: 0,
        message_id: format!("m{n}"),
        ..SendMessageRequest::default()
    }
}

fn join_tea() -> JoinMsgLeave {
    JoinMsgLeave {
        room: "tea".into(),
        ..join("Ada")
    }
}

/// A server with five messages in the room `tea`.
async fn with_five_messages() -> (TestServer, ChatServiceClient<Channel>) {
    let server = TestServer::start().await;
    let mut client = server.client().await;
    for n in 1..=5 {
        let response = client.send_message(post(n)).await.unwrap().into_inner();
        let broadcast = response.broadcast.unwrap();
        assert_eq!(
            (broadcast.sequence, broadcast.timestamp, response.repeated),
            (n, n.cast_signed(), false)
        );
    }
    (server, client)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_is_sent_once_per_id() {
    let (_server, mut client) = with_five_messages().await;
    let again = client.send_message(post(2)).await.unwrap().into_inner();
    assert!(again.repeated);
    assert_eq!(again.broadcast.unwrap().msg_stream, "message 2");
    let other_text = SendMessageRequest {
        msg: "another".into(),
        ..post(2)
    };
    let status = client.send_message(other_text).await.unwrap_err();
    assert_eq!(status.code(), Code::AlreadyExists);
    let too_long = SendMessageRequest {
        msg: "x".repeat(2_001),
        message_id: String::new(),
        ..post(1)
    };
    let status = client.send_message(too_long).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    // Of these only the text that is too long has advanced the clock, and none has a sequence.
    let next = client.send_message(post(6)).await.unwrap().into_inner();
    let broadcast = next.broadcast.unwrap();
    assert_eq!((broadcast.sequence, broadcast.timestamp), (6, 7));
}

#[tokio::test(flavor = "multi_thread")]
async fn history_is_paged_in_both_directions() {
    let missing = GetHistoryRequest {
        room: "milk".into(),
        ..GetHistoryRequest::default()
    };
    let (_server, mut client) = with_five_messages().await;
    let status = client.get_history(missing).await.unwrap_err();
    assert_eq!(status.code(), Code::NotFound);
    let mut history = async |page: Option<Page>, limit: u32| -> Vec<u64> {
        let request = GetHistoryRequest {
            room: "tea".into(),
            page,
            limit,
        };
        let response = client.get_history(request).await.unwrap().into_inner();
        assert_eq!((response.first_sequence, response.last_sequence), (1, 5));
        let messages = response.messages.iter();
        messages.map(|message| message.sequence).collect()
    };
    assert_eq!(history(None, 2).await, [4, 5]);
    assert_eq!(history(None, 0).await, [1, 2, 3, 4, 5]);
    assert_eq!(history(Some(Page::AfterSequence(2)), 2).await, [3, 4]);
    assert_eq!(history(Some(Page::BeforeSequence(3)), 9).await, [1, 2]);
    assert!(history(Some(Page::AfterSequence(5)), 9).await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_subscription_starts_anywhere_and_does_not_join() {
    async fn next(stream: &mut Streaming<ServerMessage>) -> ServerMessage {
        stream.message().await.unwrap().unwrap()
    }

    let (server, mut client) = with_five_messages().await;
    let subscribe = async |start: Start| {
        let request = SubscribeRequest {
            room: "tea".into(),
            start: Some(start),
        };
        let mut client = server.client().await;
        client.subscribe(request).await.unwrap().into_inner()
    };
    let mut last = subscribe(Start::Last(2)).await;
    assert_eq!(next(&mut last).await.sequence, 4);
    let newest = next(&mut last).await;
    assert_eq!(newest.sequence, 5);
    let epoch = newest.epoch;
    let mut after = subscribe(Start::After(ResumePoint { epoch, sequence: 3 })).await;
    assert_eq!(next(&mut after).await.sequence, 4);
    let mut nowhere = subscribe(Start::After(ResumePoint { epoch, sequence: 9 })).await;
    assert_eq!(nowhere.message().await.unwrap_err().code(), Code::OutOfRange);

    let (_ada, _) = server.join_with(join_tea()).await;
    assert_eq!(next(&mut last).await.sender_name, "Ada");
    let request = ListParticipantsRequest {
        room: "tea".into(),
        ..ListParticipantsRequest::default()
    };
    let roster = client.list_participants(request).await.unwrap().into_inner();
    assert_eq!((roster.sequence, roster.participants.len()), (6, 1));
    let ada = &roster.participants[0];
    assert_eq!((ada.name.as_str(), ada.connected), ("Ada", true));
}

#[tokio::test(flavor = "multi_thread")]
async fn rooms_are_listed_page_by_page() {
    let (server, mut client) = with_five_messages().await;
    let (_ada, _) = server.join_with(join_tea()).await;
    server.join("Lobbyist").await;
    let request = ListRoomsRequest {
        page_size: 1,
        page_token: String::new(),
    };
    let first = client.list_rooms(request).await.unwrap().into_inner();
    assert_eq!((first.rooms[0].room.as_str(), first.rooms.len()), ("lobby", 1));
    let request = ListRoomsRequest {
        page_size: 1,
        page_token: first.next_page_token,
    };
    let second = client.list_rooms(request).await.unwrap().into_inner();
    let tea = &second.rooms[0];
    assert_eq!(
        (
            tea.room.as_str(),
            tea.participants,
            tea.last_sequence,
            tea.timestamp
        ),
        ("tea", 1, 6, 6)
    );
    assert!(second.next_page_token.is_empty());
}
