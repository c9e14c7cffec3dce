//! What the README shows is what happens: its commands are run against the real server, and their output is compared.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

mod outside;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;

use chitchat::domain::limits::{
    DEDUP_WINDOW_LEN, MAX_MESSAGE_CHARS_CEILING, MAX_MESSAGE_ID_LEN, MAX_NAME_CHARS, MAX_TIMESTAMP,
};
use outside::{CHECKOUT, CHITCHAT, Running, Server, grpcurl, run, serve, serve_flags, succeed, text};

/// How the README calls the program.
const CARGO_RUN: &str = "cargo run --release --";

fn readme() -> String {
    fs::read_to_string(Path::new(CHECKOUT).join("README.md")).unwrap()
}

/// A command that the README shows, and what it shows below it.
#[derive(Debug)]
struct Shown {
    command: String,
    output: Vec<String>,
}

/// What a section of the README shows in its `console` blocks.
fn section(heading: &str) -> Vec<Shown> {
    let readme = readme();
    let (_, section) = readme.split_once(&format!("\n## {heading}\n")).unwrap();
    let section = section.split("\n## ").next().unwrap();
    let mut shown: Vec<Shown> = Vec::new();
    for block in section.split("```console\n").skip(1) {
        let mut goes_on = false;
        for line in block.split("\n```").next().unwrap().lines() {
            if let Some(command) = line.strip_prefix("$ ") {
                let (command, output) = (command.to_owned(), Vec::new());
                shown.push(Shown { command, output });
                goes_on = true;
            } else if goes_on {
                let last = shown.last_mut().unwrap();
                last.command.push('\n');
                last.command.push_str(line);
            } else {
                let last = shown.last_mut().unwrap();
                last.output.push(line.to_owned());
            }
            goes_on = goes_on && (line.ends_with('\\') || line.ends_with('|'));
        }
    }
    assert!(!shown.is_empty(), "nothing is shown under {heading:?}");
    shown
}

/// Without what differs from run to run: the wall clock, epochs, which ports were free.
fn timeless(line: &str, server: &Server) -> String {
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
    match line.split_once("Z  INFO ") {
        Some((time, rest)) if time.starts_with("20") => format!("INFO {rest}"),
        _ => line,
    }
}

#[test]
fn the_conversation_is_as_shown() {
    let shown = section("A conversation");
    let (server_shown, clients_shown) = shown.split_first().unwrap();
    assert_eq!(server_shown.command, format!("{CARGO_RUN} serve"));
    let mut server = serve(&["--log-format", "pretty"]);

    // All terminals show the same events: put them in their order.
    let mut events = BTreeMap::new();
    let mut typed: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for Shown { command, output } in clients_shown {
        let name = command
            .strip_prefix(&format!("{CARGO_RUN} chat --name "))
            .unwrap();
        for line in output {
            if let Some(said) = line.strip_prefix("> ") {
                typed.entry(name).or_default().push(said);
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
    // Then hold the conversation.
    let mut clients: BTreeMap<&str, Running> = BTreeMap::new();
    for (time, event) in events {
        let words = match event
            .strip_prefix("Participant ")
            .map(|event| event.split_once(' '))
        {
            Some(Some((name, what))) if what.starts_with("joined ") => {
                let address = server.address.to_string();
                let mut chat = Command::new(CHITCHAT);
                chat.args(["chat", "--name", name, "--server", &address]);
                clients.insert(name, Running::start(&mut chat));
                None
            }
            Some(Some((name, _))) => Some((name, "/leave")),
            _ => event.split_once(": "),
        };
        if let Some((name, said)) = words {
            assert_eq!(typed.get_mut(name).unwrap().remove(0), said);
            clients.get_mut(name).unwrap().type_line(said);
        }
        let line = format!("[L={time}] {event}");
        for Shown { command, output } in clients_shown {
            if output.contains(&line) {
                let name = command.rsplit(' ').next().unwrap();
                assert_eq!(clients.get_mut(name).unwrap().line(""), line, "{name}");
            }
        }
    }
    // Whoever is left goes; nobody hears of it.
    for (name, left) in typed {
        let client = clients.get_mut(name).unwrap();
        match left.as_slice() {
            [] => {}
            ["/leave"] => client.type_line("/leave"),
            more => panic!("{name} types {more:?}"),
        }
        assert_eq!(client.exit().code(), Some(0), "{name}");
    }
    // What the server says, on its terminal.
    // (Its log and its announcement are written by two threads, in either order.)
    let (announced, logged): (Vec<&String>, _) = server_shown
        .output
        .iter()
        .partition(|line| line.starts_with("chitchat: "));
    assert_eq!(announced, [&timeless(&server.announcement.clone(), &server)]);
    for line in logged {
        let said = server.logs("");
        assert_eq!(timeless(&said, &server), timeless(line, &server));
    }
}

#[test]
fn commands_answer_as_shown() {
    let grpcurl = grpcurl();
    let server = serve(&[]);
    for Shown { command, output } in section("In scripts, and with grpcurl") {
        let answer = if let Some(path) = command.strip_prefix("curl -s localhost:9464") {
            let page = server.page(path);
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
        let answer: Vec<_> = answer.lines().map(|line| timeless(line, &server)).collect();
        let output: Vec<_> = output.iter().map(|line| timeless(line, &server)).collect();
        assert_eq!(answer, output, "{command}");
    }
}

#[test]
fn limits_are_as_shown() {
    let readme = readme();
    let (_, section) = readme.split_once("\n## Limits\n").unwrap();
    let section = section.split("\n## ").next().unwrap();
    let rows: Vec<Vec<&str>> = section
        .lines()
        .filter_map(|line| {
            Some(
                line.strip_prefix("| ")?
                    .strip_suffix(" |")?
                    .split(" | ")
                    .collect(),
            )
        })
        .collect();

    let flags = serve_flags();
    let help = succeed(Command::new(CHITCHAT).args(["serve", "--help"]), "");
    let help: Vec<&str> = help.split_whitespace().collect();
    let help = help.join(" ");
    let mut shown = Vec::new();
    for row in rows
        .iter()
        .filter(|row| row.len() == 4 && row[0].starts_with("`--"))
    {
        let name = row[0].trim_matches('`');
        let flag = flags.iter().find(|flag| flag.name == name);
        let flag = flag.unwrap_or_else(|| panic!("serve has no {name}"));
        assert_eq!(row[1].trim_matches('`'), flag.variable, "{name}");
        match (&flag.default, row[2]) {
            (Some(default), shown) => assert_eq!(shown, default, "{name}"),
            (None, "off") => {}
            (None, shown) => assert!(help.contains(&format!("[default: {shown}]")), "{name}: {shown}"),
        }
        shown.push(name);
    }
    let limits = flags
        .iter()
        .filter(|flag| ["Store:", "Rooms:", "Connections:"].contains(&flag.heading.as_str()));
    for limit in limits {
        assert!(
            shown.contains(&limit.name.as_str()),
            "{} is not shown",
            limit.name
        );
    }

    assert_eq!(MAX_TIMESTAMP, 1 << 62);
    for (what, value) in [
        (
            "a name, of a participant or a room",
            format!("{MAX_NAME_CHARS} characters"),
        ),
        (
            "a message id",
            format!("{MAX_MESSAGE_ID_LEN} visible ASCII characters"),
        ),
        (
            "message ids remembered, per room",
            format!("those of the newest {DEDUP_WINDOW_LEN} events, as far as they are kept"),
        ),
        (
            "`--max-message-chars`",
            format!("at most {MAX_MESSAGE_CHARS_CEILING}"),
        ),
        ("a client's Lamport time", "at most 2^62".to_owned()),
    ] {
        assert!(rows.contains(&vec![what, &value]), "no row says {what}: {value}");
    }
}

#[test]
fn metrics_that_are_named_exist() {
    let metrics = serve(&[]).page("/metrics");
    let readme = readme();
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
