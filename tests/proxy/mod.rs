//! A TCP proxy that cuts connections after so many bytes.
#![allow(dead_code, missing_docs, unreachable_pub)]

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

#[derive(Clone)]
pub struct Proxy {
    pub address: SocketAddr,
    state: Arc<Mutex<State>>,
    cut: watch::Sender<u64>,
}

#[derive(Default)]
struct State {
    /// After how many bytes (of both directions) to cut, one number a cut.
    plan: VecDeque<usize>,
    cuts: usize,
    refuses: bool,
}

impl Proxy {
    /// Starts it before `server`; it runs as long as the runtime.
    pub async fn start(server: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let proxy = Self {
            address: listener.local_addr().unwrap(),
            state: Arc::default(),
            cut: watch::Sender::new(0),
        };
        let running = proxy.clone();
        tokio::spawn(async move {
            loop {
                let (client, _) = listener.accept().await.unwrap();
                if running.state.lock().unwrap().refuses {
                    continue;
                }
                let server = TcpStream::connect(server).await.unwrap();
                client.set_nodelay(true).unwrap();
                server.set_nodelay(true).unwrap();
                let (from_client, to_client) = client.into_split();
                let (from_server, to_server) = server.into_split();
                tokio::spawn(running.clone().pump(from_client, to_server));
                tokio::spawn(running.clone().pump(from_server, to_client));
            }
        });
        proxy
    }

    /// Cuts all connections at each of these distances from the one before.
    pub fn cut_after(&self, distances: impl IntoIterator<Item = usize>) {
        self.state.lock().unwrap().plan.extend(distances);
    }

    /// Cuts all connections now.
    pub fn cut_now(&self) {
        self.cut.send_modify(|count| *count += 1);
        self.state.lock().unwrap().cuts += 1;
    }

    /// Whether new connections are closed at once.
    pub fn refuse(&self, refuses: bool) {
        self.state.lock().unwrap().refuses = refuses;
    }

    pub fn cuts(&self) -> usize {
        self.state.lock().unwrap().cuts
    }

    /// How many of `bytes` still pass, and whether the connections are cut then.
    fn pass(&self, bytes: usize) -> (usize, bool) {
        let mut state = self.state.lock().unwrap();
        let Some(rest) = state.plan.front_mut() else {
            return (bytes, false);
        };
        if bytes < *rest {
            *rest -= bytes;
            return (bytes, false);
        }
        let passes = *rest;
        state.plan.pop_front();
        state.cuts += 1;
        (passes, true)
    }

    async fn pump(self, mut from: OwnedReadHalf, mut to: OwnedWriteHalf) -> Option<()> {
        let mut cut = self.cut.subscribe();
        let mut buffer = vec![0; 16 * 1024];
        loop {
            let length = tokio::select! {
                length = from.read(&mut buffer) => length.ok().filter(|length| *length > 0)?,
                _ = cut.changed() => return None,
            };
            let (passes, is_cut) = self.pass(length);
            to.write_all(&buffer[..passes]).await.ok()?;
            if is_cut {
                // Both directions of every connection end without a word.
                self.cut.send_modify(|count| *count += 1);
                return None;
            }
        }
    }
}
