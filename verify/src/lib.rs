//! Checks recorded histories of a run against the guarantees of the server.
//!
//! A [`History`] contains what every client did and received, in the order of the client, and the server's log at the
//! end of the run. [`check`] returns the violated [`Invariant`]s. It does not depend on the implementation of the
//! server, or on what happened to the server during the run.
//!
//! [`crash_harness`] produces such histories: it starts and kills servers, and runs clients that reconnect and resume.
//! [`process`] runs programs, for this harness and for tests.

#![allow(missing_docs, reason = "the library has no users outside this workspace")]

pub mod crash_harness;
mod history;
mod log;
#[allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a helper of tests, which panics where a test would"
)]
pub mod process;
mod roster;
mod sends;
mod streams;
mod violation;

pub use history::{ClientEvent, ClientHistory, History, Position, Roster, TimedEvent};
pub use violation::{Invariant, Violation};

use log::Logs;

/// Returns all violations in a history.
#[must_use]
pub fn check(history: &History) -> Vec<Violation> {
    let mut violations = Vec::new();
    let logs = Logs::collect(history, &mut violations);
    logs.check(history, &mut violations);
    sends::check(history, &logs, &mut violations);
    streams::check(history, &logs, &mut violations);
    roster::check(history, &logs, &mut violations);
    violations
}

#[cfg(test)]
mod tests;
