//! The rooms that are running: for each one a driver that takes its commands in order, and a feed of what came of them.

mod driver;
mod end;
mod feed;
pub mod frame;
mod joining;
mod member;
mod notice;
mod now;
mod observer;
mod registry;
mod request;
mod room;

pub use end::End;
pub use feed::{Cursor, Feed, Piece, Publication};
pub use joining::{JoinError, Joining};
pub use member::{Entry, Member};
pub use observer::{Observer, Unobserved};
pub use registry::{Hub, HubLimits};
