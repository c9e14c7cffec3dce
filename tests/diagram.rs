//! `chitchat diagram`: the conversation of the first version's report, and one with a real server.
//!
//! `UPDATE=1 cargo test --test diagram` rewrites the diagrams in `tests/diagrams/`.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

mod process;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

use process::{CHECKOUT, CHITCHAT, Finished, Process, external_program, serve, succeed};

/// A message from the first to the second, its label, and whether the arrow is dashed.
type Arrow = (String, String, String, bool);

fn folder() -> PathBuf {
    Path::new(CHECKOUT).join("tests/diagrams")
}

fn diagram(arguments: &[&str]) -> Command {
    let mut command = Command::new(CHITCHAT);
    command
        .arg("diagram")
        .args(arguments)
        .current_dir(folder())
        .env_remove("CHITCHAT_ROOM");
    command
}

/// Draws the conversation of the first version's report.
fn first_version(arguments: &[&str]) -> String {
    let logs = ["--log", "alex.jsonl", "--log", "aske.jsonl", "--log", "bob.jsonl"];
    succeed(diagram(arguments).args(logs), "")
}

fn assert_golden(name: &str, drawn: &str) {
    let path = folder().join(name);
    if env::var_os("UPDATE").is_some() {
        fs::write(&path, drawn).unwrap();
    }
    assert_eq!(fs::read_to_string(&path).unwrap(), drawn, "{name}");
}

/// The arrows of a diagram in which the names of all clients are their ids.
fn arrows(mermaid: &str) -> Vec<Arrow> {
    mermaid
        .lines()
        .filter_map(|line| {
            let (ends, label) = line.trim().split_once(": ")?;
            let (from, to, is_dashed) = match ends.split_once("-->>") {
                Some((from, to)) => (from, to, true),
                None => ends.split_once("->>").map(|(from, to)| (from, to, false))?,
            };
            Some((from.to_owned(), to.to_owned(), label.to_owned(), is_dashed))
        })
        .collect()
}

/// The arrows of the report.
fn report() -> Vec<Arrow> {
    let long = r#""This is a really long message. This is a really long messag…" (L=6)"#;
    let too_long = "Message too long (354 chars). Limit is 128. (L=6)";
    let left = "Participant Aske left Chit Chat at logical time L=11";
    let steps: [(&str, &str, &[&str], &str); 11] = [
        ("Alex", "JOIN (L=1)", &["Alex"], "Alex JOINS (L=1)"),
        ("Alex", r#""Hello World!" (L=2)"#, &["Alex"], ""),
        ("Aske", "JOIN (L=3)", &["Alex", "Aske"], "Aske JOINS (L=3)"),
        ("Aske", r#""Hello Alex!" (L=4)"#, &["Alex", "Aske"], ""),
        (
            "Alex",
            r#""I will try to type a really long message" (L=5)"#,
            &["Alex", "Aske"],
            "",
        ),
        ("Alex", long, &["Alex"], too_long),
        (
            "Aske",
            r#""I could not see the msg" (L=7)"#,
            &["Alex", "Aske"],
            "",
        ),
        (
            "Aske",
            r#""Now I will leave the chat" (L=8)"#,
            &["Alex", "Aske"],
            "",
        ),
        ("Bob", "JOIN (L=9)", &["Bob", "Alex", "Aske"], "Bob JOINS (L=9)"),
        ("Aske", r#""exitexit" (L=10)"#, &["Alex", "Aske", "Bob"], ""),
        ("Aske", "LEAVE (L=11)", &["Alex", "Bob"], left),
    ];
    let mut arrows: Vec<Arrow> = Vec::new();
    for (sender, call, receivers, answer) in steps {
        arrows.push((sender.into(), "Server".into(), call.into(), false));
        let answer = if answer.is_empty() { call } else { answer };
        let answers = receivers
            .iter()
            .map(|&to| ("Server".into(), to.into(), answer.into(), true));
        arrows.extend(answers);
    }
    arrows
}

#[test]
fn the_first_versions_conversation_has_the_arrows_of_its_report() {
    assert_eq!(report().len(), 32);
    let drawn = first_version(&[]);
    assert_eq!(arrows(&drawn), report());
    assert_golden("first_version.mmd", &drawn);
    assert_golden("first_version.svg", &first_version(&["--format", "svg"]));
    assert_golden(
        "first_version.shiviz.log",
        &first_version(&["--format", "shiviz"]),
    );
}

/// Parses a diagram with Mermaid; `None` if the test is skipped.
fn parse_with_mermaid(text: &str) -> Option<Vec<Arrow>> {
    let script = folder().join("mermaid.mjs");
    let script = script.to_str().unwrap();
    let node = external_program("CHITCHAT_TEST_NODE", "node", &[script, "--version"])?;
    let printed = succeed(Command::new(node).arg(script), text);
    Some(
        printed
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect(),
    )
}

#[test]
fn mermaid_reads_the_arrows_of_the_report() {
    if let Some(arrows) = parse_with_mermaid(&first_version(&[])) {
        assert_eq!(arrows, report());
    }
}

fn log_line(sequence: u64, name: &str, text: &str, kind: &str) -> String {
    serde_json::json!({
        "sender_id": name.len(), "sender_name": name, "msg_stream": text, "type": kind, "timestamp": sequence,
        "room": "lobby", "sequence": sequence, "epoch": 1,
    })
    .to_string()
}

#[test]
fn mermaid_reads_any_names_and_texts() {
    let names = [
        "end",
        "Participant",
        "a b",
        "note1",
        "Zoë",
        "P2",
        "A+-x",
        "O'Brien & sons",
        "as",
        "loop (1)",
    ];
    let texts = [
        "#59; ; # %% <br/> <script>",
        "a: b",
        "->> -->>",
        "%%{init: {}}%%",
        "$$x$$",
        "\"quoted\"",
        "one\ntwo",
        "wrap: x",
        r"\n \t",
        "`_*~`",
    ];
    let mut lines: Vec<String> = Vec::new();
    for (sequence, name) in (1..).zip(names) {
        lines.push(log_line(sequence, name, "", "JOIN"));
    }
    for (sequence, text) in (11..).zip(texts) {
        lines.push(log_line(sequence, names[0], text, "MESSAGE"));
    }
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(&file, lines.join("\n")).unwrap();
    let drawn = succeed(&mut diagram(&["--log", file.path().to_str().unwrap()]), "");
    let Some(arrows) = parse_with_mermaid(&drawn) else {
        return;
    };
    let joins: Vec<&str> = arrows
        .iter()
        .filter(|arrow| arrow.2.starts_with("JOIN"))
        .map(|arrow| arrow.0.as_str())
        .collect();
    assert_eq!(joins, names);
    let said: Vec<&str> = arrows
        .iter()
        .filter(|arrow| arrow.2.starts_with('"') && !arrow.3)
        .map(|arrow| arrow.2.as_str())
        .collect();
    for (time, (text, said)) in (11..).zip(texts.iter().zip(said)) {
        assert_eq!(said, format!("\"{}\" (L={time})", text.replace('\n', " ↵ ")));
    }
}

fn client(server: SocketAddr, arguments: &[&str]) -> Process {
    let mut command = Command::new(CHITCHAT);
    Process::start(command.args(arguments).env("CHITCHAT_SERVER", server.to_string()))
}

#[test]
fn a_room_of_a_server_is_drawn() {
    let server = serve(&[]);
    let ada = client(server.address, &["chat", "tea", "--name", "Ada"]);
    ada.line();
    let bob = client(server.address, &["chat", "tea", "--name", "Bob"]);
    bob.line();
    let mut bot = client(server.address, &["send", "-r", "tea", "--name", "bot", "beep"]);
    assert!(bot.wait().success());
    let draw = |arguments: &[&str]| {
        let mut command = diagram(&[&["tea", "--server", &server.address.to_string()], arguments].concat());
        arrows(&succeed(&mut command, ""))
    };
    let drawn = draw(&[]);
    let ends: Vec<(&str, &str)> = drawn
        .iter()
        .map(|(from, to, ..)| (from.as_str(), to.as_str()))
        .collect();
    let expected = [
        ("Ada", "Server"),
        ("Server", "Ada"),
        ("Bob", "Server"),
        ("Server", "Ada"),
        ("Server", "Bob"),
        ("bot", "Server"),
        ("Server", "Ada"),
        ("Server", "Bob"),
        ("Server", "bot"),
    ];
    assert_eq!(ends, expected);
    // Ada and Bob joined before the first event that is drawn.
    assert_eq!(draw(&["--last", "1"]), drawn[5..]);
    let time = drawn[5].2.split_once("(L=").unwrap().1.trim_end_matches(')');
    assert_eq!(draw(&["--from", time]), drawn[5..]);
    let before = (time.parse::<i64>().unwrap() - 1).to_string();
    assert_eq!(draw(&["--to", &before, "-n", "1"]), drawn[2..5]);
}

#[test]
fn the_diagram_of_a_saved_log_is_that_of_the_server() {
    let server = serve(&[]);
    let mut ada = client(server.address, &["chat", "tea", "--name", "Ada", "--json"]);
    let mut lines = vec![ada.line(), ada.line()];
    ada.write_line("hello");
    lines.extend([ada.line(), ada.line()]);
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(&file, lines.join("\n")).unwrap();
    let log = ["tea", "--log", file.path().to_str().unwrap()];
    let from_log = succeed(&mut diagram(&log), "");
    let from_server = succeed(
        &mut diagram(&["tea", "--server", &server.address.to_string()]),
        "",
    );
    assert_eq!(from_log, from_server);
    let shiviz = succeed(diagram(&log).args(["--format", "shiviz"]), "");
    assert!(
        shiviz.contains("Ada {\"Ada\":3,\"Server\":1}\nsends \"hello\""),
        "{shiviz}"
    );
}

#[test]
fn what_cannot_be_drawn_is_reported() {
    let finished = |arguments: &[&str]| Finished::from(process::run(&mut diagram(arguments), ""));
    finished(&["--format", "shiviz"]).assert_failed(64, "chitchat: --format shiviz needs the logs");
    finished(&["tea", "--log", "alex.jsonl"]).assert_failed(
        66,
        "chitchat: the logs have nothing of the room tea; they have: lobby",
    );
    let directory = tempfile::tempdir().unwrap();
    let hostile = directory.path().join("hostile.jsonl");
    let line = log_line(1, "Ada", "hi", "MESSAGE").replace("lobby", r"\u001b[2J");
    fs::write(&hostile, line).unwrap();
    finished(&["--log", hostile.to_str().unwrap()]).assert_failed(
        66,
        r"chitchat: the logs have nothing of the room lobby; they have: \u{1b}[2J",
    );
    finished(&["--log", "mermaid.mjs"]).assert_failed(65, "chitchat: line 1 of mermaid.mjs is not a message");
    finished(&["--log", "missing.jsonl"]).assert_failed(74, "chitchat: cannot open missing.jsonl");
}
