//! The streaming methods, Chat and Subscribe.
//!
//! They bypass the service that tonic generates, which would encode each message again for each client: they respond with
//! bytes that the hub has encoded once for all of them.

use std::convert::Infallible;
use std::future::{Ready, ready};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::Either;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode};
use tokio_util::sync::CancellationToken;
use tonic::Status;
use tonic::body::Body;
use tower::Service;

use super::chat_body::ChatBody;
use super::connection_budgets::ConnectionInfo;
use super::inbound::Inbound;
use super::observer::Observer;
use super::rates::Rates;
use super::subscribe_body::SubscribeBody;
use super::time_limit::StreamLimit;
use super::unary_limits::SMALL_REQUEST;
use crate::hub::Hub;

const CHAT_PATH: &str = "/itu.chitchat.ChatService/Chat";
const SUBSCRIBE_PATH: &str = "/itu.chitchat.ChatService/Subscribe";

const GRPC: &[u8] = b"application/grpc";

/// Allowance in bytes for the fields of a message other than its text: names, ids, tokens, trace context.
const ENVELOPE: usize = 4 * 1024;

/// Maximum length of a text that can be decoded, in bytes, if the character limit does not require more. It is generous
/// because a text that is too long but can be decoded is only rejected with a notice, whereas a message beyond the decode
/// limit ends the stream.
const MIN_TEXT_LIMIT: usize = 64 * 1024;

/// Maximum size in bytes of a message with a text, for a given character limit.
#[must_use]
pub fn decode_limit(max_message_chars: usize) -> usize {
    // UTF-8 takes at most four bytes per character.
    max_message_chars
        .saturating_mul(4)
        .max(MIN_TEXT_LIMIT)
        .saturating_add(ENVELOPE)
}

/// Serves Chat and Subscribe, and passes all other requests to `S`.
#[derive(Clone)]
pub struct StreamingService<S> {
    inner: S,
    hub: Arc<Hub>,
    draining: CancellationToken,
    rates: Arc<Rates>,
    max_age: Option<Duration>,
    observer: Arc<dyn Observer>,
}

impl<S> StreamingService<S> {
    /// Wraps `inner`. When `draining` is cancelled, streams whose first message has not arrived end; all end at `max_age`.
    pub fn new(
        inner: S,
        hub: Arc<Hub>,
        draining: CancellationToken,
        rates: Arc<Rates>,
        max_age: Option<Duration>,
        observer: Arc<dyn Observer>,
    ) -> Self {
        Self {
            inner,
            hub,
            draining,
            rates,
            max_age,
            observer,
        }
    }

    fn chat(&self, request: Request<Body>) -> Response<Body> {
        let limit = decode_limit(self.hub.rules().max_message_chars);
        let time_limit = StreamLimit::new(request.headers(), self.max_age);
        respond(request, limit, |inbound, connection| {
            ChatBody::new(
                Arc::clone(&self.hub),
                inbound,
                self.draining.clone(),
                Arc::clone(&self.rates),
                time_limit,
                connection,
                Arc::clone(&self.observer),
            )
        })
    }

    fn subscribe(&self, request: Request<Body>) -> Response<Body> {
        let time_limit = StreamLimit::new(request.headers(), self.max_age);
        respond(request, SMALL_REQUEST, |inbound, connection| {
            SubscribeBody::new(
                Arc::clone(&self.hub),
                inbound,
                self.draining.clone(),
                Arc::clone(&self.rates),
                time_limit,
                connection,
                Arc::clone(&self.observer),
            )
        })
    }
}

/// Responds with the body that `make_body` returns for the stream of the client's messages. Messages of more than `limit`
/// bytes are not decoded.
fn respond<M, B>(
    request: Request<Body>,
    limit: usize,
    make_body: impl FnOnce(Inbound<M>, &ConnectionInfo) -> B,
) -> Response<Body>
where
    M: prost::Message + Default,
    B: http_body::Body<Data = Bytes, Error = Status> + Send + 'static,
{
    if let Some(encoding) = request.headers().get("grpc-encoding")
        && encoding != "identity"
    {
        let mut response = Status::unimplemented("compressed messages are not supported").into_http();
        response
            .headers_mut()
            .insert("grpc-accept-encoding", HeaderValue::from_static("identity"));
        return response;
    }
    let connection = ConnectionInfo::of(request.extensions());
    let budgets = Arc::clone(&connection.budgets);
    let inbound = Inbound::new(request.into_body(), limit, budgets);
    let mut response = Response::new(Body::new(make_body(inbound, &connection)));
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    response
}

/// Whether the content type is one of gRPC with protobuf messages.
fn is_grpc(headers: &HeaderMap) -> bool {
    let value = headers.get(CONTENT_TYPE).map(|value| value.as_bytes());
    let subtype = value.and_then(|value| value.split_at_checked(GRPC.len()));
    subtype.is_some_and(|(grpc, rest)| {
        let rest = rest.strip_prefix(b"+proto").unwrap_or(rest);
        grpc.eq_ignore_ascii_case(GRPC) && matches!(rest, [] | [b';' | b' ', ..])
    })
}

fn unsupported_media_type() -> Response<Body> {
    let text = "This port serves gRPC: the content type must be application/grpc\n";
    let mut response = Response::new(Body::new(text.to_owned()));
    *response.status_mut() = StatusCode::UNSUPPORTED_MEDIA_TYPE;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain"));
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
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        if !is_grpc(request.headers()) {
            return Either::Left(ready(Ok(unsupported_media_type())));
        }
        match request.uri().path() {
            CHAT_PATH => Either::Left(ready(Ok(self.chat(request)))),
            SUBSCRIBE_PATH => Either::Left(ready(Ok(self.subscribe(request)))),
            _ => Either::Right(self.inner.call(request)),
        }
    }
}
