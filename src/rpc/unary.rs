//! The calls beside Chat and Subscribe, which have routes of their own.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use tokio_stream::Stream;
use tonic::{Request, Response, Status, Streaming};

use super::error::RpcError;
use super::observer::Observer;
use crate::domain::{Message, MessageId, Name, Post, RoomName, Sequence, Text, Timestamp, TraceContext};
use crate::hub::frame::read_message;
use crate::hub::{HistoryRange, Hub, HubError, PostOutcome, RequestMeta};
use crate::proto::chat_service_server::ChatService;
use crate::proto::get_history_request::Page;
use crate::proto::{
    GetHistoryRequest, GetHistoryResponse, JoinMsgLeave, ListParticipantsRequest, ListParticipantsResponse,
    ListRoomsRequest, ListRoomsResponse, Participant, RoomSummary, SendMessageRequest, SendMessageResponse,
    ServerMessage, SubscribeRequest,
};
use crate::store::{Bounds, frames};

/// How many entries a page has where the client does not say.
const PAGE: u32 = 100;

/// The most entries that a page has.
const MAX_PAGE: u32 = 1_000;

/// The most bytes of events that a page has, about: clients take answers of up to 4 MiB unless told otherwise.
const MAX_PAGE_BYTES: usize = 2 << 20;

/// The calls beside Chat and Subscribe.
#[derive(Clone)]
pub struct UnaryService {
    hub: Arc<Hub>,
    observer: Arc<dyn Observer>,
}

type ServerMessages = Pin<Box<dyn Stream<Item = Result<ServerMessage, Status>> + Send>>;

pub(super) fn room(raw: &str) -> Result<RoomName, RpcError> {
    RoomName::try_from(raw).map_err(|error| RpcError::Name("room", error))
}

fn page_size(asked: u32) -> u32 {
    if asked == 0 { PAGE } else { asked.min(MAX_PAGE) }
}

/// Of a log of which nothing is kept the wire shows zeros.
fn first(bounds: Bounds) -> u64 {
    if bounds.last < bounds.first {
        0
    } else {
        bounds.first.get()
    }
}

fn messages(framed: Bytes) -> Vec<ServerMessage> {
    frames(framed).filter_map(|frame| read_message(&frame)).collect()
}

impl UnaryService {
    /// Answers from `hub`, and reports to `observer` what it refuses.
    #[must_use]
    pub const fn new(hub: Arc<Hub>, observer: Arc<dyn Observer>) -> Self {
        Self { hub, observer }
    }

    /// The answer on the wire: the only place where an error becomes a status here.
    fn answer<T>(&self, result: Result<T, RpcError>) -> Result<Response<T>, Status> {
        result.map(Response::new).map_err(|error| {
            // What the room refused, the room has told.
            if !matches!(error, RpcError::Hub(HubError::Rejected(_))) {
                self.observer.rejected(error.reason());
            }
            error.status().0
        })
    }

    async fn send_message(
        &self,
        request: SendMessageRequest,
        received: RequestMeta,
    ) -> Result<SendMessageResponse, RpcError> {
        let room = room(&request.room)?;
        let name = Name::try_from(request.client_name.as_str())
            .map_err(|error| RpcError::Name("client_name", error))?;
        let id = request.message_id.as_str();
        let post = Post {
            name,
            message: Message {
                timestamp: Timestamp(request.timestamp),
                text: Text::parse(&request.msg, self.hub.rules().max_message_chars),
                message_id: (!id.is_empty()).then(|| MessageId::try_from(id)),
                trace: TraceContext::parse(&request.traceparent, &request.tracestate),
            },
        };
        let posted = self
            .hub
            .post(&room, post, received)
            .await
            .map_err(RpcError::Hub)?;
        let (broadcast, repeated) = match posted {
            PostOutcome::Broadcast(message) => (Some(*message), false),
            PostOutcome::Repeated(original) => {
                let range = HistoryRange::Before(original.next());
                let history = self
                    .hub
                    .history(room, range, 1, MAX_PAGE_BYTES)
                    .await
                    .map_err(RpcError::Hub)?;
                let kept = messages(history.page.bytes).pop();
                // Where it is not kept any more, its place is what is known.
                let known = ServerMessage {
                    sequence: original.get(),
                    epoch: history.epoch.get(),
                    message_id: id.to_owned(),
                    ..ServerMessage::default()
                };
                (
                    Some(
                        kept.filter(|message| message.sequence == original.get())
                            .unwrap_or(known),
                    ),
                    true,
                )
            }
        };
        Ok(SendMessageResponse { broadcast, repeated })
    }

    async fn get_history(&self, request: GetHistoryRequest) -> Result<GetHistoryResponse, RpcError> {
        let GetHistoryRequest {
            room: name,
            page,
            limit,
        } = request;
        let range = match page {
            None => HistoryRange::Newest,
            Some(Page::AfterSequence(after)) => HistoryRange::After(Sequence::new(after)),
            Some(Page::BeforeSequence(before)) => HistoryRange::Before(Sequence::new(before)),
        };
        let room = room(&name)?;
        let history = self
            .hub
            .history(room, range, page_size(limit), MAX_PAGE_BYTES)
            .await
            .map_err(RpcError::Hub)?;
        Ok(GetHistoryResponse {
            messages: messages(history.page.bytes),
            epoch: history.epoch.get(),
            first_sequence: first(history.bounds),
            last_sequence: history.bounds.last.get(),
        })
    }

    async fn list_rooms(&self, request: ListRoomsRequest) -> Result<ListRoomsResponse, RpcError> {
        let ListRoomsRequest {
            page_size: asked,
            page_token,
        } = request;
        // The token is the last room of the page before.
        let after = match page_token.as_str() {
            "" => None,
            token => Some(RoomName::try_from(token).map_err(|_| RpcError::PageToken)?),
        };
        let size = page_size(asked) as usize;
        let mut summaries = self
            .hub
            .list_rooms(after, size + 1)
            .await
            .map_err(RpcError::Hub)?;
        let has_more = summaries.len() > size;
        summaries.truncate(size);
        let last = summaries.last().filter(|_| has_more);
        let next_page_token = last.map(|summary| summary.room.to_string()).unwrap_or_default();
        let rooms = summaries.into_iter().map(|summary| RoomSummary {
            room: summary.room.to_string(),
            participants: summary.participants,
            epoch: summary.epoch.get(),
            first_sequence: first(summary.bounds),
            last_sequence: summary.bounds.last.get(),
            timestamp: summary.time,
        });
        Ok(ListRoomsResponse {
            rooms: rooms.collect(),
            next_page_token,
        })
    }

    async fn list_participants(
        &self,
        request: ListParticipantsRequest,
    ) -> Result<ListParticipantsResponse, RpcError> {
        let room = room(&request.room)?;
        let description = self.hub.room_info(&room).await.map_err(RpcError::Hub)?;
        let participants = description.participants.into_iter().map(|entry| Participant {
            id: entry.id.get(),
            name: entry.participant.name.to_string(),
            joined_timestamp: entry.participant.join_time.get(),
            connected: entry.is_connected,
        });
        let mut participants: Vec<_> = participants.collect();
        participants.sort_by(|a, b| (&a.name, a.id).cmp(&(&b.name, b.id)));
        Ok(ListParticipantsResponse {
            participants,
            sequence: description.sequence.get(),
            timestamp: description.time.get(),
        })
    }
}

#[tonic::async_trait]
impl ChatService for UnaryService {
    type ChatStream = ServerMessages;
    type SubscribeStream = ServerMessages;

    async fn chat(&self, _: Request<Streaming<JoinMsgLeave>>) -> Result<Response<ServerMessages>, Status> {
        // `StreamingService` answers this path before it comes here.
        Err(Status::internal("Chat has a route of its own"))
    }

    async fn subscribe(&self, _: Request<SubscribeRequest>) -> Result<Response<ServerMessages>, Status> {
        // As above.
        Err(Status::internal("Subscribe has a route of its own"))
    }

    async fn send_message(
        &self,
        request: Request<SendMessageRequest>,
    ) -> Result<Response<SendMessageResponse>, Status> {
        let received = RequestMeta {
            received_at: Instant::now(),
            stream_trace: request.extensions().get::<Arc<TraceContext>>().cloned(),
        };
        let answer = Self::send_message(self, request.into_inner(), received).await;
        self.answer(answer)
    }

    async fn get_history(
        &self,
        request: Request<GetHistoryRequest>,
    ) -> Result<Response<GetHistoryResponse>, Status> {
        let answer = Self::get_history(self, request.into_inner()).await;
        self.answer(answer)
    }

    async fn list_rooms(
        &self,
        request: Request<ListRoomsRequest>,
    ) -> Result<Response<ListRoomsResponse>, Status> {
        let answer = Self::list_rooms(self, request.into_inner()).await;
        self.answer(answer)
    }

    async fn list_participants(
        &self,
        request: Request<ListParticipantsRequest>,
    ) -> Result<Response<ListParticipantsResponse>, Status> {
        let answer = Self::list_participants(self, request.into_inner()).await;
        self.answer(answer)
    }
}
