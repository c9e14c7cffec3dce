//! How far a run is, as a bar for a terminal.

/// How many characters the bar itself has.
const WIDTH: u64 = 24;

/// `done` of `all`, in characters and per cent; more than all counts as all.
pub(super) fn bar(done: u64, all: u64) -> String {
    let (done, all) = (u128::from(done.min(all)), u128::from(all.max(1)));
    let full = usize::try_from(done * u128::from(WIDTH) / all).unwrap_or(0);
    let rest = usize::try_from(WIDTH).unwrap_or(0).saturating_sub(full);
    format!(
        "[{}{}] {:>3} %",
        "#".repeat(full),
        "-".repeat(rest),
        done * 100 / all
    )
}

#[cfg(test)]
mod tests {
    use super::bar;

    #[test]
    fn the_bar_has_one_length_and_ends_full() {
        assert_eq!(bar(0, 10), "[------------------------]   0 %");
        assert_eq!(bar(5, 10), "[############------------]  50 %");
        assert_eq!(bar(10, 10), "[########################] 100 %");
        assert_eq!(bar(u64::MAX, 10), bar(10, 10));
        assert_eq!(bar(0, 0), bar(0, 10));
    }
}
