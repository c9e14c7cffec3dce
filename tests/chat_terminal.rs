//! `chitchat chat` on a pseudo-terminal.
// Helpers of tests panic as tests do.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

mod faulty_server;
mod process;

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Instant;

use nix::pty::{OpenptyResult, Winsize, openpty};
use nix::sys::signal::Signal;
use nix::sys::termios::{LocalFlags, tcgetattr};
use process::{CHITCHAT, Process, TIMEOUT};

/// A pseudo-terminal on which `chat` runs.
struct Terminal {
    process: Process,
    keyboard: File,
    output: mpsc::Receiver<Vec<u8>>,
    /// The output that no call of [`Self::wait_for`] has matched yet.
    screen: String,
    /// The command's side of the terminal, to see its mode.
    slave: OwnedFd,
}

impl Terminal {
    fn chat(server: SocketAddr, kind: &str, flags: &[&str]) -> Self {
        let size = Winsize {
            ws_row: 24,
            ws_col: 80,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        let OpenptyResult { master, slave } = openpty(&size, None).unwrap();
        let stdio = || Stdio::from(slave.try_clone().unwrap());
        let child = Command::new(CHITCHAT)
            .args(["chat", "--server", &server.to_string(), "--name", "Ada"])
            .args(flags)
            .env("TERM", kind)
            .stdin(stdio())
            .stdout(stdio())
            .stderr(stdio())
            .spawn()
            .unwrap();
        let keyboard = File::from(master);
        let mut reader = keyboard.try_clone().unwrap();
        let (sender, output) = mpsc::channel();
        thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(length @ 1..) = reader.read(&mut buffer) {
                if sender.send(buffer[..length].to_vec()).is_err() {
                    return;
                }
            }
        });
        Self {
            process: Process::from(child),
            keyboard,
            output,
            screen: String::new(),
            slave,
        }
    }

    fn type_keys(&mut self, keys: &str) {
        self.keyboard.write_all(keys.as_bytes()).unwrap();
    }

    /// Waits until `text` is on the screen, and discards the screen up to its end.
    fn wait_for(&mut self, text: &str) {
        let deadline = Instant::now() + TIMEOUT;
        loop {
            if let Some(place) = self.screen.find(text) {
                self.screen.drain(..place + text.len());
                return;
            }
            let rest = deadline.saturating_duration_since(Instant::now());
            match self.output.recv_timeout(rest) {
                Ok(output) => self.screen.push_str(&String::from_utf8(output).unwrap()),
                Err(_) => panic!("{text:?} does not appear on {:?}", self.screen),
            }
        }
    }

    fn is_raw(&self) -> bool {
        let mode = tcgetattr(&self.slave).unwrap();
        !mode.local_flags.contains(LocalFlags::ICANON)
    }

    /// Waits until the command has exited, and asserts that it has restored the terminal.
    fn assert_exits(&mut self, code: i32) {
        let status = self.process.wait();
        assert_eq!(status.code(), Some(code), "{:?}", self.screen);
        assert!(!self.is_raw());
    }
}

const JOINED: &str = "[L=1] Participant Ada joined Chit Chat at logical time L=1";

/// A terminal on which Ada has joined and the prompt is shown.
fn start_joined(server: SocketAddr, flags: &[&str]) -> Terminal {
    let mut terminal = Terminal::chat(server, "xterm", flags);
    terminal.wait_for(JOINED);
    terminal.wait_for("> ");
    terminal
}

#[test]
fn a_line_is_edited_sent_and_shown_above_the_prompt() {
    let (_runtime, server) = faulty_server::start_in_background();
    let mut terminal = start_joined(server, &[]);
    assert!(terminal.is_raw());
    // Backspace twice.
    terminal.type_keys("helpp\u{7f}\u{7f}lo\r");
    terminal.wait_for("] Ada: hello");
    terminal.wait_for("> ");
    terminal.type_keys("attack\r");
    terminal.wait_for(r#"] "E\u{202e}ve\n" (participant 3): \u{1b}[2Jhi\n[L=9] Bob: boo\u{200b}"#);
    terminal.wait_for("] Ada: attack");
    terminal.type_keys("refuse\r");
    terminal.wait_for("] Server: Message too long");
    terminal.type_keys("/leave\r");
    // A rejection that the user has seen is not a failure of the command.
    terminal.assert_exits(0);
}

#[test]
fn every_way_to_leave_restores_the_terminal() {
    let (_runtime, server) = faulty_server::start_in_background();
    for keys in ["/leave\r", "\u{4}", "\u{3}", "half a line\u{3}"] {
        let mut terminal = start_joined(server, &[]);
        terminal.type_keys(keys);
        terminal.assert_exits(0);
    }
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        let mut terminal = start_joined(server, &[]);
        terminal.type_keys("half a line");
        terminal.wait_for("line");
        terminal.process.signal(signal);
        terminal.assert_exits(0);
    }
}

#[test]
fn a_lost_connection_restores_the_terminal() {
    let (_runtime, server) = faulty_server::start_in_background();
    let mut terminal = start_joined(server, &["--patience", "0s"]);
    terminal.type_keys("cut\r");
    terminal.wait_for("chitchat: the connection was lost: ");
    terminal.assert_exits(69);
}

#[test]
fn an_unacknowledged_message_is_reported_at_the_end() {
    let (runtime, server) = faulty_server::start_in_background();
    let mut terminal = start_joined(server, &[]);
    drop(runtime);
    terminal.wait_for("reconnecting");
    terminal.wait_for("> ");
    terminal.type_keys("anybody there?\r");
    terminal.wait_for("anybody there?");
    terminal.wait_for("> ");
    terminal.type_keys("/leave\r");
    terminal.wait_for("your last message was not acknowledged");
    terminal.assert_exits(69);
}

#[test]
fn a_dumb_terminal_is_read_line_by_line() {
    let (_runtime, server) = faulty_server::start_in_background();
    let mut terminal = Terminal::chat(server, "dumb", &[]);
    terminal.wait_for(JOINED);
    assert!(!terminal.is_raw());
    terminal.type_keys("hello\n");
    terminal.wait_for("] Ada: hello");
    terminal.type_keys("\u{4}");
    terminal.assert_exits(0);
}
