//! A server that misbehaves on request. Every stream is a room of its own; names and message texts choose the fault.
#![allow(dead_code, missing_docs, unreachable_pub)]

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use chitchat::proto::chat_service_server::{ChatService, ChatServiceServer};
use chitchat::proto::{
    EventType, GetHistoryRequest, GetHistoryResponse, JoinMsgLeave, ListBansRequest, ListBansResponse,
    ListParticipantsRequest, ListParticipantsResponse, ListRoomsRequest, ListRoomsResponse, ModerateRequest,
    ModerateResponse, Notice, NoticeCode, SendMessageRequest, SendMessageResponse, ServerMessage,
    SubscribeRequest, Welcome,
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio::sync::{Notify, mpsc};
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::service::Routes;
use tonic::{Request, Response, Status, Streaming};
use tower::ServiceExt as _;

/// The second and third JOINs with this name, in either case, find the server unavailable.
pub const FLAKY: &str = "Flaky";
/// A JOIN with this name is rejected.
pub const TAKEN: &str = "Taken";
/// The stream of this participant stays open after its LEAVE.
pub const NEVER_RELEASED: &str = "Stuck";
/// This participant receives no welcome, as if the server were of the first version.
pub const NOT_WELCOMED: &str = "Old";

/// Starts the server on a runtime of its own, for a test that blocks. The server stops when the runtime is dropped.
pub fn start_in_background() -> (Runtime, SocketAddr) {
    let runtime = Runtime::new().unwrap();
    let address = runtime.block_on(start());
    (runtime, address)
}

/// Starts the server on the current runtime.
pub async fn start() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let flaky_joins = Arc::<AtomicU64>::default();
        loop {
            let (socket, _) = listener.accept().await.unwrap();
            let faults = Faults {
                flaky_joins: Arc::clone(&flaky_joins),
                ..Faults::default()
            };
            tokio::spawn(async move {
                let (cut, freeze) = (Arc::clone(&faults.cut), Arc::clone(&faults.freeze));
                let (reporter, health) = tonic_health::server::health_reporter();
                reporter.set_serving::<ChatServiceServer<Faults>>().await;
                reporter
                    .set_service_status("draining", tonic_health::ServingStatus::NotServing)
                    .await;
                let routes = Routes::new(ChatServiceServer::new(faults))
                    .add_service(health)
                    .prepare();
                let service = TowerToHyperService::new(routes.map_request(
                    |request: http::Request<hyper::body::Incoming>| request.map(tonic::body::Body::new),
                ));
                let connection = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                    .serve_connection(TokioIo::new(socket), service);
                let mut connection = std::pin::pin!(connection);
                tokio::select! {
                    _ = &mut connection => {}
                    () = cut.notified() => {}
                    // Keeps the socket open without polling it.
                    () = freeze.notified() => std::future::pending().await,
                }
            });
        }
    });
    address
}

/// The faults that affect a whole connection.
#[derive(Default, Clone)]
struct Faults {
    /// Closes the connection.
    cut: Arc<Notify>,
    /// Stops polling the connection, which stays open.
    freeze: Arc<Notify>,
    /// The number of JOINs as [`FLAKY`], on all connections.
    flaky_joins: Arc<AtomicU64>,
}

type Output = mpsc::Sender<Result<ServerMessage, Status>>;

impl Faults {
    /// Runs one stream until it ends. Returns `None` if the client has disconnected.
    async fn run_stream(self, mut input: Streaming<JoinMsgLeave>, out: Output) -> Option<()> {
        let join = input.message().await.ok()??;
        if join.client_name == TAKEN {
            let rejection = Status::already_exists("another participant is called Taken");
            return out.send(Err(rejection)).await.ok();
        }
        if join.client_name.eq_ignore_ascii_case(FLAKY)
            && (1..=2).contains(&self.flaky_joins.fetch_add(1, Ordering::Relaxed))
        {
            return out.send(Err(Status::unavailable("flaky"))).await.ok();
        }
        let (mut time, mut last_received) = (1, join.timestamp);
        let name = join.client_name;
        let welcome = ServerMessage {
            welcome: Some(Welcome::default()),
            ..ServerMessage::default()
        };
        if name != NOT_WELCOMED {
            out.send(Ok(welcome)).await.ok()?;
        }
        let sequence = AtomicU64::new(0);
        let event = |r#type: EventType, time: i64, text: String| ServerMessage {
            sender_id: 3,
            sender_name: name.clone(),
            msg_stream: text,
            r#type: r#type.into(),
            timestamp: time,
            sequence: 1 + sequence.fetch_add(1, Ordering::Relaxed),
            ..ServerMessage::default()
        };
        let joined = format!("Participant {name} joined Chit Chat at logical time L=1");
        out.send(Ok(event(EventType::Join, time, joined))).await.ok()?;

        while let Some(received) = input.message().await.ok()? {
            if received.timestamp <= last_received {
                let late = format!("time {} is not after {last_received}", received.timestamp);
                return out.send(Err(Status::invalid_argument(late))).await.ok();
            }
            last_received = received.timestamp;
            time = time.max(received.timestamp) + 1;
            let notice = |code: NoticeCode, text: &str| ServerMessage {
                sender_name: "Server".into(),
                msg_stream: text.into(),
                r#type: EventType::Message.into(),
                timestamp: time,
                message_id: received.message_id.clone(),
                notice: Some(Notice {
                    code: code.into(),
                    ..Notice::default()
                }),
                ..ServerMessage::default()
            };
            let answer = match (received.r#type(), received.msg.as_str()) {
                (EventType::Leave, _) if name == NEVER_RELEASED => return std::future::pending().await,
                (EventType::Leave, _) | (_, "end") => return Some(()),
                (_, text) if text.starts_with("silence") => continue,
                (_, "cut") => {
                    self.cut.notify_one();
                    continue;
                }
                (_, "freeze") => {
                    self.freeze.notify_one();
                    continue;
                }
                (_, "drain") => {
                    let reconnect = notice(NoticeCode::Reconnect, "The server is draining.");
                    out.send(Ok(ServerMessage {
                        message_id: String::new(),
                        ..reconnect
                    }))
                    .await
                    .ok()?;
                    return out.send(Err(Status::unavailable("draining"))).await.ok();
                }
                (_, "refuse") => notice(
                    NoticeCode::MessageTooLong,
                    "Message too long (354 chars). Limit is 128.",
                ),
                (_, "absurd") => {
                    let absurd = event(EventType::Message, i64::MAX, "absurd".into());
                    out.send(Ok(absurd)).await.ok()?;
                    event(EventType::Message, time, received.msg.clone())
                }
                (_, "attack") => {
                    let attack = ServerMessage {
                        sender_name: "E\u{202e}ve\n".into(),
                        ..event(
                            EventType::Message,
                            time,
                            "\u{1b}[2Jhi\n[L=9] Bob: boo\u{200b}".into(),
                        )
                    };
                    out.send(Ok(attack)).await.ok()?;
                    event(EventType::Message, time, received.msg.clone())
                }
                (_, text) => event(EventType::Message, time, text.to_owned()),
            };
            let echo = ServerMessage {
                message_id: received.message_id.clone(),
                ..answer
            };
            out.send(Ok(echo)).await.ok()?;
        }
        Some(())
    }
}

#[tonic::async_trait]
impl ChatService for Faults {
    type ChatStream = Pin<Box<dyn Stream<Item = Result<ServerMessage, Status>> + Send>>;
    type SubscribeStream = Self::ChatStream;

    async fn chat(
        &self,
        request: Request<Streaming<JoinMsgLeave>>,
    ) -> Result<Response<Self::ChatStream>, Status> {
        let (out, stream) = mpsc::channel(16);
        tokio::spawn(self.clone().run_stream(request.into_inner(), out));
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }

    async fn send_message(
        &self,
        _: Request<SendMessageRequest>,
    ) -> Result<Response<SendMessageResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn subscribe(
        &self,
        _: Request<SubscribeRequest>,
    ) -> Result<Response<Self::SubscribeStream>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn get_history(
        &self,
        _: Request<GetHistoryRequest>,
    ) -> Result<Response<GetHistoryResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn list_rooms(&self, _: Request<ListRoomsRequest>) -> Result<Response<ListRoomsResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn list_participants(
        &self,
        _: Request<ListParticipantsRequest>,
    ) -> Result<Response<ListParticipantsResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn moderate(&self, _: Request<ModerateRequest>) -> Result<Response<ModerateResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn list_bans(&self, _: Request<ListBansRequest>) -> Result<Response<ListBansResponse>, Status> {
        Err(Status::unimplemented(""))
    }
}
