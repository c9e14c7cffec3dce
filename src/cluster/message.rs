//! What replicas write into the command log.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;

use super::rules::{ClusterRules, FoldVersions};
use crate::domain::encoding::{self, Encoding, encode_as, encode_enum, encode_struct};
use crate::domain::{Command, DecodeError, Epoch, RoomName, WallTime};

/// A position in the command log: 1, 2, 3, … without gaps. JetStream calls it the sequence of the stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(crate) struct LogPosition(u64);

impl LogPosition {
    pub(crate) const fn new(number: u64) -> Self {
        Self(number)
    }

    pub(crate) const fn get(self) -> u64 {
        self.0
    }

    pub(crate) const fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }

    pub(crate) const fn previous(self) -> Self {
        Self(self.0.saturating_sub(1))
    }
}

impl fmt::Display for LogPosition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// One message of the command log.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Message {
    /// The wall clock's time at the replica that wrote it. Rooms record it, and compare the ends of bans with it.
    pub(crate) at: WallTime,
    pub(crate) content: Content,
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Content {
    /// A replica starts to write. Its position identifies this *incarnation* of the replica from then on; `nonce` tells the replica that the
    /// message is its own. Has no effect if another incarnation lives that has other rules.
    Hello {
        nonce: u64,
        rules: ClusterRules,
        supported: FoldVersions,
        /// The replica's name and the version of its program, for whoever asks who takes part.
        name: Arc<str>,
        version: Arc<str>,
    },
    /// Commands of an incarnation, whose batches are numbered 1, 2, 3, …
    Batch {
        incarnation: LogPosition,
        number: u64,
        commands: Vec<RoomCommand>,
    },
    /// An incarnation lives, and had this digest after it had applied this position.
    Heartbeat {
        incarnation: LogPosition,
        applied: LogPosition,
        digest: u64,
        /// Its newest checkpoint, if its data directory has one.
        checkpoint: Option<NewestCheckpoint>,
        /// As in its first message, which the stream may not have any more.
        name: Arc<str>,
        version: Arc<str>,
    },
    /// Nothing was heard of an incarnation for a whole lease since this position.
    Fence {
        incarnation: LogPosition,
        seen: LogPosition,
    },
    /// This version of the fold holds from here on, if all live incarnations support it.
    Activate { version: u64 },
}

/// A checkpoint that survives the death of its replica.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct NewestCheckpoint {
    /// The data directory that has it: a replica has several incarnations, and only one directory.
    pub(crate) directory: u64,
    pub(crate) position: LogPosition,
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
    LogPosition as u64: |position| position.0, |number| Some(Self(number));
    Epoch as u64: |epoch| epoch.get(), Self::from_wire;
}

encode_struct! {
    Message { at, content }
    NewestCheckpoint { directory, position }
    RoomCommand { room, epoch, request, command }
}

encode_enum! {
    [] Content {
        1 => Hello { nonce, rules, supported, name, version },
        2 => Batch { incarnation, number, commands },
        3 => Heartbeat { incarnation, applied, digest, checkpoint, name, version },
        4 => Fence { incarnation, seen },
        5 => Activate { version },
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
    /// The bytes are not a message in this version. A replica must not go on then: it would decide differently from those that know
    /// what the message means.
    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        encoding::decode(bytes)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::domain::{Moderation, Rules};

    /// Writes the inputs of the fuzz target: `UPDATE=1 cargo test --lib message_corpus`.
    #[test]
    fn the_message_corpus_is_read() {
        let directory = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus/command_log");
        let incarnation = LogPosition::new(1);
        let command = |request, command| RoomCommand {
            room: RoomName::default(),
            epoch: Epoch::from_wire(7),
            request,
            command,
        };
        let contents = [
            (
                "hello",
                Content::Hello {
                    nonce: 7,
                    rules: ClusterRules::new(Rules::default(), 10),
                    supported: FoldVersions { oldest: 1, newest: 1 },
                    name: "r1".into(),
                    version: "1".into(),
                },
            ),
            (
                "batch",
                Content::Batch {
                    incarnation,
                    number: 1,
                    commands: vec![
                        command(1, Command::Moderate(Moderation::Close)),
                        command(2, Command::Moderate(Moderation::Delete)),
                    ],
                },
            ),
            (
                "heartbeat",
                Content::Heartbeat {
                    incarnation,
                    applied: LogPosition::new(1),
                    digest: 7,
                    checkpoint: Some(NewestCheckpoint {
                        directory: 7,
                        position: LogPosition::new(1),
                    }),
                    name: "r1".into(),
                    version: "1".into(),
                },
            ),
            (
                "lost",
                Content::Fence {
                    incarnation,
                    seen: LogPosition::new(1),
                },
            ),
            ("activate", Content::Activate { version: 2 }),
        ];
        for (name, content) in contents {
            let at = WallTime::from_millis(1_700_000_000_000);
            let message = Message { at, content };
            let (bytes, path) = (message.encode(), directory.join(name));
            if std::env::var_os("UPDATE").is_some() {
                fs::write(&path, &bytes).unwrap();
            }
            assert!(
                fs::read(&path).is_ok_and(|read| read == bytes),
                "UPDATE=1 writes {name}"
            );
            assert_eq!(Message::decode(&bytes), Ok(message));
        }
    }
}
