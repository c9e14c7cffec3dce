//! From a client's JOIN to a join request.

use super::error::RpcError;
use crate::domain::{Join, Name, ParticipantId, RoomName, Sequence, Timestamp, TraceContext};
use crate::hub::{JoinRequest, ResumePoint};
use crate::proto::{self, JoinMsgLeave};

/// Validates a client's JOIN. A client that sets none of the fields from 9 up cannot resume.
pub(super) fn join_request(message: JoinMsgLeave) -> Result<JoinRequest, RpcError> {
    let is_resumable = uses_newer_fields(&message);
    let room = RoomName::try_from(message.room.as_str()).map_err(|error| RpcError::Name("room", error))?;
    let name =
        Name::try_from(message.client_name.as_str()).map_err(|error| RpcError::Name("client_name", error))?;
    let join = Join {
        id: ParticipantId::from_wire(message.id),
        name,
        timestamp: Timestamp(message.timestamp),
        is_resumable,
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

impl From<proto::ResumePoint> for ResumePoint {
    fn from(point: proto::ResumePoint) -> Self {
        Self {
            epoch: point.epoch,
            sequence: Sequence::new(point.sequence),
        }
    }
}

/// A client that sets none of the fields from 9 up gets exactly the messages of the first version.
fn uses_newer_fields(message: &JoinMsgLeave) -> bool {
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
    fn a_first_version_join_is_no_newer_one() {
        let join = JoinMsgLeave {
            id: 7,
            client_name: "Alex\n".into(),
            timestamp: 1,
            ..JoinMsgLeave::default()
        };
        let request = join_request(join.clone()).ok().unwrap();
        assert!(!request.join.is_resumable);
        assert_eq!(
            (request.room.as_str(), request.join.name.as_str()),
            ("lobby", "Alex")
        );
        for newer in [
            JoinMsgLeave {
                room: "lobby".into(),
                ..join.clone()
            },
            JoinMsgLeave {
                wants_welcome: true,
                ..join.clone()
            },
            JoinMsgLeave {
                resume: Some(proto::ResumePoint::default()),
                ..join
            },
        ] {
            assert!(join_request(newer).ok().unwrap().join.is_resumable);
        }
    }
}
