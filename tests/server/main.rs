//! The real server, run inside the test process, and clients that talk to it over gRPC.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    unreachable_pub,
    reason = "a test panics when it fails"
)]

#[path = "../certificates/mod.rs"]
mod certificates;
#[path = "../tls_client/mod.rs"]
mod tls_client;

mod admin;
mod bad_input;
mod budgets;
mod calls;
mod connections;
mod conversations;
mod drain_and_limits;
mod first_message;
mod first_version;
mod harness;
mod leaving;
mod load;
mod moderation;
mod newer_fields;
mod proxies;
mod rates;
mod raw_http2;
mod retention;
mod sessions;
mod small_frames;
mod store_failures;
mod tls;
mod tokens;
