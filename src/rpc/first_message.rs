//! The time limit of a stream's first message.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::Sleep;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

use super::error::RpcError;
use crate::reason::Reason;

/// How long a client may take to send the first message of a stream: enough for a user to type a name.
const TIMEOUT: Duration = Duration::from_secs(60);

/// Ends a stream whose first message does not arrive in time, or has not arrived when the server drains.
pub(super) struct FirstMessageDeadline {
    timeout: Pin<Box<Sleep>>,
    draining: Pin<Box<WaitForCancellationFutureOwned>>,
}

impl FirstMessageDeadline {
    pub(super) fn new(draining: CancellationToken) -> Self {
        Self {
            timeout: Box::pin(tokio::time::sleep(TIMEOUT)),
            draining: Box::pin(draining.cancelled_owned()),
        }
    }

    /// Ready with the error that ends the stream. On a timeout the error has this `reason`, and its text names what was
    /// `expected`.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>, reason: Reason, expected: &str) -> Poll<RpcError> {
        if self.draining.as_mut().poll(cx).is_ready() {
            return Poll::Ready(RpcError::draining());
        }
        self.timeout.as_mut().poll(cx).map(|()| {
            let limit = humantime::format_duration(TIMEOUT);
            RpcError::new(reason, format!("no {expected} received within {limit}"))
        })
    }
}
