//! `chitchat diagram`: draws who said what to whom at which Lamport time.

mod conversation;
mod log_file;
mod mermaid;
mod shiviz;
mod svg;

use std::collections::BTreeSet;
use std::io::{self, ErrorKind, Write as _};
use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::client_args::{ConnectArgs, RoomArgs};
use super::parse::integer;
use super::stderr::note;
use super::{Failure, client_runtime, who};
use crate::client::{Connection, escape};
use crate::proto::get_history_request::Page;
use crate::proto::{GetHistoryRequest, ServerMessage};
use conversation::{Conversation, Record, Source};
use log_file::MAX_RECORDS;

/// How many of the newest events are drawn unless others are selected: what is legible on one page.
const DEFAULT_LAST: usize = 60;
/// The most clients that are drawn.
const MAX_CLIENTS: usize = 64;
/// The most events of a room that are read from the server.
const MAX_EVENTS: usize = 10_000;
/// The largest page that the server returns.
const PAGE_LEN: u32 = 1_000;

/// Draw who said what to whom, at which Lamport time
///
/// Draws the newest events of a room from the server's log, or the conversation in saved logs. A log that a client has saved with
/// `chitchat chat --json` also has what the server refused, and what the client had received when it sent something: only with
/// such logs are the causal relations exact, instead of assumed.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  chitchat diagram > conversation.mmd                     the lobby as a Mermaid sequence diagram
  chitchat diagram tea --format svg --last 20 > tea.svg   a space-time diagram
  chitchat diagram --format shiviz --log alex.jsonl --log aske.jsonl > conversation.log")]
pub(super) struct DiagramCommand {
    #[command(flatten)]
    room: RoomArgs,
    /// What to draw
    #[arg(long, value_enum, default_value_t = Format::Mermaid)]
    format: Format,
    /// Draw from this file, the output of a command with --json, instead of asking the server; may be repeated
    #[arg(long, value_name = "FILE")]
    log: Vec<PathBuf>,
    /// Draw events from this Lamport time on
    #[arg(long, value_name = "L", value_parser = integer::<i64>)]
    from: Option<i64>,
    /// Draw events up to this Lamport time
    #[arg(long, value_name = "L", value_parser = integer::<i64>)]
    to: Option<i64>,
    /// Draw at most this many events, the newest [default: 60 without --from]
    #[arg(short = 'n', long, value_name = "N", value_parser = integer::<usize>)]
    last: Option<usize>,
    #[command(flatten)]
    connect: ConnectArgs,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// A sequence diagram for Mermaid, which GitHub and GitLab show in Markdown
    Mermaid,
    /// A space-time diagram as a standalone SVG file
    Svg,
    /// A log with vector clocks for ShiViz; needs the logs of the clients
    Shiviz,
}

impl DiagramCommand {
    pub(super) fn run(self) -> Result<(), Failure> {
        let source = if self.log.is_empty() {
            if self.format == Format::Shiviz {
                return Err(Failure::Usage(
                    "--format shiviz needs the logs of the clients: give each with --log".to_owned(),
                ));
            }
            client_runtime::run(self.ask_server())?
        } else {
            self.read_logs()?
        };
        let mut conversation = Conversation::new(&source);
        let from = self.from.unwrap_or(i64::MIN);
        let to = self.to.unwrap_or(i64::MAX);
        let left_out = conversation.narrow(from, to, self.last(), MAX_CLIENTS);
        if left_out > 0 {
            note(format_args!(
                "{left_out} clients are not shown; the limit is {MAX_CLIENTS}"
            ));
        }
        let drawn = match self.format {
            Format::Mermaid => mermaid::draw(&conversation),
            Format::Svg => svg::draw(&conversation, &self.title(&conversation)),
            Format::Shiviz => shiviz::write(&conversation),
        };
        match io::stdout().write_all(drawn.as_bytes()) {
            Err(error) if error.kind() != ErrorKind::BrokenPipe => {
                Err(Failure::Io(format!("cannot write the output: {error}")))
            }
            _ => Ok(()),
        }
    }

    fn last(&self) -> usize {
        self.last.unwrap_or(if self.from.is_some() {
            usize::MAX
        } else {
            DEFAULT_LAST
        })
    }

    fn title(&self, conversation: &Conversation) -> String {
        let room = self.room.room();
        match conversation.steps.as_slice() {
            [] => format!("Room {room}"),
            [first, .., last] => format!("Room {room}, L={} to L={}", first.time, last.time),
            [only] => format!("Room {room}, L={}", only.time),
        }
    }

    fn read_logs(&self) -> Result<Source, Failure> {
        let room = self.room.room().as_str();
        let mut rooms = BTreeSet::new();
        let mut logs: Vec<Vec<Record>> = Vec::new();
        let mut remaining = MAX_RECORDS;
        for path in &self.log {
            let records = log_file::read(path, remaining)?;
            remaining -= records.len();
            let mut log = Vec::new();
            for (of, record) in records {
                if of == room {
                    log.push(record);
                }
                rooms.insert(of);
            }
            logs.push(log);
        }
        if logs.iter().all(Vec::is_empty) {
            let rooms: Vec<_> = rooms.iter().take(10).map(|room| escape::name(room)).collect();
            return Err(Failure::NotFound(format!(
                "the logs have nothing of the room {room}; they have: {}",
                rooms.join(", ")
            )));
        }
        Ok(Source {
            logs,
            ..Source::default()
        })
    }

    async fn ask_server(&self) -> Result<Source, Failure> {
        let connection = self.connect.connect().await?;
        let room = self.room.room().as_str();
        let participants = who::list(&connection, room).await?;
        let events = self.read_events(&connection, room).await?;
        Ok(Source {
            events,
            participants,
            ..Source::default()
        })
    }

    /// Reads the events from `--from` on, or the last ones up to `--to`, and all later ones, which tell who was there.
    async fn read_events(&self, connection: &Connection, room: &str) -> Result<Vec<ServerMessage>, Failure> {
        let to = self.to.unwrap_or(i64::MAX);
        let mut events: Vec<ServerMessage> = Vec::new();
        let mut page = None;
        loop {
            let request = GetHistoryRequest {
                room: room.to_owned(),
                page,
                limit: PAGE_LEN,
            };
            let response = connection.get_history(request).await?;
            let Some(first) = response
                .messages
                .first()
                .map(|first| (first.sequence, first.timestamp))
            else {
                break;
            };
            if events.first().is_some_and(|next| next.epoch != response.epoch) {
                break;
            }
            events.splice(0..0, response.messages);
            let drawn = events.iter().filter(|event| event.timestamp <= to).count();
            let (sequence, time) = first;
            if sequence <= 1 || self.from.is_some_and(|from| time < from) || drawn >= self.last() {
                break;
            }
            if events.len() >= MAX_EVENTS {
                note(format_args!(
                    "older events than the newest {} are not read",
                    events.len()
                ));
                break;
            }
            page = Some(Page::BeforeSequence(sequence));
        }
        Ok(events)
    }
}
