//! Replicas on NATS, and clients on all of them.

use std::sync::Arc;
use std::time::{Duration, Instant};

use chitchat::proto::{EventType, ServerMessage};
use chitchat_verify::crash_harness::Run;
use chitchat_verify::{History, check};
use tokio::task::{block_in_place, spawn_blocking};

use crate::balancer::Balancer;
use crate::fault::{Fault, Stalls};
use crate::nats::Nats;
use crate::replica::Replica;
use crate::{NODES, PER_ROUND, process};

/// The number of clients that send. Others only receive.
const SENDERS: usize = 4;

/// How often each of them sends a message while a fault is injected.
const SEND_INTERVAL: Duration = Duration::from_millis(20);

/// The NATS servers and the replicas.
pub(crate) struct Servers {
    pub(crate) nats: Nats,
    pub(crate) replicas: Vec<Replica>,
}

/// Three replicas, and clients on all of them.
pub(crate) struct Cluster {
    pub(crate) servers: Servers,
    pub(crate) run: Run,
    clients: usize,
    seed: u64,
}

impl Cluster {
    pub(crate) async fn start(seed: u64) -> Option<Self> {
        Self::start_with(seed, false, |_| None).await
    }

    /// The data directories of the replicas are relative to that of NATS.
    pub(crate) async fn start_with(
        seed: u64,
        small_disks: bool,
        directory: impl Fn(usize) -> Option<String>,
    ) -> Option<Self> {
        let mut nats = block_in_place(|| Nats::start_with(small_disks))?;
        let replicas: Vec<_> = (0..NODES)
            .map(|n| {
                let directory = directory(n).map(|name| nats.path(&name));
                Replica::new(&mut nats, &format!("r{n}"), directory)
            })
            .collect();
        block_in_place(|| replicas.iter().for_each(Replica::wait_until_ready));
        let mut run = Run::new(replicas[0].address, seed);
        let balancer = Balancer::start(&replicas);
        for (n, name) in ["Ada", "Bob", "Cleo", "Dan", "Eve", "Finn"].iter().enumerate() {
            let address = balancer.listen(n).await;
            run.add_client_at(address, name, if n < SENDERS { 16 } else { 0 });
        }
        run.wait_for_reconnects(&[0; 6]).await;
        Some(Self {
            servers: Servers { nats, replicas },
            run,
            clients: 6,
            seed,
        })
    }

    /// Lets the clients send, injects a fault after `part` of their messages, lets them send as many again, and waits until all are
    /// acknowledged.
    pub(crate) async fn round(&mut self, part: u64, fault: impl FnOnce(&mut Servers)) {
        let before = self.run.acknowledged();
        let send = |run: &Run| {
            for client in run.clients.iter().take(SENDERS) {
                client.update_plan(|plan| plan.send_limit += PER_ROUND);
            }
        };
        send(&self.run);
        self.run.wait_for_total(before + part).await;
        block_in_place(|| fault(&mut self.servers));
        send(&self.run);
        self.run
            .wait_for_total(before + 2 * SENDERS as u64 * PER_ROUND)
            .await;
    }

    /// Injects a fault while the clients send, repairs it, and waits until all servers are whole again and all that was sent is
    /// acknowledged. Also returns how long clients had to wait.
    pub(crate) async fn endure(self, fault: Fault, node: usize) -> (Self, Stalls) {
        let Self {
            mut servers,
            run,
            clients,
            seed,
        } = self;
        let mut enduring = spawn_blocking(move || {
            fault.endure(&mut servers, node);
            servers
        });
        let (mut whole, mut stalls) = (None, Stalls::default());
        let (mut sent_at, mut heard_at) = (Instant::now(), [Instant::now(); SENDERS]);
        let acknowledged = |n: usize| run.clients[n].progress().acknowledged;
        let mut heard: [u64; SENDERS] = std::array::from_fn(acknowledged);
        // How many messages each may have sent. All before are acknowledged.
        let mut allowed = heard;
        let servers = loop {
            tokio::time::sleep(Duration::from_millis(1)).await;
            let now = Instant::now();
            if whole.is_none() && enduring.is_finished() {
                whole = Some((&mut enduring).await.unwrap());
            }
            let is_whole = whole.is_some();
            if now >= sent_at + SEND_INTERVAL && !is_whole {
                sent_at = now;
                for (client, allowed) in run.clients.iter().zip(&mut allowed) {
                    client.update_plan(|plan| plan.send_limit += 1);
                    *allowed += 1;
                }
            }
            let mut is_waiting = false;
            for n in 0..SENDERS {
                let acknowledged = acknowledged(n);
                let waits = acknowledged < allowed[n];
                is_waiting |= waits;
                if acknowledged > heard[n] || !waits {
                    (heard[n], heard_at[n]) = (acknowledged, now);
                }
            }
            let waited = heard_at.map(|at| now - at);
            let shortest = waited.iter().min().copied().unwrap_or_default();
            let longest = waited.iter().max().copied().unwrap_or_default();
            stalls.of_all = stalls.of_all.max(shortest);
            stalls.of_one = stalls.of_one.max(longest);
            assert!(
                longest < process::TIMEOUT,
                "CRASH_SEED={seed}: {fault} at {node}: nothing is acknowledged"
            );
            if !is_waiting && let Some(servers) = whole.take() {
                break servers;
            }
        };
        let cluster = Self {
            servers,
            run,
            clients,
            seed,
        };
        (cluster, stalls)
    }

    /// Makes all leave, and checks what they have recorded, and that the replicas have the same logs.
    pub(crate) async fn finish(self) {
        let Self {
            servers,
            mut run,
            clients,
            seed,
        } = self;
        let readers: Vec<_> = servers
            .replicas
            .iter()
            .map(|replica| Run::new(replica.address, 0))
            .collect();
        run.leave().await;
        let count = |log: &[Arc<ServerMessage>], kind: EventType| {
            log.iter().filter(|message| message.r#type() == kind).count()
        };
        let deadline = Instant::now() + process::TIMEOUT;
        for reader in &readers {
            // It may apply the last ones a moment later than the replicas that the clients were connected to.
            while count(&reader.log().await.0, EventType::Leave) < clients && Instant::now() < deadline {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
        let history: History = run.finish().await;
        let violations = check(&history);
        assert!(violations.is_empty(), "CRASH_SEED={seed}: {}", violations[0]);
        let log: Vec<Arc<ServerMessage>> = history.log.unwrap();
        for reader in readers {
            let other = reader.log().await.0;
            assert!(log == other, "CRASH_SEED={seed}: the logs of the replicas differ");
        }
        // Nobody has left who did not, and so nobody has joined again.
        assert_eq!(
            (count(&log, EventType::Join), count(&log, EventType::Leave)),
            (clients, clients)
        );
        println!("{} events", log.len());
    }
}
