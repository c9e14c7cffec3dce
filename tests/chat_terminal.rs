//! `chitchat chat` with somebody at a terminal.
// Helpers of tests panic as tests do.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

mod scripted;

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use nix::pty::{OpenptyResult, Winsize, openpty};
use nix::sys::signal::{Signal, kill};
use nix::sys::termios::{LocalFlags, tcgetattr};
use nix::unistd::Pid;

/// Longer than anything here takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// A terminal with `chat` on it.
struct Desk {
    child: Child,
    keyboard: File,
    pieces: mpsc::Receiver<Vec<u8>>,
    /// What was written to the terminal and not yet awaited.
    screen: String,
    /// The command's side of the terminal, to see its mode.
    terminal: OwnedFd,
}

impl Desk {
    fn chat(server: SocketAddr, kind: &str, flags: &[&str]) -> Self {
        let size = Winsize {
            ws_row: 24,
            ws_col: 80,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        let OpenptyResult { master, slave } = openpty(&size, None).unwrap();
        let stdio = || Stdio::from(slave.try_clone().unwrap());
        let child = Command::new(env!("CARGO_BIN_EXE_chitchat"))
            .args(["chat", "--server", &server.to_string(), "--name", "Ada"])
            .args(flags)
            .env("TERM", kind)
            .stdin(stdio())
            .stdout(stdio())
            .stderr(stdio())
            .spawn()
            .unwrap();
        let keyboard = File::from(master);
        let mut output = keyboard.try_clone().unwrap();
        let (sender, pieces) = mpsc::channel();
        thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(length @ 1..) = output.read(&mut buffer) {
                if sender.send(buffer[..length].to_vec()).is_err() {
                    return;
                }
            }
        });
        Self {
            child,
            keyboard,
            pieces,
            screen: String::new(),
            terminal: slave,
        }
    }

    fn type_keys(&mut self, keys: &str) {
        self.keyboard.write_all(keys.as_bytes()).unwrap();
    }

    /// Waits until `text` is written, and forgets everything up to its end.
    fn sees(&mut self, text: &str) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(place) = self.screen.find(text) {
                self.screen.drain(..place + text.len());
                return;
            }
            let rest = deadline.saturating_duration_since(Instant::now());
            match self.pieces.recv_timeout(rest) {
                Ok(piece) => self.screen.push_str(&String::from_utf8(piece).unwrap()),
                Err(_) => panic!("{text:?} does not appear; there is {:?}", self.screen),
            }
        }
    }

    fn is_raw(&self) -> bool {
        !tcgetattr(&self.terminal)
            .unwrap()
            .local_flags
            .contains(LocalFlags::ICANON)
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(i32::try_from(self.child.id()).unwrap()), signal).unwrap();
    }

    /// Waits for the end, and looks whether the terminal is as it was.
    fn ends(&mut self, code: i32) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                assert_eq!(status.code(), Some(code), "{:?}", self.screen);
                assert!(!self.is_raw());
                return;
            }
            assert!(
                Instant::now() < deadline,
                "the command does not end; there is {:?}",
                self.screen
            );
            thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Desk {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// A server on a runtime of its own, so that the test may block.
fn server() -> (tokio::runtime::Runtime, SocketAddr) {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap();
    let address = runtime.block_on(scripted::serve());
    (runtime, address)
}

const JOINED: &str = "[L=1] Participant Ada joined Chit Chat at logical time L=1";

/// Somebody who has joined and is about to type.
fn seated(server: SocketAddr, flags: &[&str]) -> Desk {
    let mut desk = Desk::chat(server, "xterm", flags);
    desk.sees(JOINED);
    desk.sees("> ");
    desk
}

#[test]
fn lines_are_edited_said_and_shown_above_the_next_one() {
    let (_runtime, server) = server();
    let mut desk = seated(server, &[]);
    assert!(desk.is_raw());
    // Backspace twice.
    desk.type_keys("helpp\u{7f}\u{7f}lo\r");
    desk.sees("] Ada: hello");
    desk.sees("> ");
    desk.type_keys("attack\r");
    desk.sees(r"] E\u{202e}ve\n: \u{1b}[2Jhi\n[L=9] Bob: boo\u{200b}");
    desk.sees("] Ada: attack");
    desk.type_keys("refuse\r");
    desk.sees("] Server: Message too long");
    desk.type_keys("/leave\r");
    // Whoever types has seen what was refused.
    desk.ends(0);
}

#[test]
fn every_way_to_leave_puts_the_terminal_back() {
    let (_runtime, server) = server();
    for keys in ["/leave\r", "\u{4}", "\u{3}", "half a line\u{3}"] {
        let mut desk = seated(server, &[]);
        desk.type_keys(keys);
        desk.ends(0);
    }
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        let mut desk = seated(server, &[]);
        desk.type_keys("half a line");
        desk.sees("line");
        desk.signal(signal);
        desk.ends(0);
    }
}

#[test]
fn a_lost_server_puts_the_terminal_back() {
    let (_runtime, server) = server();
    let mut desk = seated(server, &["--patience", "0s"]);
    desk.type_keys("cut\r");
    desk.sees("chitchat: the connection was lost: ");
    desk.ends(69);
}

#[test]
fn what_the_server_did_not_hear_is_told_at_the_end() {
    let (runtime, server) = server();
    let mut desk = seated(server, &[]);
    drop(runtime);
    desk.sees("reconnecting");
    desk.sees("> ");
    desk.type_keys("anybody there?\r");
    desk.sees("anybody there?");
    desk.sees("> ");
    desk.type_keys("/leave\r");
    desk.sees("your last message was not acknowledged");
    desk.ends(69);
}

#[test]
fn a_plain_terminal_gets_plain_lines() {
    let (_runtime, server) = server();
    let mut desk = Desk::chat(server, "dumb", &[]);
    desk.sees(JOINED);
    assert!(!desk.is_raw());
    desk.type_keys("hello\n");
    desk.sees("] Ada: hello");
    desk.type_keys("\u{4}");
    desk.ends(0);
}
