//! Checkpoints: the whole state of a replica at one position of the command log, as one file.
//!
//! A checkpoint is a sequence of sections: the state of the [`StateMachine`], each room, after each room the records that the replica retains of it, and an end
//! with a checksum of everything before it. A section is its kind (one byte), its length (4 bytes, little-endian) and its content. The
//! first eight bytes say what the file is, and in which version.
//!
//! Whoever reads one has nothing before all of it is read and the checksum is right. Nothing that is allocated meanwhile is larger than what is left to
//! read.

use std::io::{self, ErrorKind, Read, Write};
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use xxhash_rust::xxh3::Xxh3;

use super::fingerprint::Fingerprint;
use super::message::LogPosition;
use super::state_machine::StateMachine;
use super::state_machine_snapshot::{ReplicatedRoom, ReplicatedRooms, StateMachineSnapshot};
use crate::domain::encoding::{self, Encoding, encode_struct};
use crate::domain::{DecodeError, Epoch, InvalidState, Room, RoomName, RoomState, Sequence, WallTime};
use crate::hub::RestoredRoom;
use crate::store::{Record, frames};

/// What a checkpoint begins with. The last byte is the version of the sections; their contents have the version of the encodings.
const MAGIC: [u8; 8] = *b"chatckp\x02";

/// A section's kind and length.
const HEADER_LEN: u64 = 5;

const FOLD: u8 = 1;
const ROOM: u8 = 2;
const RECORD: u8 = 3;
const END: u8 = 4;

/// Records are joined up to this size: a busy room has many small ones.
const JOINED_BYTES: usize = 32 << 10;

/// Why a checkpoint cannot be written or read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CheckpointError {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error("it is not a checkpoint, or of another version")]
    Format,
    #[error("it ends too early")]
    Truncated,
    #[error("its checksum is wrong")]
    Checksum,
    #[error(transparent)]
    Decode(#[from] DecodeError),
    #[error(transparent)]
    State(#[from] InvalidState),
    #[error("malformed: {0}")]
    Malformed(&'static str),
    #[error("a room has more than a section can have")]
    TooLong,
    #[error("the room {:?} has not got so far", .0.as_str())]
    NotReached(RoomName),
}

/// What identifies a checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct CheckpointId {
    pub(crate) position: LogPosition,
    /// Of the message at its position. A stream with another one is not the one that the checkpoint is of.
    pub(crate) fingerprint: Fingerprint,
    /// In bytes.
    pub(crate) len: u64,
    pub(crate) checksum: u64,
}

/// What a checkpoint has.
#[derive(Debug)]
pub(crate) struct Checkpoint {
    pub(crate) id: CheckpointId,
    pub(crate) state_machine: StateMachine,
    /// For the hub.
    pub(crate) rooms: Vec<RestoredRoom>,
}

/// What comes first.
struct FoldSection {
    fingerprint: Fingerprint,
    state: StateMachineSnapshot,
}

/// A room; its records follow.
struct RoomSection {
    name: RoomName,
    epoch: Epoch,
    state: RoomState,
}

/// What precedes a record's frames.
struct RecordHeader {
    first: Sequence,
    events: u32,
    at: WallTime,
    resumable: Vec<u32>,
}

encode_struct! {
    CheckpointId { position, fingerprint, len, checksum }
    FoldSection { fingerprint, state }
    RoomSection { name, epoch, state }
    RecordHeader { first, events, at, resumable }
}

/// Writes sections, and hashes them.
struct Writer<W> {
    out: W,
    hash: Xxh3,
    len: u64,
}

impl<W: Write> Writer<W> {
    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.hash.update(bytes);
        self.len += bytes.len() as u64;
        self.out.write_all(bytes)
    }

    fn section(&mut self, kind: u8, content: &[&[u8]]) -> Result<(), CheckpointError> {
        let len = content.iter().map(|part| part.len()).sum::<usize>();
        let len = u32::try_from(len).map_err(|_| CheckpointError::TooLong)?;
        self.put(&[kind])?;
        self.put(&len.to_le_bytes())?;
        for part in content {
            self.put(part)?;
        }
        Ok(())
    }
}

fn versioned(value: &impl Encoding) -> Vec<u8> {
    let mut bytes = vec![encoding::VERSION];
    value.write(&mut bytes);
    bytes
}

/// Writes a checkpoint. `fingerprint` is that of the message at its position. `records` returns what is retained of a room's log, at least up to the given
/// event if it is retained.
///
/// Each room is let go once it is written, so that the replica need not copy it when it changes.
pub(crate) fn write(
    out: impl Write,
    state: StateMachineSnapshot,
    fingerprint: Fingerprint,
    mut rooms: ReplicatedRooms,
    mut records: impl FnMut(&RoomName, Epoch, Sequence) -> Result<Vec<Record>, CheckpointError>,
) -> Result<CheckpointId, CheckpointError> {
    let mut writer = Writer {
        out,
        hash: Xxh3::new(),
        len: 0,
    };
    writer.put(&MAGIC)?;
    let position = state.applied;
    writer.section(FOLD, &[&versioned(&FoldSection { fingerprint, state })])?;
    while let Some((name, replicated)) = rooms.pop_first() {
        let (epoch, last) = (replicated.epoch, replicated.room.last());
        let state = replicated.room.state();
        drop(replicated);
        let records = records(&name, epoch, last)?;
        writer.section(ROOM, &[&versioned(&RoomSection { name, epoch, state })])?;
        write_records(&mut writer, records, last)?;
    }
    let checksum = writer.hash.digest();
    writer.section(END, &[&checksum.to_le_bytes()])?;
    writer.out.flush()?;
    Ok(CheckpointId {
        position,
        fingerprint,
        len: writer.len,
        checksum,
    })
}

/// Writes the records up to the event `last`, joined to fewer ones.
fn write_records(
    writer: &mut Writer<impl Write>,
    records: Vec<Record>,
    last: Sequence,
) -> Result<(), CheckpointError> {
    let mut joined: Option<(RecordHeader, Vec<Bytes>, usize)> = None;
    for record in records.into_iter().take_while(|record| record.first <= last) {
        let record = up_to(record, last);
        if let Some((header, all, len)) = &mut joined
            && *len + record.frames.len() <= JOINED_BYTES
        {
            let resumable = record.resumable.iter();
            header
                .resumable
                .extend(resumable.map(|index| index.saturating_add(header.events)));
            header.events = header.events.saturating_add(record.events);
            header.at = record.at;
            *len += record.frames.len();
            all.push(record.frames);
            continue;
        }
        let header = RecordHeader {
            first: record.first,
            events: record.events,
            at: record.at,
            resumable: record.resumable,
        };
        let (len, next) = (record.frames.len(), vec![record.frames]);
        if let Some((header, all, _)) = joined.replace((header, next, len)) {
            write_record(writer, &header, &all)?;
        }
    }
    match joined {
        Some((header, all, _)) => write_record(writer, &header, &all),
        None => Ok(()),
    }
}

fn write_record(
    writer: &mut Writer<impl Write>,
    header: &RecordHeader,
    all: &[Bytes],
) -> Result<(), CheckpointError> {
    let header = versioned(header);
    let header_len = u32::try_from(header.len()).map_err(|_| CheckpointError::TooLong)?;
    let header_len = header_len.to_le_bytes();
    let mut content: Vec<&[u8]> = vec![&header_len, &header];
    content.extend(all.iter().map(|frames| &frames[..]));
    writer.section(RECORD, &content)
}

/// The record without the events after `last`.
fn up_to(mut record: Record, last: Sequence) -> Record {
    if record.last() > last {
        let events = last.get().saturating_sub(record.first.previous().get());
        let events = u32::try_from(events).unwrap_or(u32::MAX);
        let kept = frames(record.frames.clone()).take(events as usize);
        let len = kept.map(|frame| frame.len()).sum();
        record.frames.truncate(len);
        record.events = events;
        record.resumable.retain(|index| *index < events);
    }
    record
}

/// Reads sections, and hashes them.
struct Reader<R> {
    input: R,
    hash: Xxh3,
    left: u64,
}

impl<R: Read> Reader<R> {
    fn take(&mut self, len: u64) -> Result<BytesMut, CheckpointError> {
        let left = self.left.checked_sub(len).ok_or(CheckpointError::Truncated)?;
        let len = usize::try_from(len).map_err(|_| CheckpointError::Truncated)?;
        let mut bytes = BytesMut::zeroed(len);
        self.input
            .read_exact(&mut bytes)
            .map_err(|error| match error.kind() {
                ErrorKind::UnexpectedEof => CheckpointError::Truncated,
                _ => error.into(),
            })?;
        self.left = left;
        Ok(bytes)
    }

    /// The next section, and the hash of everything before it.
    fn section(&mut self) -> Result<(u8, Bytes, u64), CheckpointError> {
        let before = self.hash.digest();
        let header = self.take(HEADER_LEN)?;
        self.hash.update(&header);
        let (kind, len) = (header[0], [header[1], header[2], header[3], header[4]]);
        let content = self.take(u32::from_le_bytes(len).into())?;
        self.hash.update(&content);
        Ok((kind, content.freeze(), before))
    }
}

/// Reads a checkpoint of `len` bytes.
///
/// # Errors
///
/// It cannot be read, is damaged, or another version of the program has written it.
pub(crate) fn read(input: impl Read, len: u64) -> Result<Checkpoint, CheckpointError> {
    let mut reader = Reader {
        input,
        hash: Xxh3::new(),
        left: len,
    };
    let magic = reader.take(MAGIC.len() as u64)?;
    if magic[..] != MAGIC {
        return Err(CheckpointError::Format);
    }
    reader.hash.update(&magic);
    let (FOLD, content, _) = reader.section()? else {
        return Err(CheckpointError::Malformed(
            "the state of the command log is not first",
        ));
    };
    let FoldSection { fingerprint, state } = encoding::decode(&content)?;
    let (mut states, mut rooms) = (ReplicatedRooms::new(), Vec::<RestoredRoom>::new());
    loop {
        let (kind, content, hash) = reader.section()?;
        match (kind, rooms.last_mut()) {
            (ROOM, _) => {
                let RoomSection { name, epoch, state } = encoding::decode(&content)?;
                let room = Room::from_state(state)?;
                let replicated = ReplicatedRoom {
                    epoch,
                    room: room.clone(),
                };
                if states.insert(name.clone(), Arc::new(replicated)).is_some() {
                    return Err(CheckpointError::Malformed("a room comes twice"));
                }
                rooms.push(RestoredRoom {
                    name,
                    epoch,
                    room,
                    records: Vec::new(),
                });
            }
            (RECORD, Some(room)) => {
                let record = read_record(content)?;
                let previous = room.records.last();
                let is_next = previous.is_none_or(|previous| previous.last().next() == record.first);
                if !is_next || record.last() > room.room.last() {
                    return Err(CheckpointError::Malformed("records do not follow one another"));
                }
                room.records.push(record);
            }
            (END, _) => {
                let checksum = content[..].try_into().map(u64::from_le_bytes).ok();
                if checksum != Some(hash) {
                    return Err(CheckpointError::Checksum);
                }
                if reader.left > 0 {
                    return Err(CheckpointError::Malformed("something follows its end"));
                }
                let is_whole = |room: &RestoredRoom| {
                    let newest = room.records.last();
                    newest.is_none_or(|newest| newest.last() == room.room.last())
                };
                if !rooms.iter().all(is_whole) {
                    return Err(CheckpointError::Malformed("records are missing"));
                }
                let id = CheckpointId {
                    position: state.applied,
                    fingerprint,
                    len,
                    checksum: hash,
                };
                return Ok(Checkpoint {
                    id,
                    state_machine: StateMachine::from_state(state, states),
                    rooms,
                });
            }
            _ => return Err(CheckpointError::Malformed("a section is of an unknown kind")),
        }
    }
}

fn read_record(mut content: Bytes) -> Result<Record, CheckpointError> {
    let header_len = content.get(..4).and_then(|len| len.try_into().ok());
    let header_len = header_len.map_or(usize::MAX, |len| u32::from_le_bytes(len) as usize);
    let header = content.get(4..).and_then(|rest| rest.get(..header_len));
    let header: RecordHeader = encoding::decode(header.ok_or(CheckpointError::Truncated)?)?;
    let content = content.split_off(4 + header_len);
    let (mut count, mut len) = (0_u32, 0);
    for frame in frames(content.clone()) {
        count = count.saturating_add(1);
        len += frame.len();
    }
    let RecordHeader {
        first,
        events,
        at,
        resumable,
    } = header;
    let is_valid = events > 0 && first > Sequence::ZERO && (count, len) == (events, content.len());
    if !is_valid || resumable.iter().any(|index| *index >= events) {
        return Err(CheckpointError::Malformed(
            "a record has the wrong number of events",
        ));
    }
    Ok(Record {
        first,
        events,
        at,
        resumable,
        frames: content,
    })
}

/// Fuzz target: checkpoints, which replicas get from one another. The end is added.
#[cfg(any(feature = "fuzzing", test))]
pub(crate) fn fuzz_checkpoints(bytes: &[u8]) {
    read(bytes, bytes.len() as u64).ok();
    let mut valid = [&MAGIC, bytes].concat();
    let checksum = xxhash_rust::xxh3::xxh3_64(&valid);
    valid.extend([END, 8, 0, 0, 0]);
    valid.extend(checksum.to_le_bytes());
    let Ok(checkpoint) = read(&valid[..], valid.len() as u64) else {
        return;
    };
    // Records are joined, so it may be shorter.
    let (state, rooms) = checkpoint.state_machine.state();
    let fingerprint = checkpoint.id.fingerprint;
    let mut records = checkpoint.rooms.into_iter().map(|room| room.records);
    let mut again = Vec::new();
    let written = write(&mut again, state.clone(), fingerprint, rooms, |_, _, _| {
        Ok(records.next().unwrap_or_default())
    });
    let len = again.len() as u64;
    let checkpoint =
        read(&again[..], len).map(|checkpoint| (checkpoint.id, checkpoint.state_machine.state().0));
    assert_eq!(checkpoint.ok(), written.ok().map(|id| (id, state)));
}
