//! A small server in memory that keeps every promise of the contract: one log a room, sessions that can be resumed,
//! messages that are broadcast once, and the calls beside `Chat`. What a test wants to happen to it (a lost log, a session
//! that is over, a drain) it does at once.
#![allow(dead_code, missing_docs, unreachable_pub)]

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use chitchat::proto::chat_service_server::{ChatService, ChatServiceServer};
use chitchat::proto::get_history_request::Page;
use chitchat::proto::subscribe_request::Start;
use chitchat::proto::{
    EventType, GetHistoryRequest, GetHistoryResponse, JoinMsgLeave, ListParticipantsRequest,
    ListParticipantsResponse, ListRoomsRequest, ListRoomsResponse, Notice, NoticeCode, Participant,
    ResumePoint, RoomSummary, SendMessageRequest, SendMessageResponse, ServerMessage, SubscribeRequest,
    Welcome,
};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tokio_stream::{Stream, StreamExt as _};
use tonic::{Code, Request, Response, Status, Streaming};
use tonic_types::{ErrorDetails, StatusExt as _};

/// How many events a page has at most.
const PAGE: usize = 7;

/// What went wrong, or where to go on.
type Out = mpsc::Sender<Result<ServerMessage, Status>>;

#[derive(Clone)]
pub struct Hall {
    pub address: SocketAddr,
    state: Arc<Mutex<State>>,
    changed: watch::Sender<u64>,
}

#[derive(Default)]
struct State {
    rooms: BTreeMap<String, Room>,
    epoch: u64,
    tokens: u64,
    /// Streams that began before are told to reconnect.
    drained: u64,
    streams: u64,
    /// How many unary calls are answered UNAVAILABLE after they were done.
    lost_answers: u32,
}

struct Room {
    epoch: u64,
    log: Vec<ServerMessage>,
    /// The sequence of the first event that is kept.
    first: u64,
    time: i64,
    ids: HashMap<String, u64>,
    members: Vec<Member>,
}

struct Member {
    token: String,
    id: i32,
    name: String,
    joined: i64,
    /// The stream that has the session.
    stream: u64,
    connected: bool,
}

impl Room {
    fn last(&self) -> u64 {
        self.log.last().map_or(self.first - 1, |event| event.sequence)
    }

    fn first_kept(&self) -> u64 {
        if self.log.is_empty() { 0 } else { self.first }
    }

    fn after(&self, sequence: u64) -> &[ServerMessage] {
        let skip = usize::try_from((sequence + 1).saturating_sub(self.first)).unwrap();
        &self.log[skip.min(self.log.len())..]
    }

    fn receive(&mut self, timestamp: i64) {
        self.time = self.time.max(timestamp) + 1;
    }

    fn append(
        &mut self,
        room: &str,
        id: i32,
        name: &str,
        r#type: EventType,
        text: &str,
    ) -> &mut ServerMessage {
        let sequence = self.last() + 1;
        let did = match r#type {
            EventType::Join => Some("joined"),
            EventType::Leave => Some("left"),
            EventType::Message => None,
        };
        let text = did.map_or_else(
            || text.to_owned(),
            |did| {
                format!(
                    "Participant {name} {did} Chit Chat at logical time L={}",
                    self.time
                )
            },
        );
        self.log.push(ServerMessage {
            sender_id: id,
            sender_name: name.to_owned(),
            msg_stream: text,
            r#type: r#type.into(),
            timestamp: self.time,
            room: room.to_owned(),
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
}

impl State {
    fn room(&mut self, name: &str) -> &mut Room {
        let epoch = self.epoch;
        self.rooms.entry(name.to_owned()).or_insert_with(|| Room {
            epoch,
            log: Vec::new(),
            first: 1,
            time: 0,
            ids: HashMap::new(),
            members: Vec::new(),
        })
    }

    fn existing(&mut self, name: &str) -> Result<&mut Room, Status> {
        let name = named(name);
        self.rooms
            .get_mut(name)
            .ok_or_else(|| Status::not_found(format!("there is no room {name:?}")))
    }
}

fn named(room: &str) -> &str {
    if room.is_empty() { "lobby" } else { room }
}

fn refused(code: Code, kind: &str, text: &str, retry: Option<Duration>) -> Status {
    let mut details = ErrorDetails::with_error_info(kind, "chitchat.itu", []);
    if retry.is_some() {
        details.set_retry_info(retry);
    }
    Status::with_error_details(code, text, details)
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

impl Hall {
    /// Starts it; it runs as long as the runtime.
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let hall = Self {
            address: listener.local_addr().unwrap(),
            state: Arc::new(Mutex::new(State {
                epoch: 1,
                ..State::default()
            })),
            changed: watch::Sender::new(0),
        };
        let service = ChatServiceServer::new(hall.clone());
        tokio::spawn(async move {
            // Small answers do not wait for one another.
            let incoming = TcpListenerStream::new(listener).map(|socket| {
                let socket = socket?;
                socket.set_nodelay(true)?;
                Ok::<_, std::io::Error>(socket)
            });
            tonic::transport::Server::builder()
                .add_service(service)
                .serve_with_incoming(incoming)
                .await
                .unwrap();
        });
        hall
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    fn tell(&self) {
        self.changed.send_modify(|count| *count += 1);
    }

    /// Somebody else says something.
    pub fn say(&self, room: &str, text: &str) {
        let mut state = self.state();
        let log = state.room(room);
        log.receive(0);
        log.append(room, 1, "Somebody", EventType::Message, text);
        drop(state);
        self.tell();
    }

    /// What is kept of a room.
    pub fn log(&self, room: &str) -> Vec<ServerMessage> {
        self.state().room(room).log.clone()
    }

    /// Who is connected.
    pub fn connected(&self, room: &str) -> usize {
        let mut state = self.state();
        state
            .room(room)
            .members
            .iter()
            .filter(|member| member.connected)
            .count()
    }

    /// The grace of everybody without a connection is over.
    pub fn expire(&self, room: &str) {
        let mut state = self.state();
        let log = state.room(room);
        let (stay, go): (Vec<Member>, Vec<Member>) =
            log.members.drain(..).partition(|member| member.connected);
        log.members = stay;
        for member in go {
            log.receive(0);
            log.append(room, member.id, &member.name, EventType::Leave, "");
        }
        drop(state);
        self.tell();
    }

    /// Nothing older than the newest `count` events is kept.
    pub fn keep(&self, room: &str, count: usize) {
        let mut state = self.state();
        let log = state.room(room);
        let gone = log.log.len().saturating_sub(count);
        log.log.drain(..gone);
        log.first += gone as u64;
    }

    /// Everything is lost, and a new epoch begins.
    pub fn lose(&self) {
        let mut state = self.state();
        state.rooms.clear();
        state.epoch += 1;
        drop(state);
        self.tell();
    }

    /// All streams are told to reconnect.
    pub fn drain(&self) {
        let mut state = self.state();
        state.drained = state.streams;
        drop(state);
        self.tell();
    }

    /// The answers to the next `count` posted messages are lost.
    pub fn lose_answers(&self, count: u32) {
        self.state().lost_answers = count;
    }

    /// Lets a participant in: the welcome, the stream's number, the place to go on from.
    fn join(&self, join: &JoinMsgLeave) -> Result<(Welcome, u64, ResumePoint), Status> {
        let room = named(&join.room);
        let mut state = self.state();
        state.streams += 1;
        state.tokens += 1;
        let (stream, tokens) = (state.streams, state.tokens);
        let log = state.room(room);
        log.receive(join.timestamp);
        let newest = log.last();
        let resumed = log
            .members
            .iter_mut()
            .find(|member| !join.session_token.is_empty() && member.token == join.session_token);
        let (id, token) = if let Some(member) = resumed {
            member.stream = stream;
            member.connected = true;
            (member.id, member.token.clone())
        } else {
            if log.members.iter().any(|member| member.name == join.client_name) {
                let text = format!(
                    "the name {:?} is taken in this room; choose another",
                    join.client_name
                );
                return Err(refused(Code::AlreadyExists, "NAME_TAKEN", &text, None));
            }
            let id = 1_000_000 + i32::try_from(tokens).unwrap();
            let member = Member {
                token: format!("token {tokens}"),
                id,
                name: join.client_name.clone(),
                joined: log.time,
                stream,
                connected: true,
            };
            let token = member.token.clone();
            log.members.push(member);
            log.append(room, id, &join.client_name, EventType::Join, "");
            (id, token)
        };
        let epoch = log.epoch;
        let resume = join.resume.filter(|resume| {
            resume.epoch == epoch && resume.sequence + 1 >= log.first && resume.sequence <= log.last()
        });
        let welcome = Welcome {
            participant_id: id,
            session_token: token,
            epoch,
            sequence: resume.map_or(newest, |resume| resume.sequence),
            recovered: resume.is_some(),
            first_sequence: log.first_kept(),
            last_sequence: log.last(),
            ..Welcome::default()
        };
        drop(state);
        self.tell();
        let place = ResumePoint {
            epoch,
            sequence: welcome.sequence,
        };
        Ok((welcome, stream, place))
    }

    /// Broadcasts, or says where it was before.
    fn post(
        &self,
        room: &str,
        id: i32,
        name: &str,
        timestamp: i64,
        message_id: &str,
        text: &str,
    ) -> Result<(ServerMessage, bool), NoticeCode> {
        let mut state = self.state();
        let log = state.room(room);
        log.receive(timestamp);
        if text.chars().count() > 100 {
            return Err(NoticeCode::MessageTooLong);
        }
        if let Some(sequence) = log.ids.get(message_id) {
            let original = log.after(sequence - 1)[0].clone();
            return Ok((original, true));
        }
        let event = log.append(room, id, name, EventType::Message, text);
        event.message_id = message_id.to_owned();
        let event = event.clone();
        log.ids.insert(message_id.to_owned(), event.sequence);
        drop(state);
        self.tell();
        Ok((event, false))
    }

    /// Sends what follows `place`; whether the reader is still there, or the status that ends the stream.
    async fn send_after(&self, room: &str, place: &mut ResumePoint, out: &Out) -> Result<bool, Status> {
        let events = {
            let mut state = self.state();
            let log = state.room(room);
            if log.epoch != place.epoch || place.sequence + 1 < log.first {
                let retry = Some(Duration::from_millis(1));
                return Err(refused(
                    Code::Aborted,
                    "FELL_BEHIND",
                    "this reader fell behind",
                    retry,
                ));
            }
            log.after(place.sequence).to_vec()
        };
        for event in events {
            place.sequence = event.sequence;
            if out.send(Ok(event)).await.is_err() {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn is_drained(&self, stream: u64) -> bool {
        stream <= self.state().drained
    }

    async fn say_reconnect(out: &Out) {
        let mut reconnect = notice(NoticeCode::Reconnect, "The server is draining.");
        let delay = Duration::from_millis(1);
        if let Some(notice) = &mut reconnect.notice {
            notice.retry_delay = Some(delay.try_into().unwrap());
        }
        let status = refused(
            Code::Unavailable,
            "DRAINING",
            "the server is draining",
            Some(delay),
        );
        out.send(Ok(reconnect)).await.ok();
        out.send(Err(status)).await.ok();
    }

    /// One participant's stream.
    async fn follow(self, mut input: Streaming<JoinMsgLeave>, out: Out) -> Option<()> {
        let join = input.message().await.ok()??;
        let room = named(&join.room).to_owned();
        let mut changed = self.changed.subscribe();
        let (welcome, stream, mut place) = match self.join(&join) {
            Ok(joined) => joined,
            Err(status) => return out.send(Err(status)).await.ok(),
        };
        let id = welcome.participant_id;
        let first = ServerMessage {
            welcome: Some(welcome),
            ..ServerMessage::default()
        };
        let gone = |hall: &Self| {
            let mut state = hall.state();
            let members = &mut state.room(&room).members;
            if let Some(member) = members.iter_mut().find(|member| member.stream == stream) {
                member.connected = false;
            }
        };
        let mut open = out.send(Ok(first)).await.is_ok();
        while open {
            match self.send_after(&room, &mut place, &out).await {
                Ok(there) => open = there,
                Err(status) => {
                    gone(&self);
                    return out.send(Err(status)).await.ok();
                }
            }
            if self.is_drained(stream) {
                gone(&self);
                Self::say_reconnect(&out).await;
                return None;
            }
            let has_session = {
                let mut state = self.state();
                state
                    .room(&room)
                    .members
                    .iter()
                    .any(|member| member.stream == stream)
            };
            if !has_session {
                let taken = notice(NoticeCode::TakenOver, "A newer connection has this session.");
                out.send(Ok(taken)).await.ok()?;
                let status = refused(Code::Aborted, "TAKEN_OVER", "taken over", None);
                return out.send(Err(status)).await.ok();
            }
            tokio::select! {
                _ = changed.changed() => {}
                said = input.message() => match said {
                    Ok(Some(said)) if said.r#type() == EventType::Message => {
                        let posted =
                            self.post(&room, id, &join.client_name, said.timestamp, &said.message_id, &said.msg);
                        let answer = match posted {
                            Ok((_, false)) => continue,
                            Ok((original, true)) => {
                                let mut answer = notice(NoticeCode::MessageRepeated, "Broadcast before.");
                                if let Some(notice) = &mut answer.notice {
                                    notice.original_sequence = original.sequence;
                                }
                                answer
                            }
                            Err(code) => notice(code, "Message too long. Limit is 100."),
                        };
                        let answer = ServerMessage { message_id: said.message_id, ..answer };
                        open = out.send(Ok(answer)).await.is_ok();
                    }
                    Ok(Some(_)) => {
                        gone(&self);
                        let state = self.state();
                        drop(state);
                        self.leave(&room, stream);
                        return None;
                    }
                    Ok(None) | Err(_) => open = false,
                },
            }
        }
        gone(&self);
        None
    }

    fn leave(&self, room: &str, stream: u64) {
        let mut state = self.state();
        let log = state.room(room);
        if let Some(place) = log.members.iter().position(|member| member.stream == stream) {
            let member = log.members.remove(place);
            log.receive(0);
            log.append(room, member.id, &member.name, EventType::Leave, "");
        }
        drop(state);
        self.tell();
    }

    /// One reader's stream.
    async fn read(self, room: String, stream: u64, mut place: ResumePoint, out: Out) {
        let mut changed = self.changed.subscribe();
        loop {
            match self.send_after(&room, &mut place, &out).await {
                Ok(true) => {}
                Ok(false) => return,
                Err(status) => {
                    out.send(Err(status)).await.ok();
                    return;
                }
            }
            if self.is_drained(stream) {
                return Self::say_reconnect(&out).await;
            }
            tokio::select! {
                _ = changed.changed() => {}
                () = out.closed() => return,
            }
        }
    }
}

#[tonic::async_trait]
impl ChatService for Hall {
    type ChatStream = Pin<Box<dyn Stream<Item = Result<ServerMessage, Status>> + Send>>;
    type SubscribeStream = Self::ChatStream;

    async fn chat(
        &self,
        request: Request<Streaming<JoinMsgLeave>>,
    ) -> Result<Response<Self::ChatStream>, Status> {
        let (out, stream) = mpsc::channel(16);
        tokio::spawn(self.clone().follow(request.into_inner(), out));
        Ok(Response::new(Box::pin(
            ReceiverStream::new(stream).map(|message| message),
        )))
    }

    async fn send_message(
        &self,
        request: Request<SendMessageRequest>,
    ) -> Result<Response<SendMessageResponse>, Status> {
        let said = request.into_inner();
        let room = named(&said.room).to_owned();
        {
            let mut state = self.state();
            let members = &state.room(&room).members;
            if members.iter().any(|member| member.name == said.client_name) {
                let text = format!(
                    "the name {:?} is taken in this room; choose another",
                    said.client_name
                );
                return Err(refused(Code::AlreadyExists, "NAME_TAKEN", &text, None));
            }
        }
        let posted = self.post(
            &room,
            2,
            &said.client_name,
            said.timestamp,
            &said.message_id,
            &said.msg,
        );
        let Ok((broadcast, repeated)) = posted else {
            let text = "Message too long. Limit is 100.";
            return Err(refused(Code::InvalidArgument, "MESSAGE_TOO_LONG", text, None));
        };
        let mut state = self.state();
        if state.lost_answers > 0 {
            state.lost_answers -= 1;
            let delay = Some(Duration::from_millis(1));
            return Err(refused(
                Code::Unavailable,
                "DRAINING",
                "the server is draining",
                delay,
            ));
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
        let wanted = request.into_inner();
        let (stream, place) = {
            let mut state = self.state();
            state.streams += 1;
            let stream = state.streams;
            let log = state.existing(&wanted.room)?;
            let at = |sequence| ResumePoint {
                epoch: log.epoch,
                sequence,
            };
            let place = match wanted.start {
                None => at(log.last()),
                Some(Start::Last(count)) => at(log.last().saturating_sub(count.into()).max(log.first - 1)),
                Some(Start::After(after))
                    if after.epoch == log.epoch
                        && after.sequence + 1 >= log.first
                        && after.sequence <= log.last() =>
                {
                    after
                }
                Some(Start::After(_)) => return Err(Status::out_of_range("that part is not kept")),
            };
            (stream, place)
        };
        let (out, messages) = mpsc::channel(16);
        tokio::spawn(
            self.clone()
                .read(named(&wanted.room).to_owned(), stream, place, out),
        );
        Ok(Response::new(Box::pin(
            ReceiverStream::new(messages).map(|message| message),
        )))
    }

    async fn get_history(
        &self,
        request: Request<GetHistoryRequest>,
    ) -> Result<Response<GetHistoryResponse>, Status> {
        let wanted = request.into_inner();
        let mut state = self.state();
        let log = state.existing(&wanted.room)?;
        let limit = match usize::try_from(wanted.limit).unwrap() {
            0 => PAGE,
            limit => limit.min(PAGE),
        };
        let messages = match wanted.page {
            Some(Page::AfterSequence(sequence)) => log.after(sequence).iter().take(limit).cloned().collect(),
            before => {
                let end = match before {
                    Some(Page::BeforeSequence(sequence)) => log.log.len() - log.after(sequence - 1).len(),
                    _ => log.log.len(),
                };
                log.log[end.saturating_sub(limit)..end].to_vec()
            }
        };
        Ok(Response::new(GetHistoryResponse {
            messages,
            epoch: log.epoch,
            first_sequence: log.first_kept(),
            last_sequence: log.last(),
        }))
    }

    async fn list_rooms(
        &self,
        request: Request<ListRoomsRequest>,
    ) -> Result<Response<ListRoomsResponse>, Status> {
        let after = request.into_inner().page_token;
        let state = self.state();
        let mut rooms = state.rooms.iter().filter(|(name, _)| **name > after);
        // Two a page, so that pages are turned.
        let rooms: Vec<RoomSummary> = rooms
            .by_ref()
            .take(2)
            .map(|(name, log)| RoomSummary {
                room: name.clone(),
                participants: u32::try_from(log.members.len()).unwrap(),
                epoch: log.epoch,
                first_sequence: log.first_kept(),
                last_sequence: log.last(),
                timestamp: log.time,
            })
            .collect();
        let is_last = rooms
            .last()
            .is_none_or(|last| state.rooms.keys().next_back() == Some(&last.room));
        let next_page_token = if is_last {
            String::new()
        } else {
            rooms.last().map(|room| room.room.clone()).unwrap_or_default()
        };
        Ok(Response::new(ListRoomsResponse {
            rooms,
            next_page_token,
        }))
    }

    async fn list_participants(
        &self,
        request: Request<ListParticipantsRequest>,
    ) -> Result<Response<ListParticipantsResponse>, Status> {
        let mut state = self.state();
        let log = state.existing(&request.into_inner().room)?;
        let mut participants: Vec<Participant> = log
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
            sequence: log.last(),
            timestamp: log.time,
        }))
    }
}
