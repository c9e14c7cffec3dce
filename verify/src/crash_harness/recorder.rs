//! Records the histories of clients.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use crate::{ClientEvent, ClientHistory, Position, TimedEvent};
use chitchat::proto::ServerMessage;

/// State shared by all clients of a run: a clock, and one copy of each event.
pub struct Recorder {
    start: Instant,
    events: Mutex<HashMap<(String, Position), Arc<ServerMessage>>>,
}

impl Recorder {
    pub fn new() -> Arc<Self> {
        Arc::new(Self {
            start: Instant::now(),
            events: Mutex::default(),
        })
    }

    pub fn record(&self, client: &mut ClientHistory, event: ClientEvent) {
        let at = self.start.elapsed();
        client.events.push(TimedEvent { at, event });
    }

    /// Returns the stored copy of an event, or stores `message` if there is none. Returns `message` itself if it is not
    /// an event or differs from the stored copy.
    pub fn share(&self, message: ServerMessage) -> Arc<ServerMessage> {
        let Some(position) = Position::of(&message) else {
            return Arc::new(message);
        };
        let key = (message.room.clone(), position);
        let mut events = self.events.lock().unwrap();
        match events.get(&key) {
            Some(known) if **known == message => Arc::clone(known),
            // The checker reports the difference.
            Some(_) => Arc::new(message),
            None => {
                let message = Arc::new(message);
                events.insert(key, Arc::clone(&message));
                message
            }
        }
    }
}
