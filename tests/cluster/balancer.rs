//! A load balancer before the replicas.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{interval, timeout};

use crate::NODES;
use crate::replica::Replica;

/// How often a replica is asked whether it is ready, and how long it has for the answer.
const PROBE_INTERVAL: Duration = Duration::from_millis(500);

/// Forwards connections to replicas that are ready.
#[derive(Clone)]
pub(crate) struct Balancer {
    servers: Vec<SocketAddr>,
    is_ready: Arc<[AtomicBool; NODES]>,
}

impl Balancer {
    /// Begins to ask the replicas whether they are ready.
    pub(crate) fn start(replicas: &[Replica]) -> Self {
        let is_ready: Arc<[AtomicBool; NODES]> = Arc::new(std::array::from_fn(|_| AtomicBool::new(true)));
        for (n, replica) in replicas.iter().enumerate() {
            let (is_ready, admin) = (Arc::clone(&is_ready), replica.admin);
            tokio::spawn(async move {
                let mut ticks = interval(PROBE_INTERVAL);
                loop {
                    ticks.tick().await;
                    let answer = timeout(PROBE_INTERVAL, probe(admin)).await;
                    is_ready[n].store(matches!(answer, Ok(Some(()))), Ordering::Relaxed);
                }
            });
        }
        Self {
            servers: replicas.iter().map(|replica| replica.address).collect(),
            is_ready,
        }
    }

    /// Returns an address whose connections go to one replica after the other, beginning with `first`.
    pub(crate) async fn listen(&self, first: usize) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let next = Arc::new(AtomicUsize::new(first));
        let balancer = self.clone();
        tokio::spawn(async move {
            loop {
                let (client, _) = listener.accept().await.unwrap();
                tokio::spawn(balancer.clone().forward(client, Arc::clone(&next)));
            }
        });
        address
    }

    async fn forward(self, mut client: TcpStream, next: Arc<AtomicUsize>) {
        for _ in 0..self.servers.len() {
            let n = next.fetch_add(1, Ordering::Relaxed) % self.servers.len();
            if self.is_ready[n].load(Ordering::Relaxed)
                && let Ok(mut server) = TcpStream::connect(self.servers[n]).await
            {
                server.set_nodelay(true).unwrap();
                client.set_nodelay(true).unwrap();
                copy_bidirectional(&mut client, &mut server).await.ok();
                return;
            }
        }
    }
}

async fn probe(admin: SocketAddr) -> Option<()> {
    let mut stream = TcpStream::connect(admin).await.ok()?;
    let request = "GET /readyz HTTP/1.1\r\nHost: admin\r\nConnection: close\r\n\r\n";
    stream.write_all(request.as_bytes()).await.ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.ok()?;
    answer.starts_with("HTTP/1.1 200").then_some(())
}
