//! The state of the order's fold at one position, as checkpoints have it.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::message::StreamSequence;
use super::rules::{FoldVersions, OrderRules};
use crate::domain::encoding::{Encoding, encode_struct};
use crate::domain::{Attachment, DecodeError, Epoch, Room, RoomName, Sequence};

/// Everything of a [`StateMachine`](super::state_machine::StateMachine) but its rooms.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct OrderState {
    pub(crate) applied: StreamSequence,
    pub(crate) digest: u64,
    /// The newest first.
    pub(crate) digests: Vec<u64>,
    pub(crate) rules: Option<OrderRules>,
    /// The version of the fold that is active.
    pub(crate) version: u64,
    pub(crate) newest_epoch: Option<Epoch>,
    /// Those that live, the oldest first.
    pub(crate) incarnations: Vec<IncarnationState>,
    /// By room and participant.
    pub(crate) attachments: Vec<AttachmentState>,
    /// By room.
    pub(crate) ends: Vec<EndState>,
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) struct IncarnationState {
    pub(crate) position: StreamSequence,
    pub(crate) nonce: u64,
    pub(crate) last_number: u64,
    pub(crate) seen: StreamSequence,
    pub(crate) supported: FoldVersions,
}

/// A current attachment, and the incarnation that serves it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct AttachmentState {
    pub(crate) room: RoomName,
    pub(crate) attachment: Attachment,
    pub(crate) server: StreamSequence,
}

/// A room that is to end, and the incarnations that have agreed to it since its newest event.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct EndState {
    pub(crate) room: RoomName,
    pub(crate) last: Sequence,
    pub(crate) agreed: Vec<StreamSequence>,
}

/// A room of the order.
#[derive(Debug, Clone)]
pub(crate) struct ReplicatedRoom {
    pub(crate) epoch: Epoch,
    pub(crate) room: Room,
}

/// The rooms of the order at one position.
pub(crate) type RoomStates = BTreeMap<RoomName, Arc<ReplicatedRoom>>;

encode_struct! {
    OrderState { applied, digest, digests, rules, version, newest_epoch, incarnations, attachments, ends }
    IncarnationState { position, nonce, last_number, seen, supported }
    AttachmentState { room, attachment, server }
    EndState { room, last, agreed }
}
