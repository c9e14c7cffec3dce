//! CPU time, resident memory and limits of a process, from `/proc`.

use std::fs;
use std::path::PathBuf;

use super::error::BenchError;
use chitchat::procfs::{CPU_FIELDS, TICKS_PER_SECOND, number_after, stat_field};

/// A process, identified by its directory in `/proc`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Process {
    directory: PathBuf,
}

impl Process {
    /// The process with this id.
    pub(super) fn new(pid: u32) -> Self {
        Self {
            directory: PathBuf::from(format!("/proc/{pid}")),
        }
    }

    /// The current process.
    pub(super) fn current() -> Self {
        Self {
            directory: PathBuf::from("/proc/self"),
        }
    }

    /// User and system CPU time of all threads so far, in microseconds.
    pub(super) fn cpu(&self) -> Result<u64, BenchError> {
        let stat = self.read("stat")?;
        parse_cpu(&stat).ok_or_else(|| self.unreadable("stat"))
    }

    /// Resident memory in KiB.
    pub(super) fn resident(&self) -> Result<u64, BenchError> {
        let status = self.read("status")?;
        parse_resident(&status).ok_or_else(|| self.unreadable("status"))
    }

    /// The limit on open files; `None` if it is unlimited or unknown.
    pub(super) fn open_files(&self) -> Option<u64> {
        number_after(&self.read("limits").ok()?, "Max open files")
    }

    fn read(&self, file: &str) -> Result<String, BenchError> {
        let path = self.directory.join(file);
        fs::read_to_string(&path).map_err(|error| BenchError::Io(format!("{}: {error}", path.display())))
    }

    fn unreadable(&self, file: &str) -> BenchError {
        BenchError::Io(format!("{}: not understood", self.directory.join(file).display()))
    }
}

fn parse_cpu(stat: &str) -> Option<u64> {
    let [user, system] = CPU_FIELDS.map(|field| stat_field::<u64>(stat, field));
    Some((user? + system?) * (1_000_000 / TICKS_PER_SECOND))
}

fn parse_resident(status: &str) -> Option<u64> {
    number_after(status, "VmRSS:")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_name_with_spaces_and_brackets_is_skipped() {
        let stat = "12 (a b) c) S 1 2 3 4 5 6 7 8 9 10 700 55 0 0 20";
        assert_eq!(parse_cpu(stat), Some(7_550_000));
        assert_eq!(parse_cpu("nonsense"), None);
    }

    #[test]
    fn resident_memory_is_parsed() {
        assert_eq!(
            parse_resident("Name:\tx\nVmHWM:\t 9 kB\nVmRSS:\t  1234 kB\n"),
            Some(1_234)
        );
        assert_eq!(parse_resident("Name:\tx\n"), None);
    }

    #[test]
    fn the_current_process_can_be_measured() {
        let own = Process::current();
        assert!(own.resident().unwrap() > 0);
        assert!(own.cpu().is_ok());
        assert!(own.open_files().unwrap() > 0);
    }
}
