//! Limits how many pages of the store the streams hold that catch up.

use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use tokio::sync::OwnedSemaphorePermit;
use tokio_util::sync::PollSemaphore;

use super::budget::ConnectionBudgets;

/// Admits one stream to the pages of the store. What live streams send is shared by all of them, but each page is read for
/// one stream alone, and h2 holds it until the client has accepted it.
pub(super) struct PageGate {
    budgets: Arc<ConnectionBudgets>,
    /// `None` unless the stream waits or holds permits that are not in use.
    waiting: Option<Box<Waiting>>,
}

struct Waiting {
    own: PollSemaphore,
    all: PollSemaphore,
    own_permit: Option<OwnedSemaphorePermit>,
    permits: Option<Permits>,
}

/// What counts a page, for the connection and for the server.
type Permits = (OwnedSemaphorePermit, OwnedSemaphorePermit);

/// A page that counts until its last reference is dropped.
struct CountedPage {
    bytes: Bytes,
    _permits: Permits,
}

impl AsRef<[u8]> for CountedPage {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl PageGate {
    pub(super) const fn new(budgets: Arc<ConnectionBudgets>) -> Self {
        Self {
            budgets,
            waiting: None,
        }
    }

    /// Ready when the stream may read a page.
    pub(super) fn poll_open(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let waiting = self.waiting.get_or_insert_with(|| {
            Box::new(Waiting {
                own: PollSemaphore::new(Arc::clone(&self.budgets.own_pages)),
                all: PollSemaphore::new(Arc::clone(&self.budgets.all_pages)),
                own_permit: None,
                permits: None,
            })
        });
        if waiting.permits.is_some() {
            return Poll::Ready(());
        }
        if waiting.own_permit.is_none() {
            waiting.own_permit = ready!(waiting.own.poll_acquire(cx));
        }
        let all = ready!(waiting.all.poll_acquire(cx));
        // Neither is missing: the semaphores are never closed.
        waiting.permits = waiting.own_permit.take().zip(all);
        Poll::Ready(())
    }

    /// Counts `page`, which the stream has read after the gate was open.
    pub(super) fn count(&mut self, page: Bytes) -> Bytes {
        match self.waiting.take().and_then(|waiting| waiting.permits) {
            Some(permits) => Bytes::from_owner(CountedPage {
                bytes: page,
                _permits: permits,
            }),
            None => page,
        }
    }
}
