//! The server as whoever runs it sees it: a process, its ports, its log, its exit code; and the programs of strangers.
#![allow(
    dead_code,
    missing_docs,
    unreachable_pub,
    reason = "each test uses another part of it"
)]

use std::env;
use std::ffi::OsStr;
use std::io::{BufRead as _, BufReader, Read, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// How long anything may take that is to happen: only a broken server needs it.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// The program under test.
pub const CHITCHAT: &str = env!("CARGO_BIN_EXE_chitchat");

/// Where the checkout is.
pub const CHECKOUT: &str = env!("CARGO_MANIFEST_DIR");

/// A running server. Killed when dropped.
pub struct Server {
    running: Running,
    /// What it said once it listened.
    pub announcement: String,
    pub address: SocketAddr,
    pub admin: SocketAddr,
}

/// Starts a server on free ports.
pub fn serve(flags: &[&str]) -> Server {
    serve_with(flags, &[])
}

/// Starts a server on free ports, with these variables.
pub fn serve_with(flags: &[&str], variables: &[(&str, &str)]) -> Server {
    let mut command = Command::new(CHITCHAT);
    command
        .args(["serve", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"])
        .args(flags)
        // What is said in one test is not heard in another.
        .env("CHITCHAT_IN_MEMORY", "true")
        .envs(variables.iter().copied());
    let mut running = Running::start(&mut command);
    let line = running.error_line("chitchat: listening on ");
    let mut addresses = line.split_whitespace().filter_map(|word| word.parse().ok());
    let (Some(address), Some(admin)) = (addresses.next(), addresses.next()) else {
        panic!("no two addresses in {line:?}");
    };
    Server {
        running,
        address,
        admin,
        announcement: line,
    }
}

impl Server {
    pub fn signal(&self, signal: Signal) {
        self.running.signal(signal);
    }

    /// The next line of stderr that contains this.
    pub fn says(&mut self, part: &str) -> String {
        self.running.error_line(part)
    }

    /// The next line of the log that contains this.
    pub fn logs(&mut self, part: &str) -> String {
        self.running.line(part)
    }

    pub fn exit(&mut self) -> ExitStatus {
        self.running.exit()
    }

    /// What was logged since the line that was asked for last. For a server that has ended.
    pub fn rest_of_log(&mut self) -> Vec<String> {
        self.running.lines.iter().collect()
    }

    /// A page of the admin port.
    pub fn page(&self, path: &str) -> String {
        let mut stream = TcpStream::connect(self.admin).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        write!(
            stream,
            "GET {path} HTTP/1.1\r\nHost: admin\r\nConnection: close\r\n\r\n"
        )
        .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }
}

/// A program that runs beside the test, and what it writes. Killed when dropped.
pub struct Running {
    child: Child,
    lines: Receiver<String>,
    errors: Receiver<String>,
}

impl Running {
    pub fn start(command: &mut Command) -> Self {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("{command:?}: {error}"));
        Self {
            lines: lines_of(child.stdout.take().unwrap()),
            errors: lines_of(child.stderr.take().unwrap()),
            child,
        }
    }

    /// Writes a line to the program's stdin.
    pub fn type_line(&mut self, line: &str) {
        let stdin = self.child.stdin.as_mut().expect("stdin is open");
        writeln!(stdin, "{line}").unwrap();
    }

    pub fn close_stdin(&mut self) {
        drop(self.child.stdin.take());
    }

    /// The next line of stdout that contains this.
    pub fn line(&mut self, part: &str) -> String {
        line_with(&self.lines, part)
    }

    /// The next line of stderr that contains this.
    pub fn error_line(&mut self, part: &str) -> String {
        line_with(&self.errors, part)
    }

    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(i32::try_from(self.child.id()).unwrap()), signal).unwrap();
    }

    /// Waits until the program has ended.
    pub fn exit(&mut self) -> ExitStatus {
        until("the program ends", || self.child.try_wait().unwrap())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// What a program writes, taken as it comes, so that it never waits for a reader.
fn lines_of(pipe: impl Read + Send + 'static) -> Receiver<String> {
    let (sender, receiver) = channel();
    thread::spawn(move || {
        for line in BufReader::new(pipe).lines().map_while(Result::ok) {
            if sender.send(line).is_err() {
                // Nobody listens any more; it is still taken.
            }
        }
    });
    receiver
}

fn line_with(lines: &Receiver<String>, part: &str) -> String {
    let deadline = Instant::now() + PATIENCE;
    let mut seen = Vec::new();
    loop {
        match lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(line) if line.contains(part) => return line,
            Ok(line) => seen.push(line),
            Err(RecvTimeoutError::Timeout) => panic!("no {part:?} in time, only {seen:#?}"),
            Err(RecvTimeoutError::Disconnected) => panic!("no {part:?}, only {seen:#?}"),
        }
    }
}

/// Asks until there is an answer.
pub fn until<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(Instant::now() < deadline, "not in time: {what}");
        thread::sleep(Duration::from_millis(10));
    }
}

/// Runs a program to its end, with this on its stdin.
pub fn run(command: &mut Command, input: &str) -> Output {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{command:?}: {error}"));
    // A program that does not read its input may have ended before all of it is written.
    child.stdin.take().unwrap().write_all(input.as_bytes()).ok();
    child.wait_with_output().unwrap()
}

/// Runs a program to its end, which must be a success, and gives what it wrote to stdout.
pub fn succeed(command: &mut Command, input: &str) -> String {
    let output = run(command, input);
    assert!(
        output.status.success(),
        "{command:?}: {}\n{}\n{}",
        output.status,
        text(&output.stdout),
        text(&output.stderr)
    );
    text(&output.stdout)
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A program of strangers that a test needs: from the environment variable, or by its name. Without it the test says that it
/// is skipped, but where CI is set it fails: there nothing may be skipped.
pub fn stranger(variable: &str, name: &str, version: &[&str]) -> Option<String> {
    let program = env::var(variable).unwrap_or_else(|_| name.to_owned());
    let found = Command::new(&program)
        .args(version)
        .stdin(Stdio::null())
        .output()
        .is_ok_and(|output| output.status.success());
    if found {
        return Some(program);
    }
    let missing = format!("{program} {} does not run", version.join(" "));
    assert!(
        env::var_os("CI").as_deref() != Some(OsStr::new("true")),
        "{missing}"
    );
    // Past the test's captured output, so that whoever runs the tests sees it.
    let mut told = std::io::stderr().lock();
    writeln!(told, "skipped: {missing} (see CONTRIBUTING.md)").unwrap();
    None
}

pub fn grpcurl() -> Option<String> {
    stranger("CHITCHAT_TEST_GRPCURL", "grpcurl", &["-version"])
}

pub fn buf() -> Option<String> {
    stranger("CHITCHAT_TEST_BUF", "buf", &["--version"])
}

/// A Python that has grpcio and its code generator.
pub fn python() -> Option<String> {
    stranger(
        "CHITCHAT_TEST_PYTHON",
        "python3",
        &["-c", "import grpc, grpc_tools"],
    )
}

/// A flag of `chitchat serve`, from its help.
pub struct Flag {
    pub heading: String,
    pub name: String,
    pub variable: String,
    pub default: Option<String>,
}

/// All flags of `chitchat serve` that are variables too.
pub fn serve_flags() -> Vec<Flag> {
    let help = succeed(Command::new(CHITCHAT).args(["serve", "--help"]), "");
    let mut flags: Vec<Flag> = Vec::new();
    let (mut heading, mut name) = (String::new(), String::new());
    for line in help.lines() {
        let words = line.trim();
        if !line.starts_with(' ') {
            heading = line.to_owned();
        } else if words.starts_with("--") {
            name = words.split(' ').next().unwrap_or_default().to_owned();
        } else if let Some(variable) = words.strip_prefix("[env: ") {
            flags.push(Flag {
                heading: heading.clone(),
                name: name.clone(),
                variable: variable.split('=').next().unwrap_or_default().to_owned(),
                default: None,
            });
        } else if let (Some(default), Some(flag)) = (words.strip_prefix("[default: "), flags.last_mut()) {
            flag.default = default.strip_suffix(']').map(str::to_owned);
        }
    }
    assert!(!flags.is_empty(), "{help}");
    flags
}
