//! The calls beside `Chat`: one answer each.

use tonic::{Request, Response, Status, Streaming};

use super::call::MAX_MESSAGE_BYTES;
use super::connection::Connection;
use super::error::Error;
use crate::proto::chat_service_client::ChatServiceClient;
use crate::proto::{
    GetHistoryRequest, GetHistoryResponse, ListParticipantsRequest, ListParticipantsResponse,
    ListRoomsRequest, ListRoomsResponse, SendMessageRequest, SendMessageResponse, ServerMessage,
    SubscribeRequest,
};

/// The largest answer that is taken from a server: a page of the longest texts.
const MAX_ANSWER_BYTES: usize = 64 * 1024 * 1024;

impl Connection {
    /// Posts one message without joining.
    ///
    /// # Errors
    /// [`Error::Refused`] when the server will not have it, and what else can happen to a call.
    ///
    /// # Cancellation
    /// Loses the answer: the message may have been broadcast. Sent again under the same id it is broadcast once.
    pub async fn send_message(&self, request: SendMessageRequest) -> Result<SendMessageResponse, Error> {
        let mut client = ChatServiceClient::new(self.channel()).max_decoding_message_size(MAX_MESSAGE_BYTES);
        self.ask(client.send_message(self.timed(request))).await
    }

    /// A page of a room's log.
    ///
    /// # Errors
    /// [`Error::Refused`] when there is no such room, and what else can happen to a call.
    ///
    /// # Cancellation
    /// Loses the answer and nothing else.
    pub async fn get_history(&self, request: GetHistoryRequest) -> Result<GetHistoryResponse, Error> {
        let mut client = ChatServiceClient::new(self.channel()).max_decoding_message_size(MAX_ANSWER_BYTES);
        self.ask(client.get_history(self.timed(request))).await
    }

    /// A page of the list of rooms.
    ///
    /// # Errors
    /// Whatever can happen to a call.
    ///
    /// # Cancellation
    /// Loses the answer and nothing else.
    pub async fn list_rooms(&self, request: ListRoomsRequest) -> Result<ListRoomsResponse, Error> {
        let mut client = ChatServiceClient::new(self.channel()).max_decoding_message_size(MAX_ANSWER_BYTES);
        self.ask(client.list_rooms(self.timed(request))).await
    }

    /// Who is in a room.
    ///
    /// # Errors
    /// [`Error::Refused`] when there is no such room, and what else can happen to a call.
    ///
    /// # Cancellation
    /// Loses the answer and nothing else.
    pub async fn list_participants(
        &self,
        request: ListParticipantsRequest,
    ) -> Result<ListParticipantsResponse, Error> {
        let mut client = ChatServiceClient::new(self.channel()).max_decoding_message_size(MAX_ANSWER_BYTES);
        self.ask(client.list_participants(self.timed(request))).await
    }

    /// Begins to read a room without joining it.
    pub(super) async fn subscribe(
        &self,
        request: SubscribeRequest,
    ) -> Result<Streaming<ServerMessage>, Error> {
        let mut client = ChatServiceClient::new(self.channel()).max_decoding_message_size(MAX_MESSAGE_BYTES);
        self.ask(client.subscribe(request)).await
    }

    /// A request that tells the server how long its answer is waited for.
    fn timed<T>(&self, request: T) -> Request<T> {
        let mut request = Request::new(request);
        request.set_timeout(self.answer_within());
        request
    }

    async fn ask<T>(&self, answer: impl Future<Output = Result<Response<T>, Status>>) -> Result<T, Error> {
        match self.within(answer).await? {
            Ok(answer) => Ok(answer.into_inner()),
            Err(status) => Err(Error::before_any_answer(status, self.address())),
        }
    }
}
