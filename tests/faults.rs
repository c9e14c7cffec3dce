//! Disk faults: a read-only, locked, newer, damaged or full data directory. The server has all data, or it refuses to start
//! or exits with a line that says why and an exit code. It never loses data silently.
// Helpers of tests panic as tests do.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use chitchat::proto::{SendMessageRequest, ServerMessage};
use chitchat_verify::check;
use chitchat_verify::crash_harness::{DirectorySnapshot, Exit, Run, ServerFixture, TIMEOUT, seed};
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use tokio::task::block_in_place;

/// The program under test.
const CHITCHAT: &str = env!("CARGO_BIN_EXE_chitchat");

/// The exit code for a failed read or write.
const IO: i32 = 74;
/// The exit code for damaged data.
const DATA: i32 = 65;

fn refusal(fixture: &ServerFixture) -> Exit {
    match fixture.try_start() {
        Ok(_) => panic!("the server starts"),
        Err(exit) => exit,
    }
}

/// Asserts that the server refuses to start, with one line that contains `parts`.
fn assert_refused(fixture: &ServerFixture, code: i32, parts: &[&str]) {
    let exit = refusal(fixture);
    assert_eq!(exit.code, Some(code), "{exit:?}");
    assert_eq!(exit.lines.len(), 1, "{exit:?}");
    for part in parts {
        assert!(exit.lines[0].contains(part), "{part:?}: {exit:?}");
    }
}

/// A small file system. Unmounted when dropped.
struct Disk(PathBuf);

impl Disk {
    /// Mounts a tmpfs. `None` if the test may not do that here.
    fn mount(path: PathBuf, options: &str) -> Option<Self> {
        std::fs::create_dir_all(&path).unwrap();
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", options, "tmpfs"])
            .arg(&path)
            .output();
        let reason = match mounted {
            Ok(output) if output.status.success() => return Some(Self(path)),
            Ok(output) => String::from_utf8_lossy(&output.stderr).trim().to_owned(),
            Err(error) => error.to_string(),
        };
        assert!(std::env::var("CI").is_err(), "cannot mount: {reason}");
        println!("skipped: cannot mount a file system: {reason}");
        None
    }

    fn remount(&self, options: &str) {
        let status = Command::new("mount")
            .args(["-o", &format!("remount,{options}")])
            .arg(&self.0)
            .status();
        assert!(status.unwrap().success());
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        Command::new("umount").arg("-l").arg(&self.0).status().ok();
    }
}

#[test]
fn a_directory_that_cannot_be_written_is_refused() {
    let mut fixture = ServerFixture::new(CHITCHAT, &[]);
    let Some(disk) = Disk::mount(fixture.path("disk"), "size=96m") else {
        return;
    };
    fixture.data_dir = fixture.path("disk").join("data");
    let server = fixture.start();
    server.stop();
    disk.remount("ro");
    let data = fixture.data_dir.display().to_string();
    assert_refused(
        &fixture,
        IO,
        &["cannot use the data directory", &data, "Read-only"],
    );
    // A missing directory is not created.
    fixture.data_dir = fixture.path("disk").join("another");
    assert_refused(
        &fixture,
        IO,
        &["cannot use the data directory", "another", "Read-only"],
    );
    disk.remount("rw");
    fixture.data_dir = fixture.path("disk").join("data");
    fixture.start();
}

#[test]
fn a_directory_of_another_version_is_refused() {
    let fixture = ServerFixture::new(CHITCHAT, &[]);
    fixture.start().stop();
    for format in ["chitchat 1", "chitchat 3"] {
        std::fs::write(fixture.data_dir.join("FORMAT"), format!("{format}\n")).unwrap();
        let before = DirectorySnapshot::take(&fixture.data_dir);
        let found = format!("{format:?}");
        assert_refused(&fixture, IO, &[&found, "this version knows \"chitchat 2\""]);
        assert_eq!(
            before.files,
            DirectorySnapshot::take(&fixture.data_dir).files,
            "no file has changed"
        );
    }
}

#[test]
fn a_directory_in_use_is_refused() {
    let fixture = ServerFixture::new(CHITCHAT, &[]);
    let server = fixture.start();
    let mut second = ServerFixture::new(CHITCHAT, &[]);
    second.data_dir.clone_from(&fixture.data_dir);
    assert_refused(&second, IO, &["in use by another server"]);
    server.kill();
    // The lock ends with its process.
    second.start();
}

/// The outcome of a start with damaged files.
#[derive(Debug, PartialEq, Eq, Clone, Copy)]
enum Outcome {
    /// The log is complete.
    Complete,
    /// The server did not start, and said why; or it started, and answers that the log is damaged.
    Refused,
}

/// Starts a server, and checks that it has the complete log or says in one line why it does not start.
async fn start_damaged(
    fixture: &ServerFixture,
    log: &[Arc<ServerMessage>],
    how: &str,
) -> Result<Outcome, String> {
    match block_in_place(|| fixture.try_start()) {
        Err(exit) => {
            let is_code = exit.code == Some(IO) || exit.code == Some(DATA);
            let line = exit.lines.first().filter(|line| line.starts_with("chitchat: "));
            if let Some(line) = line.filter(|_| is_code && exit.lines.len() == 1) {
                println!("{how}: {line}");
                Ok(Outcome::Refused)
            } else {
                Err(format!("{how}: {exit:?}"))
            }
        }
        Ok(server) => {
            let run = Run::new(fixture.address, 0);
            let read = run.try_log().await;
            block_in_place(|| server.kill());
            let found = match read {
                Ok((found, _)) => found,
                Err(status) => {
                    println!("{how}: {status}");
                    return Ok(Outcome::Refused);
                }
            };
            if found.len() == log.len() && found.iter().zip(log).all(|(a, b)| a == b) {
                Ok(Outcome::Complete)
            } else {
                Err(format!(
                    "{how}: silently, only {} of {} events are there",
                    found.len(),
                    log.len()
                ))
            }
        }
    }
}

/// Fills a room and returns its log.
async fn fill(fixture: &ServerFixture, messages: u64, length: usize) -> Vec<Arc<ServerMessage>> {
    let mut random = StdRng::seed_from_u64(length as u64);
    let server = block_in_place(|| fixture.start());
    let run = Run::new(fixture.address, 0);
    let mut calls = run.connect().await;
    for n in 0..messages {
        let text: String = (0..length).map(|_| random.random_range('a'..='z')).collect();
        let request = SendMessageRequest {
            room: "tea".into(),
            client_name: "Ada".into(),
            msg: text,
            message_id: format!("m{n}"),
            ..SendMessageRequest::default()
        };
        calls.send_message(request).await.unwrap();
    }
    let (log, _) = run.log().await;
    assert_eq!(log.len() as u64, messages);
    let exit = block_in_place(|| server.stop());
    assert_eq!(exit.code, Some(0), "{exit:?}");
    log
}

/// A change of a file.
#[derive(Debug, Clone, Copy)]
enum Damage {
    /// Flips a bit of the byte at this offset.
    Flip(usize, u8),
    /// Truncates the file at this offset.
    Truncate(usize),
}

/// Damages the files of a data directory one after the other, and starts a server each time.
struct DamageTest<'a> {
    fixture: &'a ServerFixture,
    log: &'a [Arc<ServerMessage>],
    undamaged: DirectorySnapshot,
    random: StdRng,
    refused: u32,
    starts: u32,
    failures: Vec<String>,
}

impl<'a> DamageTest<'a> {
    fn new(fixture: &'a ServerFixture, log: &'a [Arc<ServerMessage>]) -> Self {
        Self {
            fixture,
            log,
            undamaged: DirectorySnapshot::take(&fixture.data_dir),
            random: StdRng::seed_from_u64(seed()),
            refused: 0,
            starts: 0,
            failures: Vec::new(),
        }
    }

    /// The bytes of a file, without zeros at its end.
    fn bytes(&self, name: &str) -> &[u8] {
        let path = self.fixture.data_dir.join(name);
        let file = self.undamaged.files.iter().find(|(file, ..)| *file == path);
        &file.unwrap().1
    }

    /// The segments of the log.
    fn files(&self) -> Vec<String> {
        let files = self
            .undamaged
            .files
            .iter()
            .filter(|(_, bytes, _)| !bytes.is_empty());
        files
            .map(|(path, ..)| {
                path.strip_prefix(&self.fixture.data_dir)
                    .unwrap()
                    .display()
                    .to_string()
            })
            .filter(|name| name.starts_with("log/"))
            .collect()
    }

    async fn damage_at_random(&mut self, name: &str, tries: usize) {
        let length = self.bytes(name).len();
        for n in 0..tries {
            let at = self.random.random_range(0..length);
            let damage = if n % 3 == 2 {
                Damage::Truncate(at)
            } else {
                Damage::Flip(at, self.random.random_range(0..8))
            };
            self.damage(name, damage).await;
        }
    }

    async fn damage(&mut self, name: &str, damage: Damage) {
        self.undamaged.restore();
        let file = OpenOptions::new()
            .write(true)
            .open(self.fixture.data_dir.join(name))
            .unwrap();
        match damage {
            Damage::Flip(at, bit) => {
                let flipped = self.bytes(name)[at] ^ (1 << bit);
                file.write_at(&[flipped], at as u64).unwrap();
            }
            Damage::Truncate(at) => file.set_len(at as u64).unwrap(),
        }
        let how = format!("{name}, {} bytes, {damage:?}", self.bytes(name).len());
        self.starts += 1;
        match start_damaged(self.fixture, self.log, &how).await {
            Ok(Outcome::Refused) => self.refused += 1,
            Ok(Outcome::Complete) => println!("{how}: complete"),
            Err(how) => self.failures.push(how),
        }
    }

    fn end(self) {
        println!("{} of {} starts were refused", self.refused, self.starts);
        assert!(self.failures.is_empty(), "{}", self.failures.join("\n"));
    }
}

const SEGMENT: &str = "log/0000000001.log";

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_log_is_never_silently_incomplete() {
    let fixture = ServerFixture::new(CHITCHAT, &[]);
    let log = fill(&fixture, 60, 200).await;
    let mut test = DamageTest::new(&fixture, &log);
    assert_eq!(test.files(), [SEGMENT]);
    test.damage_at_random(SEGMENT, 20).await;
    test.damage_at_random("watermark", 3).await;
    // Flip a bit in each byte of an entry's header.
    let segment = test.bytes(SEGMENT);
    let text = segment.windows(3).position(|bytes| bytes == b"m30").unwrap();
    let begin = (0..text)
        .rev()
        .find(|at| at % 8 == 0 && segment[at + 8] == 1 && segment[at + 10..at + 12] == [0, 0]);
    let begin = begin.unwrap();
    for at in begin..begin + 40 {
        test.damage(SEGMENT, Damage::Flip(at, u8::try_from(at % 8).unwrap()))
            .await;
    }
    // A truncation between two entries leaves no torn tail, and neither does an empty file.
    test.damage(SEGMENT, Damage::Truncate(begin)).await;
    test.damage(SEGMENT, Damage::Truncate(0)).await;
    test.end();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_sealed_segment_is_never_silently_wrong() {
    let options = ["--max-message-chars", "100000", "--retain-total-bytes", "256MiB"];
    let fixture = ServerFixture::new(CHITCHAT, &options);
    let log = fill(&fixture, 200, 90_000).await;
    let mut test = DamageTest::new(&fixture, &log);
    let segments = test.files();
    assert!(segments.len() > 3, "there are no sealed segments: {segments:?}");
    for name in segments {
        test.damage_at_random(&name, 6).await;
    }
    test.end();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_ends_the_server_and_violates_no_invariant() {
    // With segments of 1 MiB.
    let options = ["--resume-grace", "10m", "--retain-total-bytes", "64MiB"];
    let mut fixture = ServerFixture::new(CHITCHAT, &options);
    let Some(disk) = Disk::mount(fixture.path("disk"), "size=32m") else {
        return;
    };
    fixture.data_dir = disk.0.join("data");
    let mut server = block_in_place(|| fixture.start());
    let mut run = Run::new(fixture.address, 1);
    for (name, window) in [("Ada", 16), ("Bob", 16), ("Eve", 0)] {
        run.add_client(name, window);
    }
    run.wait_for_reconnects(&[0; 3]).await;
    // Fill the disk except for some hundred messages.
    let filler = disk.0.join("filler");
    let free = nix::sys::statvfs::statvfs(&disk.0).unwrap();
    let free = free.blocks_available() * free.fragment_size();
    std::fs::write(&filler, vec![1; usize::try_from(free).unwrap() - 128 * 1024]).unwrap();
    let deadline = Instant::now() + TIMEOUT;
    while !server.has_exited() {
        assert!(Instant::now() < deadline, "the disk is not full");
        for client in run.clients.iter().take(2) {
            client.update_plan(|plan| plan.send_limit = client.progress().acknowledged + 16);
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let exit = block_in_place(|| server.wait_for_exit());
    assert_eq!(exit.code, Some(IO), "{exit:?}");
    assert_eq!(exit.lines.len(), 1, "{exit:?}");
    assert!(exit.lines[0].contains("the store failed"), "{exit:?}");
    assert!(exit.lines[0].contains("No space left"), "{exit:?}");
    let stored = run.acknowledged();
    println!("{stored} messages were acknowledged; {}", exit.lines[0]);
    std::fs::remove_file(&filler).unwrap();
    let streams = run.streams();
    let server = block_in_place(|| fixture.start());
    run.wait_for_reconnects(&streams).await;
    run.wait_for_acknowledgements().await;
    let history = run.finish().await;
    let violations = check(&history);
    assert!(violations.is_empty(), "{}", violations[0]);
    assert_eq!(block_in_place(|| server.stop()).code, Some(0));
}
