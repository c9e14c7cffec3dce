//! A server that does on request what no good server does. It knows one room a stream, and the texts it is told choose
//! what happens.
#![allow(dead_code, missing_docs, unreachable_pub)]

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use chitchat::proto::chat_service_server::{ChatService, ChatServiceServer};
use chitchat::proto::{
    EventType, GetHistoryRequest, GetHistoryResponse, JoinMsgLeave, ListParticipantsRequest,
    ListParticipantsResponse, ListRoomsRequest, ListRoomsResponse, Notice, NoticeCode, SendMessageRequest,
    SendMessageResponse, ServerMessage, SubscribeRequest, Welcome,
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;
use tokio::sync::{Notify, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tokio_stream::{Stream, StreamExt as _};
use tonic::service::Routes;
use tonic::{Request, Response, Status, Streaming};
use tower::ServiceExt as _;

/// Called so, a participant is refused.
pub const TAKEN: &str = "Taken";
/// Called so, a participant is never let go.
pub const KEPT: &str = "Kept";
/// Called so, a participant is treated as the first version's server would.
pub const OLD: &str = "Old";

/// Starts the server; it runs as long as the runtime.
pub async fn serve() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (socket, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                let script = Script::default();
                let (cut, freeze) = (Arc::clone(&script.cut), Arc::clone(&script.freeze));
                let (reporter, health) = tonic_health::server::health_reporter();
                reporter.set_serving::<ChatServiceServer<Script>>().await;
                reporter
                    .set_service_status("draining", tonic_health::ServingStatus::NotServing)
                    .await;
                let routes = Routes::new(ChatServiceServer::new(script))
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
                    // The connection stays open and nothing works on it.
                    () = freeze.notified() => std::future::pending().await,
                }
            });
        }
    });
    address
}

#[derive(Default)]
pub struct Script {
    cut: Arc<Notify>,
    freeze: Arc<Notify>,
}

type Out = mpsc::Sender<Result<ServerMessage, Status>>;

impl Script {
    async fn follow(
        mut input: Streaming<JoinMsgLeave>,
        out: Out,
        cut: Arc<Notify>,
        freeze: Arc<Notify>,
    ) -> Option<()> {
        let join = input.message().await.ok()??;
        if join.client_name == TAKEN {
            let refused = Status::already_exists("somebody in the room is called Taken");
            return out.send(Err(refused)).await.ok();
        }
        let (mut time, mut last_said) = (1, join.timestamp);
        let name = join.client_name;
        let welcome = ServerMessage {
            welcome: Some(Welcome::default()),
            ..ServerMessage::default()
        };
        if name != OLD {
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

        while let Some(said) = input.message().await.ok()? {
            if said.timestamp <= last_said {
                let late = format!("time {} is not after {last_said}", said.timestamp);
                return out.send(Err(Status::invalid_argument(late))).await.ok();
            }
            last_said = said.timestamp;
            time = time.max(said.timestamp) + 1;
            let notice = |code: NoticeCode, text: &str| ServerMessage {
                sender_name: "Server".into(),
                msg_stream: text.into(),
                r#type: EventType::Message.into(),
                timestamp: time,
                message_id: said.message_id.clone(),
                notice: Some(Notice {
                    code: code.into(),
                    ..Notice::default()
                }),
                ..ServerMessage::default()
            };
            let answer = match (said.r#type(), said.msg.as_str()) {
                (EventType::Leave, _) if name == KEPT => return std::future::pending().await,
                (EventType::Leave, _) | (_, "end") => return Some(()),
                (_, "silence") => continue,
                (_, "cut") => {
                    cut.notify_one();
                    continue;
                }
                (_, "freeze") => {
                    freeze.notify_one();
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
                    event(EventType::Message, time, said.msg.clone())
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
                    event(EventType::Message, time, said.msg.clone())
                }
                (_, text) => event(EventType::Message, time, text.to_owned()),
            };
            let echo = ServerMessage {
                message_id: said.message_id.clone(),
                ..answer
            };
            out.send(Ok(echo)).await.ok()?;
        }
        Some(())
    }
}

#[tonic::async_trait]
impl ChatService for Script {
    type ChatStream = Pin<Box<dyn Stream<Item = Result<ServerMessage, Status>> + Send>>;
    type SubscribeStream = Self::ChatStream;

    async fn chat(
        &self,
        request: Request<Streaming<JoinMsgLeave>>,
    ) -> Result<Response<Self::ChatStream>, Status> {
        let (out, stream) = mpsc::channel(16);
        tokio::spawn(Self::follow(
            request.into_inner(),
            out,
            Arc::clone(&self.cut),
            Arc::clone(&self.freeze),
        ));
        Ok(Response::new(Box::pin(
            ReceiverStream::new(stream).map(|message| message),
        )))
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
}
