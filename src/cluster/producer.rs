//! What one replica writes, so that each of its commands is applied exactly once.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::message::{Content, LogPosition, Message, RoomCommand};
use super::rules::{ClusterRules, FoldVersions};
use crate::domain::encoding::max_encoded_command;
use crate::domain::{Rules, WallTime};

/// How many batches are on their way at a time. While they are, the next one grows.
const MAX_IN_FLIGHT: usize = 2;

/// The longest batch in bytes, unless one command alone is longer.
const MAX_BATCH: usize = 64 << 10;

/// No more commands are accepted while those that wait have this size, in bytes.
const MAX_WAITING: usize = 4 << 20;

/// A batch that is not received from the command log in this time is sent again.
const RESEND_AFTER: Duration = Duration::from_secs(1);

/// The least time between two times that the same message is sent, whatever asks for it: one that is refused is not sent again at the
/// speed of the network.
const RESEND_INTERVAL: Duration = Duration::from_millis(100);

/// What a message has beside its commands, in bytes, at most.
const MESSAGE_OVERHEAD: usize = 256;

/// Numbers the batches of a replica and sends them until they are committed, that is, received from the command log.
///
/// Only a message that is received from the command log is known to be in it: an acknowledgement can be lost, and a message can be stored
/// although an error was reported. The command log may thus have a batch twice, or one before the one that precedes it; the
/// [`StateMachine`](super::state_machine::StateMachine) applies each once and in turn.
///
/// Times are measured from an arbitrary moment, by a clock that never goes back.
#[derive(Debug)]
pub(crate) struct Producer {
    rules: ClusterRules,
    supported: FoldVersions,
    name: Arc<str>,
    nonce: u64,
    incarnation: Option<LogPosition>,
    waiting: VecDeque<(usize, RoomCommand)>,
    /// The size of the commands that wait.
    waiting_len: usize,
    /// By ascending number.
    in_flight: VecDeque<InFlight>,
    /// How many batches were sent again since this was last asked for.
    resent: usize,
    last_number: u64,
    /// When the timer for sending again was last started; `None` if nothing was sent.
    sent_at: Option<Duration>,
    /// Whether what is not committed must be sent again, although it is not time yet.
    is_resend_asked: bool,
}

/// A batch that was sent and is not committed.
#[derive(Debug)]
struct InFlight {
    number: u64,
    /// When it was sent first, and when last.
    sent_at: Duration,
    last_sent_at: Duration,
    encoded: Bytes,
}

impl Producer {
    /// A replica that has not written anything yet. No other may have the same `nonce`.
    pub(crate) const fn new(
        rules: ClusterRules,
        supported: FoldVersions,
        name: Arc<str>,
        nonce: u64,
    ) -> Self {
        Self {
            rules,
            supported,
            name,
            nonce,
            incarnation: None,
            waiting: VecDeque::new(),
            waiting_len: 0,
            in_flight: VecDeque::new(),
            resent: 0,
            is_resend_asked: false,
            last_number: 0,
            sent_at: None,
        }
    }

    /// The replica's incarnation, once its first message is committed.
    pub(crate) const fn incarnation(&self) -> Option<LogPosition> {
        self.incarnation
    }

    /// Whether another command is accepted.
    pub(crate) const fn has_room(&self) -> bool {
        self.waiting_len < MAX_WAITING
    }

    pub(crate) const fn nonce(&self) -> u64 {
        self.nonce
    }

    /// Adds a command. The caller adds no more while there is no [room](Self::has_room).
    pub(crate) fn push(&mut self, command: RoomCommand) {
        let len = command.encoded_len();
        self.waiting_len += len;
        self.waiting.push_back((len, command));
    }

    /// The messages to send now, in this order.
    pub(crate) fn poll(&mut self, now: Duration, at: WallTime) -> Vec<Bytes> {
        let patience = if self.is_resend_asked {
            RESEND_INTERVAL
        } else {
            RESEND_AFTER
        };
        let Some(incarnation) = self.incarnation else {
            if self.sent_at.is_some_and(|sent_at| now < sent_at + patience) {
                return Vec::new();
            }
            (self.sent_at, self.is_resend_asked) = (Some(now), false);
            let content = Content::Hello {
                nonce: self.nonce,
                rules: self.rules,
                supported: self.supported,
                name: Arc::clone(&self.name),
                version: env!("CARGO_PKG_VERSION").into(),
            };
            return vec![Message { at, content }.encode()];
        };
        let is_due = self.is_resend_asked || self.sent_at.is_none_or(|sent_at| now >= sent_at + patience);
        let mut messages = Vec::new();
        if is_due {
            let is_old = |batch: &&mut InFlight| now >= batch.last_sent_at + RESEND_INTERVAL;
            for batch in self.in_flight.iter_mut().filter(is_old) {
                batch.last_sent_at = now;
                messages.push(batch.encoded.clone());
            }
            // Those that were sent a moment ago have their turn later.
            self.is_resend_asked &= self.in_flight.iter().any(|batch| batch.last_sent_at < now);
        }
        self.resent += messages.len();
        while self.in_flight.len() < MAX_IN_FLIGHT && !self.waiting.is_empty() {
            self.last_number += 1;
            let number = self.last_number;
            let commands = self.take_commands();
            let content = Content::Batch {
                incarnation,
                number,
                commands,
            };
            let encoded = Message { at, content }.encode();
            messages.push(encoded.clone());
            self.in_flight.push_back(InFlight {
                number,
                sent_at: now,
                last_sent_at: now,
                encoded,
            });
        }
        if !messages.is_empty() && (is_due || messages.len() == self.in_flight.len()) {
            self.sent_at = Some(now);
        }
        messages
    }

    fn take_commands(&mut self) -> Vec<RoomCommand> {
        let (mut commands, mut batch_len) = (Vec::new(), 0);
        while let Some((len, _)) = self.waiting.front()
            && (batch_len == 0 || batch_len + len <= MAX_BATCH)
            && let Some((len, command)) = self.waiting.pop_front()
        {
            batch_len += len;
            commands.push(command);
        }
        self.waiting_len -= batch_len;
        commands
    }

    /// Something that was sent must be sent again: the command log has refused it, its connection is gone, or what was sent after it was ignored
    /// because it is missing.
    pub(crate) const fn resend(&mut self) {
        self.is_resend_asked = true;
    }

    /// The longest message that a replica with these rules writes, in bytes.
    pub(crate) fn max_message_len(rules: &Rules) -> usize {
        let longest_command = max_encoded_command(rules.max_message_chars);
        longest_command.max(MAX_BATCH) + MESSAGE_OVERHEAD
    }

    /// A message of the kind [`Content::Hello`] was applied at `position`. Returns whether it is the one that this replica waits for.
    pub(crate) fn on_hello(&mut self, nonce: u64, position: LogPosition) -> bool {
        // A second one may come late, when the first is known.
        let is_own = self.nonce == nonce && self.incarnation.is_none();
        if is_own {
            self.incarnation = Some(position);
            (self.sent_at, self.is_resend_asked) = (None, false);
        }
        is_own
    }

    /// A batch of this incarnation was applied. Returns how long ago it was sent.
    pub(crate) fn on_batch(&mut self, number: u64, now: Duration) -> Option<Duration> {
        let mut took = None;
        while let Some(batch) = self.in_flight.pop_front_if(|oldest| oldest.number <= number) {
            self.sent_at = Some(now);
            took = Some(now.saturating_sub(batch.sent_at));
        }
        took
    }

    /// How many batches are not committed.
    pub(crate) fn in_flight(&self) -> usize {
        self.in_flight.len()
    }

    /// The size of the commands that wait to be sent, in bytes.
    pub(crate) const fn waiting_len(&self) -> usize {
        self.waiting_len
    }

    /// How many batches were sent again since the last call.
    pub(crate) const fn take_resent(&mut self) -> usize {
        std::mem::replace(&mut self.resent, 0)
    }

    /// This incarnation was fenced: what is not committed will never count. Begins a new one, with this nonce. Of what was
    /// pushed nothing remains.
    pub(crate) fn on_fenced(&mut self, nonce: u64) {
        *self = Self::new(self.rules, self.supported, Arc::clone(&self.name), nonce);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{Command, Post, RoomName, Text, Timestamp};

    const MS: Duration = Duration::from_millis(1);

    fn producer(rules: Rules, nonce: u64) -> Producer {
        let rules = ClusterRules::new(rules, 10);
        Producer::new(rules, FoldVersions::supported(), "r1".into(), nonce)
    }

    fn command(text: &str, max_chars: usize) -> RoomCommand {
        let message = crate::domain::Message {
            timestamp: Timestamp(i64::MIN),
            text: Text::parse(text, max_chars),
            message_id: None,
            trace: None,
        };
        let post = Post {
            name: "poster".try_into().unwrap(),
            origin: crate::domain::Origin::default(),
            message,
        };
        RoomCommand {
            room: RoomName::default(),
            epoch: None,
            request: 1,
            command: Command::Post(post),
        }
    }

    #[test]
    fn the_same_message_is_not_sent_again_at_once_whoever_asks_for_it() {
        let mut producer = producer(Rules::default(), 1);
        let at = WallTime::default();
        let mut sent = 0;
        // A server refuses what it is sent, once a millisecond.
        for now in 0..1_000 {
            sent += producer.poll(now * MS, at).len();
            producer.resend();
        }
        assert_eq!(sent, 10, "of the first message");
        producer.on_hello(1, LogPosition::new(1));
        producer.push(command("hi", 10));
        sent = 0;
        for now in 1_000..2_000 {
            sent += producer.poll(now * MS, at).len();
            producer.resend();
        }
        assert_eq!(sent, 10, "of a batch");
        // What is asked for once comes once, as soon as it may.
        producer.poll(2_000 * MS, at);
        producer.resend();
        let times: Vec<u32> = (2_001..2_900)
            .filter(|now| !producer.poll(*now * MS, at).is_empty())
            .collect();
        assert_eq!(times, [2_100]);
    }

    #[test]
    fn a_new_batch_does_not_wait_for_those_that_are_sent_again() {
        let mut producer = producer(Rules::default(), 1);
        let at = WallTime::default();
        producer.on_hello(1, LogPosition::new(1));
        producer.push(command("one", 10));
        assert_eq!(producer.poll(MS, at).len(), 1);
        producer.resend();
        producer.push(command("two", 10));
        assert_eq!(producer.poll(2 * MS, at).len(), 1, "the new one");
        assert_eq!(
            producer.poll(101 * MS, at).len(),
            1,
            "the first, which is old enough"
        );
        assert_eq!(producer.poll(102 * MS, at).len(), 1, "the second");
        assert_eq!(producer.poll(103 * MS, at).len(), 0);
    }

    #[test]
    fn the_longest_message_is_no_longer_than_said() {
        for chars in [1, 2_000, 100_000] {
            let rules = Rules {
                max_message_chars: chars,
                ..Rules::default()
            };
            let mut producer = producer(rules, u64::MAX);
            producer.on_hello(u64::MAX, LogPosition::new(u64::MAX));
            let longest = "\u{10fffd}".repeat(chars);
            assert!(Text::parse(&longest, chars).is_ok());
            producer.push(command(&longest, chars));
            for _ in 0..100_000 / chars.min(1_000) {
                producer.push(command(&longest, chars));
            }
            for message in producer.poll(MS, WallTime::from_millis(u64::MAX)) {
                assert!(
                    message.len() <= Producer::max_message_len(&rules),
                    "{}",
                    message.len()
                );
            }
        }
    }
}
