//! The table of limits in `docs/limits.md`, made from the flags of the server and the limits in its code.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

mod process;

use std::collections::BTreeSet;
use std::fmt::Write;
use std::path::Path;
use std::{env, fs};

use chitchat::auth::MAX_TOKEN_BYTES;
use chitchat::domain::limits::{
    DEDUP_WINDOW_LEN, FIRST_ASSIGNED_ID, LAST_ASSIGNED_ID, MAX_BANS, MAX_CLOCK_AHEAD_ABOVE_SOFT_LIMIT,
    MAX_CLOCK_AHEAD_CEILING, MAX_MARKS_PER_LETTER, MAX_MESSAGE_CHARS_CEILING, MAX_MESSAGE_ID_LEN,
    MAX_NAME_CHARS, MAX_REASON_CHARS, SOFT_CLOCK_LIMIT,
};
use chitchat::proto::NoticeCode;
use chitchat::reason::Reason;
use chitchat::rpc::RateLimits;
use chitchat::telemetry::CATALOG;
use process::{CHECKOUT, serve_flags};

const BEGIN: &str =
    "<!-- Made by tests/limits.rs: change it there, then UPDATE=1 cargo test --test limits. -->\n";
const END: &str = "<!-- The end of what is made. -->\n";

/// Flags of the sections Store, Rooms and Connections that limit nothing.
const NOT_LIMITS: [&str; 6] = [
    "--data-dir",
    "--in-memory",
    "--durability",
    "--accept-loss",
    "--allow-duplicate-names",
    "--keepalive-interval",
];

/// How much is allowed.
enum Bound {
    Flag(&'static str),
    Fixed(String),
}

use Bound::{Fixed, Flag};

/// What happens beyond a limit.
enum Beyond {
    Rejected(Reason),
    /// What happens, and the metric that counts it; empty if none does.
    Other(&'static str, &'static str),
}

use Beyond::{Other, Rejected};

fn fixed(value: impl Into<String>) -> Bound {
    Fixed(value.into())
}

/// What is limited, with its reason where that is not obvious; how much is allowed; and what happens beyond it.
fn limits() -> Vec<(&'static str, Bound, Beyond)> {
    assert_eq!(SOFT_CLOCK_LIMIT, 1 << 52, "the table says so");
    vec![
        (
            "characters of a text",
            Flag("--max-message-chars"),
            Rejected(Reason::MessageTooLong),
        ),
        (
            "the value of that flag: memory is reserved for each message in transit",
            fixed(MAX_MESSAGE_CHARS_CEILING.to_string()),
            Other("no start", ""),
        ),
        (
            "how far the Lamport time of a client may be ahead of its room's",
            Flag("--max-clock-ahead"),
            Rejected(Reason::TimestampOutOfRange),
        ),
        (
            "the value of that flag",
            fixed(MAX_CLOCK_AHEAD_CEILING.to_string()),
            Other("no start", ""),
        ),
        (
            "how far it may be ahead from the Lamport time 2^52 on, so that no clock leaves its range",
            fixed(MAX_CLOCK_AHEAD_ABOVE_SOFT_LIMIT.to_string()),
            Rejected(Reason::TimestampOutOfRange),
        ),
        (
            "a name of a participant or a room",
            fixed(format!("{MAX_NAME_CHARS} characters")),
            Rejected(Reason::NameInvalid),
        ),
        (
            "combining marks on one letter of a participant's name: stacks of them cover other lines",
            fixed(MAX_MARKS_PER_LETTER.to_string()),
            Rejected(Reason::NameInvalid),
        ),
        (
            "an id that a participant chooses",
            fixed(format!(
                "any but 0 and {FIRST_ASSIGNED_ID} to {LAST_ASSIGNED_ID}, which rooms assign"
            )),
            Rejected(Reason::IdTaken),
        ),
        (
            "a message id",
            fixed(format!("{MAX_MESSAGE_ID_LEN} visible ASCII characters")),
            Rejected(Reason::MessageIdInvalid),
        ),
        (
            "message ids remembered per room",
            fixed(format!(
                "those of the newest {DEDUP_WINDOW_LEN} events, as far as they are retained; if all rooms together remember more \
                 than one share, of 48 bytes each, those that remember most forget their oldest; all rooms that only one \
                 address writes to count as one"
            )),
            Other("an older one is accepted again", ""),
        ),
        (
            "a request without a text",
            fixed("4 KiB"),
            Rejected(Reason::RequestTooLarge),
        ),
        (
            "a request with a text",
            fixed(
                "4 bytes per character of `--max-message-chars`, at least 64 KiB, and 4 KiB for its other fields",
            ),
            Rejected(Reason::RequestTooLarge),
        ),
        (
            "a page of history, rooms or participants",
            fixed("1000 entries, about 2 MiB"),
            Other("the page ends", ""),
        ),
        (
            "participants of a room",
            Flag("--max-participants"),
            Rejected(Reason::RoomFull),
        ),
        (
            "participants of a room from one address; moderators and resumed sessions are let in beyond it",
            fixed("three quarters of `--max-participants`, rounded up"),
            Rejected(Reason::RoomFull),
        ),
        (
            "bans of a room, of up to ten years",
            fixed(MAX_BANS.to_string()),
            Rejected(Reason::TooManyBans),
        ),
        (
            "decisions of moderators per second from one address, with bursts of twenty times as many: each can take a snapshot of the room",
            fixed(RateLimits::default().moderations.to_string()),
            Rejected(Reason::TooFast),
        ),
        (
            "the reason that a moderator gives",
            fixed(format!("{MAX_REASON_CHARS} characters")),
            Rejected(Reason::ModerationInvalid),
        ),
        (
            "rooms; the lobby can always be created",
            Flag("--max-rooms"),
            Rejected(Reason::TooManyRooms),
        ),
        (
            "existing rooms that one address has created since the start, so that a single one never takes all",
            Flag("--max-rooms-per-address"),
            Rejected(Reason::TooManyRoomsPerAddress),
        ),
        (
            "rooms per minute that one address creates, after as many at once as it may have",
            Flag("--new-room-rate"),
            Rejected(Reason::NewRoomsTooFast),
        ),
        (
            "joins and subscriptions per second from one address, with bursts of twenty times as many: when a server has restarted, everybody behind a proxy joins again",
            Flag("--join-rate"),
            Rejected(Reason::JoinsTooFast),
        ),
        (
            "calls per second from one address with a token that is not valid, with bursts of ten times as many; beyond it tokens are not verified, except for those that a connection uses already",
            fixed(RateLimits::default().authentication_failures.to_string()),
            Rejected(Reason::TooManyInvalidTokens),
        ),
        (
            "TLS handshakes per second from one address, after as many at once as it may have connections, at least 200",
            fixed(RateLimits::default().handshakes.to_string()),
            Other(
                "the connection is closed",
                "chitchat_connections_refused_total{reason=\"address\"}",
            ),
        ),
        (
            "messages per second of a participant (of an address with `SendMessage`), with bursts of ten times as many",
            Flag("--message-rate"),
            Rejected(Reason::TooFast),
        ),
        (
            "connections; one takes about 25 KiB, with TLS 35 KiB. The store keeps its segments open, 169 files with the default of `--retain-total-bytes`",
            Flag("--max-connections"),
            Rejected(Reason::TooManyConnections),
        ),
        (
            "connections from one address, so that a single one never takes all; raise it if all clients come through one proxy",
            Flag("--max-connections-per-address"),
            Rejected(Reason::TooManyConnections),
        ),
        (
            "streams of a connection",
            Flag("--max-streams-per-connection"),
            Other("REFUSED_STREAM of HTTP/2", ""),
        ),
        (
            "streams in all",
            fixed("two on each connection; beyond them one share, of 8 KiB each"),
            Rejected(Reason::TooManyStreams),
        ),
        (
            "how long a connection may take for the TLS handshake, and then to begin with HTTP/2",
            Flag("--handshake-timeout"),
            Other(
                "it is closed",
                "chitchat_connections_refused_total{reason=\"protocol\"}",
            ),
        ),
        (
            "how long a connection may have no stream, even if it answers PINGs",
            Flag("--idle-timeout"),
            Other("it is closed", "chitchat_connections_cut_total{reason=\"idle\"}"),
        ),
        (
            "how long the answer to a PING may take, which is sent after the silence of `--keepalive-interval`",
            Flag("--keepalive-timeout"),
            Other(
                "the connection is closed",
                "chitchat_streams_ended_total{reason=\"lost\"}",
            ),
        ),
        (
            "how long the first message of a stream may take",
            fixed("60 s"),
            Rejected(Reason::JoinTimeout),
        ),
        (
            "how long a stream with unsent data may make no progress: its client accepts neither a whole chunk, such as a batch of events, nor 64 KiB of a larger one",
            Flag("--stall-timeout"),
            Other(
                "the stream is ended, and its connection if the socket accepts nothing either",
                "chitchat_streams_ended_total{reason=\"slow\"}",
            ),
        ),
        (
            "age of a stream, give or take a tenth, so that a load balancer can distribute it anew",
            Flag("--max-stream-age"),
            Other(
                "its client is told to connect again, and resumes (one of the first version leaves the room)",
                "chitchat_streams_ended_total{reason=\"aged\"}",
            ),
        ),
        (
            "duration of a call: what its client sets in `grpc-timeout`",
            fixed("no limit by the server"),
            Other(
                "DEADLINE_EXCEEDED",
                "chitchat_streams_ended_total{reason=\"deadline\"}",
            ),
        ),
        (
            "streams whose clients do not read: the transport holds what they do not accept",
            fixed("one share in all, of 128 KiB each"),
            Other(
                "those of an address that exceeds its fair share, three quarters of what others leave, are ended after 3 to 6 s, instead of after `--stall-timeout`",
                "chitchat_streams_ended_total{reason=\"slow\"}",
            ),
        ),
        (
            "messages of more than 2 KiB in transit: received in part, of which each takes its whole length, or waiting for their room",
            fixed("4 MiB per connection, one share in all"),
            Rejected(Reason::ReceiveBudgetExceeded),
        ),
        (
            "how long the rest of such a message may take",
            fixed("60 s"),
            Rejected(Reason::RequestTimeout),
        ),
        (
            "bytes received that no request has read yet",
            fixed(
                "64 KiB per stream, one share in all, of which short ones keep the whole buffer that they are in",
            ),
            Other(
                "nothing is read from a connection that exceeds its fair share of its address's fair share, each three quarters of what the others leave, and it is closed if that takes more than 3 to 6 s; one with at most 64 KiB only if its address exceeds its share, or a sixteenth of the limit for several seconds; one that holds at most 4 KiB beside what it keeps until it ends is read from nevertheless, 32 bytes at a time, unless its table of headers keeps more than 64 KiB",
                "chitchat_connections_cut_total{reason=\"unread\"}",
            ),
        ),
        (
            "header blocks that have not ended, and those after the messages of a request",
            fixed("of the same share, 96 KiB each"),
            Other("as above", "chitchat_connections_cut_total{reason=\"unread\"}"),
        ),
        (
            "records and messages of TLS that have not ended",
            fixed("of the same share, up to 64 KiB each"),
            Other("as above", "chitchat_connections_cut_total{reason=\"unread\"}"),
        ),
        (
            "the buffers that a connection's table of headers keeps, because its client has added pseudo-headers",
            fixed("of the same share, up to 8 KiB and the frame for each"),
            Other("as above", "chitchat_connections_cut_total{reason=\"unread\"}"),
        ),
        (
            "requests whose answers the socket has not accepted, with headers that are valid or not; and the most requests of a connection at a time, if there were more than 32",
            fixed("of the same share, 2 KiB and 768 bytes each"),
            Other("as above", "chitchat_connections_cut_total{reason=\"unread\"}"),
        ),
        (
            "responses of unary calls that are not read",
            fixed("8 MiB per connection, one share in all"),
            Rejected(Reason::ResponseBudgetExceeded),
        ),
        (
            "`GetHistory`, `ListRooms`, `ListParticipants` and `ListBans` in progress, and rooms that are loaded on demand",
            fixed(
                "2 per connection; in all one share, of 8 MiB each, but at most one per processor (or two); of one address three quarters of that, rounded down, but at least one",
            ),
            Other("others wait", "chitchat_throttled_total{limit=\"queries\"}"),
        ),
        (
            "streams of server reflection",
            fixed("32, of which one address has at most 24, for a minute each"),
            Rejected(Reason::TooManyStreams),
        ),
        (
            "pages of the log that are read at a time for subscribers that lag",
            fixed("16, of one address 4; of 4 KiB at first, and up to 64 KiB as the subscriber reads on"),
            Other("others wait", "chitchat_throttled_total{limit=\"page_reads\"}"),
        ),
        (
            "pages of more than 4 KiB that such subscribers have not read",
            fixed("half of the share of the feeds, of which one address has at most three quarters"),
            Other(
                "they get pages of 4 KiB; those whose next event is larger than 10 KiB wait",
                "chitchat_throttled_total{limit=\"page_reads\"}",
            ),
        ),
        (
            "requests that wait in the mailbox of a room or to be stored",
            fixed(
                "1 MiB per room, up to 4 MiB while senders wait for their turns, of which a JOIN takes at least 2 KiB and a post at least 1 KiB; one share in all, beyond it 4 KiB per room, up to 16 KiB while senders wait",
            ),
            Other("senders wait, and are not read from", ""),
        ),
        (
            "events in memory for slow readers of a room",
            Flag("--feed-bytes"),
            Other("the reader is served from the log", "chitchat_subscribers_behind"),
        ),
        (
            "the same of all rooms, and answers that their clients do not read",
            fixed("one share"),
            Other(
                "the rooms with most of it give some back: their readers are served from the log, and streams with too many unread answers end with `FELL_BEHIND`",
                "chitchat_subscribers_behind",
            ),
        ),
        (
            "frames without data on a connection (PRIORITY, WINDOW_UPDATE, PING, SETTINGS, RST_STREAM, unknown ones)",
            fixed(
                "8192 at once, 512 per second, and one per 16 bytes that the server sends; a PING or SETTINGS counts as two",
            ),
            Other(
                "the connection is closed",
                "chitchat_connections_cut_total{reason=\"flood\"}",
            ),
        ),
        (
            "DATA frames of one address that are too short for a message, and TLS records that are too short for the header of a frame; four header fields after the first 64 of a request count as one",
            fixed("8192 at once, 512 per second"),
            Other(
                "nothing is read from the connection for up to 500 ms",
                "chitchat_throttled_total{limit=\"short_frames\"}",
            ),
        ),
        (
            "connections of one address that are cut because of `flood` or `unread`",
            fixed("32 at once, 10 per second"),
            Other(
                "its next connections wait for up to 5 s before they are served",
                "chitchat_throttled_total{limit=\"cuts\"}",
            ),
        ),
        (
            "busy connections of one address, each with more than an equal part of a thousand messages, 2,000 TLS records, 60 calls or 4 MB sent to it in 100 ms; if all together exceed that, and there are clients at other addresses, each with more than two messages or 8 KiB",
            fixed("two per processor at a time, and as many of all addresses together, which take turns"),
            Other(
                "others, and the first turns of new connections, wait for theirs; those that send less do not",
                "chitchat_throttled_total{limit=\"turns\"}",
            ),
        ),
        (
            "log lines of one event that clients cause",
            fixed("1000 at once, 100 per second"),
            Other("they are suppressed", "chitchat_log_lines_left_out_total"),
        ),
        (
            "messages per second that are traced because their senders ask for it",
            Flag("--trace-remote-limit"),
            Other("the server's own ratio decides", ""),
        ),
        (
            "a token, which grants up to 32 patterns of rooms",
            fixed(format!("{} KiB", MAX_TOKEN_BYTES / 1024)),
            Rejected(Reason::TokenMalformed),
        ),
        (
            "keys of tokens",
            fixed("64, in a file of 1 MiB"),
            Other(
                "no start, or the previous keys stay in use",
                "chitchat_auth_keys_reloads_total{outcome=\"failure\"}",
            ),
        ),
        (
            "what a client sends in a TLS handshake, and then before anything can be decrypted",
            fixed("24 KiB, and 96 KiB"),
            Other(
                "the connection is closed",
                "chitchat_connections_refused_total{reason=\"handshake\"}",
            ),
        ),
        (
            "certificates that a client sends, with `--tls-client-ca`",
            fixed("4"),
            Other(
                "the connection is closed",
                "chitchat_connections_refused_total{reason=\"handshake\"}",
            ),
        ),
        (
            "TLS handshakes that are computed at a time",
            fixed("4 in each turn of the scheduler, 2 of them for one address"),
            Other("others wait", ""),
        ),
        (
            "connections of the admin port",
            fixed("32"),
            Other(
                "a further one takes the place of the oldest of the address that has the most",
                "",
            ),
        ),
        (
            "pages of metrics that are rendered at a time",
            fixed("2"),
            Other("others wait", ""),
        ),
        (
            "how long a client that lost its connection may take to resume",
            Flag("--resume-grace"),
            Other("its LEAVE is broadcast", ""),
        ),
        (
            "how long events of a busy room with many subscribers are collected; the first after a pause never waits",
            Flag("--coalesce"),
            Other("they are broadcast", ""),
        ),
        (
            "events that a room retains",
            Flag("--retain-events"),
            Other("the oldest are removed", "chitchat_store_events"),
        ),
        (
            "bytes that a room retains",
            Flag("--retain-bytes"),
            Other("the oldest events are removed", "chitchat_store_retained_bytes"),
        ),
        (
            "age of the events that a room retains",
            Flag("--retain-age"),
            Other("they are removed", ""),
        ),
        (
            "bytes that all rooms retain",
            Flag("--retain-total-bytes"),
            Other(
                "the largest logs lose their oldest events",
                "chitchat_store_retained_bytes",
            ),
        ),
        (
            "memory that the limits may need",
            Flag("--max-memory"),
            Other("no start", ""),
        ),
        (
            "how long the server may take to end after SIGTERM",
            Flag("--drain-timeout"),
            Other("connections are closed", ""),
        ),
    ]
}

/// What a client is told, and the metric that counts it.
fn beyond(beyond: &Beyond) -> (String, String) {
    match *beyond {
        Rejected(reason) => {
            let name = reason.as_str();
            let label = name.to_lowercase();
            let told = match reason.notice_code() {
                NoticeCode::Unspecified => format!("`{name}`"),
                _ => format!("`{name}`, as a notice"),
            };
            (
                told,
                format!("chitchat_events_rejected_total{{reason=\"{label}\"}}"),
            )
        }
        Other(happens, metric) => (happens.into(), metric.into()),
    }
}

fn table() -> String {
    let flags = serve_flags();
    let mut table =
        String::from("| what is limited | to | beyond it | counted by |\n| --- | --- | --- | --- |\n");
    for (what, bound, then) in &limits() {
        let bound = match bound {
            Fixed(value) => value.clone(),
            Flag(name) => {
                let flag = flags.iter().find(|flag| flag.name == *name);
                let flag = flag.unwrap_or_else(|| panic!("serve has no {name}"));
                let variable = name.trim_start_matches('-').replace('-', "_").to_uppercase();
                assert_eq!(flag.variable, format!("CHITCHAT_{variable}"));
                let default = flag.default.as_ref();
                format!("`{name}`: {}", default.unwrap_or_else(|| panic!("{name}")))
            }
        };
        let (told, metric) = beyond(then);
        let name = metric.split('{').next().unwrap();
        let exists = CATALOG.iter().any(|definition| definition.name == name);
        assert!(exists || name.is_empty(), "no metric {name}");
        let metric = if metric.is_empty() {
            metric
        } else {
            format!("`{metric}`")
        };
        writeln!(table, "| {what} | {bound} | {told} | {metric} |").unwrap();
    }
    table
}

#[test]
fn the_limits_are_documented() {
    let path = Path::new(CHECKOUT).join("docs/limits.md");
    let page = fs::read_to_string(&path).unwrap();
    let (before, rest) = page.split_once(BEGIN).unwrap();
    let (_, after) = rest.split_once(END).unwrap();
    let made = format!("{before}{BEGIN}\n{}\n{END}{after}", table());
    if env::var_os("UPDATE").is_some() {
        fs::write(&path, &made).unwrap();
    } else {
        assert!(
            page == made,
            "docs/limits.md is out of date: run UPDATE=1 cargo test --test limits"
        );
    }
}

#[test]
fn every_flag_that_limits_something_is_in_the_table() {
    let limits = limits();
    let shown: BTreeSet<&str> = limits
        .iter()
        .filter_map(|(_, bound, _)| match bound {
            Flag(name) => Some(*name),
            Fixed(_) => None,
        })
        .chain(NOT_LIMITS)
        .collect();
    for flag in serve_flags() {
        let is_limit = ["Store:", "Rooms:", "Connections:"].contains(&flag.heading.as_str());
        assert!(!is_limit || shown.contains(flag.name.as_str()), "{}", flag.name);
    }
}

#[test]
fn every_rejection_for_lack_of_something_is_in_the_table() {
    let limits = limits();
    for reason in Reason::ALL {
        if reason.code() == tonic::Code::ResourceExhausted {
            let is_shown = limits
                .iter()
                .any(|(_, _, beyond)| matches!(beyond, Rejected(shown) if *shown == reason));
            assert!(is_shown, "{reason:?}");
        }
    }
}
