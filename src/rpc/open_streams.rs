//! The streams of a connection, as its frames show them, and what h2 holds for them.
//!
//! h2 keeps the payload of a DATA frame as a slice of the buffer that it was read into until somebody reads it, and with it the whole
//! buffer. Which buffers these are shows in the addresses of what is read: a client that sends a short frame which is not read with each
//! long one that is would otherwise make the server hold far more than it has to read.

use std::collections::VecDeque;
use std::ops::RangeInclusive;

use hashbrown::HashMap;

use super::header_table::READ_BUFFER;

/// What an unread frame takes at least, in bytes: h2 keeps each in a slot of its own.
pub(super) const FRAME_BYTES: usize = 256;

/// How many unread frames are part of the memory of a connection.
pub(super) const FREE_FRAMES: usize = 8;

/// Roughly what h2 holds for a request whose answer it has not written, in bytes. It does not count requests with invalid headers, and
/// those that are refused, as open streams, but keeps an answer to each until the socket accepts it.
pub(super) const UNANSWERED_BYTES: usize = 2 * 1024;

/// What h2 keeps at most of the headers of one request, or of its trailers, in bytes: hundreds of short ones.
pub(super) const HEADER_MAP_BYTES: usize = 96 * 1024;

/// The size of the largest buffers that h2 reads into, in bytes, with some reserve: those of long frames. More bytes in a row are in adjacent
/// buffers.
pub(super) const MAX_READ_BUFFER: usize = 4 * READ_BUFFER;

/// The capacity that the queue of a stream's frames keeps when it is empty: enough for the buffers that a client fills which sends short messages
/// as fast as flow control permits.
const KEPT_CAPACITY: usize = 16;

/// The streams that have begun and not ended.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct OpenStreams {
    streams: HashMap<u32, OpenStream>,
    /// Those from which nobody has read, by the address where their first frame with data ends.
    unidentified: HashMap<usize, u32>,
    buffers: ReadBuffers,
    /// How many DATA frames are unread.
    frames: usize,
    /// How many streams are not answered.
    unanswered: usize,
    /// How many header blocks follow the messages of a request. gRPC clients do not send any.
    trailers: usize,
    /// Whether the socket accepts nothing.
    is_blocked: bool,
    /// How many frames have come meanwhile for streams that are not open. h2 may keep an answer to each until the socket accepts it.
    late: usize,
}

#[derive(Debug, Default, PartialEq, Eq)]
struct OpenStream {
    is_answered: bool,
    /// Whether nobody reads any more what comes.
    is_ignored: bool,
    trailers: usize,
    /// Where its first frame with data ended.
    first_end: Option<usize>,
    unread: VecDeque<UnreadFrames>,
}

/// A run of DATA frames: of one stream, in one buffer, with no other frame between them.
#[derive(Debug, Default)]
pub(super) struct DataRun {
    stream: u32,
    /// How many there are.
    count: usize,
    /// The addresses where the data of the first and of the last one ends.
    ends: (usize, usize),
    /// How many bytes of data they have.
    len: usize,
    /// Whether the last one ends the stream.
    ends_stream: bool,
}

impl DataRun {
    /// A frame with `len` bytes of data, which end at the address `end`.
    pub(super) const fn one(stream: u32, end: usize, len: usize, ends_stream: bool) -> Self {
        Self {
            stream,
            count: 1,
            ends: (end, end),
            len,
            ends_stream,
        }
    }

    /// Adds a frame that follows. Returns it if it cannot be counted together with the others.
    pub(super) const fn append(&mut self, next: Self) -> Result<(), Self> {
        // h2 drops empty ones, but not one that ends the stream.
        if self.stream != next.stream || self.len == 0 || next.len == 0 {
            return Err(next);
        }
        self.count += next.count;
        self.ends.1 = next.ends.1;
        self.len += next.len;
        self.ends_stream = next.ends_stream;
        Ok(())
    }
}

/// Unread frames of one stream in one buffer, one after the other.
#[derive(Debug, PartialEq, Eq)]
struct UnreadFrames {
    /// The addresses where the data of the first and of the last one ends.
    ends: RangeInclusive<usize>,
    count: usize,
    buffer: u32,
}

/// How many frames a reader reads before they are counted: together, because the streams of a connection are locked to count.
const MAX_UNCOUNTED: usize = 16;

/// The reader of a request's messages. It learns which stream that is when it reads the first one.
#[derive(Debug, Default)]
pub(super) struct RequestReader {
    stream: Option<u32>,
    /// How many frames it has read that are not counted yet.
    uncounted: usize,
    /// The address where the data of the last one ends.
    end: usize,
}

impl RequestReader {
    /// Notes that a frame was read, to be counted by [`OpenStreams::count_reads`]. Returns false if it must be counted at once.
    pub(super) fn defer(&mut self, data: &[u8]) -> bool {
        let may_wait = self.stream.is_some() && !data.is_empty() && self.uncounted < MAX_UNCOUNTED;
        if may_wait {
            self.uncounted += 1;
            self.end = end_of(data);
        }
        may_wait
    }

    /// Whether it has read frames that are not counted yet.
    pub(super) const fn has_uncounted(&self) -> bool {
        self.uncounted > 0
    }
}

/// The address where `data` ends.
fn end_of(data: &[u8]) -> usize {
    data.as_ptr_range().end.addr()
}

impl OpenStreams {
    /// Roughly what is held, in bytes, beyond what is part of the memory of a connection.
    pub(super) fn bytes(&self) -> usize {
        self.frame_bytes()
            + self.buffers.bytes()
            + (self.unanswered + self.late) * UNANSWERED_BYTES
            + self.trailers * HEADER_MAP_BYTES
    }

    /// What the slots of unread frames take of that.
    pub(super) fn frame_bytes(&self) -> usize {
        self.frames.saturating_sub(FREE_FRAMES) * FRAME_BYTES
    }

    /// How many streams are open.
    pub(super) fn len(&self) -> usize {
        self.streams.len()
    }

    /// How many DATA frames are unread.
    pub(super) fn frames(&self) -> usize {
        self.frames
    }

    /// Counts a read from the socket of `len` bytes, to the address `start`.
    pub(super) fn receive_bytes(&mut self, start: usize, len: usize) {
        self.buffers.receive(start, len);
    }

    /// Counts a HEADERS frame of the client that begins a stream.
    pub(super) fn open(&mut self, stream: u32) {
        self.streams.insert(stream, OpenStream::default());
        self.unanswered += 1;
    }

    /// Counts a HEADERS frame of the client that does not.
    pub(super) fn receive_trailers(&mut self, stream: u32) {
        match self.streams.get_mut(&stream) {
            Some(open) if open.is_ignored => {}
            Some(open) => {
                open.trailers += 1;
                self.trailers += 1;
            }
            None => self.receive_late(1),
        }
    }

    /// Counts frames to which h2 may answer with RST_STREAM, and which belong to no open stream.
    pub(super) fn receive_late(&mut self, count: usize) {
        self.late += usize::from(self.is_blocked) * count;
    }

    /// Counts DATA frames. It costs the same for one as for many.
    pub(super) fn receive_data(&mut self, frames: &DataRun) {
        if frames.count == 0 {
            return;
        }
        let Some(open) = self.streams.get_mut(&frames.stream) else {
            self.receive_late(frames.count);
            return;
        };
        // h2 drops empty ones.
        if open.is_ignored || (frames.len == 0 && !frames.ends_stream) {
            return;
        }
        let (first, last) = frames.ends;
        if frames.len > 0 && open.first_end.is_none() {
            open.first_end = Some(first);
            self.unidentified.insert(first, frames.stream);
        }
        self.frames += frames.count;
        let buffer = self.buffers.add_data(frames.len);
        match open.unread.back_mut() {
            Some(before) if before.buffer == buffer && *before.ends.end() < first => {
                before.ends = *before.ends.start()..=last;
                before.count += frames.count;
            }
            _ => {
                self.buffers.hold();
                open.unread.push_back(UnreadFrames {
                    ends: first..=last,
                    count: frames.count,
                    buffer,
                });
            }
        }
    }

    /// Counts the data of a frame that was read.
    pub(super) fn read_data(&mut self, reader: &mut RequestReader, data: &[u8]) {
        self.count_reads(reader);
        let end = end_of(data);
        if reader.stream.is_none() && !data.is_empty() {
            reader.stream = self.unidentified.remove(&end);
        }
        (reader.uncounted, reader.end) = (1, end);
        self.count_reads(reader);
    }

    /// Counts the frames that `reader` has read.
    pub(super) fn count_reads(&mut self, reader: &mut RequestReader) {
        let (mut count, end) = (std::mem::take(&mut reader.uncounted), reader.end);
        if count == 0 {
            return;
        }
        let Some(open) = reader.stream.and_then(|stream| self.streams.get_mut(&stream)) else {
            return;
        };
        // What precedes the last frame that was read is gone, even if h2 has dropped it.
        let position = open.unread.iter().position(|frames| frames.ends.contains(&end));
        for gone in open.unread.drain(..position.unwrap_or(0)) {
            self.frames -= gone.count;
            self.buffers.release(gone.buffer);
            count = count.saturating_sub(gone.count);
        }
        let count = count.max(1);
        if let Some(frames) = open.unread.front_mut() {
            if frames.count > count && *frames.ends.end() != end {
                frames.count -= count;
                self.frames -= count;
                return;
            }
            self.frames -= frames.count;
            self.buffers.release(frames.buffer);
            open.unread.pop_front();
        }
        if open.unread.is_empty() && open.unread.capacity() > KEPT_CAPACITY {
            open.unread = VecDeque::new();
        }
    }

    /// Nothing more is read from a stream.
    pub(super) fn end_reading(&mut self, reader: &RequestReader) {
        if let Some(open) = reader.stream.and_then(|stream| self.streams.get_mut(&stream)) {
            open.is_ignored = true;
            let unread = std::mem::take(&mut open.unread);
            let trailers = std::mem::take(&mut open.trailers);
            self.forget(&unread, trailers);
        }
    }

    /// Counts a HEADERS frame of the server.
    pub(super) fn answer(&mut self, stream: u32) {
        if let Some(open) = self.streams.get_mut(&stream) {
            self.unanswered -= usize::from(!open.is_answered);
            open.is_answered = true;
        }
    }

    /// One of the two has ended a stream. Returns whether it was open.
    pub(super) fn close(&mut self, stream: u32) -> bool {
        let Some(closed) = self.streams.remove(&stream) else {
            return false;
        };
        self.unanswered -= usize::from(!closed.is_answered);
        self.forget(&closed.unread, closed.trailers);
        if let Some(end) = closed.first_end
            && self.unidentified.get(&end) == Some(&stream)
        {
            self.unidentified.remove(&end);
        }
        true
    }

    /// Counts a RST_STREAM frame of the server.
    pub(super) fn reset(&mut self, stream: u32) {
        if !self.close(stream) {
            self.late = self.late.saturating_sub(1);
        }
    }

    /// Whether the socket accepts nothing. Otherwise it has accepted all answers to what came too late.
    pub(super) fn set_blocked(&mut self, is_blocked: bool) {
        self.is_blocked = is_blocked;
        if !is_blocked {
            self.late = 0;
        }
    }

    fn forget(&mut self, unread: &VecDeque<UnreadFrames>, trailers: usize) {
        self.trailers -= trailers;
        for frames in unread {
            self.frames -= frames.count;
            self.buffers.release(frames.buffer);
        }
    }
}

/// The buffers that h2 reads into.
#[derive(Debug, Default, PartialEq, Eq)]
struct ReadBuffers {
    newest: ReadBuffer,
    newest_id: u32,
    /// The address where the newest byte ends. What does not begin there was read into another buffer.
    end: usize,
    /// The others in which there are unread frames.
    older: HashMap<u32, ReadBuffer>,
    /// What they take, in bytes.
    older_bytes: usize,
}

#[derive(Debug, Default, PartialEq, Eq)]
struct ReadBuffer {
    /// How many bytes were read into it.
    read: usize,
    /// How many of them are data. A frame that began in an earlier buffer was moved.
    data: usize,
    /// How many streams have unread frames in it, or more: a stream counts for each [`UnreadFrames`].
    holders: usize,
}

impl ReadBuffer {
    /// Roughly what it takes, in bytes.
    fn bytes(&self) -> usize {
        self.read.max(self.data).max(READ_BUFFER)
    }
}

impl ReadBuffers {
    /// What the buffers take, in bytes. The newest is part of the memory of a connection, unless it is a large one.
    fn bytes(&self) -> usize {
        let is_held = self.newest.holders > 0;
        self.older_bytes + usize::from(is_held) * (self.newest.bytes() - READ_BUFFER)
    }

    fn receive(&mut self, start: usize, len: usize) {
        if len == 0 {
            return;
        }
        if start != self.end || self.newest.read + len > MAX_READ_BUFFER {
            let before = std::mem::take(&mut self.newest);
            if before.holders > 0 {
                self.older_bytes += before.bytes();
                self.older.insert(self.newest_id, before);
            }
            self.newest_id = self.newest_id.wrapping_add(1);
        }
        self.newest.read += len;
        self.end = start + len;
    }

    /// Counts a frame with `len` bytes in the newest buffer. Returns which that is.
    const fn add_data(&mut self, len: usize) -> u32 {
        self.newest.data += len;
        self.newest_id
    }

    /// Holds the newest buffer until it is released as often.
    const fn hold(&mut self) {
        self.newest.holders += 1;
    }

    fn release(&mut self, buffer: u32) {
        if buffer == self.newest_id {
            self.newest.holders -= 1;
            return;
        }
        if let Some(older) = self.older.get_mut(&buffer) {
            older.holders -= 1;
            if older.holders == 0 {
                self.older_bytes -= older.bytes();
                self.older.remove(&buffer);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Receives frames of one stream each, in one buffer.
    fn receive(streams: &mut OpenStreams, buffer: &[u8], frames: &[(u32, &[u8])]) {
        streams.receive_bytes(buffer.as_ptr().addr(), buffer.len());
        for (stream, data) in frames {
            streams.receive_data(&DataRun::one(*stream, end_of(data), data.len(), false));
        }
    }

    #[test]
    fn a_short_frame_that_is_not_read_keeps_its_buffer() {
        let mut streams = OpenStreams::default();
        // They are not adjacent.
        let buffers: Vec<_> = (0..100).map(|_| vec![0; 8_001]).collect();
        streams.open(1);
        streams.open(3);
        let mut reader = RequestReader::default();
        let empty = streams.bytes();
        for buffer in &buffers {
            let (short, long) = buffer[1..].split_at(5);
            receive(&mut streams, &buffer[1..], &[(1, short), (3, long)]);
            streams.read_data(&mut reader, long);
        }
        let held = 99 * READ_BUFFER + (100 - FREE_FRAMES) * FRAME_BYTES;
        assert_eq!(streams.bytes() - empty, held);
        streams.close(1);
        assert_eq!(streams.bytes() + UNANSWERED_BYTES, empty);
    }

    #[test]
    fn what_is_read_is_not_held_however_long_others_wait() {
        let mut streams = OpenStreams::default();
        let waiting = [0; 100];
        let buffers = vec![[0; 8_000]; 1_000];
        streams.open(1);
        streams.open(3);
        receive(&mut streams, &waiting, &[(1, &waiting)]);
        let mut reader = RequestReader::default();
        for buffer in &buffers {
            receive(&mut streams, buffer, &[(3, &buffer[..10]), (3, &buffer[20..])]);
            streams.read_data(&mut reader, &buffer[..10]);
            streams.read_data(&mut reader, &buffer[20..]);
        }
        assert_eq!(streams.bytes(), 2 * UNANSWERED_BYTES + READ_BUFFER);
        let mut reader = RequestReader::default();
        streams.read_data(&mut reader, &waiting);
        assert_eq!(streams.bytes(), 2 * UNANSWERED_BYTES);
    }

    #[test]
    fn frames_that_are_counted_together_free_the_buffers_that_they_are_in() {
        // They are not adjacent.
        let buffers: Vec<_> = (0..10).map(|_| vec![0; 8_001]).collect();
        // Which frames h2 has dropped: none, or each seventh, but not the last one of a buffer.
        for is_dropped in [|_| false, |n: usize| n % 7 == 2] {
            let mut streams = OpenStreams::default();
            streams.open(1);
            let mut reader = RequestReader::default();
            for (n, buffer) in buffers.iter().enumerate() {
                let buffer = &buffer[1..];
                let frames: Vec<_> = buffer.chunks(320).map(|data| (1, data)).collect();
                receive(&mut streams, buffer, &frames);
                for (n, (_, data)) in frames.iter().enumerate() {
                    if !is_dropped(n) && !reader.defer(data) {
                        streams.read_data(&mut reader, data);
                    }
                }
                streams.count_reads(&mut reader);
                assert!(!reader.has_uncounted());
                assert_eq!(streams.frames, 0, "{n}");
            }
            streams.close(1);
            assert_eq!((streams.frames, streams.bytes()), (0, 0));
        }
    }

    #[test]
    fn long_frames_take_their_length() {
        let mut streams = OpenStreams::default();
        let buffers: Vec<_> = (0..10).map(|_| vec![0; 16_384]).collect();
        streams.open(1);
        for buffer in &buffers {
            // The first half came in an earlier buffer.
            streams.receive_bytes(buffer[8_192..].as_ptr().addr(), 8_192);
            streams.receive_data(&DataRun::one(1, end_of(buffer), buffer.len(), false));
        }
        let others = UNANSWERED_BYTES + 2 * FRAME_BYTES;
        assert_eq!(streams.bytes(), 10 * 16_384 - READ_BUFFER + others);
    }

    #[test]
    fn streams_are_unanswered_until_the_first_headers_or_their_end() {
        let mut streams = OpenStreams::default();
        for stream in [1, 3, 5] {
            streams.open(stream);
        }
        for _ in 0..2 {
            streams.answer(1);
        }
        assert_eq!(streams.bytes(), 2 * UNANSWERED_BYTES);
        assert!(streams.close(3) && !streams.close(3) && streams.close(1));
        assert_eq!((streams.bytes(), streams.len()), (UNANSWERED_BYTES, 1));
    }

    #[test]
    fn what_comes_too_late_counts_until_the_socket_accepts_the_answer() {
        let mut streams = OpenStreams::default();
        streams.receive_late(1);
        assert_eq!(streams.bytes(), 0);
        streams.set_blocked(true);
        streams.receive_data(&DataRun::one(1, 0, 0, true));
        streams.receive_trailers(1);
        streams.receive_late(1);
        assert_eq!(streams.bytes(), 3 * UNANSWERED_BYTES);
        streams.reset(1);
        assert_eq!(streams.bytes(), 2 * UNANSWERED_BYTES);
        streams.set_blocked(false);
        assert_eq!(streams.bytes(), 0);
    }

    #[test]
    fn trailers_count_until_nobody_reads_them() {
        let mut streams = OpenStreams::default();
        let data = [0; 10];
        streams.open(1);
        receive(&mut streams, &data, &[(1, &data)]);
        streams.receive_trailers(1);
        streams.receive_trailers(1);
        assert_eq!(streams.bytes(), UNANSWERED_BYTES + 2 * HEADER_MAP_BYTES);
        let mut reader = RequestReader::default();
        streams.read_data(&mut reader, &data);
        streams.end_reading(&reader);
        streams.receive_trailers(1);
        receive(&mut streams, &data, &[(1, &data)]);
        assert_eq!(streams.bytes(), UNANSWERED_BYTES);
        streams.close(1);
        streams.buffers = ReadBuffers::default();
        assert_eq!(streams, OpenStreams::default());
    }

    #[test]
    fn frames_without_data_are_read_in_order() {
        let mut streams = OpenStreams::default();
        let data = [0; 10];
        streams.open(1);
        // h2 drops the first.
        receive(&mut streams, &data, &[(1, &[]), (1, &data)]);
        streams.receive_data(&DataRun::one(1, data.as_ptr().addr(), 0, true));
        assert_eq!(streams.frames, 2);
        let mut reader = RequestReader::default();
        streams.read_data(&mut reader, &data);
        assert_eq!(streams.frames, 1);
        streams.read_data(&mut reader, &[]);
        assert_eq!(streams.frames, 0);
    }
}
