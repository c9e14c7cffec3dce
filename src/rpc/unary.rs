//! The unary methods of the chat service.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use prost::Message as _;
use tokio_stream::Stream;
use tonic::{Request, Response, Status, Streaming};

use super::connection_budgets::{ConnectionBudgets, ConnectionInfo, QueryPermits, run_query};
use super::convert::{client_name, first_sequence, message_id, origin, room_name};
use super::error::RpcError;
use super::moderation::{self, ModerationDecision};
use super::observer::{ModerationReport, Observer};
use super::rates::Rates;
use crate::auth::Right;
use crate::domain::{Message, ParticipantId, Post, RoomName, Sequence, Text, Timestamp, TraceContext};
use crate::hub::frame::read_message;
use crate::hub::{HistoryRange, Hub, HubError, PostOutcome, RequestMeta};
use crate::proto::chat_service_server::ChatService;
use crate::proto::get_history_request::Page;
use crate::proto::{
    GetHistoryRequest, GetHistoryResponse, JoinMsgLeave, ListBansRequest, ListBansResponse,
    ListParticipantsRequest, ListParticipantsResponse, ListRoomsRequest, ListRoomsResponse, ModerateRequest,
    ModerateResponse, Participant, RoomSummary, SendMessageRequest, SendMessageResponse, ServerMessage,
    SubscribeRequest,
};
use crate::reason::Reason;
use crate::store::frames;
use crate::wall_clock::wall_time;

/// Number of entries per page if the client sets no limit.
const DEFAULT_PAGE_SIZE: u32 = 100;

/// Maximum number of entries per page.
const MAX_PAGE_SIZE: u32 = 1_000;

/// Approximate maximum size of the events of a page, in bytes. gRPC clients accept responses of up to 4 MiB by default.
const MAX_PAGE_BYTES: usize = 2 << 20;

/// The generated service, of which only the unary methods are used: [`StreamingService`] serves the others.
///
/// [`StreamingService`]: super::StreamingService
#[derive(Clone)]
pub struct UnaryService {
    hub: Arc<Hub>,
    rates: Arc<Rates>,
    observer: Arc<dyn Observer>,
}

type ServerMessages = Pin<Box<dyn Stream<Item = Result<ServerMessage, Status>> + Send>>;

/// The maximum number of entries to return. 0, the value of an unset field, selects the default.
fn page_size(requested: u32) -> u32 {
    match requested {
        0 => DEFAULT_PAGE_SIZE,
        _ => requested.min(MAX_PAGE_SIZE),
    }
}

fn invalid_page_token() -> RpcError {
    RpcError::new(
        Reason::PageTokenInvalid,
        "invalid page_token; omit it to start at the first page",
    )
}

/// The response to a query, which keeps its permits until it is encoded.
fn query_response<T>(message: T, permits: QueryPermits) -> Response<T> {
    let mut response = Response::new(message);
    response.extensions_mut().insert(permits);
    response
}

/// Decodes the messages of a page of a log.
fn decode_messages(framed: Bytes) -> Vec<ServerMessage> {
    frames(framed).filter_map(|frame| read_message(&frame)).collect()
}

impl UnaryService {
    /// Serves `hub`, and reports rejected calls to `observer`.
    #[must_use]
    pub const fn new(hub: Arc<Hub>, rates: Arc<Rates>, observer: Arc<dyn Observer>) -> Self {
        Self { hub, rates, observer }
    }

    fn respond<T>(&self, result: Result<impl Into<Response<T>>, RpcError>) -> Result<Response<T>, Status> {
        result.map(Into::into).map_err(|error| {
            error.report(&*self.observer);
            error.to_status()
        })
    }

    async fn send_message(
        &self,
        request: SendMessageRequest,
        meta: RequestMeta,
        connection: &ConnectionInfo,
    ) -> Result<SendMessageResponse, RpcError> {
        // The message takes memory until the room has taken it.
        let _in_transit = connection.budgets.reserve_received(request.encoded_len())?;
        let room = room_name(&request.room)?;
        let is_new_room = !self.hub.has_room(&room);
        connection.caller.check_write(&room, is_new_room)?;
        let post = Post {
            name: client_name(connection.caller.name(&request.client_name)?)?,
            origin: origin(&connection.caller, connection.peer, &room),
            message: Message {
                timestamp: Timestamp(request.timestamp),
                text: Text::parse(&request.msg, self.hub.rules().max_message_chars),
                message_id: message_id(&request.message_id),
                trace: TraceContext::parse(&request.traceparent, &request.tracestate),
            },
        };
        let address = connection.peer.map(|peer| peer.ip());
        self.rates.check_post(address)?;
        self.rates.check_room(address, &room, &self.hub)?;
        connection.budgets.load_room(&self.hub, &room).await?;
        let posted = match self.hub.post(&room, post.clone(), meta.clone()).await {
            Err(HubError::RoomEnded) => {
                // The message begins another room.
                self.rates
                    .check_room_again(&connection.caller, address, &room, &self.hub, is_new_room)?;
                self.hub.post(&room, post, meta).await
            }
            posted => posted,
        };
        let (broadcast, repeated) = match posted? {
            PostOutcome::Broadcast(message) => (*message, false),
            PostOutcome::Repeated(original) => (
                self.original_message(room, original, request.message_id, &connection.budgets)
                    .await?,
                true,
            ),
        };
        Ok(SendMessageResponse {
            broadcast: Some(broadcast),
            repeated,
        })
    }

    /// The message that was broadcast under `message_id`, at `sequence`. If it is no longer retained, a message that has only
    /// these two fields and the epoch.
    async fn original_message(
        &self,
        room: RoomName,
        sequence: Sequence,
        message_id: String,
        budgets: &Arc<ConnectionBudgets>,
    ) -> Result<ServerMessage, RpcError> {
        let (hub, budgets) = (Arc::clone(&self.hub), Arc::clone(budgets));
        let query = async move {
            let range = HistoryRange::Before(sequence.next());
            let permits = budgets.start_query().await;
            hub.history(room, range, 1, MAX_PAGE_BYTES, permits).await
        };
        let history = run_query(query).await??;
        let retained = decode_messages(history.page.bytes)
            .pop()
            .filter(|message| message.sequence == sequence.get());
        Ok(retained.unwrap_or_else(|| ServerMessage {
            sequence: sequence.get(),
            epoch: history.epoch.get(),
            message_id,
            ..ServerMessage::default()
        }))
    }

    async fn get_history(
        &self,
        request: GetHistoryRequest,
        connection: &ConnectionInfo,
    ) -> Result<Response<GetHistoryResponse>, RpcError> {
        let room = room_name(&request.room)?;
        connection.caller.check(Right::Read, &room)?;
        let range = match request.page {
            None => HistoryRange::Newest,
            Some(Page::AfterSequence(after)) => HistoryRange::After(Sequence::new(after)),
            Some(Page::BeforeSequence(before)) => HistoryRange::Before(Sequence::new(before)),
        };
        let limit = page_size(request.limit);
        let permits = connection.budgets.start_query().await;
        let history = self
            .hub
            .history(room, range, limit, MAX_PAGE_BYTES, permits.clone())
            .await?;
        let response = GetHistoryResponse {
            messages: decode_messages(history.page.bytes),
            epoch: history.epoch.get(),
            first_sequence: first_sequence(history.bounds),
            last_sequence: history.bounds.last.get(),
        };
        Ok(query_response(response, permits))
    }

    async fn list_rooms(
        &self,
        request: ListRoomsRequest,
        connection: ConnectionInfo,
    ) -> Result<Response<ListRoomsResponse>, RpcError> {
        let ConnectionInfo { caller, budgets, .. } = connection;
        caller.check_right(Right::Read)?;
        // The token is the name of the last room of the page before.
        let after = match request.page_token.as_str() {
            "" => None,
            token => Some(RoomName::try_from(token).map_err(|_| invalid_page_token())?),
        };
        let size = page_size(request.page_size) as usize;
        let permits = budgets.start_query().await;
        // One more than the page has tells whether there is another page.
        let may_read = move |room: &RoomName| caller.check(Right::Read, room).is_ok();
        let listed = self.hub.list_rooms(after, size + 1, may_read, permits.clone());
        let mut summaries = listed.await?;
        let has_more = summaries.len() > size;
        summaries.truncate(size);
        let last = summaries.last().filter(|_| has_more);
        let next_page_token = last.map(|summary| summary.room.to_string()).unwrap_or_default();
        let rooms = summaries.into_iter().map(|summary| RoomSummary {
            room: summary.room.to_string(),
            participants: summary.participants,
            epoch: summary.epoch.get(),
            first_sequence: first_sequence(summary.bounds),
            last_sequence: summary.bounds.last.get(),
            timestamp: summary.time,
        });
        let response = ListRoomsResponse {
            rooms: rooms.collect(),
            next_page_token,
        };
        Ok(query_response(response, permits))
    }

    async fn list_participants(
        &self,
        request: ListParticipantsRequest,
        connection: &ConnectionInfo,
    ) -> Result<Response<ListParticipantsResponse>, RpcError> {
        // The token is the id of the last participant of the page before.
        let after = match request.page_token.as_str() {
            "" => None,
            token => {
                let id = token.parse().ok().and_then(ParticipantId::from_wire);
                Some(id.ok_or_else(invalid_page_token)?)
            }
        };
        let size = page_size(request.page_size) as usize;
        let room = room_name(&request.room)?;
        connection.caller.check(Right::Read, &room)?;
        connection.budgets.load_room(&self.hub, &room).await?;
        let permits = connection.budgets.start_room_query().await;
        // One more than the page has tells whether there is another page.
        let mut info = self.hub.room_info(&room, after, size + 1).await?;
        let has_more = info.participants.len() > size;
        info.participants.truncate(size);
        let last = info.participants.last().filter(|_| has_more);
        let next_page_token = last.map(|entry| entry.id.to_string()).unwrap_or_default();
        let participants = info
            .participants
            .into_iter()
            .map(|entry| Participant {
                id: entry.id.get(),
                name: entry.participant.name.to_string(),
                joined_timestamp: entry.participant.join_time.get(),
                connected: entry.is_connected,
            })
            .collect();
        let response = ListParticipantsResponse {
            participants,
            sequence: info.sequence.get(),
            timestamp: info.time.get(),
            next_page_token,
        };
        Ok(query_response(response, permits))
    }

    async fn moderate(
        &self,
        request: ModerateRequest,
        connection: &ConnectionInfo,
    ) -> Result<ModerateResponse, RpcError> {
        let room = room_name(&request.room)?;
        connection.caller.check(Right::Moderate, &room)?;
        self.rates
            .check_moderation(connection.peer.map(|peer| peer.ip()))?;
        let reason = moderation::reason(&request.reason)?;
        let decision = ModerationDecision::parse(request, reason.clone(), wall_time())?;
        let ModerationDecision {
            moderation,
            action,
            target,
            duration,
        } = decision;
        // Only somebody who is known has the right.
        let subject = connection
            .caller
            .identity()
            .map(|identity| identity.subject.clone());
        let (observer, peer, in_room) = (Arc::clone(&self.observer), connection.peer, room.clone());
        let report = move |removed| {
            observer.moderated(&ModerationReport {
                subject: subject.as_deref().unwrap_or_default(),
                peer,
                room: &in_room,
                action,
                target: &target,
                duration,
                reason: reason.as_str(),
                removed,
            });
        };
        connection.budgets.load_room(&self.hub, &room).await?;
        let removed = self.hub.moderate(&room, moderation, report).await?;
        Ok(ModerateResponse {
            removed: u32::try_from(removed).unwrap_or(u32::MAX),
        })
    }

    async fn list_bans(
        &self,
        request: ListBansRequest,
        connection: &ConnectionInfo,
    ) -> Result<Response<ListBansResponse>, RpcError> {
        let room = room_name(&request.room)?;
        connection.caller.check(Right::Moderate, &room)?;
        connection.budgets.load_room(&self.hub, &room).await?;
        let permits = connection.budgets.start_room_query().await;
        let info = self.hub.room_info(&room, None, 0).await?;
        let response = ListBansResponse {
            bans: info.bans.into_iter().map(Into::into).collect(),
            closed: info.is_closed,
        };
        Ok(query_response(response, permits))
    }
}

#[tonic::async_trait]
impl ChatService for UnaryService {
    type ChatStream = ServerMessages;
    type SubscribeStream = ServerMessages;

    async fn chat(&self, _: Request<Streaming<JoinMsgLeave>>) -> Result<Response<ServerMessages>, Status> {
        Err(Status::internal("served by StreamingService"))
    }

    async fn subscribe(&self, _: Request<SubscribeRequest>) -> Result<Response<ServerMessages>, Status> {
        Err(Status::internal("served by StreamingService"))
    }

    async fn send_message(
        &self,
        request: Request<SendMessageRequest>,
    ) -> Result<Response<SendMessageResponse>, Status> {
        let meta = RequestMeta {
            received_at: Instant::now(),
            stream_trace: request.extensions().get::<Arc<TraceContext>>().cloned(),
        };
        let connection = ConnectionInfo::of(request.extensions());
        let result = Self::send_message(self, request.into_inner(), meta, &connection).await;
        self.respond(result)
    }

    async fn get_history(
        &self,
        request: Request<GetHistoryRequest>,
    ) -> Result<Response<GetHistoryResponse>, Status> {
        let connection = ConnectionInfo::of(request.extensions());
        let result = Self::get_history(self, request.into_inner(), &connection).await;
        self.respond(result)
    }

    async fn list_rooms(
        &self,
        request: Request<ListRoomsRequest>,
    ) -> Result<Response<ListRoomsResponse>, Status> {
        let connection = ConnectionInfo::of(request.extensions());
        let result = Self::list_rooms(self, request.into_inner(), connection).await;
        self.respond(result)
    }

    async fn list_participants(
        &self,
        request: Request<ListParticipantsRequest>,
    ) -> Result<Response<ListParticipantsResponse>, Status> {
        let connection = ConnectionInfo::of(request.extensions());
        let result = Self::list_participants(self, request.into_inner(), &connection).await;
        self.respond(result)
    }

    async fn moderate(
        &self,
        request: Request<ModerateRequest>,
    ) -> Result<Response<ModerateResponse>, Status> {
        let connection = ConnectionInfo::of(request.extensions());
        let result = Self::moderate(self, request.into_inner(), &connection).await;
        self.respond(result)
    }

    async fn list_bans(
        &self,
        request: Request<ListBansRequest>,
    ) -> Result<Response<ListBansResponse>, Status> {
        let connection = ConnectionInfo::of(request.extensions());
        let result = Self::list_bans(self, request.into_inner(), &connection).await;
        self.respond(result)
    }
}
