//! A reader of a room's log: from the store until it has caught up, then from the feed, and back to the store when it
//! falls behind. There is no seam: what the store is asked for ends just where the cursor stands in the feed.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use tokio::task::JoinHandle;

use super::end::End;
use super::feed::{Cursor, Feed, Piece};
use super::observer::Observer;
use crate::domain::Sequence;
use crate::store::{LogId, Page, Store, StoreError, read_page};

/// How much is read from the store at a time, in bytes. It bounds what a reader that is behind holds in memory.
const PAGE_BYTES: usize = 128 * 1024;

/// A reader of a room's log.
pub struct Reader {
    store: Arc<dyn Store>,
    log: LogId,
    cursor: Cursor,
    observer: Arc<dyn Observer>,
    backfill: Option<Backfill>,
}

/// What is to be read from the store before the cursor goes on.
struct Backfill {
    after: Sequence,
    upto: Sequence,
    /// A page that is being read.
    page: Option<JoinHandle<Result<Page, StoreError>>>,
    /// Is told when it is over.
    feed: Arc<Feed>,
}

impl Backfill {
    fn new(after: Sequence, upto: Sequence, feed: &Arc<Feed>) -> Self {
        feed.behind(true);
        Self {
            after,
            upto,
            page: None,
            feed: Arc::clone(feed),
        }
    }
}

impl Drop for Backfill {
    fn drop(&mut self) {
        self.feed.behind(false);
    }
}

impl Reader {
    /// A reader of the events after `after`; `cursor` stands at or past it, and what lies between is in the store.
    pub(super) fn new(
        store: Arc<dyn Store>,
        log: LogId,
        cursor: Cursor,
        after: Sequence,
        observer: Arc<dyn Observer>,
    ) -> Self {
        let upto = cursor.seen();
        let backfill = (after < upto).then(|| Backfill::new(after, upto, cursor.feed()));
        Self {
            store,
            log,
            cursor,
            observer,
            backfill,
        }
    }

    /// How many bytes of the feed are yet to be read; all, while it reads from the store.
    #[must_use]
    pub fn lag(&self) -> u64 {
        if self.backfill.is_some() {
            u64::MAX
        } else {
            self.cursor.lag()
        }
    }

    /// What comes next, as [`Cursor::poll_next`] says, except that falling behind is told only when what comes next is
    /// not in the store either. Cancellation safe: a page that was being read is read again.
    pub fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Piece> {
        loop {
            if let Some(backfill) = &mut self.backfill {
                let page = match ready!(backfill.poll_page(cx, &self.store, self.log)) {
                    Ok(page) => page,
                    Err(_) => return Poll::Ready(Piece::End(End::Failed)),
                };
                if page.events == 0 {
                    return Poll::Ready(Piece::FellBehind);
                }
                backfill.after = page.last();
                if backfill.after >= backfill.upto {
                    self.backfill = None;
                }
                self.observer.replayed(page.events);
                return Poll::Ready(Piece::Events(page.bytes));
            }
            match ready!(self.cursor.poll_next(cx)) {
                Piece::FellBehind => {
                    let after = self.cursor.seen();
                    let upto = self.cursor.skip_to_end();
                    if after < upto {
                        self.backfill = Some(Backfill::new(after, upto, self.cursor.feed()));
                    }
                }
                piece => return Poll::Ready(piece),
            }
        }
    }
}

impl Backfill {
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
