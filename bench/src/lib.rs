//! A load generator for Chit Chat that checks every delivery.
//!
//! It puts the same load on Chit Chat and, for comparison, on other servers. It runs on the same machine as the server,
//! so it has to use less CPU time per delivery than the server.
//!
//! Deliveries are counted the same way for every server: a publisher also receives its own messages, on a subscription
//! of its own, and receiving one reopens its window. A message therefore has one delivery per client of the room,
//! publishers included.

#![allow(missing_docs, reason = "the library has no users outside this workspace")]

mod client;
mod codec;
mod command;
mod connection;
mod delivery_checker;
mod endpoint;
mod error;
mod latency;
mod limit_server;
mod order_checker;
mod payload_header;
mod plan;
mod process;
mod protobuf;
mod publisher;
mod report;
mod run;
mod run_state;
mod schedule;
mod stream;
mod worker;

pub use command::Cli;
pub use delivery_checker::DeliveryFaults;
pub use error::BenchError;
pub use latency::Latency;
pub use limit_server::serve_limit;
pub use order_checker::OrderFaults;
pub use payload_header::PAYLOAD_HEADER_LEN;
pub use plan::{Http2Settings, Load, Plan, Protocol, Until};
pub use report::{Report, Resources};
pub use run::{run, run_traced};
