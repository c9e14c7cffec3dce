//! The encoding of what the replicas of a room exchange: [`Command`]s and [`RoomState`]s.
//!
//! A value has exactly one encoding, so that hashes of encodings can be compared. Numbers are in LEB128, strings and lists begin with
//! their length. The first byte of a whole is its version: a replica must not guess what an unknown one means.
//!
//! Strings are not validated again. Whether a name or a text is allowed depends on tables that change from version to version, and
//! what one replica has accepted, all others have to read.

use std::net::IpAddr;
use std::sync::Arc;

use super::command::{Command, End, EndStage, Join, Leave, Message, Post, Say};
use super::dedup_window::Entry;
use super::limits::{MAX_MESSAGE_CHARS_CEILING, Rules};
use super::room_state::{ParticipantState, RoomState};
use super::{
    Attachment, Ban, BanTarget, LamportTime, MessageId, MessageIdError, Moderation, Name, Origin,
    Participant, ParticipantId, RemoveTarget, RoomName, Sequence, Session, Text, TextError, Timestamp,
    TraceContext, WallTime,
};

/// The version of the encodings. It changes whenever they do, or what a room makes of them.
pub(crate) const VERSION: u8 = 1;

/// The longest encoded command, in bytes: a text, and a multiple of what everything else can take.
pub const MAX_ENCODED_COMMAND: usize = max_encoded_command(MAX_MESSAGE_CHARS_CEILING);

/// The longest encoded command if texts have at most `max_message_chars` characters, in bytes.
pub(crate) const fn max_encoded_command(max_message_chars: usize) -> usize {
    4 * max_message_chars + (8 << 10)
}

/// Why bytes cannot be decoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// Another version of the program has encoded them.
    #[error("version {0} of the encoding is unknown; this program knows version {VERSION}")]
    UnknownVersion(u8),
    /// They are longer than any command.
    #[error("{0} bytes are more than the {MAX_ENCODED_COMMAND} that a command can have")]
    TooLong(usize),
    /// They end too early.
    #[error("the bytes end too early")]
    Truncated,
    /// Something follows the value.
    #[error("{0} bytes follow the value")]
    TrailingBytes(usize),
    /// They are not what an encoder writes.
    #[error("malformed: {0}")]
    Malformed(&'static str),
}

impl Command {
    /// Appends the encoding of the command.
    pub fn encode(&self, bytes: &mut Vec<u8>) {
        bytes.push(VERSION);
        self.write(bytes);
    }

    /// Decodes what [`Command::encode`] has written.
    ///
    /// # Errors
    ///
    /// The bytes are not the encoding of one command in this version.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        if bytes.len() > MAX_ENCODED_COMMAND {
            return Err(DecodeError::TooLong(bytes.len()));
        }
        decode(bytes)
    }
}

impl RoomState {
    /// The encoding of the state.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![VERSION];
        self.write(&mut bytes);
        bytes
    }

    /// Decodes what [`RoomState::encode`] has written. Takes no more memory than a small multiple of the bytes.
    ///
    /// # Errors
    ///
    /// The bytes are not the encoding of a state in this version.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        decode(bytes)
    }
}

/// Decodes a value that follows its version.
pub(crate) fn decode<T: Encoding>(mut bytes: &[u8]) -> Result<T, DecodeError> {
    match u8::read(&mut bytes)? {
        VERSION => {}
        version => return Err(DecodeError::UnknownVersion(version)),
    }
    let value = T::read(&mut bytes)?;
    match bytes.len() {
        0 => Ok(value),
        rest => Err(DecodeError::TrailingBytes(rest)),
    }
}

/// A value with one encoding.
pub(crate) trait Encoding: Sized {
    fn write(&self, bytes: &mut Vec<u8>);

    /// Reads a value from the front of `bytes`, which it removes.
    fn read(bytes: &mut &[u8]) -> Result<Self, DecodeError>;
}

fn take<'a>(bytes: &mut &'a [u8], len: usize) -> Result<&'a [u8], DecodeError> {
    let (taken, rest) = bytes.split_at_checked(len).ok_or(DecodeError::Truncated)?;
    *bytes = rest;
    Ok(taken)
}

impl Encoding for u8 {
    fn write(&self, bytes: &mut Vec<u8>) {
        bytes.push(*self);
    }

    fn read(bytes: &mut &[u8]) -> Result<Self, DecodeError> {
        Ok(take(bytes, 1)?[0])
    }
}

impl Encoding for u64 {
    fn write(&self, bytes: &mut Vec<u8>) {
        let mut rest = *self;
        while rest >= 0x80 {
            // The lowest seven bits.
            bytes.push(rest.to_le_bytes()[0] | 0x80);
            rest >>= 7;
        }
        bytes.push(rest.to_le_bytes()[0]);
    }

    fn read(bytes: &mut &[u8]) -> Result<Self, DecodeError> {
        let malformed = Err(DecodeError::Malformed("a number"));
        let mut number = 0;
        for shift in (0..Self::BITS).step_by(7) {
            let byte = u8::read(bytes)?;
            let bits = Self::from(byte & 0x7f);
            if (bits << shift) >> shift != bits || (byte == 0 && shift > 0) {
                return malformed;
            }
            number |= bits << shift;
            if byte < 0x80 {
                return Ok(number);
            }
        }
        malformed
    }
}

/// A type that is encoded as another one: with a function that makes the other one, and one that makes the type of it, if it can.
macro_rules! encode_as {
    ($($type:ty as $other:ty: $to:expr, $from:expr;)*) => {$(
        impl Encoding for $type {
            fn write(&self, bytes: &mut Vec<u8>) {
                let to: fn(&$type) -> $other = $to;
                to(self).write(bytes);
            }

            fn read(bytes: &mut &[u8]) -> Result<Self, DecodeError> {
                let from: fn($other) -> Option<$type> = $from;
                from(<$other>::read(bytes)?).ok_or(DecodeError::Malformed(stringify!($type)))
            }
        }
    )*};
}

/// Structs with named fields, which are encoded one after another. A field that is not listed is a compile error.
macro_rules! encode_struct {
    ($($type:ty { $($field:ident),* })*) => {$(
        impl Encoding for $type {
            fn write(&self, bytes: &mut Vec<u8>) {
                let Self { $($field),* } = self;
                $($field.write(bytes);)*
            }

            fn read(bytes: &mut &[u8]) -> Result<Self, DecodeError> {
                $(let $field = Encoding::read(bytes)?;)*
                Ok(Self { $($field),* })
            }
        }
    )*};
}

/// Enums: a byte for the variant, which must never change, and its fields. A variant that is not listed is a compile error.
macro_rules! encode_enum {
    ($([$($generic:ident),*] $type:ty {
        $($tag:literal => $variant:ident $(($($item:ident),+))? $({$($field:ident),+})?,)*
    })*) => {$(
        impl<$($generic: Encoding),*> Encoding for $type {
            fn write(&self, bytes: &mut Vec<u8>) {
                match self {
                    $(Self::$variant $(($($item),+))? $({$($field),+})? => {
                        bytes.push($tag);
                        $($($item.write(bytes);)+)?
                        $($($field.write(bytes);)+)?
                    })*
                }
            }

            fn read(bytes: &mut &[u8]) -> Result<Self, DecodeError> {
                Ok(match u8::read(bytes)? {
                    $($tag => {
                        $($(let $item = Encoding::read(bytes)?;)+)?
                        $($(let $field = Encoding::read(bytes)?;)+)?
                        Self::$variant $(($($item),+))? $({$($field),+})?
                    })*
                    _ => return Err(DecodeError::Malformed(stringify!($type))),
                })
            }
        }
    )*};
}

#[cfg(feature = "server")]
pub(crate) use {encode_as, encode_enum, encode_struct};

impl<T: Encoding> Encoding for Vec<T> {
    fn write(&self, bytes: &mut Vec<u8>) {
        self.len().write(bytes);
        self.iter().for_each(|item| item.write(bytes));
    }

    fn read(bytes: &mut &[u8]) -> Result<Self, DecodeError> {
        // Not reserved, because the length may be a lie.
        (0..u64::read(bytes)?).map(|_| T::read(bytes)).collect()
    }
}

impl Encoding for Arc<str> {
    fn write(&self, bytes: &mut Vec<u8>) {
        self.len().write(bytes);
        bytes.extend_from_slice(self.as_bytes());
    }

    fn read(bytes: &mut &[u8]) -> Result<Self, DecodeError> {
        let len = usize::read(bytes)?;
        let string = str::from_utf8(take(bytes, len)?);
        string
            .map(Into::into)
            .map_err(|_| DecodeError::Malformed("a string"))
    }
}

impl Encoding for MessageIdError {
    fn write(&self, _: &mut Vec<u8>) {}

    fn read(_: &mut &[u8]) -> Result<Self, DecodeError> {
        Ok(Self)
    }
}

impl Encoding for TraceContext {
    fn write(&self, bytes: &mut Vec<u8>) {
        for part in [self.traceparent(), self.tracestate()] {
            Arc::<str>::from(part).write(bytes);
        }
    }

    fn read(bytes: &mut &[u8]) -> Result<Self, DecodeError> {
        let [parent, state] = [Arc::<str>::read(bytes)?, Arc::read(bytes)?];
        let context = Self::parse(&parent, &state);
        let is_same = |context: &Self| (context.traceparent(), context.tracestate()) == (&parent, &state);
        context
            .filter(is_same)
            .ok_or(DecodeError::Malformed("a trace context"))
    }
}

encode_as! {
    usize as u64: |number| *number as u64, |number| number.try_into().ok();
    // Zigzag.
    i64 as u64: |number| ((number << 1) ^ (number >> 63)).cast_unsigned(),
        |bits| Some((bits >> 1).cast_signed() ^ -(bits & 1).cast_signed());
    bool as u8: |is| u8::from(*is), |byte| (byte < 2).then_some(byte == 1);
    char as u64: |character| u64::from(u32::from(*character)), |code| char::from_u32(code.try_into().ok()?);
    i32 as i64: |number| i64::from(*number), |number| number.try_into().ok();
    u32 as u64: |number| u64::from(*number), |number| number.try_into().ok();
    ParticipantId as i32: |id| id.get(), Self::from_wire;
    Sequence as u64: |sequence| sequence.get(), |number| Some(Self::new(number));
    LamportTime as i64: |time| time.get(), Self::from_wire;
    WallTime as u64: |time| time.as_millis(), |millis| Some(Self::from_millis(millis));
    IpAddr as Arc<str>: |address| address.to_string().into(),
        |text| text.parse().ok().filter(|address: &Self| address.to_string() == *text);
    Timestamp as i64: |timestamp| timestamp.0, |number| Some(Self(number));
    RoomName as Arc<str>: |name| name.as_str().into(), |name| Self::from_stored(&name);
    Name as Arc<str>: |name| name.as_str().into(), |name| Self::from_stored(&name);
    Text as Arc<str>: |text| text.as_str().into(), |text| Some(Self::from_stored(text));
    MessageId as Arc<str>: |id| id.as_str().into(), |id| Self::try_from(&*id).ok();
}

encode_struct! {
    Attachment { participant, number }
    Session { participant, join_sequence }
    Join { session, id, name, owner, origin, timestamp, is_resumable, trace }
    Say { attachment, message }
    Post { name, origin, message }
    Message { timestamp, text, message_id, trace }
    Leave { attachment, timestamp, trace }
    End { last, stage }
    Participant { name, join_time, join_sequence, is_resumable }
    Rules { max_message_chars, max_clock_ahead, max_participants, allow_duplicate_names }
    Entry { id_hash, text_hash, sequence }
    ParticipantState { id, participant, attachment, is_lost, owner, origin }
    Origin { subject, address, is_moderator }
    Ban { target, until, reason }
    RoomState { rules, time, last, next_id, last_attachment, has_messages, participants, message_ids, bans, is_closed, is_gone }
}

encode_enum! {
    [T] Option<T> { 0 => None, 1 => Some(value), }
    [T, E] Result<T, E> { 0 => Err(error), 1 => Ok(value), }
    [] TextError { 1 => TooLong { chars, limit }, 2 => Control { character, position }, }
    [] Command {
        1 => Join(join),
        2 => Say(say),
        3 => Post(post),
        4 => Leave(leave),
        5 => Detach(attachment),
        6 => ExpireGrace(attachment),
        7 => Moderate(moderation),
        8 => End(end),
    }
    [] EndStage { 1 => Proposed, 2 => Agreed, 3 => Decided, }
    [] Moderation {
        1 => Remove { who, reason },
        2 => Ban(ban),
        3 => Unban(target),
        4 => Close,
        5 => Reopen,
        6 => Delete,
    }
    [] RemoveTarget { 1 => Participant(id), 2 => All(target), }
    [] BanTarget { 1 => Name(name), 2 => Subject(subject), 3 => Address(address), }
}
