//! A reader of a room's log: from the store until it has caught up, then from the feed, and from the store again when it
//! lags. No event is skipped or repeated: the range that is read from the store ends at the cursor's position in the feed.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use tokio::task::JoinHandle;

use super::feed::{CloseReason, Cursor, Feed, FeedItem};
use super::observer::Observer;
use crate::domain::Sequence;
use crate::store::{LogId, Page, Store, StoreError, read_page};

/// The size of a page, in bytes. It bounds what a lagging reader holds in memory.
const PAGE_BYTES: usize = 128 * 1024;

/// A reader of a room's log.
pub(crate) struct Reader {
    store: Arc<dyn Store>,
    log: LogId,
    cursor: Cursor,
    observer: Arc<dyn Observer>,
    catch_up: Option<CatchUp>,
}

/// The range to read from the store before the cursor is read again.
struct CatchUp {
    after: Sequence,
    upto: Sequence,
    /// The page that is being read.
    page: Option<JoinHandle<Result<Page, StoreError>>>,
    /// Counts the readers that catch up.
    feed: Arc<Feed>,
}

impl Reader {
    /// A reader of the events after `after`. `cursor` stands at or past it, and the events in between are in the store.
    pub(super) fn new(
        store: Arc<dyn Store>,
        log: LogId,
        cursor: Cursor,
        after: Sequence,
        observer: Arc<dyn Observer>,
    ) -> Self {
        let upto = cursor.position();
        let catch_up = (after < upto).then(|| CatchUp::new(after, upto, cursor.feed()));
        Self {
            store,
            log,
            cursor,
            observer,
            catch_up,
        }
    }

    /// The unread bytes of the feed; `u64::MAX` while the reader catches up.
    pub(crate) fn lag(&self) -> u64 {
        if self.catch_up.is_some() {
            u64::MAX
        } else {
            self.cursor.lag()
        }
    }

    /// Whether the next item is a page of the store.
    pub(crate) const fn is_catching_up(&self) -> bool {
        self.catch_up.is_some()
    }

    /// The next item, as [`Cursor::poll_next`], except that [`FeedItem::Lagged`] means that the next event is not in the
    /// store either.
    ///
    /// Cancel safe: a page that was being read is read again.
    pub(crate) fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<FeedItem> {
        loop {
            if let Some(catch_up) = &mut self.catch_up {
                let page = match ready!(catch_up.poll_page(cx, &self.store, self.log)) {
                    Ok(page) => page,
                    Err(error) if error.is_damage() => {
                        return Poll::Ready(FeedItem::Closed(CloseReason::Damaged));
                    }
                    Err(_) => return Poll::Ready(FeedItem::Closed(CloseReason::Failed)),
                };
                if page.events == 0 {
                    return Poll::Ready(FeedItem::Lagged);
                }
                catch_up.after = page.last();
                if catch_up.after >= catch_up.upto {
                    self.catch_up = None;
                }
                self.observer.delivered_from_store(page.events);
                return Poll::Ready(FeedItem::Events(page.bytes));
            }
            match ready!(self.cursor.poll_next(cx)) {
                FeedItem::Lagged => {
                    let after = self.cursor.position();
                    let upto = self.cursor.skip_to_end();
                    if after < upto {
                        self.catch_up = Some(CatchUp::new(after, upto, self.cursor.feed()));
                        // The caller decides when a page is read.
                        cx.waker().wake_by_ref();
                        return Poll::Pending;
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
        log: LogId,
    ) -> Poll<Result<Page, StoreError>> {
        let (after, upto) = (self.after, self.upto);
        if !store.is_blocking() {
            return Poll::Ready(read_page(&**store, log, after, upto, PAGE_BYTES));
        }
        let page = self.page.get_or_insert_with(|| {
            let store = Arc::clone(store);
            tokio::task::spawn_blocking(move || read_page(&*store, log, after, upto, PAGE_BYTES))
        });
        let read = ready!(Pin::new(page).poll(cx));
        self.page = None;
        Poll::Ready(read.unwrap_or(Err(StoreError::Failed)))
    }
}

impl Drop for CatchUp {
    fn drop(&mut self) {
        self.feed.lag_ended();
    }
}
