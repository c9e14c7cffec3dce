//! Which replicas live, as far as one of them can tell.

use std::collections::BTreeMap;
use std::time::Duration;

use super::message::{Content, LogPosition, NewestCheckpoint};

/// How often a replica writes that it lives.
pub(crate) const HEARTBEAT: Duration = Duration::from_secs(1);

/// A replica that was not heard of for so long is fenced.
pub(crate) const LEASE: Duration = Duration::from_secs(5);

/// A replica that has not heard of itself for so long is cut off: it cannot tell whether others are silent, and should turn to another
/// server.
pub(crate) const CUT_OFF: Duration = Duration::from_secs(2);

/// The live incarnations, and when this replica heard of them.
///
/// Nobody is fenced because a replica has not heard of it, only because the command log has nothing of it: see [`Content::Fence`].
#[derive(Debug)]
pub(crate) struct Membership {
    own: Option<LogPosition>,
    /// Whether it receives its own messages although it has no incarnation, because the live ones have other rules.
    has_other_rules: bool,
    heard: BTreeMap<LogPosition, Heard>,
    /// When this replica last heard of itself.
    own_heard_at: Duration,
    /// Since when it has heard of itself without a pause.
    own_heard_since: Duration,
    heartbeat_at: Duration,
    proposed_at: Duration,
}

#[derive(Debug)]
struct Heard {
    at: Duration,
    position: LogPosition,
    /// Its newest checkpoint.
    checkpoint: Option<NewestCheckpoint>,
}

impl Membership {
    pub(crate) const fn new(now: Duration) -> Self {
        Self {
            own: None,
            has_other_rules: false,
            heard: BTreeMap::new(),
            own_heard_at: now,
            own_heard_since: now,
            heartbeat_at: now,
            proposed_at: now,
        }
    }

    /// This replica has a new incarnation, or none for the time being.
    pub(crate) fn set_own(&mut self, incarnation: Option<LogPosition>, now: Duration) {
        self.own = incarnation;
        self.has_other_rules = false;
        self.own_heard_since = now;
    }

    /// A message of an incarnation that lives was applied at `position`.
    pub(crate) fn on_message(&mut self, incarnation: LogPosition, position: LogPosition, now: Duration) {
        let checkpoint = self.heard.get(&incarnation).and_then(|heard| heard.checkpoint);
        let heard = Heard {
            at: now,
            position,
            checkpoint,
        };
        self.heard.insert(incarnation, heard);
        if self.own == Some(incarnation) {
            self.on_own(now);
        }
    }

    fn on_own(&mut self, now: Duration) {
        if now > self.own_heard_at + CUT_OFF {
            self.own_heard_since = now;
        }
        self.own_heard_at = now;
    }

    /// The command log has this replica's first message, but the live ones have other rules. If they have died, nobody else may be
    /// there to say so.
    pub(crate) fn on_refused(&mut self, now: Duration) {
        if !std::mem::replace(&mut self.has_other_rules, true) {
            self.own_heard_since = now;
        }
        self.on_own(now);
    }

    /// An incarnation that lives has said which its newest checkpoint is.
    pub(crate) fn on_checkpoint(&mut self, incarnation: LogPosition, checkpoint: Option<NewestCheckpoint>) {
        if let Some(heard) = self.heard.get_mut(&incarnation) {
            heard.checkpoint = checkpoint;
        }
    }

    /// The newest position that the checkpoints of two replicas have, so that the death of one disk loses nothing.
    pub(crate) fn safe_position(&self) -> Option<LogPosition> {
        safe_position(self.heard.values().filter_map(|heard| heard.checkpoint))
    }

    /// Whether no replica lives that is older than this one.
    pub(crate) fn is_oldest(&self) -> bool {
        self.own.is_some() && self.heard.keys().next() == self.own.as_ref()
    }

    pub(crate) fn on_fenced(&mut self, incarnation: LogPosition) {
        self.heard.remove(&incarnation);
    }

    /// How many replicas live.
    pub(crate) fn live(&self) -> usize {
        self.heard.len()
    }

    /// How long this replica has not heard of itself.
    pub(crate) fn own_silence(&self, now: Duration) -> Duration {
        now.saturating_sub(self.own_heard_at)
    }

    /// Whether it is time to write a heartbeat.
    pub(crate) fn is_heartbeat_due(&mut self, now: Duration) -> bool {
        let is_due = self.own.is_some() && now >= self.heartbeat_at + HEARTBEAT;
        if is_due {
            self.heartbeat_at = now;
        }
        is_due
    }

    /// Those that are to be fenced. Only a replica that has heard of itself through a whole lease knows that others were silent.
    pub(crate) fn poll_silent(&mut self, now: Duration) -> Vec<Content> {
        let is_hearing = (self.own.is_some() || self.has_other_rules)
            && now >= self.own_heard_since + LEASE
            && now <= self.own_heard_at + CUT_OFF;
        if !is_hearing || now < self.proposed_at + HEARTBEAT {
            return Vec::new();
        }
        let silent = self.heard.iter().filter(|(_, heard)| now >= heard.at + LEASE);
        let fences: Vec<_> = silent
            .map(|(incarnation, heard)| Content::Fence {
                incarnation: *incarnation,
                seen: heard.position,
            })
            .collect();
        if !fences.is_empty() {
            self.proposed_at = now;
        }
        fences
    }
}

/// The newest position that two of these checkpoints have, in different directories. They are by ascending incarnation: what a replica
/// had before it was restarted can be damaged.
pub(crate) fn safe_position(checkpoints: impl Iterator<Item = NewestCheckpoint>) -> Option<LogPosition> {
    let newest: BTreeMap<u64, LogPosition> = checkpoints
        .map(|checkpoint| (checkpoint.directory, checkpoint.position))
        .collect();
    let mut positions: Vec<LogPosition> = newest.into_values().collect();
    positions.sort_unstable();
    positions.iter().rev().nth(1).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_safe_once_two_directories_have_it() {
        let safe = |checkpoints: &[(u64, u64)]| {
            let checkpoint = checkpoints.iter().map(|(directory, position)| NewestCheckpoint {
                directory: *directory,
                position: LogPosition::new(*position),
            });
            safe_position(checkpoint).map(LogPosition::get)
        };
        assert_eq!(safe(&[]), None);
        // Two incarnations of one replica.
        assert_eq!(safe(&[(1, 7), (1, 9)]), None);
        assert_eq!(safe(&[(1, 9), (2, 7), (1, 5)]), Some(5));
        assert_eq!(safe(&[(1, 9), (2, 7), (3, 8)]), Some(8));
    }
}
