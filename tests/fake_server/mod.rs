//! A small in-memory server that implements all RPCs of the contract: one log per room, resumable sessions, message
//! deduplication, and the unary calls. A test can delete its logs, expire its sessions or drain it at any time.
#![allow(dead_code, missing_docs, unreachable_pub)]

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use chitchat::proto::chat_service_server::{ChatService, ChatServiceServer};
use chitchat::proto::get_history_request::Page;
use chitchat::proto::subscribe_request::Start;
use chitchat::proto::{
    EventType, GetHistoryRequest, GetHistoryResponse, JoinMsgLeave, ListBansRequest, ListBansResponse,
    ListParticipantsRequest, ListParticipantsResponse, ListRoomsRequest, ListRoomsResponse, ModerateRequest,
    ModerateResponse, Notice, NoticeCode, Participant, ResumePoint, RoomSummary, SendMessageRequest,
    SendMessageResponse, ServerMessage, SubscribeRequest, Welcome,
};
use parking_lot::Mutex;
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tokio_stream::{Stream, StreamExt as _};
use tonic::transport::server::TcpIncoming;
use tonic::{Code, Request, Response, Status, Streaming};
use tonic_types::{ErrorDetails, StatusExt as _};

/// The maximum number of events per page.
const PAGE: usize = 7;

/// The maximum length of a message in characters.
const MAX_CHARS: usize = 100;
const TOO_LONG: &str = "Message too long. Limit is 100.";

type Output = mpsc::Sender<Result<ServerMessage, Status>>;

#[derive(Clone)]
pub struct FakeServer {
    pub address: SocketAddr,
    state: Arc<Mutex<State>>,
    /// Wakes all streams.
    changed: watch::Sender<()>,
}

#[derive(Default)]
struct State {
    rooms: BTreeMap<String, Room>,
    epoch: u64,
    /// Streams up to this number are told to reconnect.
    drained: u64,
    streams: u64,
    /// How many calls of `SendMessage` still fail with UNAVAILABLE after the message was broadcast.
    lost_responses: u32,
    /// With which the next calls of `SendMessage` fail, without effect.
    rejections: VecDeque<Status>,
    /// The `authorization` of each call of `SendMessage`.
    authorizations: Vec<String>,
    /// How many connections were opened.
    connections: usize,
}

struct Room {
    name: String,
    epoch: u64,
    log: Vec<ServerMessage>,
    /// The sequence of the first retained event.
    first: u64,
    time: i64,
    /// The sequence of each message id.
    ids: HashMap<String, u64>,
    members: Vec<Member>,
}

struct Member {
    token: String,
    id: i32,
    name: String,
    joined: i64,
    /// The newest stream of the session.
    stream: u64,
    connected: bool,
}

impl Room {
    fn last(&self) -> u64 {
        self.log.last().map_or(self.first - 1, |event| event.sequence)
    }

    /// The value of `first_sequence` in responses: 0 for an empty log.
    fn first_sequence(&self) -> u64 {
        if self.log.is_empty() { 0 } else { self.first }
    }

    fn after(&self, sequence: u64) -> &[ServerMessage] {
        let skip = usize::try_from((sequence + 1).saturating_sub(self.first)).unwrap();
        &self.log[skip.min(self.log.len())..]
    }

    fn merge_clock(&mut self, timestamp: i64) {
        self.time = self.time.max(timestamp) + 1;
    }

    fn append(&mut self, id: i32, name: &str, r#type: EventType, text: &str) -> &mut ServerMessage {
        let sequence = self.last() + 1;
        let announce = |did: &str| {
            format!(
                "Participant {name} {did} Chit Chat at logical time L={}",
                self.time
            )
        };
        let text = match r#type {
            EventType::Join => announce("joined"),
            EventType::Leave => announce("left"),
            EventType::Message => text.to_owned(),
        };
        self.log.push(ServerMessage {
            sender_id: id,
            sender_name: name.to_owned(),
            msg_stream: text,
            r#type: r#type.into(),
            timestamp: self.time,
            room: self.name.clone(),
            sequence,
            epoch: self.epoch,
            broadcast_time: Some(prost_types::Timestamp {
                seconds: 1_700_000_000,
                nanos: 123_000_000,
            }),
            ..ServerMessage::default()
        });
        self.log.last_mut().unwrap()
    }

    /// Resumes the session of a JOIN, or starts one. Returns the participant id and the session token.
    fn member_for(&mut self, join: &JoinMsgLeave, stream: u64) -> Result<(i32, String), Status> {
        let resumed = self
            .members
            .iter_mut()
            .find(|member| !join.session_token.is_empty() && member.token == join.session_token);
        if let Some(member) = resumed {
            member.stream = stream;
            member.connected = true;
            return Ok((member.id, member.token.clone()));
        }
        let name = &join.client_name;
        if self.members.iter().any(|member| member.name == *name) {
            return Err(name_taken(name));
        }
        let (id, token) = (
            1_000_000 + i32::try_from(stream).unwrap(),
            format!("token {stream}"),
        );
        self.members.push(Member {
            token: token.clone(),
            id,
            name: name.clone(),
            joined: self.time,
            stream,
            connected: true,
        });
        self.append(id, name, EventType::Join, "");
        Ok((id, token))
    }

    /// Removes the members for which `leaves` is true, and appends a LEAVE event for each.
    fn remove_members(&mut self, leaves: impl Fn(&mut Member) -> bool) {
        for member in self.members.extract_if(.., leaves).collect::<Vec<_>>() {
            self.merge_clock(0);
            self.append(member.id, &member.name, EventType::Leave, "");
        }
    }
}

impl State {
    fn room(&mut self, name: &str) -> &mut Room {
        let epoch = self.epoch;
        self.rooms.entry(name.to_owned()).or_insert_with(|| Room {
            name: name.to_owned(),
            epoch,
            log: Vec::new(),
            first: 1,
            time: 0,
            ids: HashMap::new(),
            members: Vec::new(),
        })
    }

    fn existing(&mut self, name: &str) -> Result<&mut Room, Status> {
        let name = or_lobby(name);
        self.rooms
            .get_mut(name)
            .ok_or_else(|| Status::not_found(format!("there is no room {name:?}")))
    }
}

fn or_lobby(room: &str) -> &str {
    if room.is_empty() { "lobby" } else { room }
}

/// The status of a rejection; with a delay, it may be retried.
pub fn status(code: Code, reason: &str, text: &str, retry: Option<Duration>) -> Status {
    let mut details = ErrorDetails::with_error_info(reason, "chitchat.itu", []);
    if retry.is_some() {
        details.set_retry_info(retry);
    }
    Status::with_error_details(code, text, details)
}

const RETRY: Duration = Duration::from_millis(1);

fn draining() -> Status {
    status(
        Code::Unavailable,
        "DRAINING",
        "the server is draining",
        Some(RETRY),
    )
}

fn name_taken(name: &str) -> Status {
    let text = format!("the name {name:?} is taken in this room; choose another");
    status(Code::AlreadyExists, "NAME_TAKEN", &text, None)
}

fn notice(code: NoticeCode, text: &str) -> ServerMessage {
    ServerMessage {
        sender_name: "Server".into(),
        msg_stream: text.into(),
        r#type: EventType::Message.into(),
        notice: Some(Notice {
            code: code.into(),
            ..Notice::default()
        }),
        ..ServerMessage::default()
    }
}

impl FakeServer {
    /// Starts the server on a runtime of its own, for a test that blocks. It stops when the runtime is dropped.
    pub fn start_in_background() -> (Runtime, Self) {
        let runtime = Runtime::new().unwrap();
        let server = runtime.block_on(Self::start());
        (runtime, server)
    }

    /// Starts the server on the current runtime.
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let server = Self {
            address: listener.local_addr().unwrap(),
            state: Arc::new(Mutex::new(State {
                epoch: 1,
                ..State::default()
            })),
            changed: watch::Sender::new(()),
        };
        let service = ChatServiceServer::new(server.clone());
        let state = Arc::clone(&server.state);
        let incoming = TcpIncoming::from(listener)
            .with_nodelay(Some(true))
            .map(move |connection| {
                state.lock().connections += 1;
                connection
            });
        tokio::spawn(async move {
            tonic::transport::Server::builder()
                .add_service(service)
                .serve_with_incoming(incoming)
                .await
                .unwrap();
        });
        server
    }

    /// Changes a room and wakes all streams.
    fn update<T>(&self, room: &str, change: impl FnOnce(&mut Room) -> T) -> T {
        let result = change(self.state.lock().room(room));
        self.changed.send_replace(());
        result
    }

    /// Broadcasts a message from a sender that is not a member.
    pub fn say(&self, room: &str, text: &str) {
        self.update(room, |room| {
            room.merge_clock(0);
            room.append(1, "Somebody", EventType::Message, text);
        });
    }

    /// The retained events of a room.
    pub fn log(&self, room: &str) -> Vec<ServerMessage> {
        self.state.lock().room(room).log.clone()
    }

    /// The number of connected participants.
    pub fn connected(&self, room: &str) -> usize {
        let mut state = self.state.lock();
        let members = state.room(room).members.iter();
        members.filter(|member| member.connected).count()
    }

    /// Ends the grace period of all disconnected participants.
    pub fn expire_grace(&self, room: &str) {
        self.update(room, |room| room.remove_members(|member| !member.connected));
    }

    /// Discards all but the newest `count` events.
    pub fn retain(&self, room: &str, count: usize) {
        let mut state = self.state.lock();
        let room = state.room(room);
        let discarded = room.log.len().saturating_sub(count);
        room.log.drain(..discarded);
        room.first += discarded as u64;
    }

    /// Deletes all rooms and starts a new epoch.
    pub fn lose_logs(&self) {
        let mut state = self.state.lock();
        state.rooms.clear();
        state.epoch += 1;
        drop(state);
        self.changed.send_replace(());
    }

    /// Tells all streams that are open now to reconnect.
    pub fn drain(&self) {
        let mut state = self.state.lock();
        state.drained = state.streams;
        drop(state);
        self.changed.send_replace(());
    }

    /// Makes the next `count` calls of `SendMessage` broadcast the message and then fail, as if the response were lost.
    pub fn lose_responses(&self, count: u32) {
        self.state.lock().lost_responses = count;
    }

    /// Makes the next calls of `SendMessage` fail, without effect.
    pub fn reject_sends(&self, rejections: impl IntoIterator<Item = Status>) {
        self.state.lock().rejections.extend(rejections);
    }

    /// The `authorization` of each call of `SendMessage`, empty without one.
    pub fn authorizations(&self) -> Vec<String> {
        self.state.lock().authorizations.clone()
    }

    /// How many connections were opened.
    pub fn connections(&self) -> usize {
        self.state.lock().connections
    }

    /// Admits a participant. Returns the welcome, the number of the stream, and the position after which it starts.
    fn join(&self, join: &JoinMsgLeave) -> Result<(Welcome, u64, ResumePoint), Status> {
        let mut state = self.state.lock();
        state.streams += 1;
        let stream = state.streams;
        let room = state.room(or_lobby(&join.room));
        room.merge_clock(join.timestamp);
        let newest = room.last();
        let (id, token) = room.member_for(join, stream)?;
        let epoch = room.epoch;
        let resume = join.resume.filter(|resume| {
            resume.epoch == epoch && resume.sequence + 1 >= room.first && resume.sequence <= room.last()
        });
        let welcome = Welcome {
            participant_id: id,
            session_token: token,
            epoch,
            sequence: resume.map_or(newest, |resume| resume.sequence),
            recovered: resume.is_some(),
            first_sequence: room.first_sequence(),
            last_sequence: room.last(),
            ..Welcome::default()
        };
        drop(state);
        self.changed.send_replace(());
        let position = ResumePoint {
            epoch,
            sequence: welcome.sequence,
        };
        Ok((welcome, stream, position))
    }

    /// Broadcasts a message. Returns the event, and whether an earlier message had the same id.
    fn post(
        &self,
        room: &str,
        id: i32,
        name: &str,
        timestamp: i64,
        message_id: &str,
        text: &str,
    ) -> Result<(ServerMessage, bool), NoticeCode> {
        self.update(room, |room| {
            room.merge_clock(timestamp);
            if text.chars().count() > MAX_CHARS {
                return Err(NoticeCode::MessageTooLong);
            }
            if let Some(sequence) = room.ids.get(message_id) {
                return Ok((room.after(sequence - 1)[0].clone(), true));
            }
            let event = room.append(id, name, EventType::Message, text);
            event.message_id = message_id.to_owned();
            let event = event.clone();
            room.ids.insert(message_id.to_owned(), event.sequence);
            Ok((event, false))
        })
    }

    /// Sends the events after `position` and advances it.
    async fn send_after(
        &self,
        room: &str,
        position: &mut ResumePoint,
        output: &Output,
    ) -> Result<(), Status> {
        let events = {
            let mut state = self.state.lock();
            let room = state.room(room);
            if room.epoch != position.epoch || position.sequence + 1 < room.first {
                let text = "this reader fell behind";
                return Err(status(Code::Aborted, "FELL_BEHIND", text, Some(RETRY)));
            }
            room.after(position.sequence).to_vec()
        };
        for event in events {
            position.sequence = event.sequence;
            send(output, event).await?;
        }
        Ok(())
    }

    async fn check_not_draining(&self, stream: u64, output: &Output) -> Result<(), Status> {
        if stream > self.state.lock().drained {
            return Ok(());
        }
        let mut reconnect = notice(NoticeCode::Reconnect, "The server is draining.");
        if let Some(notice) = &mut reconnect.notice {
            notice.retry_delay = Some(RETRY.try_into().unwrap());
        }
        send(output, reconnect).await?;
        Err(draining())
    }

    /// Serves one Chat stream.
    async fn chat_stream(self, mut input: Streaming<JoinMsgLeave>, output: Output) {
        let Ok(Some(join)) = input.message().await else {
            return;
        };
        let result = match self.join(&join) {
            Ok((welcome, stream, position)) => {
                let result = self
                    .serve_participant(&join, welcome, stream, position, input, &output)
                    .await;
                self.update(or_lobby(&join.room), |room| {
                    let mut members = room.members.iter_mut();
                    if let Some(member) = members.find(|member| member.stream == stream) {
                        member.connected = false;
                    }
                });
                result
            }
            Err(rejection) => Err(rejection),
        };
        if let Err(status) = result {
            output.send(Err(status)).await.ok();
        }
    }

    async fn serve_participant(
        &self,
        join: &JoinMsgLeave,
        welcome: Welcome,
        stream: u64,
        mut position: ResumePoint,
        mut input: Streaming<JoinMsgLeave>,
        output: &Output,
    ) -> Result<(), Status> {
        let room = or_lobby(&join.room);
        let id = welcome.participant_id;
        let mut changed = self.changed.subscribe();
        let welcome = ServerMessage {
            welcome: Some(welcome),
            ..ServerMessage::default()
        };
        send(output, welcome).await?;
        loop {
            self.send_after(room, &mut position, output).await?;
            self.check_not_draining(stream, output).await?;
            let has_session = {
                let mut state = self.state.lock();
                let mut members = state.room(room).members.iter();
                members.any(|member| member.stream == stream)
            };
            if !has_session {
                let text = "A newer connection has this session.";
                send(output, notice(NoticeCode::TakenOver, text)).await?;
                return Err(status(Code::Aborted, "TAKEN_OVER", "taken over", None));
            }
            let message = tokio::select! {
                _ = changed.changed() => continue,
                message = input.message() => match message {
                    Ok(Some(message)) => message,
                    Ok(None) | Err(_) => return Ok(()),
                },
            };
            if message.r#type() != EventType::Message {
                self.update(room, |room| {
                    room.remove_members(|member| member.stream == stream);
                });
                return Ok(());
            }
            let posted = self.post(
                room,
                id,
                &join.client_name,
                message.timestamp,
                &message.message_id,
                &message.msg,
            );
            let answer = match posted {
                Ok((_, false)) => continue,
                Ok((original, true)) => {
                    let mut answer = notice(NoticeCode::MessageRepeated, "Broadcast before.");
                    if let Some(notice) = &mut answer.notice {
                        notice.original_sequence = original.sequence;
                    }
                    answer
                }
                Err(code) => notice(code, TOO_LONG),
            };
            let answer = ServerMessage {
                message_id: message.message_id,
                ..answer
            };
            send(output, answer).await?;
        }
    }

    /// Serves one Subscribe stream.
    async fn subscription(self, room: String, stream: u64, mut position: ResumePoint, output: Output) {
        let mut changed = self.changed.subscribe();
        let serve = async {
            loop {
                self.send_after(&room, &mut position, &output).await?;
                self.check_not_draining(stream, &output).await?;
                tokio::select! {
                    _ = changed.changed() => {}
                    () = output.closed() => return Ok(()),
                }
            }
        };
        let result: Result<(), Status> = serve.await;
        if let Err(status) = result {
            output.send(Err(status)).await.ok();
        }
    }
}

async fn send(output: &Output, message: ServerMessage) -> Result<(), Status> {
    let sent = output.send(Ok(message)).await;
    sent.map_err(|_| Status::cancelled("the client has gone"))
}

#[tonic::async_trait]
impl ChatService for FakeServer {
    type ChatStream = Pin<Box<dyn Stream<Item = Result<ServerMessage, Status>> + Send>>;
    type SubscribeStream = Self::ChatStream;

    async fn chat(
        &self,
        request: Request<Streaming<JoinMsgLeave>>,
    ) -> Result<Response<Self::ChatStream>, Status> {
        let (output, stream) = mpsc::channel(16);
        tokio::spawn(self.clone().chat_stream(request.into_inner(), output));
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }

    async fn send_message(
        &self,
        request: Request<SendMessageRequest>,
    ) -> Result<Response<SendMessageResponse>, Status> {
        let authorization = request.metadata().get("authorization");
        let authorization = authorization.and_then(|value| value.to_str().ok());
        let authorization = authorization.unwrap_or_default().to_owned();
        let message = request.into_inner();
        let room = or_lobby(&message.room);
        {
            let mut state = self.state.lock();
            state.authorizations.push(authorization);
            if let Some(rejection) = state.rejections.pop_front() {
                return Err(rejection);
            }
            let mut members = state.room(room).members.iter();
            if members.any(|member| member.name == message.client_name) {
                return Err(name_taken(&message.client_name));
            }
        }
        let posted = self.post(
            room,
            2,
            &message.client_name,
            message.timestamp,
            &message.message_id,
            &message.msg,
        );
        let Ok((broadcast, repeated)) = posted else {
            return Err(status(Code::InvalidArgument, "MESSAGE_TOO_LONG", TOO_LONG, None));
        };
        let mut state = self.state.lock();
        if state.lost_responses > 0 {
            state.lost_responses -= 1;
            return Err(draining());
        }
        Ok(Response::new(SendMessageResponse {
            broadcast: Some(broadcast),
            repeated,
        }))
    }

    async fn subscribe(
        &self,
        request: Request<SubscribeRequest>,
    ) -> Result<Response<Self::SubscribeStream>, Status> {
        let request = request.into_inner();
        let mut state = self.state.lock();
        state.streams += 1;
        let stream = state.streams;
        let room = state.existing(&request.room)?;
        let sequence = match request.start {
            None => room.last(),
            Some(Start::Last(count)) => room.last().saturating_sub(count.into()).max(room.first - 1),
            Some(Start::After(after))
                if after.epoch == room.epoch
                    && after.sequence + 1 >= room.first
                    && after.sequence <= room.last() =>
            {
                after.sequence
            }
            Some(Start::After(_)) => return Err(Status::out_of_range("these events are not retained")),
        };
        let position = ResumePoint {
            epoch: room.epoch,
            sequence,
        };
        let (output, messages) = mpsc::channel(16);
        let subscription = self
            .clone()
            .subscription(room.name.clone(), stream, position, output);
        tokio::spawn(subscription);
        Ok(Response::new(Box::pin(ReceiverStream::new(messages))))
    }

    async fn get_history(
        &self,
        request: Request<GetHistoryRequest>,
    ) -> Result<Response<GetHistoryResponse>, Status> {
        let request = request.into_inner();
        let mut state = self.state.lock();
        let room = state.existing(&request.room)?;
        let limit = match usize::try_from(request.limit).unwrap() {
            0 => PAGE,
            limit => limit.min(PAGE),
        };
        let messages = match request.page {
            Some(Page::AfterSequence(sequence)) => room.after(sequence).iter().take(limit).cloned().collect(),
            before => {
                let end = match before {
                    Some(Page::BeforeSequence(sequence)) => room.log.len() - room.after(sequence - 1).len(),
                    _ => room.log.len(),
                };
                room.log[end.saturating_sub(limit)..end].to_vec()
            }
        };
        Ok(Response::new(GetHistoryResponse {
            messages,
            epoch: room.epoch,
            first_sequence: room.first_sequence(),
            last_sequence: room.last(),
        }))
    }

    async fn list_rooms(
        &self,
        request: Request<ListRoomsRequest>,
    ) -> Result<Response<ListRoomsResponse>, Status> {
        let after = request.into_inner().page_token;
        let state = self.state.lock();
        let mut rooms = state.rooms.iter().filter(|(name, _)| **name > after);
        // Two per page, so that clients must ask for more than one.
        let page: Vec<RoomSummary> = rooms
            .by_ref()
            .take(2)
            .map(|(name, room)| RoomSummary {
                room: name.clone(),
                participants: u32::try_from(room.members.len()).unwrap(),
                epoch: room.epoch,
                first_sequence: room.first_sequence(),
                last_sequence: room.last(),
                timestamp: room.time,
            })
            .collect();
        let last = rooms.next().and(page.last()).map(|last| last.room.clone());
        Ok(Response::new(ListRoomsResponse {
            rooms: page,
            next_page_token: last.unwrap_or_default(),
        }))
    }

    async fn list_participants(
        &self,
        request: Request<ListParticipantsRequest>,
    ) -> Result<Response<ListParticipantsResponse>, Status> {
        let mut state = self.state.lock();
        let room = state.existing(&request.into_inner().room)?;
        let mut participants: Vec<Participant> = room
            .members
            .iter()
            .map(|member| Participant {
                id: member.id,
                name: member.name.clone(),
                joined_timestamp: member.joined,
                connected: member.connected,
            })
            .collect();
        participants.sort_by(|one, other| one.name.cmp(&other.name));
        Ok(Response::new(ListParticipantsResponse {
            participants,
            sequence: room.last(),
            timestamp: room.time,
            ..ListParticipantsResponse::default()
        }))
    }

    async fn moderate(&self, _: Request<ModerateRequest>) -> Result<Response<ModerateResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn list_bans(&self, _: Request<ListBansRequest>) -> Result<Response<ListBansResponse>, Status> {
        Err(Status::unimplemented(""))
    }
}
