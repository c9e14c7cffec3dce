//! Starts and restarts a server with the same data directory and port.

use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::sys::signal::Signal;
use tempfile::TempDir;

use crate::process::Process;

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
pub struct ServerProcess(Process);

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
        let mut process = self.spawn();
        match process.try_stderr_line("chitchat: listening on ") {
            Ok(_) => Ok(ServerProcess(process)),
            Err(lines) => Err(Exit {
                code: process.wait().code(),
                lines,
            }),
        }
    }

    fn spawn(&self) -> Process {
        let child = Command::new(&self.program)
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
        Process::from(child)
    }
}

impl ServerProcess {
    /// Kills the server with SIGKILL.
    pub fn kill(mut self) {
        self.0.kill();
    }

    /// Stops the server with SIGTERM.
    pub fn stop(mut self) -> Exit {
        self.signal(Signal::SIGTERM);
        self.wait_for_exit()
    }

    pub fn signal(&self, signal: Signal) {
        self.0.signal(signal);
    }

    pub fn has_exited(&mut self) -> bool {
        self.0.has_exited()
    }

    /// Waits until the server exits.
    pub fn wait_for_exit(&mut self) -> Exit {
        Exit {
            code: self.0.wait().code(),
            lines: self.0.rest_of_stderr(),
        }
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
