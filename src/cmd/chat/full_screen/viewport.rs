//! The rows of the timeline that fit on the screen.

use jiff::civil::Date;
use ratatui::style::Style;
use ratatui::text::{Line, Span};

use super::text::{truncate, width, wrap};
use super::theme::Theme;
use super::timeline::{ACTION, Block, Entry, Key, Kind, Timeline};
use crate::cmd::message_format::TimeColumns;

/// The longest names that a folded run of joins and leaves shows, in columns.
const MAX_FOLDED_NAMES: usize = 200;

/// Lays a timeline out in rows.
#[derive(Debug, Clone, Copy)]
pub(super) struct Viewport<'a> {
    pub(super) timeline: &'a Timeline,
    /// The sequence number of the first unread event.
    pub(super) unread: Option<u64>,
    /// What is searched for, in lower case.
    pub(super) needle: Option<&'a str>,
    pub(super) theme: Theme,
    pub(super) times: &'a TimeColumns,
    pub(super) columns: usize,
    pub(super) rows: usize,
}

/// The lowest visible row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Position {
    /// An entry of the lowest visible block.
    pub(super) key: Key,
    /// How many rows of the block are below the screen.
    pub(super) hidden: usize,
}

/// The visible rows.
#[derive(Debug)]
pub(super) struct Visible {
    pub(super) rows: Vec<Line<'static>>,
    /// The first entry that is completely visible, and the last.
    pub(super) keys: Option<(Key, Key)>,
    /// Whether the oldest entry is visible.
    pub(super) reaches_start: bool,
}

impl Viewport<'_> {
    /// The lowest visible block at `position`, or at the end of the timeline if it is `None`, and how many of its rows are below the
    /// screen. If the entry is no longer in memory, the nearest one takes its place.
    fn lowest_block(&self, position: Option<Position>) -> Option<(Block, usize)> {
        let (first, last) = self.timeline.keys()?;
        let Position { key, hidden } = position.unwrap_or(Position { key: last, hidden: 0 });
        let nearest = key.clamp(first, last);
        let hidden = if nearest == key { hidden } else { 0 };
        Some((self.timeline.block_at(nearest), hidden))
    }

    /// The rows above and including `position`, or the last ones if it is `None`.
    pub(super) fn visible(&self, position: Option<Position>) -> Visible {
        let mut visible = Visible {
            rows: Vec::new(),
            keys: None,
            reaches_start: true,
        };
        let Some((mut block, mut hidden)) = self.lowest_block(position) else {
            return visible;
        };
        // From the lowest row up.
        loop {
            let mut rows = self.block_rows(block);
            rows.truncate(rows.len().saturating_sub(hidden));
            hidden = 0;
            let room = self.rows - visible.rows.len();
            let fits = rows.len() <= room;
            visible.rows.extend(rows.into_iter().rev().take(room));
            let (first, last) = visible.keys.unwrap_or((block.last + 1, block.last));
            visible.keys = Some((if fits { block.first } else { first }, last));
            let before = self.timeline.block_before(block);
            visible.reaches_start = before.is_none() && fits;
            match before {
                Some(before) if visible.rows.len() < self.rows => block = before,
                _ => break,
            }
        }
        visible.rows.reverse();
        visible
    }

    /// Moves up by `rows`, but not so far that there would be nothing above the screen's first row.
    pub(super) fn up(&self, position: Option<Position>, rows: usize) -> Option<Position> {
        let (mut block, hidden) = self.lowest_block(position)?;
        let mut hidden = hidden + rows;
        loop {
            let len = self.block_rows(block).len();
            if hidden < len {
                break;
            }
            match self.timeline.block_before(block) {
                Some(before) => {
                    hidden -= len;
                    block = before;
                }
                None => {
                    hidden = len.saturating_sub(1);
                    break;
                }
            }
        }
        let position = Position {
            key: block.last,
            hidden,
        };
        let missing = self.rows.saturating_sub(self.visible(Some(position)).rows.len());
        if missing > 0 {
            self.down(position, missing)
        } else {
            Some(position)
        }
    }

    /// Moves down by `rows`; `None` if the end is reached.
    pub(super) fn down(&self, from: Position, mut rows: usize) -> Option<Position> {
        let (mut block, mut hidden) = self.lowest_block(Some(from))?;
        while rows > hidden {
            rows -= hidden;
            block = self.timeline.block_after(block)?;
            hidden = self.block_rows(block).len();
        }
        hidden -= rows;
        if hidden == 0 && self.timeline.block_after(block).is_none() {
            return None;
        }
        Some(Position {
            key: block.last,
            hidden,
        })
    }

    /// The position that shows the entry `key` in the middle of the screen.
    pub(super) fn centered(&self, key: Key) -> Option<Position> {
        let block = self.timeline.block_at(key);
        let at = Position {
            key: block.last,
            hidden: 0,
        };
        self.down(at, self.rows / 2)
    }

    fn block_rows(&self, block: Block) -> Vec<Line<'static>> {
        let mut rows = Vec::new();
        let Some(entry) = self.timeline.get(block.first) else {
            return rows;
        };
        if let Some(at) = entry.at
            && self.date_before(block.first) != Some(at.date())
        {
            let date = at.strftime("%A, %-d %B %Y").to_string();
            rows.push(self.rule(&date, self.theme.dim()));
        }
        if self.unread.is_some()
            && self
                .sequences(block)
                .any(|sequence| Some(sequence) == self.unread)
        {
            rows.push(self.rule("new", self.theme.unread()));
        }
        if block.first == block.last {
            rows.extend(self.entry_rows(entry));
        } else {
            rows.extend(self.folded_rows(block, entry));
        }
        rows
    }

    fn sequences(&self, block: Block) -> impl Iterator<Item = u64> {
        (block.first..=block.last).filter_map(|key| Some(self.timeline.get(key)?.sequence))
    }

    /// The date of the nearest dated entry before `key`.
    fn date_before(&self, key: Key) -> Option<Date> {
        let (first, _) = self.timeline.keys()?;
        let mut before = (first..key).rev().filter_map(|key| self.timeline.get(key));
        before.find_map(|entry| entry.at).map(|at| at.date())
    }

    /// `── text ──────`
    fn rule(&self, text: &str, style: Style) -> Line<'static> {
        let text = format!("── {text} ");
        let rest = self.columns.saturating_sub(width(&text));
        Line::styled(format!("{text}{}", "─".repeat(rest)), style)
    }

    fn entry_rows(&self, entry: &Entry) -> Vec<Line<'static>> {
        match &entry.kind {
            Kind::Message {
                sender,
                text,
                is_own,
                is_mention,
            } => {
                let mut prefix = self.times(entry);
                let body = if *is_mention {
                    self.theme.mention()
                } else {
                    Style::new()
                };
                let mut name = self.theme.name(sender);
                if *is_own {
                    name = name.underlined();
                }
                let text = if let Some(action) = text.strip_prefix(ACTION) {
                    prefix.push(Span::raw("* "));
                    prefix.push(Span::styled(sender.clone(), name));
                    prefix.push(Span::raw(" "));
                    action
                } else {
                    prefix.push(Span::styled(sender.clone(), name));
                    prefix.push(Span::raw(": "));
                    text
                };
                self.paragraph(prefix, text, body)
            }
            Kind::Presence { text, has_joined, .. } => {
                let mut prefix = self.times(entry);
                let arrow = if *has_joined { "→ " } else { "← " };
                prefix.push(Span::styled(arrow, self.theme.dim()));
                self.paragraph(prefix, text, self.theme.dim())
            }
            Kind::Note(text) => {
                let prefix = vec![Span::styled("-- ", self.theme.note())];
                self.paragraph(prefix, text, self.theme.note())
            }
        }
    }

    /// `12:34 [L=5] `
    fn times(&self, entry: &Entry) -> Vec<Span<'static>> {
        let mut times = String::new();
        if let Some((_, suffix)) = &self.times.wall_clock {
            times += &match entry.at {
                Some(at) => format!("{}{suffix} ", at.strftime("%H:%M")),
                None => format!("--:--{suffix} "),
            };
        }
        if self.times.has_lamport_time {
            times += &format!("[L={}] ", entry.lamport_time);
        }
        vec![Span::styled(times, self.theme.dim())]
    }

    fn folded_rows(&self, block: Block, first: &Entry) -> Vec<Line<'static>> {
        let (mut joined, mut left) = (0_usize, 0_usize);
        let mut names = String::new();
        for key in block.first..=block.last {
            if let Some(Kind::Presence { name, has_joined, .. }) =
                self.timeline.get(key).map(|entry| &entry.kind)
            {
                *(if *has_joined { &mut joined } else { &mut left }) += 1;
                if width(&names) <= MAX_FOLDED_NAMES && !names.split(", ").any(|listed| listed == name) {
                    let separator = if names.is_empty() { "" } else { ", " };
                    names.push_str(separator);
                    names.push_str(name);
                }
            }
        }
        if width(&names) > MAX_FOLDED_NAMES {
            names = format!("{}…", truncate(&names, MAX_FOLDED_NAMES));
        }
        let text = format!("{joined} joined, {left} left: {names}");
        let mut prefix = self.times(first);
        prefix.push(Span::styled("⇄ ", self.theme.dim()));
        self.paragraph(prefix, &text, self.theme.dim())
    }

    /// `prefix` and the lines of `text`. All rows but the first are indented, so that they cannot pass for an entry.
    fn paragraph(&self, prefix: Vec<Span<'static>>, text: &str, style: Style) -> Vec<Line<'static>> {
        let prefix_width: usize = prefix.iter().map(Span::width).sum();
        let indent = if prefix_width * 2 <= self.columns {
            prefix_width
        } else {
            2
        };
        let rest = self.columns.saturating_sub(indent);
        let mut first = self.columns.saturating_sub(prefix_width);
        let mut rows = Vec::new();
        let mut start = Some(prefix);
        if first < 4 {
            // A long name has a row of its own.
            rows.push(Line::from(start.take().unwrap_or_default()));
            first = rest;
        }
        for line in text.split('\n') {
            for row in wrap(line, first, rest) {
                let mut spans = start
                    .take()
                    .unwrap_or_else(|| vec![Span::raw(" ".repeat(indent))]);
                self.highlight(&line[row], style, &mut spans);
                rows.push(Line::from(spans));
                first = rest;
            }
        }
        rows
    }

    /// Appends `row` to `spans`, with what is searched for in reverse video.
    fn highlight(&self, row: &str, style: Style, spans: &mut Vec<Span<'static>>) {
        let mut rest = row;
        // Lower case can have other lengths; then the places do not correspond.
        if let Some(needle) = self.needle
            && row.to_lowercase().len() == row.len()
        {
            let lower = row.to_lowercase();
            let mut end = 0;
            for (at, found) in lower.match_indices(needle) {
                let (Some(before), Some(hit)) = (row.get(end..at), row.get(at..at + found.len())) else {
                    break;
                };
                spans.push(Span::styled(before.to_owned(), style));
                spans.push(Span::styled(hit.to_owned(), self.theme.found()));
                end = at + found.len();
            }
            rest = row.get(end..).unwrap_or_default();
        }
        spans.push(Span::styled(rest.to_owned(), style));
    }
}
