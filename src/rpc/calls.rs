//! The calls beside Chat.

use std::pin::Pin;

use tokio_stream::Stream;
use tonic::{Request, Response, Status, Streaming};

use crate::proto::chat_service_server::ChatService;
use crate::proto::{
    GetHistoryRequest, GetHistoryResponse, JoinMsgLeave, ListParticipantsRequest, ListParticipantsResponse,
    ListRoomsRequest, ListRoomsResponse, SendMessageRequest, SendMessageResponse, ServerMessage,
    SubscribeRequest,
};

/// The calls beside Chat. This release implements none of them; their shape is agreed, so that numbers never move.
#[derive(Debug, Clone, Copy, Default)]
pub struct Calls;

fn not_yet<T>(call: &str) -> Result<Response<T>, Status> {
    Err(Status::unimplemented(format!(
        "{call} is not implemented by this release; use Chat"
    )))
}

type ServerMessages = Pin<Box<dyn Stream<Item = Result<ServerMessage, Status>> + Send>>;

#[tonic::async_trait]
impl ChatService for Calls {
    type ChatStream = ServerMessages;
    type SubscribeStream = ServerMessages;

    async fn chat(&self, _: Request<Streaming<JoinMsgLeave>>) -> Result<Response<ServerMessages>, Status> {
        // `ChatRoute` answers this path before it comes here.
        Err(Status::internal("Chat has a route of its own"))
    }

    async fn send_message(
        &self,
        _: Request<SendMessageRequest>,
    ) -> Result<Response<SendMessageResponse>, Status> {
        not_yet("SendMessage")
    }

    async fn subscribe(&self, _: Request<SubscribeRequest>) -> Result<Response<ServerMessages>, Status> {
        not_yet("Subscribe")
    }

    async fn get_history(
        &self,
        _: Request<GetHistoryRequest>,
    ) -> Result<Response<GetHistoryResponse>, Status> {
        not_yet("GetHistory")
    }

    async fn list_rooms(&self, _: Request<ListRoomsRequest>) -> Result<Response<ListRoomsResponse>, Status> {
        not_yet("ListRooms")
    }

    async fn list_participants(
        &self,
        _: Request<ListParticipantsRequest>,
    ) -> Result<Response<ListParticipantsResponse>, Status> {
        not_yet("ListParticipants")
    }
}
