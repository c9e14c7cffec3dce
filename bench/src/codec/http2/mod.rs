//! A minimal HTTP/2 client for gRPC streams. It parses frames and messages in place in the buffer they were read into,
//! because a general HTTP/2 library costs more per message than the server under test does.

mod connection;
mod frame;
mod hpack;

pub(super) use connection::{Http2Connection, StreamHandler};
