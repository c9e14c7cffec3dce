//! The client library while connections break, servers restart and sessions expire.
// Helpers of tests panic as tests do.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

mod fake_server;
mod process;
mod proxy;

use std::net::SocketAddr;
use std::time::Duration;

use chitchat::client::{
    ClientError, ConnectOptions, Connection, Event, Gap, History, HistoryQuery, JoinOptions, Publisher,
    RetryPolicy, ServerAddress, Session, StartPosition, Subscription, Token,
};
use chitchat::proto::chat_service_client::ChatServiceClient;
use chitchat::proto::{EventType, JoinMsgLeave, ListParticipantsRequest, ServerMessage};
use fake_server::{FakeServer, status};
use process::{FREE_PORT, TIMEOUT, serve, serve_at};
use proxy::Proxy;
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use tokio::time::timeout;
use tokio_stream::StreamExt as _;
use tonic::Code;

fn address(socket: SocketAddr) -> ServerAddress {
    socket.to_string().parse().unwrap()
}

/// Short delays, so that tests with many cuts are fast.
fn quick() -> RetryPolicy {
    RetryPolicy {
        base_delay: Duration::from_millis(1),
        max_delay: Duration::from_millis(20),
        patience: TIMEOUT,
    }
}

async fn join(server: SocketAddr, retry: RetryPolicy) -> Session {
    Session::join(
        &address(server),
        &ConnectOptions::default(),
        retry,
        JoinOptions::new("Ada").room("tea"),
    )
    .await
    .unwrap()
}

async fn next(session: &mut Session) -> Result<Option<Event>, ClientError> {
    timeout(TIMEOUT, session.try_next())
        .await
        .expect("there is an event")
}

/// The next event of the room, across reconnects.
async fn next_message(session: &mut Session) -> ServerMessage {
    loop {
        match next(session).await.unwrap().unwrap() {
            Event::Message(message) if message.sequence > 0 => return *message,
            Event::Gap(gap) => panic!("{gap}"),
            _ => {}
        }
    }
}

/// Waits for the next resumption, and returns which events were missed.
async fn resumed(session: &mut Session) -> Option<Gap> {
    loop {
        if let Event::Resumed { recovered } = next(session).await.unwrap().unwrap() {
            if recovered {
                return None;
            }
            let Event::Gap(gap) = next(session).await.unwrap().unwrap() else {
                panic!("the missed events are not named");
            };
            return Some(gap);
        }
    }
}

/// A participant that has joined a fake server through a proxy.
async fn joined_through_proxy(retry: RetryPolicy) -> (FakeServer, Proxy, Session) {
    let server = FakeServer::start().await;
    let proxy = Proxy::start(server.address).await;
    let mut ada = join(proxy.address, retry).await;
    next_message(&mut ada).await;
    (server, proxy, ada)
}

/// The complete log of the room.
async fn log(server: SocketAddr) -> Vec<ServerMessage> {
    let connection = Connection::open(&address(server), &ConnectOptions::default())
        .await
        .unwrap();
    let everything = HistoryQuery {
        limit: u64::MAX,
        after: None,
        before: None,
    };
    let mut history = History::open(&connection, "tea", everything).await.unwrap();
    let mut log = Vec::new();
    while let Some(event) = history.try_next().await.unwrap() {
        let Event::Message(message) = event else {
            panic!("{event:?}");
        };
        log.push(*message);
    }
    log
}

async fn publisher(server: SocketAddr) -> Publisher {
    let options = ConnectOptions::default();
    Publisher::open(&address(server), &options, quick(), "Somebody", "tea")
        .await
        .unwrap()
}

/// A participant that records what it sends and receives.
struct Recorder {
    ada: Session,
    seen: Vec<ServerMessage>,
    sent: Vec<String>,
    resumptions: u32,
}

impl Recorder {
    async fn join(server: SocketAddr) -> Self {
        let mut ada = join(server, quick()).await;
        let seen = vec![next_message(&mut ada).await];
        Self {
            ada,
            seen,
            sent: Vec::new(),
            resumptions: 0,
        }
    }

    fn say(&mut self) {
        let text = format!("text {}", self.sent.len());
        self.ada.send(text.as_str()).unwrap();
        self.sent.push(text);
    }

    async fn receive(&mut self) {
        match next(&mut self.ada).await.unwrap().unwrap() {
            Event::Message(message) if message.sequence > 0 => self.seen.push(*message),
            Event::Resumed { recovered } => {
                assert!(recovered);
                self.resumptions += 1;
            }
            Event::Gap(gap) => panic!("{gap}"),
            Event::Message(_) | Event::Reconnecting { .. } => {}
        }
    }

    /// Receives everything up to a last message of another participant, and compares it with the log.
    async fn check(mut self, server: SocketAddr) {
        while self.ada.unacknowledged() > 0 {
            self.receive().await;
        }
        publisher(server).await.publish("the end").await.unwrap();
        while self.seen.last().unwrap().msg_stream != "the end" {
            self.receive().await;
        }
        assert_eq!(self.seen, log(server).await);
        let messages = |event: &&ServerMessage| event.r#type() == EventType::Message;
        let own: Vec<String> = self
            .seen
            .iter()
            .filter(messages)
            .filter(|event| event.sender_name == "Ada")
            .map(|event| event.msg_stream.clone())
            .collect();
        assert_eq!(own, self.sent);
        // Within the grace period there are no LEAVE and JOIN events.
        assert_eq!(self.seen.len() - self.seen.iter().filter(messages).count(), 1);
        assert!(
            self.seen
                .is_sorted_by(|before, after| before.timestamp < after.timestamp)
        );

        self.ada.leave();
        while next(&mut self.ada).await.unwrap().is_some() {}
        assert_eq!(log(server).await.last().unwrap().r#type(), EventType::Leave);
    }
}

/// Cuts the connection of a participant fifty times.
async fn cut_a_participant(server: SocketAddr) {
    const TEXTS: usize = 600;
    let seed = rand::random();
    println!("seed {seed}");
    let mut rng = StdRng::seed_from_u64(seed);
    let proxy = Proxy::start(server).await;
    let mut recorder = Recorder::join(proxy.address).await;
    let mut publisher = publisher(server).await;
    proxy.cut_after((0..50).map(|_| rng.random_range(0..4_000)));
    while recorder.sent.len() < TEXTS || proxy.cuts() < 50 {
        if recorder.ada.unacknowledged() < 20 {
            recorder.say();
            if rng.random_bool(0.3) {
                publisher.publish("in between").await.unwrap();
            }
        } else {
            recorder.receive().await;
        }
    }
    assert!(recorder.resumptions > 10, "{}", recorder.resumptions);
    recorder.check(server).await;
}

/// Cuts the connection of a reader fifty times.
async fn cut_a_reader(server: SocketAddr) {
    let seed = rand::random();
    println!("seed {seed}");
    let mut rng = StdRng::seed_from_u64(seed);
    let proxy = Proxy::start(server).await;
    let mut ada = join(server, quick()).await;
    next_message(&mut ada).await;
    let options = ConnectOptions::default();
    let mut reader = Subscription::open(
        &address(proxy.address),
        &options,
        quick(),
        "tea",
        StartPosition::Now,
    )
    .await
    .unwrap();
    proxy.cut_after((0..50).map(|_| rng.random_range(0..4_000)));
    let mut seen = Vec::new();
    while proxy.cuts() < 50 {
        ada.send("next").unwrap();
        next_message(&mut ada).await;
        let before = seen.len();
        while seen.len() == before {
            match timeout(TIMEOUT, reader.try_next())
                .await
                .unwrap()
                .unwrap()
                .unwrap()
            {
                Event::Message(message) if message.sequence > 0 => seen.push(*message),
                Event::Gap(gap) => panic!("{gap}"),
                Event::Resumed { recovered } => assert!(recovered),
                Event::Message(_) | Event::Reconnecting { .. } => {}
            }
        }
    }
    assert_eq!(seen, log(server).await[1..]);
}

#[tokio::test]
async fn a_participant_whose_connection_is_cut_fifty_times_receives_every_event_once() {
    let server = serve(&[]);
    cut_a_participant(server.address).await;
}

#[tokio::test]
async fn a_reader_whose_connection_is_cut_fifty_times_receives_every_event_once() {
    let server = serve(&[]);
    cut_a_reader(server.address).await;
}

#[tokio::test]
async fn the_fake_server_loses_and_repeats_nothing_either() {
    let server = FakeServer::start().await;
    cut_a_participant(server.address).await;
    let server = FakeServer::start().await;
    cut_a_reader(server.address).await;
}

#[tokio::test]
async fn a_participant_receives_every_event_once_while_the_server_is_killed_and_restarted() {
    let directory = tempfile::tempdir().unwrap();
    let flags = ["--data-dir", directory.path().to_str().unwrap()];
    let mut server = serve_at(FREE_PORT, &flags);
    let address = server.address;
    let mut recorder = Recorder::join(address).await;
    for round in 1..=5 {
        for _ in 0..100 {
            recorder.say();
        }
        // Kill the server while some of them are in flight.
        while recorder.ada.unacknowledged() > 60 {
            recorder.receive().await;
        }
        drop(server);
        server = serve_at(address, &flags);
        while recorder.resumptions < round {
            recorder.receive().await;
        }
        while recorder.ada.unacknowledged() > 50 {
            recorder.receive().await;
        }
    }
    recorder.check(address).await;
}

#[tokio::test]
async fn a_connection_lost_for_a_while_causes_no_leave_or_join() {
    let (server, proxy, mut ada) = joined_through_proxy(quick()).await;
    proxy.disconnect();
    let Some(Event::Reconnecting { attempt: 1, .. }) = next(&mut ada).await.unwrap() else {
        panic!("the lost connection is not reported");
    };
    // Messages sent meanwhile are delivered later.
    ada.send("one").unwrap();
    server.say("tea", "meanwhile");
    ada.send("two").unwrap();
    for number in 2..5 {
        let Some(Event::Reconnecting { attempt, .. }) = next(&mut ada).await.unwrap() else {
            panic!("no further attempt is reported");
        };
        assert_eq!(attempt, number);
    }
    proxy.allow();
    let texts = [
        next_message(&mut ada).await.msg_stream,
        next_message(&mut ada).await.msg_stream,
        next_message(&mut ada).await.msg_stream,
    ];
    assert_eq!(texts, ["meanwhile", "one", "two"]);
    assert_eq!(ada.unacknowledged(), 0);
}

#[tokio::test]
async fn a_client_reconnects_to_a_draining_server() {
    let server = FakeServer::start().await;
    let mut ada = join(server.address, quick()).await;
    next_message(&mut ada).await;
    server.drain();
    let Some(Event::Reconnecting { cause, delay, .. }) = next(&mut ada).await.unwrap() else {
        panic!("the notice is passed to the user");
    };
    assert!(matches!(cause, ClientError::Unavailable { .. }), "{cause}");
    assert!(delay >= Duration::from_millis(1));
    assert_eq!(resumed(&mut ada).await, None);
    ada.send("back").unwrap();
    assert_eq!(next_message(&mut ada).await.msg_stream, "back");
}

/// A participant whose session expires while it cannot reconnect.
async fn expired() -> (FakeServer, Proxy, Session) {
    let (server, proxy, mut ada) = joined_through_proxy(quick()).await;
    proxy.disconnect();
    next(&mut ada).await.unwrap();
    while server.connected("tea") > 0 {
        tokio::task::yield_now().await;
    }
    server.expire_grace("tea");
    (server, proxy, ada)
}

#[tokio::test]
async fn an_expired_session_is_replaced_without_a_gap() {
    let (_server, proxy, mut ada) = expired().await;
    proxy.allow();
    assert_eq!(resumed(&mut ada).await, None);
    assert_eq!(next_message(&mut ada).await.r#type(), EventType::Leave);
    assert_eq!(next_message(&mut ada).await.r#type(), EventType::Join);
}

#[tokio::test]
async fn a_client_waits_while_an_earlier_session_holds_its_name() {
    let (server, proxy, mut ada) = expired().await;
    // A session whose token is not known, as when the response to a JOIN was lost.
    let mut other = join(server.address, quick()).await;
    proxy.allow();
    loop {
        if let Some(Event::Reconnecting { cause, .. }) = next(&mut ada).await.unwrap()
            && let ClientError::Rejected(rejection) = cause
        {
            assert_eq!(rejection.reason, "NAME_TAKEN");
            break;
        }
    }
    other.leave();
    while next(&mut other).await.unwrap().is_some() {}
    assert_eq!(resumed(&mut ada).await, None);
    let mut seen = Vec::new();
    while seen.len() < 4 {
        seen.push(next_message(&mut ada).await.r#type());
    }
    assert_eq!(
        seen,
        [
            EventType::Leave,
            EventType::Join,
            EventType::Leave,
            EventType::Join
        ]
    );
}

#[tokio::test]
async fn events_that_are_not_retained_are_reported_as_a_gap() {
    let (server, proxy, mut ada) = joined_through_proxy(quick()).await;
    proxy.disconnect();
    next(&mut ada).await.unwrap();
    for _ in 0..5 {
        server.say("tea", "missed");
    }
    server.retain("tea", 2);
    proxy.allow();
    assert_eq!(resumed(&mut ada).await, Some(Gap::Expired { first: 2, last: 6 }));

    proxy.disconnect();
    next(&mut ada).await.unwrap();
    server.lose_logs();
    proxy.allow();
    assert_eq!(resumed(&mut ada).await, Some(Gap::NewEpoch { seen: 6, after: 0 }));
    let joined = next_message(&mut ada).await;
    assert_eq!((joined.sequence, joined.r#type()), (1, EventType::Join));
}

#[tokio::test]
async fn a_reader_continues_with_the_first_retained_event() {
    let server = FakeServer::start().await;
    server.say("tea", "one");
    let target = address(server.address);
    let options = ConnectOptions::default();
    let mut reader = Subscription::open(&target, &options, quick(), "tea", StartPosition::Last(9))
        .await
        .unwrap();
    let mut next = async || {
        timeout(TIMEOUT, reader.try_next())
            .await
            .unwrap()
            .unwrap()
            .unwrap()
    };
    assert!(matches!(next().await, Event::Message(message) if message.msg_stream == "one"));
    server.drain();
    for _ in 0..5 {
        server.say("tea", "missed");
    }
    server.retain("tea", 2);
    let mut gaps = Vec::new();
    let mut texts = Vec::new();
    server.say("tea", "end");
    while texts.last().is_none_or(|text| text != "end") {
        match next().await {
            Event::Message(message) => texts.push(message.msg_stream),
            Event::Gap(gap) => gaps.push(gap),
            _ => {}
        }
    }
    // The reader may have received some events before they were discarded.
    let received = texts.len() as u64 - 3;
    assert_eq!(
        gaps,
        [Gap::Expired {
            first: 2 + received,
            last: 4
        }]
    );
}

#[tokio::test]
async fn a_session_that_was_taken_over_does_not_reconnect() {
    let server = FakeServer::start().await;
    let mut ada = join(server.address, quick()).await;
    next_message(&mut ada).await;
    let uri = format!("http://{}", server.address);
    let channel = tonic::transport::Endpoint::try_from(uri)
        .unwrap()
        .connect()
        .await
        .unwrap();
    let again = JoinMsgLeave {
        client_name: "Ada".into(),
        room: "tea".into(),
        session_token: "token 1".into(),
        ..JoinMsgLeave::default()
    };
    let endless = tokio_stream::StreamExt::chain(tokio_stream::once(again), tokio_stream::pending());
    let _stream = ChatServiceClient::new(channel).chat(endless).await.unwrap();
    let error = next(&mut ada).await.unwrap_err();
    assert!(matches!(error, ClientError::TakenOver { .. }), "{error:?}");
    assert!(matches!(next(&mut ada).await, Ok(None)));
    assert!(matches!(ada.send("too late"), Err(ClientError::Closed)));
}

#[tokio::test]
async fn reconnecting_ends_after_the_patience() {
    let retry = RetryPolicy {
        patience: Duration::from_millis(100),
        ..quick()
    };
    let (_server, proxy, mut ada) = joined_through_proxy(retry).await;
    ada.send("one").unwrap();
    proxy.disconnect();
    let error = loop {
        match next(&mut ada).await {
            Ok(Some(_)) => {}
            Ok(None) => panic!("left"),
            Err(error) => break error,
        }
    };
    assert!(error.is_transient(), "{error:?}");
    assert!(matches!(next(&mut ada).await, Ok(None)));
}

#[tokio::test]
async fn a_client_can_leave_without_a_connection() {
    let (_server, proxy, mut ada) = joined_through_proxy(quick()).await;
    proxy.disconnect();
    next(&mut ada).await.unwrap();
    ada.leave();
    assert!(next(&mut ada).await.unwrap().is_none());
}

#[tokio::test]
async fn a_message_whose_response_is_lost_is_broadcast_once() {
    let server = FakeServer::start().await;
    let options = ConnectOptions::default();
    let mut publisher = Publisher::open(&address(server.address), &options, quick(), "Ada", "tea")
        .await
        .unwrap();
    server.lose_responses(3);
    let posted = publisher.publish("once").await.unwrap();
    assert!(posted.repeated);
    let next = publisher.publish("next").await.unwrap();
    assert!(!next.repeated);
    assert_eq!(server.log("tea"), [posted.broadcast, next.broadcast]);
    let Err(ClientError::Rejected(rejection)) = publisher.publish(&"x".repeat(101)).await else {
        panic!("not rejected");
    };
    assert_eq!(rejection.reason, "MESSAGE_TOO_LONG");
}

#[tokio::test]
async fn a_message_that_has_to_wait_is_sent_again_on_the_same_connection() {
    let server = FakeServer::start().await;
    let mut publisher = publisher(server.address).await;
    let too_fast = || {
        let delay = Some(Duration::from_millis(1));
        status(Code::ResourceExhausted, "TOO_FAST", "too fast", delay)
    };
    server.reject_sends([too_fast(), too_fast(), too_fast()]);
    let throttled = publisher.throttled();
    publisher.publish("once").await.unwrap();
    assert!(throttled.has_changed().unwrap() && !*throttled.borrow());
    assert_eq!((server.connections(), server.log("tea").len()), (1, 1));
}

#[tokio::test]
async fn a_publisher_reads_an_expired_token_again() {
    let server = FakeServer::start().await;
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("token");
    std::fs::write(&file, "old").unwrap();
    let options = ConnectOptions {
        token: Some(Token::File(file.clone())),
        ..ConnectOptions::default()
    };
    let mut publisher = Publisher::open(&address(server.address), &options, quick(), "Ada", "tea")
        .await
        .unwrap();
    publisher.publish("before").await.unwrap();
    std::fs::write(&file, "new").unwrap();
    let expired = || {
        status(
            Code::Unauthenticated,
            "TOKEN_EXPIRED",
            "the token has expired",
            None,
        )
    };
    server.reject_sends([expired()]);
    publisher.publish("after").await.unwrap();
    assert_eq!(
        server.authorizations(),
        ["Bearer old", "Bearer old", "Bearer new"]
    );

    // It is not renewed.
    server.reject_sends([expired(), expired()]);
    let failed = publisher.publish("never").await;
    assert!(matches!(failed, Err(ClientError::Rejected(rejection)) if rejection.reason == "TOKEN_EXPIRED"));
}

#[tokio::test]
async fn a_publisher_continues_in_a_log_that_replaces_one_with_a_later_clock() {
    let server = FakeServer::start().await;
    for _ in 0..100 {
        server.say("tea", "hi");
    }
    let mut publisher = publisher(server.address).await;
    assert!(publisher.publish("before").await.unwrap().broadcast.timestamp > 100);
    let too_far_ahead = || {
        let text = "the timestamp is too far ahead";
        status(Code::InvalidArgument, "TIMESTAMP_OUT_OF_RANGE", text, None)
    };
    server.lose_logs();
    server.reject_sends([too_far_ahead()]);
    assert!(publisher.publish("after").await.unwrap().broadcast.timestamp < 10);

    server.reject_sends([too_far_ahead(), too_far_ahead()]);
    let failed = publisher.publish("never").await;
    assert!(matches!(failed, Err(ClientError::Rejected(_))), "{failed:?}");
}

#[tokio::test]
async fn a_missing_room_is_reported() {
    let server = FakeServer::start().await;
    let target = address(server.address);
    let options = ConnectOptions::default();
    for start in [StartPosition::Now, StartPosition::Last(3)] {
        let missing = Subscription::open(&target, &options, quick(), "nowhere", start).await;
        assert!(matches!(missing, Err(ClientError::Rejected(_))));
    }
    let request = ListParticipantsRequest {
        room: "nowhere".into(),
        ..ListParticipantsRequest::default()
    };
    let connection = Connection::open(&target, &options).await.unwrap();
    assert!(matches!(
        connection.list_participants(request).await,
        Err(ClientError::Rejected(_))
    ));
}
