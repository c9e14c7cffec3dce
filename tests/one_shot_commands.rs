//! The commands `send`, `tail`, `history`, `who` and `rooms` as a shell sees them.
// Helpers of tests panic as tests do.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

mod hall;
mod served;

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

/// Longer than anything here takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Debug)]
struct Ended {
    code: Option<i32>,
    lines: Vec<String>,
    stderr: String,
}

impl Ended {
    /// What was printed by a command that succeeded and had nothing else to say.
    fn lines(self) -> Vec<String> {
        assert_eq!((self.code, self.stderr.as_str()), (Some(0), ""), "{self:?}");
        self.lines
    }

    fn objects(self) -> Vec<Value> {
        let lines = self.lines();
        lines
            .iter()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }
}

fn command(server: SocketAddr, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_chitchat"));
    command
        .args(arguments)
        .env_remove("CHITCHAT_NAME")
        .env_remove("CHITCHAT_ROOM")
        .env("CHITCHAT_SERVER", server.to_string())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

/// Runs a command to its end.
fn run_with(server: SocketAddr, arguments: &[&str], input: &str) -> Ended {
    let mut child = command(server, arguments).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_owned();
    let writer = thread::spawn(move || stdin.write_all(input.as_bytes()));
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap().ok();
    Ended {
        code: output.status.code(),
        lines: String::from_utf8(output.stdout)
            .unwrap()
            .lines()
            .map(str::to_owned)
            .collect(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

fn run(server: SocketAddr, arguments: &[&str]) -> Ended {
    run_with(server, arguments, "")
}

/// A command that goes on. Killed when dropped.
struct Running {
    child: Child,
    lines: mpsc::Receiver<String>,
}

impl Running {
    fn start(server: SocketAddr, arguments: &[&str]) -> Self {
        let mut child = command(server, arguments).spawn().unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let (sender, lines) = mpsc::channel();
        thread::spawn(move || {
            stdout
                .lines()
                .map_while(Result::ok)
                .try_for_each(|line| sender.send(line))
                .ok();
        });
        Self { child, lines }
    }

    fn line(&self) -> String {
        self.lines.recv_timeout(PATIENCE).unwrap()
    }

    /// Waits for the end: the exit code and what was said on stderr.
    fn ended(&mut self) -> (Option<i32>, String) {
        let deadline = Instant::now() + PATIENCE;
        while self.child.try_wait().unwrap().is_none() {
            assert!(Instant::now() < deadline, "the command does not end");
            thread::sleep(Duration::from_millis(5));
        }
        let mut stderr = String::new();
        self.child
            .stderr
            .take()
            .unwrap()
            .read_to_string(&mut stderr)
            .unwrap();
        (self.child.wait().unwrap().code(), stderr)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// Says `lines` in the room `tea`.
fn send(server: SocketAddr, lines: &[String]) {
    let sent = run_with(
        server,
        &["send", "--name", "bot", "--room", "tea"],
        &lines.join("\n"),
    );
    assert_eq!(sent.lines().len(), lines.len());
}

fn texts(objects: &[Value]) -> Vec<&str> {
    objects
        .iter()
        .map(|object| object["msg_stream"].as_str().unwrap())
        .collect()
}

/// A place for a server's log.
struct Directory(PathBuf);

impl Directory {
    fn new() -> Self {
        let name = format!("one-shot-{:032x}", rand::random::<u128>());
        Self(Path::new(env!("CARGO_TARGET_TMPDIR")).join(name))
    }

    fn flags(&self) -> [&str; 2] {
        ["--data-dir", self.0.to_str().unwrap()]
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.0).ok();
    }
}

#[test]
fn what_is_sent_is_in_the_history_as_it_was_printed() {
    let server = served::serve(&[]);
    let arguments = ["send", "--name", "Ada", "--room", "tea", " hello ❤️ "];
    let sent = run(server.address, &arguments).lines();
    assert!(
        sent[0].starts_with("[L=") && sent[0].ends_with("] Ada: hello ❤️"),
        "{sent:?}"
    );
    assert_eq!(run(server.address, &["history", "--room", "tea"]).lines(), sent);

    let sent = run(server.address, &[&arguments[..], &["--json"]].concat()).objects();
    let broadcast = &sent[0]["broadcast"];
    assert_eq!(sent[0]["repeated"], false);
    assert_eq!(broadcast["sequence"], 2);
    assert_eq!(broadcast["type"], "MESSAGE");
    assert_eq!(broadcast["room"], "tea");
    assert!(broadcast["epoch"].is_u64() && broadcast["timestamp"].is_i64());
    assert!(broadcast["broadcast_time"].as_str().unwrap().ends_with('Z'));
    assert_eq!(broadcast["message_id"].as_str().unwrap().len(), 32);
    let newest = ["history", "--room", "tea", "--limit", "1", "--json"];
    assert_eq!(run(server.address, &newest).objects()[0], *broadcast);
}

#[test]
fn a_long_history_is_read_whole_and_in_order() {
    let server = served::serve(&[]);
    let lines: Vec<String> = (1..=350).map(|number| format!("line {number}")).collect();
    send(server.address, &lines);
    let history = |arguments: &[&str]| {
        let command = ["history", "--room", "tea", "--json"];
        run(server.address, &[&command, arguments].concat()).objects()
    };
    let whole = history(&["--limit", "1000"]);
    let from = whole
        .iter()
        .position(|event| event["msg_stream"] == "line 1")
        .unwrap();
    assert_eq!(texts(&whole[from..]), lines);
    let sequences: Vec<u64> = whole
        .iter()
        .map(|event| event["sequence"].as_u64().unwrap())
        .collect();
    assert!(
        sequences.iter().copied().eq(1..=whole.len() as u64),
        "{sequences:?}"
    );

    assert_eq!(history(&["--limit", "230"]), whole[whole.len() - 230..]);
    assert_eq!(history(&["--after", "120", "--limit", "130"]), whole[120..250]);
    assert_eq!(history(&["--before", "121", "--limit", "110"]), whole[10..120]);
    assert_eq!(history(&["--after", "10", "--before", "14"]), whole[10..13]);
    assert!(history(&["--limit", "0"]).is_empty());
    assert_eq!(history(&[]).len(), 100);
}

#[test]
fn who_and_rooms_list_what_there_is() {
    let server = served::serve(&[]);
    let ada = Running::start(server.address, &["chat", "--name", "Ada", "--room", "tea"]);
    ada.line();
    let participants = run(server.address, &["who", "--room", "tea", "--json"]).objects();
    let id = participants[0]["id"].as_i64().unwrap();
    let expected = json!({ "id": id, "name": "Ada", "joined_timestamp": 2, "connected": true });
    assert_eq!(participants, [expected]);
    let lines = run(server.address, &["who", "--room", "tea"]).lines();
    assert_eq!(lines, [format!("Ada (participant {id}, here since L=2)")]);

    for room in ["room 000", "room 001", "room 002"] {
        run(server.address, &["send", "--name", "bot", "--room", room, "hi"]).lines();
    }
    let rooms = run(server.address, &["rooms", "--json"]).objects();
    let names: Vec<&str> = rooms.iter().map(|room| room["room"].as_str().unwrap()).collect();
    assert_eq!(names, ["room 000", "room 001", "room 002", "tea"]);
    assert_eq!(
        (&rooms[3]["participants"], &rooms[3]["last_sequence"]),
        (&json!(1), &json!(1))
    );
    let lines = run(server.address, &["rooms"]).lines();
    assert_eq!(lines[3], "tea: 1 participant, events 1 to 1, L=2");
}

#[test]
fn tail_begins_with_the_newest_and_goes_on() {
    let server = served::serve(&[]);
    let lines: Vec<String> = (1..=30).map(|number| format!("line {number}")).collect();
    send(server.address, &lines);
    let tail = ["tail", "--room", "tea", "--json"];
    let stopped = run(server.address, &[&tail[..], &["--no-follow"]].concat()).objects();
    assert_eq!(texts(&stopped), lines[20..]);
    let counted = run(
        server.address,
        &[&tail[..], &["--last", "5", "--count", "3"]].concat(),
    )
    .objects();
    assert_eq!(texts(&counted), lines[25..28]);

    let mut following = Running::start(
        server.address,
        &[&tail[..], &["--last", "1", "--count", "4"]].concat(),
    );
    let next = |running: &Running| -> Value { serde_json::from_str(&running.line()).unwrap() };
    assert_eq!(next(&following)["msg_stream"], "line 30");
    send(server.address, &["one".into(), "two".into(), "three".into()]);
    for text in ["one", "two", "three"] {
        assert_eq!(next(&following)["msg_stream"], text);
    }
    assert_eq!(following.ended(), (Some(0), String::new()));
}

#[test]
fn tail_outlasts_its_server() {
    let directory = Directory::new();
    let server = served::serve_at(([127, 0, 0, 1], 0).into(), &directory.flags());
    let address = server.address;
    send(address, &["before".into()]);
    let mut tail = Running::start(address, &["tail", "--room", "tea", "--last", "1", "--count", "2"]);
    assert!(tail.line().ends_with("bot: before"));
    drop(server);
    let _server = served::serve_at(address, &directory.flags());
    send(address, &["after".into()]);
    assert!(tail.line().ends_with("bot: after"));
    let said = "chitchat: reconnecting…\nchitchat: reconnected\n";
    assert_eq!(tail.ended(), (Some(0), said.to_owned()));
}

#[test]
fn a_reader_that_went_away_ends_tail() {
    let server = served::serve(&[]);
    send(server.address, &["one".into()]);
    let mut child = command(server.address, &["tail", "--room", "tea"])
        .spawn()
        .unwrap();
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    stdout.read_line(&mut String::new()).unwrap();
    // Nothing else needs to happen in the room.
    drop(stdout);
    let (_, lines) = mpsc::channel();
    assert_eq!(Running { child, lines }.ended(), (Some(0), String::new()));
}

#[test]
fn what_is_not_there_is_said() {
    let server = served::serve(&[]);
    for arguments in [
        &["history", "--room", "nowhere"][..],
        &["who", "--room", "nowhere"],
        &["tail", "--room", "nowhere"],
        &["tail", "--room", "nowhere", "--last", "0"],
        &["tail", "--room", "nowhere", "--no-follow"],
    ] {
        let ended = run(server.address, arguments);
        assert_eq!(
            (ended.code, ended.lines.len()),
            (Some(66), 0),
            "{arguments:?} {ended:?}"
        );
        assert!(
            ended.stderr.starts_with("chitchat: ") && ended.stderr.contains("nowhere"),
            "{ended:?}"
        );
    }
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    for arguments in [
        &["history"][..],
        &["who"],
        &["rooms"],
        &["tail"],
        &["send", "--name", "bot", "hi"],
    ] {
        let ended = run(nobody, arguments);
        assert_eq!(ended.code, Some(69), "{arguments:?}");
        let line = format!("chitchat: no chat server can be reached at {nobody}: ");
        assert!(
            ended.stderr.starts_with(&line) && ended.stderr.lines().count() == 1,
            "{ended:?}"
        );
    }
}

#[test]
fn what_is_refused_is_told_apart() {
    let server = served::serve(&["--max-message-chars", "10"]);
    let long = "x".repeat(11);
    let ended = run(server.address, &["send", "--name", "bot", &long]);
    assert_eq!(ended.code, Some(65), "{ended:?}");
    assert!(
        ended.stderr.contains("Message too long (11 chars). Limit is 10."),
        "{ended:?}"
    );

    let input = format!("one\n\n{long}\ntwo\n{long}\n");
    let ended = run_with(server.address, &["send", "--name", "bot"], &input);
    assert_eq!((ended.code, ended.lines.len()), (Some(65), 2), "{ended:?}");
    let first = "chitchat: the server refused 2 lines, the first of them line 3: Message too long";
    assert!(ended.stderr.starts_with(first), "{ended:?}");

    let ada = Running::start(server.address, &["chat", "--name", "Ada"]);
    ada.line();
    let ended = run(server.address, &["send", "--name", "Ada", "hi"]);
    assert_eq!(ended.code, Some(77), "{ended:?}");
    let ended = run_with(server.address, &["send", "--name", "Ada"], "\nhi\n");
    assert_eq!(ended.code, Some(77), "{ended:?}");
    assert!(
        ended
            .stderr
            .starts_with("chitchat: line 2 was not acknowledged: "),
        "{ended:?}"
    );

    for arguments in [
        &["send", "hi"][..],
        &["history", "--limit", "-1"],
        &["tail", "--count", "many"],
        &["who", "--room", "\u{202e}"],
    ] {
        assert_eq!(run(server.address, arguments).code, Some(64), "{arguments:?}");
    }
}

#[test]
fn a_message_whose_answer_is_lost_is_sent_again_and_broadcast_once() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap();
    let hall = runtime.block_on(hall::Hall::start());
    hall.lose_answers(2);
    let sent = run(hall.address, &["send", "--name", "bot", "once", "--json"]).objects();
    assert_eq!(sent[0]["repeated"], true);
    assert_eq!(hall.log("lobby").len(), 1);

    hall.lose_answers(1);
    let ended = run(
        hall.address,
        &["send", "--name", "bot", "twice", "--patience", "0s"],
    );
    assert_eq!(
        (ended.code, ended.stderr.as_str()),
        (
            Some(69),
            "chitchat: the server is not available: the server is draining\n"
        )
    );

    // The hall gives two rooms a page.
    for room in ["a", "b", "c", "d"] {
        hall.say(room, "hi");
    }
    let rooms = run(hall.address, &["rooms"]).lines();
    let names: Vec<&str> = rooms.iter().map(|line| line.split(':').next().unwrap()).collect();
    assert_eq!(names, ["a", "b", "c", "d", "lobby"]);

    // What is not kept any more is not passed over in silence.
    for _ in 0..20 {
        hall.say("a", "hi");
    }
    hall.keep("a", 15);
    let ended = run(hall.address, &["history", "--room", "a", "--after", "2"]);
    assert_eq!((ended.code, ended.lines.len()), (Some(0), 15), "{ended:?}");
    assert_eq!(
        ended.stderr,
        "chitchat: events 3 to 6 are missing: the server does not keep them any more\n"
    );
}
