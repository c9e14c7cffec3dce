//! Linux's `/proc` and cgroups: what they say of this process, and of the servers that the load generator measures.

use std::fs;
use std::path::Path;
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

/// The memory that this process may use, in bytes: the lowest limit of its cgroup and those around it, and the memory of the
/// machine. `None` if the system does not tell.
#[must_use]
pub fn memory_limit() -> Option<u64> {
    let machine = fs::read_to_string("/proc/meminfo")
        .ok()
        .and_then(|text| number_after::<u64>(&text, "MemTotal:"))
        .map(|kibibytes| kibibytes * 1024);
    let cgroups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let limits = cgroups.lines().flat_map(|line| {
        let mut fields = line.splitn(3, ':').skip(1);
        match (fields.next(), fields.next()) {
            (Some(""), Some(path)) => cgroup_limits("/sys/fs/cgroup", path, "memory.max"),
            (Some(controllers), Some(path)) if controllers.split(',').any(|name| name == "memory") => {
                cgroup_limits("/sys/fs/cgroup/memory", path, "memory.limit_in_bytes")
            }
            _ => Vec::new(),
        }
    });
    limits.chain(machine).min()
}

/// The memory that this process takes, in bytes. `None` if the system does not tell.
#[must_use]
pub fn resident_memory() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    number_after::<u64>(&status, "VmRSS:").map(|kibibytes| kibibytes * 1024)
}

/// The limits in the `file` of the cgroup `path` and of those around it, as far as they are visible below `root`.
fn cgroup_limits(root: &str, path: &str, file: &str) -> Vec<u64> {
    let path = Path::new(path.trim_start_matches('/'));
    path.ancestors()
        .filter_map(|path| {
            fs::read_to_string(Path::new(root).join(path).join(file))
                .ok()?
                .trim()
                .parse()
                .ok()
        })
        .collect()
}
