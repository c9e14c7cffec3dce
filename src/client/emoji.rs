//! Where an invisible character belongs to an emoji.
//!
//! ❤️ and 👩‍💻 are written with a variation selector and a joiner, which show nothing by themselves. Directly between
//! pictographs they cannot hide anything or be mistaken for something else, so there, and only there, they may stand.

/// Asks for the colourful form of the pictograph before it (variation selector 16).
const COLOURFUL: char = '\u{fe0f}';
/// Joins the pictographs around it (zero-width joiner).
const JOINER: char = '\u{200d}';
/// Draws a key cap around the digit before it.
const KEYCAP: char = '\u{20e3}';

/// Whether `c`, between `before` (the two characters before it, nearest first) and `after`, is part of an emoji.
pub(super) fn belongs_to_emoji(c: char, before: [Option<char>; 2], after: Option<char>) -> bool {
    let [nearest, second] = before;
    match (c, nearest) {
        (COLOURFUL, Some('0'..='9' | '#' | '*')) => after == Some(KEYCAP),
        (COLOURFUL, Some(nearest)) => is_pictograph(nearest),
        (JOINER, Some(COLOURFUL)) => second.is_some_and(is_pictograph) && after.is_some_and(is_pictograph),
        (JOINER, Some(nearest)) => is_pictograph(nearest) && after.is_some_and(is_pictograph),
        _ => false,
    }
}

/// Whether `c` is drawn as a picture, of those that emoji sequences are made of: the blocks of Unicode in which they
/// lie. All of these can be seen.
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
    use super::*;
    use crate::domain::characters::{is_bidi_control, is_control, is_invisible};

    #[test]
    fn pictographs_can_be_seen() {
        for c in ('\0'..=char::MAX).filter(|&c| is_pictograph(c)) {
            assert!(!is_control(c) && !is_bidi_control(c) && !is_invisible(c), "{c:?}");
        }
    }
}
