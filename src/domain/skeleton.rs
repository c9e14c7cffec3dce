//! Confusable names: Unicode Technical Standard 39 (<https://www.unicode.org/reports/tr39/>).

use std::sync::Arc;

use unicode_security::skeleton;

/// Identifies the Unicode tables that decide which names are confusable. Replicas of a room must have the same. A test compares it with the
/// tables of this build.
pub(crate) const NAME_TABLES: u64 = 0x9db0_d631_cd14_4db8;

/// The two skeletons of a name. Two names are confusable if they share one.
pub(super) type Skeletons = [Arc<str>; 2];

/// Computes the skeletons of a name, which takes microseconds.
///
/// The skeleton of UTS 39 maps characters that look alike to the same character (Cyrillic `а` to Latin `a`, the digit `0`
/// to `O`). It is case-sensitive, but here `ADA` and `ada` are the same name, so it is computed twice: of the name as
/// written (in which a capital `I` looks like a small `l`) and of the name in lower case. A run of white space counts as
/// one space.
pub(super) fn skeletons(name: &str) -> Skeletons {
    [folded_skeleton(name), folded_skeleton(&fold_case(name))]
}

/// A text that no name may look like.
pub(super) struct ReservedPhrase([String; 2]);

impl ReservedPhrase {
    pub(super) fn new(text: &str) -> Self {
        Self(fold_i_to_l(text))
    }

    /// Whether a name, or a part of it, looks like the phrase.
    pub(super) fn occurs_in(&self, name: &str) -> bool {
        let names = fold_i_to_l(name);
        names
            .iter()
            .any(|name| self.0.iter().any(|phrase| name.contains(phrase)))
    }
}

/// The skeletons of a text with an `l` for each `i`: a capital `I` can stand for both in one name.
fn fold_i_to_l(text: &str) -> [String; 2] {
    skeletons(text).map(|skeleton| skeleton.replace('i', "l"))
}

/// Folds case. It maps to upper case first, because several lower-case letters share an upper-case one: `σ` and `ς`, `s`
/// and `ſ`, `ss` and `ß`.
fn fold_case(name: &str) -> String {
    let capitals = name.chars().flat_map(char::to_uppercase);
    capitals.flat_map(char::to_lowercase).collect()
}

fn folded_skeleton(name: &str) -> Arc<str> {
    let folded = fold_case(&skeleton(name).collect::<String>());
    folded.split_whitespace().collect::<Vec<_>>().join(" ").into()
}

#[cfg(test)]
mod tests {
    use super::super::name::Name;
    use super::*;

    /// If this fails, the tables have changed with a dependency or with the compiler, and replicas decide differently about names than those
    /// before: change the constant, so that the two never take part in one cluster at the same time, and say so in the changelog.
    #[test]
    fn the_tables_are_those_that_all_replicas_have() {
        let mut hash = xxhash_rust::xxh3::Xxh3::new();
        let mut buffer = String::new();
        // Without most ideographs, syllables and private characters, which are many and alike.
        let many = |code: &u32| matches!(code, 0x3400..=0x9fff | 0xac00..=0xd7a3 | 0xe000..=0xf8ff | 0x2_0000..=0xd_ffff | 0xe_0200..);
        for code in (0..=u32::from(char::MAX)).filter(|code| !many(code) || code.is_multiple_of(1_021)) {
            if let Some(character) = char::from_u32(code) {
                buffer.clear();
                buffer.extend(skeleton(character.encode_utf8(&mut [0; 4])));
                buffer.push('\0');
                buffer.push_str(&fold_case(character.encode_utf8(&mut [0; 4])));
                hash.update(buffer.as_bytes());
            }
        }
        assert_eq!(hash.digest(), NAME_TABLES, "0x{:016x}", hash.digest());
    }

    fn are_confusable(a: &str, b: &str) -> bool {
        // Stored names can be confusable with new ones, too.
        let name = |name| Name::from_stored(name).unwrap();
        name(a).is_confusable_with(&name(b))
    }

    #[test]
    fn names_that_differ_in_case_or_look_alikes_are_confusable() {
        for (a, b) in [
            ("Ada", "ADA"),
            ("Ada", "Аdа"),    // Cyrillic
            ("Ada", "Ａｄａ"), // full width
            ("Ian", "lan"),
            ("STRASSE", "Straße"),
            ("ΣΑΣ", "σας"),
            ("ſam", "Sam"),
            ("b0b", "bob"),
            ("É", "E\u{301}"),
            ("Ada L", "Ada\u{a0}  L"),
        ] {
            assert!(are_confusable(a, b), "{a} and {b}");
        }
    }

    #[test]
    fn different_names_are_not_confusable() {
        for (a, b) in [
            ("Ada", "Aida"),
            ("bot-1", "bot-2"),
            ("client10", "client11"),
            ("山田", "山口"),
            ("é", "e"),
        ] {
            assert!(!are_confusable(a, b), "{a} and {b}");
        }
    }
}
