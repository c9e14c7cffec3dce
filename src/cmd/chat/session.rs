//! The conversation between the input, the server and the output.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

use super::input::Input;
use super::output::Output;
use crate::client::{Error, Event, Outbox, Presence, Sending, Settled, escape, line_of};
use crate::cmd::Failure;
use crate::cmd::aside::{RECONNECTED, RECONNECTING};
use crate::domain::RoomName;
use crate::proto::{NoticeCode, ServerMessage};
use crate::shutdown::Signals;
use crate::telemetry::{ClientSpans, SendSpan};

/// How long the server has to end the stream after a LEAVE.
const GOODBYE_WITHIN: Duration = Duration::from_secs(5);

/// How a conversation is held.
pub(super) struct Session {
    /// Whether a line that is refused or not acknowledged is a failure, and leaving waits for the acknowledgements.
    pub(super) every_line_counts: bool,
    /// How long the server may take to acknowledge the next line.
    pub(super) answer_within: Duration,
    /// Where.
    pub(super) room: RoomName,
    pub(super) spans: ClientSpans,
}

/// A line on its way.
struct Line {
    /// Which line of the input.
    number: u64,
    span: Option<Arc<SendSpan>>,
}

/// How far the conversation is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Lines are taken from the input.
    Talking,
    /// The input has ended; the last lines are on their way.
    Finishing,
    /// LEAVE is sent; what comes until the end of the stream is still shown.
    Leaving,
}

struct Course<'a> {
    session: &'a Session,
    phase: Phase,
    connected: bool,
    /// Whether the room was heard: before its own JOIN came back nobody has anything to answer.
    has_entered: bool,
    /// The lines on their way.
    outbox: Outbox<Line>,
    /// Until when the server has to answer, when there is something to answer.
    deadline: Option<Instant>,
    refusals: Refusals,
    /// Why the input ended, if it was not simply at its end.
    broken_input: Option<Failure>,
}

#[derive(Default)]
struct Refusals {
    count: u64,
    first: Option<(u64, String)>,
}

impl Session {
    /// Holds the conversation until it is left or ends otherwise.
    pub(super) async fn hold(
        &self,
        mut presence: Presence,
        mut inputs: mpsc::Receiver<Input>,
        output: &Output,
        asides: Option<&Output>,
        signals: &mut Signals,
    ) -> Result<(), Failure> {
        let mut course = Course {
            session: self,
            phase: Phase::Talking,
            connected: true,
            has_entered: false,
            outbox: Outbox::new(Presence::WINDOW),
            deadline: Some(Instant::now() + self.answer_within),
            refusals: Refusals::default(),
            broken_input: None,
        };
        let mut shown_on = Some(output);
        loop {
            let takes_input = course.phase == Phase::Talking && course.has_entered && presence.has_room();
            tokio::select! {
                input = inputs.recv(), if takes_input => {
                    course.take(&mut presence, input.unwrap_or(Input::Leave));
                }
                heard = hear(&mut presence, shown_on) => match heard {
                    Heard::Event(event, place) => {
                        let is_aside = !matches!(event, Event::Message(_));
                        let line = course.happens(&mut presence, event);
                        match (line, asides, place) {
                            (Some(line), Some(asides), _) if is_aside => asides.offer(line),
                            (Some(line), _, Some(place)) => place.send(line),
                            _ => {}
                        }
                    }
                    Heard::End(end) => return course.end(end),
                    Heard::Unseen => {
                        shown_on = None;
                        course.leave(&mut presence);
                    }
                },
                signal = signals.next() => {
                    if course.phase == Phase::Leaving {
                        return Err(Failure::Interrupted(signal));
                    }
                    course.leave(&mut presence);
                }
                () = until(course.deadline) => {
                    // Answers that wait behind a reader who pauses are not the server's fault.
                    if shown_on.is_none_or(|output| !output.is_behind()) {
                        return course.give_up();
                    }
                    course.deadline = Some(Instant::now() + self.answer_within);
                }
            }
        }
    }
}

enum Heard<'a> {
    /// Something, and the place to show it.
    Event(Event, Option<mpsc::Permit<'a, String>>),
    End(Result<(), Error>),
    /// The output takes no more lines.
    Unseen,
}

/// What happens next, once there is a place to show it, or at once when it is not to be shown. Cancelling loses nothing.
async fn hear<'a>(presence: &mut Presence, shown_on: Option<&'a Output>) -> Heard<'a> {
    let Some(output) = shown_on else {
        return Heard::of(presence.next().await, None);
    };
    let Some(place) = output.place().await else {
        return Heard::Unseen;
    };
    tokio::select! {
        next = presence.next() => Heard::of(next, Some(place)),
        () = output.closed() => Heard::Unseen,
    }
}

impl<'a> Heard<'a> {
    fn of(next: Result<Option<Event>, Error>, place: Option<mpsc::Permit<'a, String>>) -> Self {
        match next {
            Ok(Some(event)) => Self::Event(event, place),
            Ok(None) => Self::End(Ok(())),
            Err(error) => Self::End(Err(error)),
        }
    }
}

async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

impl Course<'_> {
    fn take(&mut self, presence: &mut Presence, input: Input) {
        match input {
            Input::Say { number, text } => {
                // When the presence is over, listening says why.
                let span = self.session.spans.send(self.session.room.as_str(), text.len());
                let sending = span.clone().map(|span| span as Arc<dyn Sending>);
                if let Ok(message_id) = presence.say_followed(text, sending) {
                    if self.outbox.is_empty() {
                        self.await_answer();
                    }
                    self.outbox.put(message_id, Line { number, span });
                }
            }
            Input::Leave => self.finish(presence),
            Input::Broken(failure) => {
                self.broken_input = Some(failure);
                self.finish(presence);
            }
        }
    }

    /// Leaves as soon as what was said is settled.
    fn finish(&mut self, presence: &mut Presence) {
        self.phase = Phase::Finishing;
        if !self.session.every_line_counts || self.outbox.is_empty() {
            self.leave(presence);
        }
    }

    fn leave(&mut self, presence: &mut Presence) {
        if self.phase != Phase::Leaving {
            self.phase = Phase::Leaving;
            self.deadline = Some(Instant::now() + self.session.answer_within.min(GOODBYE_WITHIN));
            presence.leave();
        }
    }

    /// The server has time from now on to acknowledge the next line; without a connection it is not waited for.
    fn await_answer(&mut self) {
        if self.session.every_line_counts && self.connected {
            self.deadline = Some(Instant::now() + self.session.answer_within);
        }
    }

    /// Takes in what happens; what to show of it.
    fn happens(&mut self, presence: &mut Presence, event: Event) -> Option<String> {
        match event {
            Event::Message(message) => {
                let began = SystemTime::now();
                if !self.has_entered && message.notice.is_none() {
                    self.has_entered = true;
                    self.deadline = None;
                }
                self.settle(presence, &message);
                // That a line was sent twice is nothing to whoever said it once.
                let is_repeat = message
                    .notice
                    .as_ref()
                    .is_some_and(|notice| notice.code() == NoticeCode::MessageRepeated);
                let line = (!is_repeat).then(|| line_of(&message));
                self.session.spans.received(&message, presence.now(), began);
                line
            }
            Event::Reconnecting { attempt, .. } => {
                self.connected = false;
                if self.phase != Phase::Leaving {
                    self.deadline = None;
                }
                (attempt == 1).then(|| RECONNECTING.to_owned())
            }
            Event::Resumed { .. } => {
                self.connected = true;
                if self.phase != Phase::Leaving && !self.outbox.is_empty() {
                    self.await_answer();
                }
                Some(RECONNECTED.to_owned())
            }
            Event::Hole(hole) => Some(hole.to_string()),
        }
    }

    fn settle(&mut self, presence: &mut Presence, message: &ServerMessage) {
        match self.outbox.settle(message) {
            None => return,
            Some(Settled::Acknowledged(line)) => {
                if let Some(span) = line.span {
                    span.acknowledged(message);
                }
            }
            Some(Settled::Refused(line)) => {
                self.refusals.add(line.number, &message.msg_stream);
                if let Some(span) = line.span {
                    span.refused(&message.message_id);
                }
            }
        }
        if self.phase == Phase::Leaving {
            return;
        }
        if !self.outbox.is_empty() {
            self.await_answer();
        } else if self.phase == Phase::Finishing {
            self.leave(presence);
        } else {
            self.deadline = None;
        }
    }

    /// The stream ended.
    fn end(self, end: Result<(), Error>) -> Result<(), Failure> {
        let missing = self.missing();
        if let Err(error) = end {
            return Err(match (Failure::from(error), missing) {
                (Failure::Unavailable(text), Some(missing)) => {
                    Failure::Unavailable(format!("{text}; {missing}"))
                }
                (failure, _) => failure,
            });
        }
        match missing {
            Some(missing) => Err(Failure::Unavailable(format!(
                "the server ended the conversation; {missing}"
            ))),
            None => self.verdict(),
        }
    }

    /// The server did not answer in time.
    fn give_up(self) -> Result<(), Failure> {
        let waited = match self.phase {
            Phase::Leaving => self.session.answer_within.min(GOODBYE_WITHIN),
            _ => self.session.answer_within,
        };
        let waited = humantime::format_duration(waited);
        match self.missing() {
            Some(missing) => Err(Failure::Unavailable(format!(
                "the server did not answer within {waited}; {missing}"
            ))),
            // Only the end of the stream is missing: all that was said is settled.
            None => self.verdict(),
        }
    }

    fn missing(&self) -> Option<String> {
        let first = self.outbox.oldest()?.item.number;
        Some(match (self.outbox.len(), self.session.every_line_counts) {
            (1, true) => format!("line {first} was not acknowledged"),
            (count, true) => format!("{count} lines were not acknowledged, the first of them line {first}"),
            // Nobody counts lines on a terminal.
            (1, false) => "your last message was not acknowledged".into(),
            (count, false) => format!("your last {count} messages were not acknowledged"),
        })
    }

    /// All that was said is settled.
    fn verdict(self) -> Result<(), Failure> {
        if let Some(failure) = self.broken_input {
            return Err(failure);
        }
        match self.refusals.into_text() {
            Some(text) if self.session.every_line_counts => Err(Failure::Data(text)),
            _ => Ok(()),
        }
    }
}

impl Refusals {
    fn add(&mut self, number: u64, reason: &str) {
        self.count += 1;
        self.first
            .get_or_insert_with(|| (number, escape::text(reason).into_owned()));
    }

    fn into_text(self) -> Option<String> {
        let (number, reason) = self.first?;
        Some(match self.count {
            1 => format!("the server refused line {number}: {reason}"),
            count => format!("the server refused {count} lines, the first of them line {number}: {reason}"),
        })
    }
}
