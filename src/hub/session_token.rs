//! Session tokens, with which a client proves that a session is its own.
//!
//! A token names a session (the participant's id and the sequence of its JOIN) and carries an HMAC-SHA-256 of it, the room
//! and the log's epoch. The server stores no tokens: it needs its secret, which lives in the data directory, and the roster,
//! which tells whether the session has ended.

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

use crate::domain::{Epoch, ParticipantId, RoomName, Sequence, Session};

/// The length of the truncated HMAC, in bytes: 128 bits cannot be guessed.
const TAG_LEN: usize = 16;

/// Issues and verifies the session tokens of one server, or of all replicas of a cluster, which have the same secret.
#[derive(Clone)]
pub(super) struct SessionTokens {
    mac: Hmac<Sha256>,
}

impl SessionTokens {
    pub(super) fn new(secret: &[u8; 32]) -> Self {
        // HMAC accepts keys of any length.
        let mac = Hmac::new_from_slice(secret).expect("a key of 32 bytes is valid");
        Self { mac }
    }

    pub(super) fn issue(&self, room: &RoomName, epoch: Epoch, session: Session) -> String {
        let tag = self.mac(room, epoch, session).finalize().into_bytes();
        let tag: String = tag[..TAG_LEN].iter().map(|byte| format!("{byte:02x}")).collect();
        let Session {
            participant,
            join_sequence,
        } = session;
        format!("{:x}.{:x}.{tag}", participant.get(), join_sequence.get())
    }

    /// The session that `token` names, if this server issued the token for this log.
    pub(super) fn verify(&self, token: &str, room: &RoomName, epoch: Epoch) -> Option<Session> {
        let mut parts = token.split('.');
        let (participant, join_sequence, tag) = (parts.next()?, parts.next()?, parts.next()?);
        let participant = u32::from_str_radix(participant, 16).ok()?;
        let session = Session {
            participant: ParticipantId::from_wire(participant.cast_signed())?,
            join_sequence: Sequence::new(u64::from_str_radix(join_sequence, 16).ok()?),
        };
        if parts.next().is_some() || tag.len() != 2 * TAG_LEN || !tag.is_ascii() {
            return None;
        }
        let mut presented = [0; TAG_LEN];
        for (index, byte) in presented.iter_mut().enumerate() {
            *byte = u8::from_str_radix(tag.get(2 * index..2 * index + 2)?, 16).ok()?;
        }
        // Compares in constant time.
        self.mac(room, epoch, session)
            .verify_truncated_left(&presented)
            .ok()?;
        Some(session)
    }

    fn mac(&self, room: &RoomName, epoch: Epoch, session: Session) -> Hmac<Sha256> {
        let mut mac = self.mac.clone();
        mac.update(&epoch.get().to_be_bytes());
        mac.update(&session.participant.get().to_be_bytes());
        mac.update(&session.join_sequence.get().to_be_bytes());
        mac.update(room.as_str().as_bytes());
        mac
    }
}

/// Fuzz target: a token that the server did not issue is never valid, and one that it issued is.
#[cfg(any(feature = "fuzzing", test))]
pub(crate) fn fuzz_tokens(bytes: &[u8]) {
    use crate::domain::WallTime;

    let tokens = SessionTokens::new(&[7; 32]);
    let (room, epoch) = (RoomName::default(), Epoch::created_at(WallTime::from_millis(1)));
    let presented = String::from_utf8_lossy(bytes);
    if let Some(session) = tokens.verify(&presented, &room, epoch) {
        // Numbers may have leading zeros, and digits may be in upper case.
        let issued = tokens.issue(&room, epoch, session);
        let (tag, presented_tag) = (issued.rsplit('.').next(), presented.rsplit('.').next());
        assert_eq!(tag.map(str::to_owned), presented_tag.map(str::to_lowercase));
    }
    if let Some((id, rest)) = bytes.split_first_chunk()
        && let Some(sequence) = rest.first_chunk()
        && let Some(participant) = ParticipantId::from_wire(i32::from_be_bytes(*id))
    {
        let session = Session {
            participant,
            join_sequence: Sequence::new(u64::from_be_bytes(*sequence)),
        };
        let issued = tokens.issue(&room, epoch, session);
        assert_eq!(tokens.verify(&issued, &room, epoch), Some(session));
        assert_eq!(
            tokens.verify(&issued, &room, epoch.renewed(WallTime::default())),
            None
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::WallTime;

    #[test]
    fn a_token_is_valid_for_one_session_in_one_log_of_one_server() {
        let tokens = SessionTokens::new(&[7; 32]);
        let (tea, milk) = (
            RoomName::try_from("tea").unwrap(),
            RoomName::try_from("milk").unwrap(),
        );
        let (epoch, later) = (
            Epoch::created_at(WallTime::from_millis(5)),
            Epoch::created_at(WallTime::from_millis(6)),
        );
        for id in [1, -1, i32::MIN, 1_000_001] {
            let session = Session {
                participant: ParticipantId::from_wire(id).unwrap(),
                join_sequence: Sequence::new(9),
            };
            let token = tokens.issue(&tea, epoch, session);
            assert_eq!(tokens.verify(&token, &tea, epoch), Some(session));
            assert_eq!(tokens.verify(&token, &milk, epoch), None);
            assert_eq!(tokens.verify(&token, &tea, later), None);
            assert_eq!(SessionTokens::new(&[8; 32]).verify(&token, &tea, epoch), None);
            assert_eq!(tokens.verify(&token.replace(".9.", ".8."), &tea, epoch), None);
        }
        for malformed in ["", ".", "..", "1.9.", "1.9.zz", "é.9.00", &"0".repeat(5_000)] {
            assert_eq!(tokens.verify(malformed, &tea, epoch), None);
        }
    }
}
