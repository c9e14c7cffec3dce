//! Colours and attributes.

use ratatui::style::{Color, Modifier, Style};

/// The colours of names. Red is for what is wrong.
const NAME_COLORS: [Color; 10] = [
    Color::Green,
    Color::Yellow,
    Color::Blue,
    Color::Magenta,
    Color::Cyan,
    Color::LightGreen,
    Color::LightYellow,
    Color::LightBlue,
    Color::LightMagenta,
    Color::LightCyan,
];

/// How things look, on a terminal of 16 colours or without colour.
#[derive(Debug, Clone, Copy)]
pub(super) struct Theme {
    has_color: bool,
}

impl Theme {
    pub(super) const fn new(has_color: bool) -> Self {
        Self { has_color }
    }

    /// Without colour if the variable `NO_COLOR` is set and not empty: see <https://no-color.org>.
    pub(super) fn from_env() -> Self {
        Self::new(std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty()))
    }

    const fn color(self, style: Style, color: Color) -> Style {
        if self.has_color { style.fg(color) } else { style }
    }

    /// The same name has the same colour in each run.
    pub(super) fn name(self, name: &str) -> Style {
        let hash = usize::try_from(crc32c::crc32c(name.as_bytes())).unwrap_or(0);
        self.color(
            Style::new().add_modifier(Modifier::BOLD),
            NAME_COLORS[hash % NAME_COLORS.len()],
        )
    }

    pub(super) const fn dim(self) -> Style {
        Style::new().add_modifier(Modifier::DIM)
    }

    pub(super) const fn mention(self) -> Style {
        self.color(Style::new().add_modifier(Modifier::BOLD), Color::LightYellow)
    }

    pub(super) const fn note(self) -> Style {
        self.color(Style::new(), Color::Cyan)
    }

    pub(super) const fn unread(self) -> Style {
        self.color(Style::new().add_modifier(Modifier::BOLD), Color::Red)
    }

    pub(super) const fn status(self) -> Style {
        Style::new().add_modifier(Modifier::REVERSED)
    }

    pub(super) const fn found(self) -> Style {
        Style::new().add_modifier(Modifier::REVERSED)
    }
}
