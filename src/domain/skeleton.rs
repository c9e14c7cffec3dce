//! Confusable names: Unicode Technical Standard 39 (<https://www.unicode.org/reports/tr39/>).

use std::sync::Arc;

use unicode_security::skeleton;

use super::name::Name;

/// The two skeletons of a name. Two names are confusable if they share one.
pub(super) type Skeletons = [Arc<str>; 2];

/// Computes the skeletons of a name, which takes microseconds.
///
/// The skeleton of UTS 39 maps characters that look alike to the same character (Cyrillic `а` to Latin `a`, the digit `0`
/// to `O`). It is case-sensitive, but here `ADA` and `ada` are the same name, so it is computed twice: of the name as
/// written (in which a capital `I` looks like a small `l`) and of the name in lower case. A run of white space counts as
/// one space.
pub(super) fn skeletons(name: &Name) -> Skeletons {
    let name = name.as_str();
    [folded_skeleton(name), folded_skeleton(&fold_case(name))]
}

impl Name {
    /// Whether the names look alike or differ only in case, so that a room accepts only one of them.
    #[must_use]
    pub fn is_confusable_with(&self, other: &Self) -> bool {
        let others = skeletons(other);
        skeletons(self).iter().any(|skeleton| others.contains(skeleton))
    }
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
    use super::*;

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
