//! Parsers for the files of Linux's `/proc` that describe this process and the servers that the load generator measures.

use std::str::FromStr;

/// Parses a field of `/proc/PID/stat`. Fields are counted from 0 after the program's name, which can contain spaces and
/// parentheses. Returns `None` if the field is missing or is not a `T`.
pub fn stat_field<T: FromStr>(stat: &str, field: usize) -> Option<T> {
    let (_, fields) = stat.rsplit_once(')')?;
    fields.split_whitespace().nth(field)?.parse().ok()
}

/// Parses the word after `key` in the first line that begins with `key`. Returns `None` if there is no such line or the word
/// is not a `T`.
pub fn number_after<T: FromStr>(text: &str, key: &str) -> Option<T> {
    let rest = text.lines().find_map(|line| line.strip_prefix(key))?;
    rest.split_whitespace().next()?.parse().ok()
}

/// The fields of `/proc/PID/stat`, as numbered by [`stat_field`], with the user and the system CPU time in ticks.
pub const CPU_FIELDS: [usize; 2] = [11, 12];

/// The number of ticks per second in `/proc` (`USER_HZ`): 100 on every architecture that this program is built for.
pub const TICKS_PER_SECOND: u64 = 100;
