//! Why a benchmark could not be carried out.

use thiserror::Error;

/// Why a benchmark could not be carried out, or what its verdict is when the server broke a promise.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum BenchError {
    /// The plan contradicts itself or asks for what a protocol cannot do.
    #[error("{0}")]
    Plan(String),
    /// The server cannot be reached, or went away.
    #[error("{0}")]
    Unavailable(String),
    /// The server refused a client.
    #[error("{0}")]
    Refused(String),
    /// Something of the operating system failed.
    #[error("{0}")]
    Io(String),
    /// The generator itself is at fault.
    #[error("{0}")]
    Software(String),
}
