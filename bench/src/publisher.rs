//! A publisher: what it has sent, what it has received back, and whether it may send more.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use tokio::sync::Notify;

use super::codec::Codec;
use super::latency::Latency;
use super::payload_header::PayloadHeader;
use super::plan::{Load, Plan, Until};
use super::run_state::{Counter, Phase, RunState};
use super::schedule::Schedule;

/// The most bytes that are prepared for one write. Between two batches the connection is read, even if nothing else
/// limits the publisher.
const BATCH: usize = 65_536;

/// A publisher. Only `wakeup` is shared with other threads.
#[derive(Debug)]
pub(super) struct Publisher {
    id: u16,
    load: Load,
    /// The most messages that it sends.
    quota: u32,
    publishers: u64,
    sent: Cell<u32>,
    returned: Cell<u32>,
    finished: Cell<bool>,
    /// Whether its messages are received on another connection, whose task then has to wake the sending task.
    receives_on_sibling: bool,
    /// Wakes the sending task.
    wakeup: Arc<Notify>,
}

/// What a publisher does next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Next {
    /// Send a message with this intended time.
    Send(u64),
    /// Wait for its window or its schedule.
    Wait,
    /// Send nothing more.
    Finished,
}

impl Publisher {
    pub(super) fn new(id: u16, plan: &Plan, receives_on_sibling: bool, wakeup: Arc<Notify>) -> Self {
        let publishers = u64::from(plan.publishers.max(1));
        let quota = match plan.until {
            Until::Count(count) => {
                let extra = u64::from(u64::from(id) < count % publishers);
                u32::try_from(count / publishers + extra).unwrap_or(u32::MAX)
            }
            Until::Elapsed { .. } => u32::MAX,
        };
        Self {
            id,
            load: plan.load,
            quota,
            publishers,
            sent: Cell::new(0),
            returned: Cell::new(0),
            finished: Cell::new(false),
            receives_on_sibling,
            wakeup,
        }
    }

    pub(super) fn id(&self) -> u16 {
        self.id
    }

    /// Records that one of its messages was received or rejected.
    #[inline]
    pub(super) fn on_returned(&self) {
        self.returned.set(self.returned.get().saturating_add(1));
    }

    /// Wakes the sending task if it is that of another connection.
    pub(super) fn wake_sibling(&self) {
        if self.receives_on_sibling {
            self.wakeup.notify_one();
        }
    }

    /// Completes when there may be something to send.
    pub(super) async fn woken(&self) {
        self.wakeup.notified().await;
    }

    pub(super) fn is_finished(&self) -> bool {
        self.finished.get()
    }

    fn next(&self, phase: Phase, now: u64) -> Next {
        let (start, end, may_begin) = match phase {
            Phase::Join => return Next::Wait,
            Phase::Leave => return Next::Finished,
            Phase::Run { start, end, .. } => (start, end, true),
            // An open loop still sends every message that was scheduled, even if it is late.
            Phase::Drain { start, end, .. } => (start, end, matches!(self.load, Load::Rate(_))),
        };
        let sent = self.sent.get();
        if sent >= self.quota || !may_begin {
            return Next::Finished;
        }
        match self.load {
            Load::Rate(rate) => {
                let due =
                    Schedule::new(rate, self.publishers, start).due_of(u64::from(self.id), u64::from(sent));
                if due >= end {
                    Next::Finished
                } else if due > now {
                    Next::Wait
                } else {
                    Next::Send(due)
                }
            }
            _ if now >= end => Next::Finished,
            Load::Window(size) if sent.wrapping_sub(self.returned.get()) >= size => Next::Wait,
            Load::Window(_) | Load::Flood => Next::Send(now),
        }
    }

    /// Appends as many messages as it may send now, up to one batch. `next_timestamp` gives the Lamport time of each.
    /// Returns whether the batch is full.
    #[expect(
        clippy::too_many_arguments,
        reason = "they are fields of one connection, which are borrowed separately"
    )]
    pub(super) fn fill(
        &self,
        codec: &mut impl Codec,
        phase: Phase,
        shared: &RunState,
        text: &mut [u8],
        next_timestamp: &mut impl FnMut() -> i64,
        lag: &mut Latency,
        out: &mut Vec<u8>,
    ) -> bool {
        if self.finished.get() {
            return false;
        }
        let now = shared.now();
        let before = self.sent.get();
        while out.len() < BATCH {
            let intended = match self.next(phase, now) {
                Next::Send(intended) => intended,
                Next::Wait => break,
                Next::Finished => {
                    self.finished.set(true);
                    break;
                }
            };
            let number = self.sent.get();
            PayloadHeader {
                run_id: shared.run_id,
                publisher: self.id,
                number,
                intended,
            }
            .write(text);
            if !codec.publish(next_timestamp(), text, out) {
                break;
            }
            self.sent.set(number + 1);
            if matches!(self.load, Load::Rate(_)) {
                lag.record(now.saturating_sub(intended));
            }
        }
        if self.sent.get() != before
            && let Some(sent) = shared.sent.get(usize::from(self.id))
        {
            sent.store(self.sent.get(), Ordering::Relaxed);
        }
        if self.finished.get() {
            shared.counters.finished.add(1);
        }
        out.len() >= BATCH
    }

    /// Stops sending, because the connection has ended.
    pub(super) fn stop(&self, shared: &RunState) {
        if !self.finished.replace(true) {
            shared.counters.finished.add(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::plan::tests::plan;
    use super::*;

    const RUN: Phase = Phase::Run {
        start: 100,
        begin: 100,
        end: 1_000_000_100,
    };

    fn publisher(load: Load, until: Until) -> Publisher {
        Publisher::new(
            1,
            &Plan {
                load,
                until,
                ..plan()
            },
            false,
            Arc::default(),
        )
    }

    #[test]
    fn a_full_window_reopens_when_a_message_returns() {
        let publisher = publisher(Load::Window(2), Until::Count(100));
        assert_eq!(publisher.next(RUN, 200), Next::Send(200));
        publisher.sent.set(2);
        assert_eq!(publisher.next(RUN, 200), Next::Wait);
        publisher.on_returned();
        assert_eq!(publisher.next(RUN, 300), Next::Send(300));
        assert_eq!(
            publisher.next(
                Phase::Drain {
                    start: 100,
                    begin: 100,
                    end: 200
                },
                300
            ),
            Next::Finished
        );
    }

    #[test]
    fn a_schedule_gives_the_intended_times_and_is_completed() {
        let forever = Until::Elapsed {
            warmup: std::time::Duration::ZERO,
            measured: std::time::Duration::from_secs(1),
        };
        let publisher = publisher(Load::Rate(4), forever);
        // Two publishers take turns: this one is due at 250 ms and 750 ms.
        assert_eq!(publisher.next(RUN, 200), Next::Wait);
        assert_eq!(publisher.next(RUN, 900_000_000), Next::Send(250_000_100));
        publisher.sent.set(1);
        let drain = Phase::Drain {
            start: 100,
            begin: 100,
            end: 1_000_000_100,
        };
        assert_eq!(publisher.next(drain, 2_000_000_000), Next::Send(750_000_100));
        publisher.sent.set(2);
        assert_eq!(publisher.next(drain, 2_000_000_000), Next::Finished);
    }

    #[test]
    fn a_count_is_divided_among_the_publishers_without_remainder() {
        let quotas: Vec<u32> = (0..3)
            .map(|id| {
                let plan = Plan {
                    publishers: 3,
                    until: Until::Count(11),
                    ..plan()
                };
                Publisher::new(id, &plan, false, Arc::default()).quota
            })
            .collect();
        assert_eq!(quotas, [4, 4, 3]);
    }

    #[test]
    fn a_flood_ends_with_the_measured_time() {
        let flood = publisher(
            Load::Flood,
            Until::Elapsed {
                warmup: std::time::Duration::ZERO,
                measured: std::time::Duration::from_secs(1),
            },
        );
        assert_eq!(flood.next(RUN, 1_000_000_099), Next::Send(1_000_000_099));
        assert_eq!(flood.next(RUN, 1_000_000_100), Next::Finished);
    }
}
