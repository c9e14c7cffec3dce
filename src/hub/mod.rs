//! The rooms that are running: for each one a driver that takes its commands in order, and a feed of what came of them.

mod asking;
mod batch;
mod description;
mod driver;
mod end;
mod entrance;
mod error;
mod feed;
pub mod frame;
mod member;
mod notice;
mod now;
mod observer;
mod reader;
mod receipt;
mod recovery;
mod registry;
mod request;
mod room;
mod said;
mod start;
mod token;

pub use asking::Asking;
pub use description::Description;
pub use end::End;
pub use entrance::Entrance;
pub use error::HubError;
pub use feed::{Cursor, CursorKey, Feed, Piece, Publication};
pub use member::{Entry, Member};
pub use observer::{Accepted, Audience, Observer, Refused, Stored, Trail};
pub use reader::Reader;
pub use receipt::Receipt;
pub use registry::{HistoryPage, HistoryRange, Hub, HubOptions, Summary};
pub use request::Posted;
pub use start::{Place, Start};
