//! When two names are the same to the eye.

use unicode_security::skeleton;

use super::name::Name;

/// What a name looks like: two names that share a key are taken for the same.
///
/// The skeleton of Unicode Technical Standard 39 folds look-alikes (Cyrillic `а`, digit `0`), and it is taken twice:
/// of the name as written (where a capital `I` looks like a small `l`) and of the name in lower case (where `ADA` is
/// `ada`). Runs of white space count as one space.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct NameKeys {
    pub(super) as_written: Box<str>,
    pub(super) in_lower_case: Box<str>,
}

impl NameKeys {
    pub(super) fn of(name: &Name) -> Self {
        Self {
            as_written: look(name.as_str()),
            in_lower_case: look(&fold(name.as_str())),
        }
    }

    /// Whether the two share a key.
    pub(super) fn meet(&self, other: &Self) -> bool {
        let theirs = [&other.as_written, &other.in_lower_case];
        theirs
            .iter()
            .any(|key| **key == self.as_written || **key == self.in_lower_case)
    }
}

impl Name {
    /// Whether the two are the same to the eye, so that a room takes only one of them.
    #[must_use]
    pub fn looks_like(&self, other: &Self) -> bool {
        NameKeys::of(self).meet(&NameKeys::of(other))
    }
}

/// Without case. By way of the capitals, which many small letters share: `ß` and `ss`, `σ` and `ς`, `ſ` and `s`.
fn fold(name: &str) -> String {
    let capitals = name.chars().flat_map(char::to_uppercase);
    capitals.flat_map(char::to_lowercase).collect()
}

fn look(name: &str) -> Box<str> {
    let seen = fold(&skeleton(name).collect::<String>());
    seen.split_whitespace().collect::<Vec<_>>().join(" ").into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn alike(a: &str, b: &str) -> bool {
        Name::try_from(a).unwrap().looks_like(&Name::try_from(b).unwrap())
    }

    #[test]
    fn case_and_look_alikes_are_folded() {
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
            assert!(alike(a, b), "{a} and {b}");
        }
    }

    #[test]
    fn different_names_stay_different() {
        for (a, b) in [
            ("Ada", "Aida"),
            ("bot-1", "bot-2"),
            ("client10", "client11"),
            ("山田", "山口"),
            ("é", "e"),
        ] {
            assert!(!alike(a, b), "{a} and {b}");
        }
    }
}
