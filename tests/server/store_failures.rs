//! A store that cannot open a room: damaged data fails the room, any other error fails the server.

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use chitchat::domain::{Join, Name, Origin, RoomName, Rules, Sequence, Timestamp, WallTime};
use chitchat::hub::{Hub, HubError, HubOptions, JoinRequest};
use chitchat::store::{
    Append, AppendFuture, Bounds, Log, LogId, MemoryStore, Record, Retention, Store, StoreError, StoreUsage,
};
use chitchat::telemetry::{Metrics, OtlpPipeline, TelemetryObserver};

/// A store in which the rooms `damaged` and `new` cannot be opened.
struct Failing(MemoryStore);

const DAMAGED: StoreError = StoreError::Record {
    sequence: Sequence::ZERO,
    why: "it is damaged",
};

fn full() -> StoreError {
    StoreError::Io("no space left".into())
}

impl Store for Failing {
    fn is_blocking(&self) -> bool {
        true
    }

    fn open(&self, room: &RoomName, at: WallTime) -> Result<Log, StoreError> {
        match room.as_str() {
            "damaged" => Err(DAMAGED),
            "new" => Err(full()),
            _ => self.0.open(room, at),
        }
    }

    fn find(&self, room: &RoomName) -> Option<Log> {
        self.0.find(room)
    }

    fn rooms(&self, after: Option<&RoomName>, limit: usize) -> Vec<RoomName> {
        self.0.rooms(after, limit)
    }

    fn unfinished(&self) -> Vec<RoomName> {
        self.0.unfinished()
    }

    fn unused(&self, at: WallTime, limit: usize) -> Vec<RoomName> {
        self.0.unused(at, limit)
    }

    fn is_unused(&self, log: LogId, at: WallTime) -> bool {
        self.0.is_unused(log, at)
    }

    fn snapshot(&self, log: LogId) -> Result<Option<Bytes>, StoreError> {
        self.0.snapshot(log)
    }

    fn delete_log(&self, log: LogId) -> AppendFuture<'_> {
        self.0.delete_log(log)
    }

    fn snapshot_interval(&self) -> u64 {
        self.0.snapshot_interval()
    }

    fn bounds(&self, log: LogId) -> Result<Bounds, StoreError> {
        self.0.bounds(log)
    }

    fn records(&self, log: LogId, after: Sequence, max_bytes: usize) -> Result<Vec<Record>, StoreError> {
        self.0.records(log, after, max_bytes)
    }

    fn append(&self, log: LogId, append: Append) -> AppendFuture<'_> {
        self.0.append(log, append)
    }

    fn usage(&self) -> StoreUsage {
        self.0.usage()
    }
}

#[tokio::test]
async fn a_damaged_log_fails_its_room_and_a_failed_store_fails_the_server() {
    let metrics = Arc::new(Metrics::new(1, OtlpPipeline::default()));
    let store = Arc::new(Failing(MemoryStore::new(Retention::ON_DISK, 4)));
    let observer = Arc::new(TelemetryObserver::new(metrics, None));
    let hub = Hub::new(Rules::default(), HubOptions::default(), store, &[0; 32], observer);
    let join = async |room: &str| {
        let request = JoinRequest {
            room: RoomName::try_from(room).unwrap(),
            join: Join {
                session: None,
                id: None,
                name: Name::try_from("Ada").unwrap(),
                timestamp: Timestamp(0),
                owner: None,
                origin: Origin::default(),
                is_resumable: false,
                trace: None,
            },
            session_token: None,
            resume_point: None,
            history: 0,
        };
        hub.join(request, Instant::now()).await.map(drop)
    };
    assert_eq!(join("damaged").await, Err(HubError::Damaged));
    assert_eq!(join("lobby").await, Ok(()));
    assert_eq!(hub.cause(), None);
    assert_eq!(join("new").await, Err(HubError::Failed));
    hub.failed().cancelled().await;
    assert_eq!(hub.cause(), Some(&full()));
    assert_eq!(join("lobby").await, Err(HubError::Failed));
}
