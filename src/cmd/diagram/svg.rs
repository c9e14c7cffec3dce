//! Space-time diagrams as standalone SVG files: a vertical line for the server and for each client, time from top to bottom.

use std::fmt::Write as _;

use super::conversation::{ClientEvent, Conversation, StepKind, shorten, step_of};

/// Width of a character. Each text is set to its width, so that this holds for every font.
const CHAR_WIDTH: f64 = 7.2;
const LINE_HEIGHT: f64 = 16.0;
const MARGIN: f64 = 16.0;
const COLUMN_WIDTH: f64 = 96.0;
const HEADER_HEIGHT: f64 = 24.0;
/// The longest name in a header, and the longest description of a step, in characters.
const MAX_HEADER_CHARS: usize = 12;
const MAX_SUMMARY_CHARS: usize = 90;
/// The least distance of two steps.
const MIN_STEP_HEIGHT: f64 = 42.0;
/// How far the events of clients are from that of the server, if nothing is in between.
const SLOPE: f64 = 14.0;
/// The least distance of two events of a client.
const EVENT_DISTANCE: f64 = 7.0;
const DOT_RADIUS: f64 = 2.5;
/// The largest distance of two Lamport times that is drawn to scale.
const MAX_SCALED_TICKS: i64 = 5;

/// The positions of everything that is drawn.
#[derive(Debug, Default)]
pub(super) struct Layout {
    width: f64,
    height: f64,
    /// The names of the server and of the clients, with the space that they take.
    headers: Vec<Text>,
    /// Lamport times, descriptions of the steps, and marks for times that are left out.
    labels: Vec<Text>,
    /// From top to bottom: the horizontal position, the begin and the end.
    lines: Vec<(f64, f64, f64)>,
    dots: Vec<(f64, f64)>,
    arrows: Vec<Arrow>,
}

#[derive(Debug)]
struct Text {
    /// The left end of the baseline.
    x: f64,
    y: f64,
    text: String,
    /// Shown when the pointer rests on it.
    title: Option<String>,
}

#[derive(Debug)]
struct Arrow {
    from: (f64, f64),
    to: (f64, f64),
    class: &'static str,
}

pub(super) fn draw(conversation: &Conversation, title: &str) -> String {
    Layout::new(conversation).to_svg(title)
}

/// The number of columns that are reserved for `text`: two for each character of a script whose characters can be wide.
fn columns(text: &str) -> usize {
    let is_narrow = |c: char| matches!(c, '\0'..='\u{10ff}' | '\u{1e00}'..='\u{2bff}');
    text.chars().map(|c| if is_narrow(c) { 1 } else { 2 }).sum()
}

#[allow(clippy::cast_precision_loss, reason = "labels and indices are small")]
fn width(count: usize, unit: f64) -> f64 {
    count as f64 * unit
}

impl Text {
    fn new(x: f64, y: f64, text: String) -> Self {
        Self {
            x,
            y,
            text,
            title: None,
        }
    }

    fn width(&self) -> f64 {
        width(columns(&self.text), CHAR_WIDTH)
    }
}

impl Layout {
    fn new(conversation: &Conversation) -> Self {
        let mut layout = Self::default();
        let times: Vec<String> = conversation
            .steps
            .iter()
            .map(|step| format!("L={}", step.time))
            .collect();
        let time_width = times
            .iter()
            .map(|time| width(columns(time), CHAR_WIDTH))
            .fold(0.0, f64::max);
        let column = |index: usize| MARGIN + time_width + COLUMN_WIDTH / 2.0 + width(index, COLUMN_WIDTH);
        let server = column(0);
        let client = |index: usize| column(index + 1);

        // Room for the events of a client between two that cannot be moved.
        let room = width(most_sent_in_a_row(conversation) + 1, EVENT_DISTANCE);
        let rows = rows(
            conversation,
            MARGIN + HEADER_HEIGHT + SLOPE + room,
            room.max(MIN_STEP_HEIGHT),
        );
        let bottom = rows.last().copied().unwrap_or(MARGIN + HEADER_HEIGHT) + SLOPE + EVENT_DISTANCE;

        layout.add_header(server, "Server");
        layout.lines.push((server, MARGIN + HEADER_HEIGHT, bottom));
        for (index, one) in conversation.clients.iter().enumerate() {
            layout.add_header(client(index), &one.name);
        }

        let label_x = client(conversation.clients.len()) - COLUMN_WIDTH / 2.0 + MARGIN;
        let mut previous: Option<(i64, f64)> = None;
        for ((step, time), &y) in conversation.steps.iter().zip(times).zip(&rows) {
            if let Some((before, above)) = previous
                && step.time.saturating_sub(before) > MAX_SCALED_TICKS
            {
                let x = MARGIN + time_width - 2.0 * CHAR_WIDTH;
                layout
                    .labels
                    .push(Text::new(x, f64::midpoint(above, y) + 4.0, "⋮".to_owned()));
            }
            previous = Some((step.time, y));
            let x = MARGIN + time_width - width(columns(&time), CHAR_WIDTH);
            layout.labels.push(Text::new(x, y + 4.0, time));
            let summary = shorten(&step.summary(), MAX_SUMMARY_CHARS);
            layout.labels.push(Text::new(label_x, y + 4.0, summary));
            layout.dots.push((server, y));
        }

        for (index, one) in conversation.clients.iter().enumerate() {
            let x = client(index);
            let heights = heights(&one.events, &rows);
            for (&event, &y) in one.events.iter().zip(&heights) {
                let row = (server, rows[step_of(event)]);
                layout.dots.push((x, y));
                layout.arrows.push(match event {
                    ClientEvent::Sent(_) => Arrow {
                        from: (x, y),
                        to: row,
                        class: "sent",
                    },
                    ClientEvent::Received(step) => {
                        let is_notice = conversation.steps[step].kind == StepKind::Notice;
                        let class = if is_notice { "notice" } else { "received" };
                        Arrow {
                            from: row,
                            to: (x, y),
                            class,
                        }
                    }
                });
            }
            if let (Some(&first), Some(&last)) = (heights.first(), heights.last()) {
                layout.lines.push((x, first, last));
            }
        }
        let right = |text: &Text| text.x + text.width();
        layout.width = layout
            .labels
            .iter()
            .chain(&layout.headers)
            .map(right)
            .fold(0.0, f64::max)
            + MARGIN;
        layout.height = bottom + MARGIN;
        layout
    }

    fn add_header(&mut self, x: f64, name: &str) {
        let mut shown = shorten(name, MAX_HEADER_CHARS);
        while columns(&shown) > MAX_HEADER_CHARS {
            shown = shorten(&shown, shown.chars().count() - 1);
        }
        let title = (shown != name).then(|| name.to_owned());
        let left = x - width(columns(&shown), CHAR_WIDTH) / 2.0;
        self.headers.push(Text {
            title,
            ..Text::new(left, MARGIN + LINE_HEIGHT, shown)
        });
    }

    fn to_svg(&self, title: &str) -> String {
        let mut out = String::new();
        self.write(&mut out, title)
            .expect("writing to a String cannot fail");
        out
    }

    fn write(&self, out: &mut String, title: &str) -> std::fmt::Result {
        let (width, height) = (self.width.ceil(), self.height.ceil());
        writeln!(
            out,
            r#"<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" role="img">"#
        )?;
        writeln!(out, "<title>{}</title>", escape(title))?;
        out.push_str(STYLE);
        writeln!(
            out,
            r##"<rect width="{width}" height="{height}" fill="#ffffff"/>"##
        )?;
        for (x, top, bottom) in &self.lines {
            writeln!(
                out,
                r#"<line class="life" x1="{x:.1}" y1="{top:.1}" x2="{x:.1}" y2="{bottom:.1}"/>"#
            )?;
        }
        for Arrow { from, to, class } in &self.arrows {
            let end = before(*from, *to);
            writeln!(
                out,
                r#"<line class="{class}" x1="{:.1}" y1="{:.1}" x2="{:.1}" y2="{:.1}" marker-end="url(#{class})"/>"#,
                from.0, from.1, end.0, end.1
            )?;
        }
        for (x, y) in &self.dots {
            writeln!(out, r#"<circle cx="{x:.1}" cy="{y:.1}" r="{DOT_RADIUS}"/>"#)?;
        }
        for header in &self.headers {
            header.write(out, "name")?;
        }
        for label in &self.labels {
            label.write(out, "label")?;
        }
        out.push_str("</svg>\n");
        Ok(())
    }
}

impl Text {
    fn write(&self, out: &mut String, class: &str) -> std::fmt::Result {
        write!(
            out,
            r#"<text class="{class}" x="{:.1}" y="{:.1}" textLength="{:.1}" lengthAdjust="spacingAndGlyphs">{}"#,
            self.x,
            self.y,
            self.width(),
            escape(&self.text)
        )?;
        if let Some(title) = &self.title {
            write!(out, "<title>{}</title>", escape(title))?;
        }
        writeln!(out, "</text>")
    }
}

const STYLE: &str = r#"<style>
text { font: 12px ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace; fill: #1f2328; white-space: pre; }
.name { font-weight: bold; }
.life { stroke: #afb8c1; }
.sent { stroke: #0969da; fill: #0969da; stroke-width: 1.5; }
.received { stroke: #57606a; fill: #57606a; stroke-dasharray: 4 3; }
.notice { stroke: #cf222e; fill: #cf222e; stroke-dasharray: 4 3; }
circle { fill: #1f2328; }
</style>
<defs>
<marker id="sent" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="8" markerHeight="8" markerUnits="userSpaceOnUse" orient="auto"><path class="sent" stroke-width="0" d="M0 0 8 4 0 8z"/></marker>
<marker id="received" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="8" markerHeight="8" markerUnits="userSpaceOnUse" orient="auto"><path class="received" stroke-width="0" d="M0 0 8 4 0 8z"/></marker>
<marker id="notice" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="8" markerHeight="8" markerUnits="userSpaceOnUse" orient="auto"><path class="notice" stroke-width="0" d="M0 0 8 4 0 8z"/></marker>
</defs>
"#;

/// The point on the arrow where the dot at its end begins.
fn before(from: (f64, f64), to: (f64, f64)) -> (f64, f64) {
    let (dx, dy) = (to.0 - from.0, to.1 - from.1);
    let length = dx.hypot(dy).max(DOT_RADIUS);
    (to.0 - dx / length * DOT_RADIUS, to.1 - dy / length * DOT_RADIUS)
}

/// The vertical position of each step: its Lamport time, to scale up to a limit.
fn rows(conversation: &Conversation, top: f64, step_height: f64) -> Vec<f64> {
    let mut y = top;
    let mut previous: Option<i64> = None;
    let steps = conversation.steps.iter();
    steps
        .map(|step| {
            if let Some(previous) = previous {
                let ticks = step.time.saturating_sub(previous).clamp(1, MAX_SCALED_TICKS);
                y += step_height * (1.0 + width(usize::try_from(ticks - 1).unwrap_or_default(), 0.25));
            }
            previous = Some(step.time);
            y
        })
        .collect()
}

/// The vertical positions of the events of a client, in their order: what it sent is above the server's event, and what it
/// received below.
fn heights(events: &[ClientEvent], rows: &[f64]) -> Vec<f64> {
    let mut next = f64::INFINITY;
    let mut heights: Vec<f64> = events
        .iter()
        .rev()
        .map(|&event| {
            let own = match event {
                ClientEvent::Sent(step) => rows[step] - SLOPE,
                ClientEvent::Received(step) => rows[step] + SLOPE,
            };
            next = own.min(next - EVENT_DISTANCE);
            next
        })
        .collect();
    heights.reverse();
    heights
}

/// The largest number of messages that a client sent without receiving one in between.
fn most_sent_in_a_row(conversation: &Conversation) -> usize {
    let mut most = 0;
    for client in &conversation.clients {
        let mut row = 0;
        for event in &client.events {
            row = if matches!(event, ClientEvent::Sent(_)) {
                row + 1
            } else {
                0
            };
            most = most.max(row);
        }
    }
    most
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::super::conversation::tests::{busy_room, pipelined};
    use super::*;

    #[derive(Debug, Clone, Copy)]
    struct Area {
        left: f64,
        top: f64,
        right: f64,
        bottom: f64,
    }

    impl Area {
        fn of(text: &Text) -> Self {
            let (left, bottom) = (text.x, text.y + 3.0);
            Self {
                left,
                top: bottom - LINE_HEIGHT + 2.0,
                right: left + text.width(),
                bottom,
            }
        }

        fn overlaps(&self, other: &Self) -> bool {
            self.left < other.right
                && other.left < self.right
                && self.top < other.bottom
                && other.top < self.bottom
        }
    }

    fn assert_nothing_overlaps(layout: &Layout) {
        let texts: Vec<Area> = layout
            .headers
            .iter()
            .chain(&layout.labels)
            .map(Area::of)
            .collect();
        for (index, text) in texts.iter().enumerate() {
            let is_inside = text.left >= 0.0 && text.right <= layout.width && text.bottom <= layout.height;
            assert!(is_inside && text.top >= 0.0, "{text:?}");
            for other in &texts[index + 1..] {
                assert!(!text.overlaps(other), "{text:?} {other:?}");
            }
        }
        for (index, dot) in layout.dots.iter().enumerate() {
            for other in &layout.dots[index + 1..] {
                let distance = (dot.0 - other.0).hypot(dot.1 - other.1);
                assert!(distance >= 2.0 * DOT_RADIUS, "{dot:?} {other:?}");
            }
        }
        for arrow in &layout.arrows {
            assert!(arrow.from.1 < arrow.to.1, "time runs downwards: {arrow:?}");
            let drawn = Area {
                left: arrow.from.0.min(arrow.to.0),
                top: arrow.from.1,
                right: arrow.from.0.max(arrow.to.0),
                bottom: arrow.to.1,
            };
            assert!(!texts.iter().any(|text| text.overlaps(&drawn)), "{arrow:?}");
        }
    }

    #[test]
    fn nothing_overlaps_for_twelve_clients_and_sixty_events() {
        let conversation = busy_room(12, 60);
        assert_eq!((conversation.clients.len(), conversation.steps.len()), (12, 60));
        assert_nothing_overlaps(&Layout::new(&conversation));
    }

    #[test]
    fn nothing_overlaps_if_a_client_does_not_wait_for_answers() {
        assert_nothing_overlaps(&Layout::new(&pipelined(40)));
        let empty = Layout::new(&busy_room(0, 0));
        assert_nothing_overlaps(&empty);
        assert!(empty.arrows.is_empty());
    }

    #[test]
    fn events_are_ordered_by_lamport_time() {
        let conversation = busy_room(3, 20);
        let rows = rows(&conversation, 0.0, MIN_STEP_HEIGHT);
        assert!(rows.is_sorted_by(|a, b| a + MIN_STEP_HEIGHT <= *b), "{rows:?}");
    }

    #[test]
    fn texts_are_escaped() {
        assert_eq!(escape("<b>&amp;</b>"), "&lt;b&gt;&amp;amp;&lt;/b&gt;");
    }
}
