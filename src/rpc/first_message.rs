//! Where a stream waits until its client says what it wants.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::Sleep;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

use super::error::RpcError;

/// How long a stream may take to say what it wants. A person may be typing a name meanwhile.
const TIMEOUT: Duration = Duration::from_secs(60);

/// How long a client is asked to wait when the server drains before its stream has begun.
pub(super) const RETRY: Duration = Duration::from_secs(1);

/// Where a stream waits until its client says what it wants: not for ever, and not while the server drains.
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

    /// Ready with why the stream ends, when it has waited long enough; `overdue` is how that is told.
    pub(super) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        overdue: impl FnOnce(Duration) -> RpcError,
    ) -> Poll<RpcError> {
        if self.draining.as_mut().poll(cx).is_ready() {
            return Poll::Ready(RpcError::Draining(RETRY));
        }
        self.timeout.as_mut().poll(cx).map(|()| overdue(TIMEOUT))
    }
}
