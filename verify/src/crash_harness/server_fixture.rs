//! Starts and restarts a server with the same data directory and port.

use std::io::{BufRead as _, BufReader};
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

use super::TIMEOUT;

/// The data directory, the port and the flags of a server that can be restarted. The directory is removed on drop.
pub struct ServerFixture {
    /// Contains the data directory.
    root: TempDir,
    /// The path of the `chitchat` program.
    program: PathBuf,
    pub data_dir: PathBuf,
    pub address: SocketAddr,
    flags: Vec<String>,
    failpoints: String,
}

/// A running server. Killed on drop.
pub struct ServerProcess {
    child: Child,
    lines: Receiver<String>,
}

/// How a server exited.
#[derive(Debug)]
pub struct Exit {
    pub code: Option<i32>,
    /// The lines on stderr.
    pub lines: Vec<String>,
}

impl ServerFixture {
    pub fn new(program: &str, flags: &[&str]) -> Self {
        let root = TempDir::with_prefix("chitchat-crash-").unwrap();
        Self {
            data_dir: root.path().join("data"),
            root,
            program: program.into(),
            address: free_address(),
            flags: flags.iter().map(|flag| (*flag).to_owned()).collect(),
            failpoints: String::new(),
        }
    }

    /// Sets the failpoints for subsequent starts.
    pub fn set_failpoints(&mut self, failpoints: &str) {
        failpoints.clone_into(&mut self.failpoints);
    }

    /// A path next to the data directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    /// Starts a server.
    pub fn start(&self) -> ServerProcess {
        self.try_start()
            .unwrap_or_else(|exit| panic!("the server does not start: {exit:?}"))
    }

    /// Starts a server. Returns an error if it exits instead of listening.
    pub fn try_start(&self) -> Result<ServerProcess, Exit> {
        let mut server = self.spawn();
        let deadline = Instant::now() + TIMEOUT;
        let mut lines = Vec::new();
        // The channel is closed when the process has exited.
        loop {
            match server.lines.recv_timeout(deadline - Instant::now()) {
                Ok(line) if line.starts_with("chitchat: listening on ") => return Ok(server),
                Ok(line) => lines.push(line),
                Err(RecvTimeoutError::Timeout) => panic!("the server neither listens nor exits: {lines:?}"),
                Err(RecvTimeoutError::Disconnected) => break,
            }
        }
        let exit = server.wait("exit, although it closed stderr");
        Err(Exit {
            code: exit.code(),
            lines,
        })
    }

    fn spawn(&self) -> ServerProcess {
        let mut child = Command::new(&self.program)
            .args(["serve", "--admin", "127.0.0.1:0", "--log", "off"])
            .arg("--listen")
            .arg(self.address.to_string())
            .arg("--data-dir")
            .arg(&self.data_dir)
            .args(&self.flags)
            .env("CHITCHAT_FAILPOINTS", &self.failpoints)
            .env_remove("RUST_BACKTRACE")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        let (sender, lines) = channel();
        // Drained, so that the server never blocks on a full pipe.
        thread::spawn(move || {
            for line in stderr.lines().map_while(Result::ok) {
                sender.send(line).ok();
            }
        });
        ServerProcess { child, lines }
    }
}

impl ServerProcess {
    /// Kills the server with SIGKILL.
    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.wait("exit after SIGKILL");
    }

    /// Stops the server with SIGTERM.
    pub fn stop(mut self) -> Exit {
        self.signal(Signal::SIGTERM);
        self.wait_for_exit()
    }

    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(i32::try_from(self.child.id()).unwrap()), signal).unwrap();
    }

    pub fn has_exited(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }

    /// Waits until the server exits.
    pub fn wait_for_exit(&mut self) -> Exit {
        let exit = self.wait("exit");
        Exit {
            code: exit.code(),
            lines: self.lines.iter().collect(),
        }
    }

    fn wait(&mut self, what: &str) -> ExitStatus {
        let deadline = Instant::now() + TIMEOUT;
        loop {
            if let Some(exit) = self.child.try_wait().unwrap() {
                return exit;
            }
            assert!(Instant::now() < deadline, "timeout: the server does not {what}");
            thread::sleep(Duration::from_millis(2));
        }
    }
}

impl Drop for ServerProcess {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// An address with a free port below the ephemeral range, so that no outgoing connection is assigned that port while
/// the server is down.
fn free_address() -> SocketAddr {
    loop {
        let address = SocketAddr::from(([127, 0, 0, 1], rand::random_range(20_000..32_000)));
        if TcpListener::bind(address).is_ok() {
            return address;
        }
    }
}

/// A snapshot of the files in a directory, which can be restored.
pub struct DirectorySnapshot {
    root: PathBuf,
    /// Path, contents without trailing zeros, and length.
    pub files: Vec<(PathBuf, Vec<u8>, u64)>,
}

impl DirectorySnapshot {
    /// Reads all files below `root`.
    pub fn take(root: &Path) -> Self {
        let mut files = Vec::new();
        let mut directories = vec![root.to_owned()];
        while let Some(directory) = directories.pop() {
            for entry in std::fs::read_dir(directory).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    directories.push(path);
                    continue;
                }
                let mut bytes = std::fs::read(&path).unwrap();
                let length = bytes.len() as u64;
                // Trailing zeros are preallocated space, which `restore` sets with `set_len`.
                let used = bytes
                    .iter()
                    .rposition(|byte| *byte != 0)
                    .map_or(0, |last| last + 1);
                bytes.truncate(used);
                files.push((path, bytes, length));
            }
        }
        files.sort();
        Self {
            root: root.to_owned(),
            files,
        }
    }

    /// Replaces the directory by this snapshot.
    pub fn restore(&self) {
        std::fs::remove_dir_all(&self.root).unwrap();
        for (path, bytes, length) in &self.files {
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, bytes).unwrap();
            std::fs::OpenOptions::new()
                .write(true)
                .open(path)
                .unwrap()
                .set_len(*length)
                .unwrap();
        }
    }
}
