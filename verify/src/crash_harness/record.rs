//! What clients record.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use crate::{Client, Place, Step, What};
use chitchat::proto::ServerMessage;

/// What all clients of a run share: a clock, and one copy of each event.
pub struct Recorder {
    start: Instant,
    events: Mutex<HashMap<(String, Place), Arc<ServerMessage>>>,
}

impl Recorder {
    pub fn new() -> Arc<Self> {
        Arc::new(Self {
            start: Instant::now(),
            events: Mutex::default(),
        })
    }

    pub fn note(&self, client: &mut Client, what: What) {
        let at = self.start.elapsed();
        client.steps.push(Step { at, what });
    }

    /// The copy that others have, if theirs is the same.
    pub fn share(&self, message: ServerMessage) -> Arc<ServerMessage> {
        let Some(place) = Place::of(&message) else {
            return Arc::new(message);
        };
        let key = (message.room.clone(), place);
        let mut events = self.events.lock().unwrap();
        match events.get(&key) {
            Some(known) if **known == message => Arc::clone(known),
            // Somebody has another event of this place: the checker will say so.
            Some(_) => Arc::new(message),
            None => {
                let message = Arc::new(message);
                events.insert(key, Arc::clone(&message));
                message
            }
        }
    }
}
