//! The client library against a server that misbehaves on request.
// Helpers of tests panic as tests do.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

mod scripted;

use std::net::SocketAddr;
use std::time::Duration;

use chitchat::client::{Connection, Conversation, Error, Join, ServerAddress, Settings};
use chitchat::proto::{EventType, ServerMessage};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::time::timeout;
use tonic::Code;

fn address(socket: SocketAddr) -> ServerAddress {
    socket.to_string().parse().unwrap()
}

/// Short enough that what is expected to take that long takes no time worth mentioning.
fn impatient() -> Settings {
    Settings {
        answer_within: Duration::from_millis(200),
        keepalive_interval: Duration::from_millis(100),
        keepalive_timeout: Duration::from_millis(100),
    }
}

async fn try_join(name: &str, settings: &Settings) -> Result<Conversation, Error> {
    let server = address(scripted::serve().await);
    Connection::open(&server, settings)
        .await?
        .join(Join::new(name))
        .await
}

async fn join() -> Conversation {
    try_join("Ada", &Settings::default()).await.unwrap()
}

async fn next(conversation: &mut Conversation) -> Result<Option<ServerMessage>, Error> {
    timeout(Duration::from_secs(20), conversation.next())
        .await
        .expect("the conversation goes on or ends")
}

/// What ends the conversation after `text` was said.
async fn end_after(text: &str) -> Error {
    let mut conversation = try_join("Ada", &impatient()).await.unwrap();
    conversation.say(text).await.unwrap();
    loop {
        if let Err(error) = next(&mut conversation).await {
            return error;
        }
    }
}

#[tokio::test]
async fn a_participant_joins_speaks_and_leaves() {
    let mut conversation = join().await;
    assert!(conversation.welcome().is_some());
    let joined = next(&mut conversation).await.unwrap().unwrap();
    assert_eq!(joined.r#type(), EventType::Join);

    let message_id = conversation.say("hello").await.unwrap();
    let echo = next(&mut conversation).await.unwrap().unwrap();
    assert_eq!(echo.msg_stream, "hello");
    assert_eq!(echo.message_id, message_id.as_str());

    conversation.say("bye").await.unwrap();
    conversation.leave().await.unwrap();
    conversation.leave().await.unwrap();
    assert!(matches!(conversation.say("too late").await, Err(Error::Over)));
    assert_eq!(next(&mut conversation).await.unwrap().unwrap().msg_stream, "bye");
    assert_eq!(next(&mut conversation).await.unwrap(), None);
}

#[tokio::test]
async fn a_server_without_a_welcome_is_as_good() {
    let mut conversation = try_join(scripted::OLD, &Settings::default()).await.unwrap();
    assert!(conversation.welcome().is_none());
    let joined = next(&mut conversation).await.unwrap().unwrap();
    assert_eq!((joined.r#type(), joined.timestamp), (EventType::Join, 1));
}

#[tokio::test]
async fn absurd_times_do_not_move_the_clock() {
    let mut conversation = join().await;
    for text in ["one", "absurd", "two"] {
        conversation.say(text).await.unwrap();
        while next(&mut conversation).await.unwrap().unwrap().msg_stream != text {}
    }
    let (speaker, _listener) = conversation.into_split();
    assert!(speaker.now() < 20, "{}", speaker.now());
}

#[tokio::test]
async fn a_refused_name_is_the_servers_word() {
    let Err(Error::Refused(refusal)) = try_join(scripted::TAKEN, &Settings::default()).await else {
        panic!("let in");
    };
    assert_eq!(refusal.code, Code::AlreadyExists);
    assert_eq!(refusal.to_string(), "somebody in the room is called Taken");
}

#[tokio::test]
async fn every_way_to_end_is_told_apart() {
    assert!(matches!(end_after("end").await, Error::Ended));
    assert!(matches!(end_after("drain").await, Error::Unavailable { .. }));
    assert!(matches!(end_after("cut").await, Error::Lost(_)));
}

#[tokio::test]
async fn a_server_that_froze_is_noticed() {
    let error = end_after("freeze").await;
    assert!(matches!(error, Error::Lost(_)), "{error:?}");
}

#[tokio::test]
async fn nobody_there() {
    let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let nobody = address(socket.local_addr().unwrap());
    drop(socket);
    let error = Connection::open(&nobody, &impatient()).await.unwrap_err();
    assert!(matches!(error, Error::Unreachable { .. }));
    assert!(error.to_string().contains("onnection refused"), "{error}");
}

#[tokio::test]
async fn somebody_who_says_nothing() {
    let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mute = address(socket.local_addr().unwrap());
    let connection = Connection::open(
        &mute,
        &Settings {
            keepalive_interval: Duration::from_secs(60),
            ..impatient()
        },
    )
    .await
    .unwrap();
    let error = connection.join(Join::new("Ada")).await.unwrap_err();
    assert!(matches!(error, Error::NoAnswer { .. }), "{error:?}");
    assert!(connection.health("").await.is_err());
}

#[tokio::test]
async fn somebody_who_speaks_another_language() {
    let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let web = address(socket.local_addr().unwrap());
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = socket.accept().await.unwrap();
            let mut request = [0; 24];
            stream.read_exact(&mut request).await.unwrap();
            stream
                .write_all(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n")
                .await
                .unwrap();
        }
    });
    let connection = Connection::open(&web, &Settings::default()).await.unwrap();
    let error = connection.join(Join::new("Ada")).await.unwrap_err();
    assert!(matches!(error, Error::Unreachable { .. }), "{error:?}");
}
