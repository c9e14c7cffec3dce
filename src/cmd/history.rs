//! `chitchat history`: prints past events of a room.

use clap::Args;
use jiff::Timestamp;
use regex::Regex;
use tokio_stream::StreamExt as _;

use super::client_args::{ConnectArgs, RoomArgs};
use super::message_format::TimeArg;
use super::parse::integer;
use super::printer::{JsonArg, Printer};
use super::stderr::note;
use super::time_zone::point_in_time;
use super::{Failure, client_runtime};
use crate::client::{Connection, Event, History, HistoryQuery};
use crate::domain::RoomName;
use crate::proto::get_history_request::Page;
use crate::proto::{GetHistoryRequest, ServerMessage};

/// Print past events of a room
///
/// Prints the newest events, oldest first; or, with --after, the first events after a sequence number. With --since, --until or
/// --grep, only events that match are printed and counted. The second and each further line of a text begins with `  | `.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  chitchat history tea -n 20             the newest 20 events of the room tea
  chitchat history --since 2h --grep '(?i)backup' --time local
  chitchat history --after 41 --json     everything after event 41, for a program")]
pub(super) struct HistoryCommand {
    /// Print at most this many events
    #[arg(short = 'n', long, value_name = "N", default_value_t = 100, value_parser = integer::<u64>, help_heading = "Selection")]
    limit: u64,
    /// Print only events after this sequence number, the oldest of them if there are more than --limit
    #[arg(long, value_name = "SEQUENCE", value_parser = integer::<u64>, help_heading = "Selection")]
    after: Option<u64>,
    /// Print only events before this sequence number
    #[arg(long, value_name = "SEQUENCE", value_parser = integer::<u64>, help_heading = "Selection")]
    before: Option<u64>,
    /// Print only events from this time on: a duration before now like 2h, or a time like 10:30 or 2026-11-26T10:30
    #[arg(long, value_name = "TIME", value_parser = point_in_time, help_heading = "Selection")]
    since: Option<Timestamp>,
    /// Print only events before this time
    #[arg(long, value_name = "TIME", value_parser = point_in_time, help_heading = "Selection")]
    until: Option<Timestamp>,
    /// Print only events whose sender or text matches this regular expression; (?i) in front ignores case
    #[arg(long, value_name = "PATTERN", value_parser = pattern, help_heading = "Selection")]
    grep: Option<Regex>,
    #[command(flatten)]
    time: TimeArg,
    #[command(flatten)]
    room: RoomArgs,
    #[command(flatten)]
    connect: ConnectArgs,
    #[command(flatten)]
    json: JsonArg,
}

/// The most events that are held in memory until the oldest of them is found.
const MAX_MATCHES: u64 = 100_000;
/// The largest page that the server returns.
const PAGE_LEN: u32 = 1_000;

fn pattern(raw: &str) -> Result<Regex, String> {
    // The first and the last line of the error only show the pattern.
    Regex::new(raw).map_err(|error| error.to_string().lines().last().unwrap_or_default().to_owned())
}

impl HistoryCommand {
    pub(super) fn run(self) -> Result<(), Failure> {
        client_runtime::run(self.print())
    }

    async fn print(self) -> Result<(), Failure> {
        let is_filtered = self.since.is_some() || self.until.is_some() || self.grep.is_some();
        if is_filtered && self.after.is_none() && self.limit > MAX_MATCHES {
            return Err(Failure::Usage(format!(
                "--limit {}: with --since, --until or --grep the limit is at most {MAX_MATCHES}",
                self.limit
            )));
        }
        let connection = self.connect.connect().await?;
        let mut printer = Printer::with_format(&self.json, self.time.format());
        if is_filtered && self.after.is_none() {
            return self.print_newest(&connection, &mut printer).await;
        }
        let query = HistoryQuery {
            limit: if is_filtered { u64::MAX } else { self.limit },
            after: self.after,
            before: self.before,
        };
        let matches = |message: &ServerMessage| self.matches(message);
        print(
            &connection,
            self.room.room(),
            query,
            self.limit,
            matches,
            &mut printer,
        )
        .await
    }

    /// Prints the newest events that match. Reads pages from the newest backwards, so that it need not read events that are older
    /// than --since.
    async fn print_newest(&self, connection: &Connection, printer: &mut Printer) -> Result<(), Failure> {
        let limit = usize::try_from(self.limit).unwrap_or(usize::MAX);
        let mut page = self.before.map(Page::BeforeSequence);
        let mut newest_first = Vec::new();
        'pages: while newest_first.len() < limit {
            let request = GetHistoryRequest {
                room: self.room.room().as_str().to_owned(),
                page,
                limit: PAGE_LEN,
            };
            let messages = connection.get_history(request).await?.messages;
            let Some(first) = messages.first().map(|message| message.sequence) else {
                break;
            };
            for message in messages.into_iter().rev() {
                if self.since.is_some_and(|since| is_before(&message, since)) {
                    break 'pages;
                }
                if self.matches(&message) {
                    newest_first.push(message);
                    if newest_first.len() == limit {
                        break 'pages;
                    }
                }
            }
            page = Some(Page::BeforeSequence(first));
        }
        newest_first
            .iter()
            .rev()
            .try_for_each(|message| printer.message(message))
    }

    fn matches(&self, message: &ServerMessage) -> bool {
        let is_late_enough = self.since.is_none_or(|since| !is_before(message, since));
        let is_early_enough = self.until.is_none_or(|until| is_before(message, until));
        is_late_enough
            && is_early_enough
            && self
                .grep
                .as_ref()
                .is_none_or(|grep| grep.is_match(&message.sender_name) || grep.is_match(&message.msg_stream))
    }
}

/// Whether the message was broadcast before `time`. The server of the first version does not say when.
fn is_before(message: &ServerMessage, time: Timestamp) -> bool {
    let broadcast = message.broadcast_time.unwrap_or_default();
    (broadcast.seconds, broadcast.nanos) < (time.as_second(), time.subsec_nanosecond())
}

/// Prints the events that `query` selects and that match, at most `max_events` of them. Gaps are reported on stderr.
pub(super) async fn print(
    connection: &Connection,
    room: &RoomName,
    query: HistoryQuery,
    max_events: u64,
    matches: impl Fn(&ServerMessage) -> bool,
    printer: &mut Printer,
) -> Result<(), Failure> {
    let mut history = History::open(connection, room.as_str(), query).await?;
    let mut remaining = max_events;
    while remaining > 0
        && !printer.is_closed()
        && let Some(event) = history.try_next().await?
    {
        match event {
            Event::Message(message) if matches(&message) => {
                printer.message(&message)?;
                remaining -= 1;
            }
            Event::Message(_) => {}
            Event::Gap(gap) => note(gap),
            Event::Reconnecting { .. } | Event::Resumed { .. } => {}
        }
    }
    Ok(())
}
