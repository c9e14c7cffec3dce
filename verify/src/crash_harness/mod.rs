//! A server that is started, killed and started again, and clients that outlast it and record what they see.
#![allow(
    dead_code,
    missing_docs,
    unreachable_pub,
    unused_imports,
    clippy::unwrap_used,
    clippy::panic,
    clippy::cast_possible_truncation,
    reason = "a test that meets what it does not expect has failed; each test uses a part"
)]

mod client;
mod record;
mod run;
mod site;

pub use client::{Orders, Progress};
pub use record::Recorder;
pub use run::Run;
pub use site::{Contents, Exit, Server, Site};

use std::time::Duration;

/// How long anything may take that is to happen: only a broken server needs it.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// The seed of a run: `CRASH_SEED`, or a new one. Printed, so that a run that failed can be tried again.
pub fn seed() -> u64 {
    let seed = std::env::var("CRASH_SEED").map_or_else(|_| rand::random(), |seed| seed.parse().unwrap());
    println!("CRASH_SEED={seed}");
    seed
}
