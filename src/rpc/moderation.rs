//! What moderators ask for, validated.

use std::net::IpAddr;
use std::time::Duration;

use super::address_budgets::client_prefix;
use super::convert::client_name;
use super::error::RpcError;
use super::observer::ModerationAction;
use crate::auth::MAX_SUBJECT;
use crate::domain::limits::{MAX_BAN_TIME, MAX_REASON_CHARS};
use crate::domain::{Ban, BanTarget, Moderation, ParticipantId, RemoveTarget, Text, WallTime};
use crate::hub::frame;
use crate::proto::moderate_request::Action;
use crate::proto::moderation_target::Target;
use crate::proto::{self, ModerateRequest, ModerationTarget, RoomAction};
use crate::reason::Reason;

/// A moderator's decision, and what the audit log says about it.
pub(super) struct ModerationDecision {
    pub(super) moderation: Moderation,
    pub(super) action: ModerationAction,
    /// Whom it is about; empty if it is about the room.
    pub(super) target: String,
    /// Of a ban.
    pub(super) duration: Option<Duration>,
}

impl ModerationDecision {
    /// Validates a request that arrived at the time `at`.
    pub(super) fn parse(request: ModerateRequest, reason: Text, at: WallTime) -> Result<Self, RpcError> {
        let mut target = String::new();
        let mut duration = None;
        let action = request
            .action
            .ok_or_else(|| invalid("it has no action; set one"))?;
        let moderation = match action {
            Action::Remove(whom) => {
                let who = match whom.target {
                    Some(Target::ParticipantId(id)) => {
                        target = format!("participant {id}");
                        let id = ParticipantId::from_wire(id);
                        RemoveTarget::Participant(id.ok_or_else(|| invalid("no participant has the id 0"))?)
                    }
                    _ => RemoveTarget::All(ban_target(whom, &mut target)?),
                };
                Moderation::Remove { who, reason }
            }
            Action::Ban(ban) => {
                let time = ban_time(ban.duration)?;
                duration = Some(time);
                let until = Duration::from_millis(at.as_millis()) + time;
                // A whole second, because errors show seconds.
                let millis = until.as_secs().saturating_add(1).saturating_mul(1_000);
                Moderation::Ban(Ban {
                    target: ban_target(ban.target.unwrap_or_default(), &mut target)?,
                    until: WallTime::from_millis(millis),
                    reason,
                })
            }
            Action::Unban(whom) => Moderation::Unban(ban_target(whom, &mut target)?),
            Action::RoomAction(action) => match RoomAction::try_from(action) {
                Ok(RoomAction::Close) => Moderation::Close,
                Ok(RoomAction::Reopen) => Moderation::Reopen,
                Ok(RoomAction::Delete) => Moderation::Delete,
                Ok(RoomAction::Unspecified) | Err(_) => {
                    return Err(invalid(format!(
                        "room_action {action} is unknown; it is CLOSE (1), REOPEN (2) or DELETE (3)"
                    )));
                }
            },
        };
        let action = match &moderation {
            Moderation::Remove { .. } => ModerationAction::Remove,
            Moderation::Ban(_) => ModerationAction::Ban,
            Moderation::Unban(_) => ModerationAction::Unban,
            Moderation::Close => ModerationAction::Close,
            Moderation::Reopen => ModerationAction::Reopen,
            Moderation::Delete => ModerationAction::Delete,
        };
        Ok(Self {
            moderation,
            action,
            target,
            duration,
        })
    }
}

/// Validates the reason that a moderator gives.
pub(super) fn reason(raw: &str) -> Result<Text, RpcError> {
    Text::parse(raw, MAX_REASON_CHARS).map_err(|error| invalid(format!("reason: {error}")))
}

impl From<Ban> for proto::Ban {
    fn from(ban: Ban) -> Self {
        let target = match ban.target {
            BanTarget::Name(name) => Target::Name(name.to_string()),
            BanTarget::Subject(subject) => Target::Subject(subject.to_string()),
            BanTarget::Address(address) => Target::Address(address.to_string()),
        };
        Self {
            target: Some(ModerationTarget { target: Some(target) }),
            duration: None,
            expire_time: Some(frame::timestamp(ban.until)),
            reason: ban.reason.as_str().into(),
        }
    }
}

/// Validates whom a ban is about, and describes it.
fn ban_target(whom: ModerationTarget, description: &mut String) -> Result<BanTarget, RpcError> {
    let target = match whom.target {
        Some(Target::Name(name)) => BanTarget::Name(client_name(&name)?),
        Some(Target::Subject(subject)) if (1..=MAX_SUBJECT).contains(&subject.len()) => {
            BanTarget::Subject(subject.into())
        }
        Some(Target::Subject(_)) => {
            return Err(invalid(format!("a subject has 1 to {MAX_SUBJECT} bytes")));
        }
        Some(Target::Address(address)) => {
            let parsed: IpAddr = address
                .parse()
                .map_err(|_| invalid(format!("{address:?} is not an IP address")))?;
            BanTarget::Address(client_prefix(parsed))
        }
        Some(Target::ParticipantId(_)) | None => {
            return Err(invalid("its target is not a name, subject or address; set one"));
        }
    };
    *description = target.to_string();
    Ok(target)
}

fn ban_time(duration: Option<prost_types::Duration>) -> Result<Duration, RpcError> {
    let time = duration.and_then(|duration| Duration::try_from(duration).ok());
    let is_valid = |time: &Duration| (Duration::from_secs(1)..=MAX_BAN_TIME).contains(time);
    time.filter(is_valid)
        .ok_or_else(|| invalid("the duration of a ban is missing, or not from one second to ten years"))
}

fn invalid(what: impl Into<String>) -> RpcError {
    RpcError::new(Reason::ModerationInvalid, what)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(action: Option<Action>) -> Result<ModerationDecision, RpcError> {
        let request = ModerateRequest {
            action,
            ..ModerateRequest::default()
        };
        ModerationDecision::parse(request, reason("").unwrap(), WallTime::from_millis(5_000))
    }

    fn whom(target: Target) -> ModerationTarget {
        ModerationTarget { target: Some(target) }
    }

    fn ban(target: Option<Target>, seconds: Option<i64>) -> Option<Action> {
        Some(Action::Ban(proto::Ban {
            target: target.map(whom),
            duration: seconds.map(|seconds| prost_types::Duration { seconds, nanos: 0 }),
            ..proto::Ban::default()
        }))
    }

    #[test]
    fn a_ban_of_an_address_is_about_what_the_limits_count_as_one() {
        for (address, expected) in [
            ("192.0.2.7", "192.0.2.7"),
            ("::ffff:192.0.2.7", "192.0.2.7"),
            ("2001:db8::7", "2001:db8::"),
        ] {
            let decision = parse(ban(Some(Target::Address(address.into())), Some(60))).unwrap();
            assert_eq!(decision.target, format!("address {expected}"));
            let expected = Ban {
                target: BanTarget::Address(expected.parse().unwrap()),
                until: WallTime::from_millis(66_000),
                reason: reason("").unwrap(),
            };
            assert_eq!(decision.moderation, Moderation::Ban(expected));
        }
    }

    #[test]
    fn what_is_missing_or_invalid_is_named() {
        let name = |name: &str| Some(Target::Name(name.into()));
        for (action, expected) in [
            (None, "no action"),
            (ban(None, Some(60)), "target"),
            (ban(Some(Target::ParticipantId(7)), Some(60)), "target"),
            (ban(name("Server: x"), Some(60)), "client_name"),
            (ban(name("Ada"), None), "duration"),
            (ban(name("Ada"), Some(0)), "duration"),
            (ban(name("Ada"), Some(i64::MAX)), "duration"),
            (ban(Some(Target::Address("home".into())), Some(60)), "IP address"),
            (ban(Some(Target::Subject(String::new())), Some(60)), "subject"),
            (Some(Action::Remove(whom(Target::ParticipantId(0)))), "id 0"),
            (Some(Action::RoomAction(9)), "room_action 9"),
        ] {
            let message = parse(action)
                .err()
                .map(|error| error.to_status().message().to_owned());
            let message = message.unwrap_or_default();
            assert!(message.contains(expected), "{message}: {expected}");
        }
        assert!(reason(&"x".repeat(MAX_REASON_CHARS + 1)).is_err() && reason("\u{1b}").is_err());
    }
}
