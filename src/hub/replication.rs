//! The command log of several replicas, as the rooms of one of them see it.
//!
//! The order of a single server is each room's mailbox. A replica's rooms submit the commands in their mailboxes instead, and apply
//! those of all replicas when the command log has given them their positions. Callers are answered then.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use super::request::HubError;
use crate::domain::{Command, Epoch, RoomName, Rules, WallTime};
use crate::store::MemoryStore;

/// How many batches of commands wait for a room's actor.
const QUEUE_LEN: usize = 64;

/// How long after the end of one room that of the next one is proposed.
const PROPOSAL_INTERVAL: Duration = Duration::from_millis(10);

/// A command on its way into the command log.
pub(crate) struct Submission {
    pub(crate) room: RoomName,
    /// The epoch of the room that the command is meant for; `None` if there was no room.
    pub(crate) epoch: Option<Epoch>,
    /// A number by which the replica recognizes the command. No other of its commands has it.
    pub(crate) request: u64,
    pub(crate) command: Command,
    /// That of the replica when it was submitted: see [`Hub::generation`](super::Hub::generation).
    pub(crate) generation: u64,
}

/// A command that has its position in the command log.
pub(crate) struct OrderedCommand {
    /// The number of its request, if this replica has submitted it.
    pub(crate) request: Option<u64>,
    pub(crate) command: Command,
    /// The wall time of the replica that wrote it, which all replicas use.
    pub(crate) at: WallTime,
    /// The epoch of the room, or why the command does not reach one.
    pub(crate) epoch: Result<Epoch, HubError>,
    /// How many of its newest message ids the room keeps after it, if not all.
    pub(crate) kept_message_ids: Option<usize>,
}

/// What a room reads from the command log.
pub(super) enum OrderedItem {
    Commands(Vec<OrderedCommand>),
    /// The replica was fenced, and this generation begins. What an earlier generation submitted and was not read before this item is lost.
    Fenced(u64),
    /// The rules for the commands that follow.
    Rules(Rules),
}

/// Whether the replica knows what the others do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct SuspensionStatus {
    /// Whether the replica is suspended: it does not know what the others do, and so must not acknowledge anything.
    pub(super) is_suspended: bool,
    /// How many suspensions have begun. Each ends all streams and calls that there are.
    pub(super) suspensions: u64,
    /// See [`Hub::generation`](super::Hub::generation).
    pub(super) generation: u64,
}

/// What all rooms of a replica share.
#[derive(Clone)]
pub(super) struct Replication {
    pub(super) store: Arc<MemoryStore>,
    pub(super) submissions: mpsc::Sender<Submission>,
    /// Not in the mailboxes, which may be blocked.
    pub(super) status: watch::Sender<SuspensionStatus>,
    /// The rules for new rooms: those in force at the position that this replica has applied, which may be older than its configuration.
    rules: Arc<Mutex<Rules>>,
    next_request: Arc<AtomicU64>,
    ends: Arc<Ends>,
}

/// The ends of rooms.
#[derive(Default)]
struct Ends {
    /// Whether this replica is the one that proposes them.
    is_proposing: AtomicBool,
    /// When the next one may be proposed.
    next_proposal: Mutex<Option<Instant>>,
}

impl Replication {
    pub(super) fn new(store: Arc<MemoryStore>, submissions: mpsc::Sender<Submission>, rules: Rules) -> Self {
        Self {
            store,
            submissions,
            status: watch::Sender::new(SuspensionStatus {
                is_suspended: true,
                suspensions: 0,
                generation: 0,
            }),
            rules: Arc::new(Mutex::new(rules)),
            next_request: Arc::default(),
            ends: Arc::default(),
        }
    }

    pub(super) fn status(&self) -> SuspensionStatus {
        *self.status.borrow()
    }

    pub(super) fn rules(&self) -> Rules {
        *self.rules.lock()
    }

    pub(super) fn set_rules(&self, rules: Rules) {
        *self.rules.lock() = rules;
    }

    pub(super) fn is_suspended(&self) -> bool {
        self.status().is_suspended
    }

    pub(super) fn set_proposing(&self, is_proposing: bool) {
        self.ends.is_proposing.store(is_proposing, Ordering::Relaxed);
    }

    pub(super) fn is_proposing(&self) -> bool {
        self.ends.is_proposing.load(Ordering::Relaxed)
    }

    /// When a room that asks at the time `now` may propose its end. Each gets a later time than the one before, so that many rooms which
    /// become unused at the same time do not fill the command log.
    pub(super) fn reserve_proposal(&self, now: Instant) -> Instant {
        let mut next = self.ends.next_proposal.lock();
        let reserved = next.map_or(now, |next| next.max(now));
        *next = Some(reserved + PROPOSAL_INTERVAL);
        reserved
    }

    /// A number for the next request.
    pub(super) fn next_request(&self) -> u64 {
        self.next_request.fetch_add(1, Ordering::Relaxed)
    }
}

/// The queue of ordered commands to a room's actor.
pub(super) struct OrderedQueue {
    sender: mpsc::Sender<OrderedItem>,
    receiver: Mutex<Option<mpsc::Receiver<OrderedItem>>>,
    is_closed: AtomicBool,
}

impl OrderedQueue {
    pub(super) fn new() -> Self {
        let (sender, receiver) = mpsc::channel(QUEUE_LEN);
        let receiver = Mutex::new(Some(receiver));
        let is_closed = AtomicBool::new(false);
        Self {
            sender,
            receiver,
            is_closed,
        }
    }

    /// The receiving half, for the actor; `None` if it was taken before.
    pub(super) fn take_receiver(&self) -> Option<mpsc::Receiver<OrderedItem>> {
        self.receiver.lock().take()
    }

    /// Waits while the actor is slow. Returns the item if there is no actor.
    pub(super) async fn send(&self, item: OrderedItem) -> Result<(), OrderedItem> {
        self.sender.send(item).await.map_err(|error| error.0)
    }

    /// Closes the queue, whose other half is `receiver`, if nothing is in it and `may_close` says so.
    pub(super) fn close_if_empty(
        &self,
        receiver: &mut mpsc::Receiver<OrderedItem>,
        may_close: impl FnOnce() -> bool,
    ) -> bool {
        // Nobody can send as long as these are held.
        let Ok(_places) = self.sender.try_reserve_many(QUEUE_LEN) else {
            return false;
        };
        let closes = may_close();
        if closes {
            self.is_closed.store(true, Ordering::Release);
            receiver.close();
        }
        closes
    }

    /// Whether the actor has closed the queue because nobody needs it. Another one begins with what is sent next.
    pub(super) fn is_closed(&self) -> bool {
        self.is_closed.load(Ordering::Acquire)
    }
}
