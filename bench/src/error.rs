//! Errors of a run.

use thiserror::Error;

/// Why a run could not be completed.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum BenchError {
    /// The plan contradicts itself or requires something that the protocol does not support.
    #[error("{0}")]
    Plan(String),
    /// The server cannot be reached, or stopped responding.
    #[error("{0}")]
    Unavailable(String),
    /// The server rejected a client.
    #[error("{0}")]
    Rejected(String),
    /// An operating system call failed.
    #[error("{0}")]
    Io(String),
    /// A bug in the generator itself.
    #[error("{0}")]
    Software(String),
}
