//! The conversation between the input, the server and the output.

use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

use super::input::Input;
use super::output::Output;
use crate::client::{Conversation, Error, Listener, Outbox, QUEUE, Settled, Speaker, escape, line_of};
use crate::cmd::Failure;
use crate::proto::ServerMessage;
use crate::shutdown::Signals;

/// How many lines may be unacknowledged. Below the queue of the speaker, so that saying one never waits (which would
/// keep the listener waiting too).
const WINDOW: usize = QUEUE - 1;

/// How long the server has to end the stream after a LEAVE.
const GOODBYE_WITHIN: Duration = Duration::from_secs(5);

/// How a conversation is held.
pub(super) struct Session {
    /// Whether a line that is refused or not acknowledged is a failure, and leaving waits for the acknowledgements.
    pub(super) every_line_counts: bool,
    /// How long the server may take to acknowledge the next line.
    pub(super) answer_within: Duration,
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
    speaker: Speaker,
    phase: Phase,
    /// The lines on their way, by their number.
    outbox: Outbox<u64>,
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
        conversation: Conversation,
        mut inputs: mpsc::Receiver<Input>,
        output: &Output,
        signals: &mut Signals,
    ) -> Result<(), Failure> {
        let (speaker, mut listener) = conversation.into_split();
        let mut course = Course {
            session: self,
            speaker,
            phase: Phase::Talking,
            outbox: Outbox::new(WINDOW),
            deadline: None,
            refusals: Refusals::default(),
            broken_input: None,
        };
        let mut shown_on = Some(output);
        loop {
            let takes_input = course.phase == Phase::Talking && course.outbox.has_room();
            tokio::select! {
                input = inputs.recv(), if takes_input => {
                    course.take(input.unwrap_or(Input::Leave)).await;
                }
                heard = hear(&mut listener, shown_on) => match heard {
                    Heard::Message(message, place) => {
                        course.settle(&message).await;
                        if let Some(place) = place {
                            place.send(line_of(&message));
                        }
                    }
                    Heard::End(end) => return course.end(end),
                    Heard::Unseen => {
                        shown_on = None;
                        course.leave().await;
                    }
                },
                _ = signals.next() => {
                    if course.phase == Phase::Leaving {
                        return Err(Failure::Interrupted);
                    }
                    course.leave().await;
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
    /// A message, and the place to show it.
    Message(Box<ServerMessage>, Option<mpsc::Permit<'a, String>>),
    End(Result<(), Error>),
    /// The output takes no more lines.
    Unseen,
}

/// The next message, once there is a place to show it, or at once when it is not to be shown. Cancelling loses nothing.
async fn hear<'a>(listener: &mut Listener, shown_on: Option<&'a Output>) -> Heard<'a> {
    let Some(output) = shown_on else {
        return Heard::of(listener.next().await, None);
    };
    let Some(place) = output.place().await else {
        return Heard::Unseen;
    };
    tokio::select! {
        next = listener.next() => Heard::of(next, Some(place)),
        () = output.closed() => Heard::Unseen,
    }
}

impl<'a> Heard<'a> {
    fn of(next: Result<Option<ServerMessage>, Error>, place: Option<mpsc::Permit<'a, String>>) -> Self {
        match next {
            Ok(Some(message)) => Self::Message(Box::new(message), place),
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
    async fn take(&mut self, input: Input) {
        match input {
            Input::Say { number, text } => {
                // When the stream has ended, listening says why.
                if let Ok(message_id) = self.speaker.say(text).await {
                    if self.outbox.is_empty() {
                        self.await_answer();
                    }
                    self.outbox.put(message_id, number);
                }
            }
            Input::Leave => self.finish().await,
            Input::Broken(failure) => {
                self.broken_input = Some(failure);
                self.finish().await;
            }
        }
    }

    /// Leaves as soon as what was said is settled.
    async fn finish(&mut self) {
        self.phase = Phase::Finishing;
        if !self.session.every_line_counts || self.outbox.is_empty() {
            self.leave().await;
        }
    }

    async fn leave(&mut self) {
        if self.phase != Phase::Leaving {
            self.phase = Phase::Leaving;
            self.deadline = Some(Instant::now() + self.session.answer_within.min(GOODBYE_WITHIN));
            // When the stream has ended, listening says why.
            self.speaker.leave().await.ok();
        }
    }

    fn await_answer(&mut self) {
        if self.session.every_line_counts {
            self.deadline = Some(Instant::now() + self.session.answer_within);
        }
    }

    async fn settle(&mut self, message: &ServerMessage) {
        match self.outbox.settle(message) {
            None => return,
            Some(Settled::Acknowledged(_)) => {}
            Some(Settled::Refused(number)) => self.refusals.add(number, &message.msg_stream),
        }
        if self.phase == Phase::Leaving {
            return;
        }
        if !self.outbox.is_empty() {
            self.await_answer();
        } else if self.phase == Phase::Finishing {
            self.leave().await;
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
        let waited = humantime::format_duration(self.session.answer_within);
        match self.missing() {
            Some(missing) => Err(Failure::Unavailable(format!(
                "the server did not answer within {waited}; {missing}"
            ))),
            // Only the end of the stream is missing: all that was said is settled.
            None => self.verdict(),
        }
    }

    fn missing(&self) -> Option<String> {
        if !self.session.every_line_counts {
            return None;
        }
        let first = self.outbox.oldest()?.item;
        Some(match self.outbox.len() {
            1 => format!("line {first} was not acknowledged"),
            count => format!("{count} lines were not acknowledged, the first of them line {first}"),
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
