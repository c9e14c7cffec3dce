//! A data directory and a port on which a server can be restarted.

use std::io::{BufRead as _, BufReader};
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::PATIENCE;

/// A data directory and a port. The directory is removed on drop.
pub struct Site {
    /// Contains the data directory.
    root: PathBuf,
    /// The path of the `chitchat` program.
    program: PathBuf,
    pub data: PathBuf,
    pub address: SocketAddr,
    flags: Vec<String>,
    failpoints: String,
}

/// A running server. Killed on drop.
pub struct Server {
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

impl Site {
    pub fn new(program: &str, flags: &[&str]) -> Self {
        static SITES: AtomicU32 = AtomicU32::new(0);
        let site = SITES.fetch_add(1, Ordering::Relaxed);
        let root = std::env::temp_dir().join(format!("chitchat-crash-{}-{site}", std::process::id()));
        std::fs::remove_dir_all(&root).ok();
        std::fs::create_dir_all(&root).unwrap();
        Self {
            data: root.join("data"),
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
        self.root.join(name)
    }

    /// Starts a server.
    pub fn start(&self) -> Server {
        self.try_start()
            .unwrap_or_else(|exit| panic!("the server does not start: {exit:?}"))
    }

    /// Starts a server. Returns an error if it exits instead of listening.
    pub fn try_start(&self) -> Result<Server, Exit> {
        let mut server = self.spawn();
        let deadline = Instant::now() + PATIENCE;
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
        let exit = server.wait("exits instead of listening");
        Err(Exit {
            code: exit.code(),
            lines,
        })
    }

    fn spawn(&self) -> Server {
        let mut child = Command::new(&self.program)
            .args(["serve", "--admin", "127.0.0.1:0", "--log", "off"])
            .arg("--listen")
            .arg(self.address.to_string())
            .arg("--data-dir")
            .arg(&self.data)
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
        Server { child, lines }
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.root).ok();
    }
}

impl Server {
    /// Kills the server with SIGKILL.
    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.wait("exits after SIGKILL");
    }

    /// Stops the server with SIGTERM.
    pub fn stop(mut self) -> Exit {
        self.signal(Signal::SIGTERM);
        self.exit()
    }

    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(i32::try_from(self.child.id()).unwrap()), signal).unwrap();
    }

    pub fn has_ended(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }

    /// Waits for the server to exit.
    pub fn exit(&mut self) -> Exit {
        let exit = self.wait("exits");
        Exit {
            code: exit.code(),
            lines: self.lines.iter().collect(),
        }
    }

    fn wait(&mut self, what: &str) -> ExitStatus {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(exit) = self.child.try_wait().unwrap() {
                return exit;
            }
            assert!(Instant::now() < deadline, "timeout: no server that {what}");
            thread::sleep(Duration::from_millis(2));
        }
    }
}

impl Drop for Server {
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
pub struct Contents {
    root: PathBuf,
    /// Path, contents without trailing zeros, and length.
    pub files: Vec<(PathBuf, Vec<u8>, u64)>,
}

impl Contents {
    pub fn read(root: &Path) -> Self {
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
                // Trailing zeros are preallocated space, which `write` restores with `set_len`.
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

    pub fn write(&self) {
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
