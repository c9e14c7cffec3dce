//! The end of a token while its stream is open.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::time::{Instant, Sleep, sleep};

use crate::auth::{Caller, Identity};
use crate::wall_clock::unix_time;

/// How long before the end clients are told of it.
const NOTICE: Duration = Duration::from_secs(60);

/// How often the clock is read at least, because it can be set.
const RECHECK: Duration = Duration::from_secs(600);

/// Tells when the token of a stream is about to expire, and when it has.
pub(super) struct TokenExpiry {
    /// In seconds since 1970.
    expires_at: u64,
    timer: Pin<Box<Sleep>>,
    was_announced: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ExpiryState {
    /// It expires after this time. Reported once, a minute before or at once.
    Soon(Duration),
    Expired,
}

impl TokenExpiry {
    /// `None` if the caller has no token.
    pub(super) fn of(caller: &Caller) -> Option<Self> {
        let Identity { expires_at, .. } = caller.identity()?;
        Some(Self {
            expires_at: *expires_at,
            timer: Box::pin(sleep(Duration::ZERO)),
            was_announced: false,
        })
    }

    /// Ready when the token has expired.
    pub(super) fn poll_expired(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        while ready!(self.poll(cx)) != ExpiryState::Expired {}
        Poll::Ready(())
    }

    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<ExpiryState> {
        loop {
            ready!(self.timer.as_mut().poll(cx));
            let remaining = Duration::from_secs(self.expires_at.saturating_sub(unix_time()));
            if remaining.is_zero() {
                return Poll::Ready(ExpiryState::Expired);
            }
            let is_soon = remaining <= NOTICE;
            let wait = if is_soon { remaining } else { remaining - NOTICE };
            self.timer.as_mut().reset(Instant::now() + wait.min(RECHECK));
            if is_soon && !self.was_announced {
                self.was_announced = true;
                return Poll::Ready(ExpiryState::Soon(remaining));
            }
        }
    }
}
