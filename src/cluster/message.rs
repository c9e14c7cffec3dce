//! What replicas write into their common order.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;

use crate::domain::encoding::{self, Encoding, encode_as, encode_enum, encode_struct};
use crate::domain::{Command, DecodeError, Epoch, RoomName, Rules, WallTime};

/// A position in the order: 1, 2, 3, … without gaps. JetStream calls it the sequence of the stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(crate) struct Place(u64);

impl Place {
    pub(crate) const fn new(number: u64) -> Self {
        Self(number)
    }

    pub(crate) const fn get(self) -> u64 {
        self.0
    }

    pub(crate) const fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// One message of the order.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Message {
    /// The wall clock's time at the replica that wrote it. Rooms record it, and compare the ends of bans with it.
    pub(crate) at: WallTime,
    pub(crate) content: Content,
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Content {
    /// A replica starts to write. Its place identifies this *incarnation* of the replica from then on; `nonce` tells the replica that the
    /// message is its own. The rules of the first one are those of all rooms.
    Hello {
        nonce: u64,
        rules: Rules,
        /// The replica's name and the version of its program, for whoever asks who takes part.
        name: Arc<str>,
        version: Arc<str>,
    },
    /// Commands of an incarnation, whose batches are numbered 1, 2, 3, …
    Batch {
        incarnation: Place,
        number: u64,
        commands: Vec<RoomCommand>,
    },
    /// An incarnation lives, and had this digest after it had applied this place.
    Heartbeat {
        incarnation: Place,
        applied: Place,
        digest: u64,
        /// Its newest checkpoint, if its data directory has one.
        durable: Option<Durable>,
        /// As in its first message, which the stream may not have any more.
        name: Arc<str>,
        version: Arc<str>,
    },
    /// Nothing was heard of an incarnation for a whole lease since this place.
    Lost { incarnation: Place, seen: Place },
}

/// A checkpoint that survives the death of its replica.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Durable {
    /// The data directory that has it: a replica has several incarnations, and only one directory.
    pub(crate) directory: u64,
    pub(crate) place: Place,
}

/// A command to one of the rooms.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct RoomCommand {
    pub(crate) room: RoomName,
    /// The epoch of the room that it is meant for; `None` if there was no room yet. A room that was deleted thus stays deleted, whatever
    /// was on its way to it.
    pub(crate) epoch: Option<Epoch>,
    /// By which the incarnation recognises the outcome.
    pub(crate) request: u64,
    pub(crate) command: Command,
}

encode_as! {
    Place as u64: |place| place.0, |number| Some(Self(number));
    Epoch as u64: |epoch| epoch.get(), Self::from_wire;
}

encode_struct! {
    Message { at, content }
    Durable { directory, place }
    RoomCommand { room, epoch, request, command }
}

encode_enum! {
    [] Content {
        1 => Hello { nonce, rules, name, version },
        2 => Batch { incarnation, number, commands },
        3 => Heartbeat { incarnation, applied, digest, durable, name, version },
        4 => Lost { incarnation, seen },
    }
}

impl RoomCommand {
    /// How many bytes it adds to a batch.
    pub(crate) fn encoded_len(&self) -> usize {
        let mut bytes = Vec::new();
        self.write(&mut bytes);
        bytes.len()
    }
}

impl Message {
    pub(crate) fn encode(&self) -> Bytes {
        let mut bytes = vec![encoding::VERSION];
        self.write(&mut bytes);
        bytes.into()
    }

    /// # Errors
    ///
    /// The bytes are not a message in this version. A replica must not go on then: it would decide otherwise than those that know
    /// what the message means.
    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        encoding::decode(bytes)
    }
}
