//! Runs the commands that the documents show against a real server and compares their output with what is shown.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

mod process;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;

use process::{CHECKOUT, CHITCHAT, Process, Server, grpcurl, run, serve, succeed, text};

const CARGO_RUN: &str = "cargo run --release --";

const README: &str = "README.md";
const GRPCURL: &str = "docs/grpcurl.md";

fn document(path: &str) -> String {
    fs::read_to_string(Path::new(CHECKOUT).join(path)).unwrap()
}

/// A section of the README.
fn section(heading: &str) -> String {
    let readme = document(README);
    let (_, section) = readme.split_once(&format!("\n## {heading}\n")).unwrap();
    section.split("\n## ").next().unwrap().to_owned()
}

/// A command that is shown, and the output below it.
#[derive(Debug)]
struct Example {
    command: String,
    output: Vec<String>,
}

/// The examples in the `console` blocks of a text.
fn examples(text: &str) -> Vec<Example> {
    let mut examples: Vec<Example> = Vec::new();
    for block in text.split("```console\n").skip(1) {
        let mut continues = false;
        for line in block.split("\n```").next().unwrap().lines() {
            if let Some(command) = line.strip_prefix("$ ") {
                let (command, output) = (command.to_owned(), Vec::new());
                examples.push(Example { command, output });
                continues = true;
            } else if continues {
                let last = examples.last_mut().unwrap();
                last.command.push('\n');
                last.command.push_str(line);
            } else {
                let last = examples.last_mut().unwrap();
                last.output.push(line.to_owned());
            }
            continues = continues && (line.ends_with('\\') || line.ends_with('|'));
        }
    }
    assert!(!examples.is_empty(), "no examples in {text:?}");
    examples
}

/// Replaces what differs from run to run: wall-clock times, epochs and ports.
fn normalize(line: &str, server: &Server) -> String {
    let line = line
        .replace(&server.address.to_string(), "127.0.0.1:50052")
        .replace(&server.admin.to_string(), "127.0.0.1:9464");
    for field in ["\"epoch\": \"", "\"broadcastTime\": \""] {
        if let Some((before, value)) = line.split_once(field) {
            let rest = value.trim_start_matches(|c: char| c.is_ascii_digit() || "-T:.Z".contains(c));
            assert!(rest.len() < value.len(), "{line}");
            return format!("{before}{field}{rest}");
        }
    }
    // The port of a client.
    let line = match line.split_once(" peer=127.0.0.1:") {
        Some((before, peer)) => format!(
            "{before}{}",
            peer.trim_start_matches(|c: char| c.is_ascii_digit())
        ),
        None => line,
    };
    match line.split_once("Z  INFO ") {
        Some((time, rest)) if time.starts_with("20") => format!("INFO {rest}"),
        _ => line,
    }
}

#[test]
fn the_conversation_happens_as_shown() {
    let examples = examples(&section("A conversation"));
    let (server_example, client_examples) = examples.split_first().unwrap();
    assert_eq!(server_example.command, format!("{CARGO_RUN} serve"));
    let mut server = serve(&["--log-format", "pretty"]);

    // All terminals show the same events. Collect them by their time.
    let mut events = BTreeMap::new();
    let mut typed: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for Example { command, output } in client_examples {
        let name = command
            .strip_prefix(&format!("{CARGO_RUN} chat --plain --name "))
            .unwrap();
        for line in output {
            if let Some(input) = line.strip_prefix("> ") {
                typed.entry(name).or_default().push(input);
                continue;
            }
            let (time, event) = line
                .strip_prefix("[L=")
                .and_then(|line| line.split_once("] "))
                .unwrap();
            let time: u64 = time.parse().unwrap();
            let before = events.entry(time).or_insert(event);
            assert_eq!(*before, event, "one order");
        }
    }
    // Hold the conversation event by event.
    let mut clients: BTreeMap<&str, Process> = BTreeMap::new();
    for (time, event) in events {
        let input = match event
            .strip_prefix("Participant ")
            .map(|event| event.split_once(' '))
        {
            Some(Some((name, what))) if what.starts_with("joined ") => {
                let address = server.address.to_string();
                let mut chat = Command::new(CHITCHAT);
                chat.args(["chat", "--name", name, "--server", &address]);
                clients.insert(name, Process::start(&mut chat));
                None
            }
            Some(Some((name, _))) => Some((name, "/leave")),
            _ => event.split_once(": "),
        };
        if let Some((name, input)) = input {
            assert_eq!(typed.get_mut(name).unwrap().remove(0), input);
            clients.get_mut(name).unwrap().write_line(input);
        }
        let line = format!("[L={time}] {event}");
        for Example { command, output } in client_examples {
            if output.contains(&line) {
                let name = command.rsplit(' ').next().unwrap();
                assert_eq!(clients.get_mut(name).unwrap().stdout_line(""), line, "{name}");
            }
        }
        // The server logs that a stream has ended when it ends it, which others may see later than the event.
        if let Some((name, "/leave")) = input {
            assert_eq!(clients.get_mut(name).unwrap().wait().code(), Some(0), "{name}");
        }
    }
    // The remaining participants leave.
    for (name, left) in typed {
        let client = clients.get_mut(name).unwrap();
        match left.as_slice() {
            [] => {}
            ["/leave"] => client.write_line("/leave"),
            more => panic!("{name} types {more:?}"),
        }
        assert_eq!(client.wait().code(), Some(0), "{name}");
    }
    let drawn = section("Draw it");
    let (_, drawn) = drawn.split_once("```mermaid\n").unwrap();
    let mut diagram = Command::new(CHITCHAT);
    diagram.args(["diagram", "--server", &server.address.to_string()]);
    assert_eq!(drawn.split("```").next().unwrap(), succeed(&mut diagram, ""));
    // The announcement and the log of the server are written by two threads, in any order.
    let (announced, logged): (Vec<&String>, _) = server_example
        .output
        .iter()
        .partition(|line| line.starts_with("chitchat: "));
    assert_eq!(announced, [&normalize(&server.announcement.clone(), &server)]);
    for line in logged {
        let logged_line = server.log_line("");
        assert_eq!(normalize(&logged_line, &server), normalize(line, &server));
    }
}

#[test]
fn commands_print_what_is_shown() {
    let grpcurl = grpcurl();
    let server = serve(&[]);
    // The page about grpcurl continues the section with the same server.
    for Example { command, output } in examples(&(section("Post from a script") + &document(GRPCURL))) {
        let printed = if let Some(path) = command.strip_prefix("curl -s localhost:9464") {
            let page = server.get(path);
            page.split_once("\r\n\r\n").unwrap().1.to_owned()
        } else {
            let mut script = command
                .replace(CARGO_RUN, CHITCHAT)
                .replace("localhost:50052", &server.address.to_string());
            if script.contains("grpcurl -plaintext") {
                let Some(grpcurl) = &grpcurl else { continue };
                script = script.replace("grpcurl -plaintext", &format!("'{grpcurl}' -plaintext"));
            }
            let mut shell = Command::new("sh");
            shell
                .args(["-c", &format!("{{ {script}\n}} 2>&1")])
                .env("CHITCHAT_SERVER", server.address.to_string());
            text(&run(&mut shell, "").stdout)
        };
        let printed: Vec<_> = printed.lines().map(|line| normalize(line, &server)).collect();
        let output: Vec<_> = output.iter().map(|line| normalize(line, &server)).collect();
        assert_eq!(printed, output, "{command}");
    }
}

#[test]
fn the_exit_codes_are_those_of_the_help() {
    let help = succeed(Command::new(CHITCHAT).arg("--help"), "");
    let (_, codes) = help.split_once("Exit codes:\n").unwrap();
    let expected: Vec<String> = codes
        .lines()
        .map(|line| line.trim().split_once("  ").unwrap())
        .map(|(code, meaning)| format!("| {code} | {} |", meaning.trim()))
        .collect();
    let section = section("Post from a script");
    let (_, table) = section.split_once("| code | meaning |\n| --- | --- |\n").unwrap();
    let shown: Vec<&str> = table.lines().take_while(|line| line.starts_with('|')).collect();
    assert_eq!(shown, expected);
}

#[test]
fn metrics_that_are_mentioned_exist() {
    let metrics = serve(&[]).get("/metrics");
    let readme = document(README);
    let named = readme
        .split('`')
        .filter(|word| word.starts_with("chitchat_") && !word.contains(char::is_whitespace));
    let mut count = 0;
    for name in named {
        assert!(metrics.contains(&format!("# TYPE {name} ")), "no metric {name}");
        count += 1;
    }
    assert!(count > 0, "the README names metrics");
}
