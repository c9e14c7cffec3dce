//! Checks what clients recorded of a run against what the server promises.
//!
//! A [`History`] holds what every client did and received, in its own order, and what the server's log was at the end;
//! [`check`] says which of the [`Invariant`]s it breaks. It knows nothing of how the server works: whatever happened to
//! the server in between, a history breaks an invariant or it does not.

pub mod crash_harness;
mod history;
mod log;
mod roster;
mod sends;
mod streams;
mod violation;

pub use history::{Client, History, Place, Roster, Step, What};
pub use violation::{Invariant, Violation};

use log::Logs;

/// Everything that is wrong with a history. Nothing, when all is well.
#[must_use]
pub fn check(history: &History) -> Vec<Violation> {
    let mut found = Vec::new();
    let logs = Logs::collect(history, &mut found);
    logs.check(history, &mut found);
    sends::check(history, &logs, &mut found);
    streams::check(history, &logs, &mut found);
    roster::check(history, &logs, &mut found);
    found
}

#[cfg(test)]
mod tests;
