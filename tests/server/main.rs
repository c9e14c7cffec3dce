//! The real server, in process on port 0, and clients that talk to it over real gRPC.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    unreachable_pub,
    reason = "a test that meets what it does not expect has failed"
)]

mod bad_input;
mod clean_ends;
mod conversations;
mod durable;
mod first_version;
mod halted;
mod harness;
mod kept;
mod many;
mod operations;
mod roster;
mod silent;
mod small_frames;
mod welcome;
