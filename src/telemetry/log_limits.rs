//! Limits the rate of log lines that clients can cause.

use std::time::Duration;

use metrics::Counter;
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::rate_limiter::{Rate, RateLimiter};

/// How many lines of one event are logged per second: enough to follow a busy server, and few enough not to overload a log collector.
const LINES_PER_SECOND: u32 = 100;

/// How many lines of one event are logged at once after a pause.
const BURST: u32 = 1_000;

/// The log events that a client can cause as often as it likes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum LogEvent {
    ClientJoined,
    ClientResumed,
    ClientLeft,
    ClientLost,
    ClientRefused,
    ConnectionRefused,
    ConnectionClosed,
    AcceptFailed,
    ClockRefused,
}

impl LogEvent {
    /// All of them, in the order of their discriminants.
    pub(super) const ALL: [Self; 9] = [
        Self::ClientJoined,
        Self::ClientResumed,
        Self::ClientLeft,
        Self::ClientLost,
        Self::ClientRefused,
        Self::ConnectionRefused,
        Self::ConnectionClosed,
        Self::AcceptFailed,
        Self::ClockRefused,
    ];

    /// The `event` field of the line.
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::ClientJoined => "client_joined",
            Self::ClientResumed => "client_resumed",
            Self::ClientLeft => "client_left",
            Self::ClientLost => "client_lost",
            Self::ClientRefused => "client_refused",
            Self::ConnectionRefused => "connection_refused",
            Self::ConnectionClosed => "connection_closed",
            Self::AcceptFailed => "accept_failed",
            Self::ClockRefused => "clock_refused",
        }
    }
}

/// A rate limiter for each [`LogEvent`].
pub(super) struct LogLimits {
    rate: Rate,
    limits: [Limit; LogEvent::ALL.len()],
}

struct Limit {
    state: Mutex<State>,
    suppressed: Counter,
}

#[derive(Default)]
struct State {
    limiter: RateLimiter,
    /// The lines that were suppressed since the last one that was logged.
    suppressed: u64,
}

/// Permission to log a line, which should say how many before it were suppressed, if any.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Permit {
    pub(super) suppressed: Option<u64>,
}

impl LogLimits {
    /// `suppressed` returns the counter of an event's lines that are suppressed.
    pub(super) fn new(suppressed: impl Fn(LogEvent) -> Counter) -> Self {
        Self {
            rate: Rate::new(LINES_PER_SECOND, Duration::from_secs(1), BURST),
            limits: LogEvent::ALL.map(|event| Limit {
                state: Mutex::default(),
                suppressed: suppressed(event),
            }),
        }
    }

    /// `None` if the line must be suppressed.
    pub(super) fn permit(&self, event: LogEvent) -> Option<Permit> {
        let limit = &self.limits[event as usize];
        let mut state = limit.state.lock();
        if state.limiter.try_acquire(self.rate, Instant::now()).is_ok() {
            let suppressed = std::mem::take(&mut state.suppressed);
            Some(Permit {
                suppressed: (suppressed > 0).then_some(suppressed),
            })
        } else {
            state.suppressed += 1;
            limit.suppressed.increment(1);
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_over_the_limit_are_suppressed_and_counted() {
        let limits = LogLimits::new(|_| Counter::noop());
        let logged: Vec<Permit> = (0..100_000)
            .filter_map(|_| limits.permit(LogEvent::ClientJoined))
            .collect();
        // The burst, and one more for each hundredth of a second that the loop takes.
        assert!((1_000..10_000).contains(&logged.len()), "{}", logged.len());
        assert!(logged[..1_000].iter().all(|permit| permit.suppressed.is_none()));
        let suppressed: u64 = logged.iter().filter_map(|permit| permit.suppressed).sum();
        let pending = limits.limits[0].state.lock().suppressed;
        assert_eq!(logged.len() as u64 + suppressed + pending, 100_000);
        assert!(
            limits.permit(LogEvent::ClientLeft).is_some(),
            "each event has its own limit"
        );
    }
}
