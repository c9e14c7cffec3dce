//! The commands `chat` and `health` as a shell sees them: what goes in, what comes out, how they end.
// Helpers of tests panic as tests do.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

mod scripted;
mod served;

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Longer than anything here takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// A running command. Killed when dropped.
struct Run {
    child: Child,
    stdin: Option<ChildStdin>,
    /// Lines of stdout as they come.
    lines: mpsc::Receiver<String>,
}

#[derive(Debug, PartialEq)]
struct Ended {
    code: Option<i32>,
    lines: Vec<String>,
    stderr: String,
}

impl Run {
    fn start(arguments: &[&str]) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_chitchat"))
            .args(arguments)
            .env_remove("CHITCHAT_NAME")
            .env_remove("CHITCHAT_SERVER")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let (sender, lines) = mpsc::channel();
        thread::spawn(move || {
            for line in stdout.lines() {
                if sender.send(line.unwrap()).is_err() {
                    return;
                }
            }
        });
        let stdin = child.stdin.take();
        Self { child, stdin, lines }
    }

    fn chat(server: SocketAddr, name: &str) -> Self {
        Self::start(&["chat", "--server", &server.to_string(), "--name", name])
    }

    /// One that does not come back when the connection is lost.
    fn chat_once(server: SocketAddr, name: &str) -> Self {
        let server = server.to_string();
        Self::start(&["chat", "--server", &server, "--name", name, "--patience", "0s"])
    }

    fn say(&mut self, text: &str) {
        self.stdin.as_mut().unwrap().write_all(text.as_bytes()).unwrap();
    }

    fn line(&self) -> String {
        self.lines.recv_timeout(PATIENCE).unwrap()
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(i32::try_from(self.child.id()).unwrap()), signal).unwrap();
    }

    fn wait(&mut self) -> ExitStatus {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < deadline, "the command does not end");
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Closes the input and waits for the end.
    fn end(mut self) -> Ended {
        self.stdin = None;
        self.ended()
    }

    /// Waits for the end; the input stays open.
    fn ended(mut self) -> Ended {
        let status = self.wait();
        let mut stderr = String::new();
        self.child
            .stderr
            .take()
            .unwrap()
            .read_to_string(&mut stderr)
            .unwrap();
        Ended {
            code: status.code(),
            lines: self.lines.iter().collect(),
            stderr,
        }
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// Gives `input` to `chat` and waits for its end.
fn pipe(server: SocketAddr, name: &str, input: &str) -> Ended {
    let mut run = Run::chat(server, name);
    run.say(input);
    run.end()
}

/// A server that misbehaves on request, on a runtime of its own, so that the test may block.
fn scripted() -> (tokio::runtime::Runtime, SocketAddr) {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap();
    let address = runtime.block_on(scripted::serve());
    (runtime, address)
}

/// Whether `line` tells that `name` did this.
fn tells(line: &str, name: &str, did: &str) -> bool {
    let Some((time, rest)) = line.strip_prefix("[L=").and_then(|rest| rest.split_once("] ")) else {
        return false;
    };
    rest == format!("Participant {name} {did} Chit Chat at logical time L={time}")
}

fn is_join(line: &str) -> bool {
    tells(line, "bot", "joined")
}

/// Whether `line` is `text`, said by the bot.
fn is_said(line: &str, text: &str) -> bool {
    line.starts_with("[L=") && line.ends_with(&format!("] bot: {text}"))
}

#[test]
fn a_line_in_a_pipe_is_said_and_its_echo_awaited() {
    let served = served::serve(&[]);
    let ended = pipe(served.address, "bot", "hi");
    assert_eq!(ended.lines.len(), 2, "{ended:?}");
    assert!(
        is_join(&ended.lines[0]) && is_said(&ended.lines[1], "hi"),
        "{ended:?}"
    );
    assert_eq!((ended.code, ended.stderr.as_str()), (Some(0), ""));
}

#[test]
fn everybody_sees_the_same_lines() {
    let served = served::serve(&[]);
    let mut ada = Run::chat(served.address, "Ada");
    assert!(tells(&ada.line(), "Ada", "joined"));
    let mut bob = Run::chat(served.address, "Bob");
    assert!(tells(&bob.line(), "Bob", "joined"));
    let mut seen = Vec::new();
    for _ in 0..100 {
        ada.say("from Ada\n");
        bob.say("from Bob\n");
    }
    assert!(tells(&ada.line(), "Bob", "joined"));
    for _ in 0..200 {
        let line = ada.line();
        assert_eq!(line, bob.line());
        seen.push(line);
    }
    let bob = bob.end();
    assert_eq!((bob.code, bob.lines.len()), (Some(0), 0), "{bob:?}");
    assert!(tells(&ada.line(), "Bob", "left"));
    let times: Vec<u64> = seen
        .iter()
        .map(|line| line[3..line.find(']').unwrap()].parse().unwrap())
        .collect();
    assert!(times.is_sorted_by(|earlier, later| earlier < later), "{times:?}");
    assert_eq!(ada.end().code, Some(0));
}

#[test]
fn a_long_file_is_said_whole_and_in_order() {
    let served = served::serve(&[]);
    let server = served.address;
    let input: String = (1..=20_000).map(|line| format!("line {line}\n\n")).collect();
    let mut run = Run::chat(server, "bot");
    let mut stdin = run.stdin.take().unwrap();
    let writer = thread::spawn(move || stdin.write_all(input.as_bytes()));
    assert!(is_join(&run.line()));
    for line in 1..=20_000 {
        assert!(is_said(&run.line(), &format!("line {line}")));
    }
    writer.join().unwrap().unwrap();
    assert_eq!(run.end().code, Some(0));
}

#[test]
fn a_reader_who_pauses_is_waited_for() {
    let served = served::serve(&[]);
    let server = served.address;
    let input: String = (1..=5_000).map(|line| format!("line {line}\n")).collect();
    let mut child = Command::new(env!("CARGO_BIN_EXE_chitchat"))
        .args([
            "chat",
            "--server",
            &server.to_string(),
            "--name",
            "bot",
            "--timeout",
            "200ms",
        ])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let mut stdout = child.stdout.take().unwrap();
    let writer = thread::spawn(move || stdin.write_all(input.as_bytes()));
    // The pause is the test: several times the server's deadline, with more lines than any buffer between holds.
    thread::sleep(Duration::from_secs(1));
    assert!(child.try_wait().unwrap().is_none());
    let mut said = String::new();
    stdout.read_to_string(&mut said).unwrap();
    assert_eq!(said.lines().count(), 5_001);
    writer.join().unwrap().unwrap();
    assert!(child.wait().unwrap().success());
}

#[test]
fn leaving_by_command_ends_the_input() {
    let served = served::serve(&[]);
    let server = served.address;
    let mut run = Run::chat(server, "bot");
    run.say("one\n/leave\ntwo\n");
    // The input stays open.
    let ended = run.ended();
    assert_eq!(ended.code, Some(0));
    assert!(is_said(ended.lines.last().unwrap(), "one"), "{ended:?}");
}

#[test]
fn signals_leave() {
    let served = served::serve(&[]);
    let witness = Run::chat(served.address, "Ada");
    witness.line();
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        let run = Run::chat(served.address, "bot");
        assert!(is_join(&run.line()));
        run.signal(signal);
        let ended = run.ended();
        assert_eq!((ended.code, ended.stderr.as_str()), (Some(0), ""), "{signal}");
        assert!(is_join(&witness.line()));
        assert!(tells(&witness.line(), "bot", "left"));
    }
}

#[test]
fn a_server_that_does_not_let_go_is_left_by_a_second_signal() {
    let (_runtime, server) = scripted();
    let mut run = Run::chat(server, scripted::KEPT);
    run.line();
    let started = Instant::now();
    // The first may still be on its way when the second comes, and two at once are one.
    while run.child.try_wait().unwrap().is_none() {
        assert!(started.elapsed() < PATIENCE);
        run.signal(Signal::SIGINT);
        thread::sleep(Duration::from_millis(20));
    }
    let ended = run.ended();
    assert_eq!(
        (ended.code, ended.stderr.as_str()),
        (Some(130), "chitchat: interrupted\n")
    );
}

#[test]
fn a_server_that_does_not_let_go_holds_nobody() {
    let (_runtime, server) = scripted();
    let mut run = Run::start(&[
        "chat",
        "--server",
        &server.to_string(),
        "--name",
        scripted::KEPT,
        "--timeout",
        "300ms",
    ]);
    run.say("hi\n");
    let ended = run.end();
    assert_eq!((ended.code, ended.stderr.as_str()), (Some(0), ""));
}

#[test]
fn a_signal_ends_a_connection_attempt() {
    for (signal, code) in [(Signal::SIGINT, 130), (Signal::SIGTERM, 143)] {
        // Accepts by the backlog and says nothing.
        let mute = TcpListener::bind("127.0.0.1:0").unwrap();
        let run = Run::chat(mute.local_addr().unwrap(), "bot");
        let (mut stream, _) = mute.accept().unwrap();
        // The preface tells that the command is there and waits for an answer.
        stream.read_exact(&mut [0; 24]).unwrap();
        run.signal(signal);
        let ended = run.ended();
        assert_eq!(
            (ended.code, ended.stderr.as_str()),
            (Some(code), "chitchat: interrupted\n")
        );
    }
}

#[test]
fn what_others_wrote_is_escaped() {
    let (_runtime, server) = scripted();
    let ended = pipe(server, "bot", "attack\n");
    let time = ended.lines[1].split(']').next().unwrap();
    assert_eq!(
        ended.lines[1],
        format!(r"{time}] E\u{{202e}}ve\n: \u{{1b}}[2Jhi\n[L=9] Bob: boo\u{{200b}}")
    );
    assert_eq!(ended.code, Some(0));
}

#[test]
fn a_refused_line_is_shown_and_fails_while_the_rest_is_said() {
    let served = served::serve(&["--max-message-chars", "128"]);
    let long = "é".repeat(354);
    let ended = pipe(served.address, "bot", &format!("one\n{long}\nthree\n{long}\n"));
    let refusal = "Message too long (354 chars). Limit is 128.";
    // A notice is for its receiver alone, and may overtake what goes to everybody.
    let notices = ended
        .lines
        .iter()
        .filter(|line| line.ends_with(&format!("] Server: {refusal}")));
    assert_eq!(notices.count(), 2, "{ended:?}");
    assert!(ended.lines.iter().any(|line| is_said(line, "one")));
    assert!(ended.lines.iter().any(|line| is_said(line, "three")));
    assert_eq!(ended.lines.len(), 5, "{ended:?}");
    assert_eq!(ended.code, Some(65));
    assert_eq!(
        ended.stderr,
        format!("chitchat: the server refused 2 lines, the first of them line 2: {refusal}\n")
    );
}

#[test]
fn a_line_without_an_echo_is_missed() {
    let (_runtime, server) = scripted();
    let mut run = Run::start(&[
        "chat",
        "--server",
        &server.to_string(),
        "--name",
        "bot",
        "--timeout",
        "300ms",
    ]);
    run.say("one\nsilence\nthree\n");
    let ended = run.end();
    assert_eq!(ended.code, Some(69));
    assert_eq!(
        ended.stderr,
        "chitchat: the server did not answer within 300ms; line 2 was not acknowledged\n"
    );
}

#[test]
fn input_that_is_not_text_fails_after_what_came_before_it() {
    let served = served::serve(&[]);
    let server = served.address;
    let mut run = Run::chat(server, "bot");
    run.stdin.as_mut().unwrap().write_all(b"one\n\xff\n").unwrap();
    let ended = run.end();
    assert!(is_said(&ended.lines[1], "one"));
    assert_eq!(
        (ended.code, ended.stderr.as_str()),
        (Some(65), "chitchat: line 2 of the input is not UTF-8\n")
    );
}

#[test]
fn a_refused_name_is_one_line() {
    let served = served::serve(&[]);
    let ada = Run::chat(served.address, "Ada");
    ada.line();
    let ended = pipe(served.address, "ADA", "hi\n");
    assert_eq!(ended.lines, [""; 0]);
    assert_eq!(ended.code, Some(77));
    assert!(
        ended.stderr.starts_with("chitchat: ")
            && ended.stderr.contains("ADA")
            && ended.stderr.lines().count() == 1,
        "{}",
        ended.stderr
    );
}

#[test]
fn a_missing_server_is_one_line() {
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    for command in [&["chat", "--name", "bot"][..], &["health"]] {
        let ended = Run::start(&[command, &["--server", &nobody.to_string()]].concat()).end();
        assert_eq!(ended.code, Some(69));
        let line = format!("chitchat: no chat server can be reached at {nobody}: ");
        assert!(
            ended.stderr.starts_with(&line) && ended.stderr.lines().count() == 1,
            "{}",
            ended.stderr
        );
    }
}

#[test]
fn a_lost_or_draining_server_is_one_line() {
    let (_runtime, server) = scripted();
    for (text, line) in [
        ("cut", "chitchat: the connection was lost: "),
        (
            "drain",
            "chitchat: the server is not available: draining; line 1 was not acknowledged\n",
        ),
        (
            "end",
            "chitchat: the server ended the conversation; line 1 was not acknowledged\n",
        ),
    ] {
        let mut run = Run::chat_once(server, "bot");
        run.say(&format!("{text}\n"));
        // The input stays open: nobody waits for it.
        let ended = run.ended();
        assert_eq!(ended.code, Some(69), "{text}");
        assert!(
            ended.stderr.starts_with(line) && ended.stderr.lines().count() == 1,
            "{}",
            ended.stderr
        );
    }
}

#[test]
fn a_server_that_stops_is_one_line() {
    let served = served::serve(&[]);
    let run = Run::chat_once(served.address, "bot");
    assert!(is_join(&run.line()));
    served.signal(Signal::SIGTERM);
    let ended = run.ended();
    assert_eq!(ended.code, Some(69));
    assert_eq!(
        ended.stderr,
        "chitchat: the server is not available: the server is draining; connect again\n"
    );

    let served = served::serve(&[]);
    let run = Run::chat_once(served.address, "bot");
    assert!(is_join(&run.line()));
    served.signal(Signal::SIGKILL);
    let ended = run.ended();
    assert_eq!(ended.code, Some(69));
    assert!(
        ended.stderr.starts_with("chitchat: the connection was lost: "),
        "{}",
        ended.stderr
    );
}

#[test]
fn a_server_that_is_killed_and_started_again_is_come_back_to() {
    let directory =
        Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("chat-{:032x}", rand::random::<u128>()));
    let flags = ["--data-dir", directory.to_str().unwrap()];
    let free = SocketAddr::from(([127, 0, 0, 1], 0));
    let mut served = served::serve_at(free, &flags);
    let server = served.address;
    let mut run = Run::chat(server, "bot");
    assert!(is_join(&run.line()));
    for round in 1..=3 {
        run.say(&format!("before {round}\n"));
        assert!(is_said(&run.line(), &format!("before {round}")));
        drop(served);
        run.say(&format!("meanwhile {round}\n"));
        served = served::serve_at(server, &flags);
        assert!(is_said(&run.line(), &format!("meanwhile {round}")));
    }
    run.say("the end\n");
    let ended = run.end();
    assert_eq!((ended.code, ended.lines.len()), (Some(0), 1), "{ended:?}");
    assert!(is_said(&ended.lines[0], "the end"));
    assert_eq!(
        ended.stderr,
        "chitchat: reconnecting…\nchitchat: reconnected\n".repeat(3)
    );
    drop(served);
    std::fs::remove_dir_all(directory).unwrap();
}

#[test]
fn a_log_that_was_lost_is_one_line() {
    let served = served::serve(&[]);
    let server = served.address;
    let mut run = Run::chat(server, "bot");
    assert!(is_join(&run.line()));
    drop(served);
    let _served = served::serve_at(server, &["--in-memory"]);
    assert!(is_join(&run.line()));
    run.say("hello\n");
    let ended = run.end();
    assert!(is_said(&ended.lines[0], "hello"), "{ended:?}");
    assert_eq!(
        (ended.code, ended.stderr.as_str()),
        (
            Some(0),
            "chitchat: reconnecting…\n\
             chitchat: reconnected\n\
             chitchat: the events after 1 are missing: the room's log was lost; events of a new log follow from 1\n"
        )
    );
}

#[test]
fn a_reader_that_went_away_ends_quietly() {
    let served = served::serve(&[]);
    let server = served.address;
    let mut child = Command::new(env!("CARGO_BIN_EXE_chitchat"))
        .args(["chat", "--server", &server.to_string(), "--name", "bot"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    stdout.read_line(&mut line).unwrap();
    assert!(is_join(line.trim_end()));
    drop(stdout);
    child.stdin.as_mut().unwrap().write_all(b"one\ntwo\n").unwrap();
    let (_, lines) = mpsc::channel();
    let stdin = child.stdin.take();
    let ended = Run { child, stdin, lines }.ended();
    assert_eq!((ended.code, ended.stderr.as_str()), (Some(0), ""));
}

#[test]
fn wrong_arguments_are_usage() {
    for arguments in [
        &["chat"][..],
        &["chat", "--name", " "],
        &["chat", "--name", "E\u{202e}ve"],
        &["chat", "--name", "bot", "--room", "a\tb"],
        &["chat", "--name", "bot", "--server", "https://localhost:1"],
        &["chat", "--name", "bot", "--timeout", "0s"],
        &["chat", "--name", "bot", "--patience", "2"],
        &["health", "--server", "nowhere:"],
    ] {
        assert_eq!(Run::start(arguments).end().code, Some(64), "{arguments:?}");
    }
}

#[test]
fn arguments_come_from_the_environment_too() {
    let served = served::serve(&[]);
    let server = served.address;
    let mut child = Command::new(env!("CARGO_BIN_EXE_chitchat"))
        .arg("chat")
        .env("CHITCHAT_NAME", "bot")
        .env("CHITCHAT_ROOM", "tea")
        .env("CHITCHAT_SERVER", format!("http://{server}"))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = String::new();
    child.stdout.take().unwrap().read_to_string(&mut said).unwrap();
    assert!(is_join(said.trim_end()));
    assert!(child.wait().unwrap().success());
}

#[test]
fn health_is_an_exit_code() {
    let served = served::serve(&[]);
    let (_runtime, scripted) = scripted();
    let ask = |server: SocketAddr, service: &str| {
        Run::start(&["health", "--server", &server.to_string(), "--service", service]).end()
    };
    for service in ["", "itu.chitchat.ChatService"] {
        let ended = ask(served.address, service);
        assert_eq!(
            (ended.code, ended.lines.as_slice(), ended.stderr.as_str()),
            (Some(0), &["SERVING".to_owned()][..], "")
        );
    }
    let ended = ask(served.address, "nothing");
    assert_eq!(
        (ended.code, ended.lines.as_slice()),
        (Some(69), &["SERVICE_UNKNOWN".to_owned()][..])
    );
    let ended = ask(scripted, "draining");
    assert_eq!(
        (ended.code, ended.lines.as_slice()),
        (Some(69), &["NOT_SERVING".to_owned()][..])
    );
    assert_eq!(ended.stderr, format!("chitchat: {scripted} is NOT_SERVING\n"));
}

#[test]
fn health_does_not_wait_for_ever() {
    let mute = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = mute.local_addr().unwrap();
    let ended = Run::start(&["health", "--server", &address.to_string(), "--timeout", "200ms"]).end();
    assert_eq!(
        (ended.code, ended.stderr),
        (
            Some(69),
            format!("chitchat: {address} did not answer within 200ms\n")
        )
    );
}
