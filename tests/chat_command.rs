//! The commands `chat` and `health` as a shell sees them: input, output and exit codes.
// Helpers of tests panic as tests do.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

mod faulty_server;
mod process;

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use process::{
    CHITCHAT, FREE_PORT, Finished, Process, TIMEOUT, serve, serve_at, spawn, succeed, unused_address,
};

/// `chitchat` with `arguments` and nothing from the environment.
fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(CHITCHAT);
    command
        .args(arguments)
        .env_remove("CHITCHAT_NAME")
        .env_remove("CHITCHAT_SERVER");
    command
}

fn start(arguments: &[&str]) -> Process {
    Process::start(&mut command(arguments))
}

fn chat_command(server: SocketAddr, name: &str, flags: &[&str]) -> Command {
    let server = server.to_string();
    command(&[&["chat", "--server", &server, "--name", name], flags].concat())
}

fn chat(server: SocketAddr, name: &str) -> Process {
    Process::start(&mut chat_command(server, name, &[]))
}

/// A `chat` that does not reconnect.
fn chat_once(server: SocketAddr) -> Process {
    Process::start(&mut chat_command(server, "bot", &["--patience", "0s"]))
}

/// A `chat` that waits only this long for the server.
fn chat_with_timeout(server: SocketAddr, name: &str, timeout: &str) -> Process {
    Process::start(&mut chat_command(server, name, &["--timeout", timeout]))
}

/// Runs `chat` with `input` on its stdin.
fn pipe(server: SocketAddr, name: &str, input: &str) -> Finished {
    let mut chat = chat(server, name);
    chat.write(input);
    chat.finish()
}

/// Whether `line` is the event that `name` joined or left.
fn is_event(line: &str, name: &str, did: &str) -> bool {
    let Some((time, rest)) = line.strip_prefix("[L=").and_then(|rest| rest.split_once("] ")) else {
        return false;
    };
    rest == format!("Participant {name} {did} Chit Chat at logical time L={time}")
}

fn is_join(line: &str) -> bool {
    is_event(line, "bot", "joined")
}

/// Whether `line` is the message `text` from the bot.
fn is_message(line: &str, text: &str) -> bool {
    line.starts_with("[L=") && line.ends_with(&format!("] bot: {text}"))
}

#[test]
fn piped_input_is_sent_and_its_echo_awaited() {
    let server = serve(&[]);
    let finished = pipe(server.address, "bot", "hi");
    assert_eq!(finished.lines.len(), 2, "{finished:?}");
    assert!(
        is_join(&finished.lines[0]) && is_message(&finished.lines[1], "hi"),
        "{finished:?}"
    );
    assert_eq!(finished.outcome(), (Some(0), ""));
}

#[test]
fn all_participants_see_the_same_lines() {
    let server = serve(&[]);
    let mut ada = chat(server.address, "Ada");
    assert!(is_event(&ada.line(), "Ada", "joined"));
    let mut bob = chat(server.address, "Bob");
    assert!(is_event(&bob.line(), "Bob", "joined"));
    let mut seen = Vec::new();
    for _ in 0..100 {
        ada.write("from Ada\n");
        bob.write("from Bob\n");
    }
    assert!(is_event(&ada.line(), "Bob", "joined"));
    for _ in 0..200 {
        let line = ada.line();
        assert_eq!(line, bob.line());
        seen.push(line);
    }
    let bob = bob.finish();
    assert_eq!((bob.code, bob.lines.len()), (Some(0), 0), "{bob:?}");
    assert!(is_event(&ada.line(), "Bob", "left"));
    let times: Vec<u64> = seen
        .iter()
        .map(|line| line[3..line.find(']').unwrap()].parse().unwrap())
        .collect();
    assert!(times.is_sorted_by(|earlier, later| earlier < later), "{times:?}");
    assert_eq!(ada.finish().code, Some(0));
}

#[test]
fn a_long_input_is_sent_completely_and_in_order() {
    let server = serve(&[]);
    let input: String = (1..=20_000).map(|line| format!("line {line}\n\n")).collect();
    let mut chat = chat(server.address, "bot");
    let mut stdin = chat.take_stdin().unwrap();
    let writer = thread::spawn(move || stdin.write_all(input.as_bytes()));
    assert!(is_join(&chat.line()));
    for line in 1..=20_000 {
        assert!(is_message(&chat.line(), &format!("line {line}")));
    }
    writer.join().unwrap().unwrap();
    assert_eq!(chat.finish().code, Some(0));
}

#[test]
fn output_that_is_read_late_is_complete() {
    let server = serve(&[]);
    let input: String = (1..=5_000).map(|line| format!("line {line}\n")).collect();
    let mut child = spawn(&mut chat_command(server.address, "bot", &["--timeout", "200ms"]));
    let mut stdin = child.stdin.take().unwrap();
    let mut stdout = child.stdout.take().unwrap();
    let writer = thread::spawn(move || stdin.write_all(input.as_bytes()));
    // The pause is the test: several times the server's deadline, with more lines than the buffers in between hold.
    thread::sleep(Duration::from_secs(1));
    assert!(child.try_wait().unwrap().is_none());
    let mut output = String::new();
    stdout.read_to_string(&mut output).unwrap();
    assert_eq!(output.lines().count(), 5_001);
    writer.join().unwrap().unwrap();
    assert!(child.wait().unwrap().success());
}

#[test]
fn the_leave_command_ends_the_input() {
    let server = serve(&[]);
    let mut chat = chat(server.address, "bot");
    chat.write("one\n/leave\ntwo\n");
    let finished = chat.finish_with_open_stdin();
    assert_eq!(finished.code, Some(0));
    assert!(is_message(finished.lines.last().unwrap(), "one"), "{finished:?}");
}

#[test]
fn a_signal_leaves_the_room() {
    let server = serve(&[]);
    let witness = chat(server.address, "Ada");
    witness.line();
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        let chat = chat(server.address, "bot");
        assert!(is_join(&chat.line()));
        chat.signal(signal);
        let finished = chat.finish_with_open_stdin();
        assert_eq!(finished.outcome(), (Some(0), ""), "{signal}");
        assert!(is_join(&witness.line()));
        assert!(is_event(&witness.line(), "bot", "left"));
    }
}

#[test]
fn a_second_signal_exits_while_the_server_keeps_the_stream_open() {
    let (_runtime, server) = faulty_server::start_in_background();
    let mut chat = chat(server, faulty_server::NEVER_RELEASED);
    chat.line();
    let started = Instant::now();
    // Two signals that are pending at the same time are one, so repeat them.
    while !chat.has_exited() {
        assert!(started.elapsed() < TIMEOUT);
        chat.signal(Signal::SIGINT);
        thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(
        chat.finish_with_open_stdin().outcome(),
        (Some(130), "chitchat: interrupted\n")
    );
}

#[test]
fn leaving_times_out_while_the_server_keeps_the_stream_open() {
    let (_runtime, server) = faulty_server::start_in_background();
    let mut chat = chat_with_timeout(server, faulty_server::NEVER_RELEASED, "300ms");
    chat.write("hi\n");
    assert_eq!(chat.finish().outcome(), (Some(0), ""));
}

#[test]
fn a_signal_interrupts_connecting() {
    for (signal, code) in [(Signal::SIGINT, 130), (Signal::SIGTERM, 143)] {
        // The kernel accepts the connection; nothing answers on it.
        let silent = TcpListener::bind(FREE_PORT).unwrap();
        let chat = chat(silent.local_addr().unwrap(), "bot");
        let (mut stream, _) = silent.accept().unwrap();
        // After the HTTP/2 preface the command waits for an answer.
        stream.read_exact(&mut [0; 24]).unwrap();
        chat.signal(signal);
        assert_eq!(
            chat.finish_with_open_stdin().outcome(),
            (Some(code), "chitchat: interrupted\n")
        );
    }
}

#[test]
fn names_and_texts_of_others_are_escaped() {
    let (_runtime, server) = faulty_server::start_in_background();
    let finished = pipe(server, "bot", "attack\n");
    let time = finished.lines[1].split(']').next().unwrap();
    assert_eq!(
        finished.lines[1],
        format!(r#"{time}] "E\u{{202e}}ve\n" (participant 3): \u{{1b}}[2Jhi"#)
    );
    assert_eq!(finished.lines[2], r"  | [L=9] Bob: boo\u{200b}");
    assert_eq!(finished.code, Some(0));
}

#[test]
fn a_rejected_line_fails_the_command_and_the_other_lines_are_sent() {
    let server = serve(&["--max-message-chars", "128"]);
    let long = "é".repeat(354);
    let finished = pipe(server.address, "bot", &format!("one\n{long}\nthree\n{long}\n"));
    let rejection = "Message too long (354 chars). Limit is 128.";
    // A notice goes to one participant, and may overtake what goes to all.
    let notices = finished
        .lines
        .iter()
        .filter(|line| line.ends_with(&format!("] Server: {rejection}")));
    assert_eq!(notices.count(), 2, "{finished:?}");
    assert!(finished.lines.iter().any(|line| is_message(line, "one")));
    assert!(finished.lines.iter().any(|line| is_message(line, "three")));
    assert_eq!(finished.lines.len(), 5, "{finished:?}");
    assert_eq!(finished.code, Some(65));
    assert_eq!(
        finished.stderr,
        format!("chitchat: the server rejected 2 lines, the first of them line 2: {rejection}\n")
    );
}

#[test]
fn a_line_without_an_echo_is_reported() {
    let (_runtime, server) = faulty_server::start_in_background();
    let mut chat = chat_with_timeout(server, "bot", "300ms");
    chat.write("one\nsilence\nthree\n");
    assert_eq!(
        chat.finish().outcome(),
        (
            Some(69),
            "chitchat: the server did not answer within 300ms; line 2 was not acknowledged\n"
        )
    );
}

#[test]
fn invalid_utf8_fails_after_the_lines_before_it_are_sent() {
    let server = serve(&[]);
    let mut chat = chat(server.address, "bot");
    chat.write(b"one\n\xff\n");
    let finished = chat.finish();
    assert!(is_message(&finished.lines[1], "one"));
    assert_eq!(
        finished.outcome(),
        (Some(65), "chitchat: line 2 of the input is not UTF-8\n")
    );
}

#[test]
fn a_rejected_name_prints_one_line() {
    let server = serve(&[]);
    let ada = chat(server.address, "Ada");
    ada.line();
    let finished = pipe(server.address, "ADA", "hi\n");
    assert_eq!(finished.lines, [""; 0]);
    finished.assert_failed(77, "chitchat: ");
    assert!(finished.stderr.contains("ADA"), "{}", finished.stderr);
}

#[test]
fn an_unreachable_server_prints_one_line() {
    let unused = unused_address();
    for command in [&["chat", "--name", "bot"][..], &["health"]] {
        let finished = start(&[command, &["--server", &unused.to_string()]].concat()).finish();
        finished.assert_failed(
            69,
            &format!("chitchat: no chat server can be reached at {unused}: "),
        );
    }
}

#[test]
fn the_reason_for_a_lost_stream_is_one_line() {
    let (_runtime, server) = faulty_server::start_in_background();
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
        let mut chat = chat_once(server);
        chat.write(format!("{text}\n"));
        chat.finish_with_open_stdin().assert_failed(69, line);
    }
}

#[test]
fn a_server_that_stops_prints_one_line() {
    let server = serve(&[]);
    let chat = chat_once(server.address);
    assert!(is_join(&chat.line()));
    server.signal(Signal::SIGTERM);
    assert_eq!(
        chat.finish_with_open_stdin().outcome(),
        (
            Some(69),
            "chitchat: the server is not available: the server is draining; connect again\n"
        )
    );

    let server = serve(&[]);
    let chat = chat_once(server.address);
    assert!(is_join(&chat.line()));
    server.signal(Signal::SIGKILL);
    chat.finish_with_open_stdin()
        .assert_failed(69, "chitchat: the connection was lost: ");
}

#[test]
fn chat_reconnects_to_a_restarted_server() {
    let directory = tempfile::tempdir().unwrap();
    let flags = ["--data-dir", directory.path().to_str().unwrap()];
    let mut server = serve_at(FREE_PORT, &flags);
    let address = server.address;
    let mut chat = chat(address, "bot");
    assert!(is_join(&chat.line()));
    for round in 1..=3 {
        chat.write(format!("before {round}\n"));
        assert!(is_message(&chat.line(), &format!("before {round}")));
        drop(server);
        chat.write(format!("meanwhile {round}\n"));
        server = serve_at(address, &flags);
        assert!(is_message(&chat.line(), &format!("meanwhile {round}")));
    }
    chat.write("the end\n");
    let finished = chat.finish();
    assert_eq!(
        (finished.code, finished.lines.len()),
        (Some(0), 1),
        "{finished:?}"
    );
    assert!(is_message(&finished.lines[0], "the end"));
    assert_eq!(
        finished.stderr,
        "chitchat: reconnecting…\nchitchat: reconnected\n".repeat(3)
    );
}

#[test]
fn a_lost_log_prints_one_line() {
    let server = serve(&[]);
    let address = server.address;
    let mut chat = chat(address, "bot");
    assert!(is_join(&chat.line()));
    drop(server);
    let _server = serve_at(address, &["--in-memory"]);
    assert!(is_join(&chat.line()));
    chat.write("hello\n");
    let finished = chat.finish();
    assert!(is_message(&finished.lines[0], "hello"), "{finished:?}");
    assert_eq!(
        finished.outcome(),
        (
            Some(0),
            "chitchat: reconnecting…\n\
             chitchat: reconnected\n\
             chitchat: the events after 1 are missing: the room's log was lost and replaced; its events follow from 1\n"
        )
    );
}

#[test]
fn lines_are_sent_although_stdout_is_closed() {
    for flags in [&[][..], &["--json"]] {
        let server = serve(&[]);
        let mut child = spawn(&mut chat_command(server.address, "bot", flags));
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        stdout.read_line(&mut String::new()).unwrap();
        drop(stdout);
        let mut chat = Process::from(child);
        let lines: Vec<String> = (1..=300).map(|number| format!("line {number}")).collect();
        chat.write(lines.join("\n"));
        assert_eq!(chat.finish().outcome(), (Some(0), ""));
        let address = server.address.to_string();
        let history = ["history", "-n", "1000", "--server", &address];
        let history = process::succeed(&mut command(&history), "");
        let sent: Vec<&str> = history
            .lines()
            .filter_map(|line| Some(line.split_once("bot: ")?.1))
            .collect();
        assert_eq!(sent, lines);
    }
}

#[test]
fn invalid_arguments_are_usage_errors() {
    for arguments in [
        &["chat", "--name", " "][..],
        &["chat", "--name", "E\u{202e}ve"],
        &["chat", "--name", "bot", "--room", "a\tb"],
        &["chat", "--name", "bot", "--server", "ftp://localhost:1"],
        &["chat", "--name", "bot", "--timeout", "0s"],
        &["chat", "--name", "bot", "--patience", "2"],
        &["health", "--server", "nowhere:"],
    ] {
        assert_eq!(start(arguments).finish().code, Some(64), "{arguments:?}");
    }
}

#[test]
fn arguments_can_come_from_the_environment() {
    let server = serve(&[]);
    let mut command = command(&["chat"]);
    command
        .env("CHITCHAT_NAME", "bot")
        .env("CHITCHAT_ROOM", "tea")
        .env("CHITCHAT_SERVER", format!("http://{}", server.address));
    assert!(is_join(succeed(&mut command, "").trim_end()));
}

#[test]
fn health_reports_by_exit_code() {
    let server = serve(&[]);
    let (_runtime, faulty) = faulty_server::start_in_background();
    let check = |server: SocketAddr, service: &str| {
        start(&["health", "--server", &server.to_string(), "--service", service]).finish()
    };
    for service in ["", "itu.chitchat.ChatService"] {
        let finished = check(server.address, service);
        assert_eq!(finished.outcome(), (Some(0), ""));
        assert_eq!(finished.lines, ["SERVING"]);
    }
    let finished = check(server.address, "nothing");
    assert_eq!(finished.code, Some(69));
    assert_eq!(finished.lines, ["SERVICE_UNKNOWN"]);
    let finished = check(faulty, "draining");
    assert_eq!(finished.lines, ["NOT_SERVING"]);
    let line = format!("chitchat: {faulty} is NOT_SERVING\n");
    assert_eq!(finished.outcome(), (Some(69), line.as_str()));
}

#[test]
fn health_times_out() {
    let silent = TcpListener::bind(FREE_PORT).unwrap();
    let address = silent.local_addr().unwrap();
    let finished = start(&["health", "--server", &address.to_string(), "--timeout", "200ms"]).finish();
    let line = format!("chitchat: {address} did not answer within 200ms\n");
    assert_eq!(finished.outcome(), (Some(69), line.as_str()));
}
