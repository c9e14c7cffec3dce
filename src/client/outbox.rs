//! What was said and is not acknowledged yet.

use std::collections::VecDeque;

use super::message_id::MessageId;
use crate::proto::{NoticeCode, ServerMessage};

/// The texts on their way, oldest first, at most as many as it was made for: the window that bounds what a sender has
/// outstanding. `T` is what the sender wants back when a message is settled.
#[derive(Debug)]
pub struct Outbox<T> {
    pending: VecDeque<Pending<T>>,
    capacity: usize,
}

/// A message on its way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pending<T> {
    /// Its id.
    pub message_id: MessageId,
    /// What the sender knows it by.
    pub item: T,
}

/// What became of a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Settled<T> {
    /// It was broadcast.
    Acknowledged(T),
    /// It was not broadcast, and never will be under this id.
    Refused(T),
}

impl<T> Outbox<T> {
    /// An empty one with room for `capacity` messages.
    #[must_use]
    pub const fn new(capacity: usize) -> Self {
        Self {
            pending: VecDeque::new(),
            capacity,
        }
    }

    /// Whether another message may be sent.
    #[must_use]
    pub fn has_room(&self) -> bool {
        self.pending.len() < self.capacity
    }

    /// Whether everything is settled.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.pending.is_empty()
    }

    /// How many are not settled.
    #[must_use]
    pub fn len(&self) -> usize {
        self.pending.len()
    }

    /// The oldest that is not settled.
    #[must_use]
    pub fn oldest(&self) -> Option<&Pending<T>> {
        self.pending.front()
    }

    /// Keeps a message that was sent. It is for the sender to ask [`has_room`](Self::has_room) before.
    pub fn sent(&mut self, message_id: MessageId, item: T) {
        debug_assert!(self.has_room(), "the sender asks before it sends");
        self.pending.push_back(Pending { message_id, item });
    }

    /// Which message `message` settles, if any.
    pub fn settle(&mut self, message: &ServerMessage) -> Option<Settled<T>> {
        if message.message_id.is_empty() {
            return None;
        }
        // The server answers in the order in which it was told, so this is the first one nearly always.
        let place = self
            .pending
            .iter()
            .position(|pending| pending.message_id.as_str() == message.message_id)?;
        let item = self.pending.remove(place)?.item;
        let refused = message
            .notice
            .as_ref()
            .is_some_and(|notice| notice.code() != NoticeCode::MessageRepeated);
        Some(if refused {
            Settled::Refused(item)
        } else {
            Settled::Acknowledged(item)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::Notice;

    fn echo(message_id: &MessageId) -> ServerMessage {
        ServerMessage {
            message_id: message_id.as_str().to_owned(),
            sequence: 7,
            ..ServerMessage::default()
        }
    }

    fn notice(message_id: &MessageId, code: NoticeCode) -> ServerMessage {
        ServerMessage {
            message_id: message_id.as_str().to_owned(),
            notice: Some(Notice {
                code: code.into(),
                ..Notice::default()
            }),
            ..ServerMessage::default()
        }
    }

    #[test]
    fn the_echo_is_the_acknowledgement_once() {
        let (first, second) = (MessageId::random(), MessageId::random());
        let mut outbox = Outbox::new(2);
        outbox.sent(first.clone(), 1);
        assert!(outbox.has_room());
        outbox.sent(second.clone(), 2);
        assert!(!outbox.has_room());
        assert_eq!(outbox.settle(&echo(&MessageId::random())), None);
        assert_eq!(outbox.settle(&ServerMessage::default()), None);
        assert_eq!(outbox.settle(&echo(&second)), Some(Settled::Acknowledged(2)));
        assert_eq!(outbox.settle(&echo(&second)), None);
        assert_eq!(outbox.oldest().map(|pending| pending.item), Some(1));
        assert_eq!(outbox.settle(&echo(&first)), Some(Settled::Acknowledged(1)));
        assert!(outbox.is_empty());
    }

    #[test]
    fn a_notice_is_a_refusal_unless_the_message_was_broadcast_before() {
        let (long, repeated) = (MessageId::random(), MessageId::random());
        let mut outbox = Outbox::new(2);
        outbox.sent(long.clone(), "long");
        outbox.sent(repeated.clone(), "repeated");
        assert_eq!(
            outbox.settle(&notice(&long, NoticeCode::MessageTooLong)),
            Some(Settled::Refused("long"))
        );
        assert_eq!(
            outbox.settle(&notice(&repeated, NoticeCode::MessageRepeated)),
            Some(Settled::Acknowledged("repeated"))
        );
        assert_eq!(outbox.len(), 0);
    }
}
