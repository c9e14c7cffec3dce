//! A client for Chit Chat servers.
//!
//! - [`Session`] joins a room: it sends messages and is a stream of the room's events.
//! - [`Subscription`] is a stream of a room's events without joining it.
//! - [`Publisher`] posts messages to a room without joining it.
//! - [`History`] is a stream of a room's past events.
//! - [`Connection`] makes unary calls, such as health checks and listing rooms or participants.
//!
//! A session, subscription or publisher reconnects automatically, as its [`RetryPolicy`] permits. Messages are
//! retransmitted under the same [`MessageId`], so that the server can discard duplicates. Streams resume after the last
//! event received, so that each event is yielded once.
//!
//! All queues are bounded. All waits for the server have a timeout ([`ConnectOptions::response_timeout`]) or can be
//! cancelled; the documentation of each method says what happens then. A server that no longer responds is detected
//! within [`ConnectOptions::keepalive_interval`] + [`ConnectOptions::keepalive_timeout`]. Every failure is a
//! [`ClientError`].
//!
//! Addresses that begin with `https://` need the feature `tls`; `ConnectOptions::tls` says whom to trust.
//! [`ConnectOptions::token`] authenticates the client to a server that requires it.
//!
//! Names and texts are not sanitized. Use [`escape`] or [`format_message`] before printing them to a terminal.
//!
//! # Example
//!
//! Joins a room, sends a message, and leaves when it is acknowledged. Import an extension trait such as
//! `tokio_stream::StreamExt` or `futures_util::TryStreamExt` to read the streams.
//!
//! ```no_run
//! use chitchat::client::{
//!     ClientError, ConnectOptions, Event, JoinOptions, RetryPolicy, Session, format_message,
//! };
//! use tokio_stream::StreamExt;
//!
//! # async fn example() -> Result<(), ClientError> {
//! let server = "127.0.0.1:50052".parse().expect("a host and a port");
//! let join = JoinOptions::new("Ada").room("tea");
//! let mut session =
//!     Session::join(&server, &ConnectOptions::default(), RetryPolicy::default(), join).await?;
//! let message_id = session.send("Hello World!")?;
//! while let Some(event) = session.try_next().await? {
//!     if let Event::Message(message) = event {
//!         println!("{}", format_message(&message));
//!         if message.message_id == message_id.as_str() {
//!             session.leave();
//!         }
//!     }
//! }
//! # Ok(())
//! # }
//! ```

mod clock;
mod connection;
mod connection_state;
mod cursor;
mod error;
pub mod escape;
mod event;
mod format;
mod grpc_channel;
mod history;
mod outbox;
mod publisher;
mod retry;
mod server_address;
mod session;
mod session_state;
mod subscription;
#[cfg(feature = "tls")]
mod tls;
mod tls_error;
mod token;

pub use crate::domain::{MessageId, TraceContext};
pub use connection::{ConnectOptions, Connection, Health};
pub use error::{ClientError, Rejection};
pub use event::{Event, Gap};
pub use format::format_message;
#[cfg(feature = "server")]
pub(crate) use format::{format_untimed, sender_label};
pub use history::{History, HistoryQuery};
pub use outbox::SendObserver;
pub use publisher::{PublishAck, Publisher};
#[cfg(feature = "server")]
pub(crate) use retry::Backoff;
pub use retry::RetryPolicy;
pub use server_address::{AddressError, DEFAULT_PORT, ServerAddress};
pub use session::Session;
pub use session_state::JoinOptions;
pub use subscription::{StartPosition, Subscription};
#[cfg(feature = "tls")]
pub use tls::TlsOptions;
pub use tls_error::TlsError;
pub use token::Token;
