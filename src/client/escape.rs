//! Escapes untrusted text for display on a terminal.
//!
//! Control characters can move the cursor or send commands to the terminal, bidirectional controls can reverse the rest
//! of a line, and invisible characters can make different texts look the same. They are replaced by `\n`, `\t`, or an
//! escape such as `\u{1b}` with the code point in hexadecimal. The result is always a single line.
//!
//! The escapes are meant for people and are ambiguous: a text that literally contains `\u{1b}` looks the same as an escaped
//! one. Programs should process the unescaped messages.

use std::borrow::Cow;
use std::fmt::Write as _;

use crate::domain::characters::{is_bidi_control, is_control, is_invisible};

/// Escapes a message text. Emoji with joiners and variation selectors are preserved.
#[must_use]
pub fn text(raw: &str) -> Cow<'_, str> {
    escape(raw, is_part_of_emoji)
}

/// Escapes the name of a participant or room. Stricter than [`text`]: no invisible character is preserved.
#[must_use]
pub fn name(raw: &str) -> Cow<'_, str> {
    escape(raw, |_, _, _| false)
}

/// Whether a character can control a terminal or is invisible on it.
#[must_use]
pub const fn is_unsafe_to_display(c: char) -> bool {
    is_control(c) || is_bidi_control(c) || is_invisible(c)
}

fn escape(raw: &str, is_allowed: impl Fn(char, [Option<char>; 2], Option<char>) -> bool) -> Cow<'_, str> {
    if !raw.chars().any(is_unsafe_to_display) {
        return Cow::Borrowed(raw);
    }
    let mut shown = String::with_capacity(raw.len() + 16);
    let mut before = [None, None];
    let mut characters = raw.chars().peekable();
    while let Some(c) = characters.next() {
        if !is_unsafe_to_display(c) || is_allowed(c, before, characters.peek().copied()) {
            shown.push(c);
        } else {
            match c {
                '\n' => shown.push_str("\\n"),
                '\t' => shown.push_str("\\t"),
                c => write!(shown, "\\u{{{:x}}}", u32::from(c)).expect("writing to a String cannot fail"),
            }
        }
        before = [Some(c), before[0]];
    }
    Cow::Owned(shown)
}

/// Variation selector 16: requests the emoji presentation of the preceding pictograph.
const EMOJI_PRESENTATION: char = '\u{fe0f}';
/// Zero-width joiner: joins the pictographs around it.
const JOINER: char = '\u{200d}';
/// Draws a key cap around the preceding digit.
const KEYCAP: char = '\u{20e3}';

/// Whether the invisible character `c` between `before` (the two preceding characters, nearest first) and `after` is part
/// of an emoji such as ❤️ or 👩‍💻. Directly between pictographs it can neither hide text nor be mistaken for something
/// else.
fn is_part_of_emoji(c: char, before: [Option<char>; 2], after: Option<char>) -> bool {
    let [nearest, second] = before;
    match (c, nearest) {
        (EMOJI_PRESENTATION, Some('0'..='9' | '#' | '*')) => after == Some(KEYCAP),
        (EMOJI_PRESENTATION, Some(nearest)) => is_pictograph(nearest),
        (JOINER, Some(EMOJI_PRESENTATION)) => {
            second.is_some_and(is_pictograph) && after.is_some_and(is_pictograph)
        }
        (JOINER, Some(nearest)) => is_pictograph(nearest) && after.is_some_and(is_pictograph),
        _ => false,
    }
}

/// Whether `c` belongs to a Unicode block whose characters occur in emoji sequences. All of these characters are visible.
const fn is_pictograph(c: char) -> bool {
    matches!(
        c,
        '©' | '®' | '‼' | '⁉' | '™' | 'ℹ' | '〰' | '〽' | '㊗' | '㊙'
            | '\u{2190}'..='\u{21ff}' | '\u{2300}'..='\u{23ff}' | '\u{24c2}' | '\u{25a0}'..='\u{27bf}'
            | '\u{2900}'..='\u{297f}' | '\u{2b00}'..='\u{2b73}' | '\u{1f000}'..='\u{1faff}'
    )
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn plain_text_of_any_script_is_unchanged() {
        for plain in ["", "Hello World!", "Ångström 山田 Ольга عمر 🦀", r"C:\new\u{1b}"] {
            assert!(matches!(text(plain), Cow::Borrowed(shown) if shown == plain));
            assert!(matches!(name(plain), Cow::Borrowed(shown) if shown == plain));
        }
    }

    #[test]
    fn characters_that_control_the_terminal_are_escaped() {
        for (hostile, shown) in [
            ("\u{1b}[2J\u{1b}]0;owned\u{7}", r"\u{1b}[2J\u{1b}]0;owned\u{7}"),
            ("\u{9b}31m", r"\u{9b}31m"),
            ("ok\r[L=9] Bob: I owe you", r"ok\u{d}[L=9] Bob: I owe you"),
            ("one\ntwo\tthree", r"one\ntwo\tthree"),
            (
                "\u{85}\u{2028}\u{2029}\u{b}\u{c}",
                r"\u{85}\u{2028}\u{2029}\u{b}\u{c}",
            ),
            ("abc\u{202e}cba", r"abc\u{202e}cba"),
            ("pay\u{200b}pal\u{feff}", r"pay\u{200b}pal\u{feff}"),
            ("\u{8}\u{8}\u{7f}\0", r"\u{8}\u{8}\u{7f}\u{0}"),
            (
                "flag \u{1f3f4}\u{e0067}\u{e007f}",
                "flag \u{1f3f4}\\u{e0067}\\u{e007f}",
            ),
        ] {
            assert_eq!(text(hostile), shown);
        }
    }

    #[test]
    fn emoji_are_preserved_in_texts_only() {
        for emoji in ["❤️", "👩‍💻", "👩🏽‍🚀", "🏳️‍🌈", "❤️‍🔥", "3️⃣", "™️"]
        {
            assert_eq!(text(emoji), emoji);
            assert!(name(emoji).is_ascii() || name(emoji).contains("\\u{"), "{emoji}");
        }
        for (hidden, shown) in [
            ("a\u{200d}b", r"a\u{200d}b"),
            ("a\u{fe0f}", r"a\u{fe0f}"),
            ("7\u{fe0f}7", r"7\u{fe0f}7"),
            ("❤\u{fe0f}\u{fe0f}", "❤\u{fe0f}\\u{fe0f}"),
            ("👩\u{200d}", "👩\\u{200d}"),
            ("\u{200d}👩", "\\u{200d}👩"),
            ("👩\u{200d}\u{200d}👩", "👩\\u{200d}\\u{200d}👩"),
            ("👩\u{200d}\u{1b}", "👩\\u{200d}\\u{1b}"),
        ] {
            assert_eq!(text(hidden), shown);
        }
    }

    #[test]
    fn pictographs_are_visible() {
        for c in ('\0'..=char::MAX).filter(|&c| is_pictograph(c)) {
            assert!(!is_unsafe_to_display(c), "{c:?}");
        }
    }

    /// Arbitrary strings in which the characters that matter here are frequent.
    fn hostile() -> impl Strategy<Value = String> {
        let character = prop_oneof![
            any::<char>(),
            (0u8..0xa0).prop_map(char::from),
            prop::sample::select(
                "\u{200b}\u{200d}\u{fe0f}\u{202e}\u{2066}\u{feff}👩💻❤3\u{20e3}\n\u{1b}"
                    .chars()
                    .collect::<Vec<_>>()
            ),
        ];
        prop::collection::vec(character, 0..40).prop_map(|characters| characters.into_iter().collect())
    }

    proptest! {
        #[test]
        fn an_escaped_name_has_no_unsafe_characters(raw in hostile()) {
            let shown = name(&raw);
            prop_assert!(!shown.chars().any(is_unsafe_to_display), "{shown:?}");
        }

        #[test]
        fn an_escaped_text_has_no_unsafe_characters_outside_of_emoji(raw in hostile()) {
            let shown: Vec<char> = text(&raw).chars().collect();
            for (place, &c) in shown.iter().enumerate() {
                if is_unsafe_to_display(c) {
                    let joiner = c == '\u{200d}';
                    prop_assert!(joiner || c == '\u{fe0f}', "{c:?} in {shown:?}");
                    // It is never first, never repeated, and, if it is a joiner, followed by a visible character.
                    let before = place.checked_sub(1).map(|place| shown[place]);
                    let after = shown.get(place + 1).copied();
                    prop_assert!(before.is_some_and(|before| before != c && !is_control(before)));
                    prop_assert!(!joiner || after.is_some_and(|after| !is_unsafe_to_display(after)));
                }
            }
        }

        #[test]
        fn safe_characters_are_preserved(raw in hostile()) {
            let kept: String = raw.chars().filter(|&c| !is_unsafe_to_display(c)).collect();
            let shown = text(&raw);
            let mut rest = shown.chars();
            prop_assert!(kept.chars().all(|c| rest.any(|shown| shown == c)));
        }
    }
}
