//! The connection to one server, and the calls that can be made on it.

use std::error::Error;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::Duration;

use http::HeaderValue;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::PollSender;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Response, Status, Streaming};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use super::error::ClientError;
use super::grpc_channel::GrpcChannel;
use super::server_address::ServerAddress;
use super::session_state::{SEND_QUEUE_LEN, SessionState};
#[cfg(feature = "tls")]
use super::tls::{self, TlsOptions};
use super::tls_error::TlsError;
use super::token::Token;
use crate::proto::chat_service_client::ChatServiceClient;
use crate::proto::{
    GetHistoryRequest, GetHistoryResponse, JoinMsgLeave, ListBansRequest, ListBansResponse,
    ListParticipantsRequest, ListParticipantsResponse, ListRoomsRequest, ListRoomsResponse, ModerateRequest,
    ModerateResponse, SendMessageRequest, SendMessageResponse, ServerMessage, SubscribeRequest,
};

/// Decode limit in bytes for one message of a stream: more than twice the size of the longest text that the server's flag
/// `--max-message-chars` can permit (100,000 characters of 4 bytes).
const MAX_MESSAGE_BYTES: usize = 1024 * 1024;

/// Decode limit in bytes for the response to a unary call: well above a page of history or of participants.
const MAX_RESPONSE_BYTES: usize = 64 * 1024 * 1024;

/// Timeouts and keepalive of a [`Connection`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConnectOptions {
    /// How long to wait for the connection to be established, and then for the response to each unary call and for
    /// the first message of each stream. Default: 10 s.
    pub response_timeout: Duration,
    /// Interval between HTTP/2 keepalive pings, which are also sent while no call is open. Default: 15 s.
    pub keepalive_interval: Duration,
    /// How long to wait for the acknowledgement of a keepalive ping before the connection is closed. Default: 10 s.
    pub keepalive_timeout: Duration,
    /// Whom to trust if the address begins with `https://`. An error if it does not and this is not the default.
    #[cfg(feature = "tls")]
    pub tls: TlsOptions,
    /// The token that each call sends. Default: none.
    pub token: Option<Token>,
    /// Whether to send the token to another machine without TLS, where it can be read on the way. Default: no.
    pub insecure_token: bool,
}

impl Default for ConnectOptions {
    fn default() -> Self {
        Self {
            response_timeout: Duration::from_secs(10),
            keepalive_interval: Duration::from_secs(15),
            keepalive_timeout: Duration::from_secs(10),
            #[cfg(feature = "tls")]
            tls: TlsOptions::default(),
            token: None,
            insecure_token: false,
        }
    }
}

impl ConnectOptions {
    /// The value of the `authorization` header for the server at `address`, if it is sent one.
    async fn authorization(&self, address: &ServerAddress) -> Result<Option<HeaderValue>, ClientError> {
        let Some(token) = &self.token else {
            return Ok(None);
        };
        if !(address.is_tls() || address.is_local() || self.insecure_token) {
            return Err(ClientError::Token(format!(
                "the token is not sent to {address}, because it could be read on the way; use https://, or --insecure-token if a proxy or the network encrypts"
            )));
        }
        Ok(Some(token.authorization().await.map_err(ClientError::Token)?))
    }
}

/// A connection to one server. Clones are cheap and share one HTTP/2 connection, on which calls are multiplexed.
///
/// It does not reconnect. [`Session`](super::Session), [`Subscription`](super::Subscription) and
/// [`Publisher`](super::Publisher) do, each with connections of its own.
///
/// Each call fails with [`ClientError::Timeout`] after [`ConnectOptions::response_timeout`].
#[derive(Debug, Clone)]
pub struct Connection {
    channel: GrpcChannel,
    address: ServerAddress,
    response_timeout: Duration,
    /// Why the connection has broken, if TLS is the reason.
    tls_failure: Arc<OnceLock<TlsError>>,
}

/// State of a service as reported by `grpc.health.v1.Health`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Health {
    /// `SERVING`: the service accepts calls.
    Serving,
    /// `NOT_SERVING`: the service is starting, draining, or has failed.
    NotServing,
    /// `UNKNOWN`: the server does not know the state of the service.
    Unknown,
    /// `SERVICE_UNKNOWN`: the server has no service of this name.
    ServiceUnknown,
}

impl Health {
    /// The name of the state in the health protocol, such as `SERVING`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Serving => "SERVING",
            Self::NotServing => "NOT_SERVING",
            Self::Unknown => "UNKNOWN",
            Self::ServiceUnknown => "SERVICE_UNKNOWN",
        }
    }
}

impl Connection {
    /// Connects to the server at `address`. Makes one attempt.
    ///
    /// # Errors
    /// [`ClientError::Unreachable`] if the connection is refused or breaks, [`ClientError::Tls`] if it is not secure, [`ClientError::Timeout`] if it is not
    /// established within [`ConnectOptions::response_timeout`], [`ClientError::Token`] if there is no token where one should be, or
    /// it would be sent in plain text.
    ///
    /// # Cancel safety
    /// Dropping the future aborts the attempt.
    pub async fn open(address: &ServerAddress, options: &ConnectOptions) -> Result<Self, ClientError> {
        let endpoint = Endpoint::from(address.uri())
            .http2_keep_alive_interval(options.keepalive_interval)
            .keep_alive_timeout(options.keepalive_timeout)
            .keep_alive_while_idle(true)
            .tcp_nodelay(true);
        let authorization = options.authorization(address).await?;
        let tls_failure = Arc::default();
        let connecting = connect(&endpoint, address, options, &tls_failure);
        let channel = with_timeout(options.response_timeout, address, connecting)
            .await?
            .map_err(|error| ClientError::unreachable(error, address))?;
        Ok(Self {
            channel: GrpcChannel::new(channel, authorization),
            address: address.clone(),
            response_timeout: options.response_timeout,
            tls_failure,
        })
    }

    /// Asks the health service for the state of `service`, or for that of the whole server if `service` is empty.
    ///
    /// # Errors
    /// Any failure of a unary call: see [`ClientError`]. An unknown service is not an error: the result is
    /// [`Health::ServiceUnknown`].
    ///
    /// # Cancel safety
    /// Safe: the call has no effect on the server.
    pub async fn health(&self, service: &str) -> Result<Health, ClientError> {
        let mut client = HealthClient::new(self.channel.clone());
        let request = HealthCheckRequest {
            service: service.to_owned(),
        };
        match self.with_timeout(client.check(request)).await? {
            Ok(response) => Ok(match response.into_inner().status() {
                ServingStatus::Serving => Health::Serving,
                ServingStatus::NotServing => Health::NotServing,
                ServingStatus::Unknown => Health::Unknown,
                ServingStatus::ServiceUnknown => Health::ServiceUnknown,
            }),
            Err(status) if status.code() == Code::NotFound => Ok(Health::ServiceUnknown),
            Err(status) => Err(self.error(status)),
        }
    }

    /// Posts one message without joining the room. Makes one attempt; see [`Publisher`](super::Publisher) for retries.
    ///
    /// # Errors
    /// [`ClientError::Rejected`] if the server rejects the message, or any failure of a unary call. Unless it was
    /// rejected, the message may have been broadcast nevertheless.
    ///
    /// # Cancel safety
    /// Not safe: the message may or may not be broadcast. It is safe to send it again under the same message id, because
    /// the server discards duplicates.
    pub async fn send_message(
        &self,
        request: SendMessageRequest,
    ) -> Result<SendMessageResponse, ClientError> {
        let mut client = self.client(MAX_MESSAGE_BYTES);
        self.respond(client.send_message(self.with_deadline(request)))
            .await
    }

    /// Reads one page of a room's log. [`History`](super::History) reads any number of pages.
    ///
    /// # Errors
    /// [`ClientError::Rejected`] with [`Code::NotFound`] if the room does not exist, or any failure of a unary call.
    ///
    /// # Cancel safety
    /// Safe: the call has no effect on the server.
    pub async fn get_history(&self, request: GetHistoryRequest) -> Result<GetHistoryResponse, ClientError> {
        let mut client = self.client(MAX_RESPONSE_BYTES);
        self.respond(client.get_history(self.with_deadline(request)))
            .await
    }

    /// Reads one page of the list of rooms.
    ///
    /// # Errors
    /// Any failure of a unary call: see [`ClientError`].
    ///
    /// # Cancel safety
    /// Safe: the call has no effect on the server.
    pub async fn list_rooms(&self, request: ListRoomsRequest) -> Result<ListRoomsResponse, ClientError> {
        let mut client = self.client(MAX_RESPONSE_BYTES);
        self.respond(client.list_rooms(self.with_deadline(request))).await
    }

    /// Lists the participants of a room.
    ///
    /// # Errors
    /// [`ClientError::Rejected`] with [`Code::NotFound`] if the room does not exist, or any failure of a unary call.
    ///
    /// # Cancel safety
    /// Safe: the call has no effect on the server.
    pub async fn list_participants(
        &self,
        request: ListParticipantsRequest,
    ) -> Result<ListParticipantsResponse, ClientError> {
        let mut client = self.client(MAX_RESPONSE_BYTES);
        self.respond(client.list_participants(self.with_deadline(request)))
            .await
    }

    /// Carries out a moderator's decision.
    ///
    /// # Errors
    /// [`ClientError::Rejected`] with [`Code::PermissionDenied`] if the token does not grant the right, with [`Code::NotFound`] if there
    /// is no such room, participant or ban, or any failure of a unary call.
    ///
    /// # Cancel safety
    /// The server may have carried it out all the same.
    pub async fn moderate(&self, request: ModerateRequest) -> Result<ModerateResponse, ClientError> {
        let mut client = self.client(MAX_RESPONSE_BYTES);
        self.respond(client.moderate(self.with_deadline(request))).await
    }

    /// Lists the bans of a room.
    ///
    /// # Errors
    /// As [`Connection::moderate`].
    ///
    /// # Cancel safety
    /// Safe: the call has no effect on the server.
    pub async fn list_bans(&self, request: ListBansRequest) -> Result<ListBansResponse, ClientError> {
        let mut client = self.client(MAX_RESPONSE_BYTES);
        self.respond(client.list_bans(self.with_deadline(request))).await
    }

    /// Opens a `Subscribe` stream and waits for its response headers.
    pub(super) async fn subscribe(
        &self,
        request: SubscribeRequest,
    ) -> Result<Streaming<ServerMessage>, ClientError> {
        let mut client = self.client(MAX_MESSAGE_BYTES);
        self.respond(client.subscribe(request)).await
    }

    /// Opens a `Chat` stream, sends `join` and waits for the server's first message.
    pub(super) async fn chat(&self, join: JoinMsgLeave) -> Result<ChatCall, ClientError> {
        let mut client = self.client(MAX_MESSAGE_BYTES);
        let calling = async {
            let (sender, outgoing) = mpsc::channel(SEND_QUEUE_LEN);
            sender.try_send(join).expect("the queue is new, empty and open");
            let mut incoming = client.chat(ReceiverStream::new(outgoing)).await?.into_inner();
            // A rejection of the JOIN arrives in place of this message.
            let first = incoming
                .message()
                .await?
                .ok_or_else(|| Status::unavailable("the stream ended before its JOIN was answered"))?;
            Ok(ChatCall {
                outgoing: PollSender::new(sender),
                incoming,
                first: Some(first),
            })
        };
        self.with_timeout(calling)
            .await?
            .map_err(|status| self.error(status))
    }

    fn client(&self, decode_limit: usize) -> ChatServiceClient<GrpcChannel> {
        ChatServiceClient::new(self.channel.clone()).max_decoding_message_size(decode_limit)
    }

    /// Wraps `request` with a gRPC deadline, so that the server can abandon the call when this client gives up.
    fn with_deadline<T>(&self, request: T) -> Request<T> {
        let mut request = Request::new(request);
        request.set_timeout(self.response_timeout);
        request
    }

    async fn respond<T>(
        &self,
        response: impl Future<Output = Result<Response<T>, Status>>,
    ) -> Result<T, ClientError> {
        match self.with_timeout(response).await? {
            Ok(response) => Ok(response.into_inner()),
            Err(status) => Err(self.error(status)),
        }
    }

    /// Converts the status of a call that failed before its first response.
    fn error(&self, status: Status) -> ClientError {
        let address = self.address.clone();
        match self.tls_failure.get() {
            Some(error) if status.source().is_some() => ClientError::Tls {
                address,
                error: error.clone(),
            },
            _ => ClientError::before_first_response(status, &address),
        }
    }

    async fn with_timeout<F: Future>(&self, response: F) -> Result<F::Output, ClientError> {
        with_timeout(self.response_timeout, &self.address, response).await
    }
}

#[cfg(feature = "tls")]
async fn connect(
    endpoint: &Endpoint,
    address: &ServerAddress,
    options: &ConnectOptions,
    tls_failure: &Arc<OnceLock<TlsError>>,
) -> Result<Channel, Box<dyn Error + Send + Sync>> {
    if address.is_tls() {
        return tls::connect(endpoint, address.host(), &options.tls, tls_failure).await;
    }
    if options.tls != TlsOptions::default() {
        let error = "there are options for TLS, but the address does not begin with https://";
        return Err(TlsError::Options(error.into()).into());
    }
    Ok(endpoint.connect().await?)
}

#[cfg(not(feature = "tls"))]
async fn connect(
    endpoint: &Endpoint,
    address: &ServerAddress,
    _: &ConnectOptions,
    _: &Arc<OnceLock<TlsError>>,
) -> Result<Channel, Box<dyn Error + Send + Sync>> {
    if address.is_tls() {
        return Err(TlsError::Unsupported.into());
    }
    Ok(endpoint.connect().await?)
}

async fn with_timeout<F: Future>(
    limit: Duration,
    address: &ServerAddress,
    response: F,
) -> Result<F::Output, ClientError> {
    timeout(limit, response).await.map_err(|_| ClientError::Timeout {
        address: address.clone(),
        waited: limit,
    })
}

/// A `Chat` stream on which the server has answered the JOIN. Dropping it resets the stream.
#[derive(Debug)]
pub(super) struct ChatCall {
    outgoing: PollSender<JoinMsgLeave>,
    pub(super) incoming: Streaming<ServerMessage>,
    /// The answer to the JOIN: a welcome, or an event if the server implements only the first version of the protocol.
    /// `None` once it has been taken.
    pub(super) first: Option<ServerMessage>,
}

impl ChatCall {
    /// Moves unsent messages from `state` to the transport's queue while it has capacity. If messages remain, `cx` is
    /// woken when the queue has capacity again.
    pub(super) fn poll_flush(&mut self, cx: &mut Context<'_>, state: &mut SessionState) {
        while state.has_unsent() {
            // If the queue is closed, `incoming` yields the reason.
            let Poll::Ready(Ok(())) = self.outgoing.poll_reserve(cx) else {
                return;
            };
            let message = state.next_message().expect("there are unsent messages");
            if self.outgoing.send_item(message).is_err() {
                return;
            }
        }
    }
}
