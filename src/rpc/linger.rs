//! Closes a connection such that the client can read what was sent to it last.

use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::timeout;

/// How long a client may take to close the connection.
const TIMEOUT: Duration = Duration::from_secs(2);

/// How much is read of what a client goes on sending.
const MAX_DISCARDED: u64 = 64 * 1024;

/// Ends the sending half of a connection and reads until the client closes it, too. Closing it at once would discard what the
/// client has not read yet, if it has sent something that the server has not read.
pub(super) async fn linger<T: AsyncRead + AsyncWrite + Unpin>(mut io: T) {
    let lingering = async {
        io.shutdown().await?;
        tokio::io::copy(&mut io.take(MAX_DISCARDED), &mut tokio::io::sink()).await
    };
    timeout(TIMEOUT, lingering).await.ok();
}
