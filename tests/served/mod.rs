//! The server, as it is started by whoever runs it.
#![allow(dead_code, missing_docs, unreachable_pub)]

use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::thread;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// A running server. Killed when dropped.
pub struct Server {
    child: Child,
    pub address: SocketAddr,
}

/// Starts a server on free ports, which keeps everything in memory.
pub fn serve(flags: &[&str]) -> Server {
    let free = SocketAddr::from(([127, 0, 0, 1], 0));
    serve_at(free, &[&["--in-memory"], flags].concat())
}

/// Starts a server there.
pub fn serve_at(listen: SocketAddr, flags: &[&str]) -> Server {
    let mut child = Command::new(env!("CARGO_BIN_EXE_chitchat"))
        .args(["serve", "--listen", &listen.to_string(), "--admin", "127.0.0.1:0"])
        .args(flags)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap())
        .lines()
        .map_while(Result::ok);
    let address = lines
        .find_map(|line| {
            Some(
                line.strip_prefix("chitchat: listening on ")?
                    .split(' ')
                    .next()?
                    .to_owned(),
            )
        })
        .expect("the server says where it listens")
        .parse()
        .unwrap();
    // Whatever else it says is taken, so that it never waits for a reader.
    thread::spawn(move || lines.for_each(drop));
    Server { child, address }
}

impl Server {
    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(i32::try_from(self.child.id()).unwrap()), signal).unwrap();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}
