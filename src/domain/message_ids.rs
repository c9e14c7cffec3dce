//! A room's memory of message ids.

use std::collections::{HashMap, VecDeque};
use std::hash::{DefaultHasher, Hash, Hasher};

use super::limits::MESSAGE_IDS_REMEMBERED;
use super::{MessageId, Sequence, Text};

/// The newest [`MESSAGE_IDS_REMEMBERED`] message ids of a room, with where their messages stand.
#[derive(Debug, Clone, Default)]
pub(super) struct MessageIds {
    known: HashMap<MessageId, Original>,
    oldest_first: VecDeque<MessageId>,
}

#[derive(Debug, Clone, Copy)]
struct Original {
    sequence: Sequence,
    /// Tells whether a repeat has the same text. Two texts of one hash would be taken for the same: the sender of the
    /// second, who used an id twice, is answered with the first.
    text: u64,
}

/// What is known of a message id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Known {
    /// The same message, at this place.
    Same(Sequence),
    /// Another text, at this place.
    Other(Sequence),
}

impl MessageIds {
    pub(super) fn find(&self, id: &MessageId, text: &Text) -> Option<Known> {
        self.known.get(id).map(|original| {
            if original.text == fingerprint(text) {
                Known::Same(original.sequence)
            } else {
                Known::Other(original.sequence)
            }
        })
    }

    pub(super) fn remember(&mut self, id: MessageId, text: &Text, sequence: Sequence) {
        if self.oldest_first.len() >= MESSAGE_IDS_REMEMBERED
            && let Some(oldest) = self.oldest_first.pop_front()
        {
            self.known.remove(&oldest);
        }
        self.oldest_first.push_back(id.clone());
        self.known.insert(
            id,
            Original {
                sequence,
                text: fingerprint(text),
            },
        );
    }
}

fn fingerprint(text: &Text) -> u64 {
    // The keys of a new `DefaultHasher` are fixed, so this is the same in every process of this build; it is never
    // stored.
    let mut hasher = DefaultHasher::new();
    text.hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(n: usize) -> MessageId {
        MessageId::try_from(format!("m{n}").as_str()).unwrap()
    }

    #[test]
    fn the_oldest_ids_are_forgotten_first() {
        let text = Text::parse("hi", 9).unwrap();
        let mut ids = MessageIds::default();
        for n in 0..=MESSAGE_IDS_REMEMBERED {
            ids.remember(id(n), &text, Sequence::new(n as u64 + 1));
        }
        assert_eq!(ids.find(&id(0), &text), None);
        assert_eq!(ids.find(&id(1), &text), Some(Known::Same(Sequence::new(2))));
        assert_eq!(ids.known.len(), MESSAGE_IDS_REMEMBERED);
        let other = Text::parse("ho", 9).unwrap();
        assert_eq!(ids.find(&id(1), &other), Some(Known::Other(Sequence::new(2))));
    }
}
