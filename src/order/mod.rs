//! The order of a room: one queue, which many fill and one empties.

mod inbox;

pub use inbox::{Closed, Inbox, Sender, Weight};
