//! Runs the real programs as processes: `chitchat serve` on free ports, its clients, and external programs.
#![allow(
    dead_code,
    missing_docs,
    unreachable_pub,
    reason = "each test uses another part of it"
)]

use std::env;
use std::ffi::OsStr;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;

#[allow(unused_imports, reason = "each test uses another part of it")]
pub use chitchat_verify::process::{Finished, Process, TIMEOUT, spawn, wait_until, wait_within};
use nix::sys::signal::Signal;

/// The path of the program under test.
pub const CHITCHAT: &str = env!("CARGO_BIN_EXE_chitchat");

/// The path of the load generator, next to the program under test.
///
/// Cargo builds it only for the tests of its own package, so `cargo test --test NAME` for another package does not.
pub fn load_generator() -> PathBuf {
    let program = Path::new(CHITCHAT).with_file_name("chitchat-bench");
    assert!(
        program.exists(),
        "{} is not built; run cargo test --no-run, or cargo build",
        program.display()
    );
    program
}

/// The root of the repository.
pub const CHECKOUT: &str = env!("CARGO_MANIFEST_DIR");

/// An address to bind to that makes the operating system choose a free port.
pub const FREE_PORT: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

/// An address with a port on which nothing listened when this was called, for a server that may be restarted on it. Nobody else gets it
/// meanwhile: it is below the ports that connections get, no other test of this process has it, and others begin elsewhere.
pub fn unused_address() -> SocketAddr {
    const PORTS: Range<u32> = 12_000..32_000;
    static CALLS: AtomicU32 = AtomicU32::new(0);
    wait_until("a port is free", || {
        let calls = CALLS.fetch_add(1, Ordering::Relaxed);
        let index = std::process::id().wrapping_mul(100).wrapping_add(calls) % (PORTS.end - PORTS.start);
        let port = u16::try_from(PORTS.start + index).unwrap();
        let address = SocketAddr::new(FREE_PORT.ip(), port);
        TcpListener::bind(address).ok().map(|_| address)
    })
}

/// The arguments of a server on free ports, with its rooms in memory.
pub const SERVE_IN_MEMORY: [&str; 6] = [
    "serve",
    "--in-memory",
    "--listen",
    "127.0.0.1:0",
    "--admin",
    "127.0.0.1:0",
];

/// A running `chitchat serve`. Killed when dropped.
pub struct Server {
    process: Process,
    /// The line on stderr that names the addresses.
    pub announcement: String,
    pub address: SocketAddr,
    pub admin: SocketAddr,
}

/// Starts a server on free ports, with its rooms in memory.
pub fn serve(flags: &[&str]) -> Server {
    serve_with(flags, &[])
}

/// Like [`serve`], with additional environment variables.
pub fn serve_with(flags: &[&str], variables: &[(&str, &str)]) -> Server {
    let mut command = Command::new(CHITCHAT);
    command
        .args(["serve", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"])
        .args(flags)
        // Not in a data directory, which tests that run at the same time would share.
        .env("CHITCHAT_IN_MEMORY", "true")
        .envs(variables.iter().copied());
    Server::start(&mut command)
}

/// Starts a server on `listen`. The `flags` must choose where it stores its rooms.
pub fn serve_at(listen: SocketAddr, flags: &[&str]) -> Server {
    let mut command = Command::new(CHITCHAT);
    command
        .args(["serve", "--listen", &listen.to_string(), "--admin", "127.0.0.1:0"])
        .args(flags);
    Server::start(&mut command)
}

impl Server {
    fn start(command: &mut Command) -> Self {
        Self::from_process(Process::start(command))
    }

    /// Waits until the server announces its addresses.
    pub fn from_process(process: Process) -> Self {
        let announcement = process.stderr_line("chitchat: listening on ");
        let mut addresses = announcement
            .split_whitespace()
            .filter_map(|word| word.parse().ok());
        let (Some(address), Some(admin)) = (addresses.next(), addresses.next()) else {
            panic!("no two addresses in {announcement:?}");
        };
        Self {
            process,
            announcement,
            address,
            admin,
        }
    }

    /// The id of the process.
    pub fn id(&self) -> u32 {
        self.process.id()
    }

    pub fn signal(&self, signal: Signal) {
        self.process.signal(signal);
    }

    /// Waits for the next line on stderr that contains `part`.
    pub fn stderr_line(&mut self, part: &str) -> String {
        self.process.stderr_line(part)
    }

    /// Waits for the next line of the log (stdout) that contains `part`.
    pub fn log_line(&mut self, part: &str) -> String {
        self.process.stdout_line(part)
    }

    /// Sends SIGTERM, and asserts that the server exits with success.
    pub fn stop(&mut self) {
        self.signal(Signal::SIGTERM);
        let status = self.wait();
        assert!(status.success(), "{status}");
    }

    /// Waits until the server has exited.
    pub fn wait(&mut self) -> ExitStatus {
        self.process.wait()
    }

    /// Returns the lines of the log that the test has not read yet. The server must have exited.
    pub fn rest_of_log(&mut self) -> Vec<String> {
        self.process.rest_of_stdout()
    }

    /// Requests `path` from the admin port and returns the whole response, with its headers.
    pub fn get(&self, path: &str) -> String {
        http_get(self.admin, path).expect("the admin port responds")
    }
}

/// Requests `path`, and returns the response, with its headers. `None` if the connection fails.
pub fn http_get(address: SocketAddr, path: &str) -> Option<String> {
    let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    http_request(address, &request)
}

/// Sends an HTTP request and returns the response, with its headers. `None` if the connection fails.
pub fn http_request(address: SocketAddr, request: &str) -> Option<String> {
    let mut stream = TcpStream::connect(address).ok()?;
    stream.set_read_timeout(Some(TIMEOUT)).unwrap();
    stream.write_all(request.as_bytes()).ok()?;
    let mut response = String::new();
    stream.read_to_string(&mut response).ok()?;
    Some(response)
}

/// Decodes the percent-encoding of a URL.
pub fn percent_decoded(text: &str) -> String {
    let mut parts = text.split('%');
    let mut bytes = parts.next().unwrap_or_default().as_bytes().to_vec();
    for part in parts {
        bytes.push(u8::from_str_radix(&part[..2], 16).unwrap());
        bytes.extend_from_slice(&part.as_bytes()[2..]);
    }
    String::from_utf8(bytes).unwrap()
}

/// Runs a program to its end, with `input` on its stdin.
pub fn run(command: &mut Command, input: &str) -> Output {
    let mut child = spawn(command);
    let mut stdin = child.stdin.take().unwrap();
    thread::scope(|scope| {
        scope.spawn(move || {
            // A program that does not read its input may exit before all of it is written.
            stdin.write_all(input.as_bytes()).ok();
        });
        child.wait_with_output().unwrap()
    })
}

/// Runs a program to its end, asserts that it succeeded, and returns its stdout.
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

/// Prints that a test is skipped, directly to stderr, because the test harness captures `eprintln!`.
pub fn skip(reason: &str) {
    // In one write, so that it is not interleaved with other output.
    let line = format!("skipped: {reason}\n");
    std::io::stderr().write_all(line.as_bytes()).unwrap();
}

/// Whether this is a CI run, where no test may be skipped.
pub fn is_ci() -> bool {
    env::var_os("CI").as_deref() == Some(OsStr::new("true"))
}

/// The external program that a test needs: the value of the environment variable `variable`, or `name` in `PATH`.
///
/// Runs it with the arguments `version` to check that it works. If it does not, this panics in CI; elsewhere it reports
/// a skipped test and returns `None`.
pub fn external_program(variable: &str, name: &str, version: &[&str]) -> Option<String> {
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
    assert!(!is_ci(), "{missing}");
    skip(&format!("{missing} (see CONTRIBUTING.md)"));
    None
}

pub fn grpcurl() -> Option<String> {
    external_program("CHITCHAT_TEST_GRPCURL", "grpcurl", &["-version"])
}

pub fn h2spec() -> Option<String> {
    external_program("CHITCHAT_TEST_H2SPEC", "h2spec", &["--version"])
}

pub fn buf() -> Option<String> {
    external_program("CHITCHAT_TEST_BUF", "buf", &["--version"])
}

/// A Python that has grpcio and its code generator.
pub fn python() -> Option<String> {
    external_program(
        "CHITCHAT_TEST_PYTHON",
        "python3",
        &["-c", "import grpc, grpc_tools"],
    )
}

/// A flag of `chitchat serve`, as its help shows it.
pub struct Flag {
    pub heading: String,
    pub name: String,
    pub variable: String,
    /// The default value, or what the description says of it.
    pub default: Option<String>,
}

/// All flags of `chitchat serve` that can also be set by an environment variable.
pub fn serve_flags() -> Vec<Flag> {
    let help = succeed(Command::new(CHITCHAT).args(["serve", "--help"]), "");
    let mut flags: Vec<Flag> = Vec::new();
    let (mut heading, mut name, mut description) = (String::new(), String::new(), String::new());
    let default = |text: &str| {
        let (_, default) = text.split_once("[default: ")?;
        Some(default.split_once(']')?.0.to_owned())
    };
    for line in help.lines() {
        let words = line.trim();
        if !line.starts_with(' ') {
            heading = line.to_owned();
        } else if words.starts_with("--") {
            name = words.split(' ').next().unwrap_or_default().to_owned();
            description.clear();
        } else if let Some(variable) = words.strip_prefix("[env: ") {
            flags.push(Flag {
                heading: heading.clone(),
                name: name.clone(),
                variable: variable.split(['=', ']']).next().unwrap_or_default().to_owned(),
                default: default(&description),
            });
        } else if let Some(flag) = flags.last_mut().filter(|flag| flag.name == name) {
            flag.default = default(words).or(flag.default.take());
        } else {
            description = format!("{description} {words}");
        }
    }
    assert!(!flags.is_empty(), "{help}");
    flags
}
