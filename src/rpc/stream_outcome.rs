//! How a stream ended.

use std::net::SocketAddr;
use std::sync::Arc;

use super::observer::{Observer, ParticipantInfo, StreamEnded, StreamingMethod};
use super::stall_detector;
use crate::reason::Reason;

/// How a stream ended. Reports it to the observer on drop, so that it is reported even if the call is cancelled.
pub(super) struct StreamOutcome {
    pub(super) observer: Arc<dyn Observer>,
    method: StreamingMethod,
    pub(super) peer: Option<SocketAddr>,
    /// Set once a JOIN is accepted.
    pub(super) participant: Option<ParticipantInfo>,
    pub(super) reason: Reason,
    /// The message of the status.
    pub(super) detail: String,
}

impl StreamOutcome {
    /// Reports that a stream has started.
    pub(super) fn new(
        method: StreamingMethod,
        peer: Option<SocketAddr>,
        observer: Arc<dyn Observer>,
    ) -> Self {
        observer.stream_started(method);
        Self {
            observer,
            method,
            peer,
            participant: None,
            // What it is if the body is dropped before it has ended the stream.
            reason: Reason::ConnectionLost,
            detail: String::new(),
        }
    }
}

impl Drop for StreamOutcome {
    fn drop(&mut self) {
        if stall_detector::has_stalled() {
            self.reason = Reason::Stalled;
            self.detail = "the client accepts no data".into();
        }
        self.observer.stream_ended(&StreamEnded {
            method: self.method,
            reason: self.reason,
            peer: self.peer,
            participant: self.participant.as_ref(),
            detail: &self.detail,
        });
    }
}
