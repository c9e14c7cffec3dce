//! The memory that h2 and TLS hold because of what a connection has received and nobody has handled yet.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;

use super::address_budgets::{AddressBudgets, fair_share};
use super::data_frames::DataFrames;
use super::frame_meter::ReadFrames;
use super::header_table::READ_BUFFER;
use crate::domain::limits::per_address;

/// Flow-control window of a stream, in bytes: how much a client may send before the server reads it.
pub(super) const STREAM_WINDOW: u32 = 65_535;

/// A connection that holds at most this, in bytes, is closed only if its address holds too much.
const FAIR_UNREAD: usize = STREAM_WINDOW as usize;

/// What one address may hold for seconds in connections with so little: this part of the limit.
const FAIR_PART: usize = 16;

/// Roughly what h2 holds for a request whose answer it has not written, in bytes. It does not count requests with invalid headers, and
/// those that are refused, as open streams, but keeps an answer to each until the socket accepts it.
const UNANSWERED_BYTES: usize = 2 * 1024;

/// What h2 keeps at most of the headers of one request, or of its trailers, in bytes: hundreds of short ones.
const HEADER_MAP_BYTES: usize = 96 * 1024;

/// Roughly what h2 keeps for each of the most requests that a connection has had at a time, in bytes. Its tables double in size and never
/// shrink.
const SLOT_BYTES: usize = 768;

/// How many such slots are part of the memory of a connection.
const FREE_SLOTS: usize = 32;

/// A connection holds more than its fair share. The server closes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("too much of what the connection has received is unread")]
pub(super) struct TooMuchUnread;

/// Counts what h2 and TLS hold for one connection.
///
/// What arrives for a request that has ended, and padding, is not read but discarded by h2, and a request that its client ends is not
/// answered. [`Unread::settle`] forgets them.
#[derive(Debug)]
pub(super) struct Unread {
    held: Mutex<Held>,
    /// What is held, in bytes.
    total: AtomicUsize,
    /// The part of it that stays as long as the connection.
    permanent: AtomicUsize,
    address: Arc<AddressBudgets>,
    /// Of all connections together.
    all: Arc<AtomicUsize>,
    limit: usize,
}

#[derive(Debug, Default)]
struct Held {
    /// What its requests have not read.
    data: DataFrames,
    /// The other bytes that were received since there was nothing to read.
    others: usize,
    /// Requests that are not answered, whatever their state.
    unanswered: usize,
    /// Those of them that were not begun. They may never be: those that h2 refuses are not.
    not_begun: usize,
    /// The streams that are open.
    streams: usize,
    /// The requests that can still read something.
    requests: usize,
    /// Header blocks that follow the messages of a request. gRPC clients do not send any.
    trailers: usize,
    /// Whether a header block has begun and not ended.
    is_in_headers: bool,
    /// For the most requests so far, in bytes.
    slots: usize,
    /// What the table of headers keeps, in bytes.
    header_table: usize,
    /// What TLS cannot decrypt yet, in bytes.
    undecrypted: usize,
}

impl Held {
    fn bytes(&self) -> usize {
        // A frame keeps all buffers that contain a part of it.
        let buffers = self.others.min(READ_BUFFER * self.data.count());
        let headers = self.trailers + usize::from(self.is_in_headers);
        self.data.charge()
            + buffers
            + self.unanswered * UNANSWERED_BYTES
            + headers * HEADER_MAP_BYTES
            + self.slots
            + self.header_table
            + self.undecrypted
    }

    fn grow_slots(&mut self) {
        let most = self.not_begun + self.streams;
        if most > FREE_SLOTS {
            self.slots = self.slots.max(most.next_power_of_two() * SLOT_BYTES);
        }
    }

    fn forget_others_if_all_is_read(&mut self) {
        if self.data.count() == 0 {
            self.others = 0;
        }
    }
}

impl Unread {
    pub(super) fn new(address: Arc<AddressBudgets>, all: Arc<AtomicUsize>, limit: usize) -> Self {
        Self {
            held: Mutex::default(),
            total: AtomicUsize::new(0),
            permanent: AtomicUsize::new(0),
            address,
            all,
            limit,
        }
    }

    /// Applies `change` and counts what it makes of the sum.
    fn change(&self, change: impl FnOnce(&mut Held)) {
        let mut held = self.held.lock();
        change(&mut held);
        let total = held.bytes();
        self.permanent
            .store(held.slots + held.header_table, Ordering::Relaxed);
        let added = total.wrapping_sub(self.total.swap(total, Ordering::Relaxed));
        if added != 0 {
            // Both wrap around if it is less than before.
            self.address.unread.fetch_add(added, Ordering::Relaxed);
            self.all.fetch_add(added, Ordering::Relaxed);
        }
    }

    /// Whether nothing is held but what stays as long as the connection.
    fn is_settled(&self) -> bool {
        self.total.load(Ordering::Relaxed) == self.permanent.load(Ordering::Relaxed)
    }

    /// Counts what was received. Returns false if the connection must be closed: it exceeds its fair share of the fair share of its
    /// address. One that has at most [`FAIR_UNREAD`] is closed only if its address exceeds three quarters of the limit.
    pub(super) fn add(&self, frames: &ReadFrames) -> bool {
        if self.is_settled() && !frames.take_memory() {
            return true;
        }
        self.change(|held| {
            held.data += &frames.data;
            held.others += frames.other_bytes;
            held.unanswered += frames.requests;
            held.not_begun += frames.requests;
            held.trailers += frames.trailers;
            held.is_in_headers = frames.ends_in_headers;
            held.header_table = frames.header_table;
            held.forget_others_if_all_is_read();
            held.grow_slots();
        });
        self.is_allowed(per_address(self.limit))
    }

    /// Counts what TLS cannot decrypt yet, in bytes. Returns false if the connection must be closed, as [`Self::add`] does.
    pub(super) fn set_undecrypted(&self, bytes: usize) -> bool {
        self.change(|held| held.undecrypted = bytes);
        self.is_allowed(per_address(self.limit))
    }

    /// Whether anything is held.
    pub(super) fn has_any(&self) -> bool {
        self.total.load(Ordering::Relaxed) > 0
    }

    /// Whether the connection holds no more than its fair share although it has had seconds to handle it. Whoever receives nothing would
    /// otherwise not give way to others.
    pub(super) fn is_fair(&self) -> bool {
        self.is_allowed(self.limit / FAIR_PART)
    }

    /// Whether the connection holds at most its fair share, or at most [`FAIR_UNREAD`] beside what stays as long as it lasts and its address
    /// at most `most_of_address`.
    fn is_allowed(&self, most_of_address: usize) -> bool {
        let [own, permanent] = [&self.total, &self.permanent].map(|bytes| bytes.load(Ordering::Relaxed));
        let address = self.address.unread.load(Ordering::Relaxed);
        let all = self.all.load(Ordering::Relaxed);
        let address_share = fair_share(self.limit, all, address);
        let own_share = fair_share(address_share, address, own);
        own <= own_share || (own.saturating_sub(permanent) <= FAIR_UNREAD && address <= most_of_address)
    }

    /// Counts a DATA frame that was read.
    pub(super) fn read(&self, len: usize) {
        self.change(|held| {
            held.data.remove(len);
            held.forget_others_if_all_is_read();
        });
    }

    /// Counts requests to which the socket has accepted the answers.
    pub(super) fn answered(&self, requests: usize) {
        self.change(|held| {
            held.unanswered = held.unanswered.saturating_sub(requests);
            held.not_begun = held.not_begun.min(held.unanswered);
        });
    }

    /// Counts a stream that is opened for a request.
    pub(super) fn open_stream(&self) {
        self.change(|held| {
            held.streams += 1;
            held.not_begun = held.not_begun.saturating_sub(1);
        });
    }

    pub(super) fn close_stream(&self) {
        self.change(|held| held.streams -= 1);
    }

    /// Counts a request that begins to read.
    pub(super) fn begin_request(&self) {
        self.change(|held| held.requests += 1);
    }

    pub(super) fn end_request(&self) {
        self.change(|held| held.requests -= 1);
    }

    /// Forgets requests that have ended without an answer, because their client has cancelled them. The socket must have accepted all answers
    /// that there are. A connection that is never idle is not [settled](Self::settle).
    pub(super) fn forget_cancelled(&self) {
        if self.is_settled() {
            return;
        }
        self.change(|held| held.unanswered = held.unanswered.min(held.not_begun + held.streams));
    }

    /// Corrects the count to what the windows of the requests allow. All requests that were received must have been begun, and all answers
    /// that there are must have been written unless the socket is blocked.
    pub(super) fn settle(&self, is_blocked: bool) {
        if self.is_settled() {
            return;
        }
        self.change(|held| {
            if !is_blocked {
                (held.unanswered, held.not_begun) = (0, 0);
            }
            if held.requests == 0 {
                held.data = DataFrames::default();
                held.trailers = 0;
            }
            held.data.discard_beyond(held.requests * STREAM_WINDOW as usize);
            held.forget_others_if_all_is_read();
        });
    }
}

impl Drop for Unread {
    fn drop(&mut self) {
        self.change(|held| *held = Held::default());
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::super::budget::{BudgetLimits, ConnectionBudgets, ServerBudgets};
    use super::super::data_frames::MIN_FRAME_BYTES;
    use super::*;

    fn server(limits: BudgetLimits) -> ServerBudgets {
        ServerBudgets::new(limits, 10)
    }

    /// So many bytes in long DATA frames, and so many requests.
    fn received(bytes: usize, requests: usize) -> ReadFrames {
        let mut frames = ReadFrames {
            requests,
            ..ReadFrames::default()
        };
        for start in (0..bytes).step_by(1 << 14) {
            frames.data.add((bytes - start).min(1 << 14));
        }
        frames
    }

    #[test]
    fn what_h2_has_discarded_does_not_stay_counted() {
        let server = server(BudgetLimits::default());
        let connection = server.connection(Ipv4Addr::LOCALHOST.into());
        let chat = connection.begin_request();
        for _ in 0..1_000 {
            let upload = connection.begin_request();
            connection.unread.add(&received(10_000, 0));
            upload.read(1_000);
            drop(upload);
            connection.unread.settle(false);
            assert!(connection.unread.total.load(Ordering::Relaxed) <= FAIR_UNREAD);
        }
        drop(chat);
        connection.unread.settle(false);
        assert_eq!(server.unread(), 0);
    }

    #[test]
    fn requests_count_until_their_answers_are_written() {
        let server = server(BudgetLimits::default());
        let connection = server.connection(Ipv4Addr::LOCALHOST.into());
        let unread = &connection.unread;
        let total = || server.unread();
        assert!(unread.add(&received(1_000, 10)));
        unread.answered(4);
        assert_eq!(total(), 1_000 + 6 * UNANSWERED_BYTES);
        // There is no request that could read the data.
        unread.settle(true);
        assert_eq!(total(), 6 * UNANSWERED_BYTES);
        // The client has ended the other requests, or the answers were trailers.
        unread.settle(false);
        unread.answered(1);
        assert_eq!(total(), 0);
        let accepted = (0..).take_while(|_| unread.add(&received(0, 1))).count();
        let most = BudgetLimits::default().unread * 9 / 16 / (UNANSWERED_BYTES + SLOT_BYTES);
        assert!((most / 2..=most).contains(&accepted), "{accepted}");
        drop(connection);
        assert_eq!(total(), 0);
    }

    #[test]
    fn requests_that_are_cancelled_do_not_stay_counted() {
        let server = server(BudgetLimits::default());
        let connection = server.connection(Ipv4Addr::LOCALHOST.into());
        let open = [(); 2].map(|()| {
            connection.unread.add(&received(0, 1));
            connection.open_stream()
        });
        for _ in 0..100_000 {
            assert!(connection.unread.add(&received(0, 1)));
            drop(connection.open_stream());
            connection.unread.forget_cancelled();
        }
        assert_eq!(server.unread(), open.len() * UNANSWERED_BYTES);
    }

    #[test]
    fn a_connection_counts_the_most_streams_that_it_has_had() {
        let server = server(BudgetLimits::default());
        let total = || server.unread();
        let connections = || (0..10).map(|_| server.connection(Ipv4Addr::LOCALHOST.into()));
        let had = |connection: &Arc<ConnectionBudgets>, streams: usize| {
            let mut open = Vec::new();
            let is_allowed = (0..streams).all(|_| {
                let is_allowed = connection.unread.add(&received(0, 1));
                open.push(connection.open_stream());
                connection.unread.answered(1);
                is_allowed
            });
            drop(open);
            connection.unread.settle(false);
            is_allowed
        };
        let few: Vec<_> = connections().collect();
        assert!(few.iter().all(|connection| had(connection, FREE_SLOTS)));
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
            unread: 256 * FAIR_UNREAD,
            ..BudgetLimits::default()
        });
        let greedy = [(); 3].map(|()| server.connection([192, 0, 2, 1].into()));
        for connection in &greedy {
            while connection.unread.add(&received(256, 0)) {}
            // What it had when it was cut.
            connection.unread.read(256);
        }
        let used = server.unread();
        assert!((185 * FAIR_UNREAD..192 * FAIR_UNREAD).contains(&used), "{used}");
        // One of the same address, and one of another that has more than a little.
        let sibling = server.connection([192, 0, 2, 1].into());
        assert!(sibling.unread.add(&received(FAIR_UNREAD, 0)));
        let other = server.connection([192, 0, 2, 2].into());
        assert!(other.unread.add(&received(32 * FAIR_UNREAD, 0)));
        // Whoever has most gives way.
        assert!(!greedy[0].unread.add(&received(1, 0)));
        assert!(other.unread.add(&received(1, 0)));
        drop((greedy, sibling));
        assert!(other.unread.add(&received(64 * FAIR_UNREAD, 0)));
    }

    #[test]
    fn a_connection_with_little_unread_is_not_cut_because_of_other_addresses() {
        let server = server(BudgetLimits {
            unread: 8 * FAIR_UNREAD,
            ..BudgetLimits::default()
        });
        let held: Vec<_> = (1..20)
            .map(|last| server.connection([192, 0, 2, last].into()))
            .collect();
        for connection in &held {
            assert!(connection.unread.add(&received(FAIR_UNREAD, 0)));
        }
        assert!(!held[0].unread.add(&received(256, 0)));
        drop(held);
        assert_eq!(server.unread(), 0);
    }

    #[test]
    fn many_connections_of_one_address_do_not_have_more_unread_than_its_part() {
        let server = server(BudgetLimits {
            unread: 4_000,
            ..BudgetLimits::default()
        });
        let one: Vec<_> = (0..4).map(|_| server.connection([192, 0, 2, 1].into())).collect();
        let other = server.connection([192, 0, 2, 2].into());
        assert!(
            one[..3]
                .iter()
                .all(|connection| connection.unread.add(&received(1_000, 0)))
        );
        assert!(!one[3].unread.add(&received(1, 0)));
        assert!(other.unread.add(&received(1_000, 0)));
        drop(one);
        assert_eq!(server.unread(), 1_000);
    }

    #[test]
    fn those_who_hold_much_and_receive_nothing_give_way() {
        let server = server(BudgetLimits {
            unread: 256 * FAIR_UNREAD,
            ..BudgetLimits::default()
        });
        let connections = |last| (0..190).map(move |_| [192, 0, 2, last]);
        let mut held: Vec<_> = (1..4)
            .flat_map(connections)
            .map(|address| server.connection(address.into()))
            .collect();
        for connection in &held {
            connection.unread.add(&received(FAIR_UNREAD, 0));
        }
        let other = server.connection([192, 0, 2, 9].into());
        assert!(other.unread.add(&received(FAIR_UNREAD, 0)));
        assert!(other.unread.is_fair());
        held.retain(|connection| connection.unread.is_fair());
        assert!(server.unread() <= 256 * FAIR_UNREAD, "{}", server.unread());
        assert!(!held.is_empty());
    }

    #[test]
    fn the_slots_of_earlier_requests_do_not_make_a_connection_give_way() {
        let server = server(BudgetLimits::default());
        let gateway = server.connection([192, 0, 2, 1].into());
        assert!(gateway.unread.add(&received(0, 100)));
        gateway.unread.settle(false);
        assert_eq!(server.unread(), 128 * SLOT_BYTES);
        let others: Vec<_> = (2..6)
            .flat_map(|last| [[192, 0, 2, last]; 40])
            .map(|address| server.connection(address.into()))
            .collect();
        for connection in &others {
            while connection.unread.add(&received(FAIR_UNREAD, 0)) {}
        }
        assert!(gateway.unread.add(&received(1_000, 1)) && gateway.unread.is_fair());
    }

    #[test]
    fn a_header_block_without_an_end_and_trailers_count() {
        let server = server(BudgetLimits::default());
        let connection = server.connection(Ipv4Addr::LOCALHOST.into());
        let unread = &connection.unread;
        let headers = |ends_in_headers, trailers| ReadFrames {
            ends_in_headers,
            trailers,
            ..ReadFrames::default()
        };
        unread.add(&headers(true, 0));
        unread.settle(false);
        assert_eq!(server.unread(), HEADER_MAP_BYTES);
        unread.add(&headers(false, 0));
        assert_eq!(server.unread(), 0);
        let request = connection.begin_request();
        unread.add(&headers(false, 2));
        unread.settle(false);
        assert_eq!(server.unread(), 2 * HEADER_MAP_BYTES);
        drop(request);
        unread.settle(false);
        assert_eq!(server.unread(), 0);
    }

    #[test]
    fn short_frames_that_are_not_read_count_with_the_buffers_that_they_are_in() {
        let server = server(BudgetLimits::default());
        let connection = server.connection(Ipv4Addr::LOCALHOST.into());
        let request = connection.begin_request();
        let mut frames = ReadFrames {
            other_bytes: 9 + READ_BUFFER,
            ..ReadFrames::default()
        };
        frames.data.add(5);
        for _ in 0..100 {
            connection.unread.add(&frames);
        }
        connection.unread.settle(false);
        assert_eq!(server.unread(), 100 * (MIN_FRAME_BYTES as usize + READ_BUFFER));
        for _ in 0..100 {
            request.read(5);
        }
        assert_eq!(server.unread(), 0);
    }
}
