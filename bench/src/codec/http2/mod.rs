//! A minimal HTTP/2 client for gRPC streams. It parses frames and messages in place in the buffer that they were read
//! into: the generator runs on the same machine as the server, so CPU time that it uses is not available to the server.

mod connection;
mod frame;
mod hpack;

pub(super) use connection::{Http2Connection, StreamHandler};
