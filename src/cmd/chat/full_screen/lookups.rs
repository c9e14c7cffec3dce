//! The unary calls of the full screen: history, participants, rooms.

use std::sync::Arc;

use tokio::sync::Mutex;
use tokio::task::JoinSet;

use super::roster::MAX_LISTED;
use crate::client::{ClientError, ConnectOptions, Connection, ServerAddress};
use crate::domain::RoomName;
use crate::proto::get_history_request::Page;
use crate::proto::{
    GetHistoryRequest, GetHistoryResponse, ListParticipantsRequest, ListParticipantsResponse,
    ListRoomsRequest, RoomSummary,
};

/// Events per page of history.
const PAGE_LEN: u32 = 200;

/// The largest page of participants that the server returns.
const PARTICIPANTS_PAGE_LEN: u32 = 1_000;

/// How many rooms are listed.
const MAX_ROOMS: u32 = 100;

/// The result of a call.
#[derive(Debug)]
pub(super) enum Answer {
    /// The page before this sequence number.
    Older(u64, Result<GetHistoryResponse, ClientError>),
    /// The page after this sequence number.
    Newer(u64, Result<GetHistoryResponse, ClientError>),
    Roster(Result<ListParticipantsResponse, ClientError>),
    /// And whether these are all.
    Rooms(Result<(Vec<RoomSummary>, bool), ClientError>),
}

/// Makes calls in the background, on a connection of their own.
#[derive(Debug)]
pub(super) struct Lookups {
    connector: Arc<Connector>,
    /// Each with the generation of the room that it is for.
    running: JoinSet<(u64, Answer)>,
}

#[derive(Debug)]
struct Connector {
    server: ServerAddress,
    options: ConnectOptions,
    connection: Mutex<Option<Connection>>,
}

impl Connector {
    /// The open connection or a new one, and whether it is new.
    async fn connection(&self) -> Result<(Connection, bool), ClientError> {
        let mut connection = self.connection.lock().await;
        if let Some(open) = &*connection {
            return Ok((open.clone(), false));
        }
        let new = Connection::open(&self.server, &self.options).await?;
        *connection = Some(new.clone());
        Ok((new, true))
    }

    /// Makes a call, twice if the connection was lost, or its token has expired, since the last one.
    async fn call<T, F>(&self, request: impl Fn(Connection) -> F + Send) -> Result<T, ClientError>
    where
        F: Future<Output = Result<T, ClientError>> + Send,
    {
        let (connection, is_new) = self.connection().await?;
        match request(connection).await {
            Err(error) if error.is_retryable() => {
                *self.connection.lock().await = None;
                if is_new {
                    return Err(error);
                }
                request(self.connection().await?.0).await
            }
            result => result,
        }
    }

    async fn page(&self, room: String, page: Page) -> Result<GetHistoryResponse, ClientError> {
        let request = GetHistoryRequest {
            room,
            page: Some(page),
            limit: PAGE_LEN,
        };
        self.call(|connection| {
            let request = request.clone();
            async move { connection.get_history(request).await }
        })
        .await
    }

    /// All participants, up to [`MAX_LISTED`], with the sequence number of the first page: later events may be reflected.
    async fn roster(&self, room: String) -> Result<ListParticipantsResponse, ClientError> {
        let mut request = ListParticipantsRequest {
            room,
            page_size: PARTICIPANTS_PAGE_LEN,
            ..ListParticipantsRequest::default()
        };
        let mut list: Option<ListParticipantsResponse> = None;
        loop {
            let page = self
                .call(|connection| {
                    let request = request.clone();
                    async move { connection.list_participants(request).await }
                })
                .await?;
            request.page_token.clone_from(&page.next_page_token);
            let is_last = page.next_page_token.is_empty() || page.participants.is_empty();
            let list = match &mut list {
                None => list.insert(page),
                Some(list) => {
                    list.participants.extend(page.participants);
                    list
                }
            };
            if is_last || list.participants.len() >= MAX_LISTED {
                list.participants.truncate(MAX_LISTED);
                return Ok(std::mem::take(list));
            }
        }
    }

    async fn rooms(&self) -> Result<(Vec<RoomSummary>, bool), ClientError> {
        let request = ListRoomsRequest {
            page_size: MAX_ROOMS,
            ..ListRoomsRequest::default()
        };
        let page = self
            .call(|connection| {
                let request = request.clone();
                async move { connection.list_rooms(request).await }
            })
            .await?;
        Ok((page.rooms, page.next_page_token.is_empty()))
    }
}

impl Lookups {
    pub(super) fn new(server: ServerAddress, options: ConnectOptions) -> Self {
        Self {
            connector: Arc::new(Connector {
                server,
                options,
                connection: Mutex::default(),
            }),
            running: JoinSet::new(),
        }
    }

    fn spawn(&mut self, generation: u64, call: impl Future<Output = Answer> + Send + 'static) {
        self.running.spawn(async move { (generation, call.await) });
    }

    pub(super) fn load_older(&mut self, generation: u64, room: &RoomName, before: u64) {
        let (connector, room) = (Arc::clone(&self.connector), room.as_str().to_owned());
        self.spawn(generation, async move {
            Answer::Older(before, connector.page(room, Page::BeforeSequence(before)).await)
        });
    }

    pub(super) fn load_newer(&mut self, generation: u64, room: &RoomName, after: u64) {
        let (connector, room) = (Arc::clone(&self.connector), room.as_str().to_owned());
        self.spawn(generation, async move {
            Answer::Newer(after, connector.page(room, Page::AfterSequence(after)).await)
        });
    }

    pub(super) fn load_roster(&mut self, generation: u64, room: &RoomName) {
        let (connector, room) = (Arc::clone(&self.connector), room.as_str().to_owned());
        self.spawn(
            generation,
            async move { Answer::Roster(connector.roster(room).await) },
        );
    }

    pub(super) fn list_rooms(&mut self, generation: u64) {
        let connector = Arc::clone(&self.connector);
        self.spawn(generation, async move { Answer::Rooms(connector.rooms().await) });
    }

    /// Waits for the next answer; pending while no call is running. Cancel safe.
    pub(super) async fn next(&mut self) -> (u64, Answer) {
        loop {
            match self.running.join_next().await {
                Some(Ok(answer)) => return answer,
                // The task has panicked, and has nothing to say.
                Some(Err(_)) => {}
                None => std::future::pending().await,
            }
        }
    }
}
