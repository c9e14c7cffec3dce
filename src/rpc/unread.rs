//! The memory that h2 and TLS hold because of what a connection has received and nobody has handled yet.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::{Sleep, sleep};

use super::address_budgets::{AddressBudgets, fair_share};
use super::frame_meter::{Flood, FrameMeter, ReadFrames};
use super::observer::Throttle;
use super::open_streams::{FRAME_BYTES, HEADER_MAP_BYTES, OpenStreams, RequestReader};

/// Flow-control window of a stream, in bytes: how much a client may send before the server reads it.
pub(super) const STREAM_WINDOW: u32 = 65_535;

/// A connection that holds at most this, in bytes, is closed only if its address holds too much.
const SMALL_UNREAD: usize = STREAM_WINDOW as usize;

/// Such connections of one address may hold this part of the limit for seconds.
const LASTING_PART: usize = 16;

/// While its address holds more than its share, a connection is still read from, [`SLOW_READ`] bytes at a time, if it holds at most this,
/// in bytes, beside what it keeps until it ends, and its table of headers keeps at most [`SMALL_UNREAD`]. So short requests are served
/// whatever others of the address do, and thousands of connections do not exceed the limit by what each reads first: one byte on the wire
/// can be a header field, which takes two hundred bytes of memory.
const MIN_UNREAD: usize = 4 * 1024;

/// How many bytes are read at a time from such a connection.
pub(super) const SLOW_READ: usize = 32;

/// Roughly what h2 keeps for each of the most requests that a connection has had at a time, in bytes. Its tables double in size and never
/// shrink.
const SLOT_BYTES: usize = 768;

/// How many such slots are part of the memory of a connection.
const FREE_SLOTS: usize = 32;

/// How many slots for unread DATA frames are part of the memory of a connection. The table of these slots does not shrink, either.
const FREE_FRAME_SLOTS: usize = 32;

/// For how long nothing is read from a connection that holds too much, before it is looked at again.
const PAUSE: Duration = Duration::from_millis(50);

/// Pauses between the reads of a connection.
#[derive(Debug, Default)]
pub(super) struct ReadPause(Option<Pin<Box<Sleep>>>);

impl ReadPause {
    /// Nothing is read for `duration`.
    pub(super) fn begin(&mut self, duration: Duration) {
        self.0 = Some(Box::pin(sleep(duration)));
    }

    /// Ready when there is no pause, and what the connection holds may grow. Returns how many bytes may be read.
    pub(super) fn poll_end(&mut self, cx: &mut Context<'_>, unread: &Unread) -> Poll<usize> {
        loop {
            if let Some(sleep) = &mut self.0 {
                ready!(sleep.as_mut().poll(cx));
                self.0 = None;
            }
            let max_read = unread.max_read();
            let is_slow = max_read <= SLOW_READ;
            if unread.is_slow.load(Ordering::Relaxed) != is_slow {
                unread.is_slow.store(is_slow, Ordering::Relaxed);
                if is_slow {
                    unread.address.throttling.report(Throttle::Unread);
                }
            }
            if max_read > 0 {
                return Poll::Ready(max_read);
            }
            self.begin(PAUSE);
        }
    }
}

/// Counts what h2 and TLS hold for one connection.
#[derive(Debug)]
pub(super) struct Unread {
    held: Mutex<Held>,
    /// What is held, in bytes.
    total: AtomicUsize,
    /// The part of it that stays as long as the connection.
    permanent: AtomicUsize,
    /// How often something was received.
    receipts: AtomicUsize,
    /// Whether the socket accepted nothing when the connection was last polled.
    is_blocked: AtomicBool,
    /// Whether nothing is read, or little at a time, because too much is held.
    is_slow: AtomicBool,
    address: Arc<AddressBudgets>,
    /// Of all connections together.
    all: Arc<AtomicUsize>,
    limit: usize,
}

#[derive(Debug, Default)]
struct Held {
    streams: OpenStreams,
    /// Whether a header block has begun and not ended.
    is_in_headers: bool,
    /// The length of a frame that has arrived in part and has a buffer of its own, in bytes.
    incomplete: usize,
    /// For the most requests so far, in bytes.
    slots: usize,
    /// For the most unread frames so far, in bytes.
    frame_slots: usize,
    /// What the table of headers keeps, in bytes.
    header_table: usize,
    /// What TLS cannot decrypt yet, in bytes.
    undecrypted: usize,
}

impl Held {
    fn bytes(&self) -> usize {
        let headers = if self.is_in_headers { HEADER_MAP_BYTES } else { 0 };
        self.streams.bytes() + headers + self.incomplete + self.undecrypted + self.permanent()
    }

    /// What stays as long as the connection. Slots that have an unread frame count for that.
    fn permanent(&self) -> usize {
        let free_slots = self.frame_slots.saturating_sub(self.streams.frame_bytes());
        self.slots + free_slots + self.header_table
    }

    fn grow_slots(&mut self) {
        let most = self.streams.len();
        if most > FREE_SLOTS {
            self.slots = self.slots.max(most.next_power_of_two() * SLOT_BYTES);
        }
        let most = self.streams.frames();
        if most > FREE_FRAME_SLOTS {
            self.frame_slots = self.frame_slots.max(most.next_power_of_two() * FRAME_BYTES);
        }
    }
}

/// Why a connection holds too much.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Excess {
    /// It holds more than its fair share.
    Own,
    /// It holds little, but its address holds too much in such connections.
    Address,
}

impl Unread {
    pub(super) fn new(address: Arc<AddressBudgets>, all: Arc<AtomicUsize>, limit: usize) -> Self {
        Self {
            held: Mutex::default(),
            total: AtomicUsize::new(0),
            permanent: AtomicUsize::new(0),
            receipts: AtomicUsize::new(0),
            is_blocked: AtomicBool::new(false),
            is_slow: AtomicBool::new(false),
            address,
            all,
            limit,
        }
    }

    /// Applies `change` and counts what it makes of the sum.
    fn change<R>(&self, change: impl FnOnce(&mut Held) -> R) -> R {
        let mut held = self.held.lock();
        let result = change(&mut held);
        let (total, before) = (held.bytes(), self.total.load(Ordering::Relaxed));
        if total != before {
            self.total.store(total, Ordering::Relaxed);
            self.permanent.store(held.permanent(), Ordering::Relaxed);
            // Both wrap around if it is less than before.
            let added = total.wrapping_sub(before);
            self.address.unread.fetch_add(added, Ordering::Relaxed);
            self.all.fetch_add(added, Ordering::Relaxed);
        }
        result
    }

    /// Counts what was received.
    ///
    /// # Errors
    ///
    /// The client sends too many frames.
    pub(super) fn receive(&self, bytes: &[u8], meter: &mut FrameMeter) -> Result<ReadFrames, Flood> {
        self.receipts.fetch_add(1, Ordering::Relaxed);
        self.change(|held| {
            let frames = meter.on_read(bytes, &mut held.streams)?;
            held.is_in_headers = frames.is_in_headers;
            held.incomplete = frames.incomplete;
            held.header_table = frames.header_table;
            held.grow_slots();
            Ok(frames)
        })
    }

    /// Counts what the socket has accepted.
    pub(super) fn send(&self, bytes: &[u8], meter: &mut FrameMeter) {
        self.change(|held| meter.on_written(bytes, &mut held.streams));
    }

    /// Counts what TLS cannot decrypt yet, in bytes.
    pub(super) fn set_undecrypted(&self, bytes: usize) {
        self.change(|held| held.undecrypted = bytes);
    }

    /// Whether anything is held.
    pub(super) fn has_any(&self) -> bool {
        self.total.load(Ordering::Relaxed) > 0
    }

    /// How often something was received.
    pub(super) fn receipts(&self) -> usize {
        self.receipts.load(Ordering::Relaxed)
    }

    /// How many bytes may be read from the connection at a time, 0 if nothing may. There is no limit if it holds less than its fair share of
    /// what its address may hold, nor if it holds at most [`SMALL_UNREAD`] while its address holds no more than it may.
    fn max_read(&self) -> usize {
        // Usually so, and looked at first because all connections share the other counters.
        let is_address_small = self.address.unread.load(Ordering::Relaxed) <= SMALL_UNREAD;
        if is_address_small || self.exceeds(|share| share.max(SMALL_UNREAD)).is_none() {
            return usize::MAX;
        }
        let held = self.held.lock();
        // What earlier requests have left must not shut a client out. The table of headers grows with each.
        let has_small_table = held.header_table <= SMALL_UNREAD;
        if held.bytes() - held.permanent() <= MIN_UNREAD && has_small_table {
            SLOW_READ
        } else {
            0
        }
    }

    /// Whether a connection that has held memory for seconds may stay open. `is_stuck` tells whether
    /// nothing was read from it in this time.
    pub(super) fn may_last(&self, is_stuck: bool) -> bool {
        let excess = if self.has_any() {
            self.exceeds(|_| self.limit / LASTING_PART)
        } else {
            None
        };
        match excess {
            None => true,
            // It is at its limit, and handles what it holds.
            Some(Excess::Own) => !is_stuck,
            // Others of its address hold it.
            Some(Excess::Address) => self.holds_almost_nothing(),
        }
    }

    fn holds_almost_nothing(&self) -> bool {
        let [own, permanent] = self.own();
        own == permanent && permanent <= SMALL_UNREAD
    }

    /// What the connection holds, and the part of it that stays as long as the connection.
    fn own(&self) -> [usize; 2] {
        [&self.total, &self.permanent].map(|bytes| bytes.load(Ordering::Relaxed))
    }

    /// What the connection exceeds. One that holds little exceeds nothing until its address holds more than `most_of_address`, given the fair
    /// share of the address.
    fn exceeds(&self, most_of_address: impl FnOnce(usize) -> usize) -> Option<Excess> {
        let [own, permanent] = self.own();
        let [address, all] = [&self.address.unread, &self.all].map(|bytes| bytes.load(Ordering::Relaxed));
        let address_share = fair_share(self.limit, all, address);
        if own < fair_share(address_share, address, own) {
            None
        } else if own.saturating_sub(permanent) > SMALL_UNREAD {
            Some(Excess::Own)
        } else {
            (address > most_of_address(address_share)).then_some(Excess::Address)
        }
    }

    /// Counts the data of a frame that was read. The sum is only lowered by [`Self::settle`], because counters that all connections share are
    /// too expensive to change for each frame.
    pub(super) fn read(&self, reader: &mut RequestReader, data: &[u8]) {
        if !reader.defer(data) {
            self.held.lock().streams.read_data(reader, data);
        }
    }

    /// Counts the frames that a reader has read, when it waits for more.
    pub(super) fn count_reads(&self, reader: &mut RequestReader) {
        if reader.has_uncounted() {
            self.held.lock().streams.count_reads(reader);
        }
    }

    /// Nothing more is read from a stream.
    pub(super) fn end_reading(&self, reader: &RequestReader) {
        self.change(|held| held.streams.end_reading(reader));
    }

    /// Corrects the sum after the connection and its streams were polled. Unless its socket `is_blocked`, that has accepted all answers that
    /// there were.
    pub(super) fn settle(&self, is_blocked: bool) {
        let [own, permanent] = self.own();
        let was_blocked = self.is_blocked.swap(is_blocked, Ordering::Relaxed);
        if own != permanent || is_blocked != was_blocked {
            self.change(|held| held.streams.set_blocked(is_blocked));
        }
    }
}

impl Drop for Unread {
    fn drop(&mut self) {
        self.change(|held| *held = Held::default());
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::net::Ipv4Addr;

    use super::super::connection_budgets::{BudgetLimits, ConnectionBudgets, ServerBudgets};
    use super::super::open_streams::{DataRun, UNANSWERED_BYTES};
    use super::*;

    fn server(limits: BudgetLimits) -> ServerBudgets {
        ServerBudgets::new(limits, 10)
    }

    /// Holds so many bytes more. Returns whether that is allowed.
    fn hold(connection: &Arc<ConnectionBudgets>, bytes: usize) -> bool {
        connection.unread.change(|held| held.undecrypted += bytes);
        connection.unread.max_read() == usize::MAX
    }

    fn release(connection: &Arc<ConnectionBudgets>, bytes: usize) {
        connection.unread.change(|held| held.undecrypted -= bytes);
    }

    /// Opens streams from this one on. Returns whether that is allowed.
    fn open(connection: &Arc<ConnectionBudgets>, first: u32, count: u32) -> bool {
        connection.unread.change(|held| {
            for stream in first..first + count {
                held.streams.open(stream);
            }
            held.grow_slots();
        });
        connection.unread.max_read() == usize::MAX
    }

    fn close(connection: &Arc<ConnectionBudgets>, first: u32, count: u32) {
        connection.unread.change(|held| {
            for stream in first..first + count {
                held.streams.close(stream);
            }
        });
    }

    #[test]
    fn what_a_connection_holds_is_counted_until_it_ends() {
        let server = server(BudgetLimits::default());
        let connection = server.connection(Ipv4Addr::LOCALHOST.into());
        assert!(open(&connection, 1, 10) && hold(&connection, 1_000));
        assert_eq!(server.unread(), 10 * UNANSWERED_BYTES + 1_000);
        close(&connection, 1, 4);
        release(&connection, 1_000);
        assert_eq!(server.unread(), 6 * UNANSWERED_BYTES);
        let accepted = (11..).take_while(|stream| open(&connection, *stream, 1)).count();
        let most = BudgetLimits::default().unread * 9 / 16 / (UNANSWERED_BYTES + SLOT_BYTES);
        assert!((most / 2..=most).contains(&accepted), "{accepted}");
        drop(connection);
        assert_eq!(server.unread(), 0);
    }

    #[test]
    fn a_connection_counts_the_most_streams_that_it_has_had() {
        let server = server(BudgetLimits::default());
        let total = || server.unread();
        let connections = || (0..10).map(|_| server.connection(Ipv4Addr::LOCALHOST.into()));
        let had = |connection: &Arc<ConnectionBudgets>, streams: u32| {
            let is_allowed = (1..=streams).all(|stream| {
                let is_allowed = open(connection, stream, 1);
                connection.unread.change(|held| held.streams.answer(stream));
                is_allowed
            });
            close(connection, 1, streams);
            is_allowed
        };
        let few: Vec<_> = connections().collect();
        assert!(
            few.iter()
                .all(|connection| had(connection, u32::try_from(FREE_SLOTS).unwrap()))
        );
        assert_eq!(total(), 0);
        let many: Vec<_> = connections().collect();
        assert!(many.iter().all(|connection| had(connection, 1_000)));
        assert_eq!(total(), many.len() * 1_024 * SLOT_BYTES);
        let more: Vec<_> = (0..10).flat_map(|_| connections()).collect();
        assert!(more.iter().any(|connection| !had(connection, 1_000)));
        drop((many, more));
        assert_eq!(total(), 0);
    }

    #[test]
    fn an_address_with_much_unread_leaves_something_for_others() {
        let server = server(BudgetLimits {
            unread: 256 * SMALL_UNREAD,
            ..BudgetLimits::default()
        });
        let greedy = [(); 3].map(|()| server.connection([192, 0, 2, 1].into()));
        for connection in &greedy {
            while hold(connection, 256) {}
            // What it had when it was cut.
            release(connection, 256);
        }
        let used = server.unread();
        assert!((185 * SMALL_UNREAD..192 * SMALL_UNREAD).contains(&used), "{used}");
        // One of the same address, and one of another that has more than a little.
        let sibling = server.connection([192, 0, 2, 1].into());
        assert!(hold(&sibling, SMALL_UNREAD));
        let other = server.connection([192, 0, 2, 2].into());
        assert!(hold(&other, 32 * SMALL_UNREAD));
        // Whoever has most gives way.
        assert!(!hold(&greedy[0], 1));
        assert!(hold(&other, 1));
        drop((greedy, sibling));
        assert!(hold(&other, 64 * SMALL_UNREAD));
    }

    #[test]
    fn a_connection_with_little_unread_is_not_cut_because_of_other_addresses() {
        let server = server(BudgetLimits {
            unread: 8 * SMALL_UNREAD,
            ..BudgetLimits::default()
        });
        let held: Vec<_> = (1..20)
            .map(|last| server.connection([192, 0, 2, last].into()))
            .collect();
        for connection in &held {
            assert!(hold(connection, SMALL_UNREAD));
        }
        assert!(!hold(&held[0], 256));
        drop(held);
        assert_eq!(server.unread(), 0);
    }

    #[test]
    fn many_connections_of_one_address_do_not_have_more_unread_than_its_part() {
        let server = server(BudgetLimits {
            unread: 240_000,
            ..BudgetLimits::default()
        });
        let one: Vec<_> = (0..4).map(|_| server.connection([192, 0, 2, 1].into())).collect();
        let other = server.connection([192, 0, 2, 2].into());
        assert!(one[..3].iter().all(|connection| hold(connection, 60_000)));
        assert!(!hold(&one[3], 1));
        assert!(hold(&other, 60_000));
        drop(one);
        assert_eq!(server.unread(), 60_000);
    }

    #[test]
    fn whoever_holds_little_is_read_from_slowly_while_others_of_the_address_hold_too_much() {
        let limits = BudgetLimits::default();
        let server = server(limits);
        let address = [192, 0, 2, 1];
        let greedy: Vec<_> = (0..1_000).map(|_| server.connection(address.into())).collect();
        let mut quiet = server.connection(address.into());
        for connection in &greedy {
            while hold(connection, 1_000) {}
        }
        assert!(server.unread() < limits.unread, "{}", server.unread());
        assert_eq!(quiet.unread.max_read(), SLOW_READ);
        hold(&quiet, MIN_UNREAD);
        assert_eq!(quiet.unread.max_read(), SLOW_READ);
        hold(&quiet, 1);
        assert_eq!(quiet.unread.max_read(), 0);
        // Earlier requests have left something.
        quiet = server.connection(address.into());
        quiet.unread.change(|held| held.header_table = SMALL_UNREAD);
        assert_eq!(quiet.unread.max_read(), SLOW_READ);
        hold(&quiet, MIN_UNREAD + 1);
        assert_eq!(quiet.unread.max_read(), 0);
        release(&quiet, MIN_UNREAD + 1);
        quiet.unread.change(|held| held.header_table += 1);
        assert_eq!(quiet.unread.max_read(), 0);
        let other = server.connection([192, 0, 2, 2].into());
        assert_eq!(other.unread.max_read(), usize::MAX);
    }

    #[test]
    fn each_of_many_addresses_exceeds_the_limit_by_little() {
        let limits = BudgetLimits::default();
        let server = server(limits);
        let addresses = (0..4_000).map(|n: u16| [192, 0, n.to_be_bytes()[0], n.to_be_bytes()[1]]);
        let held: Vec<_> = addresses
            .flat_map(|address| [address; 2])
            .map(|address| {
                let connection = server.connection(address.into());
                while hold(&connection, 1_024) {}
                connection
            })
            .collect();
        assert!(held.iter().all(|connection| connection.unread.has_any()));
        let per_address = server.unread().saturating_sub(limits.unread) / 4_000;
        assert!(per_address < SMALL_UNREAD + 2 * 1_024, "{per_address}");
    }

    #[test]
    fn those_who_hold_much_and_receive_nothing_give_way() {
        let server = server(BudgetLimits {
            unread: 256 * SMALL_UNREAD,
            ..BudgetLimits::default()
        });
        let connections = |last| (0..190).map(move |_| [192, 0, 2, last]);
        let mut held: Vec<_> = (1..4)
            .flat_map(connections)
            .map(|address| server.connection(address.into()))
            .collect();
        for connection in &held {
            hold(connection, SMALL_UNREAD);
        }
        let other = server.connection([192, 0, 2, 9].into());
        assert!(hold(&other, SMALL_UNREAD));
        assert!(other.unread.may_last(true));
        held.retain(|connection| connection.unread.may_last(true));
        assert!(server.unread() <= 256 * SMALL_UNREAD, "{}", server.unread());
        assert!(!held.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_that_holds_too_much_is_not_read_from_until_it_holds_less() {
        let server = server(BudgetLimits::default());
        let connection = server.connection(Ipv4Addr::LOCALHOST.into());
        let mut pause = ReadPause::default();
        let mut is_ready = async || {
            let ended = poll_fn(|cx| pause.poll_end(cx, &connection.unread));
            tokio::time::timeout(Duration::from_secs(1), ended).await.is_ok()
        };
        let all = BudgetLimits::default().unread;
        assert!(is_ready().await);
        assert!(!hold(&connection, all) && !is_ready().await);
        // It goes on, or not.
        assert!(connection.unread.may_last(false) && !connection.unread.may_last(true));
        release(&connection, all);
        assert!(is_ready().await);
    }

    #[test]
    fn who_holds_nothing_is_not_closed_because_of_others_of_the_address() {
        let server = server(BudgetLimits {
            unread: 16 * SMALL_UNREAD,
            ..BudgetLimits::default()
        });
        let [greedy, innocent] = [(); 2].map(|()| server.connection(Ipv4Addr::LOCALHOST.into()));
        innocent.unread.change(|held| held.header_table = 100);
        hold(&greedy, 32 * SMALL_UNREAD);
        assert!(innocent.unread.may_last(true));
        hold(&innocent, 1);
        assert!(!innocent.unread.may_last(true));
    }

    #[test]
    fn the_slots_of_frames_that_were_read_remain_counted() {
        let server = server(BudgetLimits::default());
        let connection = server.connection(Ipv4Addr::LOCALHOST.into());
        let receive = |frames: usize| {
            connection.unread.change(|held| {
                held.streams.open(1);
                (0..frames)
                    .for_each(|end| held.streams.receive_data(&DataRun::one(1, 9_000 + end, 1, false)));
                held.grow_slots();
            });
            let unread = server.unread();
            close(&connection, 1, 1);
            unread
        };
        receive(FREE_FRAME_SLOTS);
        assert_eq!(server.unread(), 0);
        // Those that have a frame are not counted twice.
        let unread = receive(1_000);
        assert!(
            (1_024 * FRAME_BYTES..1_100 * FRAME_BYTES).contains(&unread),
            "{unread}"
        );
        assert_eq!(server.unread(), 1_024 * FRAME_BYTES);
        receive(100);
        assert_eq!(server.unread(), 1_024 * FRAME_BYTES);
        drop(connection);
        assert_eq!(server.unread(), 0);
    }

    #[test]
    fn the_slots_of_earlier_requests_do_not_make_a_connection_give_way() {
        let server = server(BudgetLimits::default());
        let gateway = server.connection([192, 0, 2, 1].into());
        assert!(open(&gateway, 1, 100));
        close(&gateway, 1, 100);
        assert_eq!(server.unread(), 128 * SLOT_BYTES);
        let others: Vec<_> = (2..6)
            .flat_map(|last| [[192, 0, 2, last]; 40])
            .map(|address| server.connection(address.into()))
            .collect();
        for connection in &others {
            while hold(connection, SMALL_UNREAD) {}
        }
        open(&gateway, 101, 1);
        assert!(gateway.unread.max_read() > 0 && gateway.unread.may_last(true));
    }
}
