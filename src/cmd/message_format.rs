//! How messages are shown to people.

use clap::{Args, ValueEnum};

use super::time_zone::TimeZone;
use crate::client::{format_message, format_untimed};
use crate::proto::ServerMessage;

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum TimeStyle {
    /// The Lamport time: [L=5]
    Lamport,
    /// The date and time in the local time zone (variable TZ)
    Local,
    /// The date and time in UTC
    Utc,
    /// No time
    None,
}

#[derive(Debug, Args)]
pub(super) struct TimeArg {
    /// What to show before each message [default: lamport; in the full screen of chat, the local and the Lamport time]
    #[arg(
        long,
        env = "CHITCHAT_TIME",
        value_enum,
        hide_possible_values = false,
        help_heading = "Output"
    )]
    time: Option<TimeStyle>,
}

/// The times that the full screen shows.
#[derive(Debug, Clone)]
pub(super) struct TimeColumns {
    /// With what is written after the time.
    pub(super) wall_clock: Option<(TimeZone, &'static str)>,
    pub(super) has_lamport_time: bool,
}

/// Formats messages with the time that the user wants.
#[derive(Debug, Clone)]
pub(super) enum MessageFormat {
    Lamport,
    WallClock {
        zone: TimeZone,
        /// Written after the time.
        suffix: &'static str,
    },
    Untimed,
}

impl TimeArg {
    pub(super) fn format(&self) -> MessageFormat {
        match self.time.unwrap_or(TimeStyle::Lamport) {
            TimeStyle::Lamport => MessageFormat::Lamport,
            TimeStyle::Local => MessageFormat::WallClock {
                zone: TimeZone::local(),
                suffix: "",
            },
            TimeStyle::Utc => MessageFormat::WallClock {
                zone: TimeZone::utc(),
                suffix: "Z",
            },
            TimeStyle::None => MessageFormat::Untimed,
        }
    }

    pub(super) fn columns(&self) -> TimeColumns {
        TimeColumns {
            wall_clock: match self.time {
                None | Some(TimeStyle::Local) => Some((TimeZone::local(), "")),
                Some(TimeStyle::Utc) => Some((TimeZone::utc(), "Z")),
                Some(TimeStyle::Lamport | TimeStyle::None) => None,
            },
            has_lamport_time: matches!(self.time, None | Some(TimeStyle::Lamport)),
        }
    }
}

impl MessageFormat {
    /// Formats `message`: with its Lamport time if its server does not say when it was broadcast.
    pub(super) fn format(&self, message: &ServerMessage) -> String {
        match self {
            Self::Lamport => format_message(message),
            Self::Untimed => format_untimed(message),
            Self::WallClock { zone, suffix } => {
                let time = message
                    .broadcast_time
                    .as_ref()
                    .and_then(|time| zone.date_time(time));
                let Some(time) = time else {
                    return format_message(message);
                };
                let time = time.strftime("%Y-%m-%d %H:%M:%S");
                format!("[{time}{suffix}] {}", format_untimed(message))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::EventType;

    #[test]
    fn the_time_is_that_of_the_broadcast() {
        let mut message = ServerMessage {
            sender_id: 3,
            sender_name: "Ada".into(),
            msg_stream: "one\ntwo".into(),
            r#type: EventType::Message.into(),
            timestamp: 5,
            broadcast_time: Some(prost_types::Timestamp {
                seconds: 1_700_000_000,
                nanos: 7,
            }),
            ..ServerMessage::default()
        };
        let format = |time, message: &ServerMessage| TimeArg { time: Some(time) }.format().format(message);
        assert_eq!(format(TimeStyle::Lamport, &message), "[L=5] Ada: one\n  | two");
        assert_eq!(
            format(TimeStyle::Utc, &message),
            "[2023-11-14 22:13:20Z] Ada: one\n  | two"
        );
        assert_eq!(format(TimeStyle::None, &message), "Ada: one\n  | two");
        message.broadcast_time = None;
        assert_eq!(format(TimeStyle::Local, &message), "[L=5] Ada: one\n  | two");
    }
}
