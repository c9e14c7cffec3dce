//! A client that builds each HTTP/2 frame itself, to send what no client library would.

use chitchat::proto::JoinMsgLeave;
use prost::Message;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::harness::{TIMEOUT, TestServer};

pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const PRIORITY: u8 = 2;
pub const SETTINGS: u8 = 4;
pub const PING: u8 = 6;
pub const GOAWAY: u8 = 7;
pub const WINDOW_UPDATE: u8 = 8;
pub const END_STREAM: u8 = 1;
pub const END_HEADERS: u8 = 4;
pub const ACK: u8 = 1;

const CHAT_SERVICE: &str = "/itu.chitchat.ChatService/";

/// A frame in the layout of RFC 9113, section 4.1.
pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut frame = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

/// The frame that begins a call, with its headers as literals without indexing (RFC 7541, section 6.2.2).
pub fn call(stream: u32, method: &str) -> Vec<u8> {
    let path = format!("{CHAT_SERVICE}{method}");
    let mut block = Vec::new();
    for (name, value) in [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", path.as_str()),
        (":authority", "localhost"),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
    ] {
        block.push(0);
        for part in [name, value] {
            block.push(part.len() as u8);
            block.extend(part.as_bytes());
        }
    }
    frame(HEADERS, END_HEADERS, stream, &block)
}

/// The bytes of a message with the header that gRPC puts before it.
pub fn grpc(message: &impl Message) -> Vec<u8> {
    let message = message.encode_to_vec();
    let mut framed = vec![0];
    framed.extend((message.len() as u32).to_be_bytes());
    framed.extend(message);
    framed
}

pub fn data(stream: u32, message: &JoinMsgLeave) -> Vec<u8> {
    frame(DATA, 0, stream, &grpc(message))
}

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
        let mut socket = TcpStream::connect(server.listen).await.unwrap();
        let mut sent = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
        let [a, b, c, d] = window.to_be_bytes();
        sent.extend(frame(SETTINGS, 0, 0, &[0, 4, a, b, c, d]));
        socket.write_all(&sent).await.unwrap();
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
