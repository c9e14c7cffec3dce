//! What the server does when its disk is not as it should be: it refuses to start, or ends, with a clear line and a
//! code; or it has everything. It is never silently wrong.
// Helpers of tests panic as tests do.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

mod outage;

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use chitchat::proto::{SendMessageRequest, ServerMessage};
use chitchat::verify::check;
use outage::{Contents, Exit, PATIENCE, Run, Site, seed};
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use tokio::task::block_in_place;

/// A server could not read or write something.
const IO: i32 = 74;
/// What a server read was wrong.
const DATA: i32 = 65;

fn refusal(site: &Site) -> Exit {
    match site.try_start() {
        Ok(_) => panic!("it starts"),
        Err(exit) => exit,
    }
}

fn assert_refused(site: &Site, code: i32, words: &[&str]) {
    let exit = refusal(site);
    assert_eq!(exit.code, Some(code), "{exit:?}");
    assert_eq!(exit.lines.len(), 1, "{exit:?}");
    for word in words {
        assert!(exit.lines[0].contains(word), "{word:?}: {exit:?}");
    }
}

/// A small file system of its own, gone when it is dropped.
struct Disk(PathBuf);

impl Disk {
    /// None where the system does not let a test mount something.
    fn mount(path: PathBuf, options: &str) -> Option<Self> {
        std::fs::create_dir_all(&path).unwrap();
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", options, "tmpfs"])
            .arg(&path)
            .output();
        let why = match mounted {
            Ok(output) if output.status.success() => return Some(Self(path)),
            Ok(output) => String::from_utf8_lossy(&output.stderr).trim().to_owned(),
            Err(error) => error.to_string(),
        };
        assert!(std::env::var("CI").is_err(), "cannot mount: {why}");
        println!("skipped: cannot mount a file system: {why}");
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
    let mut site = Site::new(&[]);
    let Some(disk) = Disk::mount(site.path("disk"), "size=96m") else {
        return;
    };
    site.data = site.path("disk").join("data");
    let server = site.start();
    server.stop();
    disk.remount("ro");
    let data = site.data.display().to_string();
    assert_refused(&site, IO, &["cannot use the data directory", &data, "Read-only"]);
    // Nor is one made.
    site.data = site.path("disk").join("another");
    assert_refused(
        &site,
        IO,
        &["cannot use the data directory", "another", "Read-only"],
    );
    disk.remount("rw");
    site.data = site.path("disk").join("data");
    site.start();
}

#[test]
fn a_directory_of_a_newer_version_is_refused() {
    let site = Site::new(&[]);
    site.start().stop();
    std::fs::write(site.data.join("FORMAT"), "chitchat 2\n").unwrap();
    let before = Contents::read(&site.data);
    assert_refused(
        &site,
        IO,
        &["\"chitchat 2\"", "this version knows \"chitchat 1\""],
    );
    assert_eq!(
        before.files,
        Contents::read(&site.data).files,
        "nothing was touched"
    );
}

#[test]
fn a_directory_that_another_server_has_is_refused() {
    let site = Site::new(&[]);
    let server = site.start();
    let mut second = Site::new(&[]);
    second.data.clone_from(&site.data);
    assert_refused(&second, IO, &["in use by another server"]);
    server.kill();
    // A lock does not outlive who held it.
    second.start();
}

/// What became of a start with damaged files.
#[derive(Debug, PartialEq, Eq, Clone, Copy)]
enum Outcome {
    /// Everything is there.
    Whole,
    /// It did not start, and said why.
    Refused,
}

/// Starts a server, and makes sure that it has the whole log, or says in one line why it does not start.
async fn start_damaged(site: &Site, log: &[Arc<ServerMessage>], how: &str) -> Result<Outcome, String> {
    match block_in_place(|| site.try_start()) {
        Err(exit) => {
            let is_code = exit.code == Some(IO) || exit.code == Some(DATA);
            // Where the database panics it says so before.
            let line = exit.lines.last().filter(|line| line.starts_with("chitchat: "));
            if let Some(line) = line.filter(|_| is_code) {
                println!("{how}: {line}");
                Ok(Outcome::Refused)
            } else {
                Err(format!("{how}: {exit:?}"))
            }
        }
        Ok(server) => {
            let run = Run::new(site.address, 0);
            let (found, _) = run.log().await;
            block_in_place(|| server.kill());
            if found.len() == log.len() && found.iter().zip(log).all(|(a, b)| a == b) {
                Ok(Outcome::Whole)
            } else {
                Err(format!(
                    "{how}: {} events of {} are there, silently",
                    found.len(),
                    log.len()
                ))
            }
        }
    }
}

/// Fills a room, and gives its log.
async fn fill(site: &Site, messages: u64, length: usize) -> Vec<Arc<ServerMessage>> {
    let mut random = StdRng::seed_from_u64(length as u64);
    let server = block_in_place(|| site.start());
    let run = Run::new(site.address, 0);
    let mut calls = run.calls().await;
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

/// What is done to a file.
#[derive(Debug, Clone, Copy)]
enum Damage {
    /// Another bit at this place.
    Flip(usize, u8),
    /// Nothing from this place on.
    Cut(usize),
}

/// The files of a data directory, damaged one way after the other.
struct Damaging<'a> {
    site: &'a Site,
    log: &'a [Arc<ServerMessage>],
    whole: Contents,
    random: StdRng,
    refused: u32,
    all: u32,
    wrong: Vec<String>,
}

impl<'a> Damaging<'a> {
    fn new(site: &'a Site, log: &'a [Arc<ServerMessage>]) -> Self {
        Self {
            site,
            log,
            whole: Contents::read(&site.data),
            random: StdRng::seed_from_u64(seed()),
            refused: 0,
            all: 0,
            wrong: Vec::new(),
        }
    }

    /// The used bytes of a file of the database.
    fn bytes(&self, name: &str) -> &[u8] {
        let path = self.site.data.join(name);
        let file = self.whole.files.iter().find(|(file, ..)| *file == path);
        &file.unwrap().1
    }

    /// The files of the database that have something in them.
    fn files(&self) -> Vec<String> {
        let files = self.whole.files.iter().filter(|(_, bytes, _)| !bytes.is_empty());
        files
            .map(|(path, ..)| path.strip_prefix(&self.site.data).unwrap().display().to_string())
            .filter(|name| name.starts_with("db/"))
            .collect()
    }

    async fn at_random(&mut self, name: &str, tries: usize) {
        let length = self.bytes(name).len();
        for n in 0..tries {
            let at = self.random.random_range(0..length);
            let damage = if n % 3 == 2 {
                Damage::Cut(at)
            } else {
                Damage::Flip(at, self.random.random_range(0..8))
            };
            self.damage(name, damage).await;
        }
    }

    async fn damage(&mut self, name: &str, damage: Damage) {
        self.whole.write();
        let file = OpenOptions::new()
            .write(true)
            .open(self.site.data.join(name))
            .unwrap();
        match damage {
            Damage::Flip(at, bit) => {
                let flipped = self.bytes(name)[at] ^ (1 << bit);
                file.write_at(&[flipped], at as u64).unwrap();
            }
            Damage::Cut(at) => file.set_len(at as u64).unwrap(),
        }
        let how = format!("{name}, {} bytes, {damage:?}", self.bytes(name).len());
        self.all += 1;
        match start_damaged(self.site, self.log, &how).await {
            Ok(Outcome::Refused) => self.refused += 1,
            Ok(Outcome::Whole) => println!("{how}: whole"),
            Err(how) => self.wrong.push(how),
        }
    }

    fn end(self) {
        println!("{} of {} starts were refused", self.refused, self.all);
        assert!(self.wrong.is_empty(), "{}", self.wrong.join("\n"));
    }
}

const JOURNAL: &str = "db/0.jnl";

/// What the database does by itself, and what the server does about it: see `src/store/heads.rs`.
#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_database_is_never_silently_shorter() {
    let site = Site::new(&[]);
    let log = fill(&site, 60, 200).await;
    let mut damaging = Damaging::new(&site, &log);
    for name in damaging.files() {
        let tries = if name == JOURNAL { 12 } else { 3 };
        damaging.at_random(&name, tries).await;
    }
    // Each byte of the header of a write in the middle, and of the end of the one before: these have no checksum.
    let journal = damaging.bytes(JOURNAL);
    let (message_id, trailer) = (b"m30", b"FJL\x03");
    let text = journal.windows(3).position(|bytes| bytes == message_id).unwrap();
    let begin = journal[..text]
        .windows(4)
        .rposition(|bytes| bytes == trailer)
        .unwrap();
    for at in begin - 9..begin + 48 {
        damaging
            .damage(JOURNAL, Damage::Flip(at, u8::try_from(at % 8).unwrap()))
            .await;
    }
    // Between two writes nothing looks torn.
    damaging.damage(JOURNAL, Damage::Cut(begin + 4)).await;
    // Nor where there is no journal at all.
    damaging.damage(JOURNAL, Damage::Cut(0)).await;
    damaging.end();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_table_is_never_silently_wrong() {
    let site = Site::new(&["--max-message-chars", "100000"]);
    let log = fill(&site, 200, 90_000).await;
    let mut damaging = Damaging::new(&site, &log);
    let tables = damaging
        .files()
        .into_iter()
        .filter(|name| name.contains("/tables/") || name == JOURNAL);
    let tables: Vec<String> = tables.collect();
    assert!(tables.len() > 1, "there is no table yet: {tables:?}");
    for name in tables {
        damaging.at_random(&name, 3).await;
    }
    damaging.end();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_ends_the_server_and_loses_nothing() {
    let mut site = Site::new(&["--resume-grace", "10m"]);
    let Some(disk) = Disk::mount(site.path("disk"), "size=32m") else {
        return;
    };
    site.data = disk.0.join("data");
    let mut server = block_in_place(|| site.start());
    let mut run = Run::new(site.address, 1);
    for (name, window) in [("Ada", 16), ("Bob", 16), ("Eve", 0)] {
        run.add(name, window);
    }
    run.until_back(&[0; 3]).await;
    // All is taken but what some hundred messages need.
    let taken = disk.0.join("taken");
    let free = nix::sys::statvfs::statvfs(&disk.0).unwrap();
    let free = free.blocks_available() * free.fragment_size();
    std::fs::write(&taken, vec![1; usize::try_from(free).unwrap() - 128 * 1024]).unwrap();
    let deadline = Instant::now() + PATIENCE;
    while !server.has_ended() {
        assert!(Instant::now() < deadline, "the disk is not full");
        for member in run.members.iter().take(2) {
            member.order(|orders| orders.allowance = member.now().acknowledged + 16);
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let exit = block_in_place(|| server.exit());
    assert_eq!(exit.code, Some(IO), "{exit:?}");
    assert_eq!(exit.lines.len(), 1, "{exit:?}");
    assert!(exit.lines[0].contains("the store failed"), "{exit:?}");
    assert!(exit.lines[0].contains("No space left"), "{exit:?}");
    let stored = run.acknowledged();
    println!("{stored} messages were acknowledged; {}", exit.lines[0]);
    std::fs::remove_file(&taken).unwrap();
    let streams = run.streams();
    let server = block_in_place(|| site.start());
    run.until_back(&streams).await;
    run.until_settled().await;
    let history = run.end().await;
    let wrong = check(&history);
    assert!(wrong.is_empty(), "{}", wrong[0]);
    assert_eq!(block_in_place(|| server.stop()).code, Some(0));
}
