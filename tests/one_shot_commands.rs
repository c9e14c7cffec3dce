//! The commands `send`, `tail`, `history`, `who` and `rooms` as a shell sees them.
// Helpers of tests panic as tests do.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

mod fake_server;
mod process;

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use fake_server::{FakeServer, status};
use nix::sys::signal::Signal;
use process::{
    CHECKOUT, CHITCHAT, FREE_PORT, Finished, Process, load_generator, serve, serve_at, spawn, unused_address,
};
use serde_json::{Value, json};
use tonic::Code;

fn command(server: SocketAddr, arguments: &[&str]) -> Command {
    let mut command = Command::new(CHITCHAT);
    command
        .args(arguments)
        .env_remove("CHITCHAT_NAME")
        .env_remove("CHITCHAT_ROOM")
        .env("CHITCHAT_SERVER", server.to_string());
    command
}

fn start(server: SocketAddr, arguments: &[&str]) -> Process {
    Process::start(&mut command(server, arguments))
}

fn run_with(server: SocketAddr, arguments: &[&str], input: &str) -> Finished {
    process::run(&mut command(server, arguments), input).into()
}

fn run(server: SocketAddr, arguments: &[&str]) -> Finished {
    run_with(server, arguments, "")
}

/// Runs a command that must succeed without a word on stderr, and returns its lines.
fn run_lines(server: SocketAddr, arguments: &[&str]) -> Vec<String> {
    succeeded(run(server, arguments))
}

/// Runs a command that prints JSON, as [`run_lines`] does.
fn run_json(server: SocketAddr, arguments: &[&str]) -> Vec<Value> {
    let lines = run_lines(server, arguments);
    lines
        .iter()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

fn succeeded(finished: Finished) -> Vec<String> {
    assert_eq!(finished.outcome(), (Some(0), ""), "{finished:?}");
    finished.lines
}

/// Sends `lines` to the room `tea`.
fn send(server: SocketAddr, lines: &[String]) {
    let arguments = ["send", "--name", "bot", "--room", "tea"];
    let sent = run_with(server, &arguments, &lines.join("\n"));
    assert_eq!(succeeded(sent).len(), lines.len());
}

fn texts(objects: &[Value]) -> Vec<&str> {
    objects
        .iter()
        .map(|object| object["msg_stream"].as_str().unwrap())
        .collect()
}

#[test]
fn history_shows_a_message_as_send_printed_it() {
    let server = serve(&[]);
    let arguments = ["send", "--name", "Ada", "--room", "tea", " hello ❤️ "];
    let sent = run_lines(server.address, &arguments);
    assert!(
        sent[0].starts_with("[L=") && sent[0].ends_with("] Ada: hello ❤️"),
        "{sent:?}"
    );
    assert_eq!(run_lines(server.address, &["history", "--room", "tea"]), sent);

    let sent = run_json(server.address, &[&arguments[..], &["--json"]].concat());
    let broadcast = &sent[0];
    assert_eq!(broadcast["sequence"], 2);
    assert_eq!(broadcast["type"], "MESSAGE");
    assert_eq!(broadcast["room"], "tea");
    assert!(broadcast["epoch"].is_u64() && broadcast["timestamp"].is_i64());
    assert!(broadcast["broadcast_time"].as_str().unwrap().ends_with('Z'));
    assert_eq!(broadcast["message_id"].as_str().unwrap().len(), 32);
    let newest = ["history", "--room", "tea", "--limit", "1", "--json"];
    assert_eq!(run_json(server.address, &newest)[0], *broadcast);
}

#[test]
fn a_long_history_is_complete_and_in_order() {
    let server = serve(&[]);
    let lines: Vec<String> = (1..=350).map(|number| format!("line {number}")).collect();
    send(server.address, &lines);
    let history = |arguments: &[&str]| {
        let command = ["history", "--room", "tea", "--json"];
        run_json(server.address, &[&command, arguments].concat())
    };
    let all = history(&["--limit", "1000"]);
    let from = all
        .iter()
        .position(|event| event["msg_stream"] == "line 1")
        .unwrap();
    assert_eq!(texts(&all[from..]), lines);
    let sequences: Vec<u64> = all
        .iter()
        .map(|event| event["sequence"].as_u64().unwrap())
        .collect();
    assert!(
        sequences.iter().copied().eq(1..=all.len() as u64),
        "{sequences:?}"
    );

    assert_eq!(history(&["--limit", "230"]), all[all.len() - 230..]);
    assert_eq!(history(&["--after", "120", "--limit", "130"]), all[120..250]);
    assert_eq!(history(&["--before", "121", "--limit", "110"]), all[10..120]);
    assert_eq!(history(&["--after", "10", "--before", "14"]), all[10..13]);
    assert!(history(&["--limit", "0"]).is_empty());
    assert_eq!(history(&[]).len(), 100);
}

#[test]
fn who_and_rooms_list_participants_and_rooms() {
    let server = serve(&[]);
    let ada = start(server.address, &["chat", "--name", "Ada", "--room", "tea"]);
    ada.line();
    let participants = run_json(server.address, &["who", "--room", "tea", "--json"]);
    let id = participants[0]["id"].as_i64().unwrap();
    let expected = json!({ "id": id, "name": "Ada", "joined_timestamp": 2, "connected": true });
    assert_eq!(participants, [expected]);
    let lines = run_lines(server.address, &["who", "tea"]);
    assert_eq!(
        lines,
        [
            "NAME       ID  SINCE  CONNECTION".to_owned(),
            format!("Ada   {id}  L=2    yes")
        ]
    );

    for room in ["room 000", "room 001", "room 002"] {
        run_lines(server.address, &["send", "--name", "bot", "--room", room, "hi"]);
    }
    let rooms = run_json(server.address, &["rooms", "--json"]);
    let names: Vec<&str> = rooms.iter().map(|room| room["room"].as_str().unwrap()).collect();
    assert_eq!(names, ["room 000", "room 001", "room 002", "tea"]);
    assert_eq!(
        (&rooms[3]["participants"], &rooms[3]["last_sequence"]),
        (&json!(1), &json!(1))
    );
    let lines = run_lines(server.address, &["rooms"]);
    assert_eq!(lines[0], "ROOM      PARTICIPANTS  EVENTS  TIME");
    assert_eq!(lines[4], "tea                  1  1 to 1  L=2");
}

#[test]
fn tail_starts_with_the_newest_messages_and_follows() {
    let server = serve(&[]);
    let lines: Vec<String> = (1..=30).map(|number| format!("line {number}")).collect();
    send(server.address, &lines);
    let tail = ["tail", "--room", "tea", "--json"];
    let stopped = run_json(server.address, &[&tail[..], &["--no-follow"]].concat());
    assert_eq!(texts(&stopped), lines[20..]);
    let counted = run_json(
        server.address,
        &[&tail[..], &["--last", "5", "--count", "3"]].concat(),
    );
    assert_eq!(texts(&counted), lines[25..28]);

    let following = start(
        server.address,
        &[&tail[..], &["--last", "1", "--count", "4"]].concat(),
    );
    let next = || -> Value { serde_json::from_str(&following.line()).unwrap() };
    assert_eq!(next()["msg_stream"], "line 30");
    send(server.address, &["one".into(), "two".into(), "three".into()]);
    for text in ["one", "two", "three"] {
        assert_eq!(next()["msg_stream"], text);
    }
    assert_eq!(following.finish_with_open_stdin().outcome(), (Some(0), ""));
}

#[test]
fn tail_reconnects_to_a_restarted_server() {
    let directory = tempfile::tempdir().unwrap();
    let flags = ["--data-dir", directory.path().to_str().unwrap()];
    let server = serve_at(FREE_PORT, &flags);
    let address = server.address;
    send(address, &["before".into()]);
    let tail = start(address, &["tail", "--room", "tea", "--last", "1", "--count", "2"]);
    assert!(tail.line().ends_with("bot: before"));
    drop(server);
    let _server = serve_at(address, &flags);
    send(address, &["after".into()]);
    assert!(tail.line().ends_with("bot: after"));
    assert_eq!(
        tail.finish_with_open_stdin().outcome(),
        (Some(0), "chitchat: reconnecting…\nchitchat: reconnected\n")
    );
}

#[test]
fn a_closed_stdout_ends_tail() {
    let server = serve(&[]);
    send(server.address, &["one".into()]);
    let mut child = spawn(&mut command(server.address, &["tail", "--room", "tea"]));
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    stdout.read_line(&mut String::new()).unwrap();
    // The command notices although nothing else happens in the room.
    drop(stdout);
    let finished = Process::from(child).finish_with_open_stdin();
    assert_eq!(finished.outcome(), (Some(0), ""));
}

#[test]
fn a_signal_ends_tail_although_nobody_reads_its_output() {
    let server = serve(&[]);
    let lines: Vec<String> = (0..2_000).map(|_| "x".repeat(100)).collect();
    send(server.address, &lines);
    for (signal, code) in [(Signal::SIGTERM, 143), (Signal::SIGINT, 130)] {
        let mut child = spawn(&mut command(server.address, &["tail", "tea", "-n", "2000"]));
        let stdout = child.stdout.take().unwrap();
        let mut tail = Process::from(child);
        let mut before = 0;
        process::wait_until("the pipe is full", || {
            let unread = rustix::io::ioctl_fionread(&stdout).unwrap();
            // Its capacity is 64 KiB, less what is lost at the ends of pages.
            let is_full = unread > 50_000 && unread == before;
            before = unread;
            is_full.then_some(())
        });
        tail.signal(signal);
        assert_eq!(tail.wait().code(), Some(code));
    }
}

#[test]
fn following_more_than_10000_past_events_is_rejected() {
    let server = serve(&[]);
    send(server.address, &["one".into()]);
    let limit = start(server.address, &["tail", "tea", "-n", "10001"]).finish();
    limit.assert_failed(
        64,
        "chitchat: -n 10001: at most 10000 past events can be followed",
    );
    let arguments = ["tail", "tea", "-n", "10001", "--no-follow"];
    assert_eq!(run_lines(server.address, &arguments).len(), 1);
    let arguments = ["tail", "tea", "-n", "10000", "--count", "1"];
    assert_eq!(run_lines(server.address, &arguments).len(), 1);
}

#[test]
fn missing_rooms_and_servers_are_reported() {
    let server = serve(&[]);
    for arguments in [
        &["history", "--room", "nowhere"][..],
        &["who", "--room", "nowhere"],
        &["tail", "--room", "nowhere"],
        &["tail", "--room", "nowhere", "--last", "0"],
        &["tail", "nowhere", "--no-follow"],
    ] {
        let finished = run(server.address, arguments);
        assert_eq!(
            (finished.code, finished.lines.len()),
            (Some(66), 0),
            "{arguments:?} {finished:?}"
        );
        assert!(
            finished.stderr.starts_with("chitchat: ") && finished.stderr.contains("nowhere"),
            "{finished:?}"
        );
    }
    let unused = unused_address();
    for arguments in [
        &["history"][..],
        &["who"],
        &["rooms"],
        &["tail"],
        &["send", "--name", "bot", "hi"],
    ] {
        let line = format!("chitchat: no chat server can be reached at {unused}: ");
        run(unused, arguments).assert_failed(69, &line);
    }
}

#[test]
fn rejections_have_distinct_exit_codes() {
    let server = serve(&["--max-message-chars", "10"]);
    let long = "x".repeat(11);
    let finished = run(server.address, &["send", "--name", "bot", &long]);
    assert_eq!(finished.code, Some(65), "{finished:?}");
    assert!(
        finished
            .stderr
            .contains("Message too long (11 chars). Limit is 10."),
        "{finished:?}"
    );

    let input = format!("one\n\n{long}\ntwo\n{long}\n");
    let finished = run_with(server.address, &["send", "--name", "bot"], &input);
    assert_eq!(
        (finished.code, finished.lines.len()),
        (Some(65), 2),
        "{finished:?}"
    );
    let first = "chitchat: the server rejected 2 lines, the first of them line 3: Message too long";
    assert!(finished.stderr.starts_with(first), "{finished:?}");

    let ada = start(server.address, &["chat", "--name", "Ada"]);
    ada.line();
    let finished = run(server.address, &["send", "--name", "Ada", "hi"]);
    assert_eq!(finished.code, Some(77), "{finished:?}");
    let finished = run_with(server.address, &["send", "--name", "Ada"], "\nhi\n");
    assert_eq!(finished.code, Some(77), "{finished:?}");
    assert!(
        finished
            .stderr
            .starts_with("chitchat: line 2 was not acknowledged: "),
        "{finished:?}"
    );

    for arguments in [
        &["send", " \n"][..],
        &["history", "--limit", "-1"],
        &["tail", "--count", "many"],
        &["who", "--room", "\u{202e}"],
    ] {
        assert_eq!(run(server.address, arguments).code, Some(64), "{arguments:?}");
    }
}

#[test]
fn a_default_name_that_is_taken_gets_a_number() {
    let server = serve(&[]);
    let as_ada = |arguments: &[&str]| {
        let mut command = command(server.address, arguments);
        command.env("USER", "ada");
        command
    };
    let first = Process::start(&mut as_ada(&["chat", "tea"]));
    assert!(first.line().contains("Participant ada joined"));
    let second = Process::start(&mut as_ada(&["chat", "tea"]));
    assert!(second.line().contains("Participant ada-2 joined"));
    let sent = process::run(&mut as_ada(&["send", "-r", "tea", "hello"]), "").into();
    assert!(succeeded(sent)[0].ends_with("] ada-3: hello"));
    // A name that was asked for stays as it is.
    let finished = run_with(server.address, &["chat", "-u", "ada", "-r", "tea"], "");
    assert_eq!(finished.code, Some(77), "{finished:?}");
}

#[test]
fn chat_records_what_it_sends_and_receives() {
    let server = serve(&["--max-message-chars", "10"]);
    let long = "x".repeat(11);
    let input = format!("hello\n{long}\n");
    let finished = run_with(server.address, &["chat", "tea", "-u", "Ada", "--json"], &input);
    let records: Vec<Value> = finished
        .lines
        .iter()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let sent: Vec<&Value> = records.iter().filter_map(|record| record.get("sent")).collect();
    let types: Vec<&str> = sent.iter().map(|sent| sent["type"].as_str().unwrap()).collect();
    assert_eq!(types, ["JOIN", "MESSAGE", "MESSAGE", "LEAVE"], "{finished:?}");
    let received: Vec<&Value> = records
        .iter()
        .filter(|record| record["received_time"].is_string())
        .collect();
    assert_eq!(received.len(), 3, "{finished:?}");
    assert_eq!(received[1]["message_id"], sent[1]["message_id"]);
    assert_eq!(received[2]["message_id"], sent[2]["message_id"]);
    assert_eq!(received[2]["notice"]["code"], "NOTICE_CODE_MESSAGE_TOO_LONG");
}

#[test]
fn send_reads_stdin_for_a_dash() {
    let server = serve(&[]);
    let sent = run_with(server.address, &["send", "-u", "bot", "-"], "one\ntwo\n");
    assert_eq!(succeeded(sent).len(), 2);
}

#[test]
fn the_lobby_always_exists() {
    let server = serve(&[]);
    for arguments in [&["history"][..], &["tail", "--no-follow"]] {
        assert!(run_lines(server.address, arguments).is_empty(), "{arguments:?}");
    }
    assert_eq!(run_lines(server.address, &["who"]).len(), 1);
}

#[test]
fn tail_waits_for_a_room_that_does_not_exist_yet() {
    let server = serve(&[]);
    let flags = ["tail", "tea", "-f", "--count", "2"];
    let tails = [&["-n", "0"][..], &[]].map(|last| start(server.address, &[&flags[..], last].concat()));
    let tails = tails.map(|tail| {
        tail.stderr_line("waiting for the room tea");
        tail
    });
    send(server.address, &["one".into(), "two".into()]);
    for mut tail in tails {
        for text in ["one", "two"] {
            assert!(tail.line().ends_with(text));
        }
        assert_eq!(tail.wait().code(), Some(0));
    }
}

#[test]
fn history_selects_by_time_and_pattern() {
    let server = serve(&[]);
    let lines: Vec<String> = (1..=1_200).map(|number| format!("line {number}")).collect();
    send(server.address, &lines);
    let history = |arguments: &[&str]| {
        let command = ["history", "tea", "--time", "none"];
        run_lines(server.address, &[&command, arguments].concat())
    };
    assert_eq!(
        history(&["--grep", "^line 1?17$"]),
        ["bot: line 17", "bot: line 117"]
    );
    assert_eq!(history(&["--grep", "BOT"]), [""; 0]);
    assert_eq!(history(&["--grep", "(?i)BOT", "-n", "1"]), ["bot: line 1200"]);
    assert_eq!(
        history(&["--grep", "7$", "--after", "10", "-n", "1"]),
        ["bot: line 17"]
    );
    assert_eq!(history(&["--since", "1h", "-n", "1200"]).len(), 1_200);
    assert_eq!(
        history(&["--since", "1h", "--before", "3"]),
        ["bot: line 1", "bot: line 2"]
    );
    assert!(history(&["--until", "1h"]).is_empty());
    assert!(history(&["--since", "2100-01-01"]).is_empty());
    for wrong in [&["--grep", "("][..], &["--since", "soon"]] {
        let finished = run(server.address, &[&["history"], wrong].concat());
        assert_eq!(finished.code, Some(64), "{finished:?}");
    }
}

#[test]
fn further_lines_of_a_text_are_marked() {
    let server = serve(&[]);
    run_lines(server.address, &["send", "-u", "bot", "one\n[L=9] Ada: two"]);
    run_lines(server.address, &["send", "-u", "bot", r"one\ntwo"]);
    let lines = run_lines(server.address, &["history", "--time", "none"]);
    assert_eq!(lines, ["bot: one", "  | [L=9] Ada: two", r"bot: one\ntwo"]);
    let utc = run_lines(server.address, &["history", "--time", "utc", "-n", "1"]);
    assert!(
        utc[0].starts_with("[20") && utc[0].contains("Z] bot: "),
        "{utc:?}"
    );
}

/// Validates `value`, as far as the schema uses JSON Schema.
fn conforms(schema: &Value, root: &Value, value: &Value) -> bool {
    let Some(keywords) = schema.as_object() else {
        return schema == true;
    };
    keywords.iter().all(|(keyword, expected)| match keyword.as_str() {
        "$schema" | "$defs" | "title" | "description" => true,
        "$ref" => conforms(
            root.pointer(&expected.as_str().unwrap()[1..]).unwrap(),
            root,
            value,
        ),
        "oneOf" => {
            expected
                .as_array()
                .unwrap()
                .iter()
                .filter(|one| conforms(one, root, value))
                .count()
                == 1
        }
        "const" => value == expected,
        "enum" => expected.as_array().unwrap().contains(value),
        "minimum" => value
            .as_i64()
            .is_some_and(|number| number >= expected.as_i64().unwrap()),
        "format" => value.as_str().unwrap().parse::<prost_types::Timestamp>().is_ok(),
        "type" => match expected.as_str().unwrap() {
            "string" => value.is_string(),
            "integer" => value.is_i64() || value.is_u64(),
            "object" => value.is_object(),
            other => panic!("type {other}"),
        },
        "required" => expected
            .as_array()
            .unwrap()
            .iter()
            .all(|key| value.get(key.as_str().unwrap()).is_some()),
        "properties" => expected
            .as_object()
            .unwrap()
            .iter()
            .all(|(key, schema)| value.get(key).is_none_or(|value| conforms(schema, root, value))),
        "additionalProperties" => {
            let known = keywords["properties"].as_object().unwrap();
            value
                .as_object()
                .unwrap()
                .keys()
                .all(|key| known.contains_key(key))
        }
        other => panic!("keyword {other}"),
    })
}

#[test]
fn messages_conform_to_the_schema_everywhere() {
    let schema = fs::read_to_string(Path::new(CHECKOUT).join("docs/message.schema.json")).unwrap();
    let schema: Value = serde_json::from_str(&schema).unwrap();
    let server = serve(&["--max-message-chars", "10"]);
    let input = format!("hello\n{}\n", "x".repeat(11));
    let chat = run_with(server.address, &["chat", "-u", "Ada", "--json"], &input).lines;
    let outputs = [
        chat,
        run_lines(server.address, &["send", "-u", "bot", "hi", "--json"]),
        run_lines(server.address, &["history", "--json"]),
        run_lines(server.address, &["tail", "--no-follow", "--json"]),
    ];
    assert_eq!(outputs.each_ref().map(Vec::len), [7, 1, 4, 4]);
    for line in outputs.concat() {
        let value = serde_json::from_str(&line).unwrap();
        assert!(conforms(&schema, &schema, &value), "{line}");
    }
    assert!(!conforms(&schema, &schema, &json!({ "sender_id": 1 })));
    // What these servers do not send: ids that clients of the first version choose, and tokens that expire.
    let notice = json!({
        "sender_id": -5, "sender_name": "Server", "msg_stream": "", "type": "MESSAGE", "timestamp": 1, "room": "lobby",
        "sequence": 0, "epoch": 0,
        "notice": { "code": "NOTICE_CODE_TOKEN_EXPIRES", "original_sequence": 0, "expires_in": "60s" },
    });
    assert!(conforms(&schema, &schema, &notice));
}

#[test]
fn send_fails_at_once_on_what_is_permanent() {
    let server = serve(&["--max-rooms", "1"]);
    run_lines(server.address, &["send", "-u", "bot", "hi"]);
    // The admin port speaks HTTP/1.
    let admin = run(server.admin, &["send", "-u", "bot", "hi"]);
    admin.assert_failed(69, "chitchat: no chat server can be reached at");
    let limit = run(server.address, &["send", "-u", "bot", "-r", "tea", "hi"]);
    limit.assert_failed(77, "chitchat: ");
    // It accepts connections and never answers.
    let silent = TcpListener::bind(FREE_PORT).unwrap();
    let arguments = ["send", "-u", "bot", "hi", "--timeout", "200ms"];
    run(silent.local_addr().unwrap(), &arguments).assert_failed(69, "chitchat: ");
}

#[test]
fn the_load_generator_uses_a_room_of_its_own() {
    let server = serve(&[]);
    let ada = start(server.address, &["chat", "-u", "Ada"]);
    ada.line();
    let generate = |arguments: &[&str]| -> Finished {
        let mut command = Command::new(load_generator());
        command
            .args(["--publishers", "1", "--subscribers", "1", "--count", "5"])
            .args(arguments);
        process::run(command.env("CHITCHAT_SERVER", server.address.to_string()), "").into()
    };
    assert_eq!(generate(&[]).code, Some(0));
    assert_eq!(
        run_lines(server.address, &["history"]).len(),
        1,
        "only Ada's JOIN"
    );
    generate(&["-r", "lobby"]).assert_failed(64, "chitchat: --room lobby: somebody is in this room");
    assert_eq!(generate(&["-r", "tea"]).code, Some(0));
}

#[test]
fn a_message_whose_response_is_lost_is_sent_again_and_broadcast_once() {
    let (_runtime, server) = FakeServer::start_in_background();
    server.lose_responses(2);
    let sent = run_json(server.address, &["send", "--name", "bot", "once", "--json"]);
    assert_eq!(sent[0]["repeated"], true);
    assert_eq!(server.log("lobby").len(), 1);

    server.lose_responses(1);
    let arguments = ["send", "--name", "bot", "twice", "--patience", "0s"];
    assert_eq!(
        run(server.address, &arguments).outcome(),
        (
            Some(69),
            "chitchat: the server is not available: the server is draining\n"
        )
    );
}

#[test]
fn a_server_that_asks_to_wait_has_answered() {
    let (_runtime, server) = FakeServer::start_in_background();
    // Longer than it takes until the command says that there is no answer.
    let delay = Some(Duration::from_millis(1_200));
    server.reject_sends([status(Code::ResourceExhausted, "TOO_FAST", "too fast", delay)]);
    assert_eq!(
        run_lines(server.address, &["send", "--name", "bot", "hi"]).len(),
        1
    );
}

#[test]
fn rooms_reads_all_pages() {
    let (_runtime, server) = FakeServer::start_in_background();
    // The fake server returns two rooms per page.
    for room in ["a", "b", "c", "d", "lobby"] {
        server.say(room, "hi");
    }
    let rooms = run_lines(server.address, &["rooms"]);
    let names: Vec<&str> = rooms.iter().map(|line| line.split(' ').next().unwrap()).collect();
    assert_eq!(names, ["ROOM", "a", "b", "c", "d", "lobby"]);
}

#[test]
fn history_reports_events_that_the_server_has_discarded() {
    let (_runtime, server) = FakeServer::start_in_background();
    for _ in 0..21 {
        server.say("a", "hi");
    }
    server.retain("a", 15);
    let finished = run(server.address, &["history", "--room", "a", "--after", "2"]);
    assert_eq!(finished.lines.len(), 15, "{finished:?}");
    assert_eq!(
        finished.outcome(),
        (
            Some(0),
            "chitchat: events 3 to 6 are missing: the server no longer retains them\n"
        )
    );
}
