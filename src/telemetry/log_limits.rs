//! Limits the rate of log lines that clients can cause.

use std::sync::atomic::{AtomicU64, Ordering};

use metrics::Counter;

use super::rate_limiter::RateLimiter;

/// How many lines of one event are logged per second: enough to follow a busy server, and few enough not to overload a log collector.
const LINES_PER_SECOND: u32 = 100;

/// The size of a burst, as the time in which its lines accrue at that rate.
const BURST_SECONDS: u32 = 10;

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
pub(super) struct LogLimits([Limit; LogEvent::ALL.len()]);

struct Limit {
    limiter: RateLimiter,
    /// Lines that were left out since the last one that was logged.
    left_out: AtomicU64,
    total: Counter,
}

/// Permission to log a line, which should say how many before it were left out, if any.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Permit {
    pub(super) left_out: Option<u64>,
}

impl LogLimits {
    /// `left_out` returns the counter of lines of an event that are left out.
    pub(super) fn new(left_out: impl Fn(LogEvent) -> Counter) -> Self {
        Self(LogEvent::ALL.map(|event| Limit {
            limiter: RateLimiter::new(LINES_PER_SECOND, BURST_SECONDS),
            left_out: AtomicU64::new(0),
            total: left_out(event),
        }))
    }

    /// `None` if the line is to be left out.
    pub(super) fn permit(&self, event: LogEvent) -> Option<Permit> {
        let limit = &self.0[event as usize];
        if limit.limiter.try_acquire() {
            let left_out = limit.left_out.swap(0, Ordering::Relaxed);
            Some(Permit {
                left_out: (left_out > 0).then_some(left_out),
            })
        } else {
            limit.left_out.fetch_add(1, Ordering::Relaxed);
            limit.total.increment(1);
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_over_the_limit_are_left_out_and_counted() {
        let limits = LogLimits::new(|_| Counter::noop());
        let logged: Vec<Permit> = (0..100_000)
            .filter_map(|_| limits.permit(LogEvent::ClientJoined))
            .collect();
        // The burst, and one more for each hundredth of a second that the loop takes.
        assert!((1_000..10_000).contains(&logged.len()), "{}", logged.len());
        assert!(logged[..1_000].iter().all(|permit| permit.left_out.is_none()));
        let left_out: u64 = logged.iter().filter_map(|permit| permit.left_out).sum();
        let pending = limits.0[0].left_out.load(Ordering::Relaxed);
        assert_eq!(logged.len() as u64 + left_out + pending, 100_000);
        assert!(
            limits.permit(LogEvent::ClientLeft).is_some(),
            "each event has its own limit"
        );
    }
}
