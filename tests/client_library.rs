//! The client library against a server that misbehaves on request.
// Helpers of tests panic as tests do.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

mod faulty_server;

use std::net::SocketAddr;
use std::time::Duration;

use chitchat::client::{
    ClientError, ConnectOptions, Connection, Event, JoinOptions, RetryPolicy, ServerAddress, Session,
};
use chitchat::proto::{EventType, ServerMessage};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::time::timeout;
use tokio_stream::StreamExt as _;
use tonic::Code;

fn address(socket: SocketAddr) -> ServerAddress {
    socket.to_string().parse().unwrap()
}

/// Timeouts that the tests wait for.
fn impatient() -> ConnectOptions {
    ConnectOptions {
        response_timeout: Duration::from_millis(200),
        keepalive_interval: Duration::from_millis(100),
        keepalive_timeout: Duration::from_millis(100),
        ..ConnectOptions::default()
    }
}

async fn join_at(
    server: &ServerAddress,
    name: &str,
    options: &ConnectOptions,
) -> Result<Session, ClientError> {
    let never = RetryPolicy {
        patience: Duration::ZERO,
        ..RetryPolicy::default()
    };
    Session::join(server, options, never, JoinOptions::new(name)).await
}

async fn try_join(name: &str, options: &ConnectOptions) -> Result<Session, ClientError> {
    join_at(&address(faulty_server::start().await), name, options).await
}

async fn join() -> Session {
    try_join("Ada", &ConnectOptions::default()).await.unwrap()
}

async fn next(session: &mut Session) -> Result<Option<ServerMessage>, ClientError> {
    let next = timeout(Duration::from_secs(20), session.try_next())
        .await
        .expect("the session continues or ends");
    Ok(next?.map(|event| match event {
        Event::Message(message) => *message,
        other => panic!("{other:?}"),
    }))
}

/// The error that ends the session after `text` was sent.
async fn end_after(text: &str) -> ClientError {
    let mut session = try_join("Ada", &impatient()).await.unwrap();
    session.send(text).unwrap();
    loop {
        if let Err(error) = next(&mut session).await {
            return error;
        }
    }
}

#[tokio::test]
async fn a_participant_joins_speaks_and_leaves() {
    let mut session = join().await;
    assert!(session.welcome().is_some());
    let joined = next(&mut session).await.unwrap().unwrap();
    assert_eq!(joined.r#type(), EventType::Join);

    let message_id = session.send("hello").unwrap();
    let echo = next(&mut session).await.unwrap().unwrap();
    assert_eq!(echo.msg_stream, "hello");
    assert_eq!(echo.message_id, message_id.as_str());

    session.send("bye").unwrap();
    session.leave();
    session.leave();
    assert!(matches!(session.send("too late"), Err(ClientError::Closed)));
    assert_eq!(next(&mut session).await.unwrap().unwrap().msg_stream, "bye");
    assert_eq!(next(&mut session).await.unwrap(), None);
}

#[tokio::test]
async fn a_server_that_sends_no_welcome_is_supported() {
    let mut session = try_join(faulty_server::NOT_WELCOMED, &ConnectOptions::default())
        .await
        .unwrap();
    assert!(session.welcome().is_none());
    let joined = next(&mut session).await.unwrap().unwrap();
    assert_eq!((joined.r#type(), joined.timestamp), (EventType::Join, 1));
}

#[tokio::test]
async fn absurd_timestamps_do_not_advance_the_clock() {
    let mut session = join().await;
    for text in ["one", "absurd", "two"] {
        session.send(text).unwrap();
        while next(&mut session).await.unwrap().unwrap().msg_stream != text {}
    }
    assert!(session.lamport_time() < 20, "{}", session.lamport_time());
}

#[tokio::test]
async fn a_rejected_name_has_the_message_of_the_server() {
    let Err(ClientError::Rejected(rejection)) =
        try_join(faulty_server::TAKEN, &ConnectOptions::default()).await
    else {
        panic!("let in");
    };
    assert_eq!(rejection.code, Code::AlreadyExists);
    assert_eq!(rejection.to_string(), "another participant is called Taken");
}

#[tokio::test]
async fn the_ways_to_end_are_distinct_errors() {
    assert!(matches!(end_after("end").await, ClientError::StreamEnded));
    assert!(matches!(
        end_after("drain").await,
        ClientError::Unavailable { .. }
    ));
    assert!(matches!(end_after("cut").await, ClientError::ConnectionLost(_)));
}

#[tokio::test]
async fn a_frozen_server_is_detected() {
    let error = end_after("freeze").await;
    assert!(matches!(error, ClientError::ConnectionLost(_)), "{error:?}");
}

#[tokio::test]
async fn a_refused_connection_is_unreachable() {
    let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let unused = address(socket.local_addr().unwrap());
    drop(socket);
    let error = Connection::open(&unused, &impatient()).await.unwrap_err();
    assert!(matches!(error, ClientError::Unreachable { .. }));
    assert!(error.to_string().contains("onnection refused"), "{error}");
}

#[tokio::test]
async fn a_server_that_never_answers_times_out() {
    let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let silent = address(socket.local_addr().unwrap());
    let options = ConnectOptions {
        keepalive_interval: Duration::from_secs(60),
        ..impatient()
    };
    let error = join_at(&silent, "Ada", &options).await.unwrap_err();
    assert!(matches!(error, ClientError::Timeout { .. }), "{error:?}");
    let connection = Connection::open(&silent, &options).await.unwrap();
    assert!(connection.health("").await.is_err());
}

#[tokio::test]
async fn an_http1_server_is_unreachable() {
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
    let error = join_at(&web, "Ada", &ConnectOptions::default())
        .await
        .unwrap_err();
    assert!(matches!(error, ClientError::Unreachable { .. }), "{error:?}");
}
