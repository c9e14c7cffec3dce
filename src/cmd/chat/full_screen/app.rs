//! The state of the full screen. It does no I/O and reads no clock: what it needs is an [`Effect`].

use std::collections::VecDeque;

use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};
use ratatui::layout::Rect;

use super::input_history::InputHistory;
use super::line_editor::{LineEditor, MAX_INPUT_BYTES};
use super::roster::Roster;
use super::slash_command::{COMMANDS, SlashCommand, parse};
use super::text::{sanitize, sanitize_name};
use super::theme::Theme;
use super::timeline::{Entry, Key, Older, Timeline, TimelineLimits};
use super::viewport::{Position, Viewport};
use crate::client::{Event, Gap};
use crate::cmd::answer::is_repeated;
use crate::cmd::message_format::TimeColumns;
use crate::domain::{Name, RoomName};
use crate::proto::{
    EventType, GetHistoryResponse, ListParticipantsResponse, RoomSummary, ServerMessage, Welcome,
};

/// Limits for what was entered and is not acknowledged yet. Beyond them, Enter begins a new line.
const MAX_PENDING: usize = 5_000;
const MAX_PENDING_BYTES: usize = 4 * 1024 * 1024;

/// How many rooms can be entered ahead. Beyond that, Enter begins a new line, too.
const MAX_SWITCHING: usize = 16;

/// How many pages a search loads before it asks whether to go on.
const SEARCH_PAGES: usize = 25;

/// How many rows the mouse wheel scrolls.
const WHEEL_ROWS: usize = 3;

/// From this width on, the participants are listed at the side.
const SIDEBAR_FROM: u16 = 72;
const SIDEBAR_COLUMNS: u16 = 18;

const KEYS: [&str; 6] = [
    "Enter sends, Alt-Enter begins a new line, Tab completes names and commands",
    "Up and Down: earlier inputs; Ctrl-A/E/U/K/W/Y, Alt-B/F edit as in a shell",
    "PgUp, PgDn, mouse wheel: scroll; Home, End: to the start and the end while the input is empty",
    "F2: plain lines without the mouse, to select and copy",
    "Ctrl-C: clears the input, then leaves; Ctrl-D leaves; Ctrl-Z suspends; Ctrl-L draws again",
    "//text sends /text",
];

/// What the loop has to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Effect {
    Leave,
    Switch(Target),
    /// Load the page of events before this sequence number.
    LoadOlder(u64),
    /// Load the page of events after this sequence number.
    LoadNewer(u64),
    LoadRoster,
    ListRooms,
    /// Append this to the file with the input history.
    Remember(String),
    Suspend,
    Redraw,
    /// Show plain lines.
    ShowBare,
    LeaveBare,
}

/// A name and a room to join.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Target {
    pub(super) name: Name,
    pub(super) room: RoomName,
}

impl Target {
    /// What the user reads if the room cannot be joined.
    pub(super) fn join_failure(&self, error: &str) -> String {
        let room = sanitize_name(self.room.as_str());
        format!("cannot join {room} as {}: {error}", self.name)
    }
}

/// A text that was entered and is neither acknowledged nor rejected.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Pending {
    pub(super) text: String,
    /// `None` until it is given to the session.
    pub(super) message_id: Option<String>,
    room_generation: u64,
}

#[derive(Debug)]
struct Search {
    /// In lower case.
    needle: String,
    at: Option<Key>,
    /// How many more pages may be loaded; `None` if no page is being waited for.
    pages: Option<usize>,
}

#[derive(Debug)]
struct Completion {
    start: usize,
    candidates: Vec<String>,
    next: usize,
}

/// The parts of the screen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Areas {
    pub(super) timeline: Rect,
    pub(super) sidebar: Option<Rect>,
    pub(super) status: Rect,
    pub(super) input: Rect,
}

pub(super) struct App {
    pub(super) theme: Theme,
    times: TimeColumns,
    limits: TimelineLimits,
    pub(super) target: Target,
    pub(super) timeline: Timeline,
    /// The epoch of the log that the timeline shows the end of; `None` until its first event.
    epoch: Option<u64>,
    pub(super) roster: Roster,
    pub(super) editor: LineEditor,
    inputs: InputHistory,
    pub(super) pending: VecDeque<Pending>,
    pending_bytes: usize,
    /// The number of texts that were not acknowledged while the user was leaving, who may not have seen that.
    lost: usize,
    /// Counts the rooms that were entered, to tell late answers that concern an earlier one.
    room_generation: u64,
    /// Where to go, in this order. The first room is being joined.
    switching: VecDeque<Target>,
    /// The key of the first note since then.
    switching_since: Key,
    /// The longest text that the server accepts, in characters.
    max_chars: Option<usize>,
    pub(super) lamport_time: i64,
    /// Why there is no connection.
    pub(super) reconnecting: Option<String>,
    pub(super) is_leaving: bool,
    is_focused: bool,
    /// `None` at the end of the timeline, which then follows what is broadcast.
    scroll: Option<Position>,
    /// The sequence number of the first event that the user has not seen, and whether it was on the screen since.
    unread: Option<u64>,
    unread_was_seen: bool,
    /// The number of messages since the user has scrolled up.
    pub(super) new_below: usize,
    search: Option<Search>,
    completion: Option<Completion>,
    /// Shown until the next key.
    pub(super) hint: Option<String>,
    /// Whether Ctrl-C leaves.
    asked_to_leave: bool,
    pub(super) is_bare: bool,
    size: (u16, u16),
    effects: Vec<Effect>,
}

impl App {
    pub(super) fn new(target: Target, theme: Theme, times: TimeColumns, inputs: InputHistory) -> Self {
        let limits = TimelineLimits::default();
        Self {
            theme,
            times,
            limits,
            target,
            timeline: Timeline::new(0, limits),
            epoch: None,
            roster: Roster::default(),
            editor: LineEditor::default(),
            inputs,
            pending: VecDeque::new(),
            pending_bytes: 0,
            lost: 0,
            room_generation: 0,
            switching: VecDeque::new(),
            switching_since: 0,
            max_chars: None,
            lamport_time: 0,
            reconnecting: None,
            is_leaving: false,
            is_focused: true,
            scroll: None,
            unread: None,
            unread_was_seen: false,
            new_below: 0,
            search: None,
            completion: None,
            hint: None,
            asked_to_leave: false,
            is_bare: false,
            size: (80, 24),
            effects: Vec::new(),
        }
    }

    pub(super) fn take_effects(&mut self) -> Vec<Effect> {
        std::mem::take(&mut self.effects)
    }

    pub(super) const fn room_generation(&self) -> u64 {
        self.room_generation
    }

    pub(super) fn is_switching(&self) -> bool {
        !self.switching.is_empty()
    }

    // The screen.

    /// `size` is the number of columns and rows.
    pub(super) const fn resize(&mut self, size: (u16, u16)) {
        self.size = size;
    }

    pub(super) const fn size(&self) -> (u16, u16) {
        self.size
    }

    pub(super) fn areas(&self) -> Areas {
        let (columns, rows) = self.size;
        let (input, _) = self.editor.rows(self.input_columns());
        let input_rows = u16::try_from(input.len())
            .unwrap_or(u16::MAX)
            .min((rows / 3).max(1));
        let status_rows = u16::from(rows >= 3);
        let timeline_rows = rows.saturating_sub(input_rows + status_rows);
        let sidebar_columns = if columns >= SIDEBAR_FROM {
            SIDEBAR_COLUMNS
        } else {
            0
        };
        let timeline_columns = columns - sidebar_columns;
        Areas {
            timeline: Rect::new(0, 0, timeline_columns, timeline_rows),
            sidebar: (sidebar_columns > 0)
                .then(|| Rect::new(timeline_columns, 0, sidebar_columns, timeline_rows)),
            status: Rect::new(0, timeline_rows, columns, status_rows),
            input: Rect::new(0, timeline_rows + status_rows, columns, input_rows),
        }
    }

    /// The columns for the input, after the prompt.
    pub(super) fn input_columns(&self) -> usize {
        usize::from(self.size.0).saturating_sub(2)
    }

    pub(super) fn viewport(&self) -> Viewport<'_> {
        let area = self.areas().timeline;
        Viewport {
            timeline: &self.timeline,
            unread: self.unread,
            needle: self.search.as_ref().map(|search| search.needle.as_str()),
            theme: self.theme,
            times: &self.times,
            columns: usize::from(area.width),
            rows: usize::from(area.height),
        }
    }

    /// Where the user is in the timeline; `None` at its end. What is no longer in memory moves up to the start.
    pub(super) fn scroll(&self) -> Option<Position> {
        let position = self.scroll?;
        match self.timeline.keys() {
            Some((first, _)) if position.key < first => self.viewport().up(Some(position), 0),
            _ => Some(position),
        }
    }

    /// Called when these entries were shown.
    pub(super) fn on_drawn(&mut self, keys: Option<(Key, Key)>) {
        if self.is_focused
            && let (Some(unread), Some((first, last))) = (self.unread, keys)
            && (first..=last).any(|key| {
                self.timeline
                    .get(key)
                    .is_some_and(|entry| entry.sequence == unread)
            })
        {
            self.unread_was_seen = true;
        }
    }

    pub(super) const fn on_focus(&mut self, is_focused: bool) {
        self.is_focused = is_focused;
    }

    // The room.

    /// Called when the room of `target` is joined.
    pub(super) fn on_joined(&mut self, target: Target, welcome: Option<&Welcome>) {
        self.room_generation += u64::from(self.switching.pop_front().is_some());
        self.target = target;
        let newest = welcome.map_or(0, |welcome| welcome.sequence);
        let notes = self.timeline.take_notes(self.switching_since);
        self.timeline = Timeline::new(newest, self.limits);
        self.epoch = welcome.map(|welcome| welcome.epoch);
        self.switching_since = 0;
        for note in notes {
            self.timeline.push(note);
        }
        self.roster = Roster::default();
        self.max_chars = welcome
            .and_then(|welcome| welcome.limits.as_ref())
            .and_then(|limits| usize::try_from(limits.max_message_chars).ok())
            .filter(|chars| *chars > 0);
        self.scroll = None;
        self.unread = None;
        self.new_below = 0;
        self.search = None;
        self.reconnecting = None;
        if welcome.is_some() {
            self.load_older();
            self.effects.push(Effect::LoadRoster);
        } else {
            self.timeline.older = Older::Nothing;
        }
        self.join_next();
    }

    /// Called when the next room cannot be joined.
    pub(super) fn on_join_failed(&mut self, error: &str) {
        if let Some(target) = self.switching.pop_front() {
            self.note(&target.join_failure(error));
            // They were meant for that room and no other.
            for pending in self.take_entered_in(self.room_generation + 1) {
                self.note_lost(&format!("not sent: {}", pending.text));
            }
            self.skip_generation();
            self.join_next();
        }
    }

    /// What was entered for the next room is for the current one, and so on.
    fn skip_generation(&mut self) {
        for pending in &mut self.pending {
            pending.room_generation -= u64::from(pending.room_generation > self.room_generation);
        }
    }

    /// Joins the next room that the user wants to go to, if any. Someone who leaves goes there only to say something.
    fn join_next(&mut self) {
        while self.switching.front() == Some(&self.target) {
            self.switching.pop_front();
            self.skip_generation();
        }
        if let Some(target) = self.switching.front()
            && (!self.is_leaving || self.has_input_for_next_room())
        {
            self.effects.push(Effect::Switch(target.clone()));
        }
    }

    /// Called with the texts that were not acknowledged in a room that the user has left.
    pub(super) fn on_left(&mut self, texts: &[String]) {
        for text in texts {
            self.note_lost(&format!(
                "not acknowledged in the room that you have left: {text}"
            ));
        }
    }

    fn note_lost(&mut self, text: &str) {
        self.lost += usize::from(self.is_leaving);
        self.note(text);
    }

    /// The number of texts that are neither acknowledged nor known to the user as lost.
    pub(super) fn unacknowledged(&self) -> usize {
        self.pending.len() + self.lost
    }

    /// Whether something was entered for a room that is not joined yet.
    pub(super) fn has_input_for_next_room(&self) -> bool {
        self.pending
            .iter()
            .any(|pending| pending.room_generation > self.room_generation)
    }

    /// Removes what was entered in the current room, which is being left.
    pub(super) fn take_pending(&mut self) -> Vec<Pending> {
        self.take_entered_in(self.room_generation)
    }

    fn take_entered_in(&mut self, generation: u64) -> Vec<Pending> {
        let (taken, kept): (Vec<_>, Vec<_>) = std::mem::take(&mut self.pending)
            .into_iter()
            .partition(|pending| pending.room_generation == generation);
        self.pending = kept.into();
        self.pending_bytes -= taken.iter().map(|pending| pending.text.len()).sum::<usize>();
        taken
    }

    pub(super) fn on_event(&mut self, event: Event) {
        match event {
            Event::Message(message) => self.on_message(&message),
            Event::Reconnecting { cause, .. } => {
                self.reconnecting = Some(sanitize(&cause.to_string()).replace('\n', " "));
            }
            Event::Resumed { .. } => {
                self.reconnecting = None;
                self.roster.expect_reload();
                self.effects.push(Effect::LoadRoster);
            }
            Event::Gap(gap) => self.on_gap(gap),
        }
    }

    fn on_gap(&mut self, gap: Gap) {
        let lost_from = match gap {
            Gap::Truncated { first, .. } => {
                self.timeline.on_truncated(first);
                Some(first)
            }
            Gap::NewEpoch { after, .. } => {
                self.timeline.on_replaced(after);
                self.epoch = None;
                Some(0)
            }
            Gap::Expired { .. } | Gap::Unknown => None,
        };
        // The number would be that of another event.
        self.unread = self
            .unread
            .filter(|unread| lost_from.is_none_or(|first| *unread < first));
        self.note(&gap.to_string());
    }

    fn on_message(&mut self, message: &ServerMessage) {
        self.lamport_time = self.lamport_time.max(message.timestamp);
        let answered = self.take_answered(&message.message_id);
        if message.notice.is_some() {
            match answered {
                _ if is_repeated(message) => {}
                Some(text) => self.note_lost(&format!("{}\nnot sent: {text}", message.msg_stream)),
                None => self.note(&message.msg_stream),
            }
            return;
        }
        if message.sequence > 0 {
            self.epoch = Some(message.epoch);
        }
        self.roster.on_event(message);
        let entry = self.entry(message);
        let is_others_message = message.r#type() == EventType::Message && answered.is_none();
        let is_away = !self.is_focused || self.scroll.is_some();
        if is_others_message && is_away {
            self.new_below += usize::from(self.scroll.is_some());
            if self.unread.is_none() || self.unread_was_seen {
                self.unread = Some(message.sequence).filter(|sequence| *sequence > 0);
                self.unread_was_seen = false;
            }
        }
        self.timeline.push_event(entry);
    }

    fn take_answered(&mut self, message_id: &str) -> Option<String> {
        let is_answered = |pending: &Pending| pending.message_id.as_deref() == Some(message_id);
        let index = self.pending.iter().position(is_answered)?;
        let pending = self.pending.remove(index)?;
        self.pending_bytes -= pending.text.len();
        Some(pending.text)
    }

    /// The first text that is to be given to the session of the current room.
    pub(super) fn next_unsent(&mut self) -> Option<&mut Pending> {
        let generation = self.room_generation;
        let is_unsent =
            |pending: &&mut Pending| pending.message_id.is_none() && pending.room_generation == generation;
        self.pending.iter_mut().find(is_unsent)
    }

    pub(super) fn on_older(&mut self, before: u64, page: &GetHistoryResponse) {
        let Some(entries) = self.entries(page) else {
            return self.on_load_failed("the room's log was replaced");
        };
        self.timeline.push_older(before, entries, page.first_sequence);
        if self.scroll.is_none() && self.timeline.is_detached() {
            // Without that place, what is broadcast would be neither shown nor counted.
            self.scroll = self.last_place();
        }
        self.resume_search();
    }

    pub(super) fn on_newer(&mut self, after: u64, page: &GetHistoryResponse) {
        let Some(entries) = self.entries(page) else {
            return self.on_load_failed("the room's log was replaced");
        };
        self.timeline.push_newer(after, entries);
    }

    /// The events of a page; `None` if it is of another log than the timeline.
    fn entries(&self, page: &GetHistoryResponse) -> Option<Vec<Entry>> {
        let entries = page.messages.iter().map(|event| self.entry(event));
        (self.epoch == Some(page.epoch)).then(|| entries.collect())
    }

    fn entry(&self, event: &ServerMessage) -> Entry {
        let zone = self.times.wall_clock.as_ref().map(|(zone, _)| zone);
        Entry::from_event(event, self.target.name.as_str(), zone)
    }

    pub(super) fn on_load_failed(&mut self, error: &str) {
        self.timeline.abort_loading();
        if let Some(search) = &mut self.search {
            search.pages = None;
        }
        self.hint = Some(format!(
            "cannot load messages: {}",
            sanitize(error).replace('\n', " ")
        ));
    }

    pub(super) fn on_roster(&mut self, list: ListParticipantsResponse) {
        self.roster.load(list.participants, list.sequence);
    }

    pub(super) fn on_rooms(&mut self, rooms: &[RoomSummary], are_all: bool) {
        for room in rooms {
            let RoomSummary {
                room,
                participants,
                last_sequence,
                ..
            } = room;
            let room = sanitize_name(room);
            self.note(&format!("{room}: {participants} here, {last_sequence} events"));
        }
        if !are_all {
            self.note("and more: see chitchat rooms");
        }
    }

    /// Shows a line to this user only.
    pub(super) fn note(&mut self, text: &str) {
        self.timeline.push(Entry::note(text));
    }

    // Scrolling.

    /// How many rows PgUp and PgDn scroll.
    fn page(&self) -> usize {
        usize::from(self.areas().timeline.height).saturating_sub(1).max(1)
    }

    fn load_older(&mut self) {
        if self.timeline.older == Older::Available {
            self.timeline.older = Older::Loading;
            self.effects.push(Effect::LoadOlder(self.timeline.oldest()));
        }
    }

    fn scroll_up(&mut self, rows: usize) {
        let viewport = self.viewport();
        let scroll = viewport.up(self.scroll(), rows);
        let reaches_start = viewport.visible(scroll).reaches_start;
        self.scroll = scroll;
        if reaches_start {
            self.load_older();
        }
    }

    fn scroll_down(&mut self, rows: usize) {
        let Some(from) = self.scroll() else {
            return;
        };
        match self.viewport().down(from, rows) {
            Some(position) => self.scroll = Some(position),
            None if self.timeline.is_detached() => {
                self.scroll = self.last_place();
                if self.timeline.start_loading_newer() {
                    self.effects.push(Effect::LoadNewer(self.timeline.newest()));
                }
            }
            None => self.follow(),
        }
    }

    fn last_place(&self) -> Option<Position> {
        self.timeline.keys().map(|(_, key)| Position { key, hidden: 0 })
    }

    /// Returns to the end of the timeline.
    fn follow(&mut self) {
        self.scroll = None;
        self.new_below = 0;
        if self.timeline.is_detached() {
            self.timeline.clear();
            if let Some(search) = &mut self.search {
                search.at = None;
            }
            self.load_older();
        }
    }

    pub(super) fn on_wheel(&mut self, is_up: bool) {
        if is_up {
            self.scroll_up(WHEEL_ROWS);
        } else {
            self.scroll_down(WHEEL_ROWS);
        }
    }

    // Search.

    fn search(&mut self, needle: &str) {
        self.search = Some(Search {
            needle: needle.to_lowercase(),
            at: None,
            pages: None,
        });
        self.search_older(SEARCH_PAGES);
    }

    /// Continues a search that waits for the page that has just been loaded.
    fn resume_search(&mut self) {
        if let Some(pages) = self.search.as_mut().and_then(|search| search.pages.take()) {
            self.search_older(pages);
        }
    }

    fn search_older(&mut self, pages: usize) {
        let Some(search) = &self.search else {
            return;
        };
        let keys = self.timeline.keys();
        let found = keys.and_then(|(first, last)| {
            let mut older = (first..search.at.unwrap_or(last + 1)).rev();
            older.find(|key| self.is_hit(*key, &search.needle))
        });
        if found.is_some() {
            self.show_hit(found);
        } else if self.timeline.older == Older::Nothing {
            self.hint = Some("no older place; Esc ends the search".into());
        } else if pages == 0 {
            self.hint = Some("not found yet; Ctrl-R searches further back".into());
        } else {
            if let Some(search) = &mut self.search {
                search.pages = Some(pages - 1);
                // What is loaded need not be looked at again.
                search.at = keys.map(|(first, _)| first);
            }
            self.hint = Some("searching…".into());
            self.load_older();
        }
    }

    fn search_newer(&mut self) {
        let Some(search) = &self.search else {
            return;
        };
        let found = self.timeline.keys().and_then(|(first, last)| {
            let from = search.at.map_or(last + 1, |at| at + 1).max(first);
            (from..=last).find(|key| self.is_hit(*key, &search.needle))
        });
        if found.is_some() {
            self.show_hit(found);
        } else {
            self.hint = Some("no newer place; Esc ends the search".into());
        }
    }

    fn is_hit(&self, key: Key, needle: &str) -> bool {
        let entry = self.timeline.get(key);
        entry.is_some_and(|entry| !entry.is_note() && entry.searchable().contains(needle))
    }

    fn show_hit(&mut self, hit: Option<Key>) {
        if let Some(search) = &mut self.search {
            search.at = hit;
        }
        self.hint = Some("Ctrl-R: older, Ctrl-S: newer, Esc: end of the search".into());
        self.scroll = hit.and_then(|key| self.viewport().centered(key));
        // At the start of the log, the hit is higher than the middle.
        self.scroll = self
            .scroll
            .and_then(|position| self.viewport().up(Some(position), 0));
    }

    // Input.

    pub(super) fn on_paste(&mut self, text: &str) {
        self.begin_key();
        self.completion = None;
        let text: String = text
            .replace("\r\n", "\n")
            .replace('\r', "\n")
            .chars()
            .filter(|c| !c.is_control() || matches!(c, '\n' | '\t'))
            .collect();
        self.insert(&text);
    }

    fn insert(&mut self, text: &str) {
        if !self.editor.insert(text) {
            self.hint = Some(format!("the input has at most {MAX_INPUT_BYTES} bytes"));
        }
    }

    /// What every key does.
    fn begin_key(&mut self) {
        self.hint = None;
        if std::mem::take(&mut self.is_bare) {
            self.effects.push(Effect::LeaveBare);
        }
    }

    pub(super) fn on_key(&mut self, key: KeyEvent) {
        let control = key.modifiers.contains(KeyModifiers::CONTROL);
        let alt = key.modifiers.contains(KeyModifiers::ALT);
        let was_asked = std::mem::take(&mut self.asked_to_leave);
        let completion = self.completion.take();
        if self.is_bare {
            match key.code {
                KeyCode::PageUp => self.scroll_up(self.page()),
                KeyCode::PageDown => self.scroll_down(self.page()),
                KeyCode::F(2) | KeyCode::Esc => return self.begin_key(),
                _ => {}
            }
            if matches!(key.code, KeyCode::PageUp | KeyCode::PageDown) {
                return self.effects.push(Effect::ShowBare);
            }
        }
        self.begin_key();
        match key.code {
            KeyCode::Char(c) if control => match c {
                'c' => self.on_interrupt(was_asked),
                'd' if self.editor.is_empty() => self.leave(),
                'd' => self.editor.delete(),
                'a' => self.editor.home(),
                'e' => self.editor.end(),
                'b' => self.editor.left(),
                'f' => self.editor.right(),
                'h' => self.editor.backspace(),
                'k' => self.editor.kill_to_end(),
                'u' => self.editor.kill_to_start(),
                'w' => self.editor.kill_word(),
                'y' => self.editor.yank(),
                'p' => self.show_input(true),
                'n' => self.show_input(false),
                'l' => self.effects.push(Effect::Redraw),
                'z' => self.effects.push(Effect::Suspend),
                'r' => self.search_older(SEARCH_PAGES),
                's' => self.search_newer(),
                // A line feed: what was typed ahead or pasted can end lines with it.
                'j' => self.submit(),
                _ => {}
            },
            KeyCode::Char('b') if alt => self.editor.word_left(),
            KeyCode::Char('f') if alt => self.editor.word_right(),
            KeyCode::Char(c) => self.insert(c.encode_utf8(&mut [0; 4])),
            KeyCode::Enter if alt || key.modifiers.contains(KeyModifiers::SHIFT) => self.insert("\n"),
            KeyCode::Enter => self.submit(),
            KeyCode::Tab => self.complete(completion),
            KeyCode::Backspace if alt => self.editor.kill_word(),
            KeyCode::Backspace => self.editor.backspace(),
            KeyCode::Delete => self.editor.delete(),
            KeyCode::Left if control || alt => self.editor.word_left(),
            KeyCode::Right if control || alt => self.editor.word_right(),
            KeyCode::Left => self.editor.left(),
            KeyCode::Right => self.editor.right(),
            KeyCode::Up if self.editor.up() => {}
            KeyCode::Down if self.editor.down() => {}
            KeyCode::Up => self.show_input(true),
            KeyCode::Down => self.show_input(false),
            KeyCode::PageUp => self.scroll_up(self.page()),
            KeyCode::PageDown => self.scroll_down(self.page()),
            KeyCode::Home if control || self.editor.is_empty() => self.scroll_up(usize::MAX / 2),
            KeyCode::End if control || self.editor.is_empty() => self.follow(),
            KeyCode::Home => self.editor.home(),
            KeyCode::End => self.editor.end(),
            KeyCode::F(2) => self.show_bare(),
            KeyCode::Esc if self.search.take().is_some() => self.follow(),
            _ => {}
        }
    }

    fn show_input(&mut self, is_older: bool) {
        let shown = if is_older {
            self.inputs.older(self.editor.text())
        } else {
            self.inputs.newer()
        };
        if let Some(input) = shown {
            self.editor.set(input);
        }
    }

    fn show_bare(&mut self) {
        self.is_bare = true;
        self.effects.push(Effect::ShowBare);
    }

    fn on_interrupt(&mut self, was_asked: bool) {
        if !self.editor.is_empty() {
            self.editor.kill_all();
        } else if was_asked {
            self.leave();
        } else {
            self.asked_to_leave = true;
            self.hint = Some("Ctrl-C again leaves".into());
        }
    }

    /// Leaves the room and ends.
    pub(super) fn leave(&mut self) {
        self.effects.push(Effect::Leave);
    }

    fn complete(&mut self, completion: Option<Completion>) {
        let mut completion = completion.unwrap_or_else(|| {
            let before = self.editor.before_cursor();
            let start = before.rfind(char::is_whitespace).map_or(0, |at| at + 1);
            let start = (start..=before.len())
                .find(|at| before.is_char_boundary(*at))
                .unwrap_or(0);
            let word = &before[start..];
            let candidates = if start == 0 && word.starts_with('/') {
                let commands = COMMANDS.iter().filter(|(name, ..)| name.starts_with(word));
                commands.map(|(name, ..)| format!("{name} ")).collect()
            } else if word.is_empty() {
                Vec::new()
            } else {
                let end = if start == 0 { ": " } else { " " };
                let names = self.roster.complete(word, self.target.name.as_str());
                names.into_iter().map(|name| format!("{name}{end}")).collect()
            };
            Completion {
                start,
                candidates,
                next: 0,
            }
        });
        if let Some(candidate) = completion.candidates.get(completion.next) {
            self.editor.replace_from(completion.start, candidate);
            completion.next = (completion.next + 1) % completion.candidates.len();
            if completion.candidates.len() > 1 {
                let names: Vec<&str> = completion.candidates.iter().map(|name| name.trim_end()).collect();
                self.hint = Some(names.join(" "));
            }
            self.completion = Some(completion);
        }
    }

    /// Obeys the input.
    fn submit(&mut self) {
        if self.editor.text().trim().is_empty() {
            // An empty text is not sent.
            self.editor.take();
            return;
        }
        let is_full = self.pending.len() >= MAX_PENDING || self.pending_bytes >= MAX_PENDING_BYTES;
        if is_full || self.switching.len() >= MAX_SWITCHING {
            self.insert("\n");
            self.hint = Some("too much is not sent or acknowledged yet; your input is kept here".into());
            return;
        }
        let input = self.editor.take();
        if self.inputs.push(input.trim()) {
            self.effects.push(Effect::Remember(input.trim().to_owned()));
        }
        match parse(&input) {
            Ok(command) => self.obey(command),
            Err(error) => self.note(&error),
        }
    }

    fn obey(&mut self, command: SlashCommand) {
        match command {
            SlashCommand::Say(text) => self.say(&text),
            SlashCommand::Help => {
                for (name, argument, description) in COMMANDS {
                    self.note(&format!("{:<13} {description}", format!("{name} {argument}")));
                }
                for keys in KEYS {
                    self.note(keys);
                }
            }
            SlashCommand::Who => {
                let names = self.roster.names().join(", ");
                self.note(&format!("{} here: {names}", self.roster.len()));
            }
            SlashCommand::Rooms => self.effects.push(Effect::ListRooms),
            SlashCommand::Join(room) => self.switch(Target {
                room,
                ..self.destination().clone()
            }),
            SlashCommand::Name(name) => self.switch(Target {
                name,
                ..self.destination().clone()
            }),
            SlashCommand::Search(needle) => self.search(&needle),
            SlashCommand::Clear => {
                self.timeline.clear();
                self.scroll = None;
                self.new_below = 0;
                self.unread = None;
                self.search = None;
            }
            SlashCommand::Bare => self.show_bare(),
            SlashCommand::Leave => self.leave(),
        }
        // What the user has entered is at the end.
        if self.search.is_none() && self.scroll.is_some() {
            self.follow();
        }
    }

    fn switch(&mut self, target: Target) {
        if self.is_leaving {
            self.note("you are leaving");
        } else if target == *self.destination() {
            self.note("you are there already");
        } else {
            self.switching.push_back(target);
            if self.switching.len() == 1 {
                self.switching_since = self.timeline.keys().map_or(0, |(_, last)| last + 1);
                self.join_next();
            }
        }
    }

    /// Where the user is when all rooms are joined.
    fn destination(&self) -> &Target {
        self.switching.back().unwrap_or(&self.target)
    }

    fn say(&mut self, text: &str) {
        if self.is_leaving {
            return self.note(&format!("not sent, because you are leaving: {text}"));
        }
        // The lines that are entered after a /join are for that room.
        let generation = self.room_generation + u64::try_from(self.switching.len()).unwrap_or(0);
        for part in split(text, self.max_chars.unwrap_or(usize::MAX)) {
            self.pending_bytes += part.len();
            self.pending.push_back(Pending {
                text: part,
                message_id: None,
                room_generation: generation,
            });
        }
        // Whoever answers has read.
        if self.unread_was_seen {
            self.unread = None;
        }
        // The answer will be at the end.
        if self.timeline.is_detached() {
            self.follow();
        }
    }
}

/// Splits a text of several lines into texts of at most `max_chars` characters. A line that is longer remains whole.
fn split(text: &str, max_chars: usize) -> Vec<String> {
    let mut parts: Vec<(String, usize)> = Vec::new();
    for line in text.lines().map(str::trim_end) {
        let chars = line.chars().count();
        match parts.last_mut() {
            Some((part, used)) if *used + 1 + chars <= max_chars => {
                part.push('\n');
                part.push_str(line);
                *used += 1 + chars;
            }
            _ => parts.push((line.to_owned(), chars)),
        }
    }
    let parts = parts.into_iter().map(|(part, _)| part.trim().to_owned());
    parts.filter(|part| !part.is_empty()).collect()
}

#[cfg(test)]
#[path = "app_tests.rs"]
mod tests;
