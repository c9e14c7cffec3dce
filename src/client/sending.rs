//! A message that is followed on its way out.

use std::fmt::Debug;

use crate::domain::TraceContext;

/// A message that is followed on its way out, for whoever traces it.
pub trait Sending: Debug + Send + Sync {
    /// The trace context that the message carries.
    fn context(&self) -> TraceContext;
    /// It was sent, or sent again, at this Lamport time.
    fn sent(&self, timestamp: i64);
}
