//! The streaming calls. They stand before the generated service, because their response is not a stream of messages that
//! would each be encoded for each client, but a body of bytes that are encoded already.

use std::convert::Infallible;
use std::future::{Ready, ready};
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_util::future::Either;
use http::header::CONTENT_TYPE;
use http::{HeaderValue, Request, Response};
use tokio_util::sync::CancellationToken;
use tonic::body::Body;
use tonic::codec::BufferSettings;
use tonic::server::NamedService;
use tonic::{Status, Streaming};
use tonic_prost::ProstCodec;
use tower::Service;

use super::chat_body::ChatBody;
use super::observer::Observer;
use super::subscribe_body::SubscribeBody;
use crate::hub::Hub;
use crate::proto::ServerMessage;

const CHAT_PATH: &str = "/itu.chitchat.ChatService/Chat";
const SUBSCRIBE_PATH: &str = "/itu.chitchat.ChatService/Subscribe";

/// What the decoder's buffer begins with. Most messages are short, and every stream has such a buffer.
const DECODE_BUFFER: usize = 128;

/// Bytes of a message besides its text: names, ids, tokens, trace context.
const ENVELOPE: usize = 4 * 1024;

/// Texts at least this long are refused by a notice, and the stream goes on, however low the limit is set. Longer ones
/// end the stream before they take up memory.
const MIN_DECODE_LIMIT: usize = 64 * 1024;

/// The longest message that is decoded, in bytes, where a text may have `max_message_chars`. Its length prefix alone takes up
/// as much memory.
#[must_use]
pub fn decode_limit(max_message_chars: usize) -> usize {
    // A character has at most four bytes.
    max_message_chars
        .saturating_mul(4)
        .saturating_add(ENVELOPE)
        .max(MIN_DECODE_LIMIT)
}

/// Answers Chat and Subscribe, and hands the service's other calls to `S`.
#[derive(Clone)]
pub struct StreamingService<S> {
    calls: S,
    hub: Arc<Hub>,
    draining: CancellationToken,
    observer: Arc<dyn Observer>,
}

impl<S> StreamingService<S> {
    /// Serves Chat and Subscribe from `hub`, and the other calls from `calls`. Streams that have not joined end when `draining` is
    /// cancelled.
    pub fn new(calls: S, hub: Arc<Hub>, draining: CancellationToken, observer: Arc<dyn Observer>) -> Self {
        Self {
            calls,
            hub,
            draining,
            observer,
        }
    }

    fn chat(&self, request: Request<Body>) -> Response<Body> {
        let limit = decode_limit(self.hub.rules().max_message_chars);
        answer(request, limit, |inbound| {
            ChatBody::new(
                Arc::clone(&self.hub),
                inbound,
                self.draining.clone(),
                Arc::clone(&self.observer),
            )
        })
    }

    fn subscribe(&self, request: Request<Body>) -> Response<Body> {
        answer(request, ENVELOPE, |inbound| {
            SubscribeBody::new(
                Arc::clone(&self.hub),
                inbound,
                self.draining.clone(),
                Arc::clone(&self.observer),
            )
        })
    }
}

/// The response whose body `respond` makes of what the client sends, in messages of at most `limit` bytes.
fn answer<M, B>(
    request: Request<Body>,
    limit: usize,
    respond: impl FnOnce(Streaming<M>) -> B,
) -> Response<Body>
where
    M: prost::Message + Default + Send + 'static,
    B: http_body::Body<Data = Bytes, Error = Status> + Send + 'static,
{
    if let Some(encoding) = request.headers().get("grpc-encoding")
        && encoding != "identity"
    {
        let mut response = Status::unimplemented("messages are taken uncompressed only").into_http();
        response
            .headers_mut()
            .insert("grpc-accept-encoding", HeaderValue::from_static("identity"));
        return response;
    }
    let decoder = ProstCodec::<ServerMessage, M>::raw_decoder(BufferSettings::new(DECODE_BUFFER, 0));
    let inbound = Streaming::new_request(decoder, request.into_body(), None, Some(limit));
    let mut response = Response::new(Body::new(respond(inbound)));
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    response
}

impl<S> Service<Request<Body>> for StreamingService<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Either<Ready<Result<Response<Body>, Infallible>>, S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.calls.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        match request.uri().path() {
            CHAT_PATH => Either::Left(ready(Ok(self.chat(request)))),
            SUBSCRIBE_PATH => Either::Left(ready(Ok(self.subscribe(request)))),
            _ => Either::Right(self.calls.call(request)),
        }
    }
}

impl<S: NamedService> NamedService for StreamingService<S> {
    const NAME: &'static str = S::NAME;
}
