//! The chat itself, without I/O, clocks of the wall or randomness: values that cannot be wrong, and the fold that turns
//! the commands of a room into its events.
//!
//! Everything a decision depends on arrives in a [`Command`]; every decision leaves as an [`Outcome`]. The same commands
//! in the same order give the same events, on any machine, at any time.

pub mod characters;
mod clock;
mod command;
mod epoch;
mod event;
pub mod limits;
mod message_id;
mod message_ids;
mod name;
mod name_key;
mod outcome;
mod participant_id;
mod room;
mod room_name;
mod roster;
mod sequence;
mod text;
mod trace_context;
mod wall_time;

pub use clock::{ClockError, LamportClock, LamportTime, Timestamp};
pub use command::{Command, Join, Leave, Post, Say};
pub use epoch::Epoch;
pub use event::{Event, EventKind};
pub use limits::Rules;
pub use message_id::{MessageId, MessageIdError};
pub use name::{Name, NameError};
pub use outcome::{Outcome, Refusal};
pub use participant_id::ParticipantId;
pub use room::{ReplayError, Room, Snapshot};
pub use room_name::RoomName;
pub use roster::Participant;
pub use sequence::Sequence;
pub use text::{Text, TextError};
pub use trace_context::TraceContext;
pub use wall_time::WallTime;
