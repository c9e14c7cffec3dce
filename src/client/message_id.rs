//! What a message is called before it has a place in the room.

use std::fmt;

/// A message's name, chosen by its sender and echoed on its broadcast: 128 random bits as 32 hexadecimal digits, so that
/// no two messages of a room share one and nobody guesses one in advance.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct MessageId(String);

impl MessageId {
    /// A new one.
    #[must_use]
    pub fn random() -> Self {
        Self(format!("{:032x}", rand::random::<u128>()))
    }

    /// As it goes over the wire.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn each_is_another_and_fits_the_contract() {
        let ids: HashSet<MessageId> = (0..1000).map(|_| MessageId::random()).collect();
        assert_eq!(ids.len(), 1000);
        for id in &ids {
            assert_eq!(id.as_str().len(), 32);
            assert!(id.as_str().bytes().all(|digit| digit.is_ascii_hexdigit()));
        }
    }
}
