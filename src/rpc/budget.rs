//! Budgets for the memory that clients can make the server hold: per connection and for all connections together.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use http::Extensions;
use tokio::sync::{Semaphore, SemaphorePermit};

/// How many queries one connection can have in progress. Its other queries wait, so that a client with many of them does not
/// delay the queries of other connections.
const QUERIES_PER_CONNECTION: usize = 2;

/// How many pages of the store the streams of one connection can hold that catch up. The others wait.
const PAGES_PER_CONNECTION: usize = 8;

/// A connection with less unread than this is not cut: the window of one stream.
const FAIR_UNREAD: usize = 64 * 1024;

/// The bytes of messages that a connection has received and its streams have not read: h2 holds them.
///
/// What a stream has not read when it ends stays counted until the connection has no stream.
#[derive(Debug)]
pub(super) struct Unread {
    own: AtomicUsize,
    /// Of all connections together.
    all: Arc<AtomicUsize>,
    limit: usize,
}

impl Unread {
    fn new(all: Arc<AtomicUsize>, limit: usize) -> Self {
        Self {
            own: AtomicUsize::new(0),
            all,
            limit,
        }
    }

    /// Counts bytes that were received. Returns false if all connections together have too much unread, and this one has
    /// more than [`FAIR_UNREAD`] of it.
    pub(super) fn add(&self, bytes: usize) -> bool {
        let own = self.own.fetch_add(bytes, Ordering::Relaxed) + bytes;
        let all = self.all.fetch_add(bytes, Ordering::Relaxed) + bytes;
        all <= self.limit || own <= FAIR_UNREAD
    }

    /// Counts bytes that were read.
    pub(super) fn remove(&self, bytes: usize) {
        let subtract = |own: usize| Some(own.saturating_sub(bytes));
        let before = self
            .own
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, subtract);
        let removed = before.unwrap_or_default().min(bytes);
        self.all.fetch_sub(removed, Ordering::Relaxed);
    }

    /// There is no stream, and so nothing unread.
    pub(super) fn clear(&self) {
        let own = self.own.swap(0, Ordering::Relaxed);
        self.all.fetch_sub(own, Ordering::Relaxed);
    }
}

impl Drop for Unread {
    fn drop(&mut self) {
        self.clear();
    }
}

/// A number of bytes that can be reserved.
#[derive(Debug)]
pub(super) struct Budget {
    limit: usize,
    used: AtomicUsize,
    /// What is reserved here is reserved there, too.
    parent: Option<Arc<Self>>,
}

impl Budget {
    pub(super) fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self {
            limit,
            used: AtomicUsize::new(0),
            parent: None,
        })
    }

    /// A part of this budget.
    fn child(self: &Arc<Self>, limit: usize) -> Arc<Self> {
        Arc::new(Self {
            limit,
            used: AtomicUsize::new(0),
            parent: Some(Arc::clone(self)),
        })
    }

    /// Reserves `bytes`, or nothing if that exceeds this budget or its parent.
    pub(super) fn try_reserve(self: &Arc<Self>, bytes: usize) -> Option<Reservation> {
        self.try_add(bytes).then(|| Reservation {
            budget: Arc::clone(self),
            bytes,
        })
    }

    fn try_add(&self, bytes: usize) -> bool {
        let within = |used: usize| used.checked_add(bytes).filter(|sum| *sum <= self.limit);
        if self
            .used
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, within)
            .is_err()
        {
            return false;
        }
        if self.parent.as_ref().is_some_and(|parent| !parent.try_add(bytes)) {
            self.used.fetch_sub(bytes, Ordering::Relaxed);
            return false;
        }
        true
    }

    fn add(&self, bytes: usize) {
        self.used.fetch_add(bytes, Ordering::Relaxed);
        if let Some(parent) = &self.parent {
            parent.add(bytes);
        }
    }

    fn release(&self, bytes: usize) {
        self.used.fetch_sub(bytes, Ordering::Relaxed);
        if let Some(parent) = &self.parent {
            parent.release(bytes);
        }
    }
}

/// A part of a [`Budget`] that is in use until this is dropped.
#[derive(Debug)]
pub(super) struct Reservation {
    budget: Arc<Budget>,
    bytes: usize,
}

impl Reservation {
    /// Changes the size. Returns false, and leaves the size as it was, if the budget does not have that much.
    pub(super) fn try_resize(&mut self, bytes: usize) -> bool {
        if bytes > self.bytes && !self.budget.try_add(bytes - self.bytes) {
            return false;
        }
        self.budget.release(self.bytes.saturating_sub(bytes));
        self.bytes = bytes;
        true
    }

    /// Changes the size even if the budget does not have that much.
    pub(super) fn resize(&mut self, bytes: usize) {
        self.budget.add(bytes.saturating_sub(self.bytes));
        self.budget.release(self.bytes.saturating_sub(bytes));
        self.bytes = bytes;
    }

    /// `bytes`, with this reservation released when the last reference to them is dropped.
    pub(super) fn attach_to(self, bytes: Bytes) -> Bytes {
        Bytes::from_owner(Reserved {
            bytes,
            _reservation: self,
        })
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.budget.release(self.bytes);
    }
}

struct Reserved {
    bytes: Bytes,
    _reservation: Reservation,
}

impl AsRef<[u8]> for Reserved {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

/// The sizes of the budgets, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BudgetLimits {
    /// Messages that are received in part and cannot be decoded yet, of all connections together.
    pub received: usize,
    /// The same, per connection.
    pub received_per_connection: usize,
    /// Bytes that are received and that no stream has read yet, of all connections together. Beyond it, connections that have
    /// more of them than the window of a stream are closed.
    pub unread: usize,
    /// Responses of unary calls that their clients have not accepted yet, of all connections together.
    pub responses: usize,
    /// The same, per connection.
    pub responses_per_connection: usize,
    /// How many pages of the store, of about 128 KiB, the streams that catch up can hold together.
    pub pages: usize,
    /// How many queries (`GetHistory`, `ListRooms`, `ListParticipants`) are in progress at a time. Each holds a few MiB.
    pub queries: usize,
}

impl Default for BudgetLimits {
    fn default() -> Self {
        Self {
            received: 32 << 20,
            received_per_connection: 4 << 20,
            unread: 32 << 20,
            responses: 64 << 20,
            responses_per_connection: 8 << 20,
            pages: 256,
            queries: 8,
        }
    }
}

/// The budgets of all connections together.
#[derive(Debug)]
pub(super) struct ServerBudgets {
    limits: BudgetLimits,
    received: Arc<Budget>,
    unread: Arc<AtomicUsize>,
    responses: Arc<Budget>,
    queries: Arc<Semaphore>,
    pages: Arc<Semaphore>,
}

impl ServerBudgets {
    pub(super) fn new(limits: BudgetLimits) -> Self {
        Self {
            limits,
            received: Budget::new(limits.received),
            unread: Arc::default(),
            responses: Budget::new(limits.responses),
            queries: Arc::new(Semaphore::new(limits.queries)),
            pages: Arc::new(Semaphore::new(limits.pages)),
        }
    }

    /// The budgets of a new connection.
    pub(super) fn connection(&self) -> Arc<ConnectionBudgets> {
        Arc::new(ConnectionBudgets {
            received: self.received.child(self.limits.received_per_connection),
            unread: Unread::new(Arc::clone(&self.unread), self.limits.unread),
            responses: self.responses.child(self.limits.responses_per_connection),
            own_queries: Semaphore::new(QUERIES_PER_CONNECTION),
            all_queries: Arc::clone(&self.queries),
            own_pages: Arc::new(Semaphore::new(PAGES_PER_CONNECTION)),
            all_pages: Arc::clone(&self.pages),
        })
    }
}

/// The budgets of one connection. An `Arc` of them is an extension of each request.
#[derive(Debug)]
pub(super) struct ConnectionBudgets {
    pub(super) received: Arc<Budget>,
    pub(super) unread: Unread,
    pub(super) responses: Arc<Budget>,
    own_queries: Semaphore,
    all_queries: Arc<Semaphore>,
    /// Permits for the pages of this connection, to be acquired before one of `all_pages`.
    pub(super) own_pages: Arc<Semaphore>,
    pub(super) all_pages: Arc<Semaphore>,
}

/// The connection that a request came on.
pub(super) struct Connection {
    pub(super) peer: Option<SocketAddr>,
    pub(super) budgets: Arc<ConnectionBudgets>,
}

/// The address of the client, as an extension of each request.
#[derive(Debug, Clone, Copy)]
pub(super) struct Peer(pub(super) SocketAddr);

impl Connection {
    /// The connection of a request with these extensions.
    pub(super) fn of(extensions: &Extensions) -> Self {
        Self {
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
        budgets.unwrap_or_else(|| ServerBudgets::new(BudgetLimits::default()).connection())
    }

    /// Waits until this connection's turn to run a query. The query may run until the permits are dropped.
    pub(super) async fn start_query(&self) -> [Option<SemaphorePermit<'_>>; 2] {
        // Errors would mean that the semaphores are closed, which they never are.
        let own = self.own_queries.acquire().await.ok();
        [own, self.all_queries.acquire().await.ok()]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_with_much_unread_is_cut_when_all_have_too_much() {
        let all = Arc::default();
        let connection = || Unread::new(Arc::clone(&all), 3 * FAIR_UNREAD);
        let (large, small) = (connection(), connection());
        assert!(large.add(3 * FAIR_UNREAD));
        assert!(small.add(FAIR_UNREAD));
        assert!(!large.add(1));
        large.remove(FAIR_UNREAD + 1);
        assert!(small.add(0) && large.add(0));
        // More than it has: what an earlier stream has received.
        small.remove(2 * FAIR_UNREAD);
        assert_eq!(all.load(Ordering::Relaxed), 2 * FAIR_UNREAD);
        drop(large);
        assert_eq!(all.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn a_reservation_counts_for_the_connection_and_for_the_server_until_it_is_dropped() {
        let server = Budget::new(100);
        let (one, other) = (server.child(60), server.child(60));
        assert!(one.try_reserve(61).is_none());
        let mut held = one.try_reserve(50).unwrap();
        assert!(other.try_reserve(51).is_none());
        assert!(!held.try_resize(61));
        assert!(held.try_resize(40));
        let bytes = other
            .try_reserve(60)
            .unwrap()
            .attach_to(Bytes::from_static(b"abc"));
        assert!(!held.try_resize(41));
        held.resize(70);
        let slice = bytes.slice(1..);
        drop(bytes);
        assert_eq!(server.used.load(Ordering::Relaxed), 130);
        drop((slice, held));
        assert_eq!(
            [&server, &one, &other].map(|budget| budget.used.load(Ordering::Relaxed)),
            [0; 3]
        );
    }
}
