//! The gRPC server: accepts connections, runs their streams and serves the methods of the chat service.

mod address_budgets;
mod authentication;
mod byte_budget;
mod certificate_expiry;
mod chat_body;
mod connection;
mod connection_budgets;
mod connection_task;
mod convert;
mod corked_io;
mod error;
mod first_message;
mod frame_meter;
mod framing;
#[cfg(any(feature = "fuzzing", test))]
pub(crate) mod fuzzing;
mod header_table;
mod health;
mod inbound;
mod joined_stream;
mod linger;
mod listener;
mod moderation;
mod observer;
mod open_streams;
mod prefixed_io;
mod proxy_protocol;
mod rates;
mod room_quotas;
mod server_tls;
mod stall_detector;
mod stream_outcome;
mod streaming;
mod sub_waker;
mod subscribe_body;
mod time_limit;
mod tls_connection;
mod token_expiry;
mod transport;
mod turns;
mod unary;
mod unary_limits;
mod unread;

pub(crate) use address_budgets::client_prefix;
pub use authentication::AuthenticationService;
pub use connection::TransportLimits;
pub use connection_budgets::BudgetLimits;
pub use health::HealthChecks;
pub use listener::Listener;
pub use observer::{
    ConnectionLimit, CutReason, JoinAccepted, ModerationAction, ModerationReport, Observer, ParticipantInfo,
    SetupError, StreamEnded, StreamingMethod, Throttle,
};
pub use proxy_protocol::{Network, NetworkError, ProxyHeaderError};
pub use rates::{RateLimits, Rates};
pub use server_tls::{ServerTls, ServerTlsError, TlsFiles};
pub use streaming::{StreamingService, decode_limit};
pub use unary::UnaryService;
pub use unary_limits::UnaryLimits;

/// The fully qualified name of the chat service.
pub const CHAT_SERVICE: &str = "itu.chitchat.ChatService";
