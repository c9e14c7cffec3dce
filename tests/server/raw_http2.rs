//! A client that builds each HTTP/2 frame itself, to send what no client library would.

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;

use crate::harness::{TIMEOUT, TestServer};

#[path = "../frames/mod.rs"]
mod frames;

pub use frames::*;

/// A frame that the server has sent.
#[derive(Debug)]
pub struct Received {
    pub kind: u8,
    pub flags: u8,
    pub payload: Vec<u8>,
}

impl Received {
    pub const fn is_end_of_stream(&self) -> bool {
        self.kind == HEADERS && self.flags & END_STREAM != 0
    }
}

/// A connection on which the test sends the frames.
pub struct RawConnection {
    pub socket: TcpStream,
}

impl RawConnection {
    /// Connects and sends preface and settings. Each stream's window for responses is `window`.
    pub async fn open(server: &TestServer, window: u32) -> Self {
        Self::open_from([127, 0, 0, 1], server, window).await
    }

    /// Like [`RawConnection::open`], from the address `from`.
    pub async fn open_from(from: [u8; 4], server: &TestServer, window: u32) -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind(SocketAddr::from((from, 0))).unwrap();
        let mut socket = socket.connect(server.listen).await.unwrap();
        socket.write_all(&preface(window)).await.unwrap();
        Self { socket }
    }

    pub async fn send(&mut self, frames: &[u8]) {
        self.socket.write_all(frames).await.unwrap();
    }

    /// The next frame; `None` if the server has closed the connection.
    pub async fn try_next(&mut self) -> Option<Received> {
        let mut head = [0; 9];
        let read = timeout(TIMEOUT, self.socket.read_exact(&mut head)).await;
        read.expect("the server answers").ok()?;
        let [a, b, c, kind, flags, ..] = head;
        let mut payload = vec![0; u32::from_be_bytes([0, a, b, c]) as usize];
        self.socket.read_exact(&mut payload).await.ok()?;
        Some(Received { kind, flags, payload })
    }

    pub async fn next(&mut self) -> Received {
        self.try_next().await.expect("the connection stays open")
    }

    /// Sends a PING and returns how the server answers it: with its ACK, or with a GOAWAY.
    pub async fn ping(&mut self) -> u8 {
        self.send(&frame(PING, 0, 0, &[7; 8])).await;
        loop {
            let received = self.next().await;
            if received.kind == GOAWAY || (received.kind == PING && received.flags == ACK) {
                return received.kind;
            }
        }
    }
}
