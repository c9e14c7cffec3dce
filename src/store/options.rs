//! How a store on disk is opened.

use super::Retention;
use super::segment::SEGMENT_HEADER_LEN;

/// The size of a segment is the limit of the total size divided by this.
const SEGMENT_DIVISOR: u64 = 64;

/// The size of a segment when the disk is nearly full, in bytes.
const MIN_SEGMENT_LEN: u64 = 64 << 10;

/// What acknowledged events survive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum Durability {
    /// A crash of the machine: every commit is synced to the disk.
    #[default]
    Sync,
    /// A crash of the process: commits are written to the operating system, and a power cut may lose the newest.
    Os,
}

/// How a [`DiskStore`](super::DiskStore) is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DiskOptions {
    /// What acknowledged events survive.
    pub durability: Durability,
    /// How much of each log is kept.
    pub retention: Retention,
    /// The maximum number of rooms.
    pub max_rooms: usize,
    /// Whether to continue without acknowledged events that are lost, instead of refusing to open. The logs concerned get a new
    /// epoch.
    pub accept_loss: bool,
}

/// The size of a segment, in bytes, unless an append is larger.
const fn segment_share(retention: &Retention) -> u64 {
    let share = retention.max_total_bytes / SEGMENT_DIVISOR;
    if share < 1 << 20 {
        1 << 20
    } else if share > 64 << 20 {
        64 << 20
    } else {
        share
    }
}

impl DiskOptions {
    /// The maximum number of segments, which are open files, of a store with this retention: as many as have 1.3 times what is retained, but
    /// at least twice as many as the total size is divided into, because appends that do not fit leave short segments smaller.
    #[must_use]
    pub const fn max_segments(retention: &Retention) -> u64 {
        let retained = retention.max_total_bytes.div_ceil(segment_share(retention));
        let full = retained.saturating_mul(13).div_ceil(10);
        let min = 2 * SEGMENT_DIVISOR;
        (if full < min { min } else { full }) + 2
    }

    /// The size of a segment that has place for an append of `size` bytes, and its size if the disk is nearly full.
    pub(super) fn segment_len(&self, size: usize) -> (u32, u32) {
        let share = segment_share(&self.retention);
        let needed = size.saturating_add(SEGMENT_HEADER_LEN as usize) as u64;
        let len = |share: u64| u32::try_from(share.max(needed)).unwrap_or(u32::MAX);
        (len(share), len(MIN_SEGMENT_LEN))
    }
}
