//! Budgets for the memory that clients can make the server hold: per connection and for all connections together.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::Duration;

use http::Extensions;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::coop::poll_proceed;
use tokio_util::task::AbortOnDropHandle;

use super::address_budgets::{AddressBudgets, Addresses, fair_share};
use super::byte_budget::{ByteBudget, Reservation};
use super::error::RpcError;
use super::observer::{Throttle, ThrottleReporter};
use super::open_streams::RequestReader;
use super::rates::AddressRate;
use super::turns::{AddressTurns, AllTurns};
use super::unread::Unread;
use crate::auth::{Anonymous, Caller};
use crate::domain::RoomName;
use crate::domain::limits::per_address;
use crate::hub::{Hub, HubError, ReadPermits};
use crate::rate_limiter::Rate;
use crate::reason::Reason;

/// How many queries one connection can have in progress. Its other queries wait, so that a client with many of them does not
/// delay the queries of other connections.
const QUERIES_PER_CONNECTION: usize = 2;

/// How many streams of server reflection may be open, of all connections together. Each holds up to a few hundred KiB that its client does
/// not read: descriptors.
const MAX_REFLECTIONS: usize = 32;

/// How many TLS handshakes of one address are computed, or wait for those of other addresses, at a time. Otherwise the handshakes of clients
/// at other addresses would wait for seconds behind thousands of connections that begin at once.
const HANDSHAKES_PER_ADDRESS: usize = 2;

/// How many streams of each connection are always allowed.
const RESERVED_STREAMS: usize = 2;

/// Messages in transit of up to this size, in bytes, need no part of a budget: the memory of a stream includes one.
const SMALL_MESSAGE: usize = 2 * 1024;

/// A request that reads from its connection until this is dropped.
#[derive(Debug)]
pub(super) struct ReadingRequest {
    budgets: Arc<ConnectionBudgets>,
    reader: RequestReader,
}

impl ReadingRequest {
    /// Counts the data of a frame that it has read. It must be the slice that the connection has yielded, not a copy.
    pub(super) fn read(&mut self, data: &[u8]) {
        self.budgets.unread.read(&mut self.reader, data);
    }

    /// Must be called when there is nothing more to read for now.
    pub(super) fn wait(&mut self) {
        self.budgets.unread.count_reads(&mut self.reader);
    }
}

impl Drop for ReadingRequest {
    fn drop(&mut self) {
        self.budgets.unread.end_reading(&self.reader);
    }
}

/// The streams of a connection whose clients do not accept what the server has for them: h2 holds it.
#[derive(Debug)]
pub(super) struct StalledStreams {
    own: AtomicUsize,
    address: Arc<AddressBudgets>,
    /// Of all connections together.
    all: Arc<AtomicUsize>,
    limit: usize,
}

impl StalledStreams {
    /// Sets how many there are on this connection. Returns whether its address has more of them than its fair share.
    pub(super) fn update(&self, own: usize) -> bool {
        let before = self.own.swap(own, Ordering::Relaxed);
        let set = |count: &AtomicUsize| {
            count.fetch_add(own, Ordering::Relaxed);
            count.fetch_sub(before, Ordering::Relaxed) - before
        };
        let address = set(&self.address.stalled);
        let all = set(&self.all);
        address > fair_share(self.limit, all, address)
    }

    /// Counts none any more.
    pub(super) fn clear(&self) {
        if self.own.load(Ordering::Relaxed) > 0 {
            self.update(0);
        }
    }
}

impl Drop for StalledStreams {
    fn drop(&mut self) {
        self.clear();
    }
}

/// Allow one stream of server reflection until they are dropped: of the address, and of all.
pub(super) type ReflectionPermits = [OwnedSemaphorePermit; 2];

/// Allows one stream until it is dropped.
#[derive(Debug)]
pub(super) struct StreamPermit {
    _place: OwnedSemaphorePermit,
    /// `None` for a reserved stream.
    _address: Option<OwnedSemaphorePermit>,
}

/// The sizes of the budgets: bytes, unless a field says otherwise. One address has at most three quarters of each that all connections share.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BudgetLimits {
    /// Messages that are received in part and cannot be decoded yet, of all connections together.
    pub received: usize,
    /// The same, per connection.
    pub received_per_connection: usize,
    /// What h2 and TLS hold of what they have received, of all connections together: the buffers with data that no stream has read, headers,
    /// records that are not complete, 2 KiB for each request that is not answered, and what h2 keeps for the most requests that a connection
    /// has had at a time. Nothing is read from a connection that exceeds its fair share.
    pub unread: usize,
    /// Responses of unary calls that their clients have not accepted yet, of all connections together.
    pub responses: usize,
    /// The same, per connection.
    pub responses_per_connection: usize,
    /// How many streams may be open beyond the two that each connection always may have.
    pub streams: usize,
    /// How many streams may hold data that their clients do not accept for [`TransportLimits::stall_timeout`]. While an address exceeds
    /// its fair share, its own are ended within seconds. Each holds up to 128 KiB.
    ///
    /// [`TransportLimits::stall_timeout`]: super::TransportLimits::stall_timeout
    pub stalled_streams: usize,
    /// How many queries (`GetHistory`, `ListRooms`, `ListParticipants`, `ListBans`) are in progress at a time, with the rooms that are
    /// loaded because somebody has asked for them. Each holds a few MiB.
    pub queries: usize,
}

impl Default for BudgetLimits {
    fn default() -> Self {
        Self {
            received: 32 << 20,
            received_per_connection: 4 << 20,
            unread: 32 << 20,
            responses: 32 << 20,
            responses_per_connection: 8 << 20,
            streams: 4_096,
            stalled_streams: 256,
            queries: 4,
        }
    }
}

/// How many DATA frames that are too short for a message, and TLS records that are too short for a frame, the connections of one address
/// may send per second.
const SHORT_FRAMES_PER_SECOND: u32 = 512;

/// How many of them they may send at once.
const SHORT_FRAMES_BURST: u32 = 8_192;

/// For how long at most nothing is read from a connection that sends too many.
const MAX_PAUSE: Duration = Duration::from_millis(500);

/// How many connections of one address may be cut per second before its next ones wait.
const CUTS_PER_SECOND: u32 = 10;

/// How many of them may be cut at once.
const CUTS_BURST: u32 = 32;

/// How long a connection waits at most because others of its address were cut.
const MAX_CUT_DELAY: Duration = Duration::from_secs(5);

/// The budgets of all connections together.
#[derive(Debug)]
pub(super) struct ServerBudgets {
    limits: BudgetLimits,
    connections_per_address: usize,
    pub(super) addresses: Addresses,
    received: Arc<ByteBudget>,
    unread: Arc<AtomicUsize>,
    responses: Arc<ByteBudget>,
    queries: Arc<Semaphore>,
    reflections: Arc<Semaphore>,
    streams: Arc<Semaphore>,
    short_frames: Arc<AddressRate>,
    cuts: Arc<AddressRate>,
    stalled: Arc<AtomicUsize>,
    turns: Arc<AllTurns>,
    throttling: ThrottleReporter,
}

impl ServerBudgets {
    pub(super) fn new(limits: BudgetLimits, connections_per_address: usize) -> Self {
        let short_frames = Rate::new(
            SHORT_FRAMES_PER_SECOND,
            Duration::from_secs(1),
            SHORT_FRAMES_BURST,
        );
        let cuts = Rate::new(CUTS_PER_SECOND, Duration::from_secs(1), CUTS_BURST);
        Self {
            limits,
            connections_per_address,
            addresses: Addresses::default(),
            received: ByteBudget::new(limits.received),
            unread: Arc::default(),
            responses: ByteBudget::new(limits.responses),
            queries: Arc::new(Semaphore::new(limits.queries)),
            reflections: Arc::new(Semaphore::new(MAX_REFLECTIONS)),
            streams: Arc::new(Semaphore::new(limits.streams)),
            short_frames: Arc::new(AddressRate::new(short_frames)),
            cuts: Arc::new(AddressRate::new(cuts)),
            stalled: Arc::default(),
            turns: Arc::default(),
            throttling: ThrottleReporter::default(),
        }
    }

    /// Reports that clients begin to wait to `throttling`.
    pub(super) fn reporting_to(self, throttling: ThrottleReporter) -> Self {
        Self { throttling, ..self }
    }

    /// What all connections hold.
    #[cfg(test)]
    pub(super) fn unread(&self) -> usize {
        self.unread.load(Ordering::Relaxed)
    }

    /// The budgets of an address.
    pub(super) fn address(&self, address: IpAddr) -> Arc<AddressBudgets> {
        let limits = &self.limits;
        self.addresses.get_or_insert_with(address, || AddressBudgets {
            connections: Arc::new(Semaphore::new(self.connections_per_address)),
            streams: Arc::new(Semaphore::new(per_address(limits.streams))),
            // Rounded down, so that one of two is left.
            queries: Arc::new(Semaphore::new((3 * limits.queries / 4).max(1))),
            reflections: Arc::new(Semaphore::new(per_address(MAX_REFLECTIONS))),
            handshakes: Semaphore::new(HANDSHAKES_PER_ADDRESS),
            received: self.received.child(per_address(limits.received)),
            responses: self.responses.child(per_address(limits.responses)),
            unread: AtomicUsize::new(0),
            stalled: AtomicUsize::new(0),
            read_permits: OnceLock::new(),
            turns: Arc::new(AddressTurns::new(
                Arc::clone(&self.turns),
                self.throttling.clone(),
            )),
            throttling: self.throttling.clone(),
        })
    }

    /// The budgets of a new connection from `address`.
    pub(super) fn connection(&self, peer: IpAddr) -> Arc<ConnectionBudgets> {
        let address = self.address(peer);
        let limits = &self.limits;
        Arc::new(ConnectionBudgets {
            peer,
            short_frames: Arc::clone(&self.short_frames),
            cuts: Arc::clone(&self.cuts),
            received: address.received.child(limits.received_per_connection),
            unread: Unread::new(Arc::clone(&address), Arc::clone(&self.unread), limits.unread),
            work: AtomicU64::new(0),
            responses: address.responses.child(limits.responses_per_connection),
            own_queries: Arc::new(Semaphore::new(QUERIES_PER_CONNECTION)),
            all_queries: Arc::clone(&self.queries),
            all_reflections: Arc::clone(&self.reflections),
            reserved_streams: Arc::new(Semaphore::new(RESERVED_STREAMS)),
            all_streams: Arc::clone(&self.streams),
            stalled: StalledStreams {
                own: AtomicUsize::new(0),
                address: Arc::clone(&address),
                all: Arc::clone(&self.stalled),
                limit: self.limits.stalled_streams,
            },
            address,
        })
    }
}

/// How much work counts as one of the operations of which tokio grants a task 128 each time it runs.
const WORK_PER_UNIT: usize = 4;

/// The budgets of one connection. An `Arc` of them is an extension of each request.
#[derive(Debug)]
pub(super) struct ConnectionBudgets {
    peer: IpAddr,
    short_frames: Arc<AddressRate>,
    cuts: Arc<AddressRate>,
    received: Arc<ByteBudget>,
    pub(super) unread: Unread,
    /// The work that what the client has sent has made so far.
    pub(super) work: AtomicU64,
    pub(super) responses: Arc<ByteBudget>,
    own_queries: Arc<Semaphore>,
    all_queries: Arc<Semaphore>,
    all_reflections: Arc<Semaphore>,
    reserved_streams: Arc<Semaphore>,
    all_streams: Arc<Semaphore>,
    pub(super) address: Arc<AddressBudgets>,
    pub(super) stalled: StalledStreams,
}

impl ConnectionBudgets {
    /// Counts the work that the connection's task makes, so that the task yields to other connections when it has made some. Otherwise it
    /// would first handle everything that the socket has.
    pub(super) fn record_work(&self, work: usize, cx: &mut Context<'_>) {
        self.work.fetch_add(work as u64, Ordering::Relaxed);
        for _ in 0..work / WORK_PER_UNIT {
            match poll_proceed(cx) {
                Poll::Ready(unit) => unit.made_progress(),
                Poll::Pending => return,
            }
        }
    }

    /// Counts DATA frames that are too short for a message, and TLS records that are too short for a frame. Returns for how long nothing
    /// should be read from the connection, if its address sends too many: hundreds of connections that send messages byte by byte would
    /// occupy the machine.
    pub(super) fn pause_after_short_frames(&self, count: u32) -> Option<Duration> {
        let pause = self.short_frames.record(self.peer, count, MAX_PAUSE);
        if pause.is_zero() {
            return None;
        }
        self.address.throttling.report(Throttle::ShortFrames);
        Some(pause)
    }

    /// Counts that the connection was cut because of what its client sent.
    pub(super) fn count_cut(&self) {
        self.cuts.record(self.peer, 1, MAX_CUT_DELAY);
    }

    /// How long the connection should wait before it is served, because many of its address were cut: a client that opens a new one
    /// for each that is cut would occupy the machine. Counts it, if it waits.
    pub(super) fn delay_after_cuts(&self) -> Duration {
        match self.cuts.check(Some(self.peer)) {
            Ok(()) => Duration::ZERO,
            Err(_) => {
                self.address.throttling.report(Throttle::Cuts);
                self.cuts.record(self.peer, 1, MAX_CUT_DELAY)
            }
        }
    }
}

/// The connection that a request came on, and who makes the request.
pub(super) struct ConnectionInfo {
    pub(super) caller: Caller,
    pub(super) peer: Option<SocketAddr>,
    pub(super) budgets: Arc<ConnectionBudgets>,
}

/// The address of the client, as an extension of each request.
#[derive(Debug, Clone, Copy)]
pub(super) struct Peer(pub(super) SocketAddr);

impl ConnectionInfo {
    /// The connection of a request with these extensions.
    pub(super) fn of(extensions: &Extensions) -> Self {
        let caller = extensions.get::<Caller>().cloned();
        Self {
            // A request that was not authenticated may do nothing.
            caller: caller.unwrap_or(Caller::Anonymous(Anonymous::None)),
            peer: extensions.get::<Peer>().map(|peer| peer.0),
            budgets: ConnectionBudgets::of(extensions),
        }
    }
}

impl ConnectionBudgets {
    /// The budgets of the connection that a request came on, given its extensions.
    pub(super) fn of(extensions: &Extensions) -> Arc<Self> {
        let budgets = extensions.get::<Arc<Self>>().cloned();
        // A request that came on no connection has budgets of its own.
        budgets.unwrap_or_else(|| {
            ServerBudgets::new(BudgetLimits::default(), 1).connection(Ipv4Addr::UNSPECIFIED.into())
        })
    }

    /// Opens a stream.
    ///
    /// # Errors
    ///
    /// There are too many.
    pub(super) fn open_stream(&self) -> Result<StreamPermit, RpcError> {
        let permit = |place, address| StreamPermit {
            _place: place,
            _address: address,
        };
        let acquire = |semaphore: &Arc<Semaphore>| Arc::clone(semaphore).try_acquire_owned().ok();
        if let Some(place) = acquire(&self.reserved_streams) {
            return Ok(permit(place, None));
        }
        let pooled = acquire(&self.address.streams);
        let pooled = pooled.and_then(|address| Some((acquire(&self.all_streams)?, address)));
        let (place, address) = pooled.ok_or_else(|| {
            RpcError::new(
                Reason::TooManyStreams,
                "too many streams are open; end one, or open it on another connection",
            )
        })?;
        Ok(permit(place, Some(address)))
    }

    /// Begins a stream of server reflection, which lasts until the permits are dropped.
    ///
    /// # Errors
    ///
    /// There are too many.
    pub(super) fn start_reflection(&self) -> Result<ReflectionPermits, RpcError> {
        let acquire = |semaphore: &Arc<Semaphore>| Arc::clone(semaphore).try_acquire_owned().ok();
        let address = acquire(&self.address.reflections);
        let permits = address.and_then(|address| Some([address, acquire(&self.all_reflections)?]));
        permits.ok_or_else(|| {
            RpcError::new(
                Reason::TooManyStreams,
                "too many streams of server reflection are open; end one, or try again later",
            )
        })
    }

    /// Reserves memory for a message in transit: one that is received in part, or waits to be handled. `None` if it is small.
    ///
    /// # Errors
    ///
    /// There are too many.
    pub(super) fn reserve_received(&self, bytes: usize) -> Result<Option<Reservation>, RpcError> {
        if bytes <= SMALL_MESSAGE {
            return Ok(None);
        }
        let reserved = self.received.try_reserve(bytes);
        reserved.map(Some).ok_or_else(|| {
            RpcError::new(
                Reason::ReceiveBudgetExceeded,
                "too many messages are in transit; send each as a whole, and wait for the answers to earlier ones",
            )
        })
    }

    /// A request that begins to read.
    pub(super) fn begin_reading(self: &Arc<Self>) -> ReadingRequest {
        ReadingRequest {
            budgets: Arc::clone(self),
            reader: RequestReader::default(),
        }
    }

    /// Waits until this connection's turn to read from the store. It may read until the permits are dropped. To be called within
    /// [`run_query`].
    pub(super) async fn start_query(&self) -> QueryPermits {
        self.acquire([&self.own_queries, &self.address.queries, &self.all_queries])
            .await
    }

    /// As [`Self::start_query`], but to ask a room. Other addresses do not wait for it, because it takes as long as the room is busy.
    pub(super) async fn start_room_query(&self) -> QueryPermits {
        self.acquire([&self.own_queries, &self.address.queries]).await
    }

    /// Acquires a permit of each in turn.
    async fn acquire<const N: usize>(&self, queries: [&Arc<Semaphore>; N]) -> QueryPermits {
        if queries.iter().any(|queries| queries.available_permits() == 0) {
            self.address.throttling.report(Throttle::Queries);
        }
        let mut permits = [const { None }; N];
        for (permit, queries) in permits.iter_mut().zip(queries) {
            // An error would mean that the semaphore is closed, which it never is.
            *permit = Arc::clone(queries).acquire_owned().await.ok();
        }
        QueryPermits(Arc::new(permits))
    }

    /// The permits that the readers of this address share.
    pub(super) fn read_permits(&self, hub: &Hub) -> ReadPermits {
        let permits = &self.address.read_permits;
        permits.get_or_init(|| hub.read_permits_of_address()).clone()
    }

    /// Waits for this connection's turn to run a query, and then lets `hub` begin to load a room that exists and does not run. It reads
    /// the room's log, and a client that asks for thousands of rooms must not delay others. Does not wait until the room is loaded.
    ///
    /// # Errors
    ///
    /// The hub is draining or has failed.
    pub(super) async fn load_room(self: &Arc<Self>, hub: &Arc<Hub>, room: &RoomName) -> Result<(), HubError> {
        if !hub.needs_loading(room) {
            return Ok(());
        }
        let (budgets, hub, room) = (Arc::clone(self), Arc::clone(hub), room.clone());
        run_query(async move { hub.load(&room, budgets.start_query().await) }).await?
    }
}

/// The permits of a query, which are released when the last clone is dropped.
#[derive(Clone)]
pub(super) struct QueryPermits(#[expect(dead_code, reason = "held")] Arc<[Option<OwnedSemaphorePermit>]>);

/// Runs a query in a task of its own, which is aborted when the returned future is dropped. In the task of a busy connection, which is not
/// polled before its next turn, the query would hold its permits and its result for all of that time.
///
/// # Errors
///
/// The query has panicked, or the runtime is shutting down.
pub(super) async fn run_query<T: Send + 'static>(
    query: impl Future<Output = T> + Send + 'static,
) -> Result<T, HubError> {
    Ok(AbortOnDropHandle::new(tokio::spawn(query)).await?)
}

#[cfg(test)]
mod tests {
    use std::task::{Context, Waker};

    use futures_util::FutureExt as _;

    use super::super::turns::Turns;
    use super::super::unread::ReadPause;
    use super::*;

    fn server(limits: BudgetLimits) -> ServerBudgets {
        ServerBudgets::new(limits, 10)
    }

    #[tokio::test(start_paused = true)]
    async fn who_opens_a_new_connection_for_each_that_is_cut_waits_longer_and_longer() {
        let server = server(BudgetLimits::default());
        let connection = server.connection(Ipv4Addr::LOCALHOST.into());
        for _ in 0..CUTS_BURST - 1 {
            connection.count_cut();
            assert_eq!(connection.delay_after_cuts(), Duration::ZERO);
        }
        connection.count_cut();
        let delays: Vec<_> = (0..60)
            .map(|_| connection.delay_after_cuts().as_millis())
            .collect();
        assert_eq!(delays[..3], [100, 200, 300]);
        assert_eq!(delays[59], MAX_CUT_DELAY.as_millis());
        let other = server.connection([127, 0, 0, 2].into());
        assert_eq!(other.delay_after_cuts(), Duration::ZERO);
        tokio::time::advance(MAX_CUT_DELAY + Duration::from_millis(100)).await;
        assert_eq!(connection.delay_after_cuts(), Duration::ZERO);
    }

    #[test]
    fn streams_beyond_those_of_each_connection_share_a_limit_and_an_address_does_not_get_all() {
        let server = server(BudgetLimits {
            streams: 4,
            ..BudgetLimits::default()
        });
        let open = |connection: &Arc<ConnectionBudgets>| -> Vec<StreamPermit> {
            std::iter::from_fn(|| connection.open_stream().ok()).collect()
        };
        let one = server.connection("192.0.2.1".parse().unwrap());
        let other = server.connection("192.0.2.1".parse().unwrap());
        let stranger = server.connection("192.0.2.2".parse().unwrap());
        let held = open(&one);
        assert_eq!((held.len(), open(&other).len(), open(&stranger).len()), (5, 2, 3));
        drop(held);
        assert_eq!(open(&other).len(), 5);
    }

    #[test]
    fn stalled_streams_are_counted_as_long_as_their_connection_exists() {
        let server = server(BudgetLimits {
            stalled_streams: 3,
            ..BudgetLimits::default()
        });
        let connection = || server.connection(Ipv4Addr::LOCALHOST.into());
        let (one, other) = (connection(), connection());
        assert!(!one.stalled.update(3));
        assert!(other.stalled.update(1));
        assert!(!one.stalled.update(2));
        drop(other);
        assert!(!one.stalled.update(3));
    }

    #[test]
    fn stalled_streams_of_one_address_do_not_cost_others_their_stall_time() {
        let server = server(BudgetLimits {
            stalled_streams: 16,
            ..BudgetLimits::default()
        });
        let connections = |address: [u8; 4]| [(); 2].map(|()| server.connection(address.into()));
        let [one, two] = connections([192, 0, 2, 1]);
        let [other, _] = connections([192, 0, 2, 2]);
        assert!(!one.stalled.update(10));
        assert!(two.stalled.update(6), "three quarters are 12");
        assert!(!two.stalled.update(2));
        assert!(!other.stalled.update(3));
        assert!(other.stalled.update(4), "three quarters of what is left are 3");
        assert!(!other.stalled.update(3));
        assert!(one.stalled.update(10), "whoever has most gives way");
        drop((one, two));
        assert!(!other.stalled.update(12));
    }

    #[tokio::test]
    async fn those_who_wait_for_a_busy_room_delay_nobody_of_other_addresses() {
        let server = server(BudgetLimits {
            queries: 2,
            ..BudgetLimits::default()
        });
        let mut waiting = Vec::new();
        for last in 1..10 {
            let connection = server.connection([192, 0, 2, last].into());
            waiting.push(connection.start_room_query().await);
        }
        let other = server.connection([192, 0, 2, 99].into());
        assert!(other.start_query().now_or_never().is_some());
        // Of two for each address, the first has one left.
        let same = server.connection([192, 0, 2, 1].into());
        let last = same.start_room_query().now_or_never();
        assert!(last.is_some() && same.start_query().now_or_never().is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn each_limit_reports_a_client_that_begins_to_wait() {
        let (sender, reports) = std::sync::mpsc::channel();
        let throttling = ThrottleReporter::new(move |throttle| sender.send(throttle).unwrap());
        let limits = BudgetLimits {
            queries: 1,
            ..BudgetLimits::default()
        };
        let server = server(limits).reporting_to(throttling);
        let connection = server.connection(Ipv4Addr::LOCALHOST.into());
        let mut cx = Context::from_waker(Waker::noop());
        let held = connection.start_query().await;
        assert_eq!(connection.pause_after_short_frames(SHORT_FRAMES_BURST), None);
        (0..=CUTS_BURST).for_each(|_| connection.count_cut());
        assert_eq!(reports.try_iter().count(), 0);
        assert!(connection.pause_after_short_frames(1).is_some());
        assert!(connection.delay_after_cuts() > Duration::ZERO);
        assert!(connection.start_query().now_or_never().is_none());
        drop(held);
        connection.unread.set_undecrypted(limits.unread);
        let mut pause = ReadPause::default();
        assert!(pause.poll_end(&mut cx, &connection.unread).is_pending());
        tokio::time::advance(Duration::from_secs(1)).await;
        assert!(pause.poll_end(&mut cx, &connection.unread).is_pending());
        // As many as may run, and one that waits.
        let mut busy = Vec::new();
        loop {
            let mut turns = Turns::new(Arc::clone(&connection.address.turns));
            let is_waiting = turns.poll_begin(&mut cx, 10_000).is_pending();
            busy.push(turns);
            if is_waiting {
                break;
            }
        }
        let expected = [
            Throttle::ShortFrames,
            Throttle::Cuts,
            Throttle::Queries,
            Throttle::Unread,
            Throttle::Turns,
        ];
        assert_eq!(reports.try_iter().collect::<Vec<_>>(), expected);
    }
}
