//! Replicas that share their rooms through three real NATS servers, some of which are killed.
//!
//! A long run: `CLUSTER_ROUNDS=20 cargo test --release --test cluster -- --ignored --nocapture`, of all that takes longer.
// Helpers of tests panic as tests do.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

mod process;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use chitchat::proto::{EventType, ServerMessage};
use chitchat_verify::crash_harness::{Run, seed};
use chitchat_verify::{History, check};
use nix::sys::signal::Signal;
use process::{CHITCHAT, Finished, Process, external_program, http_request, unused_address, wait_until};
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use tempfile::TempDir;
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::block_in_place;

const NODES: usize = 3;

/// The number of messages per sender and round.
const PER_ROUND: u64 = 60;

/// Three NATS servers with one directory.
struct Nats {
    directory: TempDir,
    program: String,
    addresses: Vec<SocketAddr>,
    monitors: Vec<SocketAddr>,
    nodes: Vec<Option<Process>>,
}

impl Nats {
    /// `None` if there is no program.
    fn start() -> Option<Self> {
        let program = external_program("CHITCHAT_TEST_NATS_SERVER", "nats-server", &["--version"])?;
        let directory = TempDir::with_prefix("chitchat-nats-").unwrap();
        let addresses: Vec<_> = (0..NODES).map(|_| unused_address()).collect();
        let routes: Vec<_> = (0..NODES).map(|_| unused_address()).collect();
        let monitors: Vec<_> = (0..NODES).map(|_| unused_address()).collect();
        let urls: Vec<_> = routes.iter().map(|address| format!("nats://{address}")).collect();
        for node in 0..NODES {
            let path = |name: String| directory.path().join(name);
            let config = format!(
                "server_name: n{node}\nlisten: {}\nhttp: {}\njetstream {{ store_dir: {:?}, sync_interval: always, max_file_store: 1GB }}\n\
                 cluster {{ name: c, listen: {}, routes: {urls:?} }}\n",
                addresses[node],
                monitors[node],
                path(format!("data{node}")),
                routes[node],
            );
            std::fs::write(path(format!("n{node}.conf")), config).unwrap();
        }
        let mut nats = Self {
            directory,
            program,
            addresses,
            monitors,
            nodes: (0..NODES).map(|_| None).collect(),
        };
        (0..NODES).for_each(|node| nats.start_node(node));
        wait_until("the NATS servers have a stream", || {
            let init = ["init", "--max-bytes", "256MiB"];
            (nats.chitchat(&init).code == Some(0)).then_some(())
        });
        Some(nats)
    }

    fn start_node(&mut self, node: usize) {
        let child = Command::new(&self.program)
            .arg("-c")
            .arg(self.directory.path().join(format!("n{node}.conf")))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        self.nodes[node] = Some(child.unwrap().into());
    }

    /// Restarts a node with a changed configuration.
    fn reconfigure(&mut self, node: usize, change: impl FnOnce(&str) -> String) {
        let path = self.directory.path().join(format!("n{node}.conf"));
        let config = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, change(&config)).unwrap();
        self.kill_node(node);
        self.start_node(node);
        wait_until("the node accepts connections", || {
            std::net::TcpStream::connect(self.addresses[node]).ok()
        });
    }

    fn kill_node(&mut self, node: usize) {
        self.nodes[node].take().unwrap().kill();
    }

    fn url(&self) -> String {
        let urls: Vec<_> = self
            .addresses
            .iter()
            .map(|address| format!("nats://{address}"))
            .collect();
        urls.join(",")
    }

    /// Runs `chitchat cluster`.
    fn chitchat(&self, arguments: &[&str]) -> Finished {
        let mut command = Command::new(CHITCHAT);
        command
            .arg("cluster")
            .args(arguments)
            .env("CHITCHAT_CLUSTER", self.url());
        process::run(&mut command, "").into()
    }

    /// The node that leads the stream.
    fn leader(&self) -> usize {
        wait_until("the stream has a leader", || {
            let status = self.chitchat(&["status"]);
            let line = status.lines.iter().find(|line| line.ends_with("leader"))?.clone();
            line.strip_prefix('n')?.split(' ').next()?.parse().ok()
        })
    }

    /// The first message of the stream.
    fn first(&self) -> u64 {
        wait_until("the stream is shown", || {
            let status = self.chitchat(&["status"]);
            let line = status
                .lines
                .iter()
                .find_map(|line| line.strip_prefix("messages "))?
                .to_owned();
            line.split(' ').next()?.parse().ok()
        })
    }

    /// Waits until all nodes have everything.
    fn wait_until_current(&self) {
        wait_until("all NATS servers are current", || {
            let status = self.chitchat(&["status"]);
            let is_current = |line: &&String| line.starts_with('n') && !line.starts_with("nats:");
            let lines: Vec<_> = status.lines.iter().filter(is_current).collect();
            (lines.len() == NODES
                && lines
                    .iter()
                    .all(|line| !line.contains("current") && !line.contains("offline")))
            .then_some(())
        });
    }
}

/// A replica that can be restarted.
struct Replica {
    address: SocketAddr,
    admin: SocketAddr,
    command: Vec<String>,
    failpoints: &'static str,
    process: Option<Process>,
    /// For its checkpoints.
    directory: Option<PathBuf>,
}

impl Replica {
    fn new(nats: &Nats, secret: &Path, name: &str, directory: Option<PathBuf>) -> Self {
        let (address, admin) = (unused_address(), unused_address());
        let secret = secret.display();
        let store = directory.as_ref().map_or_else(
            || "--in-memory".into(),
            |directory| format!("--data-dir {}", directory.display()),
        );
        let command = format!(
            "serve {store} --checkpoint-interval 1s --cluster-keep 0s --log warn --resume-grace 60s --listen {address} --admin {admin} --cluster {} --cluster-secret {secret} \
             --replica-name {name}",
            nats.url()
        );
        let mut replica = Self {
            address,
            admin,
            command: command.split(' ').map(str::to_owned).collect(),
            failpoints: "",
            process: None,
            directory,
        };
        replica.start();
        replica
    }

    fn start(&mut self) {
        let child = Command::new(CHITCHAT)
            .args(&self.command)
            .env("CHITCHAT_FAILPOINTS", self.failpoints)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn();
        self.process = Some(child.unwrap().into());
    }

    fn wait_until_ready(&self) {
        wait_until("the replica is ready", || {
            let ready = http_request(
                self.admin,
                "GET /readyz HTTP/1.1\r\nHost: admin\r\nConnection: close\r\n\r\n",
            )?;
            ready.starts_with("HTTP/1.1 200").then_some(())
        });
    }

    /// How many clients are connected to it.
    fn clients(&self) -> u32 {
        let request = "GET /metrics HTTP/1.1\r\nHost: admin\r\nConnection: close\r\n\r\n";
        let metrics = http_request(self.admin, request).unwrap();
        let value = metrics
            .lines()
            .find_map(|line| line.strip_prefix("chitchat_connected_clients "));
        value.unwrap().parse().unwrap()
    }

    fn kill(&mut self) {
        self.process.take().unwrap().kill();
    }

    /// As if its disk were replaced.
    fn remove_directory(&self) {
        std::fs::remove_dir_all(self.directory.as_ref().unwrap()).unwrap();
    }

    fn terminate(&mut self) {
        let mut process = self.process.take().unwrap();
        process.signal(Signal::SIGTERM);
        assert!(process.wait().success());
    }

    /// The place of its newest checkpoint.
    fn newest_checkpoint(&self) -> Option<u64> {
        let entries = std::fs::read_dir(self.directory.as_ref()?).ok()?;
        let places = entries.filter_map(|entry| {
            let name = entry.ok()?.file_name();
            name.to_str()?.strip_prefix("checkpoint-")?.parse().ok()
        });
        places.max()
    }
}

/// Forwards connections to the first of `servers` that accepts them, beginning with another one each time.
async fn balance(servers: Vec<SocketAddr>, first: usize) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let next = Arc::new(AtomicUsize::new(first));
    tokio::spawn(async move {
        loop {
            let (mut client, _) = listener.accept().await.unwrap();
            let (servers, next) = (servers.clone(), Arc::clone(&next));
            tokio::spawn(async move {
                for _ in 0..servers.len() {
                    let server = servers[next.fetch_add(1, Ordering::Relaxed) % servers.len()];
                    if let Ok(mut server) = TcpStream::connect(server).await {
                        server.set_nodelay(true).unwrap();
                        client.set_nodelay(true).unwrap();
                        copy_bidirectional(&mut client, &mut server).await.ok();
                        return;
                    }
                }
            });
        }
    });
    address
}

/// Three replicas, and clients on all of them.
struct Cluster {
    nats: Nats,
    replicas: Vec<Replica>,
    run: Run,
    clients: usize,
    /// How long nothing was acknowledged, at most.
    longest_pause: Duration,
    seed: u64,
}

impl Cluster {
    async fn start(seed: u64) -> Option<Self> {
        Self::start_with(seed, |_| None).await
    }

    /// The data directories of the replicas are relative to that of NATS.
    async fn start_with(seed: u64, directory: impl Fn(usize) -> Option<String>) -> Option<Self> {
        let nats = block_in_place(Nats::start)?;
        let secret = nats.directory.path().join("secret");
        std::fs::write(&secret, "of the tests, and longer than 32 bytes").unwrap();
        let replicas: Vec<_> = (0..NODES)
            .map(|n| {
                let directory = directory(n).map(|name| nats.directory.path().join(name));
                Replica::new(&nats, &secret, &format!("r{n}"), directory)
            })
            .collect();
        block_in_place(|| replicas.iter().for_each(Replica::wait_until_ready));
        let addresses: Vec<_> = replicas.iter().map(|replica| replica.address).collect();
        let mut run = Run::new(addresses[0], seed);
        for (n, name) in ["Ada", "Bob", "Cleo", "Dan", "Eve", "Finn"].iter().enumerate() {
            let address = balance(addresses.clone(), n).await;
            run.add_client_at(address, name, if n < 4 { 16 } else { 0 });
        }
        run.wait_for_reconnects(&[0; 6]).await;
        Some(Self {
            nats,
            replicas,
            run,
            clients: 6,
            longest_pause: Duration::ZERO,
            seed,
        })
    }

    /// Lets the clients send, injects a fault after `part` of their messages, lets them send as many again, and waits until all are
    /// acknowledged.
    async fn round(&mut self, part: u64, fault: impl FnOnce(&mut Self)) {
        let before = self.run.acknowledged();
        let all = before + 2 * 4 * PER_ROUND;
        let send = |run: &Run| {
            for client in run.clients.iter().take(4) {
                client.update_plan(|plan| plan.send_limit += PER_ROUND);
            }
        };
        send(&self.run);
        self.run.wait_for_total(before + part).await;
        block_in_place(|| fault(self));
        send(&self.run);
        let (mut acknowledged, mut since) = (self.run.acknowledged(), Instant::now());
        while acknowledged < all {
            tokio::time::sleep(Duration::from_millis(1)).await;
            assert!(
                since.elapsed() < Duration::from_secs(30),
                "nothing is acknowledged any more: {acknowledged}"
            );
            let now = self.run.acknowledged();
            if now > acknowledged {
                self.longest_pause = self.longest_pause.max(since.elapsed());
                (acknowledged, since) = (now, Instant::now());
            }
        }
    }

    /// Makes all leave, and checks what they have recorded, and that the replicas have the same logs.
    async fn finish(self) {
        let Self {
            replicas,
            run,
            clients,
            longest_pause,
            seed,
            ..
        } = self;
        let readers: Vec<_> = replicas
            .iter()
            .map(|replica| Run::new(replica.address, 0))
            .collect();
        let history: History = run.finish().await;
        let violations = check(&history);
        assert!(violations.is_empty(), "CRASH_SEED={seed}: {}", violations[0]);
        let log: Vec<Arc<ServerMessage>> = history.log.unwrap();
        for reader in readers {
            let deadline = Instant::now() + process::TIMEOUT;
            // The others may apply the last LEAVE a moment later.
            let mut other = reader.log().await.0;
            while other.len() < log.len() && Instant::now() < deadline {
                tokio::time::sleep(Duration::from_millis(10)).await;
                other = reader.log().await.0;
            }
            assert!(log == other, "CRASH_SEED={seed}: the logs of the replicas differ");
        }
        let count = |kind: EventType| log.iter().filter(|message| message.r#type() == kind).count();
        // Nobody has left who did not, and so nobody has joined again.
        assert_eq!(
            (count(EventType::Join), count(EventType::Leave)),
            (clients, clients)
        );
        println!("{} events, longest pause {longest_pause:.1?}", log.len());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn replicas_have_one_order_and_survive_the_death_of_one_of_them_and_of_the_leader_of_nats() {
    let seed = seed();
    let Some(mut cluster) = Cluster::start(seed).await else {
        return;
    };
    let streams = cluster.run.streams();
    cluster
        .round(PER_ROUND, |cluster| cluster.replicas[1].kill())
        .await;
    // Two clients were there.
    let moved = cluster
        .run
        .streams()
        .iter()
        .zip(&streams)
        .filter(|(now, before)| now > before)
        .count();
    assert!(moved >= 1, "{moved}");
    // It has everything again that it missed.
    cluster.replicas[1].start();
    block_in_place(|| cluster.replicas[1].wait_until_ready());
    let leader = block_in_place(|| cluster.nats.leader());
    cluster
        .round(PER_ROUND, |cluster| cluster.nats.kill_node(leader))
        .await;
    // An orderly stop, of one that has clients.
    let streams = cluster.run.streams();
    let busiest = block_in_place(|| (0..NODES).max_by_key(|node| cluster.replicas[*node].clients())).unwrap();
    cluster
        .round(PER_ROUND, |cluster| cluster.replicas[busiest].terminate())
        .await;
    assert!(cluster.run.streams() > streams);
    cluster.replicas[busiest].start();
    block_in_place(|| cluster.replicas[busiest].wait_until_ready());
    cluster.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn replicas_start_again_with_checkpoints_and_the_stream_is_truncated() {
    let seed = seed();
    // The third one has what the others have when it starts again.
    let with_directory = |n| (n < 2).then(|| format!("replica{n}"));
    let Some(mut cluster) = Cluster::start_with(seed, with_directory).await else {
        return;
    };
    cluster.round(PER_ROUND, |_| {}).await;
    block_in_place(|| {
        wait_until("the stream is truncated", || {
            (cluster.nats.first() > 1).then_some(())
        });
    });
    // One that has nothing any more gets a checkpoint from another, since the stream does not have everything.
    cluster
        .round(PER_ROUND, |cluster| {
            cluster.replicas[1].kill();
            cluster.replicas[1].remove_directory();
            cluster.replicas[1].start();
        })
        .await;
    block_in_place(|| cluster.replicas[1].wait_until_ready());
    assert!(cluster.replicas[1].newest_checkpoint() > Some(1));
    // All of them at once, and not in order.
    cluster
        .round(PER_ROUND, |cluster| {
            cluster.replicas.iter_mut().for_each(Replica::kill);
            cluster.replicas.iter_mut().for_each(Replica::start);
        })
        .await;
    block_in_place(|| cluster.replicas.iter().for_each(Replica::wait_until_ready));
    // The last thing that a replica does in an orderly stop.
    let before = cluster.replicas[0].newest_checkpoint();
    cluster
        .round(PER_ROUND, |cluster| cluster.replicas[0].terminate())
        .await;
    assert!(cluster.replicas[0].newest_checkpoint() > before);
    cluster.replicas[0].start();
    block_in_place(|| cluster.replicas[0].wait_until_ready());
    cluster.finish().await;
}

/// The limits of the rooms change if all replicas were stopped, and only then.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "waits until a replica is lost"]
async fn replicas_with_other_rules_take_part_once_those_before_are_lost() {
    let Some(nats) = block_in_place(Nats::start) else {
        return;
    };
    let secret = nats.directory.path().join("secret");
    std::fs::write(&secret, "of the tests, and longer than 32 bytes").unwrap();
    let mut before = Replica::new(&nats, &secret, "before", None);
    block_in_place(|| before.wait_until_ready());
    let mut after = Replica::new(&nats, &secret, "after", None);
    after.kill();
    after
        .command
        .extend(["--max-message-chars", "100"].map(str::to_owned));
    let refused = block_in_place(|| {
        let mut command = Command::new(CHITCHAT);
        let failed: Finished = process::run(command.args(&after.command), "").into();
        failed
    });
    assert_eq!(refused.code, Some(78), "{refused:?}");
    assert!(refused.stderr.contains("--max-message-chars"), "{refused:?}");
    before.kill();
    after.start();
    block_in_place(|| after.wait_until_ready());
    before.start();
    let refused = block_in_place(|| before.process.take().unwrap().wait());
    assert_eq!(refused.code(), Some(78));
}

/// A program of the next version takes the place of this one.
#[cfg(feature = "failpoints")]
#[tokio::test(flavor = "multi_thread")]
#[ignore = "waits until a replica is lost"]
async fn an_old_program_does_not_take_part_once_a_new_version_is_active() {
    let Some(nats) = block_in_place(Nats::start) else {
        return;
    };
    let secret = nats.directory.path().join("secret");
    std::fs::write(&secret, "of the tests, and longer than 32 bytes").unwrap();
    let mut old = Replica::new(&nats, &secret, "old", None);
    block_in_place(|| old.wait_until_ready());
    let mut new = Replica::new(&nats, &secret, "new", None);
    new.kill();
    new.failpoints = "next-fold-version=on";
    new.command
        .iter_mut()
        .filter(|flag| *flag == "warn")
        .for_each(|level| *level = "info".into());
    new.start();
    // Both at a time.
    block_in_place(|| new.wait_until_ready());
    old.kill();
    let refused = block_in_place(|| {
        let process = new.process.as_ref().unwrap();
        process.stdout_line("fold_version_activated");
        old.start();
        let mut process = old.process.take().unwrap();
        process.stderr_line("version 2 of the order is active, and this program supports 1");
        process.wait()
    });
    assert_eq!(refused.code(), Some(78));
    block_in_place(|| new.wait_until_ready());
}

/// Kills replicas and NATS servers, or stops them for a while, one after the other.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes minutes"]
async fn many_faults_violate_no_invariant() {
    let seed = seed();
    let mut random = StdRng::seed_from_u64(seed);
    let rounds = std::env::var("CLUSTER_ROUNDS").map_or(20, |rounds| rounds.parse().unwrap());
    let with_directory = |n| Some(format!("replica{n}"));
    let Some(mut cluster) = Cluster::start_with(seed, with_directory).await else {
        return;
    };
    for round in 0..rounds {
        let (node, part) = (
            random.random_range(0..NODES),
            random.random_range(1..4 * PER_ROUND),
        );
        let fault = random.random_range(0..8);
        let leader = block_in_place(|| cluster.nats.leader());
        let begun = Instant::now();
        cluster.longest_pause = Duration::ZERO;
        cluster
            .round(part, |cluster| match fault {
                0 => cluster.replicas[node].kill(),
                1 => cluster.replicas[node].terminate(),
                6 => {
                    cluster.replicas[node].kill();
                    cluster.replicas[node].remove_directory();
                }
                7 => {
                    cluster.replicas.iter_mut().for_each(Replica::kill);
                    cluster.replicas.iter_mut().for_each(Replica::start);
                }
                2 => cluster.replicas[node]
                    .process
                    .as_ref()
                    .unwrap()
                    .signal(Signal::SIGSTOP),
                3 => cluster.nats.kill_node(node),
                4 => cluster.nats.kill_node(leader),
                _ => cluster.nats.nodes[node].as_ref().unwrap().signal(Signal::SIGSTOP),
            })
            .await;
        println!(
            "round {round}: fault {fault} at {node}, pause {:.1?}",
            cluster.longest_pause
        );
        block_in_place(|| {
            for replica in &mut cluster.replicas {
                match &replica.process {
                    Some(process) => process.signal(Signal::SIGCONT),
                    None => replica.start(),
                }
            }
            for node in 0..NODES {
                match &cluster.nats.nodes[node] {
                    Some(process) => process.signal(Signal::SIGCONT),
                    None => cluster.nats.start_node(node),
                }
            }
            cluster.nats.wait_until_current();
            cluster.replicas.iter().for_each(Replica::wait_until_ready);
        });
        println!("  whole again after {:.1?}", begun.elapsed());
    }
    cluster.finish().await;
}

#[test]
fn what_is_wrong_with_nats_is_said() {
    let Some(mut nats) = Nats::start() else {
        return;
    };
    let init = nats.chitchat(&["init", "--replicas", "1"]);
    assert_eq!(init.code, Some(78), "{init:?}");
    assert!(
        init.stderr
            .contains("num_replicas of the stream CHAT-0 is 3; it must be 1"),
        "{init:?}"
    );
    let status = nats.chitchat(&["status"]);
    assert_eq!(status.code, Some(0), "{status:?}");
    // Whether they sync is unknown, unless their monitoring ports are given.
    let unchecked = nats.chitchat(&["init"]);
    assert_eq!(unchecked.code, Some(0), "{unchecked:?}");
    assert!(unchecked.stderr.contains("NOT CHECKED"), "{unchecked:?}");
    let urls: Vec<_> = nats
        .monitors
        .iter()
        .map(|address| format!("http://{address}"))
        .collect();
    let monitor = urls.join(",");
    for action in ["init", "status"] {
        let checked = nats.chitchat(&[action, "--monitor", &monitor]);
        assert_eq!(checked.code, Some(0), "{checked:?}");
        assert!(!checked.stderr.contains("NOT CHECKED"), "{checked:?}");
    }
    let incomplete = nats.chitchat(&["init", "--monitor", &urls[0]]);
    assert_eq!(incomplete.code, Some(78), "{incomplete:?}");
    assert!(
        incomplete
            .stderr
            .contains("n1 stores the stream, and was not checked"),
        "{incomplete:?}"
    );
    nats.reconfigure(2, |config| {
        format!(
            "{}max_payload: 65536\n",
            config.replace("sync_interval: always", "sync_interval: 2m")
        )
    });
    let lazy = nats.chitchat(&["init", "--monitor", &monitor]);
    assert_eq!(lazy.code, Some(78), "{lazy:?}");
    for mistake in [
        format!("{}: its max_payload is 65536", nats.addresses[2]),
        format!("n2 ({}): it does not sync", urls[2]),
    ] {
        assert!(lazy.stderr.contains(&mistake), "{mistake}: {lazy:?}");
    }
    let status = wait_until("the NATS servers have a leader again", || {
        let status = nats.chitchat(&["status", "--monitor", &monitor]);
        (status.code == Some(78)).then_some(status)
    });
    assert!(
        status
            .lines
            .iter()
            .any(|line| line.contains(&urls[2]) && line.ends_with("WRONG")),
        "{status:?}"
    );
    // Messages may be longer than a server accepts.
    let small = unused_address();
    let config = nats.directory.path().join("small.conf");
    std::fs::write(
        &config,
        format!("server_name: small\nlisten: {small}\nmax_payload: 32KB\n"),
    )
    .unwrap();
    let child = Command::new(&nats.program)
        .arg("-c")
        .arg(config)
        .stderr(Stdio::null())
        .spawn();
    let _server: Process = child.unwrap().into();
    wait_until("the NATS server accepts connections", || {
        std::net::TcpStream::connect(small).ok().map(drop)
    });
    let secret = nats.directory.path().join("secret");
    std::fs::write(&secret, "of the tests, and longer than 32 bytes").unwrap();
    let mut command = Command::new(CHITCHAT);
    command.args([
        "serve",
        "--in-memory",
        "--listen",
        "127.0.0.1:0",
        "--admin",
        "127.0.0.1:0",
        "--cluster",
    ]);
    command
        .arg(format!("nats://{small}"))
        .arg("--cluster-secret")
        .arg(secret);
    let failed: Finished = process::run(&mut command, "").into();
    assert_eq!(failed.code, Some(78), "{failed:?}");
    assert!(
        failed
            .stderr
            .contains("max_payload of the NATS server small is 32768 bytes"),
        "{failed:?}"
    );
    // A replica needs the secret, and keeps nothing on the disk.
    let mut command = Command::new(CHITCHAT);
    command.args(["serve", "--cluster", &nats.url(), "--cluster-secret", "/dev/null"]);
    let failed: Finished = process::run(&mut command, "").into();
    assert_eq!(failed.code, Some(78), "{failed:?}");
    for mistake in ["--in-memory", "--cluster-secret /dev/null is not a file"] {
        assert!(failed.stderr.contains(mistake), "{failed:?}");
    }
}

#[test]
fn the_rooms_of_a_single_server_come_into_a_cluster() {
    let Some(nats) = Nats::start() else {
        return;
    };
    let path = |name: &str| nats.directory.path().join(name);
    let (single, secret) = (path("single"), path("secret"));
    std::fs::write(&secret, "of the tests, and longer than 32 bytes").unwrap();
    let client = |address: SocketAddr, arguments: &[&str]| {
        let mut command = Command::new(CHITCHAT);
        command.args(arguments).args(["--server", &address.to_string()]);
        process::succeed(&mut command, "")
    };
    let mut server = process::serve_at(unused_address(), &["--data-dir", single.to_str().unwrap()]);
    for text in ["one", "two"] {
        client(server.address, &["send", "--room", "tea", "--name", "Ada", text]);
    }
    let history = client(server.address, &["history", "--room", "tea", "--json"]);
    let directory = path("replica0");
    let import = ["import", single.to_str().unwrap(), directory.to_str().unwrap()];
    let failed = nats.chitchat(&import);
    assert!(failed.stderr.contains("in use by another server"), "{failed:?}");
    server.stop();
    let imported = nats.chitchat(&import);
    assert_eq!(imported.code, Some(0), "{imported:?}");
    assert_eq!(
        nats.chitchat(&import).code,
        Some(78),
        "the stream is not empty any more"
    );
    // The second one gets the rooms from the first, even if it starts before.
    let mut replicas = [1, 0].map(|n| {
        let name = format!("r{n}");
        Replica::new(&nats, &secret, &name, Some(path(&format!("replica{n}"))))
    });
    for replica in &replicas {
        replica.wait_until_ready();
        assert_eq!(
            client(replica.address, &["history", "--room", "tea", "--json"]),
            history
        );
    }
    client(
        replicas[0].address,
        &["send", "--room", "tea", "--name", "Ada", "three"],
    );
    let [one, other] = [0, 1].map(|n| client(replicas[n].address, &["history", "--room", "tea", "--json"]));
    assert!(one.starts_with(&history) && one.contains("three"), "{one}");
    assert_eq!(one, other);
    replicas.iter_mut().for_each(Replica::terminate);

    // And back.
    let back = path("back");
    let export = ["export", directory.to_str().unwrap(), back.to_str().unwrap()];
    let exported = nats.chitchat(&export);
    assert_eq!(exported.code, Some(0), "{exported:?}");
    let again = nats.chitchat(&export);
    assert!(again.stderr.contains("is not empty"), "{again:?}");
    let mut server = process::serve_at(unused_address(), &["--data-dir", back.to_str().unwrap()]);
    let history = client(server.address, &["history", "--room", "tea", "--json"]);
    assert_eq!(history, one, "the same sequences and epochs");
    client(
        server.address,
        &["send", "--room", "tea", "--name", "Ada", "four"],
    );
    let longer = client(server.address, &["history", "--room", "tea", "--json"]);
    assert!(
        longer.starts_with(&history) && longer.contains("four"),
        "{longer}"
    );
    server.stop();
    let mut check = Command::new(CHITCHAT);
    process::succeed(check.args(["store", "check", "--data-dir"]).arg(&back), "");
}

/// Removes the stream and makes it anew.
fn replace_stream(nats: &Nats, messages: u64) {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let delete = async {
        let client = async_nats::connect(nats.addresses[0].to_string()).await.unwrap();
        let deleted = client.request("$JS.API.STREAM.DELETE.CHAT-0", "".into()).await;
        assert!(deleted.unwrap().payload.starts_with(b"{"));
        client
    };
    let client = runtime.block_on(delete);
    wait_until("the stream is made anew", || {
        (nats.chitchat(&["init", "--max-bytes", "256MiB"]).code == Some(0)).then_some(())
    });
    runtime.block_on(async {
        for _ in 0..messages {
            let stored = client.request("chat.0.order", "other".into()).await.unwrap();
            assert!(!stored.payload.starts_with(b"{\"error\""), "{stored:?}");
        }
    });
}

#[test]
fn a_replica_does_not_continue_on_another_stream() {
    let Some(nats) = Nats::start() else {
        return;
    };
    let secret = nats.directory.path().join("secret");
    std::fs::write(&secret, "of the tests, and longer than 32 bytes").unwrap();
    let directory = nats.directory.path().join("replica");
    // The first server is cut off from the others, and so has no stream.
    let alone = unused_address();
    let child = Command::new(&nats.program)
        .args(["-a", "127.0.0.1", "-p", &alone.port().to_string()])
        .stderr(Stdio::null())
        .spawn();
    let _alone: Process = child.unwrap().into();
    wait_until("the NATS server accepts connections", || {
        std::net::TcpStream::connect(alone).ok().map(drop)
    });
    let mut replica = Replica::new(&nats, &secret, "r", Some(directory));
    replica.kill();
    let url = nats.url();
    let servers = replica.command.iter_mut().find(|argument| **argument == url);
    let with_alone = format!("nats://{alone},{url}");
    *servers.unwrap() = with_alone.clone();
    replica.start();
    replica.wait_until_ready();
    wait_until("it has a checkpoint", || replica.newest_checkpoint());
    replica.terminate();
    let newest = replica.newest_checkpoint().unwrap();
    let servers = replica
        .command
        .iter_mut()
        .find(|argument| **argument == with_alone);
    *servers.unwrap() = url;

    // Shorter than the checkpoint, as long, and longer.
    for (messages, expected) in [
        (0, "the stream ends at 0"),
        (newest, "the stream has another message at"),
        (newest + 5, "the stream has another message at"),
    ] {
        replace_stream(&nats, messages);
        replica.start();
        replica.process.as_ref().unwrap().stdout_line(expected);
        replica.kill();
    }

    // One that is at work ends.
    replace_stream(&nats, 0);
    replica.remove_directory();
    replica.start();
    replica.wait_until_ready();
    replace_stream(&nats, 0);
    let mut process = replica.process.take().unwrap();
    process.stderr_line("the stream has another message at");
    assert!(!process.wait().success());
}
