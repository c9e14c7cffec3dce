//! The running rooms, by name.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;

use super::handle::{Envelope, RoomHandle};
use super::mailbox::MailboxPool;
use super::request::HubError;
use crate::domain::RoomName;

/// The running rooms, by name.
///
/// A handle is registered before its actor starts and removed after its actor has ended. Between the closing of a room's
/// mailbox and its removal, a new handle may replace it.
pub(super) struct Registry {
    state: Mutex<State>,
    mailboxes: Arc<MailboxPool<Envelope>>,
    is_replicated: bool,
}

#[derive(Default)]
struct State {
    rooms: HashMap<RoomName, Arc<RoomHandle>>,
    /// The answer to lookups once the hub is draining or has failed.
    closed: Option<HubError>,
}

/// The result of [`Registry::get_or_insert`].
pub(super) enum Lookup {
    Running(Arc<RoomHandle>),
    /// The room was not running: the caller must start its actor.
    Inserted(Arc<RoomHandle>),
}

impl Registry {
    /// No rooms. The requests in their mailboxes may take `mailbox_bytes`.
    pub(super) fn new(mailbox_bytes: usize, is_replicated: bool) -> Self {
        Self {
            state: Mutex::default(),
            is_replicated,
            mailboxes: Arc::new(MailboxPool::new(mailbox_bytes)),
        }
    }

    pub(super) fn get(&self, name: &RoomName) -> Option<Arc<RoomHandle>> {
        self.state.lock().rooms.get(name).cloned()
    }

    /// The running room, or a new handle for a room that is not running.
    ///
    /// # Errors
    ///
    /// The hub is draining or has failed.
    pub(super) fn get_or_insert(&self, name: &RoomName) -> Result<Lookup, HubError> {
        let mut state = self.state.lock();
        if let Some(error) = &state.closed {
            return Err(error.clone());
        }
        if let Some(room) = state.rooms.get(name).filter(|room| !room.mailbox.is_closed()) {
            return Ok(Lookup::Running(Arc::clone(room)));
        }
        let room = RoomHandle::new(name.clone(), Arc::clone(&self.mailboxes), self.is_replicated);
        state.rooms.insert(name.clone(), Arc::clone(&room));
        Ok(Lookup::Inserted(room))
    }

    /// Removes a room whose actor has ended, unless another handle has replaced it.
    pub(super) fn remove(&self, room: &Arc<RoomHandle>) {
        let mut state = self.state.lock();
        if state
            .rooms
            .get(&room.name)
            .is_some_and(|registered| Arc::ptr_eq(registered, room))
        {
            state.rooms.remove(&room.name);
        }
    }

    pub(super) fn all(&self) -> Vec<Arc<RoomHandle>> {
        self.state.lock().rooms.values().cloned().collect()
    }

    /// Rejects lookups from now on, because the hub is draining. Returns the registered rooms.
    pub(super) fn drain(&self) -> Vec<Arc<RoomHandle>> {
        let mut state = self.state.lock();
        state.closed = Some(HubError::Draining);
        state.rooms.values().cloned().collect()
    }

    pub(super) fn is_draining(&self) -> bool {
        self.state.lock().closed == Some(HubError::Draining)
    }

    /// Rejects lookups from now on, because the store has failed.
    pub(super) fn fail(&self) {
        self.state.lock().closed.get_or_insert(HubError::Failed);
    }
}
