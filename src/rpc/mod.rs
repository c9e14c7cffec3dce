//! The services on the wire: a bounded transport, thin methods, one table from errors to gRPC status.

mod admission;
mod bell;
mod body;
mod calls;
mod chat_route;
mod connection;
mod cork;
mod listener;
mod observer;
mod reason;
mod rewound;
mod session;
mod stall;
mod status;
mod streams;
mod subscribe_body;
mod threshold;

pub use calls::Calls;
pub use chat_route::{ChatRoute, decode_limit};
pub use connection::TransportLimits;
pub use listener::Listener;
pub use observer::{Arrival, Method, Observer, StreamEnd, Visitor};
pub use reason::{Fault, Reason};

/// The fully qualified name of the chat service.
pub const CHAT_SERVICE: &str = "itu.chitchat.ChatService";
