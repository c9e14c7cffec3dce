//! Who sends: what it has sent, what has come back, and whether it may send more.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use tokio::sync::Notify;

use super::latency::Latency;
use super::plan::{Load, Plan, Until};
use super::schedule::Schedule;
use super::shared::{Phase, Shared, Tally};
use super::stamp::Stamp;
use super::wire::Wire;

/// How much is made ready for one write, so that a publisher that may send without end also reads.
const BATCH: usize = 65_536;

/// One publisher. It lives on one thread; only its alarm crosses threads.
#[derive(Debug)]
pub(super) struct Publisher {
    id: u16,
    load: Load,
    /// How many messages it sends at most.
    quota: u32,
    publishers: u64,
    sent: Cell<u32>,
    returned: Cell<u32>,
    finished: Cell<bool>,
    /// Whether its messages come back on another connection, whose task then has to wake this one's.
    remote: bool,
    /// Wakes the task that sends.
    alarm: Arc<Notify>,
}

/// What a publisher may do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Next {
    /// Send a message that should have been sent at this time.
    Send(u64),
    /// Wait: for its window, for the timetable.
    Wait,
    /// Nothing, ever again.
    Finished,
}

impl Publisher {
    pub(super) fn new(id: u16, plan: &Plan, remote: bool, alarm: Arc<Notify>) -> Self {
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
            remote,
            alarm,
        }
    }

    pub(super) fn id(&self) -> u16 {
        self.id
    }

    /// One of its messages came back, or was refused.
    #[inline]
    pub(super) fn returned(&self) {
        self.returned.set(self.returned.get().saturating_add(1));
    }

    /// Wakes the sending task when messages came back on another connection.
    pub(super) fn wake_if_remote(&self) {
        if self.remote {
            self.alarm.notify_one();
        }
    }

    /// Comes true when there may be something to send that the connection itself does not tell.
    pub(super) async fn alarmed(&self) {
        self.alarm.notified().await;
    }

    /// Whether it will send nothing any more.
    pub(super) fn is_finished(&self) -> bool {
        self.finished.get()
    }

    fn next(&self, phase: Phase, now: u64) -> Next {
        let (start, end, may_begin) = match phase {
            Phase::Join => return Next::Wait,
            Phase::Leave => return Next::Finished,
            Phase::Run { start, end, .. } => (start, end, true),
            // A timetable is kept to its end, even late; the other loads have no debts.
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

    /// Writes as many messages as it may send now, up to one batch. `later` tells a Lamport time for each. Whether it
    /// ended because the batch is full.
    #[expect(
        clippy::too_many_arguments,
        reason = "they are all parts of one connection, which are borrowed one by one"
    )]
    pub(super) fn fill(
        &self,
        wire: &mut impl Wire,
        phase: Phase,
        shared: &Shared,
        text: &mut [u8],
        later: &mut impl FnMut() -> i64,
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
            Stamp {
                run: shared.run,
                publisher: self.id,
                number,
                intended,
            }
            .write(text);
            if !wire.publish(later(), text, out) {
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

    /// Nothing will be sent any more: the connection is gone.
    pub(super) fn give_up(&self, shared: &Shared) {
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
    fn a_window_is_closed_until_messages_return() {
        let publisher = publisher(Load::Window(2), Until::Count(100));
        assert_eq!(publisher.next(RUN, 200), Next::Send(200));
        publisher.sent.set(2);
        assert_eq!(publisher.next(RUN, 200), Next::Wait);
        publisher.returned();
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
    fn a_timetable_gives_the_intended_time_and_is_kept_to_its_end() {
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
    fn a_count_is_divided_without_rest() {
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
    fn time_ends_a_flood() {
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
