//! One stream of `Chat`, as it goes over the wire.

use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Status, Streaming};

use crate::proto::chat_service_client::ChatServiceClient;
use crate::proto::{JoinMsgLeave, ServerMessage};

/// How many messages wait to be sent, at most; then [`Speaker::say`] waits. A sender who never has more than this many
/// unacknowledged never waits.
///
/// [`Speaker::say`]: super::Speaker::say
pub const QUEUE: usize = 256;

/// The largest message that is taken from a server: twice what the longest text of the most generous server needs.
pub(super) const MAX_MESSAGE_BYTES: usize = 1024 * 1024;

/// A stream whose JOIN was answered. Dropping it cuts it.
#[derive(Debug)]
pub(super) struct Call {
    /// What is to be sent.
    pub(super) queue: mpsc::Sender<JoinMsgLeave>,
    /// What comes after the first message.
    pub(super) stream: Streaming<ServerMessage>,
    /// What came first: a welcome, or an event from a server that knows none.
    pub(super) first: ServerMessage,
}

impl Call {
    /// Sends the JOIN and waits for the server's first word: a refusal comes in its place.
    pub(super) async fn begin(channel: Channel, join: JoinMsgLeave) -> Result<Self, Status> {
        let (queue, outbound) = mpsc::channel(QUEUE);
        queue.try_send(join).expect("the queue is new, empty and open");
        let mut stream = ChatServiceClient::new(channel)
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .chat(ReceiverStream::new(outbound))
            .await?
            .into_inner();
        let first = stream
            .message()
            .await?
            .ok_or_else(|| Status::unavailable("the stream ended before its JOIN was answered"))?;
        Ok(Self { queue, stream, first })
    }
}
