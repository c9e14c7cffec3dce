//! The load generator with delivery checker of `chitchat-bench`.
//!
//! It drives Chit Chat, and for comparison other servers, with the same load, checks every single delivery, and costs
//! less than the server it drives, because it shares the machine with it.
//!
//! What is counted alike for every server: a publisher also receives what it says, on a subscription of its own, and the
//! return of its own message is what frees a place in its window. So a message has as many deliveries as there are
//! clients, publishers included.

mod audience;
mod checker;
mod command;
mod connection;
mod error;
mod latency;
mod limit_server;
mod order;
mod pacer;
mod plan;
mod process;
mod progress;
mod protobuf;
mod publisher;
mod report;
mod run;
mod schedule;
mod shared;
mod stamp;
mod wire;
mod worker;

pub use checker::Faults;
pub use command::Cli;
pub use error::BenchError;
pub use latency::Latency;
pub use limit_server::serve_limit;
pub use order::OrderFaults;
pub use plan::{Http2Settings, Load, Plan, Protocol, Until};
pub use report::{Report, Resources};
pub use run::{run, run_traced};
pub use stamp::STAMP_LEN;
