//! Attacks by clients that send what no client library would and read little, while others chat: those with frames on one server, those
//! with TLS on another.
//!
//! `cargo test --release --test attacks latency -- --ignored --nocapture` measures how long messages of others take meanwhile,
//! and beside threads that use as much CPU at the same times.
//! `ATTACK_SECONDS=600 cargo test --test attacks -- --ignored --nocapture` runs them for ten minutes, in random order
//! (`CRASH_SEED`), two at a time, without TLS; `ATTACKS=posts,headers` chooses those with these words in their names.
#![allow(missing_docs, unreachable_pub, clippy::unwrap_used, clippy::panic)]

#[path = "../certificates/mod.rs"]
mod certificates;
mod frame_attack;
#[path = "../frames/mod.rs"]
mod frames;
mod measurement;
#[path = "../process/mod.rs"]
mod process;
mod tls_attack;
#[path = "../tls_client/mod.rs"]
mod tls_client;

use std::fs;
use std::net::SocketAddr;
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use chitchat::config::raise_fd_limit;
use chitchat_verify::check;
use chitchat_verify::crash_harness::{Run, seed};
use rand::rngs::StdRng;
use rand::seq::SliceRandom as _;
use rand::{Rng as _, SeedableRng as _};
use rustls::ClientConfig;
use tempfile::TempDir;
use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::{JoinSet, block_in_place};
use tokio::time::{sleep, timeout};
use tonic::transport::Channel;

use certificates::{Authority, FORGED_ISSUER};
use frame_attack::{FRAME_ATTACKS, FrameAttack};
use measurement::{burn, measure, percentiles};
use process::{Server, http_get, serve_at, unused_address, wait_until, wait_within};
use tls_attack::TlsAttack;

/// What the server is allowed to use, and what it is held to.
const MAX_MEMORY: u64 = 512 << 20;

/// By how much it may have grown when all is over, a quarter of that. The store has an index then, and pages of memory that are used in part
/// cannot be given back.
const MAX_GROWTH: u64 = MAX_MEMORY / 4;

/// How many certificates those send who send too many. They fit into what the server reads of a handshake.
const LONG_CHAIN: usize = 40;

/// How often an attack and its control are measured, by turns: a disk may be several times slower a minute later.
const LATENCY_ROUNDS: u32 = 4;

/// How many files and sockets this process may open.
static MAX_FILES: LazyLock<usize> = LazyLock::new(|| {
    let limit = raise_fd_limit().and_then(|limit| usize::try_from(limit).ok());
    limit.unwrap_or(usize::MAX)
});

/// Connects from another address than the clients that chat, as other people would.
async fn connect(to: SocketAddr, from: u8) -> Option<TcpStream> {
    let socket = TcpSocket::new_v4().ok()?;
    socket.bind(SocketAddr::from(([127, 0, 0, from], 0))).unwrap();
    timeout(Duration::from_secs(2), socket.connect(to))
        .await
        .ok()?
        .ok()
}

/// Keeps connections to the admin port busy with requests that never end.
async fn attack_admin(admin: SocketAddr, until: Instant) {
    while Instant::now() < until {
        let Some(mut socket) = connect(admin, 2).await else {
            sleep(Duration::from_millis(50)).await;
            continue;
        };
        for byte in b"GET /metrics HTTP/1.1\r\nHost: a\r\nX: "
            .iter()
            .chain([b'x'].iter().cycle())
        {
            if Instant::now() >= until || socket.write_all(&[*byte]).await.is_err() {
                break;
            }
            sleep(Duration::from_millis(20)).await;
        }
    }
}

/// What a process uses.
#[derive(Debug, Clone, Copy)]
struct Usage {
    /// In bytes.
    memory: u64,
    /// The most that it has used so far, in bytes.
    peak_memory: u64,
    descriptors: usize,
    threads: u64,
}

fn usage(process: u32) -> Usage {
    let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let field = |name: &str| -> u64 {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        line.split_whitespace().next().unwrap().parse().unwrap()
    };
    Usage {
        memory: field("VmRSS:") << 10,
        peak_memory: field("VmHWM:") << 10,
        descriptors: fs::read_dir(format!("/proc/{process}/fd")).unwrap().count(),
        threads: field("Threads:"),
    }
}

/// The value of a metric without labels.
fn metric(server: &Server, name: &str) -> f64 {
    let metrics = server.get("/metrics");
    let line = metrics.lines().find(|line| line.split(' ').next() == Some(name));
    line.unwrap_or_else(|| panic!("no {name}"))
        .rsplit(' ')
        .next()
        .unwrap()
        .parse()
        .unwrap()
}

/// Whether the environment chooses this attack.
fn is_chosen(name: &str) -> bool {
    let only = std::env::var("ATTACKS").unwrap_or_default();
    only.split(',').any(|part| name.contains(part))
}

/// The attacks with frames that are chosen.
fn frame_attacks() -> Vec<&'static FrameAttack> {
    let chosen = FRAME_ATTACKS.iter().filter(|attack| is_chosen(attack.name));
    chosen.collect()
}

/// The attacks with TLS that are chosen.
fn tls_attacks() -> impl Iterator<Item = TlsAttack> {
    let attacks = TlsAttack::ALL.into_iter();
    attacks.filter(|attack| is_chosen(attack.name()))
}

/// What clients know of a server.
#[derive(Debug, Clone)]
struct Target {
    address: SocketAddr,
    process: u32,
    /// If it uses TLS.
    config: Option<Arc<ClientConfig>>,
    /// With too many certificates.
    long_chain: Option<Arc<ClientConfig>>,
}

impl Target {
    async fn channel(&self) -> Channel {
        let channel = match &self.config {
            Some(config) => tls_client::channel(self.address, config.as_ref().clone()).await,
            None => {
                let endpoint = Channel::from_shared(format!("http://{}", self.address));
                endpoint.unwrap().connect().await
            }
        };
        channel.unwrap()
    }
}

/// A server with the memory that the image has, and its files.
struct Attacked {
    server: Server,
    target: Target,
    _directory: TempDir,
}

impl Attacked {
    fn start(flags: &[&str], uses_tls: bool) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        let data = path.join("data");
        let mut all = vec![
            "--max-memory",
            "512MiB",
            "--log",
            "off",
            "--data-dir",
            data.to_str().unwrap(),
        ];
        all.extend(flags);
        let authority = uses_tls.then(|| Authority::new("test"));
        let files = authority.as_ref().map(|authority| {
            let ca = authority.write(path.join("ca.pem"));
            (ca, authority.issue(path, "server", &["localhost"]))
        });
        if let Some((ca, issued)) = &files {
            all.extend(["--tls-cert", issued.certificate.to_str().unwrap()]);
            all.extend(["--tls-key", issued.key.to_str().unwrap()]);
            all.extend(["--tls-client-ca", ca.to_str().unwrap()]);
        }
        let server = block_in_place(|| serve_at(unused_address(), &all));
        let config = |identity| Arc::new(tls_client::client_config(path, Some(&identity)));
        let long_chain = uses_tls.then(|| {
            let forger = Authority::new(FORGED_ISSUER);
            config(forger.issue_chain_for_client(path, "attacker", LONG_CHAIN))
        });
        let config = authority.map(|authority| config(authority.issue_for_client(path, "member")));
        let target = Target {
            address: server.address,
            process: server.id(),
            config,
            long_chain,
        };
        Self {
            server,
            target,
            _directory: directory,
        }
    }

    /// Asserts that the server answers and keeps to its memory during the attack. Returns what it uses.
    fn assert_healthy(&self, attack: &str) -> Usage {
        let live = block_in_place(|| http_get(self.server.admin, "/livez"));
        assert!(
            live.is_some_and(|live| live.starts_with("HTTP/1.1 200")),
            "{attack}: /livez"
        );
        let now = usage(self.server.id());
        assert!(now.peak_memory < MAX_MEMORY, "{attack}: {now:?}");
        now
    }

    /// Asserts that the server uses no more than `before` once the attackers are gone, and stops it.
    fn assert_recovers(mut self, before: Usage) {
        block_in_place(|| {
            wait_until("the connections end", || {
                (metric(&self.server, "chitchat_connections_open") < 2.0).then_some(())
            });
            // Rooms and connections end when they have been idle for a minute.
            let after = wait_within(
                Duration::from_secs(150),
                "memory, descriptors and threads are given back",
                || {
                    let after = usage(self.server.id());
                    (after.memory <= before.memory + MAX_GROWTH
                        && after.descriptors <= before.descriptors + 8
                        && after.threads <= before.threads + 8)
                        .then_some(after)
                },
            );
            println!("after {after:?}");
            self.server.stop();
        });
    }
}

/// Runs all attacks, two at a time, for `seconds` in all. Asserts that clients which behave well go on, that the server keeps
/// to its memory, and that it uses no more than before once the attackers are gone.
async fn run_attacks(seconds: u64) {
    let attacked = Attacked::start(&["--resume-grace", "5s", "--stall-timeout", "5s"], false);
    let server = &attacked.server;
    let mut run = Run::new(server.address, seed());
    for (name, window) in [("Ada", 4), ("Bob", 4), ("Eve", 0)] {
        run.add_client(name, window);
    }
    run.allow_sends(200);
    run.wait_for_acknowledgements().await;
    let before = usage(server.id());

    let mut random = StdRng::seed_from_u64(seed());
    let mut order = frame_attacks();
    order.shuffle(&mut random);
    let end = Instant::now() + Duration::from_secs(seconds);
    let rounds = order.len().div_ceil(2);
    let per_round = Duration::from_secs(seconds)
        .div_f64(rounds as f64)
        .max(Duration::from_secs(2))
        .min(Duration::from_secs(20));
    let mut peak = before;
    let mut next = 0;
    while Instant::now() < end || next < order.len() {
        let pair = [order[next % order.len()], order[(next + 1) % order.len()]];
        next += 2;
        let until = Instant::now() + per_round;
        let mut attackers = JoinSet::new();
        for kind in pair {
            for _ in 0..kind.connections() {
                attackers.spawn(kind.run(server.address, random.random(), until));
            }
        }
        for _ in 0..40 {
            attackers.spawn(attack_admin(server.admin, until));
        }
        let (mut messages, mut slowest) = (0, Duration::ZERO);
        while Instant::now() < until {
            let started = Instant::now();
            let acknowledged = run.acknowledged();
            run.allow_sends(5);
            run.wait_for_total(acknowledged + 10).await;
            let took = started.elapsed();
            (messages, slowest) = (messages + 10, slowest.max(took));
            let now = attacked.assert_healthy(&format!("{} and {}", pair[0].name, pair[1].name));
            peak = Usage {
                descriptors: peak.descriptors.max(now.descriptors),
                ..now
            };
            sleep(Duration::from_millis(50)).await;
        }
        attackers.join_all().await;
        println!(
            "{} + {}: {messages} messages, ten of them took at most {slowest:?}, {} MiB",
            pair[0].name,
            pair[1].name,
            usage(server.id()).memory >> 20
        );
    }
    println!("before {before:?}, at most {peak:?}");

    run.wait_for_acknowledgements().await;
    let history = run.finish().await;
    let violations = check(&history);
    assert!(violations.is_empty(), "{:?}", violations.first());
    attacked.assert_recovers(before);
}

/// Attacks a server with TLS for `seconds` in each way. Asserts that a client which behaves well goes on, that the server keeps to
/// its memory, and that it uses no more than before once the attackers are gone.
async fn run_tls_attacks(seconds: u64) {
    let attacked = Attacked::start(&[], true);
    let target = attacked.target.clone();
    measure(&target, Instant::now() + Duration::from_secs(1));
    let before = usage(attacked.server.id());
    for kind in tls_attacks() {
        let until = Instant::now() + Duration::from_secs(seconds);
        let attackers = spawn_tls_attackers(kind, &target, 0, until);
        let posts = measure(&target, until).times;
        let now = attacked.assert_healthy(kind.name());
        attackers.join_all().await;
        let slowest = posts.iter().copied().fold(0.0, f64::max);
        println!(
            "{}: {} messages, one took at most {slowest:.0} ms, {} MiB",
            kind.name(),
            posts.len(),
            now.memory >> 20
        );
    }
    attacked.assert_recovers(before);
}

/// Spawns an attacker for each of so many connections, with a seed of its own in each round.
fn spawn_attackers<F>(connections: usize, round: u32, attacker: impl Fn(u64) -> F) -> JoinSet<()>
where
    F: Future<Output = ()> + Send + 'static,
{
    let seeds = (0..connections as u64).map(|seed| seed << 8 | u64::from(round));
    seeds.map(attacker).collect()
}

fn spawn_tls_attackers(kind: TlsAttack, target: &Target, round: u32, until: Instant) -> JoinSet<()> {
    let config = match kind {
        TlsAttack::LongChains => &target.long_chain,
        _ => &target.config,
    };
    let config = config.as_ref().unwrap();
    spawn_attackers(kind.connections(), round, |seed| {
        kind.run(target.address, Arc::clone(config), seed, until)
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn others_go_on_during_attacks() {
    run_attacks(20).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes ten minutes"]
async fn others_go_on_during_attacks_for_long() {
    let seconds = std::env::var("ATTACK_SECONDS").ok();
    run_attacks(seconds.map_or(600, |seconds| seconds.parse().unwrap())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn others_go_on_during_attacks_with_tls() {
    run_tls_attacks(2).await;
}

/// Prints a row of the table: how long messages take during an attack, and beside as much other work.
async fn measure_latency(
    target: &Target,
    idle: f64,
    name: &str,
    attack: impl Fn(u32, Instant) -> JoinSet<()>,
) {
    let soon = || Instant::now() + Duration::from_secs(5);
    let (mut attacked_times, mut control_times) = (Vec::new(), Vec::new());
    let mut cores = 0.0;
    for round in 0..LATENCY_ROUNDS {
        let until = soon();
        let attackers = attack(round, until);
        let attacked = Arc::new(measure(target, until));
        attackers.join_all().await;
        sleep(Duration::from_secs(1)).await;
        let until = soon();
        let burners = burn(&attacked, idle, until);
        control_times.extend(measure(target, until).times);
        burners.into_iter().for_each(|burner| burner.join().unwrap());
        attacked_times.extend_from_slice(&attacked.times);
        cores += attacked.cores() / f64::from(LATENCY_ROUNDS);
    }
    let [p50, p99] = percentiles(attacked_times);
    let [control_p50, control_p99] = percentiles(control_times);
    println!(
        "| {name} | {cores:.2} | {p50:.2} | {p99:.2} | {control_p50:.2} | {control_p99:.2} | {:.2} |",
        p99 / control_p99
    );
}

/// Prints how long messages take without an attack. Returns the CPU that it takes to measure that, in cores.
fn measure_idle(target: &Target, name: &str) -> f64 {
    let undisturbed = measure(target, Instant::now() + Duration::from_secs(5));
    let idle = undisturbed.cores();
    let [p50, p99] = percentiles(undisturbed.times);
    println!("| {name} | {idle:.2} | {p50:.2} | {p99:.2} | | | |");
    idle
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measurement, which takes 30 minutes"]
async fn latency_during_attacks_and_beside_as_much_other_work() {
    println!(
        "| attack | cores | p50 ms | p99 ms | control p50 | control p99 | p99 ratio |\n|---|---|---|---|---|---|---|"
    );
    let attacked = Attacked::start(&[], false);
    let target = &attacked.target;
    let idle = measure_idle(target, "none");
    for kind in frame_attacks() {
        let attack = |round, until| {
            spawn_attackers(kind.connections(), round, |seed| {
                kind.run(target.address, seed, until)
            })
        };
        measure_latency(target, idle, kind.name, attack).await;
    }
    let attacked = Attacked::start(&[], true);
    let target = &attacked.target;
    let idle = measure_idle(target, "none, with TLS");
    for kind in tls_attacks() {
        let attack = |round, until| spawn_tls_attackers(kind, target, round, until);
        measure_latency(target, idle, kind.name(), attack).await;
    }
}
