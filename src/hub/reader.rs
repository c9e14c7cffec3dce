//! A reader of a room's log: from the store until it has caught up, then from the feed, and from the store again when it
//! lags. No event is skipped or repeated: the range that is read from the store ends at the cursor's position in the feed.

use std::sync::Arc;
use std::task::{Context, Poll, ready};

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use tokio::task::JoinError;

use super::context::HubContext;
use super::feed::{CloseReason, Cursor, Feed, FeedItem};
use super::observer::Observer;
use super::read_permits::{LargePagePermit, PAGE_BYTES, ReadPermits};
use super::request::HubError;
use crate::domain::Sequence;
use crate::store::{LogId, Page, Store, StoreError, read_page};

/// The size of a reader's first page. As its client accepts them, pages become twice as large up to [`PAGE_BYTES`], but only for a limited
/// number of readers at a time: the transport holds a page for each client that does not read.
const FIRST_PAGE_BYTES: usize = 4 * 1024;

/// A page of one event needs no permit up to this size, in bytes: that of the largest event with the default `--max-message-chars`.
const MAX_FREE_EVENT_BYTES: usize = 10 * 1024;

/// A reader of a room's log.
pub(crate) struct Reader {
    store: Arc<dyn Store>,
    /// The permits that the readers of one address share, if the reader has one.
    address_permits: Option<ReadPermits>,
    /// The permits that all readers share.
    permits: ReadPermits,
    log: LogId,
    cursor: Cursor,
    observer: Arc<dyn Observer>,
    catch_up: Option<CatchUp>,
    /// The size of the next page, in bytes.
    page_bytes: usize,
    /// The permit to have a page of more than the first size.
    large_page: Option<LargePagePermit>,
    /// Waits for this permit, because the next event is larger than that.
    awaited: Option<BoxFuture<'static, Option<LargePagePermit>>>,
}

/// The range to read from the store before the cursor is read again.
struct CatchUp {
    after: Sequence,
    upto: Sequence,
    /// The page that is being read.
    page: Option<PageReading>,
    /// Counts the readers that catch up.
    feed: Arc<Feed>,
}

/// Reads a page from the store.
type PageRead = Box<dyn FnOnce() -> Result<Page, StoreError> + Send>;

/// A page that is being read.
type PageReading = BoxFuture<'static, Result<Result<Page, StoreError>, JoinError>>;

impl Reader {
    /// A reader of the events after `after`. `cursor` stands at or past it, and the events in between are in the store.
    pub(super) fn new(context: &HubContext, log: LogId, cursor: Cursor, after: Sequence) -> Self {
        let upto = cursor.position();
        let catch_up = (after < upto).then(|| CatchUp::new(after, upto, cursor.feed()));
        Self {
            store: Arc::clone(&context.store),
            address_permits: None,
            permits: context.read_permits.clone(),
            log,
            cursor,
            observer: Arc::clone(&context.observer),
            catch_up,
            page_bytes: FIRST_PAGE_BYTES,
            large_page: None,
            awaited: None,
        }
    }

    /// Shares `permits` with the other readers of its address, so that many of them do not delay those of other addresses.
    pub(crate) fn share(&mut self, permits: ReadPermits) {
        self.address_permits = Some(permits);
    }

    /// The size of the next page, in bytes: small if too many readers have large ones.
    fn next_page_bytes(&mut self) -> usize {
        if self.page_bytes > FIRST_PAGE_BYTES && !self.try_allow(PAGE_BYTES) {
            self.page_bytes = FIRST_PAGE_BYTES;
        }
        self.page_bytes
    }

    /// Whether the reader may have a page of `bytes` now.
    fn try_allow(&mut self, bytes: usize) -> bool {
        let address = self.address_permits.as_ref();
        let has_permit =
            |permit: &LargePagePermit| ReadPermits::allows(address, &self.permits, permit, bytes);
        if bytes <= FIRST_PAGE_BYTES || self.large_page.as_ref().is_some_and(has_permit) {
            return true;
        }
        // Those who wait for more must not keep what others wait for.
        self.large_page = None;
        self.large_page = ReadPermits::try_large_page(address, &self.permits, bytes);
        self.large_page.is_some()
    }

    /// The unread bytes of the feed; `u64::MAX` while the reader catches up.
    pub(crate) fn lag(&self) -> u64 {
        if self.catch_up.is_some() {
            u64::MAX
        } else {
            self.cursor.lag()
        }
    }

    /// The next item, as [`Cursor::poll_next`], except that [`FeedItem::Lagged`] means that the next event is not in the
    /// store either.
    ///
    /// Cancel safe: a page that was being read is read again.
    pub(crate) fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<FeedItem> {
        loop {
            if let Some(awaited) = &mut self.awaited {
                self.large_page = ready!(awaited.poll_unpin(cx));
                self.awaited = None;
            }
            let max_bytes = self.catch_up.is_some().then(|| self.next_page_bytes());
            if let (Some(catch_up), Some(max_bytes)) = (&mut self.catch_up, max_bytes) {
                let address = self.address_permits.as_ref();
                let start = |read| {
                    ReadPermits::read_page(address, &self.permits, read, || {
                        self.observer.page_read_throttled();
                    })
                };
                let page = catch_up.poll_page(cx, &self.store, start, self.log, max_bytes);
                let page = match ready!(page) {
                    Ok(page) => page,
                    Err(HubError::Damaged) => {
                        return Poll::Ready(FeedItem::Closed(CloseReason::Damaged));
                    }
                    // The log of a room that was deleted cannot be read.
                    Err(_) => {
                        let reason = self.cursor.close_reason().unwrap_or(CloseReason::Failed);
                        return Poll::Ready(FeedItem::Closed(reason));
                    }
                };
                let bytes = page.bytes.len();
                if bytes > MAX_FREE_EVENT_BYTES && !self.try_allow(bytes) {
                    // One event is so large. It is read again when it may be held.
                    self.observer.page_read_throttled();
                    let address = self.address_permits.as_ref();
                    self.awaited = Some(ReadPermits::large_page(address, &self.permits, bytes).boxed());
                    continue;
                }
                let Some(catch_up) = &mut self.catch_up else {
                    continue;
                };
                if page.events == 0 {
                    return Poll::Ready(FeedItem::Lagged);
                }
                catch_up.after = page.last();
                if catch_up.after >= catch_up.upto {
                    self.catch_up = None;
                }
                self.page_bytes = PAGE_BYTES.min(2 * self.page_bytes);
                self.observer.delivered_from_store(page.events);
                return Poll::Ready(FeedItem::Events(page.bytes));
            }
            // The client has accepted the last page.
            self.large_page = None;
            match ready!(self.cursor.poll_next(cx)) {
                FeedItem::Lagged => {
                    let after = self.cursor.position();
                    let upto = self.cursor.skip_to_end();
                    if after < upto {
                        self.catch_up = Some(CatchUp::new(after, upto, self.cursor.feed()));
                    }
                }
                item => return Poll::Ready(item),
            }
        }
    }
}

impl CatchUp {
    fn new(after: Sequence, upto: Sequence, feed: &Arc<Feed>) -> Self {
        feed.lag_started();
        Self {
            after,
            upto,
            page: None,
            feed: Arc::clone(feed),
        }
    }

    fn poll_page(
        &mut self,
        cx: &mut Context<'_>,
        store: &Arc<dyn Store>,
        start: impl FnOnce(PageRead) -> PageReading,
        log: LogId,
        max_bytes: usize,
    ) -> Poll<Result<Page, HubError>> {
        let (after, upto) = (self.after, self.upto);
        if !store.is_blocking() {
            let read = read_page(&**store, log, after, upto, max_bytes);
            return Poll::Ready(read.map_err(HubError::from));
        }
        let page = self.page.get_or_insert_with(|| {
            let store = Arc::clone(store);
            start(Box::new(move || read_page(&*store, log, after, upto, max_bytes)))
        });
        let read = ready!(page.poll_unpin(cx));
        self.page = None;
        Poll::Ready(Ok(read??))
    }
}

impl Drop for CatchUp {
    fn drop(&mut self) {
        self.feed.lag_ended();
    }
}
