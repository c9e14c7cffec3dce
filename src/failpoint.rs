//! Faults on request, to show that the crash tests catch them. Compiled only with the feature `failpoints`, which no
//! release has.
//!
//! The environment variable `CHITCHAT_FAILPOINTS` names them, separated by commas:
//!
//! - `POINT=kill:N` ends the process as a crash does when it passes the point for the N-th time. Points, in the order in
//!   which a batch passes them: `before-append` (the fold has decided, nothing is stored), `before-write`, `before-sync`
//!   (written, not synced), `after-sync`, `after-append` (stored, nobody knows), `after-publish` (the first can see it).
//! - `before-sync=fail:N` lets the N-th sync fail, as a disk does.
//! - `slow-sync=on` makes every sync take a while.
//! - `FAULT=on` breaks a promise: `skip-append` publishes without storing, `skip-sync` leaves what is stored in the
//!   process, `skip-dedupe` forgets every message id, `swap-events` publishes two events of a batch in the wrong order,
//!   `swap-requests` takes two messages of a sender in the wrong order.

use std::collections::HashMap;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};

const VARIABLE: &str = "CHITCHAT_FAILPOINTS";

const POINTS: [&str; 6] = [
    "before-append",
    "before-write",
    "before-sync",
    "after-sync",
    "after-append",
    "after-publish",
];

const FAULTS: [&str; 6] = [
    "slow-sync",
    "skip-append",
    "skip-sync",
    "skip-dedupe",
    "swap-events",
    "swap-requests",
];

/// What is to happen where.
#[derive(Debug, Default)]
struct Plan {
    /// Point to what is left of its passages.
    kills: HashMap<&'static str, AtomicU64>,
    /// The same of the points that fail.
    failures: HashMap<&'static str, AtomicU64>,
    faults: Vec<&'static str>,
}

static PLAN: LazyLock<Plan> = LazyLock::new(|| {
    let text = std::env::var(VARIABLE).unwrap_or_default();
    Plan::parse(&text).unwrap_or_else(|wrong| {
        eprintln!("chitchat: {VARIABLE}: {wrong:?} is no failpoint");
        std::process::exit(64);
    })
});

impl Plan {
    /// Gives what is wrong when something is.
    fn parse(text: &str) -> Result<Self, &str> {
        let mut plan = Self::default();
        for entry in text.split(',').map(str::trim).filter(|entry| !entry.is_empty()) {
            let (name, what) = entry.split_once('=').ok_or(entry)?;
            if what == "on" {
                let fault = FAULTS.iter().find(|fault| **fault == name).ok_or(entry)?;
                plan.faults.push(fault);
            } else {
                let point = POINTS.iter().find(|point| **point == name).ok_or(entry)?;
                let (how, passages) = what.split_once(':').ok_or(entry)?;
                let passages = AtomicU64::new(passages.parse().map_err(|_| entry)?);
                match (how, *point) {
                    ("kill", point) => plan.kills.insert(point, passages),
                    ("fail", "before-sync") => plan.failures.insert(point, passages),
                    _ => return Err(entry),
                };
            }
        }
        Ok(plan)
    }
}

fn is_time(passages: &HashMap<&'static str, AtomicU64>, point: &str) -> bool {
    passages
        .get(point)
        .is_some_and(|left| left.fetch_sub(1, Ordering::Relaxed) == 1)
}

/// Whether what comes at this point is to fail.
pub fn fails(point: &str) -> bool {
    is_time(&PLAN.failures, point)
}

/// Passes a point, and ends the process if it is time.
pub fn pass(point: &str) {
    if is_time(&PLAN.kills, point) {
        eprintln!("chitchat: killed at {point}");
        std::process::abort();
    }
}

/// Whether a promise is to be broken.
#[must_use]
pub fn is_on(fault: &str) -> bool {
    PLAN.faults.contains(&fault)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_is_read() {
        let plan = Plan::parse("before-append=kill:3, skip-append=on,").unwrap();
        assert_eq!(plan.kills["before-append"].load(Ordering::Relaxed), 3);
        assert_eq!(plan.faults, ["skip-append"]);
        let plan = Plan::parse("before-sync=fail:2").unwrap();
        assert_eq!(plan.failures["before-sync"].load(Ordering::Relaxed), 2);
        for wrong in [
            "before-append",
            "before-append=kill",
            "nowhere=kill:1",
            "skip=on",
            "before-append=on",
            "before-append=fail:1",
        ] {
            assert_eq!(Plan::parse(wrong).map(drop), Err(wrong));
        }
    }
}
