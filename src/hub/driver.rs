//! The task that runs one room: it empties the inbox, lets the fold decide, and publishes what was accepted.
//!
//! It alone appends to the room's feed, so what it does in order, everybody sees in that order. All that waits in the
//! inbox is one batch: encoded into one piece of memory, published under one lock, told with one round of wake-ups.

use std::collections::HashMap;
use std::future::poll_fn;
use std::sync::Arc;
use std::task::Waker;
use std::time::Instant;

use bytes::{Bytes, BytesMut};
use tokio::sync::oneshot;

use super::end::End;
use super::frame;
use super::member::{Entry, Member};
use super::notice;
use super::now::wall_time;
use super::observer::Observer;
use super::request::Request;
use super::room::RoomHandle;
use crate::domain::{
    Command, Event, Join, Leave, Outcome, ParticipantId, Refusal, Room, Rules, Say, WallTime,
};

/// A batch is published when it has grown to this many bytes, so that subscribers begin to send while the rest is
/// still being encoded, and memory is let go in portions.
const BATCH_BYTES: usize = 64 * 1024;

/// Runs one room.
pub(super) struct Driver {
    room: Room,
    handle: Arc<RoomHandle>,
    observer: Arc<dyn Observer>,
    /// The cursor of each participant.
    cursors: HashMap<ParticipantId, usize>,
    batch: Batch,
    woken: Vec<Waker>,
}

/// What is to be published next, in order.
#[derive(Default)]
struct Batch {
    bytes: BytesMut,
    steps: Vec<Step>,
}

enum Step {
    /// So many bytes, so many events, the oldest decoded then.
    Run {
        len: usize,
        events: u32,
        received: Instant,
    },
    Enter {
        entry: Entry,
        reply: oneshot::Sender<Result<Member, Refusal>>,
    },
    Notify {
        participant: ParticipantId,
        notice: Bytes,
    },
    End {
        participant: ParticipantId,
        end: End,
    },
    EndAll(End),
}

impl Driver {
    pub(super) fn new(rules: Rules, handle: Arc<RoomHandle>, observer: Arc<dyn Observer>) -> Self {
        observer.room(true);
        Self {
            room: Room::new(rules),
            handle,
            observer,
            cursors: HashMap::new(),
            batch: Batch::default(),
            woken: Vec::new(),
        }
    }

    /// Runs until the inbox is closed and empty.
    pub(super) async fn run(mut self) {
        let inbox = Arc::clone(&self.handle.inbox);
        let mut requests = Vec::new();
        while poll_fn(|cx| inbox.poll_take(cx, &mut requests)).await {
            let at = wall_time();
            for request in requests.drain(..) {
                self.take(request, at);
                if self.batch.bytes.len() >= BATCH_BYTES {
                    self.publish();
                }
            }
            self.publish();
            // Those who were woken run before the next batch is looked for: it grows meanwhile.
            tokio::task::yield_now().await;
        }
    }

    fn take(&mut self, request: Request, at: WallTime) {
        match request {
            Request::Join {
                join,
                reply,
                received,
            } => self.join(join, reply, received, at),
            Request::Say { say, received } => self.say(say, received, at),
            Request::Leave { leave, received } => self.leave(leave, received, at),
            Request::Close(end) => self.batch.steps.push(Step::EndAll(end)),
        }
    }

    fn join(
        &mut self,
        join: Join,
        reply: oneshot::Sender<Result<Member, Refusal>>,
        received: Instant,
        at: WallTime,
    ) {
        let (sequence, time) = (self.room.last(), self.room.time());
        match self.room.apply(Command::Join(join), at) {
            Outcome::Accepted(event) => {
                let entry = Entry {
                    participant: event.participant,
                    name: event.name.clone(),
                    sequence,
                    time,
                };
                self.batch.steps.push(Step::Enter { entry, reply });
                self.append(&event, received);
            }
            Outcome::Refused { refusal, .. } => {
                self.observer.refused(&refusal);
                // Whoever does not wait for the answer any more needs none.
                reply.send(Err(refusal)).ok();
            }
            Outcome::Repeated { .. } => {}
        }
    }

    fn say(&mut self, say: Say, received: Instant, at: WallTime) {
        let participant = say.speaker;
        let message_id = say.message_id.as_ref().and_then(|id| id.as_ref().ok()).cloned();
        match self.room.apply(Command::Say(say), at) {
            Outcome::Accepted(event) => self.append(&event, received),
            Outcome::Repeated { original, time } => {
                let notice = notice::repeated(&self.handle, original, time, message_id.as_ref());
                self.notify(participant, &notice);
            }
            Outcome::Refused { refusal, time } => {
                self.observer.refused(&refusal);
                let notice = notice::refused(&self.handle, &refusal, time, message_id.as_ref());
                self.notify(participant, &notice);
            }
        }
    }

    fn leave(&mut self, leave: Leave, received: Instant, at: WallTime) {
        let participant = leave.participant;
        let mut end = End::Left;
        let mut outcome = self.room.apply(Command::Leave(leave), at);
        if let Outcome::Refused {
            refusal: refusal @ Refusal::Clock(_),
            ..
        } = outcome
        {
            // The client goes whatever time it claims; only the claim is refused.
            self.observer.refused(&refusal);
            end = End::Refused(refusal);
            outcome = self.room.apply(
                Command::Leave(Leave {
                    participant,
                    timestamp: None,
                    trace: None,
                }),
                at,
            );
        }
        if let Outcome::Accepted(event) = outcome {
            self.batch.steps.push(Step::End { participant, end });
            self.append(&event, received);
        }
    }

    fn append(&mut self, event: &Event, received: Instant) {
        let bytes = &mut self.batch.bytes;
        let before = bytes.len();
        frame::write_event(bytes, &self.handle.name, self.handle.epoch, event);
        let written = bytes.len() - before;
        self.observer.broadcast(&event.kind, event.time);
        // One run for all events in a row; the first of them is the oldest.
        if let Some(Step::Run { len, events, .. }) = self.batch.steps.last_mut() {
            *len += written;
            *events += 1;
        } else {
            self.batch.steps.push(Step::Run {
                len: written,
                events: 1,
                received,
            });
        }
    }

    fn notify(&mut self, participant: ParticipantId, notice: &crate::proto::ServerMessage) {
        self.batch.steps.push(Step::Notify {
            participant,
            notice: frame::private(notice),
        });
    }

    fn publish(&mut self) {
        if self.batch.steps.is_empty() {
            return;
        }
        let bytes = self.batch.bytes.split().freeze();
        let mut entered: Vec<(oneshot::Sender<Result<Member, Refusal>>, Member)> = Vec::new();
        let mut publication = self.handle.feed.publish(bytes, &mut self.woken);
        for step in self.batch.steps.drain(..) {
            match step {
                Step::Run {
                    len,
                    events,
                    received,
                } => publication.run(len, events, received),
                Step::Enter { entry, reply } => {
                    let cursor = publication.enter();
                    self.cursors.insert(entry.participant, cursor.key());
                    let member = Member::new(
                        Arc::clone(&self.handle),
                        cursor,
                        Arc::clone(&self.observer),
                        entry,
                    );
                    entered.push((reply, member));
                }
                Step::Notify { participant, notice } => {
                    if let Some(&key) = self.cursors.get(&participant) {
                        publication.notify(key, notice);
                    }
                }
                Step::End { participant, end } => {
                    if let Some(key) = self.cursors.remove(&participant) {
                        publication.end(key, end);
                    }
                }
                Step::EndAll(end) => publication.end_all(&end),
            }
        }
        drop(publication);
        for (reply, member) in entered {
            // A member that nobody waits for any more is dropped here, and leaves by that.
            drop(reply.send(Ok(member)));
        }
    }
}

impl Drop for Driver {
    /// Whatever ends the driver, nobody is left waiting for it.
    fn drop(&mut self) {
        self.handle.inbox.close();
        self.handle
            .feed
            .publish(Bytes::new(), &mut self.woken)
            .end_all(&End::Failed);
        self.observer.room(false);
    }
}
