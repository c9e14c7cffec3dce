//! The bytes of HTTP/2 frames and of gRPC messages, for clients that send what no client library would.
#![allow(
    dead_code,
    missing_docs,
    unreachable_pub,
    clippy::cast_possible_truncation,
    clippy::unwrap_used,
    reason = "each test uses another part of it"
)]

use prost::Message;

pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const PRIORITY: u8 = 2;
pub const RST_STREAM: u8 = 3;
pub const SETTINGS: u8 = 4;
pub const PING: u8 = 6;
pub const GOAWAY: u8 = 7;
pub const WINDOW_UPDATE: u8 = 8;
pub const CONTINUATION: u8 = 9;
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

/// What a client sends first, with the window of each stream for responses.
pub fn preface(window: u32) -> Vec<u8> {
    let mut preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    let [a, b, c, d] = window.to_be_bytes();
    preface.extend(frame(SETTINGS, 0, 0, &[0, 4, a, b, c, d]));
    preface
}

/// The bytes of a message with the header that gRPC puts before it.
pub fn grpc(message: &impl Message) -> Vec<u8> {
    let message = message.encode_to_vec();
    let mut framed = vec![0];
    framed.extend((message.len() as u32).to_be_bytes());
    framed.extend(message);
    framed
}

pub fn data(stream: u32, message: &impl Message) -> Vec<u8> {
    frame(DATA, 0, stream, &grpc(message))
}
