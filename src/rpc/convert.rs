//! Conversions between wire messages and domain values.

use std::net::SocketAddr;
use std::sync::Arc;

use super::address_budgets::address_key;
use super::error::RpcError;
use crate::auth::{Caller, Right};
use crate::domain::{
    Join, MessageId, MessageIdError, Name, Origin, ParticipantId, RoomName, Sequence, Timestamp, TraceContext,
};
use crate::hub::{JoinRequest, ResumePoint};
use crate::proto::{self, JoinMsgLeave};
use crate::store::Bounds;

pub(super) fn room_name(raw: &str) -> Result<RoomName, RpcError> {
    RoomName::try_from(raw).map_err(|error| RpcError::invalid_name("room", &error))
}

pub(super) fn client_name(raw: &str) -> Result<Name, RpcError> {
    Name::try_from(raw).map_err(|error| RpcError::invalid_name("client_name", &error))
}

/// `None` if the client gave no message id.
pub(super) fn message_id(raw: &str) -> Option<Result<MessageId, MessageIdError>> {
    (!raw.is_empty()).then(|| MessageId::try_from(raw))
}

impl From<proto::ResumePoint> for ResumePoint {
    fn from(point: proto::ResumePoint) -> Self {
        Self {
            epoch: point.epoch,
            sequence: Sequence::new(point.sequence),
        }
    }
}

/// The first retained sequence; 0 if the log retains no events.
pub(super) fn first_sequence(bounds: Bounds) -> u64 {
    if bounds.last < bounds.first {
        0
    } else {
        bounds.first.get()
    }
}

/// Who makes a call, as far as the moderators of `room` are concerned.
pub(super) fn origin(caller: &Caller, peer: Option<SocketAddr>, room: &RoomName) -> Origin {
    Origin {
        subject: caller.identity().map(|identity| Arc::clone(&identity.subject)),
        address: Some(address_key(peer.map(|peer| peer.ip()))),
        is_moderator: caller.check(Right::Moderate, room).is_ok(),
    }
}

/// Validates a JOIN.
pub(super) fn join_request(message: JoinMsgLeave) -> Result<JoinRequest, RpcError> {
    let room = room_name(&message.room)?;
    let join = Join {
        session: None,
        id: ParticipantId::from_wire(message.id),
        name: client_name(&message.client_name)?,
        timestamp: Timestamp(message.timestamp),
        owner: None,
        origin: Origin::default(),
        is_resumable: uses_extensions(&message),
        trace: TraceContext::parse(&message.traceparent, &message.tracestate),
    };
    let token = message.session_token;
    Ok(JoinRequest {
        room,
        join,
        session_token: (!token.is_empty()).then_some(token),
        resume_point: message.resume.map(ResumePoint::from),
        history: message.history,
    })
}

/// Whether a JOIN sets any field that the first version of the protocol did not have (numbers 9 and up). If it sets none, the
/// client receives only messages that the first version had.
fn uses_extensions(message: &JoinMsgLeave) -> bool {
    let JoinMsgLeave {
        id: _,
        client_name: _,
        timestamp: _,
        msg: _,
        r#type: _,
        room,
        message_id,
        resume,
        session_token,
        history,
        traceparent,
        tracestate,
        wants_welcome,
    } = message;
    *wants_welcome
        || *history != 0
        || resume.is_some()
        || [room, message_id, session_token, traceparent, tracestate]
            .iter()
            .any(|field| !field.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_join_is_resumable_if_it_sets_a_field_that_the_first_version_did_not_have() {
        let first_version = JoinMsgLeave {
            id: 7,
            client_name: "Alex\n".into(),
            timestamp: 1,
            ..JoinMsgLeave::default()
        };
        let request = join_request(first_version.clone()).unwrap();
        assert!(!request.join.is_resumable);
        assert_eq!(
            (request.room.as_str(), request.join.name.as_str()),
            ("lobby", "Alex")
        );
        for extended in [
            JoinMsgLeave {
                room: "lobby".into(),
                ..first_version.clone()
            },
            JoinMsgLeave {
                wants_welcome: true,
                ..first_version.clone()
            },
            JoinMsgLeave {
                resume: Some(proto::ResumePoint::default()),
                ..first_version
            },
        ] {
            assert!(join_request(extended).unwrap().join.is_resumable);
        }
    }
}
