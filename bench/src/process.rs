//! What the operating system says about a process: processor time and resident memory, from `/proc`.

use std::fs;
use std::path::PathBuf;

use super::error::BenchError;
use chitchat::procfs::{CPU_FIELDS, TICKS_PER_SECOND, number_after, stat_field};

/// A process whose resources are watched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Process {
    directory: PathBuf,
}

impl Process {
    /// The process of that id.
    pub(super) fn new(pid: u32) -> Self {
        Self {
            directory: PathBuf::from(format!("/proc/{pid}")),
        }
    }

    /// This process.
    pub(super) fn own() -> Self {
        Self {
            directory: PathBuf::from("/proc/self"),
        }
    }

    /// Processor time so far, user and system, all threads, in microseconds.
    pub(super) fn cpu(&self) -> Result<u64, BenchError> {
        let stat = self.read("stat")?;
        parse_cpu(&stat).ok_or_else(|| self.unreadable("stat"))
    }

    /// Resident memory now, in KiB.
    pub(super) fn resident(&self) -> Result<u64, BenchError> {
        let status = self.read("status")?;
        parse_resident(&status).ok_or_else(|| self.unreadable("status"))
    }

    /// How many files it may have open; `None` when that is not known.
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
    fn the_name_of_a_program_does_not_confuse() {
        let stat = "12 (a b) c) S 1 2 3 4 5 6 7 8 9 10 700 55 0 0 20";
        assert_eq!(parse_cpu(stat), Some(7_550_000));
        assert_eq!(parse_cpu("nonsense"), None);
    }

    #[test]
    fn resident_memory_is_found() {
        assert_eq!(
            parse_resident("Name:\tx\nVmHWM:\t 9 kB\nVmRSS:\t  1234 kB\n"),
            Some(1_234)
        );
        assert_eq!(parse_resident("Name:\tx\n"), None);
    }

    #[test]
    fn this_process_can_be_watched() {
        let own = Process::own();
        assert!(own.resident().unwrap() > 0);
        assert!(own.cpu().is_ok());
        assert!(own.open_files().unwrap() > 0);
    }
}
