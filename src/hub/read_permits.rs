//! Permits of the readers of logs: of all, and of those from one address.

use std::sync::Arc;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinError;
use tokio_util::task::AbortOnDropHandle;

use crate::blocking::blocking;
use crate::domain::limits::per_address;

/// The size of a page, in bytes: that of a block of the feed. The transport holds one page of a reader whose client does not
/// read, as it holds one block of a live reader.
pub(super) const PAGE_BYTES: usize = 64 * 1024;

/// The maximum number of pages that readers who lag read from the disk at a time. The others wait their turn.
const MAX_PAGE_READS: usize = 16;

/// How many of them the readers of one address read.
const PAGE_READS_PER_ADDRESS: usize = MAX_PAGE_READS / 4;

/// The permit of the reader's address, if it has one, and that of all readers.
type PageReadPermit = (Option<OwnedSemaphorePermit>, Option<OwnedSemaphorePermit>);

/// The permits to have a large page: those of the reader's address, if it has some, and those of all readers.
pub(super) type LargePagePermit = (Option<OwnedSemaphorePermit>, OwnedSemaphorePermit);

/// What the readers of logs share.
#[derive(Debug, Clone)]
pub(crate) struct ReadPermits {
    /// To read a page from the disk.
    page_reads: Arc<Semaphore>,
    /// To have pages of more than the first size: one for each [`PAGE_BYTES`].
    large_pages: Arc<Semaphore>,
    max_large_pages: usize,
}

impl ReadPermits {
    /// Of all readers. Their large pages take half as much as the feeds of all rooms, which take `feeds` bytes.
    pub(super) fn of_all(feeds: usize) -> Self {
        Self::new(MAX_PAGE_READS, max_large_pages(feeds))
    }

    /// Of the readers of one address.
    pub(super) fn of_address(feeds: usize) -> Self {
        Self::new(PAGE_READS_PER_ADDRESS, per_address(max_large_pages(feeds)).max(1))
    }

    fn new(page_reads: usize, large_pages: usize) -> Self {
        Self {
            page_reads: Arc::new(Semaphore::new(page_reads)),
            large_pages: Arc::new(Semaphore::new(large_pages)),
            max_large_pages: large_pages,
        }
    }

    /// Runs `read` on a thread that may block, once a page may be read: first it waits for other readers of the same `address`, if there is
    /// one, so that only a few of each address wait for the permits of `all`. Calls `on_wait` if it has to wait.
    ///
    /// It waits in a task of its own. A released permit goes to the reader that has waited longest, but a stream is polled only in the turns
    /// of its connection: it would keep the permit from others until then.
    pub(super) fn read_page<T: Send + 'static>(
        address: Option<&Self>,
        all: &Self,
        read: impl FnOnce() -> T + Send + 'static,
        on_wait: impl FnOnce(),
    ) -> BoxFuture<'static, Result<T, JoinError>> {
        if let Some(permit) = Self::page_read(address, all).now_or_never() {
            return blocking(permit, read).boxed();
        }
        on_wait();
        let permit = Self::page_read(address, all);
        let reading = tokio::spawn(async move { blocking(permit.await, read).await });
        AbortOnDropHandle::new(reading)
            .map(|read| read.and_then(|read| read))
            .boxed()
    }

    fn page_read(address: Option<&Self>, all: &Self) -> impl Future<Output = PageReadPermit> + use<> {
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

    /// The permit to have pages of up to `bytes`; `None` if too many readers have large ones.
    pub(super) fn try_large_page(
        address: Option<&Self>,
        all: &Self,
        bytes: usize,
    ) -> Option<LargePagePermit> {
        Self::large_page(address, all, bytes).now_or_never().flatten()
    }

    /// Waits until a page of `bytes` may be had. Never `None`.
    pub(super) fn large_page(
        address: Option<&Self>,
        all: &Self,
        bytes: usize,
    ) -> impl Future<Output = Option<LargePagePermit>> + use<> {
        let pages = Self::pages(address, all, bytes);
        let acquire = |permits: &Self| Arc::clone(&permits.large_pages).acquire_many_owned(pages);
        let (address, all) = (address.map(acquire), acquire(all));
        async move {
            // As above, there are no errors.
            let of_address = match address {
                Some(pages) => Some(pages.await.ok()?),
                None => None,
            };
            Some((of_address, all.await.ok()?))
        }
    }

    /// Whether `permit` is enough for a page of `bytes`.
    pub(super) fn allows(address: Option<&Self>, all: &Self, permit: &LargePagePermit, bytes: usize) -> bool {
        permit.1.num_permits() >= Self::pages(address, all, bytes) as usize
    }

    /// How many permits a page of `bytes` takes. A page that is larger than those of the address allow takes all of them.
    fn pages(address: Option<&Self>, all: &Self, bytes: usize) -> u32 {
        let most = address.unwrap_or(all).max_large_pages;
        u32::try_from(bytes.div_ceil(PAGE_BYTES).clamp(1, most)).unwrap_or(u32::MAX)
    }
}

fn max_large_pages(feeds: usize) -> usize {
    (feeds / (2 * PAGE_BYTES)).max(1)
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
        assert!(read(&one).is_none() && read(&other).is_some());
        drop(held);
        assert!(read(&one).is_some());
        let have = |address, bytes| ReadPermits::try_large_page(Some(address), &all, bytes);
        let large: Vec<_> = (0..4).map_while(|_| have(&one, PAGE_BYTES)).collect();
        assert_eq!((large.len(), have(&other, PAGE_BYTES).is_some()), (3, true));
        assert!(
            have(&other, PAGE_BYTES + 1).is_none(),
            "one permit for each size of a page"
        );
        drop(large);
        let largest = have(&one, usize::MAX).unwrap();
        assert!(have(&one, 1).is_none() && have(&other, 1).is_some());
        assert!(ReadPermits::allows(Some(&one), &all, &largest, usize::MAX));
    }

    #[tokio::test]
    async fn a_stream_that_is_not_polled_keeps_no_permit_from_others() {
        let all = ReadPermits::of_all(PAGE_BYTES);
        let held: Vec<_> = (0..MAX_PAGE_READS)
            .map(|_| ReadPermits::page_read(None, &all).now_or_never().unwrap())
            .collect();
        let mut waits = 0;
        let mut read = || ReadPermits::read_page(None, &all, || (), || waits += 1);
        let not_polled: Vec<_> = (0..2 * MAX_PAGE_READS).map(|_| read()).collect();
        let polled = read();
        assert_eq!(waits, 2 * MAX_PAGE_READS + 1);
        drop(held);
        polled.await.unwrap();
        drop(not_polled);
    }
}
