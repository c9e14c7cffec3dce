//! Character classes. Characters that could move a cursor, hide, or reverse the direction of a line are not allowed in
//! names; the client keeps them off the terminal.

use unicode_security::GeneralSecurityProfile as _;
use unicode_security::skeleton;

/// The ASCII characters other than letters, digits and spaces that are allowed in participants' names. Missing are those that
/// separate names from texts, or quote or enclose them.
pub(super) const NAME_PUNCTUATION: &str = "! # & ' ( ) + , - . / ? @ _ ~";

/// Whether `c` is a control character (C0, DEL, C1), or a line or paragraph separator.
#[must_use]
pub const fn is_control(c: char) -> bool {
    matches!(c, '\0'..='\x1f' | '\x7f'..='\u{9f}' | '\u{2028}' | '\u{2029}')
}

/// Whether `c` changes the direction of the text around it: Unicode's `Bidi_Control`, and the deprecated format characters
/// U+206A to U+206F.
#[must_use]
pub const fn is_bidi_control(c: char) -> bool {
    matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{206f}')
}

/// Whether `c` has no visible glyph: Unicode's `Default_Ignorable_Code_Point` (zero-width spaces and joiners, fillers,
/// variation selectors, tags) without the bidirectional controls, interlinear annotations, the Braille blank, and
/// noncharacters.
#[must_use]
pub const fn is_invisible(c: char) -> bool {
    matches!(
        c,
        '\u{ad}' | '\u{34f}' | '\u{115f}' | '\u{1160}' | '\u{17b4}' | '\u{17b5}' | '\u{180b}'..='\u{180f}'
            | '\u{200b}'..='\u{200d}' | '\u{2060}'..='\u{2065}' | '\u{2800}' | '\u{3164}'
            | '\u{fdd0}'..='\u{fdef}' | '\u{fe00}'..='\u{fe0f}' | '\u{feff}' | '\u{ffa0}' | '\u{fff0}'..='\u{fffb}'
            | '\u{1bca0}'..='\u{1bca3}' | '\u{1d173}'..='\u{1d17a}' | '\u{e0000}'..='\u{e0fff}'
    ) || (c as u32) & 0xfffe == 0xfffe
}

/// Whether `c` is neither a control nor a bidirectional nor an invisible character. All others are allowed in the names of
/// rooms.
#[must_use]
pub const fn is_visible_in_name(c: char) -> bool {
    !is_control(c) && !is_bidi_control(c) && !is_invisible(c)
}

/// Whether `c` is allowed in the names of participants: an inner space, one of [`NAME_PUNCTUATION`], or a character with
/// `Identifier_Status` `Allowed` of UTS 39 that does not look like another ASCII punctuation character.
pub(super) fn is_allowed_in_name(c: char) -> bool {
    if c.is_ascii() {
        return c == ' ' || is_allowed_ascii(c);
    }
    let looks_allowed = |look: char| !look.is_ascii() || is_allowed_ascii(look);
    c.identifier_allowed() && skeleton(c.encode_utf8(&mut [0; 4])).all(looks_allowed)
}

fn is_allowed_ascii(c: char) -> bool {
    c.is_ascii_alphanumeric() || (c != ' ' && NAME_PUNCTUATION.contains(c))
}

/// Whether `c` is allowed in a text: everything but control characters, of which tab and newline are allowed. Line and
/// paragraph separators are text.
#[must_use]
pub fn is_allowed_in_text(c: char) -> bool {
    !c.is_control() || matches!(c, '\t' | '\n')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn letters_of_any_script_are_allowed_in_names() {
        for c in "Ada Ångström 山田 Ольга عمر -_.'".chars() {
            assert!(is_allowed_in_name(c) && is_visible_in_name(c), "{c:?}");
        }
        assert!(is_visible_in_name('🦀') && !is_allowed_in_name('🦀'));
    }

    #[test]
    fn characters_that_hide_or_move_text_are_not_allowed_in_names() {
        for c in
            "\u{1b}\u{7f}\u{9b}\t\n\u{202e}\u{2066}\u{200b}\u{200d}\u{feff}\u{fe0f}\u{e0041}\u{ffff}\u{1ffff}"
                .chars()
        {
            assert!(!is_allowed_in_name(c) && !is_visible_in_name(c), "{c:?}");
        }
    }

    #[test]
    fn tab_and_newline_are_the_only_control_characters_allowed_in_texts() {
        assert!("a\tb\nc\u{202e}\u{200d}".chars().all(is_allowed_in_text));
        assert!(
            "\0\u{1b}\r\u{7f}\u{85}\u{9b}"
                .chars()
                .all(|c| !is_allowed_in_text(c))
        );
    }
}
