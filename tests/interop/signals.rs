//! How the server process ends on signals, as a process manager sends them.

use std::net::TcpStream;
use std::process::Command;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::process::{CHITCHAT, Process, Server, serve};

/// Starts a `chat` that has joined.
fn participant(server: &Server, name: &str) -> Process {
    let mut command = Command::new(CHITCHAT);
    command.args(["chat", "--name", name, "--server", &server.address.to_string()]);
    let chat = Process::start(&mut command);
    chat.stdout_line(&format!("Participant {name} joined"));
    chat
}

#[test]
fn sigterm_ends_a_server_with_clients_within_the_drain_timeout() {
    let mut server = serve(&["--drain-timeout", "20s"]);
    let mut ada = participant(&server, "Ada");
    let mut bob = participant(&server, "Bob");
    ada.write_line("before the end");
    bob.stdout_line("before the end");
    let signalled = Instant::now();
    server.signal(Signal::SIGTERM);
    assert_eq!(server.wait().code(), Some(0));
    assert!(
        signalled.elapsed() < Duration::from_secs(20),
        "it took {:?}",
        signalled.elapsed()
    );
    // The clients try to reconnect until their input ends.
    for client in [&mut ada, &mut bob] {
        client.stderr_line("chitchat: reconnecting");
        client.close_stdin();
        assert_eq!(client.wait().code(), Some(0));
    }
}

#[test]
fn sigint_ends_the_server_too() {
    let mut server = serve(&[]);
    server.signal(Signal::SIGINT);
    assert_eq!(server.wait().code(), Some(0));
}

#[test]
fn clients_that_do_not_disconnect_are_cut_at_the_drain_timeout() {
    let mut server = serve(&["--drain-timeout", "300ms"]);
    // A stopped client does not even answer the GOAWAY.
    let ada = participant(&server, "Ada");
    ada.signal(Signal::SIGSTOP);
    let silent = TcpStream::connect(server.address).unwrap();
    server.signal(Signal::SIGTERM);
    assert_eq!(server.wait().code(), Some(0));
    drop(silent);
}

#[test]
fn a_second_signal_ends_the_server_at_once() {
    let mut server = serve(&["--drain-timeout", "1h"]);
    // A stopped client delays the drain.
    let ada = participant(&server, "Ada");
    ada.signal(Signal::SIGSTOP);
    let silent = TcpStream::connect(server.address).unwrap();
    server.signal(Signal::SIGTERM);
    server.log_line("\"event\":\"draining\"");
    server.signal(Signal::SIGINT);
    assert_eq!(server.wait().code(), Some(130));
    server.stderr_line("SIGINT after SIGTERM: ending at once");
    drop(silent);
}
