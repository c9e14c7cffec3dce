//! A way to the server that breaks.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// Passes bytes on, and cuts each connection after some, until it has cut as many as it was to. Ends when dropped.
pub struct Proxy {
    pub address: SocketAddr,
    pub cuts: watch::Receiver<u32>,
    accepting: JoinHandle<()>,
}

impl Proxy {
    /// Cuts `cuts` connections, each after fewer than `most` bytes in one of the directions.
    pub async fn start(server: SocketAddr, cuts: u32, most: usize, seed: u64) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (done, told) = watch::channel(0);
        let random = Arc::new(Mutex::new(StdRng::seed_from_u64(seed)));
        let accepting = tokio::spawn(async move {
            loop {
                let (client, _) = listener.accept().await.unwrap();
                let Ok(server) = TcpStream::connect(server).await else {
                    continue;
                };
                let cut = (*done.borrow() < cuts).then(|| {
                    let mut random = random.lock().unwrap();
                    (random.random_bool(0.5), random.random_range(0..most))
                });
                let done = done.clone();
                tokio::spawn(async move {
                    if pass(client, server, cut).await {
                        done.send_modify(|done| *done += 1);
                    }
                });
            }
        });
        Self {
            address,
            cuts: told,
            accepting,
        }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

/// Whether it was cut. Both directions end together.
async fn pass(mut client: TcpStream, mut server: TcpStream, cut: Option<(bool, usize)>) -> bool {
    let (mut from_client, mut to_client) = client.split();
    let (mut from_server, mut to_server) = server.split();
    let (mut up, mut down) = (usize::MAX, usize::MAX);
    if let Some((is_up, after)) = cut {
        *(if is_up { &mut up } else { &mut down }) = after;
    }
    let mut bytes = [[0; 4096]; 2];
    let [above, below] = &mut bytes;
    loop {
        let (read, left, is_up) = tokio::select! {
            read = from_client.read(&mut above[..]) => (read, &mut up, true),
            read = from_server.read(&mut below[..]) => (read, &mut down, false),
        };
        let Ok(read @ 1..) = read else { return false };
        let passed = read.min(*left);
        let written = if is_up {
            to_server.write_all(&above[..passed]).await
        } else {
            to_client.write_all(&below[..passed]).await
        };
        if *left < usize::MAX {
            *left -= passed;
        }
        if written.is_err() || *left == 0 {
            return *left == 0;
        }
    }
}
