//! Clients that make the server hold what they do not read, or what they do not send to its end.

use std::time::Duration;

use chitchat::proto::subscribe_request::Start;
use chitchat::proto::{
    GetHistoryRequest, JoinMsgLeave, ListParticipantsRequest, SendMessageRequest, SubscribeRequest,
};
use tokio::io::AsyncWriteExt;
use tokio::time::{sleep, timeout};
use tonic::Code;
use tonic_types::StatusExt;

use crate::harness::{Client, TIMEOUT, TestServer, join, message};
use crate::raw_http2::{
    DATA, END_HEADERS, END_STREAM, HEADERS, PING, RST_STREAM, RawConnection, WINDOW_UPDATE, call, data,
    frame, grpc,
};

/// Two participants on connections of their own, who chat while others misbehave.
struct Pair {
    one: Client,
    other: Client,
}

impl Pair {
    async fn join(server: &TestServer) -> Self {
        let mut one = server.join("Ada").await;
        let other = server.join("Bob").await;
        one.next().await;
        Self { one, other }
    }

    async fn chat(&mut self, text: &str) {
        self.one.say(0, text).await;
        assert_eq!(self.one.next_line().await.2, text);
        assert_eq!(self.other.next_line().await.2, text);
    }
}

/// A room with more than a MiB of history.
async fn with_history(server: &TestServer) {
    let mut calls = server.client().await;
    for n in 0..500 {
        let post = SendMessageRequest {
            room: "tea".into(),
            client_name: "bot".into(),
            msg: format!("{n:02000}"),
            ..SendMessageRequest::default()
        };
        calls.send_message(post).await.unwrap();
    }
}

fn history() -> GetHistoryRequest {
    GetHistoryRequest {
        room: "tea".into(),
        page: None,
        limit: 1_000,
    }
}

fn rejected(reason: &str) -> String {
    format!("chitchat_events_rejected_total{{reason=\"{reason}\"")
}

#[tokio::test(flavor = "multi_thread")]
async fn responses_that_are_not_read_take_no_more_than_their_budget() {
    let server = TestServer::with(|config| {
        config.transport.budgets.responses_per_connection = 3 << 20;
        config.transport.budgets.responses = 7 << 20;
    })
    .await;
    let mut pair = Pair::join(&server).await;
    with_history(&server).await;
    let mut greedy = Vec::new();
    for _ in 0..2 {
        let mut connection = RawConnection::open(&server, 0).await;
        for stream in (1..40).step_by(2) {
            let request = frame(DATA, END_STREAM, stream, &grpc(&history()));
            connection
                .send(&[call(stream, "GetHistory"), request].concat())
                .await;
        }
        greedy.push(connection);
    }
    // Each response has 1.05 MB: three of them fit into the budget of a connection, five into the
    // share of an address.
    server
        .wait_for_metric(&rejected("response_budget_exceeded"), 35.0)
        .await;
    pair.chat("still here").await;
    // The two have used up a part, so that small responses are still possible, and these are read.
    let mut calls = server.client().await;
    let listed = calls
        .list_participants(ListParticipantsRequest::default())
        .await
        .unwrap();
    assert_eq!(listed.into_inner().participants.len(), 2);
    let refused = calls.get_history(history()).await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted);
    assert!(refused.get_details_retry_info().unwrap().retry_delay.is_some());
    // When they have gone, the budget is free again.
    drop(greedy);
    server.wait_for_metric("chitchat_connections_open", 3.0).await;
    let page = calls.get_history(history()).await.unwrap().into_inner();
    assert_eq!(page.messages.len(), 500);
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_that_are_sent_in_part_take_no_more_than_their_budget() {
    let server = TestServer::with(|config| {
        config.transport.budgets.received_per_connection = 256 << 10;
    })
    .await;
    let mut pair = Pair::join(&server).await;
    let mut flood = RawConnection::open(&server, 65_535).await;
    let text = grpc(&message(0, &"x".repeat(60_000)));
    for stream in (1..200).step_by(2) {
        // Streams, then unary calls.
        let method = if stream < 100 { "Chat" } else { "SendMessage" };
        let mut sent = call(stream, method);
        // Together less than the window of a new connection.
        sent.extend(frame(DATA, 0, stream, &text[..600]));
        flood.send(&sent).await;
    }
    // Four messages fit.
    server
        .wait_for_metric(&rejected("receive_budget_exceeded"), 96.0)
        .await;
    assert_eq!(flood.ping().await, PING);
    pair.chat("still here").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_that_are_not_read_take_nothing_from_others_and_are_ended_when_there_are_many() {
    let directory = tempfile::tempdir().unwrap();
    let server = TestServer::stored_in(directory.path(), |config| {
        config.transport.budgets.stalled_streams = 50;
    })
    .await;
    let mut pair = Pair::join(&server).await;
    with_history(&server).await;
    let request = subscription(10_000);
    let _greedy = subscribe_without_reading(&server, &request).await;
    // A client that reads gets all of it.
    let mut calls = server.client().await;
    let mut stream = calls.subscribe(request).await.unwrap().into_inner();
    for _ in 0..500 {
        timeout(TIMEOUT, stream.message())
            .await
            .unwrap()
            .unwrap()
            .unwrap();
    }
    pair.chat("still here").await;
    wait_until_ended_as_slow(&server, 150.0).await;
    pair.chat("still here").await;
}

fn subscription(last: u32) -> SubscribeRequest {
    SubscribeRequest {
        room: "tea".into(),
        start: Some(Start::Last(last)),
    }
}

/// Makes 200 calls on ten connections, whose streams may send one byte each.
async fn subscribe_without_reading(server: &TestServer, request: &SubscribeRequest) -> Vec<RawConnection> {
    let mut connections = Vec::new();
    for _ in 0..10 {
        let mut connection = RawConnection::open(server, 1).await;
        for stream in (1..40).step_by(2) {
            let request = frame(DATA, END_STREAM, stream, &grpc(request));
            connection
                .send(&[call(stream, "Subscribe"), request].concat())
                .await;
        }
        connections.push(connection);
    }
    server
        .wait_for_metric("chitchat_streams_started_total{method=\"Subscribe\"}", 200.0)
        .await;
    connections
}

async fn wait_until_ended_as_slow(server: &TestServer, streams: f64) {
    let ended = "chitchat_streams_ended_total{reason=\"slow\",method=\"Subscribe\"}";
    let ending = async {
        while server.metric(ended).await < streams {
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(TIMEOUT, ending).await.expect("the streams are ended");
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_whose_only_event_is_not_read_are_ended_too() {
    let server = TestServer::with(|config| config.transport.budgets.stalled_streams = 50).await;
    with_history(&server).await;
    let _greedy = subscribe_without_reading(&server, &subscription(1)).await;
    wait_until_ended_as_slow(&server, 150.0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_memory_of_a_response_that_is_not_read_is_given_back_although_its_connection_stays() {
    let server = TestServer::with(|config| {
        config.transport.budgets.responses = 2 << 20;
        config.transport.stall_timeout = Duration::from_secs(6);
    })
    .await;
    with_history(&server).await;
    let mut calls = server.client().await;
    let mut greedy = RawConnection::open(&server, 1).await;
    let request = frame(DATA, END_STREAM, 1, &grpc(&history()));
    greedy.send(&[call(1, "GetHistory"), request].concat()).await;
    // The first byte of the response.
    while greedy.next().await.kind != DATA {}
    // Not idle.
    let waiting = frame(DATA, 0, 3, &grpc(&subscription(0)));
    greedy.send(&[call(3, "Subscribe"), waiting].concat()).await;
    let refused = calls.get_history(history()).await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted);
    let answering = async {
        while calls.get_history(history()).await.is_err() {
            sleep(Duration::from_millis(50)).await;
        }
    };
    timeout(TIMEOUT, answering)
        .await
        .expect("the response is dropped");
    assert_eq!(greedy.ping().await, PING);
}

/// A connection whose socket is full of events that it has asked for and does not read. Its first stream has nothing to send, so it
/// never stalls.
async fn with_a_full_socket(server: &TestServer) -> RawConnection {
    with_history(server).await;
    server.wait_for_metric("chitchat_connections_open", 0.0).await;
    // HTTP/2 lets the server send everything.
    let mut greedy = RawConnection::open(server, 1 << 24).await;
    greedy
        .send(&frame(WINDOW_UPDATE, 0, 0, &u32::to_be_bytes(1 << 30)))
        .await;
    for (stream, last) in (1..60).step_by(2).zip([0].into_iter().chain([500; 29])) {
        let request = frame(DATA, END_STREAM, stream, &grpc(&subscription(last)));
        greedy.send(&[call(stream, "Subscribe"), request].concat()).await;
    }
    server
        .wait_for_metric("chitchat_streams_started_total{method=\"Subscribe\"}", 30.0)
        .await;
    greedy
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_is_not_read_is_closed_with_its_streams() {
    let server = TestServer::with(|config| config.transport.stall_timeout = Duration::from_secs(6)).await;
    let _greedy = with_a_full_socket(&server).await;
    server.wait_for_metric("chitchat_connections_open", 0.0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_that_cannot_be_answered_are_bounded_although_their_headers_are_not_valid() {
    let server = TestServer::with(|config| config.transport.budgets.unread = 1 << 20).await;
    let mut greedy = with_a_full_socket(&server).await;
    // HTTP/2 has no such header.
    let headers = b"\x00\x0aconnection\x01a";
    for stream in (61..1_000).step_by(2) {
        let request = frame(HEADERS, END_HEADERS | END_STREAM, stream, headers);
        // Fails once the connection is closed.
        greedy.socket.write_all(&request).await.ok();
    }
    server
        .wait_for_metric("chitchat_connections_cut_total{reason=\"unread\"}", 1.0)
        .await;
    let throttled = "chitchat_throttled_total{limit=\"unread\"}";
    assert!(server.metric(throttled).await > 0.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn refusals_do_not_wait_for_a_socket_that_is_not_read() {
    let server = TestServer::with(|config| {
        config.transport.budgets.streams = 40;
        config.transport.budgets.unread = 1 << 20;
    })
    .await;
    let mut greedy = with_a_full_socket(&server).await;
    for stream in (61..1_000).step_by(2) {
        // Fails once the connection is closed.
        greedy.socket.write_all(&call(stream, "Chat")).await.ok();
    }
    server
        .wait_for_metric("chitchat_connections_cut_total{reason=\"unread\"}", 1.0)
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_beyond_the_limit_are_refused_and_each_connection_can_have_two() {
    let server = TestServer::with(|config| config.transport.budgets.streams = 40).await;
    let mut greedy = RawConnection::open(&server, 65_535).await;
    for stream in (1..200).step_by(2) {
        greedy.send(&call(stream, "Chat")).await;
    }
    // An address has at most three quarters of them, and two for each connection.
    server
        .wait_for_metric(&rejected("too_many_streams"), 100.0 - 32.0)
        .await;
    let channel = server.channel().await;
    let mut streams = Vec::new();
    for name in ["Ada", "Bob"] {
        let mut client = Client::open(channel.clone()).await;
        client.send(join(name)).await;
        client.next().await;
        streams.push(client);
    }
    let refused = chitchat::proto::chat_service_client::ChatServiceClient::new(channel)
        .list_participants(ListParticipantsRequest::default())
        .await
        .unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted);
    assert_eq!(
        refused.get_details_error_info().unwrap().reason,
        "TOO_MANY_STREAMS"
    );
    assert!(refused.get_details_retry_info().unwrap().retry_delay.is_some());
    drop(greedy);
    server.wait_for_metric("chitchat_connections_open", 1.0).await;
    let mut client = Client::open(server.channel().await).await;
    client.send(join("Cleo")).await;
    client.next().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_comes_too_late_for_its_stream_does_not_count_as_unread() {
    let server = TestServer::with(|config| config.transport.budgets.unread = 256 << 10).await;
    let mut gateway = RawConnection::open(&server, 65_535).await;
    gateway
        .send(&[call(1, "Chat"), data(1, &join("Ada"))].concat())
        .await;
    let late = frame(DATA, 0, 0, &[0; 16_000]);
    for stream in (3..203).step_by(2) {
        // An invalid name.
        gateway
            .send(&[call(stream, "Chat"), data(stream, &join(""))].concat())
            .await;
        while !gateway.next().await.is_end_of_stream() {}
        let mut late = late.clone();
        late[5..9].copy_from_slice(&u32::to_be_bytes(stream));
        gateway.send(&late).await;
        assert_eq!(gateway.ping().await, PING);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_that_send_and_do_not_read_are_closed_when_memory_is_short() {
    let server = TestServer::with(|config| config.transport.budgets.unread = 1 << 20).await;
    let mut pair = Pair::join(&server).await;
    let text = frame(DATA, 0, 0, &grpc(&message(0, &"x".repeat(2_000))).repeat(7));
    let streams = || (1..20_u32).step_by(2);
    let mut floods = Vec::new();
    for n in 0..4 {
        let mut flood = RawConnection::open(&server, 0).await;
        // The server opens the window of the connection.
        while flood.next().await.kind != WINDOW_UPDATE {}
        for stream in streams() {
            let join = data(stream, &join(&format!("client {n} {stream}")));
            flood.send(&[call(stream, "Chat"), join].concat()).await;
        }
        floods.push(flood);
    }
    // From now on the streams wait for their clients and read nothing more.
    server.wait_for_metric("chitchat_connected_clients", 42.0).await;
    for flood in &mut floods {
        for stream in streams() {
            let mut sent = text.repeat(4);
            for frame in sent.chunks_mut(text.len()) {
                frame[5..9].copy_from_slice(&stream.to_be_bytes());
            }
            // Fails once the connection is closed.
            flood.socket.write_all(&sent).await.ok();
        }
    }
    // Each sends 560 kB, so at most one of them fits.
    let cut = "chitchat_connections_cut_total{reason=\"unread\"}";
    let cutting = async {
        while server.metric(cut).await < 3.0 {
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(TIMEOUT, cutting)
        .await
        .expect("three connections are cut");
    // The others have left or are lost. Those who read go on.
    pair.one.say(0, "still here").await;
    for client in [&mut pair.one, &mut pair.other] {
        while client.next_line().await.2 != "still here" {}
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_may_cancel_many_calls_at_once() {
    let server = TestServer::start().await;
    let mut gateway = RawConnection::open(&server, 65_535).await;
    let cancelled = (1..1_001).step_by(2).map(|stream| {
        let cancel = frame(RST_STREAM, 0, stream, &u32::to_be_bytes(8));
        [call(stream, "SendMessage"), cancel].concat()
    });
    let cancelled: Vec<u8> = cancelled.flatten().collect();
    gateway.send(&cancelled).await;
    assert_eq!(gateway.ping().await, PING);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_read_does_not_count_any_more() {
    let server = TestServer::with(|config| config.transport.budgets.unread = 64 << 10).await;
    let channel = server.channel().await;
    let mut clients = Vec::new();
    for room in ["tea", "milk", "cake"] {
        let mut client = Client::open(channel.clone()).await;
        client
            .send(JoinMsgLeave {
                room: room.into(),
                ..join("Ada")
            })
            .await;
        client.next().await;
        client.next_line().await;
        clients.push(client);
    }
    // Far more than the budget.
    for _ in 0..50 {
        for client in &mut clients {
            for _ in 0..20 {
                client.say(0, "hello").await;
            }
        }
        for client in &mut clients {
            for _ in 0..20 {
                assert_eq!(client.next_line().await.2, "hello");
            }
        }
    }
    assert_eq!(server.metric("chitchat_connections_cut_total").await, 0.0);
}

#[tokio::test]
async fn a_subscription_without_a_request_is_counted() {
    let server = TestServer::start().await;
    let mut client = RawConnection::open(&server, 65_535).await;
    client
        .send(&[call(1, "Subscribe"), frame(DATA, END_STREAM, 1, &[])].concat())
        .await;
    server.wait_for_metric(&rejected("request_missing"), 1.0).await;
    let ended = "chitchat_streams_ended_total{reason=\"refused\",method=\"Subscribe\"}";
    server.wait_for_metric(ended, 1.0).await;
}

#[tokio::test]
async fn small_requests_have_a_small_limit() {
    let server = TestServer::start().await;
    let mut calls = server.client().await;
    let request = ListParticipantsRequest {
        room: "x".repeat(5_000),
        ..ListParticipantsRequest::default()
    };
    let refused = calls.list_participants(request).await.unwrap_err();
    assert_eq!(refused.code(), Code::OutOfRange);
    assert_eq!(
        refused.get_details_error_info().unwrap().reason,
        "REQUEST_TOO_LARGE"
    );
    assert_eq!(server.metric(&rejected("request_too_large")).await, 1.0);
}

#[tokio::test]
async fn a_text_of_64_kib_is_answered_and_the_stream_goes_on() {
    let server = TestServer::start().await;
    let mut ada = server.join("Ada").await;
    ada.say(0, &"x".repeat(64 << 10)).await;
    assert!(ada.next().await.notice.is_some());
    ada.say(0, "short").await;
    assert_eq!(ada.next_line().await.2, "short");
}

#[tokio::test]
async fn participants_are_listed_page_by_page() {
    let server = TestServer::start().await;
    let mut participants = Vec::new();
    for name in ["Cleo", "Ada", "Bob"] {
        participants.push(server.join(name).await);
    }
    let mut calls = server.client().await;
    let mut request = ListParticipantsRequest {
        page_size: 2,
        ..ListParticipantsRequest::default()
    };
    let page = calls
        .list_participants(request.clone())
        .await
        .unwrap()
        .into_inner();
    let names = |page: &chitchat::proto::ListParticipantsResponse| -> Vec<String> {
        page.participants.iter().map(|one| one.name.clone()).collect()
    };
    assert_eq!(names(&page), ["Cleo", "Ada"]);
    // Whoever joins or leaves in the meantime does not move the others between the pages.
    drop(participants.remove(0));
    server.join("Dora").await;
    request.page_token = page.next_page_token;
    let page = calls
        .list_participants(request.clone())
        .await
        .unwrap()
        .into_inner();
    assert_eq!(names(&page)[0], "Bob");
    for invalid in ["x", "0", "99999999999"] {
        request.page_token = invalid.into();
        let refused = calls.list_participants(request.clone()).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument);
    }
}
