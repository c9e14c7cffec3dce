//! The client's half of the wire contract: connect, join a room, say things, hear what the room says, leave.
//!
//! A [`Connection`] is one transport to one server; a [`Conversation`] is one participant's stream in one room over it.
//! A conversation keeps the participant's [`LamportClock`] (a tick before each send, a merge with each receive) and
//! gives each text a [`MessageId`], by which its broadcast is recognised as the acknowledgement; an [`Outbox`] keeps the
//! texts that are not acknowledged yet.
//!
//! Promises: every queue is bounded; every wait for the server has a deadline or can be cancelled (each method says what
//! cancelling it loses); a server that is gone is noticed by keepalive within [`Settings::keepalive_interval`] +
//! [`Settings::keepalive_timeout`]; whatever goes wrong is one typed [`Error`].
//!
//! What others wrote is data, and stays as it was sent. Before it goes to a terminal it must pass [`escape`] or
//! [`line_of`].
//!
//! A conversation ends with its stream. A [`Presence`] does not: it is a participant who connects again, resumes where the
//! last connection broke, and sends again what was not acknowledged.
//!
//! ```no_run
//! use chitchat::client::{Connection, Error, Join, Settings, line_of};
//!
//! # async fn example() -> Result<(), Error> {
//! let server = "127.0.0.1:50052".parse().expect("a host and a port");
//! let connection = Connection::open(&server, &Settings::default()).await?;
//! let mut conversation = connection.join(Join::new("Ada").room("tea")).await?;
//! let message_id = conversation.say("Hello World!").await?;
//! while let Some(message) = conversation.next().await? {
//!     println!("{}", line_of(&message));
//!     if message.message_id == message_id.as_str() {
//!         conversation.leave().await?;
//!     }
//! }
//! # Ok(())
//! # }
//! ```

mod address;
mod backoff;
mod call;
mod calls;
mod clock;
mod connection;
mod continuity;
mod conversation;
mod cursor;
mod emoji;
mod error;
pub mod escape;
mod event;
mod follower;
mod history;
mod hole;
mod join;
mod line;
mod message_id;
mod outbox;
mod poster;
mod presence;
mod sending;

pub use address::{AddressError, DEFAULT_PORT, ServerAddress};
pub use backoff::Retry;
pub use call::QUEUE;
pub use clock::LamportClock;
pub use connection::{Connection, Health, Settings};
pub use conversation::{Conversation, Listener, Speaker};
pub use error::{Error, Refusal};
pub use event::Event;
pub use follower::{Follower, Start};
pub use history::{Excerpt, History};
pub use hole::Hole;
pub use join::Join;
pub use line::line_of;
pub use message_id::MessageId;
pub use outbox::{Outbox, Pending, Settled};
pub use poster::{Posted, Poster};
pub use presence::Presence;
pub use sending::Sending;
