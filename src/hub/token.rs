//! Session tokens: what a client shows to prove that a stay in a room is its own.
//!
//! A token says which stay it is for (the participant's id and the place of its JOIN) and carries a keyed hash of that,
//! the room and the log's epoch. The server keeps no list of tokens: it needs its secret, which is as old as its data
//! directory, and the roster, which says whether the stay goes on.

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

use crate::domain::{Epoch, ParticipantId, RoomName, Sequence};

/// Bytes of the hash that a token carries: more than anybody can guess.
const TAG_LEN: usize = 16;

/// Makes and checks the session tokens of one server.
#[derive(Clone)]
pub(super) struct Tokens {
    keyed: Hmac<Sha256>,
}

impl Tokens {
    /// Tokens of this secret.
    pub(super) fn new(secret: &[u8; 32]) -> Self {
        // HMAC takes keys of any length.
        let keyed = Hmac::new_from_slice(secret).expect("a key of 32 bytes is one");
        Self { keyed }
    }

    /// The token of the stay of `participant` that began at `since`.
    pub(super) fn make(
        &self,
        room: &RoomName,
        epoch: Epoch,
        participant: ParticipantId,
        since: Sequence,
    ) -> String {
        let tag = self
            .keyed(room, epoch, participant, since)
            .finalize()
            .into_bytes();
        let tag: String = tag[..TAG_LEN].iter().map(|byte| format!("{byte:02x}")).collect();
        format!("{:x}.{:x}.{tag}", participant.get(), since.get())
    }

    /// Which stay `token` is for, if this server made it for this log.
    pub(super) fn check(
        &self,
        token: &str,
        room: &RoomName,
        epoch: Epoch,
    ) -> Option<(ParticipantId, Sequence)> {
        let mut parts = token.split('.');
        let (participant, since, tag) = (parts.next()?, parts.next()?, parts.next()?);
        let participant = u32::from_str_radix(participant, 16).ok()?;
        let participant = ParticipantId::chosen(participant.cast_signed())?;
        let since = Sequence::new(u64::from_str_radix(since, 16).ok()?);
        if parts.next().is_some() || tag.len() != 2 * TAG_LEN || !tag.is_ascii() {
            return None;
        }
        let mut shown = [0; TAG_LEN];
        for (index, byte) in shown.iter_mut().enumerate() {
            *byte = u8::from_str_radix(tag.get(2 * index..2 * index + 2)?, 16).ok()?;
        }
        // Compares in constant time.
        self.keyed(room, epoch, participant, since)
            .verify_truncated_left(&shown)
            .ok()?;
        Some((participant, since))
    }

    fn keyed(
        &self,
        room: &RoomName,
        epoch: Epoch,
        participant: ParticipantId,
        since: Sequence,
    ) -> Hmac<Sha256> {
        let mut keyed = self.keyed.clone();
        keyed.update(&epoch.get().to_be_bytes());
        keyed.update(&participant.get().to_be_bytes());
        keyed.update(&since.get().to_be_bytes());
        keyed.update(room.as_str().as_bytes());
        keyed
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::WallTime;

    #[test]
    fn a_token_is_for_one_stay_in_one_log_of_one_server() {
        let tokens = Tokens::new(&[7; 32]);
        let (tea, milk) = (
            RoomName::try_from("tea").unwrap(),
            RoomName::try_from("milk").unwrap(),
        );
        let (epoch, later) = (
            Epoch::created_at(WallTime::from_millis(5)),
            Epoch::created_at(WallTime::from_millis(6)),
        );
        for id in [1, -1, i32::MIN, 1_000_001] {
            let stay = (ParticipantId::chosen(id).unwrap(), Sequence::new(9));
            let token = tokens.make(&tea, epoch, stay.0, stay.1);
            assert_eq!(tokens.check(&token, &tea, epoch), Some(stay));
            assert_eq!(tokens.check(&token, &milk, epoch), None);
            assert_eq!(tokens.check(&token, &tea, later), None);
            assert_eq!(Tokens::new(&[8; 32]).check(&token, &tea, epoch), None);
            assert_eq!(tokens.check(&token.replace(".9.", ".8."), &tea, epoch), None);
        }
        for none in ["", ".", "..", "1.9.", "1.9.zz", "é.9.00", &"0".repeat(5_000)] {
            assert_eq!(tokens.check(none, &tea, epoch), None);
        }
    }
}
