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
//! A conversation ends with its stream. It does not come back by itself.
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
mod clock;
mod connection;
mod conversation;
mod emoji;
mod error;
pub mod escape;
mod line;
mod message_id;
mod outbox;

pub use address::{AddressError, DEFAULT_PORT, ServerAddress};
pub use clock::LamportClock;
pub use connection::{Connection, Health, Settings};
pub use conversation::{Conversation, Join, Listener, QUEUE, Speaker};
pub use error::{Error, Refusal};
pub use line::line_of;
pub use message_id::MessageId;
pub use outbox::{Outbox, Pending, Settled};
