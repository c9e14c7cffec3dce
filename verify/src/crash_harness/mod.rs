//! A server process that is started, killed and restarted, and clients that reconnect and record what they receive.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::cast_possible_truncation,
    reason = "a harness for tests, which panics where a test would"
)]

mod client;
mod recorder;
mod run;
mod server_fixture;

pub use client::{ClientPlan, Progress};
pub use recorder::Recorder;
pub use run::Run;
pub use server_fixture::{DirectorySnapshot, Exit, ServerFixture, ServerProcess};

pub use crate::process::TIMEOUT;

/// The random seed of a run, from `CRASH_SEED` if that is set. It is printed, so that a failed run can be repeated.
pub fn seed() -> u64 {
    let seed = std::env::var("CRASH_SEED").map_or_else(|_| rand::random(), |seed| seed.parse().unwrap());
    println!("CRASH_SEED={seed}");
    seed
}
