//! Shows what others wrote without letting it act on the terminal.
//!
//! Control characters could move the cursor or send the terminal commands, bidirectional controls could turn the rest
//! of the line around, invisible characters could make two different texts look the same. Each becomes a visible escape:
//! `\n`, `\t`, or `\u{1b}` with the character's number. What comes out is always one line.
//!
//! The escapes are for the eye: a text that contains the five characters `\u{1b}` looks the same as an escaped one, and
//! nothing turns them back. Programs should read the messages, not the lines.

use std::borrow::Cow;
use std::fmt::Write as _;

use super::emoji::belongs_to_emoji;
use crate::domain::characters::{is_bidi_control, is_control, is_invisible};

/// A text on one line. Emoji that are written with joiners and variation selectors stay whole.
#[must_use]
pub fn text(raw: &str) -> Cow<'_, str> {
    escape(raw, belongs_to_emoji)
}

/// A name (of a participant or a room) on one line: stricter than [`text`], as no name needs invisible characters.
#[must_use]
pub fn name(raw: &str) -> Cow<'_, str> {
    escape(raw, |_, _, _| false)
}

/// Whether a character could act on a terminal, or hide on it.
#[must_use]
pub const fn must_not_be_shown_raw(c: char) -> bool {
    is_control(c) || is_bidi_control(c) || is_invisible(c)
}

fn escape(raw: &str, may_stay: impl Fn(char, [Option<char>; 2], Option<char>) -> bool) -> Cow<'_, str> {
    if !raw.chars().any(must_not_be_shown_raw) {
        return Cow::Borrowed(raw);
    }
    let mut shown = String::with_capacity(raw.len() + 16);
    let mut before = [None, None];
    let mut characters = raw.chars().peekable();
    while let Some(c) = characters.next() {
        if !must_not_be_shown_raw(c) || may_stay(c, before, characters.peek().copied()) {
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn plain_text_of_any_script_stays_as_it_is() {
        for plain in ["", "Hello World!", "Ångström 山田 Ольга عمر 🦀", r"C:\new\u{1b}"] {
            assert!(matches!(text(plain), Cow::Borrowed(shown) if shown == plain));
            assert!(matches!(name(plain), Cow::Borrowed(shown) if shown == plain));
        }
    }

    #[test]
    fn what_could_act_on_the_terminal_is_shown_instead() {
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
    fn emoji_stay_whole_in_texts_and_nowhere_else() {
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

    /// Any characters, with those that matter here far more often than chance would bring them.
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
        fn no_name_can_act_or_hide(raw in hostile()) {
            let shown = name(&raw);
            prop_assert!(!shown.chars().any(must_not_be_shown_raw), "{shown:?}");
        }

        #[test]
        fn no_text_can_act_or_hide(raw in hostile()) {
            let shown: Vec<char> = text(&raw).chars().collect();
            for (place, &c) in shown.iter().enumerate() {
                if must_not_be_shown_raw(c) {
                    let joiner = c == '\u{200d}';
                    prop_assert!(joiner || c == '\u{fe0f}', "{c:?} in {shown:?}");
                    // Between characters that are seen: never first, never two of a kind, a joiner never last.
                    let before = place.checked_sub(1).map(|place| shown[place]);
                    let after = shown.get(place + 1).copied();
                    prop_assert!(before.is_some_and(|before| before != c && !is_control(before)));
                    prop_assert!(!joiner || after.is_some_and(|after| !must_not_be_shown_raw(after)));
                }
            }
        }

        #[test]
        fn what_is_harmless_is_kept(raw in hostile()) {
            let kept: String = raw.chars().filter(|&c| !must_not_be_shown_raw(c)).collect();
            let shown = text(&raw);
            let mut rest = shown.chars();
            prop_assert!(kept.chars().all(|c| rest.any(|shown| shown == c)));
        }
    }
}
