//! The calls beside Chat and Subscribe, which have routes of their own.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use tokio_stream::Stream;
use tonic::{Request, Response, Status, Streaming};

use super::status::StreamError;
use crate::domain::{MessageId, Name, Post, RoomName, Sequence, Text, Timestamp, TraceContext};
use crate::hub::frame::read_message;
use crate::hub::{HistoryRange, Hub, HubError, Posted, Receipt};
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
pub struct Calls {
    hub: Arc<Hub>,
}

impl Calls {
    /// Answers from this hub.
    #[must_use]
    pub const fn new(hub: Arc<Hub>) -> Self {
        Self { hub }
    }
}

type ServerMessages = Pin<Box<dyn Stream<Item = Result<ServerMessage, Status>> + Send>>;

fn refuse(error: HubError) -> Status {
    StreamError::Hub(error).status().0
}

pub(super) fn room(raw: &str) -> Result<RoomName, StreamError> {
    RoomName::try_from(raw).map_err(|error| StreamError::Name("room", error))
}

fn room_or_status(raw: &str) -> Result<RoomName, Status> {
    room(raw).map_err(|error| error.status().0)
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

#[tonic::async_trait]
impl ChatService for Calls {
    type ChatStream = ServerMessages;
    type SubscribeStream = ServerMessages;

    async fn chat(&self, _: Request<Streaming<JoinMsgLeave>>) -> Result<Response<ServerMessages>, Status> {
        // `ChatRoute` answers this path before it comes here.
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
        let received = Receipt {
            at: Instant::now(),
            stream: request.extensions().get::<Arc<TraceContext>>().cloned(),
        };
        let request = request.into_inner();
        let room = room_or_status(&request.room)?;
        let name = Name::try_from(request.client_name.as_str())
            .map_err(|error| StreamError::Name("client_name", error).status().0)?;
        let id = request.message_id.as_str();
        let post = Post {
            name,
            timestamp: Timestamp(request.timestamp),
            text: Text::parse(&request.msg, self.hub.rules().max_message_chars),
            message_id: (!id.is_empty()).then(|| MessageId::try_from(id)),
            trace: TraceContext::parse(&request.traceparent, &request.tracestate),
        };
        let posted = self
            .hub
            .post(room.clone(), post, received)
            .await
            .map_err(refuse)?;
        let (broadcast, repeated) = match posted {
            Posted::Broadcast(message) => (Some(*message), false),
            Posted::Repeated(original) => {
                let range = HistoryRange::Before(original.next());
                let history = self
                    .hub
                    .history(room, range, 1, MAX_PAGE_BYTES)
                    .await
                    .map_err(refuse)?;
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
        Ok(Response::new(SendMessageResponse { broadcast, repeated }))
    }

    async fn get_history(
        &self,
        request: Request<GetHistoryRequest>,
    ) -> Result<Response<GetHistoryResponse>, Status> {
        let GetHistoryRequest { room, page, limit } = request.into_inner();
        let range = match page {
            None => HistoryRange::Newest,
            Some(Page::AfterSequence(after)) => HistoryRange::After(Sequence::new(after)),
            Some(Page::BeforeSequence(before)) => HistoryRange::Before(Sequence::new(before)),
        };
        let room = room_or_status(&room)?;
        let history = self
            .hub
            .history(room, range, page_size(limit), MAX_PAGE_BYTES)
            .await
            .map_err(refuse)?;
        Ok(Response::new(GetHistoryResponse {
            messages: messages(history.page.bytes),
            epoch: history.epoch.get(),
            first_sequence: first(history.bounds),
            last_sequence: history.bounds.last.get(),
        }))
    }

    async fn list_rooms(
        &self,
        request: Request<ListRoomsRequest>,
    ) -> Result<Response<ListRoomsResponse>, Status> {
        let ListRoomsRequest {
            page_size: asked,
            page_token,
        } = request.into_inner();
        // The token is the last room of the page before.
        let after = match page_token.as_str() {
            "" => None,
            token => Some(RoomName::try_from(token).map_err(|_| StreamError::PageToken.status().0)?),
        };
        let size = page_size(asked) as usize;
        let mut summaries = self.hub.summaries(after, size + 1).await.map_err(refuse)?;
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
        Ok(Response::new(ListRoomsResponse {
            rooms: rooms.collect(),
            next_page_token,
        }))
    }

    async fn list_participants(
        &self,
        request: Request<ListParticipantsRequest>,
    ) -> Result<Response<ListParticipantsResponse>, Status> {
        let room = room_or_status(&request.into_inner().room)?;
        let description = self.hub.describe(room).await.map_err(refuse)?;
        let participants = description
            .participants
            .into_iter()
            .map(|(id, stay, connected)| Participant {
                id: id.get(),
                name: stay.name.to_string(),
                joined_timestamp: stay.joined.get(),
                connected,
            });
        let mut participants: Vec<_> = participants.collect();
        participants.sort_by(|a, b| (&a.name, a.id).cmp(&(&b.name, b.id)));
        Ok(Response::new(ListParticipantsResponse {
            participants,
            sequence: description.sequence.get(),
            timestamp: description.time.get(),
        }))
    }
}
