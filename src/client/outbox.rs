//! The messages of a session that the server has neither acknowledged nor rejected.

use std::collections::VecDeque;
use std::fmt::Debug;
use std::sync::Arc;

use crate::domain::{MessageId, TraceContext};

impl MessageId {
    /// Generates an id: 128 random bits as 32 hexadecimal digits, so that ids do not collide and cannot be guessed.
    #[must_use]
    pub fn random() -> Self {
        let digits = format!("{:032x}", rand::random::<u128>());
        Self::try_from(digits.as_str()).expect("32 hexadecimal digits are a valid message id")
    }
}

/// Traces one message that is sent with
/// [`Session::send_with_observer`](super::Session::send_with_observer) or
/// [`Publisher::publish_with_observer`](super::Publisher::publish_with_observer).
///
/// The methods are called on the task that sends the message, and must not block.
pub trait SendObserver: Debug + Send + Sync {
    /// Returns the W3C trace context to send with the message. Called before each transmission.
    fn trace_context(&self) -> TraceContext;
    /// Called when the message is sent, and again each time it is retransmitted. `timestamp` is the Lamport time of this
    /// transmission.
    fn on_sent(&self, timestamp: i64);
}

/// Sends this context with each transmission.
impl SendObserver for TraceContext {
    fn trace_context(&self) -> Self {
        self.clone()
    }

    fn on_sent(&self, _: i64) {}
}

/// The messages that the server has neither acknowledged nor rejected, oldest first.
///
/// The first [`sent`](Self::sent) of them are in flight; the others are waiting to be sent. [`rewind`](Self::rewind) makes
/// all of them wait again, in the same order.
#[derive(Debug)]
pub(super) struct Outbox {
    messages: VecDeque<PendingMessage>,
    sent: usize,
}

#[derive(Debug)]
pub(super) struct PendingMessage {
    pub(super) message_id: MessageId,
    pub(super) text: String,
    pub(super) observer: Option<Arc<dyn SendObserver>>,
}

impl Outbox {
    pub(super) const fn new() -> Self {
        Self {
            messages: VecDeque::new(),
            sent: 0,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.messages.len()
    }

    /// Queues a message under a new id and returns the id.
    pub(super) fn push(&mut self, text: String, observer: Option<Arc<dyn SendObserver>>) -> MessageId {
        let message_id = MessageId::random();
        self.messages.push_back(PendingMessage {
            message_id: message_id.clone(),
            text,
            observer,
        });
        message_id
    }

    pub(super) fn has_unsent(&self) -> bool {
        self.sent < self.messages.len()
    }

    /// Marks the next waiting message as in flight and returns it.
    pub(super) fn next_unsent(&mut self) -> Option<&PendingMessage> {
        let next = self.messages.get(self.sent)?;
        self.sent += 1;
        Some(next)
    }

    /// Marks all messages as waiting, because the connection they were sent on is lost.
    pub(super) const fn rewind(&mut self) {
        self.sent = 0;
    }

    /// The number of messages in flight.
    pub(super) const fn in_flight(&self) -> usize {
        self.sent
    }

    /// Marks the message with this id, and those after it, as waiting. Returns whether it was in the outbox.
    pub(super) fn requeue_from(&mut self, message_id: &str) -> bool {
        let index = self.index(message_id);
        self.sent = index.map_or(self.sent, |index| self.sent.min(index));
        index.is_some()
    }

    fn index(&self, message_id: &str) -> Option<usize> {
        // The server answers in order, so this is nearly always the first one.
        self.messages
            .iter()
            .position(|message| message.message_id.as_str() == message_id)
    }

    /// Removes the message with this id. Returns whether it was in the outbox.
    pub(super) fn remove(&mut self, message_id: &str) -> bool {
        let Some(index) = self.index(message_id) else {
            return false;
        };
        self.messages.remove(index);
        if index < self.sent {
            self.sent -= 1;
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    fn outbox(texts: &[&str]) -> (Outbox, Vec<MessageId>) {
        let mut outbox = Outbox::new();
        let ids = texts
            .iter()
            .map(|text| outbox.push((*text).to_owned(), None))
            .collect();
        (outbox, ids)
    }

    fn next(outbox: &mut Outbox) -> Option<&str> {
        outbox.next_unsent().map(|message| message.text.as_str())
    }

    #[test]
    fn random_ids_are_distinct_hexadecimal_numbers() {
        let ids: HashSet<MessageId> = (0..1000).map(|_| MessageId::random()).collect();
        assert_eq!(ids.len(), 1000);
        for id in &ids {
            assert_eq!(id.as_str().len(), 32);
            assert!(id.as_str().bytes().all(|digit| digit.is_ascii_hexdigit()));
        }
    }

    #[test]
    fn a_message_is_removed_once() {
        let (mut outbox, ids) = outbox(&["one", "two"]);
        assert!(!outbox.remove(MessageId::random().as_str()));
        assert!(!outbox.remove(""));
        assert!(outbox.remove(ids[1].as_str()));
        assert!(!outbox.remove(ids[1].as_str()));
        assert_eq!(outbox.len(), 1);
        assert_eq!(next(&mut outbox), Some("one"));
        assert!(outbox.remove(ids[0].as_str()));
        assert_eq!(outbox.len(), 0);
    }

    #[test]
    fn pending_messages_are_sent_again_in_the_same_order() {
        let (mut outbox, ids) = outbox(&["0", "1", "2", "3"]);
        for expected in ["0", "1", "2"] {
            assert_eq!(next(&mut outbox), Some(expected));
        }
        outbox.remove(ids[1].as_str());
        outbox.rewind();
        assert_eq!(next(&mut outbox), Some("0"));
        assert_eq!(next(&mut outbox), Some("2"));
        // Removed messages are not sent again.
        outbox.remove(ids[0].as_str());
        outbox.remove(ids[3].as_str());
        assert!(!outbox.has_unsent());
        assert_eq!(next(&mut outbox), None);
        assert_eq!(outbox.len(), 1);
    }
}
