//! Fault injection, used to show that the crash tests detect real faults. Active only with the feature `failpoints`, which no
//! release enables; without it the functions called at the points do nothing.
//!
//! The environment variable `CHITCHAT_FAILPOINTS` lists the faults, separated by commas. If an entry is invalid, the process
//! exits with status 64 at the first point that it reaches.
//!
//! - `POINT=kill:N` aborts the process when it reaches the point for the N-th time. The points, in the order in which a
//!   batch reaches them: `before-append` (decided, not stored), `before-write`, `before-sync` (written, not synced),
//!   `after-sync`, `after-append` (stored, not published), `after-publish` (visible to the first subscriber). The steps at
//!   which a segment is created, sealed, rewritten and removed are points too.
//! - `before-sync=fail:N` makes the N-th sync return an I/O error.
//! - `slow-sync=on` delays every sync by 50 ms.
//! - `FAULT=on` breaks a guarantee: `skip-append` publishes without storing, `skip-sync` writes to segments
//!   that a crash removes, `skip-dedupe` forgets every message id, `swap-events` publishes two events of a batch in the wrong order,
//!   `swap-requests` handles two messages of one sender in the wrong order.
//! - `next-fold-version=on` makes a replica support one version of the command log more than there is.
//! - `clock-ahead=on` and `clock-behind=on` make the wall clock wrong by an hour.

use std::collections::HashMap;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};

/// Whether failpoints are compiled in.
pub(crate) const ENABLED: bool = cfg!(feature = "failpoints");

const VARIABLE: &str = "CHITCHAT_FAILPOINTS";

const POINTS: [&str; 14] = [
    "before-append",
    "before-write",
    "before-sync",
    "after-sync",
    "after-append",
    "after-publish",
    "segment-created",
    "segment-synced",
    "segment-renamed",
    "seal-written",
    "seal-synced",
    "rewrite-written",
    "rewrite-renamed",
    "rewrite-unlink",
];

const FAULTS: [&str; 9] = [
    "slow-sync",
    "skip-append",
    "skip-sync",
    "skip-dedupe",
    "swap-events",
    "swap-requests",
    "next-fold-version",
    "clock-ahead",
    "clock-behind",
];

#[derive(Debug, Default)]
struct Plan {
    /// The remaining number of times that each point is reached, up to and including the one that aborts the process.
    kills: HashMap<&'static str, AtomicU64>,
    /// The remaining number of times that each point is reached, up to and including the one that fails.
    failures: HashMap<&'static str, AtomicU64>,
    faults: Vec<&'static str>,
}

static PLAN: LazyLock<Plan> = LazyLock::new(|| {
    let text = std::env::var(VARIABLE).unwrap_or_default();
    Plan::parse(&text).unwrap_or_else(|entry| {
        eprintln!("chitchat: {VARIABLE}: unknown failpoint {entry:?}");
        std::process::exit(64);
    })
});

impl Plan {
    /// Returns the first entry that cannot be parsed as the error.
    fn parse(text: &str) -> Result<Self, &str> {
        let mut plan = Self::default();
        for entry in text.split(',').map(str::trim).filter(|entry| !entry.is_empty()) {
            let (name, action) = entry.split_once('=').ok_or(entry)?;
            if action == "on" {
                let fault = FAULTS.iter().find(|fault| **fault == name).ok_or(entry)?;
                plan.faults.push(fault);
            } else {
                let point = POINTS.iter().find(|point| **point == name).ok_or(entry)?;
                let (action, count) = action.split_once(':').ok_or(entry)?;
                let count = AtomicU64::new(count.parse().map_err(|_| entry)?);
                match (action, *point) {
                    ("kill", point) => plan.kills.insert(point, count),
                    ("fail", "before-sync") => plan.failures.insert(point, count),
                    _ => return Err(entry),
                };
            }
        }
        Ok(plan)
    }
}

fn count_down(remaining: &HashMap<&'static str, AtomicU64>, point: &str) -> bool {
    remaining
        .get(point)
        .is_some_and(|remaining| remaining.fetch_sub(1, Ordering::Relaxed) == 1)
}

/// Marks that the process has reached `point`. Aborts the process if the environment variable demands it.
#[inline]
pub(crate) fn hit(point: &str) {
    if ENABLED && count_down(&PLAN.kills, point) {
        eprintln!("chitchat: killed at {point}");
        std::process::abort();
    }
}

/// Returns whether the operation at this point must fail.
#[inline]
pub(crate) fn fails(point: &str) -> bool {
    ENABLED && count_down(&PLAN.failures, point)
}

/// Returns whether a fault is switched on.
#[inline]
pub(crate) fn is_enabled(fault: &str) -> bool {
    ENABLED && PLAN.faults.contains(&fault)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_variable_is_parsed() {
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
