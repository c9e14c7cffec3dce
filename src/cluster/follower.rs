//! Which messages a replica applies next, and when it asks for those that did not come by themselves.

use std::time::Duration;

use super::message::Place;

/// Messages that do not come by themselves in this time are asked for: there may have been some.
const SILENCE: Duration = Duration::from_millis(300);

/// An answer that does not come in this time is asked for again, maybe from another server.
const FETCH_TIMEOUT: Duration = Duration::from_secs(1);

/// After an answer that did not have everything, the next question waits for so long: the server lags.
const RETRY: Duration = Duration::from_millis(20);

/// The stream does not have the next message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Missing {
    /// It must be in it.
    #[error("the stream has no message at {expected}; the next one is at {found}")]
    Hole { expected: Place, found: Place },
    /// It was removed: other replicas have a checkpoint that is newer.
    #[error(
        "the stream begins at {found} and this replica needs {expected}; it must start again, with a checkpoint of another one"
    )]
    Truncated { expected: Place, found: Place },
}

/// Follows the order: accepts each of its messages once and in turn.
///
/// The stream's leader republishes what it has stored. That comes fast, but not always; what is missing is read from the stream.
#[derive(Debug)]
pub(crate) struct Follower {
    next: Place,
    /// The newest message that is known to be in the stream; `None` if nothing is known of the stream yet.
    known: Option<Place>,
    /// When the newest message was accepted, or an answer was complete.
    progress_at: Duration,
    /// Nothing is asked for before.
    fetch_after: Duration,
    fetching_since: Option<Duration>,
    is_caught_up: bool,
    /// Whether a message was accepted.
    has_begun: bool,
}

impl Follower {
    /// Continues after `applied`.
    pub(crate) const fn new(applied: Place, now: Duration) -> Self {
        Self {
            next: applied.next(),
            known: None,
            progress_at: now,
            fetch_after: now,
            fetching_since: None,
            is_caught_up: false,
            has_begun: false,
        }
    }

    /// Whether the replica has once accepted everything that a server had. Before that it must not write: it would not hear itself, and
    /// so be silent.
    pub(crate) const fn is_caught_up(&self) -> bool {
        self.is_caught_up
    }

    /// A message was republished. Returns whether it is the next one.
    pub(crate) fn accept_published(&mut self, place: Place, now: Duration) -> bool {
        self.known = self.known.max(Some(place));
        self.accept(place, now)
    }

    /// A message was read. `previous` is the one before it in the answer; [`Place::default`] for the first. Returns whether it is the next
    /// one.
    ///
    /// # Errors
    ///
    /// Between the two the stream has no message, but the next one belongs there. If none was accepted yet, the stream begins later.
    pub(crate) fn accept_fetched(
        &mut self,
        place: Place,
        previous: Place,
        now: Duration,
    ) -> Result<bool, Missing> {
        if place > self.next && previous < self.next {
            let (expected, found) = (self.next, place);
            return Err(if previous == Place::default() && !self.has_begun {
                Missing::Truncated { expected, found }
            } else {
                Missing::Hole { expected, found }
            });
        }
        // A higher one whose predecessor was lost on the way is asked for again.
        Ok(self.accept(place, now))
    }

    /// How many messages are known to be in the stream and were not accepted.
    pub(crate) fn lag(&self) -> u64 {
        self.known
            .map_or(0, |known| known.next().get().saturating_sub(self.next.get()))
    }

    fn accept(&mut self, place: Place, now: Duration) -> bool {
        let is_next = place == self.next;
        if is_next {
            self.has_begun = true;
            self.next = place.next();
            self.progress_at = now;
            self.is_caught_up |= self.known.is_some_and(|known| self.next > known);
        }
        is_next
    }

    /// From which place on to read, if it is time to.
    pub(crate) fn poll_fetch(&mut self, now: Duration) -> Option<Place> {
        let is_waiting = self
            .fetching_since
            .is_some_and(|since| now < since + FETCH_TIMEOUT);
        let is_due = self.known.is_none_or(|known| self.next <= known) || now >= self.progress_at + SILENCE;
        if is_waiting || !is_due || now < self.fetch_after {
            return None;
        }
        self.fetching_since = Some(now);
        Some(self.next)
    }

    /// An answer is complete. `last` is the newest message that the stream has, as far as the server knows that has answered.
    pub(crate) fn on_fetched(&mut self, last: Place, now: Duration) {
        self.fetching_since = None;
        self.progress_at = now;
        self.fetch_after = now + RETRY;
        self.known = self.known.max(Some(last));
        self.is_caught_up |= self.known.is_some_and(|known| self.next > known);
    }
}
