//! The event loop of `chitchat chat`, between the input, the session and the output.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use serde_json::Value;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};
use tokio_stream::StreamExt as _;

use super::input::Input;
use crate::client::{ClientError, Event, SendObserver, Session};
use crate::cmd::Failure;
use crate::cmd::answer::is_repeated;
use crate::cmd::failure::Rejections;
use crate::cmd::json;
use crate::cmd::message_format::MessageFormat;
use crate::cmd::output::Output;
use crate::cmd::stderr::{RECONNECTED, RECONNECTING};
use crate::domain::{Name, RoomName};
use crate::proto::{EventType, JoinMsgLeave, ServerMessage};
use crate::signals::Signals;
use crate::telemetry::{ClientSpans, SendSpan};

/// How long to wait for the next acknowledgement, and for the end of the stream after a LEAVE.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(5);

pub(super) struct ChatOptions {
    /// Whether the command fails if a line is rejected, waits for all acknowledgements before it leaves, and goes on if its output is
    /// closed.
    pub(super) is_scripted: bool,
    /// How long the server may take to answer the JOIN and, if scripted, until the next line is acknowledged.
    pub(super) response_timeout: Duration,
    pub(super) name: Name,
    pub(super) room: RoomName,
    /// Whether to write JSON objects: the messages as they are received, and the calls as they are sent.
    pub(super) is_json: bool,
    /// How to write messages otherwise.
    pub(super) format: MessageFormat,
    pub(super) spans: ClientSpans,
}

pub(super) struct ChatLoop {
    options: ChatOptions,
    session: Session,
    phase: Phase,
    is_connected: bool,
    /// Whether the participant's own JOIN has arrived.
    has_joined: bool,
    /// The unacknowledged lines, by message id.
    lines: HashMap<String, Line>,
    /// When the server's next answer is due; `None` if no answer is expected.
    deadline: Option<Instant>,
    rejections: Rejections,
    /// Why the input could not be read to its end.
    input_failure: Option<Failure>,
}

/// A line of the input that has been sent.
struct Line {
    number: u64,
    span: Option<Arc<SendSpan>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Lines are taken from the input.
    Open,
    /// The input has ended; the last lines await their acknowledgement.
    Finishing,
    /// The session is leaving; messages are shown until its stream ends.
    Leaving,
}

enum Received<'a> {
    /// An event, with the permit to show it.
    Event(Event, Option<mpsc::Permit<'a, String>>),
    /// The session's stream ended.
    End(Result<(), ClientError>),
    /// The output accepts no more lines.
    OutputClosed,
}

impl ChatLoop {
    pub(super) fn new(session: Session, options: ChatOptions) -> Self {
        Self {
            session,
            phase: Phase::Open,
            is_connected: true,
            has_joined: false,
            lines: HashMap::new(),
            deadline: Some(Instant::now() + options.response_timeout),
            rejections: Rejections::default(),
            input_failure: None,
            options,
        }
    }

    /// Runs until the participant has left or the session fails. Messages go to `output`. Notes about the connection go to
    /// `notes`.
    pub(super) async fn run(
        mut self,
        mut inputs: mpsc::Receiver<Input>,
        output: &Output,
        notes: &Output,
        signals: &mut Signals,
    ) -> Result<(), Failure> {
        let mut open_output = Some(output);
        self.log_sent(output, EventType::Join);
        loop {
            let was_leaving = self.phase == Phase::Leaving;
            let takes_input = self.phase == Phase::Open && self.has_joined && self.session.has_capacity();
            tokio::select! {
                (input, permit) = next_input(&mut inputs, output, self.options.is_json), if takes_input => {
                    let sent = self.on_input(input);
                    if let (Some(sent), Some(permit)) = (sent, permit) {
                        permit.send(json::line(&sent));
                    }
                }
                received = receive(&mut self.session, open_output) => match received {
                    Received::Event(event, permit) => {
                        let is_note = !matches!(event, Event::Message(_));
                        match (self.on_event(event), permit) {
                            (Some(line), _) if is_note => notes.try_send(line),
                            (Some(line), Some(permit)) => permit.send(line),
                            _ => {}
                        }
                    }
                    Received::End(end) => return self.on_end(end),
                    Received::OutputClosed => {
                        open_output = None;
                        // A script's lines are sent all the same.
                        if !self.options.is_scripted {
                            self.leave();
                        }
                    }
                },
                signal = signals.next() => {
                    if self.phase == Phase::Leaving {
                        return Err(Failure::Interrupted(signal));
                    }
                    self.leave();
                }
                () = sleep_until_deadline(self.deadline) => {
                    // While the output is full, nothing is received, so the server may have answered in time.
                    if open_output.is_none_or(|output| !output.is_full()) {
                        return self.on_timeout();
                    }
                    self.deadline = Some(Instant::now() + self.options.response_timeout);
                }
            }
            if !was_leaving && self.phase == Phase::Leaving {
                self.log_sent(output, EventType::Leave);
            }
        }
    }

    /// Handles an input, and returns the record of the message that is sent for it.
    fn on_input(&mut self, input: Input) -> Option<Value> {
        match input {
            Input::Line { number, text } => {
                let span = self
                    .options
                    .spans
                    .start_send(self.options.room.as_str(), text.len());
                let observer = span.clone().map(|span| span as Arc<dyn SendObserver>);
                let sent = self.sent(EventType::Message, &text);
                // If the session has failed, its stream yields the error.
                let message_id = self.session.send_with_observer(text, observer).ok()?;
                if self.lines.is_empty() {
                    self.restart_deadline();
                }
                let message_id = message_id.as_str().to_owned();
                let sent = JoinMsgLeave {
                    message_id: message_id.clone(),
                    ..sent
                };
                self.lines.insert(message_id, Line { number, span });
                return Some(json::sent(&sent));
            }
            Input::Leave => self.finish(),
            Input::Failed(failure) => {
                self.input_failure = Some(failure);
                self.finish();
            }
        }
        None
    }

    fn sent(&self, r#type: EventType, text: &str) -> JoinMsgLeave {
        JoinMsgLeave {
            client_name: self.options.name.as_str().to_owned(),
            room: self.options.room.as_str().to_owned(),
            msg: text.to_owned(),
            r#type: r#type.into(),
            ..JoinMsgLeave::default()
        }
    }

    /// Writes the record of a JOIN or LEAVE, unless the output is full.
    fn log_sent(&self, output: &Output, r#type: EventType) {
        if self.options.is_json {
            output.try_send(json::line(&json::sent(&self.sent(r#type, ""))));
        }
    }

    /// Called at the end of the input: leaves at once or, if scripted, when all lines are acknowledged or rejected.
    fn finish(&mut self) {
        self.phase = Phase::Finishing;
        if !self.options.is_scripted || self.lines.is_empty() {
            self.leave();
        }
    }

    fn leave(&mut self) {
        if self.phase != Phase::Leaving {
            self.phase = Phase::Leaving;
            self.deadline = Some(Instant::now() + self.leave_timeout());
            self.session.leave();
        }
    }

    fn leave_timeout(&self) -> Duration {
        self.options.response_timeout.min(LEAVE_TIMEOUT)
    }

    /// If scripted, gives the server the full timeout for its next acknowledgement, unless there is no connection.
    fn restart_deadline(&mut self) {
        if self.options.is_scripted && self.is_connected {
            self.deadline = Some(Instant::now() + self.options.response_timeout);
        }
    }

    /// Handles an event, and returns the line to show for it.
    fn on_event(&mut self, event: Event) -> Option<String> {
        match event {
            Event::Message(message) => {
                let received_at = SystemTime::now();
                if !self.has_joined && message.notice.is_none() {
                    self.has_joined = true;
                    self.deadline = None;
                }
                self.on_answer(&message);
                // A retransmission is not shown a second time.
                let line = (!is_repeated(&message)).then(|| {
                    if self.options.is_json {
                        json::line(&json::received(&message, received_at))
                    } else {
                        self.options.format.format(&message)
                    }
                });
                self.options
                    .spans
                    .record_received(&message, self.session.lamport_time(), received_at);
                line
            }
            Event::Reconnecting { attempt, .. } => {
                self.is_connected = false;
                if self.phase != Phase::Leaving {
                    self.deadline = None;
                }
                (attempt == 1).then(|| RECONNECTING.to_owned())
            }
            Event::Resumed { .. } => {
                self.is_connected = true;
                if self.phase != Phase::Leaving && !self.lines.is_empty() {
                    self.restart_deadline();
                }
                Some(RECONNECTED.to_owned())
            }
            Event::Gap(gap) => Some(gap.to_string()),
        }
    }

    /// Removes the line that `message` acknowledges or rejects, if it does.
    fn on_answer(&mut self, message: &ServerMessage) {
        let Some(line) = self.lines.remove(&message.message_id) else {
            return;
        };
        if message.notice.is_some() && !is_repeated(message) {
            self.rejections.add(line.number, &message.msg_stream);
            if let Some(span) = line.span {
                span.record_rejected(&message.message_id);
            }
        } else if let Some(span) = line.span {
            span.record_acknowledged(message);
        }
        if self.phase == Phase::Leaving {
            self.deadline = Some(Instant::now() + self.leave_timeout());
        } else if !self.lines.is_empty() {
            self.restart_deadline();
        } else if self.phase == Phase::Finishing {
            self.leave();
        } else {
            self.deadline = None;
        }
    }

    /// The result of the command after the session's stream has ended.
    fn on_end(self, end: Result<(), ClientError>) -> Result<(), Failure> {
        let unacknowledged = self.unacknowledged();
        if let Err(error) = end {
            return Err(match (Failure::from(error), unacknowledged) {
                (Failure::Unavailable(text), Some(lines)) => Failure::Unavailable(format!("{text}; {lines}")),
                (failure, _) => failure,
            });
        }
        match unacknowledged {
            Some(lines) => Err(Failure::Unavailable(format!(
                "the server ended the conversation; {lines}"
            ))),
            None => self.result(),
        }
    }

    /// The result of the command after the server did not answer in time.
    fn on_timeout(self) -> Result<(), Failure> {
        let waited = match self.phase {
            Phase::Leaving => self.leave_timeout(),
            Phase::Open | Phase::Finishing => self.options.response_timeout,
        };
        let waited = humantime::format_duration(waited);
        match self.unacknowledged() {
            Some(lines) => Err(Failure::Unavailable(format!(
                "the server did not answer within {waited}; {lines}"
            ))),
            // All lines are acknowledged or rejected; only the end of the stream has not arrived.
            None => self.result(),
        }
    }

    fn unacknowledged(&self) -> Option<String> {
        let first = self.lines.values().map(|line| line.number).min()?;
        Some(match (self.lines.len(), self.options.is_scripted) {
            (1, true) => format!("line {first} was not acknowledged"),
            (count, true) => format!("{count} lines were not acknowledged, the first of them line {first}"),
            // On a terminal, line numbers are of no use.
            (1, false) => "your last message was not acknowledged".into(),
            (count, false) => format!("your last {count} messages were not acknowledged"),
        })
    }

    /// The result of the command when all lines are acknowledged or rejected.
    fn result(self) -> Result<(), Failure> {
        if let Some(failure) = self.input_failure {
            return Err(failure);
        }
        if self.options.is_scripted {
            self.rejections.into_result()
        } else {
            Ok(())
        }
    }
}

/// Waits for the next input; first, if `is_json`, for capacity to write the record of what is sent. Cancel safe.
async fn next_input<'a>(
    inputs: &mut mpsc::Receiver<Input>,
    output: &'a Output,
    is_json: bool,
) -> (Input, Option<mpsc::Permit<'a, String>>) {
    let permit = if is_json { output.reserve().await } else { None };
    (inputs.recv().await.unwrap_or(Input::Leave), permit)
}

/// Waits for capacity to show an event, then for the event. Cancel safe.
async fn receive<'a>(session: &mut Session, output: Option<&'a Output>) -> Received<'a> {
    let Some(output) = output else {
        return Received::new(session.try_next().await, None);
    };
    let Some(permit) = output.reserve().await else {
        return Received::OutputClosed;
    };
    tokio::select! {
        next = session.try_next() => Received::new(next, Some(permit)),
        () = output.closed() => Received::OutputClosed,
    }
}

impl<'a> Received<'a> {
    fn new(next: Result<Option<Event>, ClientError>, permit: Option<mpsc::Permit<'a, String>>) -> Self {
        match next {
            Ok(Some(event)) => Self::Event(event, permit),
            Ok(None) => Self::End(Ok(())),
            Err(error) => Self::End(Err(error)),
        }
    }
}

async fn sleep_until_deadline(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}
