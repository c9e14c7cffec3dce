//! Removes the beginning of the stream, which two replicas have in their checkpoints.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_nats::Client;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval_at};
use tracing::{info, warn};

use super::message::LogPosition;
use super::nats::{self, NatsError, STREAM};
use super::observer::Observer;

/// How often to log that NATS does not allow something.
const WARN_INTERVAL: Duration = Duration::from_secs(3_600);

/// What a replica knows about how far the stream can be truncated.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct TruncationView {
    /// Whether this replica is the one that does it.
    pub(crate) is_oldest: bool,
    /// Two replicas have everything up to there.
    pub(crate) safe: Option<LogPosition>,
}

/// The extent of the stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct StreamExtent {
    pub(crate) first: u64,
    pub(crate) last: u64,
    pub(crate) bytes: u64,
    pub(crate) max_bytes: u64,
}

impl StreamExtent {
    /// Of JetStream's description of the stream.
    pub(crate) fn from_info(info: &Value) -> Self {
        let number = |part: &str, name: &str| info[part][name].as_u64().unwrap_or_default();
        Self {
            first: number("state", "first_seq"),
            last: number("state", "last_seq"),
            bytes: number("state", "bytes"),
            max_bytes: number("config", "max_bytes"),
        }
    }

    /// Whether it is so full that young messages are removed, too.
    pub(crate) const fn is_nearly_full(&self) -> bool {
        self.max_bytes > 0 && self.bytes / 3 > self.max_bytes / 4
    }
}

/// Removes the beginning of the stream from time to time, if `views` says that this replica is to, and observes its size. Never completes; can be
/// dropped at any time.
pub(crate) async fn run(
    client: Client,
    views: watch::Receiver<TruncationView>,
    keep: Duration,
    every: Duration,
    observer: Arc<dyn Observer>,
) {
    let mut ticks = interval_at(Instant::now() + every, every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut warned_at: Option<Instant> = None;
    loop {
        ticks.tick().await;
        let view = *views.borrow();
        let done = observe_and_truncate(&client, view, keep, &*observer).await;
        if let Err(error) = done
            && warned_at.is_none_or(|at| at.elapsed() >= WARN_INTERVAL)
        {
            warned_at = Some(Instant::now());
            warn!(
                event = "truncation_failed",
                %error,
                "cannot look after the size of the stream; is this replica allowed to?"
            );
        }
    }
}

async fn observe_and_truncate(
    client: &Client,
    view: TruncationView,
    keep: Duration,
    observer: &dyn Observer,
) -> Result<(), NatsError> {
    let extent = extent(client).await?;
    observer.stream_observed(extent.bytes, extent.max_bytes);
    if let Some(safe) = view.safe.filter(|_| view.is_oldest) {
        let removed = truncate(client, &extent, safe, keep).await?;
        observer.stream_truncated(removed);
    }
    Ok(())
}

/// Asks for the extent of the stream.
async fn extent(client: &Client) -> Result<StreamExtent, NatsError> {
    let info = nats::stream_info(client).await;
    info.map(|info| StreamExtent::from_info(&info))
        .map_err(|(_, error)| error)
}

/// Removes the messages before `safe`, as far as they are older than `keep`; if the stream is nearly full, all of them. Returns how many.
pub(crate) async fn truncate(
    client: &Client,
    extent: &StreamExtent,
    safe: LogPosition,
    keep: Duration,
) -> Result<u64, NatsError> {
    // Beyond its end there is nothing to remove: it was restored to an earlier message, and JetStream would empty it.
    if safe.get() > extent.last {
        return Ok(0);
    }
    let mut end = safe.get();
    if !extent.is_nearly_full() {
        // JetStream's clock decides what is stored, and nothing else.
        let since = SystemTime::now()
            .checked_sub(keep)
            .unwrap_or(SystemTime::UNIX_EPOCH);
        let kept = nats::first_since(client, since).await?;
        end = end.min(kept.map_or(u64::MAX, LogPosition::get));
    }
    if end <= extent.first {
        return Ok(0);
    }
    purge(client, end).await
}

/// Removes the messages before the position `end`. Returns how many.
pub(crate) async fn purge(client: &Client, end: u64) -> Result<u64, NatsError> {
    let subject = format!("$JS.API.STREAM.PURGE.{STREAM}");
    let request = json!({ "seq": end });
    let purged = nats::call(client, "truncating the stream", subject, &request).await;
    let purged = purged.map_err(|(_, error)| error)?;
    let removed = purged["purged"].as_u64().unwrap_or_default();
    info!(
        event = "stream_truncated",
        first = end,
        removed,
        "removed the beginning of the stream"
    );
    Ok(removed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_is_nearly_full_beyond_three_quarters() {
        let extent = |bytes| StreamExtent {
            first: 1,
            last: 9,
            bytes,
            max_bytes: 16 << 30,
        };
        assert!(!extent(12 << 30).is_nearly_full());
        assert!(extent((12 << 30) + 4).is_nearly_full());
        assert!(extent(u64::MAX).is_nearly_full());
    }
}
