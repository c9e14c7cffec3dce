//! The order of several replicas, as the rooms of one of them see it.
//!
//! The order of a single server is each room's mailbox. A replica's rooms submit the commands in their mailboxes instead, and apply
//! those of all replicas when the order has given them their places. Callers are answered then.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use tokio::sync::{mpsc, watch};

use super::request::HubError;
use crate::domain::{Command, Epoch, RoomName, Rules, WallTime};
use crate::store::MemoryStore;

/// How many batches of commands wait for a room's actor.
const QUEUE_LEN: usize = 64;

/// A command on its way into the order.
pub(crate) struct Submission {
    pub(crate) room: RoomName,
    /// The epoch of the room that the command is meant for; `None` if there was no room.
    pub(crate) epoch: Option<Epoch>,
    /// By which the replica recognises the command. No other of its commands has it.
    pub(crate) request: u64,
    pub(crate) command: Command,
    /// How many incarnations of the replica were lost before it was submitted. With the incarnation, what was submitted to it is lost.
    pub(crate) fences: u64,
}

/// A command that has its place in the order.
pub(crate) struct Ordered {
    /// The number of its request, if this replica has submitted it.
    pub(crate) request: Option<u64>,
    pub(crate) command: Command,
    /// The time of all replicas for it.
    pub(crate) at: WallTime,
    /// The epoch of the room, or why the command does not reach one.
    pub(crate) room: Result<Epoch, HubError>,
    /// How many of its newest message ids the room keeps after it, if not all.
    pub(crate) kept_message_ids: Option<usize>,
}

/// What the order has for a room.
pub(super) enum OrderItem {
    Commands(Vec<Ordered>),
    /// What was submitted before there were so many fences, and is not ahead of this, never comes.
    Fenced(u64),
    /// These are the rules from here on.
    Rules(Rules),
}

/// Whether the replica knows what the others do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Standing {
    /// It does not, and so must not promise anything.
    pub(super) is_suspended: bool,
    /// How often it did not. All streams and calls that began before end.
    pub(super) suspensions: u64,
    /// How often it was taken for lost.
    pub(super) fences: u64,
}

/// What all rooms of a replica share.
#[derive(Clone)]
pub(super) struct Replication {
    pub(super) store: Arc<MemoryStore>,
    pub(super) submissions: mpsc::Sender<Submission>,
    /// Not in the mailboxes, which may be blocked.
    pub(super) standing: watch::Sender<Standing>,
    /// Of rooms that begin: those of the order, which are not this replica's yet while it applies what is old.
    rules: Arc<Mutex<Rules>>,
    next_request: Arc<AtomicU64>,
}

impl Replication {
    pub(super) fn new(store: Arc<MemoryStore>, submissions: mpsc::Sender<Submission>, rules: Rules) -> Self {
        Self {
            store,
            submissions,
            standing: watch::Sender::new(Standing {
                is_suspended: true,
                suspensions: 0,
                fences: 0,
            }),
            rules: Arc::new(Mutex::new(rules)),
            next_request: Arc::default(),
        }
    }

    pub(super) fn standing(&self) -> Standing {
        *self.standing.borrow()
    }

    pub(super) fn rules(&self) -> Rules {
        *self.rules.lock()
    }

    pub(super) fn set_rules(&self, rules: Rules) {
        *self.rules.lock() = rules;
    }

    pub(super) fn is_suspended(&self) -> bool {
        self.standing().is_suspended
    }

    /// A number for the next request.
    pub(super) fn next_request(&self) -> u64 {
        self.next_request.fetch_add(1, Ordering::Relaxed)
    }
}

/// The queue of ordered commands to a room's actor.
pub(super) struct OrderedQueue {
    sender: mpsc::Sender<OrderItem>,
    receiver: Mutex<Option<mpsc::Receiver<OrderItem>>>,
}

impl OrderedQueue {
    pub(super) fn new() -> Self {
        let (sender, receiver) = mpsc::channel(QUEUE_LEN);
        let receiver = Mutex::new(Some(receiver));
        Self { sender, receiver }
    }

    /// The receiving half, for the actor; `None` if it was taken before.
    pub(super) fn take_receiver(&self) -> Option<mpsc::Receiver<OrderItem>> {
        self.receiver.lock().take()
    }

    /// Waits while the actor is slow. Returns whether there is an actor.
    pub(super) async fn send(&self, item: OrderItem) -> bool {
        self.sender.send(item).await.is_ok()
    }
}
