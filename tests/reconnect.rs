//! Participants and readers whose connection breaks, again and again.
// Helpers of tests panic as tests do.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

mod hall;
mod proxy;
mod served;

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use chitchat::client::{
    ClientError, ConnectOptions, Connection, Event, Gap, History, HistoryQuery, JoinOptions, Publisher,
    RetryPolicy, ServerAddress, Session, StartPosition, Subscription,
};
use chitchat::proto::chat_service_client::ChatServiceClient;
use chitchat::proto::{EventType, JoinMsgLeave, ListParticipantsRequest, ServerMessage};
use hall::Hall;
use proxy::Proxy;
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use tokio::time::timeout;
use tokio_stream::StreamExt as _;

/// Longer than anything here takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

fn address(socket: SocketAddr) -> ServerAddress {
    socket.to_string().parse().unwrap()
}

/// Quick, so that a test of many cuts does not take long.
fn quick() -> RetryPolicy {
    RetryPolicy {
        base_delay: Duration::from_millis(1),
        max_delay: Duration::from_millis(20),
        max_elapsed: PATIENCE,
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
    timeout(PATIENCE, session.try_next())
        .await
        .expect("something happens")
}

/// The next event of the room, whatever happens to the connection before.
async fn next_message(session: &mut Session) -> ServerMessage {
    loop {
        match next(session).await.unwrap().unwrap() {
            Event::Message(message) if message.sequence > 0 => return *message,
            Event::Gap(gap) => panic!("{gap}"),
            _ => {}
        }
    }
}

/// Up to and with the next resumption: what was missing, if anything.
async fn resumed(session: &mut Session) -> Option<Gap> {
    loop {
        if let Event::Resumed { recovered } = next(session).await.unwrap().unwrap() {
            if recovered {
                return None;
            }
            let Event::Gap(gap) = next(session).await.unwrap().unwrap() else {
                panic!("it is not said what is missing");
            };
            return Some(gap);
        }
    }
}

/// The whole log of the room, as the server keeps it.
async fn log(server: SocketAddr) -> Vec<ServerMessage> {
    let connection = Connection::open(&address(server), &ConnectOptions::default())
        .await
        .unwrap();
    let whole = HistoryQuery {
        limit: u64::MAX,
        after: None,
        before: None,
    };
    let mut history = History::open(&connection, "tea", whole).await.unwrap();
    let mut log = Vec::new();
    while let Some(event) = history.try_next().await.unwrap() {
        let Event::Message(message) = event else {
            panic!("{event:?}");
        };
        log.push(*message);
    }
    log
}

async fn somebody(server: SocketAddr) -> Publisher {
    let options = ConnectOptions::default();
    Publisher::open(&address(server), &options, quick(), "Somebody", "tea")
        .await
        .unwrap()
}

/// A participant who has seen all there is to see and checks it.
struct Witness {
    ada: Session,
    seen: Vec<ServerMessage>,
    said: Vec<String>,
    resumptions: u32,
}

impl Witness {
    async fn enter(server: SocketAddr) -> Self {
        let mut ada = join(server, quick()).await;
        let seen = vec![next_message(&mut ada).await];
        Self {
            ada,
            seen,
            said: Vec::new(),
            resumptions: 0,
        }
    }

    fn say(&mut self) {
        let text = format!("text {}", self.said.len());
        self.ada.send(text.as_str()).unwrap();
        self.said.push(text);
    }

    async fn hear(&mut self) {
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

    /// Hears everything up to what somebody else says last, and compares.
    async fn conclude(mut self, server: SocketAddr) {
        while self.ada.unacknowledged() > 0 {
            self.hear().await;
        }
        somebody(server).await.publish("the end").await.unwrap();
        while self.seen.last().unwrap().msg_stream != "the end" {
            self.hear().await;
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
        assert_eq!(own, self.said);
        // Within the grace nobody sees them come or go.
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

/// A participant's connection to `server` is cut at fifty points.
async fn cut_a_participant(server: SocketAddr) {
    const TEXTS: usize = 600;
    let seed = rand::random();
    println!("seed {seed}");
    let mut rng = StdRng::seed_from_u64(seed);
    let proxy = Proxy::start(server).await;
    let mut witness = Witness::enter(proxy.address).await;
    let mut somebody = somebody(server).await;
    proxy.cut_after((0..50).map(|_| rng.random_range(0..4_000)));
    while witness.said.len() < TEXTS || proxy.cuts() < 50 {
        if witness.ada.unacknowledged() < 20 {
            witness.say();
            if rng.random_bool(0.3) {
                somebody.publish("in between").await.unwrap();
            }
        } else {
            witness.hear().await;
        }
    }
    assert!(witness.resumptions > 10, "{}", witness.resumptions);
    witness.conclude(server).await;
}

/// A reader's connection to `server` is cut at fifty points.
async fn cut_a_reader(server: SocketAddr) {
    let seed = rand::random();
    println!("seed {seed}");
    let mut rng = StdRng::seed_from_u64(seed);
    let proxy = Proxy::start(server).await;
    let mut ada = join(server, quick()).await;
    next_message(&mut ada).await;
    let settings = ConnectOptions::default();
    let mut reader = Subscription::open(
        &address(proxy.address),
        &settings,
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
            match timeout(PATIENCE, reader.try_next())
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
async fn a_participant_cut_at_fifty_points_loses_and_repeats_nothing() {
    let served = served::serve(&[]);
    cut_a_participant(served.address).await;
}

#[tokio::test]
async fn a_reader_cut_at_fifty_points_loses_and_repeats_nothing() {
    let served = served::serve(&[]);
    cut_a_reader(served.address).await;
}

#[tokio::test]
async fn the_hall_of_these_tests_is_a_server_like_any_other() {
    let hall = Hall::start().await;
    cut_a_participant(hall.address).await;
    let hall = Hall::start().await;
    cut_a_reader(hall.address).await;
}

#[tokio::test]
async fn a_server_that_is_killed_and_started_again_loses_and_repeats_nothing() {
    let directory =
        Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("killed-{:032x}", rand::random::<u128>()));
    let flags = ["--data-dir", directory.to_str().unwrap()];
    let mut server = served::serve_at(([127, 0, 0, 1], 0).into(), &flags);
    let address = server.address;
    let mut witness = Witness::enter(address).await;
    for round in 1..=5 {
        for _ in 0..100 {
            witness.say();
        }
        // Somewhere among them.
        while witness.ada.unacknowledged() > 60 {
            witness.hear().await;
        }
        drop(server);
        server = served::serve_at(address, &flags);
        while witness.resumptions < round {
            witness.hear().await;
        }
        while witness.ada.unacknowledged() > 50 {
            witness.hear().await;
        }
    }
    witness.conclude(address).await;
    drop(server);
    std::fs::remove_dir_all(directory).unwrap();
}

#[tokio::test]
async fn nobody_leaves_or_joins_while_a_connection_is_lost_for_a_while() {
    let hall = Hall::start().await;
    let proxy = Proxy::start(hall.address).await;
    let mut ada = join(proxy.address, quick()).await;
    next_message(&mut ada).await;
    proxy.refuse(true);
    proxy.cut_now();
    let Some(Event::Reconnecting { attempt: 1, .. }) = next(&mut ada).await.unwrap() else {
        panic!("it is not said that the connection was lost");
    };
    // What is said meanwhile is said later.
    ada.send("one").unwrap();
    hall.say("tea", "meanwhile");
    ada.send("two").unwrap();
    for number in 2..5 {
        let Some(Event::Reconnecting { attempt, .. }) = next(&mut ada).await.unwrap() else {
            panic!("there is a connection");
        };
        assert_eq!(attempt, number);
    }
    proxy.refuse(false);
    let texts = [
        next_message(&mut ada).await.msg_stream,
        next_message(&mut ada).await.msg_stream,
        next_message(&mut ada).await.msg_stream,
    ];
    assert_eq!(texts, ["meanwhile", "one", "two"]);
    assert_eq!(ada.unacknowledged(), 0);
}

#[tokio::test]
async fn a_draining_server_is_come_back_to() {
    let hall = Hall::start().await;
    let mut ada = join(hall.address, quick()).await;
    next_message(&mut ada).await;
    hall.drain();
    let Some(Event::Reconnecting { cause, delay, .. }) = next(&mut ada).await.unwrap() else {
        panic!("the notice is for the client, not for its user");
    };
    assert!(matches!(cause, ClientError::Unavailable { .. }), "{cause}");
    assert!(delay >= Duration::from_millis(1));
    assert_eq!(resumed(&mut ada).await, None);
    ada.send("back").unwrap();
    assert_eq!(next_message(&mut ada).await.msg_stream, "back");
}

/// Somebody whose session ends while she cannot come back.
async fn expired() -> (Hall, Proxy, Session) {
    let hall = Hall::start().await;
    let proxy = Proxy::start(hall.address).await;
    let mut ada = join(proxy.address, quick()).await;
    next_message(&mut ada).await;
    proxy.refuse(true);
    proxy.cut_now();
    next(&mut ada).await.unwrap();
    while hall.connected("tea") > 0 {
        tokio::task::yield_now().await;
    }
    hall.expire("tea");
    (hall, proxy, ada)
}

#[tokio::test]
async fn a_session_that_is_over_is_begun_again_without_a_hole() {
    let (_hall, proxy, mut ada) = expired().await;
    proxy.refuse(false);
    assert_eq!(resumed(&mut ada).await, None);
    assert_eq!(next_message(&mut ada).await.r#type(), EventType::Leave);
    assert_eq!(next_message(&mut ada).await.r#type(), EventType::Join);
}

#[tokio::test]
async fn a_name_that_an_earlier_stay_holds_is_waited_for() {
    let (hall, proxy, mut ada) = expired().await;
    // As when the answer to a JOIN was lost: a stay of which nobody knows the token.
    let mut stay = join(hall.address, quick()).await;
    proxy.refuse(false);
    loop {
        if let Some(Event::Reconnecting { cause, .. }) = next(&mut ada).await.unwrap()
            && let ClientError::Rejected(rejection) = cause
        {
            assert_eq!(rejection.reason, "NAME_TAKEN");
            break;
        }
    }
    stay.leave();
    while next(&mut stay).await.unwrap().is_some() {}
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
async fn what_is_not_kept_is_named() {
    let hall = Hall::start().await;
    let proxy = Proxy::start(hall.address).await;
    let mut ada = join(proxy.address, quick()).await;
    next_message(&mut ada).await;
    proxy.refuse(true);
    proxy.cut_now();
    next(&mut ada).await.unwrap();
    for _ in 0..5 {
        hall.say("tea", "unheard");
    }
    hall.keep("tea", 2);
    proxy.refuse(false);
    assert_eq!(resumed(&mut ada).await, Some(Gap::Expired { first: 2, last: 6 }));

    proxy.refuse(true);
    proxy.cut_now();
    next(&mut ada).await.unwrap();
    hall.lose();
    proxy.refuse(false);
    assert_eq!(resumed(&mut ada).await, Some(Gap::NewEpoch { seen: 6, after: 0 }));
    let joined = next_message(&mut ada).await;
    assert_eq!((joined.sequence, joined.r#type()), (1, EventType::Join));
}

#[tokio::test]
async fn a_reader_goes_on_as_early_as_it_can() {
    let hall = Hall::start().await;
    hall.say("tea", "one");
    let server = address(hall.address);
    let settings = ConnectOptions::default();
    let mut reader = Subscription::open(&server, &settings, quick(), "tea", StartPosition::Last(9))
        .await
        .unwrap();
    let mut next = async || {
        timeout(PATIENCE, reader.try_next())
            .await
            .unwrap()
            .unwrap()
            .unwrap()
    };
    assert!(matches!(next().await, Event::Message(message) if message.msg_stream == "one"));
    hall.drain();
    for _ in 0..5 {
        hall.say("tea", "unheard");
    }
    hall.keep("tea", 2);
    let mut gaps = Vec::new();
    let mut texts = Vec::new();
    hall.say("tea", "end");
    while texts.last().is_none_or(|text| text != "end") {
        match next().await {
            Event::Message(message) => texts.push(message.msg_stream),
            Event::Gap(gap) => gaps.push(gap),
            _ => {}
        }
    }
    // It may have read on until the server let go of what it had not read.
    let heard = texts.len() as u64 - 3;
    assert_eq!(
        gaps,
        [Gap::Expired {
            first: 2 + heard,
            last: 4
        }]
    );
}

#[tokio::test]
async fn the_older_of_two_connections_does_not_come_back() {
    let hall = Hall::start().await;
    let mut ada = join(hall.address, quick()).await;
    next_message(&mut ada).await;
    let uri = format!("http://{}", hall.address);
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
async fn patience_has_an_end() {
    let hall = Hall::start().await;
    let proxy = Proxy::start(hall.address).await;
    let retry = RetryPolicy {
        max_elapsed: Duration::from_millis(100),
        ..quick()
    };
    let mut ada = join(proxy.address, retry).await;
    next_message(&mut ada).await;
    ada.send("one").unwrap();
    proxy.refuse(true);
    proxy.cut_now();
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
async fn leaving_without_a_connection_is_leaving() {
    let hall = Hall::start().await;
    let proxy = Proxy::start(hall.address).await;
    let mut ada = join(proxy.address, quick()).await;
    next_message(&mut ada).await;
    proxy.refuse(true);
    proxy.cut_now();
    next(&mut ada).await.unwrap();
    ada.leave();
    assert!(next(&mut ada).await.unwrap().is_none());
}

#[tokio::test]
async fn a_post_whose_answer_is_lost_is_broadcast_once() {
    let hall = Hall::start().await;
    let settings = ConnectOptions::default();
    let mut publisher = Publisher::open(&address(hall.address), &settings, quick(), "Ada", "tea")
        .await
        .unwrap();
    hall.lose_answers(3);
    let posted = publisher.publish("once").await.unwrap();
    assert!(posted.duplicate);
    let next = publisher.publish("next").await.unwrap();
    assert!(!next.duplicate);
    assert_eq!(hall.log("tea"), [posted.broadcast, next.broadcast]);
    let Err(ClientError::Rejected(rejection)) = publisher.publish(&"x".repeat(101)).await else {
        panic!("let through");
    };
    assert_eq!(rejection.reason, "MESSAGE_TOO_LONG");
}

#[tokio::test]
async fn what_is_not_there_is_said() {
    let hall = Hall::start().await;
    let server = address(hall.address);
    let settings = ConnectOptions::default();
    for start in [StartPosition::Now, StartPosition::Last(3)] {
        let missing = Subscription::open(&server, &settings, quick(), "nowhere", start).await;
        assert!(matches!(missing, Err(ClientError::Rejected(_))));
    }
    let request = ListParticipantsRequest {
        room: "nowhere".into(),
    };
    let connection = Connection::open(&server, &settings).await.unwrap();
    assert!(matches!(
        connection.list_participants(request).await,
        Err(ClientError::Rejected(_))
    ));
}
