//! The framing of gRPC messages, and the limits on messages in transit.

use std::time::Duration;

use super::error::RpcError;
use crate::reason::Reason;

/// The length of the header that precedes each message: a flag and a length.
pub(super) const HEADER_LEN: usize = 5;

/// How long the rest of a message may take: long enough for 64 KiB on a slow mobile connection.
pub(super) const PARTIAL_TIMEOUT: Duration = Duration::from_secs(60);

/// The length of the message that follows `header`.
///
/// # Errors
///
/// The message is compressed or longer than `limit`.
pub(super) fn payload_len(header: &[u8; HEADER_LEN], limit: usize) -> Result<usize, RpcError> {
    let [flag, len @ ..] = *header;
    if flag != 0 {
        let message = "a message has the compressed flag; compressed messages are not supported";
        return Err(RpcError::new(Reason::Undecodable, message));
    }
    let len = u32::from_be_bytes(len);
    match usize::try_from(len) {
        Ok(len) if len <= limit => Ok(len),
        _ => Err(RpcError::new(
            Reason::RequestTooLarge,
            format!("a message of {len} bytes exceeds the limit of this method, {limit} bytes"),
        )),
    }
}

pub(super) fn too_slow() -> RpcError {
    let limit = humantime::format_duration(PARTIAL_TIMEOUT);
    RpcError::new(
        Reason::RequestTimeout,
        format!("a message was not complete within {limit}"),
    )
}
