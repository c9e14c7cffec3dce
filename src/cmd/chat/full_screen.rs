//! The full-screen terminal interface of `chitchat chat`.

mod app;
mod departed_rooms;
mod input_history;
mod line_editor;
mod lookups;
mod roster;
mod slash_command;
mod text;
mod theme;
mod timeline;
mod tty;
mod view;
mod viewport;

use std::collections::HashMap;
use std::io::{self, ErrorKind};
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use ratatui::crossterm::event::{self, Event as TerminalEvent, KeyEventKind, MouseEventKind};
use rustix::process::{Signal, getpid, kill_current_process_group, kill_process};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep, sleep_until};
use tokio_stream::StreamExt as _;

use crate::client::{
    Backoff, ClientError, ConnectOptions, Event, JoinOptions, RetryPolicy, SendObserver, ServerAddress,
    Session,
};
use crate::cmd::Failure;
use crate::cmd::answer::is_repeated;
use crate::cmd::message_format::TimeColumns;
use crate::cmd::thread::spawn_thread;
use crate::domain::{Name, RoomName};
use crate::proto::ServerMessage;
use crate::signals::{JobSignal, JobSignals, Signals};
use crate::telemetry::{ClientSpans, SendSpan};
use app::{App, Effect, Target};
use departed_rooms::DepartedRooms;
use input_history::{HistoryFile, InputHistory};
use lookups::{Answer, Lookups};
use theme::Theme;
use timeline::Older;
use tty::Tty;

/// The shortest time between two drawings.
const FRAME_INTERVAL: Duration = Duration::from_millis(33);

/// How long to wait for the next acknowledgement, and for the end of the stream after a LEAVE.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(5);

/// Capacity of the queue between the keyboard's thread and the loop, and how many keys are handled before anything else.
const KEY_QUEUE_LEN: usize = 256;

type Key = Result<TerminalEvent, io::Error>;
type Joining = Pin<Box<dyn Future<Output = Result<Joined, ClientError>> + Send>>;

/// A room that was joined.
struct Joined {
    target: Target,
    session: Session,
    /// Why the user is there, if another name was wanted.
    note: Option<String>,
}

/// How to join rooms.
#[derive(Debug, Clone)]
pub(super) struct Joiner {
    pub(super) server: ServerAddress,
    pub(super) options: ConnectOptions,
    pub(super) retry: RetryPolicy,
}

impl Joiner {
    async fn join(&self, target: Target) -> Result<Joined, ClientError> {
        let join = JoinOptions::new(target.name.as_str()).room(target.room.as_str());
        let session = Session::join(&self.server, &self.options, self.retry.clone(), join).await?;
        Ok(Joined {
            target,
            session,
            note: None,
        })
    }

    /// Joins `target` after `left_signal`, or `old` again.
    async fn rejoin(
        &self,
        target: Target,
        old: Target,
        left_signal: oneshot::Receiver<()>,
    ) -> Result<Joined, ClientError> {
        // Ends without a value.
        left_signal.await.ok();
        match self.join(target.clone()).await {
            Err(error) => {
                let note = Some(target.join_failure(&error.to_string()));
                Ok(Joined {
                    note,
                    ..self.return_to(old).await?
                })
            }
            joined => joined,
        }
    }

    /// Joins `target`, in which the user has been, as often as after the loss of a connection.
    async fn return_to(&self, target: Target) -> Result<Joined, ClientError> {
        let mut backoff = Backoff::new(self.retry.clone());
        loop {
            let error = match self.join(target.clone()).await {
                Err(error) if error.is_retryable() => error,
                result => return result,
            };
            let attempt = backoff.next(Instant::now(), error.retry_after(), &mut rand::rng());
            sleep(attempt.ok_or(error)?.delay).await;
        }
    }

    /// How long the server may take to answer the next message or the LEAVE.
    fn leave_timeout(&self) -> Duration {
        self.options.response_timeout.min(LEAVE_TIMEOUT)
    }
}

/// Takes part in rooms until the user leaves. `session` has joined `room` as `name`.
pub(super) async fn run(
    joiner: Joiner,
    session: Session,
    name: Name,
    room: RoomName,
    times: TimeColumns,
    spans: ClientSpans,
    signals: &mut Signals,
) -> Result<(), Failure> {
    let history = HistoryFile::from_env();
    // Without its earlier inputs the client works as well.
    let inputs = history
        .as_ref()
        .and_then(|file| file.load().ok())
        .unwrap_or_default();
    let mut app = App::new(
        Target { name, room },
        Theme::from_env(),
        times,
        InputHistory::new(inputs),
    );
    app.resize(tty::size());
    app.on_joined(app.target.clone(), session.welcome());
    let tty = Tty::open(app.size())?;
    let keys = read_keys()?;
    let screen = FullScreen {
        lookups: Lookups::new(joiner.server.clone(), joiner.options.clone()),
        joiner,
        app,
        session: Some(session),
        tty,
        spans,
        history,
        sent: HashMap::new(),
        joining: None,
        left: DepartedRooms::default(),
        leave_deadline: None,
        stop_deadline: None,
        ended: None,
        hung_up: None,
        is_dirty: true,
        is_suspended: false,
    };
    screen.run(keys, signals).await
}

/// How often to look whether the terminal is gone: without a controlling terminal there is no SIGHUP then.
const HANGUP_CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// Reads the keyboard on a thread of its own, which ends with the process.
fn read_keys() -> Result<mpsc::Receiver<Key>, Failure> {
    let (sender, keys) = mpsc::channel(KEY_QUEUE_LEN);
    spawn_thread("keyboard", move || {
        loop {
            let key = match event::poll(HANGUP_CHECK_INTERVAL) {
                Ok(true) => event::read(),
                Ok(false) if !tty::is_hung_up() => continue,
                Ok(false) => Err(ErrorKind::UnexpectedEof.into()),
                Err(error) => Err(error),
            };
            let is_last = key.is_err();
            if sender.blocking_send(key).is_err() || is_last {
                return;
            }
        }
    })?;
    Ok(keys)
}

/// Within which a process that has sent itself a signal to stop is stopped, however busy the machine is.
const STOP_TIMEOUT: Duration = Duration::from_millis(500);

struct FullScreen {
    joiner: Joiner,
    app: App,
    /// `None` while the room is joined again under another name, and at the end.
    session: Option<Session>,
    tty: Tty,
    lookups: Lookups,
    spans: ClientSpans,
    history: Option<HistoryFile>,
    /// The spans of the messages that are not acknowledged.
    sent: HashMap<String, Arc<SendSpan>>,
    /// The room that the user wants to go to.
    joining: Option<Joining>,
    left: DepartedRooms,
    /// When the next answer is due, while the user is leaving.
    leave_deadline: Option<Instant>,
    /// Set when the process is to be stopped: it runs at this time only if the system does not stop it.
    stop_deadline: Option<Instant>,
    /// How the session has ended. Only the rooms that the user has left before are waited for.
    ended: Option<Result<(), Failure>>,
    /// Set when the terminal is gone. What was entered is sent all the same.
    hung_up: Option<Failure>,
    /// Whether there is something to draw.
    is_dirty: bool,
    is_suspended: bool,
}

/// What the loop does next.
enum Next {
    Continue,
    End(Result<(), Failure>),
}

impl FullScreen {
    async fn run(mut self, mut keys: mpsc::Receiver<Key>, signals: &mut Signals) -> Result<(), Failure> {
        let mut jobs = JobSignals::listen()
            .map_err(|error| Failure::Software(format!("cannot listen for signals: {error}")))?;
        let queue = self.tty.queue();
        let mut next_frame = Instant::now();
        let mut batch = Vec::new();
        let result = loop {
            self.send_pending();
            self.run_effects();
            if self.left.is_empty()
                && let Some(ended) = self.ended.take()
            {
                break self.result(ended);
            }
            let draws = self.is_dirty && !self.is_suspended && self.hung_up.is_none();
            let next = tokio::select! {
                // A paste is drawn once.
                count = keys.recv_many(&mut batch, KEY_QUEUE_LEN), if self.hung_up.is_none() => {
                    for key in batch.drain(..) {
                        self.on_key(key);
                    }
                    if count == 0 {
                        self.hang_up(Failure::Io("the terminal is gone".into()));
                    }
                    Next::Continue
                }
                event = next_event(&mut self.session) => {
                    self.on_session(event);
                    Next::Continue
                }
                (generation, answer) = self.lookups.next() => {
                    self.on_answer(generation, answer);
                    Next::Continue
                }
                joined = next_room(&mut self.joining) => {
                    self.on_joined(joined);
                    Next::Continue
                }
                texts = self.left.next() => {
                    self.app.on_left(&texts);
                    if self.session.is_none() {
                        self.restart_deadline();
                    }
                    Next::Continue
                }
                signal = signals.next() => {
                    if self.app.is_leaving {
                        Next::End(Err(Failure::Interrupted(signal)))
                    } else {
                        self.leave();
                        Next::Continue
                    }
                }
                job = jobs.next() => self.on_job_signal(job).await,
                permit = ready_to_draw(&queue, next_frame), if draws => {
                    next_frame = Instant::now() + FRAME_INTERVAL;
                    self.is_dirty = false;
                    match (self.draw(), permit) {
                        (Ok(bytes), Some(permit)) => {
                            permit.send(bytes.into());
                            continue;
                        }
                        (Ok(_), None) => self.hang_up(Failure::Io("the terminal is gone".into())),
                        (Err(failure), _) => self.hang_up(failure),
                    }
                    Next::Continue
                }
                () = sleep_until_deadline(self.leave_deadline) => {
                    self.on_timeout();
                    Next::Continue
                }
                () = sleep_until_deadline(self.stop_deadline) => self.resume(Some("there is no shell to return to")),
            };
            // Plain lines stay as they are, so that they can be selected.
            self.is_dirty |= !self.app.is_bare;
            if let Next::End(result) = next {
                break result;
            }
        };
        self.tty.restore().await;
        result
    }

    fn draw(&mut self) -> Result<Vec<u8>, Failure> {
        if self.app.is_bare {
            return self.tty.draw_bare(&view::bare_lines(&self.app));
        }
        let mut keys = None;
        let bytes = self.tty.draw(|frame| keys = view::draw(frame, &self.app))?;
        self.app.on_drawn(keys);
        Ok(bytes)
    }

    fn reset(&mut self) {
        // Fails only if the terminal cannot be written to; the next drawing reports it.
        self.tty.reset(self.app.size()).ok();
        self.is_dirty = true;
    }

    /// The terminal is gone: leaves when everything that was entered is acknowledged.
    fn hang_up(&mut self, failure: Failure) {
        if self.hung_up.is_none() {
            self.hung_up = Some(failure);
            // The signal for it may have come before.
            if !self.app.is_leaving {
                self.leave();
            }
        }
    }

    fn on_key(&mut self, key: Key) {
        match key {
            Ok(TerminalEvent::Key(key)) if key.kind != KeyEventKind::Release => self.app.on_key(key),
            Ok(TerminalEvent::Paste(text)) => self.app.on_paste(&text),
            Ok(TerminalEvent::Mouse(mouse)) => match mouse.kind {
                MouseEventKind::ScrollUp => self.app.on_wheel(true),
                MouseEventKind::ScrollDown => self.app.on_wheel(false),
                _ => {}
            },
            Ok(TerminalEvent::Resize(..)) => {
                self.app.resize(tty::size());
                self.reset();
            }
            Ok(TerminalEvent::FocusGained) => self.app.on_focus(true),
            Ok(TerminalEvent::FocusLost) => self.app.on_focus(false),
            Ok(TerminalEvent::Key(_)) => {}
            Err(error) => self.hang_up(Failure::Io(format!("cannot read from the terminal: {error}"))),
        }
        self.run_effects();
    }

    fn run_effects(&mut self) {
        loop {
            let effects = self.app.take_effects();
            if effects.is_empty() {
                return;
            }
            // They may have effects, too.
            for effect in effects {
                self.run_effect(effect);
            }
        }
    }

    fn run_effect(&mut self, effect: Effect) {
        let generation = self.app.room_generation();
        match effect {
            Effect::Leave => self.leave(),
            Effect::Switch(target) => self.switch(target),
            Effect::LoadOlder(before) => self.lookups.load_older(generation, &self.app.target.room, before),
            Effect::LoadNewer(after) => self.lookups.load_newer(generation, &self.app.target.room, after),
            Effect::LoadRoster => self.lookups.load_roster(generation, &self.app.target.room),
            Effect::ListRooms => self.lookups.list_rooms(generation),
            Effect::Remember(input) => {
                if let Some(file) = &self.history
                    && let Err(error) = file.append(&input)
                {
                    self.app
                        .note(&format!("the input history cannot be written: {error}"));
                    self.history = None;
                }
            }
            Effect::Suspend => self.stop_job(),
            Effect::Redraw | Effect::LeaveBare => self.reset(),
            Effect::ShowBare => self.is_dirty = true,
        }
    }

    // The session.

    /// Gives entered texts to the session, as many as it accepts.
    fn send_pending(&mut self) {
        while let Some(session) = &mut self.session
            && session.has_capacity()
        {
            let room = self.app.target.room.as_str().to_owned();
            let Some(pending) = self.app.next_unsent() else {
                // What was entered for other rooms is sent before the user leaves.
                if self.app.is_leaving && !self.app.has_input_for_next_room() {
                    session.leave();
                }
                return;
            };
            let span = self.spans.start_send(&room, pending.text.len());
            let observer = span.clone().map(|span| span as Arc<dyn SendObserver>);
            // If the session has failed, its stream yields the error.
            let Ok(message_id) = session.send_with_observer(pending.text.clone(), observer) else {
                return;
            };
            pending.message_id = Some(message_id.as_str().to_owned());
            if let Some(span) = span {
                self.sent.insert(message_id.as_str().to_owned(), span);
            }
        }
    }

    fn on_session(&mut self, event: Result<Option<Event>, ClientError>) {
        match event {
            Ok(Some(event)) => {
                if let Event::Message(message) = &event {
                    self.record(message);
                }
                let unanswered = self.app.pending.len();
                self.app.on_event(event);
                if self.app.pending.len() < unanswered {
                    self.restart_deadline();
                }
            }
            Ok(None) => self.end(Ok(())),
            Err(error) => self.end(Err(error.into())),
        }
    }

    fn record(&mut self, message: &ServerMessage) {
        if let Some(span) = self.sent.remove(&message.message_id) {
            if message.notice.is_some() && !is_repeated(message) {
                span.record_rejected(&message.message_id);
            } else {
                span.record_acknowledged(message);
            }
        }
        if let Some(session) = &self.session {
            self.spans
                .record_received(message, session.lamport_time(), SystemTime::now());
        }
    }

    fn switch(&mut self, target: Target) {
        let old = self.app.target.clone();
        // The server takes such names for one, which is free when the participant has left.
        let is_same_name = target.room == old.room && target.name.is_confusable_with(&old.name);
        if self.left.is_full() {
            let error = "messages in the rooms that you have left are not acknowledged yet";
            return self.app.on_join_failed(error);
        }
        if is_same_name && self.app.reconnecting.is_some() {
            return self.app.on_join_failed("there is no connection");
        }
        let joiner = self.joiner.clone();
        let left_signal = if is_same_name { self.leave_room() } else { None };
        self.joining = Some(match left_signal {
            Some(left_signal) => Box::pin(async move { joiner.rejoin(target, old, left_signal).await }),
            None => Box::pin(async move { joiner.join(target).await }),
        });
    }

    /// Leaves the current room in the background.
    fn leave_room(&mut self) -> Option<oneshot::Receiver<()>> {
        let session = self.session.take()?;
        let timeout = self.joiner.leave_timeout();
        Some(self.left.leave(session, self.app.take_pending(), timeout))
    }

    fn on_joined(&mut self, joined: Result<Joined, ClientError>) {
        self.joining = None;
        self.restart_deadline();
        match joined {
            Ok(Joined {
                target,
                session,
                note,
            }) => {
                self.leave_room();
                self.app.on_joined(target, session.welcome());
                self.session = Some(session);
                if let Some(note) = note {
                    self.app.note(&note);
                }
            }
            Err(error) if self.session.is_none() => self.end(Err(error.into())),
            Err(error) => self.app.on_join_failed(&error.to_string()),
        }
    }

    fn on_answer(&mut self, generation: u64, answer: Answer) {
        if generation != self.app.room_generation() {
            return;
        }
        match answer {
            Answer::Older(before, Ok(page)) => self.app.on_older(before, &page),
            Answer::Newer(after, Ok(page)) => self.app.on_newer(after, &page),
            Answer::Roster(Ok(list)) => self.app.on_roster(list),
            Answer::Rooms(Ok((rooms, are_all))) => self.app.on_rooms(&rooms, are_all),
            // A server of the first version of the protocol has no such calls.
            Answer::Older(_, Err(ClientError::Unimplemented { .. })) => {
                self.app.timeline.older = Older::Nothing;
            }
            Answer::Roster(Err(ClientError::Unimplemented { .. })) => {}
            Answer::Older(_, Err(error)) | Answer::Newer(_, Err(error)) => {
                self.app.on_load_failed(&error.to_string());
            }
            Answer::Roster(Err(error)) => self.app.note(&format!("cannot list the participants: {error}")),
            Answer::Rooms(Err(error)) => self.app.note(&format!("cannot list the rooms: {error}")),
        }
    }

    /// Leaves the room, after what was entered is sent. The second time, ends at once.
    fn leave(&mut self) {
        if self.app.is_leaving {
            self.left.stop();
            self.joining = None;
            self.leave_deadline = self.leave_deadline.map(|_| Instant::now());
            return;
        }
        self.app.is_leaving = true;
        self.leave_deadline = Some(Instant::now());
        self.restart_deadline();
        if !self.app.has_input_for_next_room() {
            self.joining = None;
        }
        if self.session.is_none() && self.joining.is_none() {
            self.end(Ok(()));
        }
    }

    /// Gives the server the whole time for its next answer, if the user is leaving.
    fn restart_deadline(&mut self) {
        let timeout = self.joiner.leave_timeout();
        self.leave_deadline = self.leave_deadline.map(|_| Instant::now() + timeout);
    }

    /// Called when the server has not answered in time.
    fn on_timeout(&mut self) {
        if self.session.is_none() && self.joining.is_some() && !self.left.is_empty() {
            // The room is joined again when the user has left it, for which there is a deadline of its own.
            return self.restart_deadline();
        }
        // If everything is acknowledged, only the end of the stream has not arrived.
        let is_acknowledged = self.app.pending.is_empty();
        let error = Failure::Unavailable("the server did not answer in time".into());
        self.end(if is_acknowledged { Ok(()) } else { Err(error) });
    }

    /// Called when the session has ended, or cannot go on.
    fn end(&mut self, result: Result<(), Failure>) {
        self.session = None;
        self.joining = None;
        self.leave_deadline = None;
        self.app.is_leaving = true;
        self.ended = Some(result);
    }

    /// The result of the command after the session has ended with `ended`.
    fn result(&mut self, ended: Result<(), Failure>) -> Result<(), Failure> {
        let messages = match self.app.unacknowledged() {
            0 => return self.hung_up.take().map_or(ended, Err),
            1 => "your last message was not acknowledged".to_owned(),
            count => format!("your last {count} messages were not acknowledged"),
        };
        Err(match ended {
            Ok(()) => Failure::Unavailable(messages),
            Err(Failure::Unavailable(reason)) => Failure::Unavailable(format!("{reason}; {messages}")),
            Err(failure) => failure,
        })
    }

    // Job control.

    /// Stops the process group, as Ctrl-Z does on a terminal in its usual mode.
    fn stop_job(&mut self) {
        kill_current_process_group(Signal::TSTP).ok();
    }

    async fn on_job_signal(&mut self, signal: JobSignal) -> Next {
        match signal {
            JobSignal::Hangup => {
                if self.hung_up.is_none() {
                    self.leave();
                }
                Next::Continue
            }
            JobSignal::Stop => {
                self.tty.restore().await;
                self.is_suspended = true;
                self.stop_deadline = Some(Instant::now() + STOP_TIMEOUT);
                // SIGTSTP has a handler. SIGTTOU has the default action, which is the same: the system stops the process unless
                // nobody could continue it (its process group is orphaned). A process always has permission to signal itself.
                kill_process(getpid(), Signal::TTOU).ok();
                Next::Continue
            }
            JobSignal::Continue => self.resume(None),
        }
    }

    /// Shows the screen again after the process has been stopped, or has not been, which `hint` then says.
    fn resume(&mut self, hint: Option<&str>) -> Next {
        if let Err(failure) = tty::enter() {
            return Next::End(Err(failure));
        }
        self.is_suspended = false;
        self.stop_deadline = None;
        self.app.hint = hint.map(Into::into);
        self.app.resize(tty::size());
        self.reset();
        Next::Continue
    }
}

/// Waits until the next drawing is due and the terminal has shown the last ones; `None` if the terminal is gone. Cancel safe.
async fn ready_to_draw(
    queue: &mpsc::Sender<tty::Output>,
    next_frame: Instant,
) -> Option<mpsc::Permit<'_, tty::Output>> {
    sleep_until(next_frame).await;
    queue.reserve().await.ok()
}

/// Waits for the next event; pending while there is no session. Cancel safe.
async fn next_event(session: &mut Option<Session>) -> Result<Option<Event>, ClientError> {
    match session {
        Some(session) => session.try_next().await,
        None => std::future::pending().await,
    }
}

async fn next_room(joining: &mut Option<Joining>) -> Result<Joined, ClientError> {
    match joining {
        Some(joining) => joining.await,
        None => std::future::pending().await,
    }
}

async fn sleep_until_deadline(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}
