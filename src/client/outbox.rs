//! What was said and is not acknowledged yet.

use std::collections::VecDeque;

use super::message_id::MessageId;
use crate::proto::{NoticeCode, ServerMessage};

/// The messages that are not settled, oldest first, at most as many as it was made for: the window that bounds what a
/// sender has outstanding. `T` is what the sender wants back when a message is settled.
///
/// The oldest of them are on their way, the others wait to be sent; [`rewind`](Self::rewind) makes all of them wait
/// again, in the same order.
#[derive(Debug)]
pub struct Outbox<T> {
    pending: VecDeque<Pending<T>>,
    capacity: usize,
    /// How many of them are on their way.
    sent: usize,
}

/// A message that is not settled.
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
            sent: 0,
        }
    }

    /// Whether another message may be put in.
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

    /// Keeps a message until it is settled. It is for the sender to ask [`has_room`](Self::has_room) before.
    pub fn put(&mut self, message_id: MessageId, item: T) {
        debug_assert!(self.has_room(), "the sender asks before it puts in");
        self.pending.push_back(Pending { message_id, item });
    }

    /// Whether a message waits to be sent.
    #[must_use]
    pub fn has_unsent(&self) -> bool {
        self.sent < self.pending.len()
    }

    /// The next message that waits to be sent; from now on it is on its way.
    pub fn send(&mut self) -> Option<&Pending<T>> {
        let next = self.pending.get(self.sent)?;
        self.sent += 1;
        Some(next)
    }

    /// Nothing is on its way any more: whatever is not settled waits to be sent again.
    pub const fn rewind(&mut self) {
        self.sent = 0;
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
        if place < self.sent {
            self.sent -= 1;
        }
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
        outbox.put(first.clone(), 1);
        assert!(outbox.has_room());
        outbox.put(second.clone(), 2);
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
        outbox.put(long.clone(), "long");
        outbox.put(repeated.clone(), "repeated");
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

    #[test]
    fn what_is_not_settled_is_sent_again_in_the_same_order() {
        let ids: Vec<MessageId> = (0..4).map(|_| MessageId::random()).collect();
        let mut outbox = Outbox::new(4);
        for (number, id) in ids.iter().enumerate() {
            outbox.put(id.clone(), number);
        }
        let send = |outbox: &mut Outbox<usize>| outbox.send().map(|pending| pending.item);
        assert_eq!(
            [send(&mut outbox), send(&mut outbox), send(&mut outbox)],
            [Some(0), Some(1), Some(2)]
        );
        outbox.settle(&echo(&ids[1]));
        outbox.rewind();
        assert_eq!([send(&mut outbox), send(&mut outbox)], [Some(0), Some(2)]);
        // What is settled meanwhile is not sent again.
        outbox.settle(&echo(&ids[0]));
        outbox.settle(&echo(&ids[3]));
        assert!(!outbox.has_unsent());
        assert_eq!(send(&mut outbox), None);
        assert_eq!(outbox.len(), 1);
    }
}
