//! The parts of Linux's `/proc` that this program reads, of itself and of servers that it measures.

use std::str::FromStr;

/// A field of `/proc/PID/stat`, counted from 0 after the program's name, which may have spaces and brackets in it.
pub fn stat_field<T: FromStr>(stat: &str, field: usize) -> Option<T> {
    let (_, fields) = stat.rsplit_once(')')?;
    fields.split_whitespace().nth(field)?.parse().ok()
}

/// The first number in the line that begins with `key`.
pub fn number_after<T: FromStr>(text: &str, key: &str) -> Option<T> {
    let rest = text.lines().find_map(|line| line.strip_prefix(key))?;
    rest.split_whitespace().next()?.parse().ok()
}

/// Where `/proc/PID/stat` has the ticks of user and system time.
pub const CPU_FIELDS: [usize; 2] = [11, 12];

/// The unit of the times in `/proc`: Linux shows user space hundredths of a second on every architecture that this
/// program is built for.
pub const TICKS_PER_SECOND: u64 = 100;
