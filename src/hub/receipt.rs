//! How a command came.

use std::sync::Arc;
use std::time::Instant;

use crate::domain::TraceContext;

/// How a command came: when, and by which stream or call.
#[derive(Debug, Clone)]
pub struct Receipt {
    /// When it was decoded.
    pub at: Instant,
    /// The trace of the stream or call, where that has one.
    pub stream: Option<Arc<TraceContext>>,
}

impl Receipt {
    /// Just now, by no stream.
    #[must_use]
    pub fn now() -> Self {
        Instant::now().into()
    }
}

impl From<Instant> for Receipt {
    fn from(at: Instant) -> Self {
        Self { at, stream: None }
    }
}
