//! What a participant has to remember to stay the same one over many connections.
//!
//! No I/O, no clock of the wall, no randomness: it is told what came and what broke, and says what to send and what to
//! show.

use std::sync::Arc;
use std::time::Duration;

use super::call::QUEUE;
use super::clock::LamportClock;
use super::cursor::{Cursor, Sight};
use super::error::Error;
use super::hole::Hole;
use super::join::Join;
use super::message_id::MessageId;
use super::outbox::Outbox;
use super::sending::Sending;
use crate::proto::{EventType, JoinMsgLeave, NoticeCode, ResumePoint, ServerMessage, Welcome};

/// A participant over many connections. The rules: what is said is sent in order, LEAVE last; what is not acknowledged
/// when a connection breaks is sent again on the next one, under the same ids, once the events that it missed are read and
/// before anything new; every event of the log is shown once.
#[derive(Debug)]
pub(super) struct Continuity {
    join: Join,
    clock: LamportClock,
    /// Whether a server has let the participant in before.
    was_in: bool,
    session_token: String,
    participant_id: i32,
    cursor: Cursor,
    outbox: Outbox<Said>,
    /// Nothing is sent before this place in the log is seen. Until then the log may still bring what an earlier
    /// connection had sent, and the server does not know the ids of old messages for ever.
    quiet_until: Option<ResumePoint>,
    leave: Leave,
    /// How long the server asked to stay away.
    asked_delay: Option<Duration>,
    /// The server's words for it, once a newer connection has the session.
    taken_over: Option<String>,
    clock_was_reset: bool,
}

/// What was said.
#[derive(Debug)]
struct Said {
    text: String,
    sending: Option<Arc<dyn Sending>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Leave {
    No,
    Wanted,
    Sent,
}

/// How a participant is back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Return {
    /// Whether nothing is missing.
    pub(super) recovered: bool,
    /// What is missing.
    pub(super) hole: Option<Hole>,
}

/// What a message is to the participant.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Heard {
    /// What is missing before it.
    pub(super) hole: Option<Hole>,
    /// The message, if it is to be shown.
    pub(super) message: Option<ServerMessage>,
    /// Whether it shows that the connection is good for something.
    pub(super) is_progress: bool,
}

/// What the end of a connection is to the participant.
#[derive(Debug)]
pub(super) enum Interruption {
    /// The participant left; there is nothing more to do.
    Left,
    /// It cannot go on.
    Final(Error),
    /// Another connection may go well, but not before this delay.
    Passing(Error, Option<Duration>),
}

impl Continuity {
    /// How many messages may be unacknowledged.
    pub(super) const WINDOW: usize = QUEUE - 1;

    pub(super) const fn new(join: Join) -> Self {
        Self {
            join,
            clock: LamportClock::START,
            was_in: false,
            session_token: String::new(),
            participant_id: 0,
            cursor: Cursor::START,
            outbox: Outbox::new(Self::WINDOW),
            quiet_until: None,
            leave: Leave::No,
            asked_delay: None,
            taken_over: None,
            clock_was_reset: false,
        }
    }

    pub(super) const fn now(&self) -> i64 {
        self.clock.now()
    }

    /// Whether another message may be said.
    pub(super) fn has_room(&self) -> bool {
        self.outbox.has_room()
    }

    pub(super) fn unacknowledged(&self) -> usize {
        self.outbox.len()
    }

    /// Takes a text to be sent.
    pub(super) fn say(
        &mut self,
        text: String,
        sending: Option<Arc<dyn Sending>>,
    ) -> Result<MessageId, Error> {
        if self.leave != Leave::No {
            return Err(Error::Over);
        }
        if !self.outbox.has_room() {
            return Err(Error::Full);
        }
        let message_id = MessageId::random();
        self.outbox.put(message_id.clone(), Said { text, sending });
        Ok(message_id)
    }

    /// From now on nothing more is said; LEAVE is sent after the last message.
    pub(super) fn leave(&mut self) {
        if self.leave == Leave::No {
            self.leave = Leave::Wanted;
        }
    }

    pub(super) const fn is_leaving(&self) -> bool {
        !matches!(self.leave, Leave::No)
    }

    /// Whether nothing is left to be done that needs a connection.
    pub(super) fn is_done(&self) -> bool {
        self.is_leaving() && self.outbox.is_empty()
    }

    /// The first message of a new connection.
    pub(super) fn join(&mut self) -> JoinMsgLeave {
        JoinMsgLeave {
            resume: self.cursor.place(),
            session_token: self.session_token.clone(),
            ..self.join.frame(self.clock.tick())
        }
    }

    /// The server let the participant in.
    pub(super) fn welcomed(&mut self, welcome: Option<Welcome>) -> Return {
        let is_return = std::mem::replace(&mut self.was_in, true);
        self.outbox.rewind();
        self.quiet_until = None;
        if self.is_leaving() {
            self.leave = Leave::Wanted;
        }
        let Some(welcome) = welcome else {
            let hole = is_return.then_some(Hole::Unknown);
            return Return {
                recovered: hole.is_none(),
                hole,
            };
        };
        self.session_token = welcome.session_token;
        self.participant_id = welcome.participant_id;
        let place = ResumePoint {
            epoch: welcome.epoch,
            sequence: welcome.sequence,
        };
        let hole = self.cursor.go_on_at(place, welcome.recovered);
        if !self.outbox.is_empty() {
            self.quiet_until = Some(ResumePoint {
                sequence: welcome.last_sequence,
                ..place
            });
        }
        Return {
            recovered: hole.is_none(),
            hole,
        }
    }

    /// Whether what was broadcast on earlier connections is not all seen yet, so that nothing may be sent again.
    fn is_quiet(&self) -> bool {
        self.quiet_until
            .is_some_and(|place| !self.cursor.has_passed(place))
    }

    /// Whether [`send`](Self::send) has something.
    pub(super) fn has_unsent(&self) -> bool {
        !self.is_quiet() && (self.outbox.has_unsent() || self.leave == Leave::Wanted)
    }

    /// What to send next, on the connection that there is.
    pub(super) fn send(&mut self) -> Option<JoinMsgLeave> {
        if self.is_quiet() {
            return None;
        }
        if let Some(pending) = self.outbox.send() {
            let timestamp = self.clock.tick();
            let mut message = JoinMsgLeave {
                timestamp,
                msg: pending.item.text.clone(),
                r#type: EventType::Message.into(),
                message_id: pending.message_id.as_str().to_owned(),
                ..JoinMsgLeave::default()
            };
            if let Some(sending) = &pending.item.sending {
                let context = sending.context();
                message.traceparent = context.traceparent().to_owned();
                message.tracestate = context.tracestate().to_owned();
                sending.sent(timestamp);
            }
            return Some(message);
        }
        if self.leave == Leave::Wanted {
            self.leave = Leave::Sent;
            return Some(JoinMsgLeave {
                timestamp: self.clock.tick(),
                r#type: EventType::Leave.into(),
                ..JoinMsgLeave::default()
            });
        }
        None
    }

    /// Takes in what the server sent.
    pub(super) fn heard(&mut self, message: ServerMessage) -> Heard {
        self.clock.merge(message.timestamp);
        let is_settled = self.outbox.settle(&message).is_some();
        let is_for_the_connection = self.obey(&message);
        let (hole, is_new) = match self.cursor.see(&message) {
            Sight::Next => (None, true),
            Sight::After(hole) => (Some(hole), true),
            Sight::Again => (None, false),
        };
        let is_own_coming_or_going =
            message.sender_id == self.participant_id && message.r#type() != EventType::Message;
        let is_event = message.sequence != 0 && is_new && !is_own_coming_or_going;
        Heard {
            hole,
            is_progress: is_settled || is_event,
            message: (is_new && !is_for_the_connection).then_some(message),
        }
    }

    /// Takes in the time of what is no event.
    pub(super) fn heard_time(&mut self, timestamp: i64) {
        self.clock.merge(timestamp);
    }

    /// Takes in what a notice says of the connection; whether it says something of that.
    fn obey(&mut self, message: &ServerMessage) -> bool {
        let Some(notice) = &message.notice else {
            return false;
        };
        match notice.code() {
            NoticeCode::Reconnect | NoticeCode::FellBehind => {
                self.asked_delay = notice.retry_delay.and_then(|delay| delay.try_into().ok());
                true
            }
            NoticeCode::TakenOver => {
                self.taken_over = Some(message.msg_stream.clone());
                true
            }
            _ => false,
        }
    }

    /// The connection ended, or none could be made: of an error, or (`None`) without.
    pub(super) fn interrupted(&mut self, end: Option<Error>) -> Interruption {
        let asked = self.asked_delay.take();
        if let Some(reason) = self.taken_over.take() {
            return Interruption::Final(Error::TakenOver { reason });
        }
        let Some(error) = end else {
            return if self.is_leaving() {
                Interruption::Left
            } else {
                Interruption::Passing(Error::Ended, asked)
            };
        };
        if !error.may_pass() {
            // A log that was lost begins with a clock that may be far behind. What was seen of the old log does not
            // bind the new one.
            if error.is_out_of_time() && !self.clock_was_reset {
                self.clock_was_reset = true;
                self.clock = LamportClock::START;
                return Interruption::Passing(error, asked);
            }
            return Interruption::Final(error);
        }
        if self.is_done() {
            return Interruption::Left;
        }
        let delay = error.retry_after().max(asked);
        Interruption::Passing(error, delay)
    }
}

#[cfg(test)]
#[path = "continuity_tests.rs"]
mod tests;
