//! What a process manager does to the server, and what it gets.

use std::net::TcpStream;
use std::process::Command;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::outside::{CHITCHAT, Running, Server, serve};

/// A participant, who has joined.
fn participant(server: &Server, name: &str) -> Running {
    let mut command = Command::new(CHITCHAT);
    command.args(["chat", "--name", name, "--server", &server.address.to_string()]);
    let mut chat = Running::start(&mut command);
    chat.line(&format!("Participant {name} joined"));
    chat
}

#[test]
fn sigterm_ends_a_server_with_clients_in_time() {
    let mut server = serve(&["--drain-timeout", "20s"]);
    let mut ada = participant(&server, "Ada");
    let mut bob = participant(&server, "Bob");
    ada.type_line("before the end");
    bob.line("before the end");
    let asked = Instant::now();
    server.signal(Signal::SIGTERM);
    assert_eq!(server.exit().code(), Some(0));
    assert!(
        asked.elapsed() < Duration::from_secs(20),
        "it took {:?}",
        asked.elapsed()
    );
    // They are told to reconnect and try to, until they have nothing more to say.
    for client in [&mut ada, &mut bob] {
        client.error_line("chitchat: reconnecting");
        client.close_stdin();
        assert_eq!(client.exit().code(), Some(0));
    }
}

#[test]
fn sigint_is_as_good() {
    let mut server = serve(&[]);
    server.signal(Signal::SIGINT);
    assert_eq!(server.exit().code(), Some(0));
}

#[test]
fn the_deadline_cuts_who_does_not_go() {
    let mut server = serve(&["--drain-timeout", "300ms"]);
    // A client that is stopped answers nothing, not even that the connection is to be closed.
    let ada = participant(&server, "Ada");
    ada.signal(Signal::SIGSTOP);
    let silent = TcpStream::connect(server.address).unwrap();
    server.signal(Signal::SIGTERM);
    assert_eq!(server.exit().code(), Some(0));
    drop(silent);
}

#[test]
fn a_second_signal_ends_the_server_at_once() {
    let mut server = serve(&["--drain-timeout", "1h"]);
    // Holds the draining up: it is connected and says nothing.
    let ada = participant(&server, "Ada");
    ada.signal(Signal::SIGSTOP);
    let silent = TcpStream::connect(server.address).unwrap();
    server.signal(Signal::SIGTERM);
    server.logs("\"event\":\"draining\"");
    server.signal(Signal::SIGINT);
    assert_eq!(server.exit().code(), Some(130));
    server.says("SIGINT after SIGTERM: ending at once");
    drop(silent);
}
