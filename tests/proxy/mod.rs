//! A TCP proxy that closes connections after a given number of bytes, or on request.
#![allow(dead_code, missing_docs, unreachable_pub)]

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

#[derive(Clone)]
pub struct Proxy {
    pub address: SocketAddr,
    state: Arc<Mutex<State>>,
    /// Closes all connections.
    cut: watch::Sender<()>,
}

#[derive(Default)]
struct State {
    /// For each of the next cuts, the number of bytes that are forwarded before it, in total over all connections and
    /// both directions.
    plan: VecDeque<usize>,
    cuts: usize,
    refuses: bool,
}

impl Proxy {
    /// Starts a proxy for `server` on the current runtime.
    pub async fn start(server: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let proxy = Self {
            address: listener.local_addr().unwrap(),
            state: Arc::default(),
            cut: watch::Sender::new(()),
        };
        let running = proxy.clone();
        tokio::spawn(async move {
            loop {
                let (client, _) = listener.accept().await.unwrap();
                if running.state.lock().refuses {
                    continue;
                }
                let Ok(server) = TcpStream::connect(server).await else {
                    continue;
                };
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

    /// Schedules cuts: all connections are closed after each of these numbers of bytes, counted from the previous cut.
    pub fn cut_after(&self, bytes: impl IntoIterator<Item = usize>) {
        self.state.lock().plan.extend(bytes);
    }

    /// Closes all connections, and closes new ones immediately, until [`Self::allow`].
    pub fn disconnect(&self) {
        let mut state = self.state.lock();
        state.refuses = true;
        state.cuts += 1;
        self.cut.send_replace(());
    }

    /// Accepts new connections again.
    pub fn allow(&self) {
        self.state.lock().refuses = false;
    }

    /// The number of cuts so far, including calls of [`Self::disconnect`].
    pub fn cuts(&self) -> usize {
        self.state.lock().cuts
    }

    /// Returns how many of `bytes` to forward, and whether to close all connections after that.
    fn pass(&self, bytes: usize) -> (usize, bool) {
        let mut state = self.state.lock();
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
                self.cut.send_replace(());
                return None;
            }
        }
    }
}
