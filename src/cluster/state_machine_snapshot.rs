//! The state of the command log's fold at one position, as checkpoints have it.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::message::LogPosition;
use super::rules::{ClusterRules, FoldVersions};
use crate::domain::encoding::{Encoding, encode_struct};
use crate::domain::{Attachment, DecodeError, Epoch, Room, RoomName, Sequence};

/// Everything of a [`StateMachine`](super::state_machine::StateMachine) but its rooms.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct StateMachineSnapshot {
    pub(crate) applied: LogPosition,
    pub(crate) digest: u64,
    /// The newest first.
    pub(crate) digests: Vec<u64>,
    pub(crate) rules: Option<ClusterRules>,
    /// The version of the fold that is active.
    pub(crate) version: u64,
    pub(crate) newest_epoch: Option<Epoch>,
    /// The live ones, the oldest first.
    pub(crate) incarnations: Vec<IncarnationState>,
    /// By room and participant.
    pub(crate) attachments: Vec<AttachmentState>,
    /// By room.
    pub(crate) ends: Vec<EndState>,
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) struct IncarnationState {
    pub(crate) position: LogPosition,
    pub(crate) nonce: u64,
    pub(crate) last_number: u64,
    pub(crate) seen: LogPosition,
    pub(crate) supported: FoldVersions,
}

/// A current attachment, and the incarnation that serves it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct AttachmentState {
    pub(crate) room: RoomName,
    pub(crate) attachment: Attachment,
    pub(crate) incarnation: LogPosition,
}

/// A room that is to end, and the incarnations that have agreed to it since its newest event.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct EndState {
    pub(crate) room: RoomName,
    pub(crate) last: Sequence,
    pub(crate) agreed: Vec<LogPosition>,
}

/// A room of the command log.
#[derive(Debug, Clone)]
pub(crate) struct ReplicatedRoom {
    pub(crate) epoch: Epoch,
    pub(crate) room: Room,
}

/// The rooms of the command log at one position.
pub(crate) type ReplicatedRooms = BTreeMap<RoomName, Arc<ReplicatedRoom>>;

encode_struct! {
    StateMachineSnapshot { applied, digest, digests, rules, version, newest_epoch, incarnations, attachments, ends }
    IncarnationState { position, nonce, last_number, seen, supported }
    AttachmentState { room, attachment, incarnation }
    EndState { room, last, agreed }
}
