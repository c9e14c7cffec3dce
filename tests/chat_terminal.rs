//! `chitchat chat` on a pseudo-terminal, whose screen an emulator keeps.
// Helpers of tests panic as tests do.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

mod faulty_server;
mod process;

use std::fs::{self, File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::net::SocketAddr;
use std::num::NonZeroU16;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Instant;

use nix::fcntl::OFlag;
use nix::pty::{PtyMaster, grantpt, posix_openpt, ptsname_r, unlockpt};
use nix::sys::signal::Signal;
use nix::sys::termios::{LocalFlags, tcgetattr};
use process::{CHITCHAT, FREE_PORT, Process, Server, TIMEOUT, serve, serve_at, succeed, wait_until};
use tempfile::TempDir;

const CTRL_C: &str = "\u{3}";
const CTRL_D: &str = "\u{4}";
const CTRL_Z: &str = "\u{1a}";
const PAGE_UP: &str = "\u{1b}[5~";
const HOME: &str = "\u{1b}[H";
const END: &str = "\u{1b}[F";
const UP: &str = "\u{1b}[A";
const F2: &str = "\u{1b}OQ";

/// A pseudo-terminal on which `chat` runs.
struct Terminal {
    process: Process,
    keyboard: File,
    output: mpsc::Receiver<Vec<u8>>,
    emulator: vt100::Parser,
    /// The command's side of the terminal, to see its mode.
    slave: OwnedFd,
    /// Where the command keeps its input history.
    state: TempDir,
}

/// How to start a [`Terminal`].
struct Setup<'a> {
    server: SocketAddr,
    name: &'a str,
    flags: &'a [&'a str],
    variables: &'a [(&'a str, &'a str)],
    /// Rows and columns.
    size: (u16, u16),
    /// Whether the client belongs to a session with a process that could continue it.
    has_shell: bool,
    state: TempDir,
}

impl<'a> Setup<'a> {
    fn new(server: SocketAddr) -> Self {
        Self {
            server,
            name: "Ada",
            flags: &[],
            variables: &[],
            size: (24, 80),
            has_shell: true,
            state: tempfile::tempdir().unwrap(),
        }
    }

    fn flags(self, flags: &'a [&'a str]) -> Self {
        Self { flags, ..self }
    }

    fn variables(self, variables: &'a [(&'a str, &'a str)]) -> Self {
        Self { variables, ..self }
    }

    fn start(self) -> Terminal {
        let (rows, columns) = self.size;
        let (master, slave) = open_terminal();
        resize(&slave, rows, columns);
        let stdio = || Stdio::from(slave.try_clone().unwrap());
        let mut command = if self.has_shell {
            let mut command = Command::new(CHITCHAT);
            // Ctrl-Z stops the process group, which must not be that of the test.
            command.process_group(0);
            command
        } else {
            let mut command = Command::new("setsid");
            command.arg(CHITCHAT);
            command
        };
        let child = command
            .args(["chat", "--server", &self.server.to_string(), "--name", self.name])
            .args(self.flags)
            .env("TERM", "xterm")
            .env("TZ", "UTC")
            .env("XDG_STATE_HOME", self.state.path())
            .env("XDG_CONFIG_HOME", self.state.path())
            .env_remove("NO_COLOR")
            .envs(self.variables.iter().copied())
            .stdin(stdio())
            .stdout(stdio())
            .stderr(stdio())
            .spawn()
            .unwrap();
        let keyboard = File::from(OwnedFd::from(master));
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
        Terminal {
            process: Process::from(child),
            keyboard,
            output,
            emulator: vt100::Parser::new(nonzero(rows), nonzero(columns), 0),
            slave,
            state: self.state,
        }
    }

    /// Waits until Ada has joined.
    fn start_joined(self) -> Terminal {
        let mut terminal = self.start();
        terminal.wait("the room", |terminal| {
            terminal.has_row(" here · L=") && !terminal.has_row("· 0 here")
        });
        terminal
    }
}

/// Both ends of a new pseudo-terminal. No child inherits them, so that it is gone when the test closes its end.
fn open_terminal() -> (PtyMaster, OwnedFd) {
    let master = posix_openpt(OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC).unwrap();
    grantpt(&master).unwrap();
    unlockpt(&master).unwrap();
    let slave = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(OFlag::O_NOCTTY.bits())
        .open(ptsname_r(&master).unwrap());
    (master, slave.unwrap().into())
}

fn resize(terminal: &OwnedFd, rows: u16, columns: u16) {
    let size = rustix::termios::Winsize {
        ws_row: rows,
        ws_col: columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    rustix::termios::tcsetwinsize(terminal, size).unwrap();
}

impl Terminal {
    fn type_keys(&mut self, keys: &str) {
        self.keyboard.write_all(keys.as_bytes()).unwrap();
    }

    fn screen(&self) -> String {
        self.emulator.screen().contents()
    }

    fn has_row(&self, text: &str) -> bool {
        self.screen().lines().any(|row| row.contains(text))
    }

    /// Waits until the screen is as `is_reached` wants it.
    fn wait(&mut self, what: &str, is_reached: impl Fn(&Self) -> bool) {
        let deadline = Instant::now() + TIMEOUT;
        while !is_reached(self) {
            let rest = deadline.saturating_duration_since(Instant::now());
            match self.output.recv_timeout(rest) {
                Ok(output) => self.emulator.process(&output),
                Err(_) => panic!("{what} does not appear:\n{}", self.screen()),
            }
        }
    }

    /// Waits until a row of the screen contains `text`.
    fn wait_for(&mut self, text: &str) {
        self.wait(text, |terminal| terminal.has_row(text));
    }

    fn is_raw(&self) -> bool {
        let mode = tcgetattr(&self.slave).unwrap();
        !mode.local_flags.contains(LocalFlags::ICANON)
    }

    fn is_full_screen(&self) -> bool {
        self.emulator.screen().alternate_screen()
    }

    /// Asserts that the terminal is as it was before the command.
    fn assert_restored(&self) {
        assert!(!self.is_raw());
        let screen = self.emulator.screen();
        assert!(!screen.alternate_screen() && !screen.bracketed_paste() && !screen.hide_cursor());
        assert_eq!(screen.mouse_protocol_mode(), vt100::MouseProtocolMode::None);
    }

    /// Waits until the command has exited, and asserts that it has restored the terminal.
    fn assert_exits(&mut self, code: i32) {
        let status = self.process.wait();
        while let Ok(output) = self.output.try_recv() {
            self.emulator.process(&output);
        }
        assert_eq!(status.code(), Some(code), "{}", self.screen());
        if self.is_full_screen() {
            self.wait("the usual screen", |terminal| !terminal.is_full_screen());
        }
        self.assert_restored();
    }

    fn is_stopped(&self) -> bool {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.process.id())).unwrap();
        stat.rsplit(") ").next().unwrap().starts_with('T')
    }
}

/// Sends each line of `input` to a room, as somebody else.
fn post(server: SocketAddr, name: &str, input: &str) {
    let mut chat = Command::new(CHITCHAT);
    chat.args(["chat", "--server", &server.to_string(), "--name", name]);
    succeed(&mut chat, input);
}

/// The texts in the log of a room.
fn texts(server: &Server, room: &str) -> Vec<String> {
    let mut history = Command::new(CHITCHAT);
    let address = server.address.to_string();
    history.args([
        "history", "--server", &address, "--room", room, "--json", "-n", "1000",
    ]);
    let log = succeed(&mut history, "");
    let events = log
        .lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    events
        .filter(|event| event["type"] == "MESSAGE")
        .map(|event| event["msg_stream"].as_str().unwrap().to_owned())
        .collect()
}

fn nonzero(number: u16) -> NonZeroU16 {
    NonZeroU16::new(number).unwrap()
}

fn numbered(count: usize) -> String {
    (1..=count).map(|line| format!("line {line}.\n")).collect()
}

#[test]
fn a_user_sees_the_history_and_talks() {
    let server = serve(&[]);
    post(server.address, "Bob", &numbered(30));
    let mut terminal = Setup::new(server.address).start_joined();
    terminal.wait_for("Bob: line 30.");
    terminal.wait_for("← Bob left");
    // The list of the participants, and the status.
    terminal.wait_for("│ Ada");
    terminal.wait_for("#lobby · 1 here · L=");
    assert!(terminal.is_raw() && terminal.is_full_screen());
    terminal.type_keys("helpp\u{7f}\u{7f}lo\r");
    terminal.wait_for("] Ada: hello");
    // Alt-Enter.
    terminal.type_keys("two\u{1b}\rlines\r");
    terminal.wait("the second line below the first", |terminal| {
        let screen = terminal.screen();
        let rows: Vec<&str> = screen.lines().collect();
        let first = rows.iter().position(|row| row.contains("] Ada: two"));
        first.is_some_and(|first| rows[first + 1].starts_with("     ") && rows[first + 1].contains(" lines "))
    });
    post(server.address, "Cy", "hi Ada\n");
    terminal.wait_for("] Cy: hi Ada");
    terminal.wait_for("← Cy left");
    terminal.type_keys("/leave\r");
    terminal.assert_exits(0);
    assert_eq!(texts(&server, "lobby").len(), 33);
}

#[test]
fn older_history_is_loaded_while_the_user_scrolls() {
    let server = serve(&[]);
    post(server.address, "Bob", &numbered(500));
    let mut terminal = Setup::new(server.address).start_joined();
    terminal.wait_for("line 500.");
    terminal.type_keys(PAGE_UP);
    terminal.wait_for("line 470.");
    while !terminal.has_row("line 1.") {
        // At the start of what is loaded, this loads more.
        terminal.type_keys(HOME);
        let output = terminal.output.recv_timeout(TIMEOUT).unwrap();
        terminal.emulator.process(&output);
    }
    post(server.address, "Cy", "news\n");
    terminal.wait_for("↓ 1 new");
    terminal.type_keys(END);
    terminal.wait_for("Cy: news");
    terminal.wait_for("── new ──");
    terminal.type_keys("/search LINE 7.\r");
    terminal.wait_for("] Bob: line 7.");
    terminal.type_keys("\u{1b}");
    terminal.wait_for("Cy: news");
    terminal.type_keys(CTRL_D);
    terminal.assert_exits(0);
}

#[test]
fn no_line_of_a_paste_is_lost() {
    // A burst of 80, then 8 a second: the last ones have to wait.
    let server = serve(&["--message-rate", "8"]);
    let mut terminal = Setup::new(server.address).start_joined();
    let lines: Vec<String> = (1..=50).map(|line| format!("pasted {line}")).collect();
    // Without brackets, each line is sent; some terminals end lines with line feeds.
    terminal.type_keys(&(lines.join("\r") + "\r"));
    terminal.wait_for("Ada: pasted 50");
    terminal.type_keys(&(lines.join("\n") + "\n"));
    terminal.wait_for("#lobby");
    // With brackets, it is one text of several lines.
    terminal.type_keys(&format!("\u{1b}[200~{}\u{1b}[201~", lines.join("\r")));
    terminal.type_keys("\r/leave\r");
    terminal.assert_exits(0);
    let mut expected = lines.clone();
    expected.extend(lines.clone());
    expected.push(lines.join("\n"));
    assert_eq!(texts(&server, "lobby"), expected);
}

#[test]
fn a_paste_longer_than_the_buffer_of_a_terminal_is_read_to_its_end() {
    let server = serve(&[]);
    let mut terminal = Setup::new(server.address).start_joined();
    let paste: String = (1..=3_000).map(|line| format!("{line:10}\r")).collect();
    let mut keyboard = terminal.keyboard.try_clone().unwrap();
    // On a thread of its own, because it waits until the program has read what the buffer does not hold.
    let pasting = thread::spawn(move || keyboard.write_all(paste.as_bytes()));
    terminal.wait_for("Ada: 3000");
    pasting.join().unwrap().unwrap();
    terminal.type_keys("/leave\r");
    terminal.assert_exits(0);
}

#[test]
fn a_lost_server_is_found_again() {
    let directory = tempfile::tempdir().unwrap();
    let flags = ["--data-dir", directory.path().to_str().unwrap()];
    let server = serve_at(FREE_PORT, &flags);
    let address = server.address;
    let mut terminal = Setup::new(address).start_joined();
    terminal.type_keys("before\r");
    terminal.wait_for("] Ada: before");
    drop(server);
    terminal.wait_for("reconnecting…");
    terminal.type_keys("meanwhile\r");
    terminal.wait_for("sending… meanwhile");
    let server = serve_at(address, &flags);
    terminal.wait_for("] Ada: meanwhile");
    terminal.wait("the end of reconnecting", |terminal| {
        !terminal.has_row("reconnecting") && !terminal.has_row("sending")
    });
    terminal.type_keys("/leave\r");
    terminal.assert_exits(0);
    assert_eq!(texts(&server, "lobby"), ["before", "meanwhile"]);
}

#[test]
fn every_way_to_leave_restores_the_terminal() {
    let server = serve(&[]);
    for keys in ["/leave\r", "/quit\r", CTRL_D] {
        let mut terminal = Setup::new(server.address).start_joined();
        terminal.type_keys(keys);
        terminal.assert_exits(0);
    }
    // Ctrl-C clears the input, then asks, then leaves.
    let mut terminal = Setup::new(server.address).start_joined();
    terminal.type_keys("half a line");
    terminal.wait_for("> half a line");
    terminal.type_keys(CTRL_C);
    terminal.wait("an empty input", |terminal| !terminal.has_row("half a line"));
    terminal.type_keys(CTRL_C);
    terminal.wait_for("Ctrl-C again leaves");
    terminal.type_keys(CTRL_C);
    terminal.assert_exits(0);
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        let mut terminal = Setup::new(server.address).start_joined();
        terminal.type_keys("half a line");
        terminal.wait_for("> half a line");
        terminal.process.signal(signal);
        terminal.assert_exits(0);
    }
    assert_eq!(texts(&server, "lobby"), [""; 0]);
}

#[test]
fn what_was_entered_is_sent_even_if_the_terminal_vanishes() {
    // More than may be sent at once.
    let server = serve(&["--message-rate", "5"]);
    let setup = Setup {
        has_shell: false,
        ..Setup::new(server.address)
    };
    let mut terminal = setup.start_joined();
    let lines: Vec<_> = (0..60).map(|n| format!("line {n}")).collect();
    terminal.type_keys(&(lines.join("\r") + "\r"));
    terminal.wait_for("line 59");
    let Terminal {
        mut process,
        keyboard,
        output,
        slave,
        ..
    } = terminal;
    // No signal says so, because it is not the terminal of a session.
    drop((keyboard, output, slave));
    assert_eq!(process.wait().code(), Some(74));
    assert_eq!(texts(&server, "lobby"), lines);
}

#[test]
fn a_lost_connection_restores_the_terminal() {
    let (_runtime, server) = faulty_server::start_in_background();
    let mut terminal = Setup::new(server).flags(&["--patience", "0s"]).start_joined();
    terminal.type_keys("cut\r");
    terminal.assert_exits(69);
    terminal.wait_for("chitchat: the connection was lost: ");
}

#[test]
fn an_unacknowledged_message_is_reported_at_the_end() {
    let (runtime, server) = faulty_server::start_in_background();
    let mut terminal = Setup::new(server).start_joined();
    drop(runtime);
    terminal.wait_for("reconnecting…");
    terminal.type_keys("anybody there?\r/leave\r");
    terminal.assert_exits(69);
    terminal.wait_for("your last message was not acknowledged");
}

#[test]
fn hostile_texts_leave_the_terminal_intact() {
    let (_runtime, server) = faulty_server::start_in_background();
    let mut terminal = Setup::new(server).start_joined();
    terminal.type_keys("attack\r");
    terminal.wait_for(r#"] "E\u{202e}ve\n" (participant 3): \u{1b}[2Jhi"#);
    terminal.wait("the text's second line, indented", |terminal| {
        let screen = terminal.screen();
        let row = screen.lines().find(|row| row.contains(r"[L=9] Bob: boo\u{200b}"));
        row.is_some_and(|row| row.starts_with("  "))
    });
    // A rejected text can be read and recalled.
    terminal.type_keys("refuse\r");
    terminal.wait_for("-- Message too long");
    terminal.wait_for("not sent: refuse");
    terminal.type_keys(UP);
    terminal.wait_for("> refuse");
    terminal.type_keys(CTRL_D);
    terminal.type_keys(CTRL_C);
    terminal.type_keys(CTRL_D);
    terminal.assert_exits(0);
}

#[test]
fn emoji_and_wide_characters_keep_the_columns() {
    let server = serve(&[]);
    post(server.address, "山田", "👩\u{200d}💻 ❤\u{fe0f} 山田さん 👍🏽\n");
    let mut terminal = Setup::new(server.address).start_joined();
    terminal.wait_for("山田: 👩💻 ❤ 山田さん");
    terminal.wait_for("← 山田 left");
    terminal.wait("the border in one column", |terminal| {
        let borders: Vec<u16> = (0..22)
            .filter_map(|row| (0..80).find(|column| is_border(terminal, row, *column)))
            .collect();
        borders.len() == 22 && borders.iter().all(|column| *column == 62)
    });
    let long = "long ".repeat(390);
    post(server.address, "Bob", &format!("{long}\n"));
    terminal.wait_for("← Bob left");
    assert!(is_border(&terminal, 0, 62) && is_border(&terminal, 21, 62));
    terminal.type_keys("/leave\r");
    terminal.assert_exits(0);
}

fn is_border(terminal: &Terminal, row: u16, column: u16) -> bool {
    let cell = terminal.emulator.screen().cell(row, column);
    cell.is_some_and(|cell| cell.contents() == "│")
}

#[test]
fn a_small_screen_is_enough_and_can_be_resized() {
    let server = serve(&[]);
    post(
        server.address,
        "Bob",
        "a text that is longer than the screen is wide\n",
    );
    let mut terminal = Setup {
        size: (10, 40),
        ..Setup::new(server.address)
    }
    .start_joined();
    terminal.wait_for("Bob: a text that is");
    assert!(!terminal.has_row("│"));
    terminal.type_keys("hello\r");
    terminal.wait_for("] Ada: hello");
    terminal.wait_for("#lobby · 1 here");

    resize(&terminal.slave, 30, 100);
    terminal.emulator.screen_mut().set_size(nonzero(30), nonzero(100));
    terminal.process.signal(Signal::SIGWINCH);
    terminal.wait_for("Bob: a text that is longer than the screen is wide");
    terminal.wait_for("│ Ada");
    terminal.type_keys("/leave\r");
    terminal.assert_exits(0);
}

#[test]
fn without_colour_there_are_only_attributes() {
    let server = serve(&[]);
    post(server.address, "Bob", "hi Ada\n");
    let colours = |terminal: &Terminal| {
        let screen = terminal.emulator.screen();
        let cells = (0..24).flat_map(|row| (0..80).map(move |column| (row, column)));
        let colours = cells.filter_map(|(row, column)| Some(screen.cell(row, column)?.fgcolor()));
        colours.filter(|colour| *colour != vt100::Color::Default).count()
    };
    for (value, has_colour) in [("", true), ("1", false)] {
        let variables = [("NO_COLOR", value)];
        let mut terminal = Setup::new(server.address).variables(&variables).start_joined();
        terminal.wait_for("] Bob: hi Ada");
        assert_eq!(colours(&terminal) > 0, has_colour);
        terminal.type_keys("/leave\r");
        terminal.assert_exits(0);
    }
}

#[test]
fn the_job_can_be_suspended() {
    let server = serve(&[]);
    let mut terminal = Setup::new(server.address).start_joined();
    terminal.type_keys(&format!("half a line{CTRL_Z}"));
    wait_until("the job is stopped", || terminal.is_stopped().then_some(()));
    terminal.wait("the usual screen", |terminal| !terminal.is_full_screen());
    terminal.assert_restored();
    post(server.address, "Bob", "meanwhile\n");
    terminal.process.signal(Signal::SIGCONT);
    terminal.wait("the full screen", Terminal::is_full_screen);
    terminal.wait_for("> half a line");
    terminal.wait_for("] Bob: meanwhile");
    assert!(terminal.is_raw());
    terminal.type_keys("\r");
    terminal.wait_for("] Ada: half a line");
    terminal.type_keys("/leave\r");
    terminal.assert_exits(0);
}

#[test]
fn the_job_is_not_suspended_if_there_is_no_shell_to_continue_it() {
    let server = serve(&[]);
    let mut terminal = Setup {
        has_shell: false,
        ..Setup::new(server.address)
    }
    .start_joined();
    terminal.type_keys(CTRL_Z);
    terminal.wait_for("there is no shell to return to");
    assert!(terminal.is_raw() && terminal.is_full_screen());
    terminal.type_keys("/leave\r");
    terminal.assert_exits(0);
}

#[test]
fn commands_are_completed_and_unknown_ones_are_not_sent() {
    let server = serve(&[]);
    let mut bob = Setup {
        name: "Bob",
        ..Setup::new(server.address)
    }
    .start_joined();
    let mut terminal = Setup::new(server.address).start_joined();
    terminal.wait_for("2 here");
    terminal.type_keys("/unknown thing\r");
    terminal.wait_for("-- there is no command /unknown");
    terminal.type_keys("//etc\r");
    terminal.wait_for("] Ada: /etc");
    terminal.type_keys("bo\thi\r");
    terminal.wait_for("] Ada: Bob: hi");
    terminal.type_keys("/me waves\r");
    terminal.wait_for("] * Ada waves");
    terminal.type_keys("/wh\t\r");
    terminal.wait_for("-- 2 here: Ada, Bob");
    terminal.type_keys(F2);
    terminal.wait_for("-- F2 returns");
    assert!(!terminal.has_row("│"));
    assert_eq!(
        terminal.emulator.screen().mouse_protocol_mode(),
        vt100::MouseProtocolMode::None
    );
    terminal.type_keys(F2);
    terminal.wait_for("│ Bob");
    terminal.type_keys("/clear\r");
    terminal.wait("an empty screen", |terminal| !terminal.has_row("Ada: /etc"));
    terminal.type_keys("/leave\r");
    terminal.assert_exits(0);
    assert_eq!(texts(&server, "lobby"), ["/etc", "Bob: hi", "/me waves"]);
    bob.type_keys("/leave\r");
    bob.assert_exits(0);
}

#[test]
fn another_room_gets_what_is_entered_for_it() {
    let server = serve(&[]);
    let mut terminal = Setup::new(server.address).start_joined();
    terminal.type_keys("one\r/join milk\rwhite\r/join juice\r/join tea\rtwo\r");
    terminal.wait_for("#tea");
    terminal.wait_for("] Ada: two");
    assert!(!terminal.has_row("Ada: one"));
    terminal.type_keys("/rooms\r");
    terminal.wait_for("-- lobby: 0 here");
    terminal.type_keys("/name Ada Lovelace\r");
    terminal.wait_for("· Ada Lovelace");
    terminal.type_keys("three\r");
    terminal.wait_for("] Ada Lovelace: three");
    terminal.type_keys("/leave\r");
    terminal.assert_exits(0);
    assert_eq!(texts(&server, "lobby"), ["one"]);
    assert_eq!(texts(&server, "milk"), ["white"]);
    assert_eq!(texts(&server, "tea"), ["two", "three"]);
}

#[test]
fn what_was_entered_in_a_room_is_sent_after_the_user_has_left_it() {
    // A burst of 40, then 4 a second: longer than the server has for one answer.
    let server = serve(&["--message-rate", "4"]);
    let lines: Vec<String> = (1..=70).map(|line| format!("line {line}")).collect();
    let input = lines.join("\r");
    let cases = [
        ("lobby", &[][..], "/join tea\rone\r/quit\r"),
        // Lines, without the full screen.
        ("coffee", &["--plain", "coffee"], "/leave\r"),
        // The name is free when everything is sent.
        ("juice", &["juice"], "/name ADA\r/join milk\rtwo\r/quit\r"),
    ];
    let terminals = cases.map(|(_, flags, keys)| {
        let mut terminal = Setup::new(server.address).flags(flags).start();
        terminal.wait("the room", |terminal| {
            terminal.has_row("· 1 here") || terminal.has_row("Participant Ada joined")
        });
        terminal.type_keys(&format!("{input}\r{keys}"));
        terminal
    });
    for (mut terminal, (room, ..)) in terminals.into_iter().zip(cases) {
        terminal.assert_exits(0);
        assert_eq!(texts(&server, room), lines);
    }
    assert_eq!(texts(&server, "tea"), ["one"]);
    assert_eq!(texts(&server, "milk"), ["two"]);
}

#[test]
fn what_is_not_acknowledged_in_another_room_is_reported() {
    let (_runtime, server) = faulty_server::start_in_background();
    let mut terminal = Setup::new(server).start_joined();
    let lines: Vec<String> = (1..=9).map(|line| format!("silence {line}")).collect();
    terminal.type_keys(&format!("{}\r/join tea\r", lines.join("\r")));
    terminal.wait_for("in the room that you have left: silence 9");
    // In the order of the input.
    let screen = terminal.screen();
    let reported = screen.lines().filter_map(|row| row.split_once("have left: "));
    let reported: Vec<&str> = reported
        .map(|(_, text)| text.split('│').next().unwrap().trim())
        .collect();
    assert_eq!(reported, lines);
    // In one piece: what is noted before the user leaves is not reported again.
    terminal.type_keys("silence\r/join coffee\rhi\r/quit\r");
    terminal.assert_exits(69);
    terminal.wait_for("chitchat: your last message was not acknowledged");
}

#[test]
fn the_case_of_the_name_can_be_changed() {
    let server = serve(&[]);
    let mut terminal = Setup::new(server.address).start_joined();
    terminal.type_keys("one\r/name ADA\rtwo\r");
    terminal.wait_for("] ADA: two");
    terminal.wait_for("· 1 here · L=");
    terminal.type_keys("/quit\r");
    terminal.assert_exits(0);
    assert_eq!(texts(&server, "lobby"), ["one", "two"]);
}

#[test]
fn a_failure_to_change_the_case_of_the_name_does_not_end_the_session() {
    let (_runtime, server) = faulty_server::start_in_background();
    let mut terminal = Setup {
        name: faulty_server::FLAKY,
        ..Setup::new(server)
    }
    .start_joined();
    terminal.type_keys("/name FLAKY\r");
    terminal.wait_for("-- cannot join lobby as FLAKY");
    terminal.type_keys("hi\r");
    terminal.wait_for("] Flaky: hi");
    terminal.type_keys("/quit\r");
    terminal.assert_exits(0);
}

#[test]
fn a_long_line_can_be_pasted() {
    let server = serve(&["--max-message-chars", "65536"]);
    let mut terminal = Setup::new(server.address).start_joined();
    let mut keyboard = terminal.keyboard.try_clone().unwrap();
    let paste = format!("{}end", "long ".repeat(3_000));
    let pasting = thread::spawn(move || keyboard.write_all(format!("{paste}\r").as_bytes()));
    terminal.wait("the text", |terminal| {
        let screen = terminal.screen();
        screen
            .lines()
            .any(|row| row.trim_start().starts_with("long") && row.contains("long end"))
    });
    pasting.join().unwrap().unwrap();
    terminal.type_keys("/leave\r");
    terminal.assert_exits(0);
    assert_eq!(texts(&server, "lobby"), [format!("{}end", "long ".repeat(3_000))]);
}

#[test]
fn the_times_are_those_that_the_user_wants() {
    let server = serve(&[]);
    for (time, row) in [("none", "Ada: hi"), ("lamport", "[L="), ("utc", "Z Ada: hi")] {
        let mut terminal = Setup::new(server.address)
            .variables(&[("CHITCHAT_TIME", time)])
            .start_joined();
        terminal.type_keys("hi\r");
        terminal.wait(time, |terminal| {
            let screen = terminal.screen();
            let mut rows = screen.lines().filter(|line| line.contains("Ada: hi"));
            rows.next().is_some_and(|line| match time {
                "utc" => line[5..].starts_with(row),
                _ => line.starts_with(row),
            })
        });
        terminal.type_keys("/quit\r");
        terminal.assert_exits(0);
    }
}

#[test]
fn earlier_inputs_are_remembered() {
    let server = serve(&[]);
    let mut terminal = Setup::new(server.address).start_joined();
    terminal.type_keys("remember me\r/leave\r");
    terminal.assert_exits(0);
    let mut terminal = Setup {
        state: terminal.state,
        ..Setup::new(server.address)
    }
    .start_joined();
    terminal.type_keys(UP);
    terminal.type_keys(UP);
    terminal.wait_for("> remember me");
    terminal.type_keys(CTRL_C);
    terminal.type_keys("/leave\r");
    terminal.assert_exits(0);
}

#[test]
fn lines_can_be_chosen_on_a_terminal() {
    let server = serve(&[]);
    for (flags, term) in [(&["--plain"][..], "xterm"), (&[], "dumb")] {
        let variables = [("TERM", term)];
        let mut terminal = Setup::new(server.address)
            .flags(flags)
            .variables(&variables)
            .start();
        terminal.wait_for("Participant Ada joined Chit Chat at logical time L=");
        assert!(!terminal.is_raw());
        // Lines that are typed ahead are sent, too.
        terminal.type_keys("one\ntwo\nthree\n");
        terminal.wait_for("] Ada: three");
        terminal.wait_for("] Ada: one");
        terminal.type_keys(CTRL_D);
        terminal.assert_exits(0);
    }
    assert_eq!(
        texts(&server, "lobby"),
        ["one", "two", "three", "one", "two", "three"]
    );
}

/// The picture in the README.
const PICTURE: &str = "docs/chat.svg";

/// Made again by `UPDATE=1 cargo test --test chat_terminal picture`.
#[test]
fn the_picture_in_the_readme_is_what_a_user_sees() {
    let server = serve(&[]);
    let size = (16, 80);
    let mut terminals = ["Ada", "Bob", "Cy"].map(|name| {
        let setup = Setup {
            name,
            size,
            ..Setup::new(server.address)
        };
        setup.start_joined()
    });
    for (speaker, text) in [
        (0, "Hello Bob, hello Cy"),
        (1, "Hello Ada, do you see this order too?"),
        (
            2,
            "/me does, and a multi-line text:\u{1b}\rit stays\u{1b}\rin one piece",
        ),
    ] {
        terminals[speaker].type_keys(&format!("{text}\r"));
        let shown = text.rsplit('\r').next().unwrap();
        for terminal in &mut terminals {
            terminal.wait("its place in the order", |terminal| {
                let has_text = |row: &str| row.contains(shown) && !row.starts_with('>');
                terminal.screen().lines().any(has_text) && !terminal.has_row("sending…")
            });
        }
    }
    let [mut ada, _bob, mut cy] = terminals;
    cy.type_keys("/leave\r");
    cy.assert_exits(0);
    ada.wait_for("← Cy left");
    ada.type_keys("The very sa");
    ada.wait_for("> The very sa");
    ada.wait_for("2 here · L=");
    let picture = picture(&ada);
    if std::env::var_os("UPDATE").is_some() {
        fs::write(PICTURE, &picture).unwrap();
    }
    assert_eq!(fs::read_to_string(PICTURE).unwrap(), picture);
}

/// The colours of a terminal, in the order of their numbers.
const PALETTE: [&str; 16] = [
    "#1e1e2e", "#f38ba8", "#a6e3a1", "#f9e2af", "#89b4fa", "#cba6f7", "#94e2d5", "#cdd6f4", "#585b70",
    "#f38ba8", "#b7f0b1", "#ffedc0", "#a6c8ff", "#ddc3ff", "#b0f0e6", "#ffffff",
];

/// The screen as SVG, with a fixed time.
fn picture(terminal: &Terminal) -> String {
    let (rows, columns) = terminal.emulator.screen().size();
    let (rows, columns) = (rows.get(), columns.get());
    let (width, height) = (columns * 8 + 16, rows * 18 + 16);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" width=\"{width}\" \
         font-family=\"monospace\" font-size=\"13\">\n<rect width=\"100%\" height=\"100%\" rx=\"6\" fill=\"{}\"/>\n",
        PALETTE[0]
    );
    for row in 0..rows {
        let mut column = 0;
        while column < columns {
            let (text, style) = run(terminal, row, column);
            let (x, length) = (8 + column * 8, u16::try_from(text.chars().count()).unwrap());
            column += length;
            if text.trim().is_empty() && !style.1 {
                continue;
            }
            if style.1 {
                let fill = PALETTE[7];
                let (y, width) = (8 + row * 18, length * 8);
                svg +=
                    &format!("<rect x=\"{x}\" y=\"{y}\" width=\"{width}\" height=\"18\" fill=\"{fill}\"/>\n");
            }
            let text = with_fixed_time(&text).replace('&', "&amp;").replace('<', "&lt;");
            let (y, width, style) = (21 + row * 18, length * 8, style.0);
            svg += &format!(
                "<text x=\"{x}\" y=\"{y}\" textLength=\"{width}\" xml:space=\"preserve\"{style}>{text}</text>\n"
            );
        }
    }
    svg + "</svg>\n"
}

/// The text from a cell on that has one style: its attributes in SVG, and whether it is in reverse video.
fn run(terminal: &Terminal, row: u16, column: u16) -> (String, (String, bool)) {
    let screen = terminal.emulator.screen();
    let style = |column| {
        let cell = screen.cell(row, column).unwrap();
        let color = match cell.fgcolor() {
            _ if cell.inverse() => PALETTE[0],
            vt100::Color::Idx(index) => PALETTE[usize::from(index)],
            _ => PALETTE[7],
        };
        let bold = if cell.bold() { " font-weight=\"bold\"" } else { "" };
        let dim = if cell.dim() { " opacity=\"0.6\"" } else { "" };
        let underline = if cell.underline() {
            " text-decoration=\"underline\""
        } else {
            ""
        };
        (format!(" fill=\"{color}\"{bold}{dim}{underline}"), cell.inverse())
    };
    let columns = (column..screen.size().1.get()).take_while(|other| style(*other) == style(column));
    let text = columns.map(|column| {
        let cell = screen.cell(row, column).unwrap();
        if cell.has_contents() { cell.contents() } else { " " }.to_owned()
    });
    (text.collect(), style(column))
}

/// Replaces the date or the time of a row.
fn with_fixed_time(text: &str) -> String {
    if text.starts_with("── ") {
        let date = "── Thursday, 26 November 2026 ";
        let (lines, border) = text.split_at(text.find('│').unwrap_or(text.len()));
        let rest = lines.chars().count() - date.chars().count();
        return format!("{date}{}{border}", "─".repeat(rest));
    }
    match text.split_once(" [L=") {
        Some((_, rest)) => format!("12:00 [L={rest}"),
        None => text.to_owned(),
    }
}
