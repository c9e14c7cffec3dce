//! What the user sees of a room, oldest first.

use std::collections::VecDeque;

use jiff::civil::DateTime;

use super::text::{sanitize, sanitize_name};
use crate::client::sender_label;
use crate::cmd::time_zone::TimeZone;
use crate::proto::{EventType, ServerMessage};

/// A longer run of joins and leaves is shown as one line.
const MAX_UNFOLDED: usize = 3;

/// The prefix of a text that says what its sender does, as in XEP-0245.
pub(super) const ACTION: &str = "/me ";

/// The identity of an entry in a timeline. Keys are consecutive, and an entry keeps its key.
pub(super) type Key = i64;

/// An entry of the timeline. Its strings are safe to show.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    /// The position in the room's log; 0 for what only this user sees, and for events that are no longer part of the log.
    pub(super) sequence: u64,
    pub(super) lamport_time: i64,
    /// When the event was broadcast, in the time zone of the user; `None` if that is unknown or not shown.
    pub(super) at: Option<DateTime>,
    pub(super) kind: Kind,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Kind {
    Message {
        sender: String,
        /// One line or more.
        text: String,
        is_own: bool,
        /// Whether somebody else's text contains the user's name.
        is_mention: bool,
    },
    Presence {
        name: String,
        has_joined: bool,
        text: String,
    },
    /// What the client or the server tells this user alone.
    Note(String),
}

impl Entry {
    pub(super) fn note(text: &str) -> Self {
        Self {
            sequence: 0,
            lamport_time: 0,
            at: None,
            kind: Kind::Note(sanitize(text)),
        }
    }

    /// The entry of an event, as the user with the name `me` sees it.
    pub(super) fn from_event(event: &ServerMessage, me: &str, zone: Option<&TimeZone>) -> Self {
        let kind = match event.r#type() {
            EventType::Message => {
                let text = sanitize(&event.msg_stream);
                let is_own = event.sender_name == me;
                Kind::Message {
                    sender: sender_label(event),
                    is_own,
                    is_mention: !is_own && mentions(&text, me),
                    text,
                }
            }
            kind => {
                let name = sanitize_name(&event.sender_name);
                let verb = if kind == EventType::Join { "joined" } else { "left" };
                let usual = format!(
                    "Participant {} {verb} Chit Chat at logical time L={}",
                    event.sender_name, event.timestamp
                );
                let text = if event.msg_stream == usual {
                    format!("{name} {verb}")
                } else {
                    escape_line(&event.msg_stream)
                };
                Kind::Presence {
                    name,
                    has_joined: kind == EventType::Join,
                    text,
                }
            }
        };
        Self {
            sequence: event.sequence,
            lamport_time: event.timestamp,
            at: event
                .broadcast_time
                .as_ref()
                .and_then(|time| zone?.date_time(time)),
            kind,
        }
    }

    /// What a search looks at.
    pub(super) fn searchable(&self) -> String {
        match &self.kind {
            Kind::Message { sender, text, .. } => format!("{sender}: {text}").to_lowercase(),
            Kind::Presence { text, .. } | Kind::Note(text) => text.to_lowercase(),
        }
    }

    pub(super) const fn is_note(&self) -> bool {
        matches!(self.kind, Kind::Note(_))
    }

    const fn is_presence(&self) -> bool {
        matches!(self.kind, Kind::Presence { .. })
    }

    fn bytes(&self) -> usize {
        let strings = match &self.kind {
            Kind::Message { sender, text, .. } => sender.len() + text.len(),
            Kind::Presence { name, text, .. } => name.len() + text.len(),
            Kind::Note(text) => text.len(),
        };
        size_of::<Self>() + strings
    }
}

fn escape_line(raw: &str) -> String {
    sanitize(raw).replace('\n', " ")
}

/// Whether `text` contains `name` as a word.
fn mentions(text: &str, name: &str) -> bool {
    let (text, name) = (text.to_lowercase(), name.to_lowercase());
    let is_word = |c: Option<char>| c.is_some_and(char::is_alphanumeric);
    !name.is_empty()
        && text.match_indices(&name).any(|(at, found)| {
            !is_word(text[..at].chars().next_back()) && !is_word(text[at + found.len()..].chars().next())
        })
}

/// Entries that are shown together: a single one, or a run of joins and leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Block {
    pub(super) first: Key,
    pub(super) last: Key,
}

/// What can be loaded before the oldest entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Older {
    Available,
    Loading,
    /// The room's log begins here, or what was before is no longer retained.
    Nothing,
}

/// A section of a room's log, with notes in between.
///
/// It is usually the end of the log. If the user reads far back, so that not everything fits, the newest entries are dropped:
/// the section is detached from the end, and what is broadcast is not added until the user has returned.
#[derive(Debug)]
pub(super) struct Timeline {
    entries: VecDeque<Entry>,
    first_key: Key,
    bytes: usize,
    limits: TimelineLimits,
    /// The sequence number from which on everything that was loaded is in the section.
    oldest: u64,
    /// The sequence number of the newest event of the section.
    newest: u64,
    /// The sequence number of the newest event that was broadcast to the user.
    newest_in_room: u64,
    pub(super) older: Older,
    is_loading_newer: bool,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct TimelineLimits {
    pub(super) entries: usize,
    pub(super) bytes: usize,
}

impl Default for TimelineLimits {
    fn default() -> Self {
        Self {
            entries: 10_000,
            bytes: 16 * 1024 * 1024,
        }
    }
}

impl Timeline {
    /// An empty section at the end of a log whose newest event has the sequence number `newest`.
    pub(super) const fn new(newest: u64, limits: TimelineLimits) -> Self {
        Self {
            entries: VecDeque::new(),
            first_key: 0,
            bytes: 0,
            limits,
            oldest: newest.saturating_add(1),
            newest,
            newest_in_room: newest,
            older: Older::Available,
            is_loading_newer: false,
        }
    }

    pub(super) fn get(&self, key: Key) -> Option<&Entry> {
        self.entries.get(usize::try_from(key - self.first_key).ok()?)
    }

    /// The keys of the oldest and newest entries.
    pub(super) fn keys(&self) -> Option<(Key, Key)> {
        let len = Key::try_from(self.entries.len()).ok().filter(|len| *len > 0)?;
        Some((self.first_key, self.first_key + len - 1))
    }

    /// The sequence number before which older events can be loaded.
    pub(super) const fn oldest(&self) -> u64 {
        self.oldest
    }

    pub(super) const fn newest(&self) -> u64 {
        self.newest
    }

    pub(super) const fn is_detached(&self) -> bool {
        self.newest < self.newest_in_room
    }

    /// Adds a broadcast event, and returns its key, unless the section is detached. Entries beyond the limits are dropped
    /// from the start.
    pub(super) fn push_event(&mut self, entry: Entry) -> Option<Key> {
        let is_detached = self.is_detached();
        self.newest_in_room = entry.sequence;
        if is_detached {
            return None;
        }
        self.newest = entry.sequence;
        Some(self.push(entry))
    }

    /// Adds an entry at the end.
    pub(super) fn push(&mut self, entry: Entry) -> Key {
        self.bytes += entry.bytes();
        self.entries.push_back(entry);
        while self.is_over_limit()
            && let Some(dropped) = self.entries.pop_front()
        {
            self.first_key += 1;
            self.bytes -= dropped.bytes();
            if dropped.sequence > 0 {
                self.oldest = dropped.sequence + 1;
                self.older = Older::Available;
            }
        }
        self.keys().map_or(self.first_key, |(_, last)| last)
    }

    fn is_over_limit(&self) -> bool {
        self.entries.len() > 1 && (self.entries.len() > self.limits.entries || self.bytes > self.limits.bytes)
    }

    /// Adds the page of events before the sequence number `before`, unless the section has begun elsewhere since it was
    /// requested. Entries beyond the limits are dropped from the end.
    /// `first_sequence` is the sequence number of the oldest retained event, 0 if there is none.
    pub(super) fn push_older(&mut self, before: u64, page: Vec<Entry>, first_sequence: u64) {
        if before != self.oldest {
            return;
        }
        self.older = if page.is_empty() {
            Older::Nothing
        } else {
            Older::Available
        };
        for entry in page.into_iter().rev() {
            if entry.sequence >= self.oldest {
                continue;
            }
            self.oldest = entry.sequence;
            self.first_key -= 1;
            self.bytes += entry.bytes();
            self.entries.push_front(entry);
        }
        if self.oldest <= first_sequence.max(1) {
            self.older = Older::Nothing;
        }
        while self.is_over_limit()
            && let Some(dropped) = self.entries.pop_back()
        {
            self.bytes -= dropped.bytes();
            if dropped.sequence > 0 {
                self.newest = dropped.sequence - 1;
            }
        }
    }

    /// Whether the events after [`newest`](Self::newest) are to be loaded. True at most until
    /// [`push_newer`](Self::push_newer) or [`abort_loading`](Self::abort_loading) is called.
    pub(super) const fn start_loading_newer(&mut self) -> bool {
        self.is_detached() && !std::mem::replace(&mut self.is_loading_newer, true)
    }

    /// Adds the page of events after the sequence number `after`, unless the section has ended elsewhere since it was requested.
    /// What has not been broadcast to the user yet is left to [`push_event`](Self::push_event).
    pub(super) fn push_newer(&mut self, after: u64, page: Vec<Entry>) {
        self.is_loading_newer = false;
        if after != self.newest {
            return;
        }
        let last = page.last().map(|entry| entry.sequence);
        for entry in page {
            if entry.sequence > self.newest && entry.sequence <= self.newest_in_room {
                self.newest = entry.sequence;
                self.push(entry);
            }
        }
        // Events that the page does not have are no longer retained.
        if last.is_none_or(|last| last >= self.newest_in_room) {
            self.newest = self.newest_in_room;
        }
    }

    /// Nothing is being loaded any more.
    pub(super) fn abort_loading(&mut self) {
        self.is_loading_newer = false;
        if self.older == Older::Loading {
            self.older = Older::Available;
        }
    }

    /// Called when the log has lost its end: the events from the sequence number `first` on are no longer part of it.
    pub(super) fn on_truncated(&mut self, first: u64) {
        self.forget_sequences(first);
        let last = first.saturating_sub(1);
        self.newest = self.newest.min(last);
        self.newest_in_room = last;
        self.oldest = self.oldest.min(first);
    }

    /// Called when the log was replaced by another one, which continues after the sequence number `after`. What is in memory stays;
    /// nothing can be loaded before it.
    pub(super) fn on_replaced(&mut self, after: u64) {
        self.forget_sequences(0);
        self.newest = after;
        self.newest_in_room = after;
        self.oldest = after.saturating_add(1);
        self.older = if self.entries.is_empty() {
            Older::Available
        } else {
            Older::Nothing
        };
        self.is_loading_newer = false;
    }

    /// The sequence numbers from `first` on will be those of other events.
    fn forget_sequences(&mut self, first: u64) {
        for entry in self.entries.iter_mut().filter(|entry| entry.sequence >= first) {
            entry.sequence = 0;
        }
    }

    /// Removes the notes from the key `first` on.
    pub(super) fn take_notes(&mut self, first: Key) -> Vec<Entry> {
        let start = usize::try_from(first - self.first_key).unwrap_or(0);
        let entries = self.entries.drain(start.min(self.entries.len())..);
        entries.filter(Entry::is_note).collect()
    }

    /// Drops all entries. The section is at the end of the log.
    pub(super) fn clear(&mut self) {
        self.first_key += Key::try_from(self.entries.len()).unwrap_or(0);
        self.entries.clear();
        self.bytes = 0;
        self.newest = self.newest_in_room;
        self.oldest = self.newest.saturating_add(1);
        self.older = Older::Available;
        self.is_loading_newer = false;
    }

    /// The block with the entry `key`.
    pub(super) fn block_at(&self, key: Key) -> Block {
        let is_presence = |key| self.get(key).is_some_and(Entry::is_presence);
        let single = Block {
            first: key,
            last: key,
        };
        if !is_presence(key) {
            return single;
        }
        let first = (self.first_key..key)
            .rev()
            .take_while(|key| is_presence(*key))
            .last();
        let last = (key + 1..).take_while(|key| is_presence(*key)).last();
        let (first, last) = (first.unwrap_or(key), last.unwrap_or(key));
        if usize::try_from(last - first).is_ok_and(|more| more >= MAX_UNFOLDED) {
            Block { first, last }
        } else {
            single
        }
    }

    pub(super) fn block_before(&self, block: Block) -> Option<Block> {
        (block.first > self.first_key).then(|| self.block_at(block.first - 1))
    }

    pub(super) fn block_after(&self, block: Block) -> Option<Block> {
        self.get(block.last + 1).map(|_| self.block_at(block.last + 1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMALL: TimelineLimits = TimelineLimits {
        entries: 4,
        bytes: usize::MAX,
    };

    fn event(sequence: u64) -> Entry {
        Entry {
            sequence,
            ..Entry::note("")
        }
    }

    fn presence(sequence: u64) -> Entry {
        Entry {
            kind: Kind::Presence {
                name: "Ada".into(),
                has_joined: true,
                text: String::new(),
            },
            ..event(sequence)
        }
    }

    fn sequences(timeline: &Timeline) -> Vec<u64> {
        timeline.entries.iter().map(|entry| entry.sequence).collect()
    }

    #[test]
    fn old_entries_are_dropped_and_loaded_again() {
        let mut timeline = Timeline::new(10, SMALL);
        let keys: Vec<_> = (11..=16)
            .map(|sequence| timeline.push_event(event(sequence)))
            .collect();
        assert_eq!(sequences(&timeline), [13, 14, 15, 16]);
        assert_eq!((timeline.oldest(), timeline.newest()), (13, 16));
        assert_eq!(timeline.get(keys[4].unwrap()).unwrap().sequence, 15);
        assert_eq!(timeline.get(keys[0].unwrap()), None);

        timeline.push_older(13, vec![event(11), event(12)], 11);
        assert_eq!(sequences(&timeline), [11, 12, 13, 14]);
        assert_eq!(timeline.older, Older::Nothing);
        assert_eq!(timeline.get(keys[3].unwrap()).unwrap().sequence, 14);
        // The newest entries had to go: what is broadcast comes later.
        assert!(timeline.is_detached());
        assert_eq!(timeline.push_event(event(17)), None);
        assert!(timeline.start_loading_newer());
        assert!(!timeline.start_loading_newer());
        timeline.push_newer(14, vec![event(15), event(16), event(17)]);
        assert_eq!(sequences(&timeline), [14, 15, 16, 17]);
        assert!(!timeline.is_detached());
        assert_eq!(timeline.older, Older::Available);
        assert!(timeline.push_event(event(18)).is_some());
    }

    #[test]
    fn a_page_that_no_longer_fits_leaves_no_gap() {
        let mut timeline = Timeline::new(10, SMALL);
        timeline.push_older(11, vec![event(9), event(10)], 1);
        timeline.push_event(event(11));
        timeline.clear();
        timeline.push_older(9, vec![event(7), event(8)], 1);
        timeline.push_newer(10, vec![event(11)]);
        assert_eq!(sequences(&timeline), [0; 0]);
        assert_eq!(timeline.older, Older::Available);
        timeline.push_older(12, vec![event(10), event(11)], 1);
        assert_eq!(sequences(&timeline), [10, 11]);
    }

    #[test]
    fn an_event_that_is_loaded_before_it_is_broadcast_is_shown_once() {
        let mut timeline = Timeline::new(14, SMALL);
        timeline.push_older(15, (9..=14).map(event).collect(), 1);
        assert_eq!(sequences(&timeline), [9, 10, 11, 12]);
        timeline.push_newer(12, (13..=16).map(event).collect());
        assert!(!timeline.is_detached());
        for sequence in 15..=17 {
            timeline.push_event(event(sequence));
        }
        assert_eq!(sequences(&timeline), [14, 15, 16, 17]);
    }

    #[test]
    fn a_section_whose_next_events_are_no_longer_retained_is_not_detached() {
        let mut timeline = Timeline::new(14, SMALL);
        timeline.push_older(15, (9..=14).map(event).collect(), 1);
        timeline.push_newer(12, vec![event(15)]);
        assert!(!timeline.is_detached());
        timeline.push_event(event(15));
        assert_eq!(sequences(&timeline), [10, 11, 12, 15]);
    }

    #[test]
    fn a_log_that_replaces_another_continues_below_it() {
        let mut timeline = Timeline::new(0, SMALL);
        for sequence in 1..=3 {
            timeline.push_event(event(sequence));
        }
        timeline.on_replaced(7);
        assert_eq!(timeline.older, Older::Nothing);
        timeline.push_event(event(8));
        assert_eq!(sequences(&timeline), [0, 0, 0, 8]);
        // What is dropped first is what cannot be loaded again.
        timeline.push_event(event(9));
        timeline.push_event(event(10));
        timeline.push_event(event(11));
        assert_eq!((timeline.older, timeline.oldest()), (Older::Nothing, 8));
        timeline.push_event(event(12));
        assert_eq!((timeline.older, timeline.oldest()), (Older::Available, 9));
    }

    #[test]
    fn what_follows_a_log_that_was_replaced_or_truncated_is_shown_to_a_user_who_has_scrolled_back() {
        let detached = || {
            let mut timeline = Timeline::new(14, SMALL);
            timeline.push_older(15, (9..=14).map(event).collect(), 1);
            assert!(timeline.is_detached());
            timeline
        };
        let mut timeline = detached();
        timeline.on_replaced(0);
        assert!(timeline.push_event(event(1)).is_some());
        assert_eq!(sequences(&timeline), [0, 0, 0, 1]);

        let mut timeline = detached();
        timeline.on_truncated(11);
        assert!(timeline.push_event(event(11)).is_some());
        assert_eq!(sequences(&timeline), [10, 0, 0, 11]);
        assert_eq!((timeline.oldest(), timeline.older), (10, Older::Available));

        // The section ends before what was lost.
        let mut timeline = detached();
        timeline.on_truncated(14);
        assert_eq!(timeline.push_event(event(14)), None);
        timeline.push_newer(12, vec![event(13), event(14)]);
        assert_eq!(sequences(&timeline), [11, 12, 13, 14]);
    }

    #[test]
    fn a_large_text_drops_others_but_not_itself() {
        let limits = TimelineLimits {
            entries: 4,
            bytes: 1_000,
        };
        let mut timeline = Timeline::new(0, limits);
        timeline.push_event(event(1));
        timeline.push(Entry::note(&"a".repeat(2_000)));
        assert_eq!(timeline.entries.len(), 1);
        assert_eq!(timeline.oldest(), 2);
    }

    #[test]
    fn a_cleared_timeline_can_load_what_was_cleared() {
        let mut timeline = Timeline::new(0, SMALL);
        for sequence in 1..=3 {
            timeline.push_event(event(sequence));
        }
        timeline.clear();
        assert_eq!((timeline.keys(), timeline.oldest()), (None, 4));
        timeline.push_older(4, vec![event(2), event(3)], 1);
        assert_eq!(timeline.older, Older::Available);
        assert_eq!(sequences(&timeline), [2, 3]);
    }

    #[test]
    fn only_a_long_run_of_joins_and_leaves_is_one_block() {
        let mut timeline = Timeline::new(0, TimelineLimits::default());
        timeline.push_event(event(1));
        for sequence in 2..=4 {
            timeline.push_event(presence(sequence));
        }
        let last = |timeline: &Timeline| timeline.block_at(timeline.keys().unwrap().1);
        assert_eq!(last(&timeline), Block { first: 3, last: 3 });
        timeline.push_event(presence(5));
        assert_eq!(last(&timeline), Block { first: 1, last: 4 });
        let run = last(&timeline);
        assert_eq!(timeline.block_before(run), Some(Block { first: 0, last: 0 }));
        assert_eq!(timeline.block_after(run), None);
        assert_eq!(timeline.block_after(Block { first: 0, last: 0 }), Some(run));
    }

    #[test]
    fn a_name_is_mentioned_as_a_word() {
        for text in ["Ada: hi", "hi ada!", "(ADA)"] {
            assert!(mentions(text, "Ada"), "{text}");
        }
        for text in ["Adam", "Canada", "", "a da"] {
            assert!(!mentions(text, "Ada"), "{text}");
        }
    }
}
