//! Which messages a replica applies next, and when it fetches those that were not pushed.

use std::collections::VecDeque;
use std::time::Duration;

use super::fingerprint::Fingerprint;
use super::message::LogPosition;

/// When no message was pushed for this time, messages are fetched: some may have been lost on the way.
const SILENCE: Duration = Duration::from_millis(300);

/// An answer that does not come in this time is asked for again, maybe from another server.
const FETCH_TIMEOUT: Duration = Duration::from_secs(1);

/// After an answer that did not have everything, the next question waits for so long: the server lags.
const RETRY: Duration = Duration::from_millis(20);

/// How long a verification holds. For so long after the stream was seen to have the newest accepted message, what it republishes is taken to
/// follow that message. Longer than a question and its answer take after a [`SILENCE`].
const VERIFICATION_TIMEOUT: Duration = Duration::from_secs(2);

/// How many of the newest messages are remembered. Those that are fetched and then pushed are among them.
const REMEMBERED: usize = 1_024;

/// The stream does not have what it must.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Missing {
    /// It must be in it.
    #[error("the stream has no message at {expected}; the next one is at {found}")]
    Gap {
        expected: LogPosition,
        found: LogPosition,
    },
    /// It was removed: other replicas have a checkpoint that is newer.
    #[error(
        "the stream begins at {found} and this replica goes on at {expected}; it must start again, with a checkpoint of another one"
    )]
    Truncated {
        expected: LogPosition,
        found: LogPosition,
    },
    /// It is another stream.
    #[error(
        "the stream has another message at {0} than this replica has applied: it was removed and made anew, or restored to an earlier \
         message. Stop all replicas and remove their data directories"
    )]
    Replaced(LogPosition),
}

/// Follows the command log: accepts each of its messages once and in turn.
///
/// The stream's leader republishes what it has stored. That comes fast, but not always; what is missing is read from the stream, from the
/// newest message on that was accepted. As long as that is the same one, the stream is.
#[derive(Debug)]
pub(crate) struct StreamReader {
    next: LogPosition,
    /// The newest messages that were accepted, the newest first.
    accepted: VecDeque<Fingerprint>,
    /// When the stream was last seen to have the newest one.
    verified_at: Option<Duration>,
    /// Whether the server that has answered last does not have the newest one.
    is_behind: bool,
    /// The newest message that is known to be in the stream; `None` if nothing is known of the stream yet.
    known: Option<LogPosition>,
    /// When the newest message was accepted, or an answer was complete.
    progress_at: Duration,
    /// Nothing is asked for before.
    fetch_after: Duration,
    fetching_since: Option<Duration>,
    is_caught_up: bool,
}

impl StreamReader {
    /// Continues after `applied`, a message with this fingerprint.
    pub(crate) fn new(applied: LogPosition, fingerprint: Fingerprint, now: Duration) -> Self {
        let accepted = (applied > LogPosition::default()).then_some(fingerprint);
        Self {
            next: applied.next(),
            accepted: accepted.into_iter().collect(),
            verified_at: None,
            is_behind: false,
            known: None,
            progress_at: now,
            fetch_after: now,
            fetching_since: None,
            is_caught_up: false,
        }
    }

    /// The fingerprint of the newest message that was accepted; that of no message if there is none.
    pub(crate) fn newest(&self) -> Fingerprint {
        self.accepted.front().copied().unwrap_or_default()
    }

    /// Whether the replica has once accepted everything that a server had. Before that it must not write: it would not receive its own messages, and
    /// so be silent.
    pub(crate) const fn is_caught_up(&self) -> bool {
        self.is_caught_up
    }

    /// Whether the stream has shown lately that it has the newest message that was accepted. Otherwise the replica must not write: it may
    /// be another stream.
    pub(crate) fn is_verified(&self, now: Duration) -> bool {
        self.accepted.is_empty() || self.verified_at.is_some_and(|at| now < at + VERIFICATION_TIMEOUT)
    }

    /// The newest message that was accepted, if the server that has answered last does not have it.
    pub(crate) fn missing(&self) -> Option<LogPosition> {
        self.is_behind.then(|| self.next.previous())
    }

    /// The connection was lost, and with it the answer that is waited for. What comes now may be of another stream.
    pub(crate) const fn reconnected(&mut self, now: Duration) {
        self.clear_verified();
        self.fetching_since = None;
        self.fetch_after = now;
    }

    const fn clear_verified(&mut self) {
        self.verified_at = None;
    }

    /// A message was republished. Returns whether it is the next one.
    ///
    /// # Errors
    ///
    /// It is not the one that was accepted.
    pub(crate) fn accept_published(
        &mut self,
        position: LogPosition,
        fingerprint: Fingerprint,
        now: Duration,
    ) -> Result<bool, Missing> {
        self.known = self.known.max(Some(position));
        if position < self.next {
            if !self.compare(position, fingerprint, now)? {
                // It comes late, or the stream begins again.
                self.clear_verified();
            }
            return Ok(false);
        }
        Ok(self.is_verified(now) && self.accept(position, fingerprint, now))
    }

    /// A message was read. `previous` is the one before it in the answer; [`LogPosition::default`] for the first. Returns whether it is the next
    /// one.
    ///
    /// # Errors
    ///
    /// It is not the one that was accepted. Or the stream has no message between the two, but the next one belongs there. Or it begins later.
    pub(crate) fn accept_fetched(
        &mut self,
        position: LogPosition,
        previous: LogPosition,
        fingerprint: Fingerprint,
        now: Duration,
    ) -> Result<bool, Missing> {
        if position < self.next {
            self.compare(position, fingerprint, now)?;
            return Ok(false);
        }
        let (expected, found) = (self.next, position);
        // An answer begins with the newest message that was accepted, unless the stream does not have it any more.
        let is_first = previous == LogPosition::default();
        if position > self.next && previous < self.next {
            return Err(if is_first {
                Missing::Truncated { expected, found }
            } else {
                Missing::Gap { expected, found }
            });
        }
        if !self.is_verified(now) {
            return if is_first && position == self.next {
                Err(Missing::Truncated { expected, found })
            } else {
                // The beginning of the answer was lost on the way.
                Ok(false)
            };
        }
        // A higher one whose predecessor was lost on the way is asked for again.
        Ok(self.accept(position, fingerprint, now))
    }

    /// Compares a message with the one that was accepted at its position. Returns whether that is remembered.
    fn compare(
        &mut self,
        position: LogPosition,
        fingerprint: Fingerprint,
        now: Duration,
    ) -> Result<bool, Missing> {
        let newest = self.next.previous();
        let age = newest.get().saturating_sub(position.get());
        let accepted = usize::try_from(age).ok().and_then(|age| self.accepted.get(age));
        let Some(accepted) = accepted else {
            return Ok(false);
        };
        if !accepted.matches(fingerprint) {
            return Err(Missing::Replaced(position));
        }
        if position == newest {
            self.set_verified(now);
        }
        Ok(true)
    }

    const fn set_verified(&mut self, now: Duration) {
        self.verified_at = Some(now);
        self.is_behind = false;
    }

    /// How many messages are known to be in the stream and were not accepted.
    pub(crate) fn lag(&self) -> u64 {
        self.known
            .map_or(0, |known| known.next().get().saturating_sub(self.next.get()))
    }

    fn accept(&mut self, position: LogPosition, fingerprint: Fingerprint, now: Duration) -> bool {
        let is_next = position == self.next;
        if is_next {
            self.accepted.truncate(REMEMBERED - 1);
            self.accepted.push_front(fingerprint);
            self.set_verified(now);
            self.next = position.next();
            self.progress_at = now;
            self.is_caught_up |= self.known.is_some_and(|known| self.next > known);
        }
        is_next
    }

    /// From which position on to read, if it is time to.
    pub(crate) fn poll_fetch(&mut self, now: Duration) -> Option<LogPosition> {
        let is_waiting = self
            .fetching_since
            .is_some_and(|since| now < since + FETCH_TIMEOUT);
        let is_due = self.known.is_none_or(|known| self.next <= known)
            || !self.is_verified(now)
            || now >= self.progress_at + SILENCE;
        if is_waiting || !is_due || now < self.fetch_after {
            return None;
        }
        self.fetching_since = Some(now);
        Some(if self.accepted.is_empty() {
            self.next
        } else {
            self.next.previous()
        })
    }

    /// An answer is complete. `last` is the newest message that the stream has, as far as the server knows that has answered.
    pub(crate) fn on_fetched(&mut self, last: LogPosition, now: Duration) {
        self.fetching_since = None;
        self.progress_at = now;
        self.is_behind = last < self.next.previous();
        self.fetch_after = now
            + if self.is_behind && !self.is_verified(now) {
                SILENCE
            } else {
                RETRY
            };
        self.known = self.known.max(Some(last));
        self.is_caught_up |= !self.is_behind && self.known.is_some_and(|known| self.next > known);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    /// A message of a stream of this name.
    fn message(stream: &str, position: u64) -> (LogPosition, Fingerprint) {
        let payload = format!("{stream} {position}");
        (
            LogPosition::new(position),
            Fingerprint::new(payload.as_bytes(), Some(position)),
        )
    }

    fn published(
        stream_reader: &mut StreamReader,
        stream: &str,
        position: u64,
        now: u32,
    ) -> Result<bool, Missing> {
        let (position, fingerprint) = message(stream, position);
        stream_reader.accept_published(position, fingerprint, now * MS)
    }

    /// Answers with these messages. Returns how many were accepted.
    fn fetched(
        stream_reader: &mut StreamReader,
        stream: &str,
        positions: &[u64],
        now: u32,
    ) -> Result<usize, Missing> {
        let (mut previous, mut accepted) = (LogPosition::default(), 0);
        for position in positions {
            let (position, fingerprint) = message(stream, *position);
            accepted +=
                usize::from(stream_reader.accept_fetched(position, previous, fingerprint, now * MS)?);
            previous = position;
        }
        stream_reader.on_fetched(previous, now * MS);
        Ok(accepted)
    }

    /// One that has accepted three messages.
    fn stream_reader() -> StreamReader {
        let mut stream_reader =
            StreamReader::new(LogPosition::default(), Fingerprint::default(), Duration::ZERO);
        assert_eq!(fetched(&mut stream_reader, "a", &[1, 2], 0), Ok(2));
        assert_eq!(published(&mut stream_reader, "a", 3, 1), Ok(true));
        assert!(stream_reader.is_caught_up() && stream_reader.is_verified(MS));
        stream_reader
    }

    #[test]
    fn a_new_connection_is_asked_at_once() {
        let mut stream_reader = stream_reader();
        let now = 1_000 * MS;
        assert_eq!(stream_reader.poll_fetch(now), Some(LogPosition::new(3)));
        // The answer was lost with the connection.
        stream_reader.reconnected(now + MS);
        assert!(!stream_reader.is_verified(now + MS));
        assert_eq!(stream_reader.poll_fetch(now + MS), Some(LogPosition::new(3)));
        assert_eq!(stream_reader.poll_fetch(now + MS), None);
        assert_eq!(fetched(&mut stream_reader, "a", &[3], 1_002), Ok(0));
        assert!(stream_reader.is_verified(now + 2 * MS));
    }

    #[test]
    fn what_comes_twice_is_no_other_stream() {
        let mut stream_reader = stream_reader();
        for position in [1, 3, 2] {
            assert_eq!(published(&mut stream_reader, "a", position, 2), Ok(false));
        }
        assert_eq!(fetched(&mut stream_reader, "a", &[2, 3, 4], 3), Ok(1));
        assert!(stream_reader.is_verified(4 * MS));
    }

    #[test]
    fn a_stream_that_begins_again_is_noticed_with_its_first_message() {
        let replaced = Err(Missing::Replaced(LogPosition::new(1)));
        assert_eq!(published(&mut stream_reader(), "b", 1, 2), replaced);
    }

    #[test]
    fn a_stream_that_has_grown_beyond_the_place_is_noticed_whatever_comes_first() {
        // Nothing was heard while it did.
        let mut stream_reader = stream_reader();
        let late = 3_000;
        assert_eq!(published(&mut stream_reader, "b", 4, late), Ok(false));
        assert_eq!(stream_reader.poll_fetch(late * MS), Some(LogPosition::new(3)));
        let replaced = Err(Missing::Replaced(LogPosition::new(3)));
        assert_eq!(fetched(&mut stream_reader, "b", &[3, 4], late), replaced);
    }

    #[test]
    fn a_replica_does_not_write_while_the_stream_does_not_have_its_newest_message() {
        let applied = LogPosition::new(5_000);
        let mut stream_reader = StreamReader::new(applied, message("a", 5_000).1, Duration::ZERO);
        assert!(!stream_reader.is_verified(Duration::ZERO));
        assert_eq!(fetched(&mut stream_reader, "a", &[5_000], 1), Ok(0));
        assert!(stream_reader.is_verified(MS) && stream_reader.is_caught_up());
        // Too old to be compared.
        assert_eq!(published(&mut stream_reader, "b", 1, 2), Ok(false));
        assert!(!stream_reader.is_verified(2 * MS));
        assert_eq!(stream_reader.poll_fetch(50 * MS), Some(applied));
        stream_reader.on_fetched(LogPosition::new(1), 51 * MS);
        assert_eq!(stream_reader.missing(), Some(applied));
        // And nothing that follows is accepted.
        assert_eq!(published(&mut stream_reader, "b", 5_001, 52), Ok(false));
        // It was only late.
        assert_eq!(fetched(&mut stream_reader, "a", &[5_000, 5_001], 400), Ok(1));
        assert!(stream_reader.is_verified(400 * MS) && stream_reader.missing().is_none());
    }

    #[test]
    fn a_replica_that_begins_with_a_checkpoint_compares_it_with_the_stream_first() {
        let mut stream_reader = StreamReader::new(LogPosition::new(3), message("a", 3).1, Duration::ZERO);
        assert_eq!(published(&mut stream_reader, "b", 4, 1), Ok(false));
        assert_eq!(stream_reader.poll_fetch(MS), Some(LogPosition::new(3)));
        let replaced = Err(Missing::Replaced(LogPosition::new(3)));
        assert_eq!(fetched(&mut stream_reader, "b", &[3, 4], 2), replaced);
        // Whether one that does not have it any more is the same is unknown.
        let mut stream_reader = StreamReader::new(LogPosition::new(3), message("a", 3).1, Duration::ZERO);
        let (expected, found) = (LogPosition::new(4), LogPosition::new(4));
        let truncated = Err(Missing::Truncated { expected, found });
        assert_eq!(fetched(&mut stream_reader, "a", &[4, 5], 2), truncated);
    }

    #[test]
    fn what_follows_a_lost_beginning_of_an_answer_is_asked_for_again() {
        let mut stream_reader = StreamReader::new(LogPosition::new(3), message("a", 3).1, Duration::ZERO);
        let (position, fingerprint) = message("a", 4);
        let accepted = stream_reader.accept_fetched(position, LogPosition::new(3), fingerprint, MS);
        assert_eq!(accepted, Ok(false));
        assert_eq!(fetched(&mut stream_reader, "a", &[3, 4], 2), Ok(1));
        // A message is missing in the middle.
        let (expected, found) = (LogPosition::new(5), LogPosition::new(6));
        let hole = Err(Missing::Gap { expected, found });
        assert_eq!(fetched(&mut stream_reader, "a", &[4, 6], 3), hole);
    }
}
