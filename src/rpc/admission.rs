//! From a client's JOIN to what a room understands.

use super::status::StreamError;
use crate::domain::{Join, Name, ParticipantId, RoomName, Sequence, Timestamp, TraceContext};
use crate::hub::{Entrance, Place};
use crate::proto::{JoinMsgLeave, ResumePoint};

/// A JOIN that is well-formed.
pub(super) struct Admission {
    pub(super) room: RoomName,
    pub(super) entrance: Entrance,
    /// Whether the client knows of anything that the first version did not have.
    pub(super) is_newer: bool,
}

impl TryFrom<JoinMsgLeave> for Admission {
    type Error = StreamError;

    fn try_from(message: JoinMsgLeave) -> Result<Self, StreamError> {
        let is_newer = uses_newer_fields(&message);
        let room =
            RoomName::try_from(message.room.as_str()).map_err(|error| StreamError::Name("room", error))?;
        let name = Name::try_from(message.client_name.as_str())
            .map_err(|error| StreamError::Name("client_name", error))?;
        let join = Join {
            id: ParticipantId::chosen(message.id),
            name,
            timestamp: Timestamp(message.timestamp),
            is_resumable: is_newer,
            trace: TraceContext::parse(&message.traceparent, &message.tracestate),
        };
        let entrance = Entrance {
            join,
            token: message.session_token,
            seen: message.resume.map(place),
            history: message.history,
        };
        Ok(Self {
            room,
            entrance,
            is_newer,
        })
    }
}

/// The place in a log that a client names.
pub(super) fn place(point: ResumePoint) -> Place {
    Place {
        epoch: point.epoch,
        sequence: Sequence::new(point.sequence),
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
        let admission = Admission::try_from(join.clone()).ok().unwrap();
        assert!(!admission.is_newer);
        assert_eq!(
            (admission.room.as_str(), admission.entrance.join.name.as_str()),
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
                resume: Some(ResumePoint::default()),
                ..join
            },
        ] {
            assert!(Admission::try_from(newer).ok().unwrap().is_newer);
        }
    }
}
