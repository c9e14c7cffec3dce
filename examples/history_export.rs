//! Exports the retained messages of a room as tab-separated values: sequence number, Lamport time, sender and text.
//!
//! ```sh
//! cargo run --example history_export -- 127.0.0.1:50052 tea > tea.tsv
//! ```

use std::error::Error;
use std::io::Write;

use chitchat::client::{ConnectOptions, Connection, Event, History, HistoryQuery, ServerAddress, escape};
use chitchat::proto::EventType;
use tokio_stream::StreamExt as _;

/// Writes the messages of `room` to `output`, oldest first. The log is read page by page, so it is never in memory as a
/// whole.
pub async fn run(server: &ServerAddress, room: &str, mut output: impl Write) -> Result<(), Box<dyn Error>> {
    let connection = Connection::open(server, &ConnectOptions::default()).await?;
    let query = HistoryQuery {
        limit: u64::MAX,
        after: Some(0),
        before: None,
    };
    let mut history = History::open(&connection, room, query).await?;
    while let Some(event) = history.try_next().await? {
        match event {
            Event::Message(message) if message.r#type() == EventType::Message => writeln!(
                output,
                "{}\t{}\t{}\t{}",
                message.sequence,
                message.timestamp,
                escape::name(&message.sender_name),
                escape::text(&message.msg_stream)
            )?,
            // The server no longer retains these events.
            Event::Gap(gap) => eprintln!("{gap}"),
            _ => {}
        }
    }
    Ok(output.flush()?)
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let server = arguments.next().unwrap_or_else(|| "127.0.0.1:50052".into());
    let room = arguments.next().unwrap_or_else(|| "lobby".into());
    run(&server.parse()?, &room, std::io::stdout().lock()).await
}
