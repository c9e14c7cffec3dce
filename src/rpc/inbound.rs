//! Reads the messages of a stream.

use std::marker::PhantomData;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::{Buf, Bytes};
use http_body::Body as _;
use prost::Message;
use tokio::time::Sleep;
use tonic::Status;
use tonic::body::Body;

use super::byte_budget::Reservation;
use super::connection_budgets::{ConnectionBudgets, ReadingRequest};
use super::error::RpcError;
use super::framing::{HEADER_LEN, PARTIAL_TIMEOUT, payload_len, too_slow};
use super::turns::AddressTurns;
use crate::reason::Reason;

/// Why no more messages can be read from a stream.
#[derive(Debug)]
pub(super) enum InboundError {
    /// The connection broke or the client reset the stream.
    Lost(Status),
    /// The client sent what cannot be decoded or exceeds a limit.
    Rejected(RpcError),
}

/// The messages of a stream, decoded one by one.
///
/// Messages are decoded from the DATA frames in which they arrive. Only one that spans several frames is copied; the memory
/// for it is reserved from the connection's budget when its length is known.
pub(super) struct Inbound<M> {
    body: Body,
    limit: usize,
    budgets: Arc<ConnectionBudgets>,
    /// `None` once there is nothing more to read.
    request: Option<ReadingRequest>,
    /// The rest of the newest DATA frame.
    frame: Bytes,
    partial: Partial,
    message: PhantomData<fn() -> M>,
}

/// A message that has arrived in part, with its header.
#[derive(Default)]
struct Partial {
    bytes: Vec<u8>,
    /// The length of the whole, once the header is complete.
    len: Option<usize>,
    reservation: Option<Reservation>,
    timeout: Option<Pin<Box<Sleep>>>,
}

impl<M: Message + Default> Inbound<M> {
    /// Messages of more than `limit` bytes are rejected.
    pub(super) fn new(body: Body, limit: usize, budgets: Arc<ConnectionBudgets>) -> Self {
        Self {
            body,
            limit,
            request: Some(budgets.begin_reading()),
            budgets,
            frame: Bytes::new(),
            partial: Partial::default(),
            message: PhantomData,
        }
    }

    /// The turns that the client takes with others of its address.
    pub(super) fn turns(&self) -> &AddressTurns {
        &self.budgets.address.turns
    }

    /// Reserves memory for a message that was read and waits to be handled, as [`ConnectionBudgets::reserve_received`].
    pub(super) fn reserve(&self, bytes: usize) -> Result<Option<Reservation>, RpcError> {
        self.budgets.reserve_received(bytes)
    }

    /// The next message; `None` when the client has ended its half of the stream.
    pub(super) fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<M, InboundError>>> {
        loop {
            match self.take_message() {
                Ok(None) => {}
                Ok(Some(message)) => return Poll::Ready(Some(Ok(message))),
                Err(error) => return Poll::Ready(Some(Err(InboundError::Rejected(error)))),
            }
            if self.partial.poll_timeout(cx).is_ready() {
                return Poll::Ready(Some(Err(InboundError::Rejected(too_slow()))));
            }
            let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(cx) else {
                if let Some(request) = &mut self.request {
                    request.wait();
                }
                return Poll::Pending;
            };
            match frame {
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        if let Some(request) = &mut self.request {
                            request.read(&data);
                        }
                        self.frame = data;
                    }
                }
                Some(Err(status)) => return Poll::Ready(Some(Err(InboundError::Lost(status)))),
                None if self.request.take().is_some() => {}
                None if self.partial.bytes.is_empty() => return Poll::Ready(None),
                None => {
                    let error = RpcError::new(Reason::Undecodable, "the stream ended within a message");
                    return Poll::Ready(Some(Err(InboundError::Rejected(error))));
                }
            }
        }
    }

    /// The next message, if it has arrived as a whole.
    fn take_message(&mut self) -> Result<Option<M>, RpcError> {
        if self.partial.bytes.is_empty()
            && let Some(header) = self.frame.first_chunk()
        {
            let end = HEADER_LEN + payload_len(header, self.limit)?;
            if end <= self.frame.len() {
                let framed = self.frame.split_to(end);
                return decode(&framed[HEADER_LEN..]).map(Some);
            }
        }
        while !self.frame.is_empty() {
            let partial = &mut self.partial;
            let missing = partial.len.unwrap_or(HEADER_LEN) - partial.bytes.len();
            let arrived = self.frame.split_to(missing.min(self.frame.remaining()));
            partial.bytes.extend_from_slice(&arrived);
            if partial.len.is_none()
                && let Some(header) = partial.bytes.first_chunk()
            {
                let len = HEADER_LEN + payload_len(header, self.limit)?;
                partial.reservation = self.budgets.reserve_received(len)?;
                partial.bytes.reserve_exact(len - HEADER_LEN);
                partial.len = Some(len);
            }
            if partial.len == Some(partial.bytes.len()) {
                let partial = std::mem::take(partial);
                return decode(&partial.bytes[HEADER_LEN..]).map(Some);
            }
        }
        Ok(None)
    }
}

impl Partial {
    /// Ready when the rest of the message takes too long.
    fn poll_timeout(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.bytes.is_empty() {
            return Poll::Pending;
        }
        let timeout = self
            .timeout
            .get_or_insert_with(|| Box::pin(tokio::time::sleep(PARTIAL_TIMEOUT)));
        timeout.as_mut().poll(cx)
    }
}

fn decode<M: Message + Default>(payload: &[u8]) -> Result<M, RpcError> {
    M::decode(payload).map_err(|error| RpcError::new(Reason::Undecodable, error.to_string()))
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use bytes::BufMut;
    use http_body::Frame;
    use tonic::Code;

    use super::super::connection_budgets::{BudgetLimits, ServerBudgets};
    use super::*;
    use crate::proto::ListParticipantsRequest;

    /// A body of the given frames that then stays open.
    struct Frames(std::vec::IntoIter<Vec<u8>>);

    impl http_body::Body for Frames {
        type Data = Bytes;
        type Error = Status;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
            match self.0.next() {
                Some(data) => Poll::Ready(Some(Ok(Frame::data(data.into())))),
                None => Poll::Pending,
            }
        }
    }

    fn framed(room: &str) -> Vec<u8> {
        let message = ListParticipantsRequest {
            room: room.into(),
            ..ListParticipantsRequest::default()
        };
        let mut framed = vec![0];
        framed.put_u32(u32::try_from(message.encoded_len()).unwrap());
        message.encode(&mut framed).unwrap();
        framed
    }

    fn budgets(received: usize) -> Arc<ConnectionBudgets> {
        let limits = BudgetLimits {
            received,
            ..BudgetLimits::default()
        };
        ServerBudgets::new(limits, 1).connection([127, 0, 0, 1].into())
    }

    fn inbound(frames: Vec<Vec<u8>>, budgets: &Arc<ConnectionBudgets>) -> Inbound<ListParticipantsRequest> {
        Inbound::new(Body::new(Frames(frames.into_iter())), 4_000, Arc::clone(budgets))
    }

    /// The rooms that the messages name, until the body stays open or there is an error.
    fn read(inbound: &mut Inbound<ListParticipantsRequest>) -> (Vec<String>, Option<Code>) {
        let mut cx = Context::from_waker(Waker::noop());
        let mut rooms = Vec::new();
        loop {
            match inbound.poll_next(&mut cx) {
                Poll::Ready(Some(Ok(message))) => rooms.push(message.room),
                Poll::Ready(Some(Err(InboundError::Rejected(error)))) => {
                    return (rooms, Some(error.to_status().code()));
                }
                Poll::Pending | Poll::Ready(_) => return (rooms, None),
            }
        }
    }

    #[tokio::test]
    async fn messages_are_decoded_however_they_are_cut_into_frames() {
        let budgets = budgets(5_000);
        let long = "x".repeat(3_000);
        let bytes = [framed("tea"), framed(""), framed(&long), framed("milk")].concat();
        for size in (1..30).chain([1_000, bytes.len() - 1, bytes.len()]) {
            let frames = bytes.chunks(size).map(<[u8]>::to_vec).collect();
            let (rooms, error) = read(&mut inbound(frames, &budgets));
            assert_eq!(
                (rooms.join(","), error),
                (format!("tea,,{long},milk"), None),
                "{size}"
            );
        }
        assert!(
            budgets.reserve_received(3_750).is_ok(),
            "nothing is reserved any more"
        );
    }

    #[tokio::test]
    async fn an_incomplete_message_takes_its_whole_length_from_the_budget() {
        let budgets = budgets(5_000);
        let start = || vec![framed(&"x".repeat(3_000))[..6].to_vec()];
        let mut one = inbound(start(), &budgets);
        let mut other = inbound(start(), &budgets);
        assert_eq!(read(&mut one), (Vec::new(), None));
        assert_eq!(read(&mut other), (Vec::new(), Some(Code::ResourceExhausted)));
        drop(one);
        assert_eq!(read(&mut inbound(start(), &budgets)), (Vec::new(), None));
        let small = vec![framed("small")[..6].to_vec()];
        let _held = budgets.reserve_received(3_500);
        assert_eq!(read(&mut inbound(small, &budgets)), (Vec::new(), None));
    }

    #[tokio::test]
    async fn too_long_and_compressed_messages_are_rejected_by_their_headers() {
        let budgets = budgets(1_000);
        for (header, code) in [
            ([0, 0, 0, 0x0f, 0xa1], Code::OutOfRange),
            ([1, 0, 0, 0, 1], Code::Internal),
        ] {
            for size in [1, 5] {
                let frames = header.chunks(size).map(<[u8]>::to_vec).collect();
                assert_eq!(read(&mut inbound(frames, &budgets)), (Vec::new(), Some(code)));
            }
        }
    }
}
