//! Permits of the readers of logs: of all, and of those from one address.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::domain::limits::per_address;

/// The size of a page, in bytes: that of a block of the feed. The transport holds one page of a reader whose client does not
/// read, as it holds one block of a live reader.
pub(super) const PAGE_BYTES: usize = 64 * 1024;

/// The maximum number of pages that readers who lag read from the disk at a time. The others wait their turn.
const MAX_PAGE_READS: usize = 16;

/// How many of them the readers of one address read.
const PAGE_READS_PER_ADDRESS: usize = MAX_PAGE_READS / 4;

/// The permit of the reader's address, if it has one, and that of all readers.
pub(super) type PageReadPermit = (Option<OwnedSemaphorePermit>, Option<OwnedSemaphorePermit>);

/// What the readers of logs share.
#[derive(Debug, Clone)]
pub(crate) struct ReadPermits {
    /// To read a page from the disk.
    page_reads: Arc<Semaphore>,
    /// To have pages of more than the first size.
    large_pages: Arc<Semaphore>,
}

impl ReadPermits {
    /// Of all readers. Their large pages take half as much as the feeds of all rooms, which take `feed_bytes`.
    pub(super) fn of_all(feed_bytes: usize) -> Self {
        Self::new(MAX_PAGE_READS, max_large_pages(feed_bytes))
    }

    /// Of the readers of one address.
    pub(super) fn of_address(feed_bytes: usize) -> Self {
        Self::new(
            PAGE_READS_PER_ADDRESS,
            per_address(max_large_pages(feed_bytes)).max(1),
        )
    }

    fn new(page_reads: usize, large_pages: usize) -> Self {
        Self {
            page_reads: Arc::new(Semaphore::new(page_reads)),
            large_pages: Arc::new(Semaphore::new(large_pages)),
        }
    }

    /// Whether [`Self::page_read`] has to wait.
    pub(super) fn must_wait(address: Option<&Self>, all: &Self) -> bool {
        [address, Some(all)]
            .into_iter()
            .flatten()
            .any(|permits| permits.page_reads.available_permits() == 0)
    }

    /// Waits until a page may be read: first for other readers of the same `address`, if there is one, so that only a few of each address wait
    /// for the permits of `all`.
    pub(super) fn page_read(
        address: Option<&Self>,
        all: &Self,
    ) -> impl Future<Output = PageReadPermit> + use<> {
        let address = address.map(|permits| Arc::clone(&permits.page_reads));
        let all = Arc::clone(&all.page_reads);
        async move {
            // Errors would mean that the semaphores are closed, which they never are.
            let of_address = match address {
                Some(reads) => reads.acquire_owned().await.ok(),
                None => None,
            };
            (of_address, all.acquire_owned().await.ok())
        }
    }

    /// The permit to have large pages; `None` if too many readers do.
    pub(super) fn try_large_page(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.large_pages).try_acquire_owned().ok()
    }
}

fn max_large_pages(feed_bytes: usize) -> usize {
    (feed_bytes / (2 * PAGE_BYTES)).max(1)
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    #[test]
    fn readers_of_one_address_leave_pages_to_others() {
        let all = ReadPermits::of_all(4 * 2 * PAGE_BYTES);
        let [one, other] = [(); 2].map(|()| ReadPermits::of_address(4 * 2 * PAGE_BYTES));
        let read = |address| ReadPermits::page_read(Some(address), &all).now_or_never();
        let held: Vec<_> = (0..MAX_PAGE_READS).map_while(|_| read(&one)).collect();
        assert_eq!(held.len(), PAGE_READS_PER_ADDRESS);
        let must_wait = |address| ReadPermits::must_wait(Some(address), &all);
        assert!(must_wait(&one) && !must_wait(&other) && read(&other).is_some());
        drop(held);
        assert!(read(&one).is_some());
        let large: Vec<_> = (0..4).map_while(|_| one.try_large_page()).collect();
        assert_eq!((large.len(), other.try_large_page().is_some()), (3, true));
    }
}
