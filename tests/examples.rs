//! The examples, each against a real server in this process.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

#[allow(dead_code, unreachable_pub)]
#[path = "../examples/echo_bot.rs"]
mod echo_bot;
#[allow(dead_code, unreachable_pub)]
#[path = "../examples/history_export.rs"]
mod history_export;
#[allow(dead_code, unreachable_pub)]
#[path = "../examples/stdin_bridge.rs"]
mod stdin_bridge;

use std::time::Duration;

use chitchat::client::{
    ConnectOptions, Event, JoinOptions, RetryPolicy, ServerAddress, Session, StartPosition, Subscription,
};
use chitchat::cmd::serve::Server;
use chitchat::config::{Config, StoreOptions};
use chitchat::proto::{EventType, ServerMessage};
use tokio::sync::oneshot;
use tokio::time::timeout;
use tokio_stream::{Stream, StreamExt as _};

/// Upper bound for every wait.
const TIMEOUT: Duration = Duration::from_secs(20);

async fn server() -> ServerAddress {
    let mut config = Config::default();
    config.listen.set_port(0);
    config.admin.set_port(0);
    config.store = StoreOptions::Memory;
    let server = Server::bind(config).await.unwrap();
    let address = server.local_addr().to_string().parse().unwrap();
    tokio::spawn(server.run(std::future::pending()));
    address
}

async fn join(server: &ServerAddress, name: &str) -> Session {
    let join = JoinOptions::new(name).room("tea");
    let options = ConnectOptions::default();
    Session::join(server, &options, RetryPolicy::default(), join)
        .await
        .unwrap()
}

/// The next message of this type from this sender.
async fn next_from<S, E>(stream: &mut S, sender: &str, kind: EventType) -> ServerMessage
where
    S: Stream<Item = Result<Event, E>> + Unpin,
    E: std::fmt::Debug,
{
    let search = async {
        loop {
            if let Event::Message(message) = stream.next().await.unwrap().unwrap()
                && message.sender_name == sender
                && message.r#type() == kind
            {
                return *message;
            }
        }
    };
    timeout(TIMEOUT, search).await.unwrap()
}

#[tokio::test]
async fn the_echo_bot_repeats_messages_of_others_and_leaves() {
    let server = server().await;
    let mut ada = join(&server, "Ada").await;
    let (stop, stopped) = oneshot::channel::<()>();
    let bot = async {
        echo_bot::run(&server, "tea", async { drop(stopped.await) })
            .await
            .unwrap();
    };
    let conversation = async {
        next_from(&mut ada, "Echo", EventType::Join).await;
        ada.send("Hello?").unwrap();
        assert_eq!(
            next_from(&mut ada, "Echo", EventType::Message).await.msg_stream,
            "Hello?"
        );
        stop.send(()).unwrap();
        next_from(&mut ada, "Echo", EventType::Leave).await;
    };
    timeout(TIMEOUT, async { tokio::join!(bot, conversation) })
        .await
        .unwrap();
}

#[tokio::test]
async fn the_stdin_bridge_posts_each_line_in_order() {
    let server = server().await;
    let input: &[u8] = b"first\n\nsecond\n";
    stdin_bridge::run(&server, "tea", "Pipe", input).await.unwrap();
    let mut events = Subscription::open(
        &server,
        &ConnectOptions::default(),
        RetryPolicy::default(),
        "tea",
        StartPosition::Last(10),
    )
    .await
    .unwrap();
    for text in ["first", "second"] {
        assert_eq!(
            next_from(&mut events, "Pipe", EventType::Message)
                .await
                .msg_stream,
            text
        );
    }
}

#[tokio::test]
async fn the_history_export_writes_every_message_in_order() {
    let server = server().await;
    let input: String = (0..120).map(|number| format!("line {number}\n")).collect();
    stdin_bridge::run(&server, "tea", "Pipe", input.as_bytes())
        .await
        .unwrap();
    let mut output = Vec::new();
    history_export::run(&server, "tea", &mut output).await.unwrap();
    let output = String::from_utf8(output).unwrap();
    let texts: Vec<&str> = output
        .lines()
        .map(|line| line.rsplit('\t').next().unwrap())
        .collect();
    let expected: Vec<String> = (0..120).map(|number| format!("line {number}")).collect();
    assert_eq!(texts, expected);
    assert!(output.starts_with("1\t"), "{output}");
}
