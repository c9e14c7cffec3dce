//! The full-screen terminal interface of `chitchat chat`.

mod app;
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

use std::collections::{HashMap, VecDeque};
use std::io::{self, ErrorKind};
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use ratatui::crossterm::event::{self, Event as TerminalEvent, KeyEventKind, MouseEventKind};
use rustix::process::{Signal, getpid, kill_current_process_group, kill_process};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_stream::StreamExt as _;

use super::answer::is_repeated;
use super::input::spawn_thread;
use crate::client::{
    ClientError, ConnectOptions, Event, JoinOptions, RetryPolicy, SendObserver, ServerAddress, Session,
};
use crate::cmd::Failure;
use crate::cmd::time_zone::TimeZone;
use crate::domain::{Name, RoomName};
use crate::proto::ServerMessage;
use crate::signals::{JobSignal, JobSignals, Signals};
use crate::telemetry::{ClientSpans, SendSpan};
use app::{App, Effect, Target};
use input_history::{HistoryFile, InputHistory};
use lookups::{Answer, Lookups};
use theme::Theme;
use timeline::Older;
use tty::Tty;

/// The shortest time between two drawings.
const FRAME_INTERVAL: Duration = Duration::from_millis(33);

/// How long to wait for the next acknowledgement, and for the end of the stream after a LEAVE.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(5);

/// Capacity of the queue between the keyboard's thread and the loop.
const KEY_QUEUE_LEN: usize = 256;

type Key = Result<TerminalEvent, io::Error>;
type Joining = Pin<Box<dyn Future<Output = Result<Session, ClientError>> + Send>>;

/// How to join rooms.
#[derive(Debug, Clone)]
pub(super) struct Joiner {
    pub(super) server: ServerAddress,
    pub(super) options: ConnectOptions,
    pub(super) retry: RetryPolicy,
}

impl Joiner {
    async fn join(self, target: Target) -> Result<Session, ClientError> {
        let join = JoinOptions::new(target.name.as_str()).room(target.room.as_str());
        Session::join(&self.server, &self.options, self.retry, join).await
    }

    /// Until when the server may answer the next message or the LEAVE.
    fn leave_deadline(&self) -> Instant {
        Instant::now() + self.options.response_timeout.min(LEAVE_TIMEOUT)
    }
}

/// Takes part in rooms until the user leaves. `session` has joined `room` as `name`.
pub(super) async fn run(
    joiner: Joiner,
    session: Session,
    name: Name,
    room: RoomName,
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
        TimeZone::local(),
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
        session,
        tty,
        spans,
        history,
        sent: HashMap::new(),
        joining: None,
        left: JoinSet::new(),
        leave_deadline: None,
        stop_deadline: None,
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
    session: Session,
    tty: Tty,
    lookups: Lookups,
    spans: ClientSpans,
    history: Option<HistoryFile>,
    /// The spans of the messages that are not acknowledged.
    sent: HashMap<String, Arc<SendSpan>>,
    /// The session in the room that the user wants to go to.
    joining: Option<(Target, Joining)>,
    /// The sessions in the rooms that the user has left, which return what was not acknowledged.
    left: JoinSet<Vec<String>>,
    /// Set when the user is leaving.
    leave_deadline: Option<Instant>,
    /// Set when the process is to be stopped: it runs at this time only if the system does not stop it.
    stop_deadline: Option<Instant>,
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
        let result = loop {
            self.send_pending();
            self.run_effects();
            let draws = self.is_dirty && !self.is_suspended;
            let next = tokio::select! {
                key = keys.recv() => {
                    let mut next = self.on_key(key);
                    // A paste is drawn once.
                    while let (Next::Continue, Ok(key)) = (&next, keys.try_recv()) {
                        next = self.on_key(Some(key));
                    }
                    next
                }
                event = self.session.try_next() => self.on_session(event),
                (visit, answer) = self.lookups.next() => {
                    self.on_answer(visit, answer);
                    Next::Continue
                }
                joined = next_session(&mut self.joining) => {
                    self.on_joined(joined);
                    Next::Continue
                }
                Some(unacknowledged) = self.left.join_next() => {
                    for text in unacknowledged.unwrap_or_default() {
                        self.app.note(&format!("not acknowledged in the room that you have left: {text}"));
                    }
                    Next::Continue
                }
                signal = signals.next() => {
                    if self.leave_deadline.is_some() {
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
                        (Ok(_), None) => Next::End(Err(Failure::Io("the terminal is gone".into()))),
                        (Err(failure), _) => Next::End(Err(failure)),
                    }
                }
                () = sleep_until_deadline(self.leave_deadline) => Next::End(self.on_timeout()),
                () = sleep_until_deadline(self.stop_deadline) => self.resume(Some("there is no shell to return to")),
            };
            // Plain lines stay as they are, so that they can be selected.
            self.is_dirty |= !self.app.is_bare;
            if let Next::End(result) = next {
                break result;
            }
        };
        self.tty.leave().await;
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

    fn on_key(&mut self, key: Option<Key>) -> Next {
        match key {
            Some(Ok(TerminalEvent::Key(key))) if key.kind != KeyEventKind::Release => self.app.on_key(key),
            Some(Ok(TerminalEvent::Paste(text))) => self.app.on_paste(&text),
            Some(Ok(TerminalEvent::Mouse(mouse))) => match mouse.kind {
                MouseEventKind::ScrollUp => self.app.on_wheel(true),
                MouseEventKind::ScrollDown => self.app.on_wheel(false),
                _ => {}
            },
            Some(Ok(TerminalEvent::Resize(..))) => {
                self.app.resize(tty::size());
                self.reset();
            }
            Some(Ok(TerminalEvent::FocusGained)) => self.app.on_focus(true),
            Some(Ok(TerminalEvent::FocusLost)) => self.app.on_focus(false),
            Some(Ok(TerminalEvent::Key(_))) => {}
            Some(Err(error)) => {
                return Next::End(Err(Failure::Io(format!(
                    "cannot read from the terminal: {error}"
                ))));
            }
            None => return Next::End(Err(Failure::Io("the terminal is gone".into()))),
        }
        self.run_effects();
        Next::Continue
    }

    fn run_effects(&mut self) {
        let visit = self.app.visit();
        for effect in self.app.take_effects() {
            match effect {
                Effect::Leave => self.leave(),
                Effect::Switch(target) => {
                    let joining = self.joiner.clone().join(target.clone());
                    self.joining = Some((target, Box::pin(joining)));
                }
                Effect::LoadOlder(before) => self.lookups.load_older(visit, &self.app.target.room, before),
                Effect::LoadNewer(after) => self.lookups.load_newer(visit, &self.app.target.room, after),
                Effect::LoadRoster => self.lookups.load_roster(visit, &self.app.target.room),
                Effect::ListRooms => self.lookups.list_rooms(visit),
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
    }

    // The session.

    /// Gives entered texts to the session, as many as it accepts.
    fn send_pending(&mut self) {
        while self.session.has_capacity() {
            let room = self.app.target.room.as_str().to_owned();
            let Some(pending) = self.app.next_unsent() else {
                // A text that is rejected as too fast is sent again, so LEAVE comes after the acknowledgements.
                if self.leave_deadline.is_some() && self.app.pending.is_empty() {
                    self.session.leave();
                }
                return;
            };
            let span = self.spans.start_send(&room, pending.text.len());
            let observer = span.clone().map(|span| span as Arc<dyn SendObserver>);
            // If the session has failed, its stream yields the error.
            let Ok(message_id) = self.session.send_with_observer(pending.text.clone(), observer) else {
                return;
            };
            pending.message_id = Some(message_id.as_str().to_owned());
            if let Some(span) = span {
                self.sent.insert(message_id.as_str().to_owned(), span);
            }
        }
    }

    fn on_session(&mut self, event: Result<Option<Event>, ClientError>) -> Next {
        match event {
            Ok(Some(event)) => {
                if let Event::Message(message) = &event {
                    self.record(message);
                }
                self.app.on_event(event);
                Next::Continue
            }
            Ok(None) => Next::End(self.on_end(Ok(()))),
            Err(error) => Next::End(self.on_end(Err(error))),
        }
    }

    fn record(&mut self, message: &ServerMessage) {
        if let Some(deadline) = &mut self.leave_deadline
            && !message.message_id.is_empty()
        {
            *deadline = self.joiner.leave_deadline();
        }
        if let Some(span) = self.sent.remove(&message.message_id) {
            if message.notice.is_some() && !is_repeated(message) {
                span.record_rejected(&message.message_id);
            } else {
                span.record_acknowledged(message);
            }
        }
        self.spans
            .record_received(message, self.session.lamport_time(), SystemTime::now());
    }

    fn on_joined(&mut self, joined: Result<Session, ClientError>) {
        let Some((target, _)) = self.joining.take() else {
            return;
        };
        match joined {
            Ok(session) => {
                let old = std::mem::replace(&mut self.session, session);
                let pending = self.app.take_pending();
                let (sent, unsent): (Vec<_>, Vec<_>) = pending
                    .into_iter()
                    .partition(|pending| pending.message_id.is_some());
                let sent = sent
                    .into_iter()
                    .filter_map(|pending| Some((pending.message_id?, pending.text)));
                let unsent = unsent.into_iter().map(|pending| pending.text);
                self.left.spawn(leave_room(old, sent.collect(), unsent.collect()));
                self.app.on_joined(target, self.session.welcome());
            }
            Err(error) => self.app.on_join_failed(&error.to_string()),
        }
    }

    fn on_answer(&mut self, visit: u64, answer: Answer) {
        if visit != self.app.visit() {
            return;
        }
        match answer {
            Answer::Older(Ok(page)) => self.app.on_older(&page),
            Answer::Newer(Ok(page)) => self.app.on_newer(&page),
            Answer::Roster(Ok(list)) => self.app.on_roster(list),
            Answer::Rooms(Ok((rooms, are_all))) => self.app.on_rooms(&rooms, are_all),
            // A server of the first version of the protocol has no such calls.
            Answer::Older(Err(ClientError::Unimplemented { .. })) => self.app.timeline.older = Older::Nothing,
            Answer::Roster(Err(ClientError::Unimplemented { .. })) => {}
            Answer::Older(Err(error)) | Answer::Newer(Err(error)) => {
                self.app.on_load_failed(&error.to_string());
            }
            Answer::Roster(Err(error)) => self.app.note(&format!("cannot list the participants: {error}")),
            Answer::Rooms(Err(error)) => self.app.note(&format!("cannot list the rooms: {error}")),
        }
    }

    /// Leaves the room, after what was entered is sent. The second time, ends at once.
    fn leave(&mut self) {
        let is_second = self.leave_deadline.is_some();
        self.leave_deadline = Some(if is_second {
            Instant::now()
        } else {
            self.joiner.leave_deadline()
        });
        self.joining = None;
        self.app.is_leaving = true;
    }

    /// The texts that are neither acknowledged nor rejected.
    fn unacknowledged(&self) -> Option<String> {
        match self.app.pending.len() {
            0 => None,
            1 => Some("your last message was not acknowledged".to_owned()),
            count => Some(format!("your last {count} messages were not acknowledged")),
        }
    }

    /// The result of the command after the session has ended.
    fn on_end(&self, end: Result<(), ClientError>) -> Result<(), Failure> {
        match (end.map_err(Failure::from), self.unacknowledged()) {
            (Ok(()), Some(messages)) => Err(Failure::Unavailable(messages)),
            (Err(Failure::Unavailable(reason)), Some(messages)) => {
                Err(Failure::Unavailable(format!("{reason}; {messages}")))
            }
            (result, _) => result,
        }
    }

    /// The result of the command if the server has not answered in time after a LEAVE.
    fn on_timeout(&self) -> Result<(), Failure> {
        let reason = "the server did not answer in time";
        let messages = self.unacknowledged();
        messages.map_or(Ok(()), |messages| {
            Err(Failure::Unavailable(format!("{reason}; {messages}")))
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
                self.leave();
                Next::Continue
            }
            JobSignal::Stop => {
                self.tty.leave().await;
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

async fn next_session(joining: &mut Option<(Target, Joining)>) -> Result<Session, ClientError> {
    match joining {
        Some((_, joining)) => joining.await,
        None => std::future::pending().await,
    }
}

async fn sleep_until_deadline(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

/// Sends the rest of what was entered in a room, and leaves it. Returns what was not acknowledged in time.
async fn leave_room(
    mut session: Session,
    mut sent: HashMap<String, String>,
    mut unsent: VecDeque<String>,
) -> Vec<String> {
    let leaving = async {
        loop {
            while session.has_capacity()
                && let Some(text) = unsent.front()
                && let Ok(message_id) = session.send(text.clone())
            {
                sent.insert(
                    message_id.as_str().to_owned(),
                    unsent.pop_front().unwrap_or_default(),
                );
            }
            if unsent.is_empty() {
                session.leave();
            }
            match session.try_next().await {
                Ok(Some(Event::Message(message))) if message.notice.is_none() || is_repeated(&message) => {
                    sent.remove(&message.message_id);
                }
                Ok(Some(_)) => {}
                Ok(None) | Err(_) => return,
            }
        }
    };
    timeout(LEAVE_TIMEOUT, leaving).await.ok();
    sent.into_values().chain(unsent).collect()
}
