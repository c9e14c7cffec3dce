//! Queries that are answered from the store, without a room's actor. They may wait for the disk.

use super::frame;
use super::registry::Registry;
use super::request::HubError;
use crate::domain::{Epoch, RoomName, Sequence};
use crate::store::{Bounds, Page, Store, StoreError, frames, read_page, read_page_back};

/// A page of a room's log.
#[derive(Debug, Clone)]
pub(crate) struct HistoryPage {
    pub(crate) page: Page,
    pub(crate) epoch: Epoch,
    /// The retained part of the log.
    pub(crate) bounds: Bounds,
}

/// The part of a room's log that a query asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum HistoryRange {
    Newest,
    After(Sequence),
    Before(Sequence),
}

/// A room in the list of rooms.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RoomSummary {
    pub(crate) room: RoomName,
    pub(crate) participants: u32,
    /// The room's Lamport time; at least that of its newest event, unless that is damaged.
    pub(crate) time: i64,
    pub(crate) epoch: Epoch,
    /// The retained part of the log.
    pub(crate) bounds: Bounds,
}

/// The events of `range` nearest to the position that it names: at most `limit`, and about `max_bytes`.
pub(super) fn read_history(
    store: &dyn Store,
    room: RoomName,
    range: HistoryRange,
    limit: u32,
    max_bytes: usize,
) -> Result<HistoryPage, HubError> {
    match read_log(store, &room, range, limit, max_bytes) {
        Ok(Some(page)) => Ok(page),
        Err(error) if store.find(&room).is_some() => Err(error.into()),
        // It may have ended meanwhile.
        _ => Err(HubError::NoRoom(room)),
    }
}

/// [`read_history`] of a room, if it exists.
fn read_log(
    store: &dyn Store,
    room: &RoomName,
    range: HistoryRange,
    limit: u32,
    max_bytes: usize,
) -> Result<Option<HistoryPage>, StoreError> {
    let Some(log) = store.find(room) else {
        return Ok(None);
    };
    let bounds = store.bounds(log.id)?;
    let limit = u64::from(limit);
    // Earlier events are no longer retained. The page leaves them out, and its bounds say so.
    let start = bounds.first.previous();
    let read_back_from = |upto: Sequence| {
        let after = Sequence::new(upto.get().saturating_sub(limit)).max(start);
        read_page_back(store, log.id, after, upto, max_bytes)
    };
    let page = match range {
        HistoryRange::Newest => read_back_from(bounds.last)?,
        HistoryRange::Before(before) => read_back_from(before.previous().min(bounds.last))?,
        HistoryRange::After(after) => {
            let after = after.max(start);
            let upto = Sequence::new(after.get().saturating_add(limit));
            read_page(store, log.id, after, upto, max_bytes)?
        }
    };
    Ok(Some(HistoryPage {
        page,
        epoch: log.epoch,
        bounds,
    }))
}

/// At most `limit` of the rooms that are visible, by name, starting after the room `after`.
pub(super) fn list_rooms(
    store: &dyn Store,
    registry: &Registry,
    mut after: Option<RoomName>,
    limit: usize,
    is_visible: impl Fn(&RoomName) -> bool,
) -> Result<Vec<RoomSummary>, HubError> {
    let mut rooms = Vec::new();
    loop {
        let names = store.rooms(after.as_ref(), limit);
        let is_last = names.len() < limit;
        after = names.last().cloned();
        rooms.extend(names.into_iter().filter(&is_visible));
        if is_last || rooms.len() >= limit {
            break;
        }
    }
    rooms.truncate(limit);
    let mut summaries = Vec::new();
    for room in rooms {
        match summarize(store, registry, room.clone()) {
            Ok(summary) => summaries.extend(summary),
            // It has ended meanwhile.
            Err(_) if store.find(&room).is_none() => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(summaries)
}

/// The summary of a room, if it exists.
fn summarize(
    store: &dyn Store,
    registry: &Registry,
    room: RoomName,
) -> Result<Option<RoomSummary>, StoreError> {
    let Some(log) = store.find(&room) else {
        return Ok(None);
    };
    let bounds = store.bounds(log.id)?;
    let (time, participants) = registry.get(&room).map_or((0, 0), |room| room.stats());
    let newest_time = match read_page(store, log.id, bounds.last.previous(), bounds.last, 1) {
        Ok(newest) => frames(newest.bytes)
            .last()
            .and_then(|frame| frame::read_message(&frame))
            .map_or(0, |message| message.timestamp),
        // The other rooms are listed all the same.
        Err(error) if error.is_damage() => 0,
        Err(error) => return Err(error),
    };
    Ok(Some(RoomSummary {
        room,
        participants,
        time: time.max(newest_time),
        epoch: log.epoch,
        bounds,
    }))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::sync::Arc;

    use super::*;
    use crate::domain::WallTime;
    use crate::proto::ServerMessage;
    use crate::store::{
        Append, DiskOptions, DiskStore, Durability, NoObserver, Record, Retention, RoomStatus,
    };

    #[tokio::test]
    async fn a_room_whose_newest_record_is_damaged_is_listed_without_its_time() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("data");
        let options = DiskOptions {
            durability: Durability::Sync,
            retention: Retention::ON_DISK,
            max_rooms: 2,
            accept_loss: false,
        };
        let store = DiskStore::open(&path, options, Arc::new(NoObserver)).unwrap();
        for (name, timestamp) in [("milk", 6), ("tea", 7)] {
            let log = store.open(&RoomName::try_from(name).unwrap(), WallTime::default());
            let message = ServerMessage {
                timestamp,
                msg_stream: format!("hello {name}"),
                ..ServerMessage::default()
            };
            let append = Append {
                records: vec![Record {
                    first: Sequence::new(1),
                    events: 1,
                    at: WallTime::default(),
                    resumable: Vec::new(),
                    frames: frame::encode(&message),
                }],
                snapshot: None,
                status: RoomStatus::default(),
            };
            store.append(log.unwrap().id, append).await.unwrap();
        }
        let segment = path.join("log/0000000001.log");
        let mut bytes = fs::read(&segment).unwrap();
        let text = bytes
            .windows(10)
            .position(|window| window == b"hello milk")
            .unwrap();
        bytes[text] ^= 1;
        fs::write(&segment, bytes).unwrap();
        let registry = Registry::new(0, false);
        let listed = list_rooms(&store, &registry, None, 9, |_| true).unwrap();
        let times: Vec<_> = listed
            .iter()
            .map(|room| (room.room.as_str(), room.time))
            .collect();
        assert_eq!(times, [("milk", 0), ("tea", 7)]);
    }
}
