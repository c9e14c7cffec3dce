//! How a replica gets a checkpoint of another one, over NATS.
//!
//! It asks all for their newest ones, takes the best offer that can be had, and reads it in chunks. Who offers a checkpoint keeps no state for that.

use std::cmp::Reverse;
use std::collections::VecDeque;
use std::io::{self, Read, Write as _};
use std::sync::Arc;
use std::time::Duration;

use async_nats::{Client, Message};
use bytes::{Buf as _, Bytes};
use futures_util::StreamExt as _;
use tokio::task::spawn_blocking;
use tokio::time::{Instant, sleep, timeout_at};
use tracing::warn;

use super::checkpoint::{self, Checkpoint, CheckpointError, CheckpointId};
use super::checkpoint_dir::CheckpointDir;
use super::message::LogPosition;
use super::nats::Stream;
use crate::domain::DecodeError;
use crate::domain::encoding::{self, Encoding, encode_struct};

/// Where replicas are asked for their newest checkpoints, and for a part of one: the directory's id follows.
const OFFERS: &str = "sync.chat.0.offer";
const CHUNKS: &str = "sync.chat.0.chunk";

/// The largest part of a checkpoint in one message, in bytes.
const MAX_CHUNK: usize = 512 << 10;

/// How many chunks are asked for at a time.
const IN_FLIGHT: usize = 4;

/// How often a chunk is asked for.
const ATTEMPTS: u32 = 5;

/// How many bytes a replica sends in a second, so that the command log has its share of the connection.
const BYTES_PER_SECOND: u32 = 32 << 20;

/// How long to wait for offers.
const OFFER_TIMEOUT: Duration = Duration::from_millis(500);

/// The most offers that are compared.
const MAX_OFFERS: usize = 64;

/// How long to wait before something is tried again.
const RETRY: Duration = Duration::from_millis(500);

/// A checkpoint that a replica has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Offer {
    directory: u64,
    id: CheckpointId,
}

/// A question for a part of a checkpoint.
struct ChunkRequest {
    position: LogPosition,
    offset: u64,
    len: usize,
}

encode_struct! {
    Offer { directory, id }
    ChunkRequest { position, offset, len }
}

/// What precedes a chunk. Without it, the checkpoint does not exist any more.
const FOUND: u8 = 1;

/// Why a checkpoint of another replica could not be had.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TransferError {
    #[error("no replica has a checkpoint")]
    NoOffer,
    #[error("the newest checkpoint of another replica is at {0}, which is too old")]
    TooOld(LogPosition),
    #[error("the checkpoint has {len} bytes, and --max-memory allows {max}")]
    TooLarge { len: u64, max: u64 },
    #[error("NATS: {0}")]
    Nats(String),
    #[error("the checkpoint was removed meanwhile")]
    Gone,
    #[error("it is not the checkpoint that was offered")]
    Other,
    #[error("the stream does not have the message at {0} that the checkpoint is of")]
    OtherStream(LogPosition),
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
}

impl From<io::Error> for TransferError {
    fn from(error: io::Error) -> Self {
        CheckpointError::from(error).into()
    }
}

fn encode(value: &impl Encoding) -> Bytes {
    let mut bytes = vec![encoding::VERSION];
    value.write(&mut bytes);
    bytes.into()
}

/// Answers other replicas. Never completes unless the connection is closed; can be dropped at any time.
pub(crate) async fn serve(client: Client, directory: Arc<CheckpointDir>) {
    let chunks = format!("{CHUNKS}.{:016x}", directory.id());
    let subscribed = (client.subscribe(OFFERS).await, client.subscribe(chunks).await);
    let (Ok(mut offers), Ok(mut chunks)) = subscribed else {
        return;
    };
    loop {
        let (message, is_chunk) = tokio::select! {
            message = offers.next() => (message, false),
            message = chunks.next() => (message, true),
        };
        let Some(message) = message else {
            return;
        };
        let Some(reply) = message.reply.clone() else {
            continue;
        };
        let answer = if is_chunk {
            answer_chunk(&client, &directory, &message).await
        } else {
            directory.newest().map(|id| {
                let directory = directory.id();
                encode(&Offer { directory, id })
            })
        };
        if let Some(answer) = answer {
            let len = u32::try_from(answer.len()).unwrap_or(u32::MAX);
            client.publish(reply, answer).await.ok();
            // One after the other, so that is the rate for all.
            sleep(Duration::from_secs(1) * len / BYTES_PER_SECOND).await;
        }
    }
}

async fn answer_chunk(client: &Client, directory: &Arc<CheckpointDir>, message: &Message) -> Option<Bytes> {
    let ChunkRequest {
        position,
        offset,
        len,
    } = encoding::decode(&message.payload).ok()?;
    let len = len.min(max_chunk(client));
    let directory = Arc::clone(directory);
    let part = spawn_blocking(move || directory.read_part(position, offset, len)).await;
    match part.ok()? {
        Ok(Some(part)) => Some([&[FOUND], &part[..]].concat().into()),
        Ok(None) => Some(Bytes::new()),
        Err(error) => {
            warn!(event = "checkpoint_unreadable", %position, %error, "cannot read a checkpoint for another replica");
            None
        }
    }
}

fn max_chunk(client: &Client) -> usize {
    MAX_CHUNK.min(client.server_info().max_payload / 2).max(1)
}

/// Gets the newest checkpoint of another replica that can be had, if it is at `needed` or later and of this stream. It is stored in the
/// directory, if there is one.
pub(crate) async fn fetch(
    stream: &Stream,
    directory: Option<&Arc<CheckpointDir>>,
    needed: LogPosition,
    max_len: u64,
) -> Result<Checkpoint, TransferError> {
    let client = stream.client();
    let mut offers = offers(client).await?;
    // One beyond the end is of another stream, or the server that answers lags: then the next attempt accepts it.
    let last = stream
        .last()
        .await
        .map_err(|error| TransferError::Nats(error.to_string()))?;
    offers.retain(|offer| {
        Some(offer.id.position) <= last && directory.is_none_or(|own| own.id() != offer.directory)
    });
    offers.sort_unstable_by_key(|offer| Reverse(offer.id.position));
    let mut failed = None;
    for offer in offers {
        match fetch_offer(stream, offer, directory, needed, max_len).await {
            Ok(checkpoint) => return Ok(checkpoint),
            // What is wrong with the newest one.
            Err(error) => failed = failed.or(Some(error)),
        }
    }
    Err(failed.unwrap_or(TransferError::NoOffer))
}

async fn fetch_offer(
    stream: &Stream,
    offer: Offer,
    directory: Option<&Arc<CheckpointDir>>,
    needed: LogPosition,
    max_len: u64,
) -> Result<Checkpoint, TransferError> {
    let CheckpointId { position, len, .. } = offer.id;
    let client = stream.client();
    if position < needed {
        return Err(TransferError::TooOld(position));
    }
    if len > max_len {
        return Err(TransferError::TooLarge { len, max: max_len });
    }
    // It may be large, so that is known before it is read.
    check_stream(stream, offer.id).await?;
    let checkpoint = match directory {
        Some(directory) => {
            let creating = Arc::clone(directory);
            let mut new = blocking(move || Ok(creating.create()?)).await?;
            let mut chunks = std::pin::pin!(chunks(client, offer));
            while let Some(chunk) = chunks.next().await {
                let chunk = chunk?;
                new = blocking(move || {
                    new.write_all(&chunk)?;
                    Ok(new)
                })
                .await?;
            }
            let (checkpoint, new) = blocking(move || Ok((checked(new.read()?, offer)?, new))).await?;
            let directory = Arc::clone(directory);
            blocking(move || Ok(directory.commit(new, offer.id)?)).await?;
            checkpoint
        }
        None => {
            let mut received = ChunkReader::default();
            let mut chunks = std::pin::pin!(chunks(client, offer));
            while let Some(chunk) = chunks.next().await {
                received.0.push_back(chunk?);
            }
            blocking(move || checked(checkpoint::read(received, len)?, offer)).await?
        }
    };
    Ok(checkpoint)
}

/// Checks that a checkpoint is of this stream.
async fn check_stream(stream: &Stream, checkpoint: CheckpointId) -> Result<(), TransferError> {
    let position = checkpoint.position;
    let found = stream.first_from(position).await;
    match found.map_err(|error| TransferError::Nats(error.to_string()))? {
        Some((found, fingerprint)) if found == position && checkpoint.fingerprint.matches(fingerprint) => {
            Ok(())
        }
        _ => Err(TransferError::OtherStream(position)),
    }
}

fn checked(checkpoint: Checkpoint, offer: Offer) -> Result<Checkpoint, TransferError> {
    if checkpoint.id == offer.id {
        Ok(checkpoint)
    } else {
        Err(TransferError::Other)
    }
}

/// The newest checkpoints of replicas.
async fn offers(client: &Client) -> Result<Vec<Offer>, TransferError> {
    let nats = |error: &dyn std::fmt::Display| TransferError::Nats(error.to_string());
    let inbox = client.new_inbox();
    let mut answers = client
        .subscribe(inbox.clone())
        .await
        .map_err(|error| nats(&error))?;
    let asked = client.publish_with_reply(OFFERS, inbox, Bytes::new()).await;
    asked.map_err(|error| nats(&error))?;
    let deadline = Instant::now() + OFFER_TIMEOUT;
    let mut offers = Vec::new();
    for _ in 0..MAX_OFFERS {
        let Ok(Some(answer)) = timeout_at(deadline, answers.next()).await else {
            break;
        };
        // Nobody subscribes.
        if answer.status.is_some() {
            break;
        }
        offers.extend(encoding::decode::<Offer>(&answer.payload));
    }
    Ok(offers)
}

/// The chunks of a checkpoint, in order.
fn chunks(client: &Client, offer: Offer) -> impl futures_util::Stream<Item = Result<Bytes, TransferError>> {
    let chunk_len = max_chunk(client);
    let subject = format!("{CHUNKS}.{:016x}", offer.directory);
    let offsets = (0..offer.id.len).step_by(chunk_len);
    let requests = offsets.map(move |offset| {
        let (client, subject) = (client.clone(), subject.clone());
        let left = usize::try_from(offer.id.len - offset).unwrap_or(usize::MAX);
        let (position, len) = (offer.id.position, chunk_len.min(left));
        async move {
            let mut error = TransferError::Gone;
            for _ in 0..ATTEMPTS {
                let request = encode(&ChunkRequest {
                    position,
                    offset,
                    len,
                });
                match client.request(subject.clone(), request).await {
                    Ok(mut answer) if answer.payload.first() == Some(&FOUND) => {
                        answer.payload.advance(1);
                        // The other one may allow less than was asked for.
                        if answer.payload.len() == len {
                            return Ok(answer.payload);
                        }
                        return Err(TransferError::Other);
                    }
                    Ok(_) => return Err(TransferError::Gone),
                    Err(failed) => error = TransferError::Nats(failed.to_string()),
                }
                sleep(RETRY).await;
            }
            Err(error)
        }
    });
    futures_util::stream::iter(requests).buffered(IN_FLIGHT)
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, TransferError> + Send + 'static,
) -> Result<T, TransferError> {
    let done = spawn_blocking(work).await;
    done.unwrap_or_else(|_| Err(CheckpointError::Malformed("it cannot be decoded").into()))
}

/// Chunks in memory, each of which is let go once it is read.
#[derive(Debug, Default)]
struct ChunkReader(VecDeque<Bytes>);

impl Read for ChunkReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.0.pop_front_if(|chunk| chunk.is_empty()).is_some() {}
        let Some(chunk) = self.0.front_mut() else {
            return Ok(0);
        };
        let len = chunk.len().min(buffer.len());
        chunk.copy_to_slice(&mut buffer[..len]);
        Ok(len)
    }
}
