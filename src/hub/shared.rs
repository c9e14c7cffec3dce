//! What all rooms of a hub share.

use std::sync::Arc;
use std::time::Duration;

use super::observer::Observer;
use super::token::Tokens;
use crate::store::Store;

/// What all rooms of a hub share.
#[derive(Clone)]
pub(super) struct Shared {
    pub(super) store: Arc<dyn Store>,
    pub(super) tokens: Tokens,
    pub(super) observer: Arc<dyn Observer>,
    pub(super) feed_bytes: usize,
    pub(super) resume_grace: Duration,
    pub(super) coalesce: Duration,
    /// How long events may be kept; zero: however long.
    pub(super) retain_age: Duration,
}
