//! A client that sends each message in a DATA frame of its own and does not read.

use chitchat::proto::JoinMsgLeave;
use prost::Message;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::harness::{TIMEOUT, TestServer, join, message};

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const END_HEADERS: u8 = 4;
const ACK: u8 = 1;

/// A frame in the layout of RFC 9113, section 4.1.
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut frame = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

/// The header block of a call, as literals without indexing (RFC 7541, section 6.2.2).
fn headers() -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", "/itu.chitchat.ChatService/Chat"),
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
    block
}

fn data(stream: u32, message: &JoinMsgLeave) -> Vec<u8> {
    let message = message.encode_to_vec();
    let mut payload = vec![0];
    payload.extend((message.len() as u32).to_be_bytes());
    payload.extend(message);
    frame(DATA, 0, stream, &payload)
}

/// Opens `streams` calls that each send `text` `count` times, and returns the type of the frame that answers a PING after them.
async fn answer_after(server: &TestServer, streams: u32, count: usize, text: &str) -> u8 {
    let mut socket = TcpStream::connect(server.listen).await.unwrap();
    let mut sent = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    // A window of zero for the responses, so that the server stops reading the requests.
    sent.extend(frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 0]));
    for stream in (1..).step_by(2).take(streams as usize) {
        sent.extend(frame(HEADERS, END_HEADERS, stream, &headers()));
        sent.extend(data(stream, &join(&format!("client {stream}"))));
        sent.extend(data(stream, &message(0, text)).repeat(count));
    }
    sent.extend(frame(PING, 0, 0, &[7; 8]));
    socket.write_all(&sent).await.unwrap();
    loop {
        let mut head = [0; 9];
        socket.read_exact(&mut head).await.unwrap();
        let len = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
        let mut payload = vec![0; len];
        socket.read_exact(&mut payload).await.unwrap();
        let (kind, flags) = (head[3], head[4]);
        if kind == GOAWAY || (kind == PING && flags == ACK) {
            return kind;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn unread_short_messages_do_not_close_their_connection() {
    let server = TestServer::start().await;
    // A stream window full of the shortest messages, and a gateway whose clients each sent a few.
    for (streams, count, text) in [(1, 4_800, "y"), (20, 200, "hey you"), (300, 12, "hey")] {
        let answer = timeout(TIMEOUT, answer_after(&server, streams, count, text)).await;
        assert_eq!(answer, Ok(PING), "{streams} streams with {count} messages");
    }
}
