//! The rules of a chat room, as pure code: validated values, and the fold that turns a room's commands into the events of
//! its log.
//!
//! Everything that a decision depends on arrives with a [`Command`]; every decision is returned as an [`Outcome`]. The same
//! commands with the same wall times in the same order have the same outcomes, on any machine.
//!
//! Each value of these types is valid: its constructor checks it, and no other code repeats the check. Every limit and its
//! reason are in [`limits`].

pub mod characters;
mod clock;
mod command;
mod dedup_window;
pub(crate) mod encoding;
mod event;
pub mod limits;
mod message_id;
mod moderation;
mod name;
mod outcome;
mod participant;
mod room;
mod room_state;
mod roster;
mod sequence;
mod skeleton;
mod text;
mod trace_context;

#[cfg(feature = "server")]
pub(crate) use dedup_window::DEDUP_ENTRY_BYTES;
#[cfg(feature = "server")]
pub(crate) use skeleton::NAME_TABLES;

pub use clock::{ClockError, LamportClock, LamportTime, Timestamp, WallTime};
pub use command::{Command, End, EndStage, Join, Leave, Message, Post, Say};
pub use encoding::{DecodeError, MAX_ENCODED_COMMAND};
pub use event::{Event, EventKind};
pub use limits::Rules;
pub use message_id::{MessageId, MessageIdError};
pub use moderation::{Ban, BanTarget, Moderation, Origin, RemoveTarget};
pub use name::{Name, NameError, RoomName};
pub use outcome::{Outcome, Rejection};
pub use participant::{Attachment, Participant, ParticipantId, Session};
pub use room::{ReplayError, Room, Snapshot};
pub use room_state::{InvalidState, RoomState};
pub use sequence::{Epoch, Sequence};
pub use text::{Text, TextError};
pub use trace_context::TraceContext;
