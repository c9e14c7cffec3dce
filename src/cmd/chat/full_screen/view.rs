//! Draws the screen.

use ratatui::Frame;
use ratatui::buffer::Buffer;
use ratatui::layout::{Position, Rect};
use ratatui::text::{Line, Span};

use super::app::App;
use super::text::{sanitize, sanitize_name, truncate, width};
use super::timeline::{Key, Older};

/// Draws the screen. Returns the keys of the entries that are completely visible.
pub(super) fn draw(frame: &mut Frame<'_>, app: &App) -> Option<(Key, Key)> {
    let areas = app.areas();
    let keys = draw_timeline(frame.buffer_mut(), areas.timeline, app);
    if let Some(sidebar) = areas.sidebar {
        draw_sidebar(frame.buffer_mut(), sidebar, app);
    }
    if areas.status.height > 0 {
        draw_status(frame.buffer_mut(), areas.status, app);
    }
    let cursor = draw_input(frame.buffer_mut(), areas.input, app);
    frame.set_cursor_position(cursor);
    keys
}

/// The lines of the timeline without attributes, for the terminal to wrap.
pub(super) fn bare_lines(app: &App) -> Vec<String> {
    let (columns, rows) = app.size();
    let mut viewport = app.viewport();
    // So wide that no line is wrapped here.
    viewport.columns = usize::from(u16::MAX);
    viewport.rows = usize::from(rows).saturating_sub(1);
    let visible = viewport.visible(app.scroll());
    let mut left = viewport.rows;
    let mut lines = Vec::new();
    for line in visible.rows.iter().rev() {
        let line = line
            .spans
            .iter()
            .map(|span| span.content.as_ref())
            .collect::<String>();
        let line = if line.starts_with('─') {
            truncate(&line, usize::from(columns).saturating_sub(1)).to_owned()
        } else {
            line.trim_end().to_owned()
        };
        let Some(rest) = left.checked_sub(width(&line).max(1).div_ceil(usize::from(columns).max(1))) else {
            break;
        };
        left = rest;
        lines.push(line);
    }
    lines.reverse();
    lines
}

fn draw_timeline(buffer: &mut Buffer, area: Rect, app: &App) -> Option<(Key, Key)> {
    let visible = app.viewport().visible(app.scroll());
    let mut rows = visible.rows;
    if app.scroll().is_none() {
        rows.extend(pending_rows(app, usize::from(area.height)));
    }
    let first = rows.len().saturating_sub(usize::from(area.height));
    for (y, row) in (area.y..area.bottom()).zip(&rows[first..]) {
        buffer.set_line(area.x, y, row, area.width);
    }
    visible.keys
}

/// The last texts that are not acknowledged.
fn pending_rows(app: &App, max: usize) -> Vec<Line<'static>> {
    let mut rows = Vec::new();
    for pending in app.pending.iter().rev() {
        if rows.len() >= max {
            break;
        }
        for line in sanitize(&pending.text).lines().rev() {
            rows.push(Line::styled(format!("sending… {line}"), app.theme.dim()));
        }
    }
    rows.reverse();
    rows
}

fn draw_sidebar(buffer: &mut Buffer, area: Rect, app: &App) {
    for y in area.y..area.bottom() {
        buffer.set_string(area.x, y, "│", app.theme.dim());
    }
    let names = app.roster.names();
    let rows = usize::from(area.height);
    let shown = if names.len() > rows {
        rows.saturating_sub(1)
    } else {
        names.len()
    };
    let columns = usize::from(area.width).saturating_sub(2);
    for (y, name) in (area.y..area.bottom()).zip(&names[..shown]) {
        buffer.set_string(area.x + 2, y, truncate(name, columns), app.theme.name(name));
    }
    if shown < names.len() && area.height > 0 {
        let more = format!("and {} more", names.len() - shown);
        buffer.set_string(
            area.x + 2,
            area.bottom() - 1,
            truncate(&more, columns),
            app.theme.dim(),
        );
    }
}

fn draw_status(buffer: &mut Buffer, area: Rect, app: &App) {
    let columns = usize::from(area.width);
    buffer.set_style(area, app.theme.status());
    let state = if app.is_leaving {
        "leaving… (Ctrl-D: at once)".to_owned()
    } else if let Some(cause) = &app.reconnecting {
        format!("reconnecting… ({cause})")
    } else if let Some(hint) = &app.hint {
        hint.clone()
    } else if app.is_switching() {
        "joining…".to_owned()
    } else if app.scroll().is_some() && app.timeline.older == Older::Loading {
        "loading…".to_owned()
    } else if app.scroll().is_some() {
        match app.new_below {
            0 => "End: newest".to_owned(),
            new => format!("↓ {new} new, End: newest"),
        }
    } else {
        String::new()
    };
    let room = sanitize_name(app.target.room.as_str());
    let here = app.roster.len();
    let mut left = format!(
        " #{room} · {here} here · L={} · {}",
        app.lamport_time, app.target.name
    );
    // What is going on is more important than where.
    if width(&left) + width(&state) + 3 > columns && !state.is_empty() {
        left = format!(" #{}", truncate(&room, columns / 4));
    }
    let line = if state.is_empty() {
        left
    } else {
        format!("{left} · {state}")
    };
    buffer.set_line(
        area.x,
        area.y,
        &Line::from(Span::styled(
            truncate(&line, columns).to_owned(),
            app.theme.status(),
        )),
        area.width,
    );
}

/// Draws the input, and returns the position of the cursor.
fn draw_input(buffer: &mut Buffer, area: Rect, app: &App) -> Position {
    let (rows, (row, column)) = app.editor.rows(app.input_columns());
    let height = usize::from(area.height).max(1);
    let first = (row + 1).saturating_sub(height);
    for (y, (index, row)) in (area.y..area.bottom()).zip(rows.iter().enumerate().skip(first)) {
        let prompt = if index == 0 { "> " } else { "  " };
        buffer.set_line(
            area.x,
            y,
            &Line::from(vec![Span::raw(prompt), Span::raw(row.clone())]),
            area.width,
        );
    }
    let offset = |value: usize, limit: u16| {
        u16::try_from(value)
            .unwrap_or(u16::MAX)
            .min(limit.saturating_sub(1))
    };
    Position::new(
        area.x + offset(column + 2, area.width),
        area.y + offset(row - first, area.height),
    )
}

#[cfg(test)]
mod tests {
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;
    use ratatui::crossterm::event::{KeyCode, KeyModifiers};

    use super::*;
    use crate::client::{ClientError, Event};
    use crate::cmd::chat::full_screen::app::Target;
    use crate::cmd::chat::full_screen::input_history::InputHistory;
    use crate::cmd::chat::full_screen::theme::Theme;
    use crate::cmd::message_format::TimeColumns;
    use crate::cmd::time_zone::TimeZone;
    use crate::domain::{Name, RoomName};
    use crate::proto::{EventType, ListParticipantsResponse, ServerMessage};

    const NOON: i64 = 1_764_072_000;

    fn event(app: &mut App, sender_id: i32, name: &str, r#type: EventType, text: &str, seconds: i64) {
        let time = app.lamport_time + 1;
        let verb = if r#type == EventType::Join {
            "joined"
        } else {
            "left"
        };
        let presence = format!("Participant {name} {verb} Chit Chat at logical time L={time}");
        app.on_event(Event::Message(Box::new(ServerMessage {
            sender_id,
            sender_name: name.into(),
            msg_stream: if r#type == EventType::Message {
                text.into()
            } else {
                presence
            },
            r#type: r#type.into(),
            timestamp: time,
            sequence: u64::try_from(time).unwrap(),
            broadcast_time: Some(prost_types::Timestamp {
                seconds: NOON + seconds,
                nanos: 0,
            }),
            ..ServerMessage::default()
        })));
    }

    /// A conversation on two days.
    fn conversation() -> App {
        let target = Target {
            name: Name::try_from("Ada").unwrap(),
            room: RoomName::try_from("tea").unwrap(),
        };
        let mut app = App::new(
            target,
            Theme::new(false),
            TimeColumns {
                wall_clock: Some((TimeZone::utc(), "")),
                has_lamport_time: true,
            },
            InputHistory::default(),
        );
        app.on_joined(app.target.clone(), None);
        app.on_roster(ListParticipantsResponse::default());
        event(&mut app, 1, "Ada", EventType::Join, "", 0);
        for (id, name) in [(2, "Bob"), (3, "Cy"), (4, "山田")] {
            event(&mut app, id, name, EventType::Join, "", 60);
        }
        event(
            &mut app,
            2,
            "Bob",
            EventType::Message,
            "Hello Ada, this text is longer than a narrow screen.",
            90,
        );
        event(&mut app, 4, "山田", EventType::Message, "two\nlines", 120);
        event(&mut app, 3, "Cy", EventType::Leave, "", 86_400);
        event(&mut app, 2, "Bob", EventType::Message, "/me waves", 86_400);
        for c in "see you".chars() {
            app.on_key(KeyCode::Char(c).into());
        }
        app.on_key(KeyCode::Enter.into());
        for c in "half a line".chars() {
            app.on_key(KeyCode::Char(c).into());
        }
        app
    }

    /// What is drawn, without the empty rows.
    fn drawn(app: &mut App, columns: u16, rows: u16) -> Vec<String> {
        app.resize((columns, rows));
        let mut terminal = Terminal::new(TestBackend::new(columns, rows)).unwrap();
        terminal
            .draw(|frame| {
                draw(frame, app);
            })
            .unwrap();
        let buffer = terminal.backend().buffer();
        let row = |y: u16| {
            let mut row = String::new();
            let mut x = 0;
            while x < columns {
                let symbol = buffer[(x, y)].symbol();
                row.push_str(symbol);
                x += u16::try_from(width(symbol)).unwrap().max(1);
            }
            row.trim_end().trim_end_matches('│').trim_end().to_owned()
        };
        (0..rows).map(row).filter(|row| !row.is_empty()).collect()
    }

    #[test]
    fn a_conversation_at_80_columns() {
        assert_eq!(
            drawn(&mut conversation(), 80, 24),
            [
                "── Tuesday, 25 November 2025 ─────────────────────────────────│ Ada",
                "12:00 [L=1] ⇄ 4 joined, 0 left: Ada, Bob, Cy, 山田            │ Bob",
                "12:01 [L=5] Bob: Hello Ada, this text is longer than a narrow │ 山田",
                "                 screen.",
                "12:02 [L=6] 山田: two",
                "                  lines",
                "── Wednesday, 26 November 2025 ───────────────────────────────",
                "12:00 [L=7] ← Cy left",
                "12:00 [L=8] * Bob waves",
                "sending… see you",
                " #tea · 3 here · L=8 · Ada",
                "> half a line",
            ]
        );
    }

    #[test]
    fn a_conversation_at_40_columns() {
        assert_eq!(
            drawn(&mut conversation(), 40, 10),
            [
                "                 longer than a narrow",
                "                 screen.",
                "12:02 [L=6] 山田: two",
                "                  lines",
                "── Wednesday, 26 November 2025 ─────────",
                "12:00 [L=7] ← Cy left",
                "12:00 [L=8] * Bob waves",
                "sending… see you",
                " #tea · 3 here · L=8 · Ada",
                "> half a line",
            ]
        );
    }

    #[test]
    fn any_size_can_be_drawn() {
        let mut app = conversation();
        app.on_key(ratatui::crossterm::event::KeyEvent::new(
            KeyCode::Enter,
            KeyModifiers::ALT,
        ));
        for columns in [1, 2, 9, 40, 72, 300] {
            for rows in [1, 2, 3, 10, 50] {
                drawn(&mut app, columns, rows);
                app.on_key(KeyCode::PageUp.into());
                app.on_key(KeyCode::PageDown.into());
                bare_lines(&app);
            }
        }
    }

    #[test]
    fn a_lost_connection_is_shown_in_the_status() {
        let mut app = conversation();
        app.on_event(Event::Reconnecting {
            attempt: 1,
            delay: std::time::Duration::ZERO,
            cause: ClientError::StreamEnded,
        });
        let screen = drawn(&mut app, 80, 24);
        assert_eq!(
            screen[10],
            " #tea · 3 here · L=8 · Ada · reconnecting… (the server ended the conversation)"
        );
        assert!(drawn(&mut app, 40, 10)[8].starts_with(" #tea · reconnecting… (the"));
    }

    #[test]
    fn someone_who_leaves_need_not_wait() {
        let mut app = conversation();
        app.is_leaving = true;
        assert!(drawn(&mut app, 40, 10)[8].ends_with("· leaving… (Ctrl-D: at once)"));
    }

    #[test]
    fn plain_lines_are_not_wrapped() {
        let mut app = conversation();
        app.resize((40, 10));
        let lines = bare_lines(&app);
        let long = "12:01 [L=5] Bob: Hello Ada, this text is longer than a narrow screen.";
        assert!(lines.iter().any(|line| line == long), "{lines:?}");
        assert_eq!(lines.last().unwrap(), "12:00 [L=8] * Bob waves");
    }
}
