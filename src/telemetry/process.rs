//! What the process takes of its machine, from `/proc`.

use std::fs;

use super::catalog::{
    self, PROCESS_CPU, PROCESS_MAX_FDS, PROCESS_OPEN_FDS, PROCESS_RESIDENT, PROCESS_START, PROCESS_THREADS,
    PROCESS_VIRTUAL,
};

/// Linux shows user space hundredths of a second on every architecture that this program is built for.
const TICKS_PER_SECOND: f64 = 100.0;

/// The metrics of this process that can be read here and now.
pub(super) fn read() -> Vec<(catalog::Definition, f64)> {
    let file = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let (stat, status, limits) = (
        file("/proc/self/stat"),
        file("/proc/self/status"),
        file("/proc/self/limits"),
    );
    let in_status = |key: &str| number_after(&status, key);
    let bytes = |key: &str| in_status(key).map(|kibibytes| kibibytes * 1024.0);
    let started =
        || Some(number_after(&file("/proc/stat"), "btime ")? + ticks(&stat, 19)? / TICKS_PER_SECOND);
    #[expect(clippy::cast_precision_loss, reason = "there are not so many")]
    let open = fs::read_dir("/proc/self/fd").ok().map(|fds| fds.count() as f64);
    [
        (PROCESS_CPU, cpu(&stat)),
        (PROCESS_RESIDENT, bytes("VmRSS:")),
        (PROCESS_VIRTUAL, bytes("VmSize:")),
        (PROCESS_OPEN_FDS, open),
        (PROCESS_MAX_FDS, number_after(&limits, "Max open files")),
        (PROCESS_THREADS, in_status("Threads:")),
        (PROCESS_START, started()),
    ]
    .into_iter()
    .filter_map(|(definition, value)| Some((definition, value?)))
    .collect()
}

fn cpu(stat: &str) -> Option<f64> {
    Some((ticks(stat, 11)? + ticks(stat, 12)?) / TICKS_PER_SECOND)
}

/// A field of `/proc/PID/stat`, counted after the name, which may have spaces in it.
fn ticks(stat: &str, field: usize) -> Option<f64> {
    let (_, fields) = stat.rsplit_once(')')?;
    fields.split_whitespace().nth(field)?.parse().ok()
}

/// The first number in the line that begins so.
fn number_after(text: &str, key: &str) -> Option<f64> {
    let rest = text.lines().find_map(|line| line.strip_prefix(key))?;
    rest.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_with_anything_in_them_are_read_past() {
        let stat = "7 (a ) b) S 1 7 7 0 -1 4194560 100 0 0 0 250 50 0 0 20 0 4 0 12345 1000 200";
        assert_eq!(cpu(stat), Some(3.0));
        assert_eq!(ticks(stat, 19), Some(12_345.0));
        assert_eq!(number_after("Name:\tx\nVmRSS:\t  12 kB\n", "VmRSS:"), Some(12.0));
        assert_eq!(
            number_after("Max open files            1024  4096  files", "Max open files"),
            Some(1024.0)
        );
    }
}
