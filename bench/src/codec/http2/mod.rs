//! A minimal HTTP/2 client for gRPC streams. It parses frames and messages in place in the buffer they were read into: on
//! one machine with the server, what the generator spends on a message the server does not have.

mod connection;
mod frame;
mod hpack;

pub(super) use connection::{Http2Connection, StreamHandler};
