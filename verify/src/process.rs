//! Runs programs as processes, for tests.

use std::io::{BufRead as _, BufReader, Read, Write as _};
use std::process::{Child, ChildStdin, Command, ExitStatus, Output, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Upper bound for every wait. Even a busy machine needs much less.
pub const TIMEOUT: Duration = Duration::from_secs(60);

/// A child process whose output is read while the test runs. Killed when dropped.
pub struct Process {
    child: Child,
    stdout: Receiver<String>,
    stderr: Receiver<String>,
}

/// How a process ended, and the output that the test had not read.
#[derive(Debug)]
pub struct Finished {
    pub code: Option<i32>,
    /// The lines of stdout.
    pub lines: Vec<String>,
    pub stderr: String,
}

impl Finished {
    /// The exit code and stderr.
    pub fn outcome(&self) -> (Option<i32>, &str) {
        (self.code, &self.stderr)
    }

    /// Asserts that the process failed with one line on stderr that begins with `start`.
    pub fn assert_failed(&self, code: i32, start: &str) {
        assert_eq!(self.code, Some(code), "{self:?}");
        assert!(
            self.stderr.starts_with(start) && self.stderr.lines().count() == 1,
            "{self:?}"
        );
    }
}

impl From<Output> for Finished {
    fn from(output: Output) -> Self {
        let stdout = String::from_utf8(output.stdout).unwrap();
        Self {
            code: output.status.code(),
            lines: stdout.lines().map(str::to_owned).collect(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }
}

impl Process {
    pub fn start(command: &mut Command) -> Self {
        Self::from(spawn(command))
    }

    pub fn write(&mut self, input: impl AsRef<[u8]>) {
        let stdin = self.child.stdin.as_mut().expect("stdin is open");
        stdin.write_all(input.as_ref()).unwrap();
    }

    /// Writes `line` and a newline to stdin.
    pub fn write_line(&mut self, line: &str) {
        self.write(format!("{line}\n"));
    }

    pub fn close_stdin(&mut self) {
        drop(self.take_stdin());
    }

    pub fn take_stdin(&mut self) -> Option<ChildStdin> {
        self.child.stdin.take()
    }

    /// Waits for the next line on stdout.
    pub fn line(&self) -> String {
        self.stdout_line("")
    }

    /// Waits for the next line on stdout that contains `part`.
    pub fn stdout_line(&self, part: &str) -> String {
        line_with(&self.stdout, part)
    }

    /// Waits for the next line on stderr that contains `part`.
    pub fn stderr_line(&self, part: &str) -> String {
        line_with(&self.stderr, part)
    }

    /// Like [`Self::stderr_line`]. If the process closes stderr first, returns the lines that it has written.
    pub fn try_stderr_line(&self, part: &str) -> Result<String, Vec<String>> {
        try_line_with(&self.stderr, part)
    }

    /// The lines on stdout that have not been read. The process must have exited.
    pub fn rest_of_stdout(&mut self) -> Vec<String> {
        self.stdout.iter().map(|line| without_newline(&line)).collect()
    }

    /// The lines on stderr that have not been read. The process must have exited.
    pub fn rest_of_stderr(&mut self) -> Vec<String> {
        self.stderr.iter().map(|line| without_newline(&line)).collect()
    }

    /// Kills the process with SIGKILL, and waits until it has exited.
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.wait();
    }

    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(i32::try_from(self.child.id()).unwrap()), signal).unwrap();
    }

    /// The id of the process.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    pub fn has_exited(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }

    /// Waits until the process has exited.
    pub fn wait(&mut self) -> ExitStatus {
        wait_until("the process exits", || self.child.try_wait().unwrap())
    }

    /// Closes stdin and waits until the process has exited.
    pub fn finish(mut self) -> Finished {
        self.close_stdin();
        self.finish_with_open_stdin()
    }

    /// Waits until the process has exited by itself.
    pub fn finish_with_open_stdin(mut self) -> Finished {
        Finished {
            code: self.wait().code(),
            lines: self.rest_of_stdout(),
            stderr: self.stderr.iter().collect(),
        }
    }
}

/// Takes the output pipes that the child still has, and reads them.
impl From<Child> for Process {
    fn from(mut child: Child) -> Self {
        Self {
            stdout: child.stdout.take().map_or_else(|| channel().1, lines_of),
            stderr: child.stderr.take().map_or_else(|| channel().1, lines_of),
            child,
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// Reads a pipe to its end, so that the writer never blocks. Lines keep their newline.
fn lines_of(pipe: impl Read + Send + 'static) -> Receiver<String> {
    let (sender, receiver) = channel();
    thread::spawn(move || {
        let mut pipe = BufReader::new(pipe);
        loop {
            let mut line = String::new();
            if pipe.read_line(&mut line).unwrap() == 0 {
                return;
            }
            // The test may have dropped the receiver; the pipe is still read.
            sender.send(line).ok();
        }
    });
    receiver
}

fn line_with(lines: &Receiver<String>, part: &str) -> String {
    try_line_with(lines, part).unwrap_or_else(|lines| panic!("no {part:?}, only {lines:#?}"))
}

/// Waits for a line that contains `part`. Returns the other lines if the pipe is closed first.
fn try_line_with(lines: &Receiver<String>, part: &str) -> Result<String, Vec<String>> {
    let deadline = Instant::now() + TIMEOUT;
    let mut others = Vec::new();
    loop {
        match lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(line) if line.contains(part) => return Ok(without_newline(&line)),
            Ok(line) => others.push(without_newline(&line)),
            Err(RecvTimeoutError::Timeout) => panic!("no {part:?} in time, only {others:#?}"),
            Err(RecvTimeoutError::Disconnected) => return Err(others),
        }
    }
}

fn without_newline(line: &str) -> String {
    line.strip_suffix('\n').unwrap_or(line).to_owned()
}

/// Calls `poll` every 5 ms until it returns a value. Panics after [`TIMEOUT`] with `what`, which names the condition.
pub fn wait_until<T>(what: &str, poll: impl FnMut() -> Option<T>) -> T {
    wait_within(TIMEOUT, what, poll)
}

/// As [`wait_until`], but panics after `limit`.
pub fn wait_within<T>(limit: Duration, what: &str, mut poll: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(value) = poll() {
            return value;
        }
        assert!(Instant::now() < deadline, "not in time: {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// Spawns a program with pipes for stdin, stdout and stderr. It does not read the configuration of whoever runs the tests.
pub fn spawn(command: &mut Command) -> Child {
    const CONFIG: &str = "XDG_CONFIG_HOME";
    if command.get_envs().all(|(variable, _)| variable != CONFIG) {
        command.env(CONFIG, "/nonexistent");
    }
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{command:?}: {error}"))
}
