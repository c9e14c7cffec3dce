//! A new server takes the place of an old one.

use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::process::{Command, Stdio};

use nix::sys::signal::Signal;

use crate::process::{CHITCHAT, FREE_PORT, Process, Server, serve_at, succeed, unused_address};

fn send(server: &Server, text: &str) {
    let address = server.address.to_string();
    succeed(
        Command::new(CHITCHAT).args(["send", "--server", &address, "--name", "Ada", text]),
        "",
    );
}

fn history(server: &Server) -> String {
    let address = server.address.to_string();
    succeed(Command::new(CHITCHAT).args(["history", "--server", &address]), "")
}

#[test]
fn a_new_server_waits_until_the_old_one_has_ended() {
    let directory = tempfile::tempdir().unwrap();
    let data = directory.path().join("data");
    let data = data.to_str().unwrap();
    let mut old = serve_at(unused_address(), &["--data-dir", data]);
    send(&old, "before");

    let serve = |wait: &str| {
        let mut command = Command::new(CHITCHAT);
        command.args(["serve", "--listen", &unused_address().to_string()]);
        command.args([
            "--admin",
            "127.0.0.1:0",
            "--data-dir",
            data,
            "--wait-for-data-dir",
            wait,
        ]);
        command
    };
    let refused = Process::start(&mut serve("50ms")).finish();
    assert_eq!(refused.code, Some(74));
    assert!(
        refused.stderr.contains("is in use by another server"),
        "{refused:?}"
    );
    let stopped = Process::start(&mut serve("10m"));
    stopped.stdout_line("waiting");
    stopped.signal(Signal::SIGTERM);
    assert_eq!(stopped.finish().code, Some(0));

    let waiting = Process::start(&mut serve("10m"));
    waiting.stdout_line("waiting");
    old.stop();
    let mut new = Server::from_process(waiting);
    send(&new, "after");
    let history = history(&new);
    assert!(
        history.contains("before") && history.contains("after"),
        "{history}"
    );
    new.stop();
}

#[test]
fn a_socket_that_is_passed_is_served_and_keeps_connections_waiting_in_between() {
    let socket = TcpListener::bind(FREE_PORT).unwrap();
    let address = socket.local_addr().unwrap();
    let directory = tempfile::tempdir().unwrap();
    // As systemd does: the socket is descriptor 3, and the variables name the process.
    let start = || {
        let mut command = Command::new("sh");
        command
            .args([
                "-c",
                "exec 3<&0 </dev/null; LISTEN_PID=$$ LISTEN_FDS=1 exec \"$@\"",
                "sh",
            ])
            .args([CHITCHAT, "serve", "--admin", "127.0.0.1:0", "--data-dir"])
            .arg(directory.path().join("data"))
            .stdin(OwnedFd::from(socket.try_clone().unwrap()))
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        Process::from(command.spawn().unwrap())
    };
    let mut server = Server::from_process(start());
    assert_eq!(server.address, address);
    send(&server, "before");
    server.stop();
    // Nobody accepts, and the connection waits.
    let waiting = std::net::TcpStream::connect(address).unwrap();
    let mut server = Server::from_process(start());
    drop(waiting);
    send(&server, "after");
    let history = history(&server);
    assert!(
        history.contains("before") && history.contains("after"),
        "{history}"
    );
    server.stop();
}
