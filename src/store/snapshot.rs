//! The encoding of room snapshots: a protobuf message that is never sent over the wire.

use prost::Message;

use super::StoreError;
use crate::domain::limits::MAX_REASON_CHARS;
use crate::domain::{
    Ban, BanTarget, LamportTime, Name, Participant, ParticipantId, Sequence, Snapshot, Text, WallTime,
};

#[derive(Clone, PartialEq, Message)]
struct SnapshotProto {
    #[prost(int64, tag = "1")]
    time: i64,
    #[prost(uint64, tag = "2")]
    last: u64,
    #[prost(int32, tag = "3")]
    next_id: i32,
    #[prost(message, repeated, tag = "4")]
    participants: Vec<ParticipantProto>,
    /// Absent in snapshots of earlier versions, which did not record it.
    #[prost(bool, optional, tag = "5")]
    has_messages: Option<bool>,
    /// Zero in snapshots of earlier versions.
    #[prost(int64, tag = "6")]
    recovery_time: i64,
    #[prost(message, repeated, tag = "7")]
    bans: Vec<BanProto>,
    #[prost(bool, tag = "8")]
    is_closed: bool,
}

/// One of `name`, `subject` and `address` is set.
#[derive(Clone, PartialEq, Message)]
struct BanProto {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    subject: String,
    #[prost(string, tag = "3")]
    address: String,
    /// In milliseconds since 1970.
    #[prost(uint64, tag = "4")]
    until: u64,
    #[prost(string, tag = "5")]
    reason: String,
}

impl From<&Ban> for BanProto {
    fn from(ban: &Ban) -> Self {
        let mut proto = Self {
            until: ban.until.as_millis(),
            reason: ban.reason.as_str().into(),
            ..Self::default()
        };
        match &ban.target {
            BanTarget::Name(name) => proto.name = name.to_string(),
            BanTarget::Subject(subject) => proto.subject = subject.to_string(),
            BanTarget::Address(address) => proto.address = address.to_string(),
        }
        proto
    }
}

impl BanProto {
    fn decode(self) -> Option<Ban> {
        let target = if !self.name.is_empty() {
            BanTarget::Name(Name::from_stored(&self.name)?)
        } else if !self.subject.is_empty() {
            BanTarget::Subject(self.subject.into())
        } else {
            BanTarget::Address(self.address.parse().ok()?)
        };
        Some(Ban {
            target,
            until: WallTime::from_millis(self.until),
            reason: Text::parse(&self.reason, MAX_REASON_CHARS).ok()?,
        })
    }
}

#[derive(Clone, PartialEq, Message)]
struct ParticipantProto {
    #[prost(int32, tag = "1")]
    id: i32,
    #[prost(string, tag = "2")]
    name: String,
    #[prost(int64, tag = "3")]
    join_time: i64,
    #[prost(uint64, tag = "4")]
    join_sequence: u64,
    #[prost(bool, tag = "5")]
    is_resumable: bool,
}

/// A snapshot for [`Append::snapshot`](super::Append::snapshot).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EncodedSnapshot {
    /// The newest event that it covers.
    pub last: Sequence,
    /// Until when the log must not end although nobody uses it: [`Snapshot::needed_until`].
    pub needed_until: WallTime,
    /// Decoded by [`decode_snapshot`].
    pub bytes: bytes::Bytes,
}

/// Encodes a snapshot.
#[must_use]
pub fn encode_snapshot(snapshot: &Snapshot) -> EncodedSnapshot {
    let participants = snapshot
        .participants
        .iter()
        .map(|(id, participant)| ParticipantProto {
            id: id.get(),
            name: participant.name.to_string(),
            join_time: participant.join_time.get(),
            join_sequence: participant.join_sequence.get(),
            is_resumable: participant.is_resumable,
        });
    let proto = SnapshotProto {
        time: snapshot.time.get(),
        last: snapshot.last.get(),
        next_id: snapshot.next_id,
        participants: participants.collect(),
        has_messages: Some(snapshot.has_messages),
        recovery_time: snapshot.recovery_time.get(),
        bans: snapshot.bans.iter().map(BanProto::from).collect(),
        is_closed: snapshot.is_closed,
    };
    EncodedSnapshot {
        last: snapshot.last,
        needed_until: snapshot.needed_until(),
        bytes: proto.encode_to_vec().into(),
    }
}

/// Decodes a snapshot that [`encode_snapshot`] encoded.
///
/// # Errors
///
/// Fails if the bytes are damaged.
pub fn decode_snapshot(bytes: &[u8]) -> Result<Snapshot, StoreError> {
    let proto = SnapshotProto::decode(bytes).ok();
    let snapshot = proto.and_then(|proto| {
        let participants = proto.participants.into_iter().map(|participant| {
            let ParticipantProto {
                id,
                name,
                join_time,
                join_sequence,
                is_resumable,
            } = participant;
            let participant = Participant {
                name: Name::from_stored(&name)?,
                join_time: LamportTime::from_wire(join_time)?,
                join_sequence: Sequence::new(join_sequence),
                is_resumable,
            };
            Some((ParticipantId::from_wire(id)?, participant))
        });
        Some(Snapshot {
            time: LamportTime::from_wire(proto.time)?,
            last: Sequence::new(proto.last),
            next_id: proto.next_id,
            participants: participants.collect::<Option<_>>()?,
            // Where it is unknown there may have been messages.
            has_messages: proto.has_messages.unwrap_or(true),
            recovery_time: LamportTime::from_wire(proto.recovery_time.max(proto.time))?,
            bans: proto
                .bans
                .into_iter()
                .map(BanProto::decode)
                .collect::<Option<_>>()?,
            is_closed: proto.is_closed,
        })
    });
    snapshot.ok_or(StoreError::Record {
        sequence: Sequence::ZERO,
        why: "its snapshot is malformed",
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decoding_reverses_encoding() {
        let participant = Participant {
            // A name that is no longer accepted.
            name: Name::from_stored("Ada: I agree").unwrap(),
            join_time: LamportTime::from_wire(7).unwrap(),
            join_sequence: Sequence::new(3),
            is_resumable: true,
        };
        let snapshot = Snapshot {
            time: LamportTime::from_wire(9).unwrap(),
            last: Sequence::new(5),
            next_id: 1_000_002,
            participants: vec![(ParticipantId::from_wire(-4).unwrap(), participant)],
            has_messages: false,
            recovery_time: LamportTime::from_wire(11).unwrap(),
            bans: [
                BanTarget::Name(Name::from_stored("Bob: no").unwrap()),
                BanTarget::Subject("bob@example".into()),
                BanTarget::Address("2001:db8::".parse().unwrap()),
            ]
            .map(|target| Ban {
                target,
                until: WallTime::from_millis(99),
                reason: Text::parse("spam", MAX_REASON_CHARS).unwrap(),
            })
            .into(),
            is_closed: true,
        };
        assert_eq!(decode_snapshot(&encode_snapshot(&snapshot).bytes), Ok(snapshot));
        assert!(decode_snapshot(b"nonsense").is_err());
    }

    #[test]
    fn a_snapshot_of_an_earlier_version_may_have_had_messages() {
        let earlier = SnapshotProto {
            last: 5,
            ..SnapshotProto::default()
        };
        assert!(decode_snapshot(&earlier.encode_to_vec()).unwrap().has_messages);
    }
}
