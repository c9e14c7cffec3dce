//! A place where a server can run again and again: a data directory and a port that stay the same.

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

/// A data directory and a port. The directory is removed when it is dropped.
pub struct Site {
    /// Everything of this site is in here.
    root: PathBuf,
    /// The `chitchat` that is run.
    program: PathBuf,
    pub data: PathBuf,
    pub address: SocketAddr,
    flags: Vec<String>,
    failpoints: String,
}

/// A server that runs. Killed when dropped.
pub struct Server {
    child: Child,
    lines: Receiver<String>,
}

/// How a server ended by itself.
#[derive(Debug)]
pub struct Exit {
    pub code: Option<i32>,
    /// What it said on stderr.
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

    /// Which faults the server is to have from its next start on.
    pub fn set_failpoints(&mut self, failpoints: &str) {
        failpoints.clone_into(&mut self.failpoints);
    }

    /// A directory of this site for other purposes.
    pub fn path(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// Starts a server.
    pub fn start(&self) -> Server {
        self.try_start()
            .unwrap_or_else(|exit| panic!("the server does not start: {exit:?}"))
    }

    /// Starts a server, or gives how it refused to.
    pub fn try_start(&self) -> Result<Server, Exit> {
        let mut server = self.spawn();
        let deadline = Instant::now() + PATIENCE;
        let mut said = Vec::new();
        // The lines end when the process does.
        loop {
            match server.lines.recv_timeout(deadline - Instant::now()) {
                Ok(line) if line.starts_with("chitchat: listening on ") => return Ok(server),
                Ok(line) => said.push(line),
                Err(RecvTimeoutError::Timeout) => panic!("the server neither starts nor ends: {said:?}"),
                Err(RecvTimeoutError::Disconnected) => break,
            }
        }
        let exit = server.wait("ends, which does not start");
        Err(Exit {
            code: exit.code(),
            lines: said,
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
        // Everything it says is taken, so that it never waits for a reader.
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
    /// Ends it as a crash does.
    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.wait("ends, which was killed");
    }

    /// Ends it as whoever runs it does.
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

    /// Waits until it ends by itself.
    pub fn exit(&mut self) -> Exit {
        let exit = self.wait("ends by itself");
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
            assert!(Instant::now() < deadline, "no server that {what}");
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

/// A port that nobody has, below those that the system gives to whoever connects: while the server is down nobody else
/// gets it, not even a client that looks for the server.
fn free_address() -> SocketAddr {
    loop {
        let address = SocketAddr::from(([127, 0, 0, 1], rand::random_range(20_000..32_000)));
        if TcpListener::bind(address).is_ok() {
            return address;
        }
    }
}

/// All files below a directory, to have them as they were again and again.
pub struct Contents {
    root: PathBuf,
    /// Path, bytes without the zeros at the end, and length.
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
                // What is allotted and not yet used need not be written again.
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
