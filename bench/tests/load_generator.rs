//! The load generator against correct and faulty servers. Every run ends after a number of messages, so the tests do
//! not depend on the speed of the machine.
#![allow(clippy::unwrap_used, reason = "helpers of tests panic as tests do")]

use std::net::SocketAddr;
use std::sync::mpsc as blocking;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use chitchat::proto::chat_service_server::{ChatService, ChatServiceServer};
use chitchat::proto::{
    EventType, GetHistoryRequest, GetHistoryResponse, JoinMsgLeave, ListBansRequest, ListBansResponse,
    ListParticipantsRequest, ListParticipantsResponse, ListRoomsRequest, ListRoomsResponse, ModerateRequest,
    ModerateResponse, SendMessageRequest, SendMessageResponse, ServerMessage, SubscribeRequest,
};
use chitchat_bench::{BenchError, Http2Settings, Load, Plan, Protocol, Report, Until};
use tokio::sync::mpsc;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status, Streaming};

/// The fault of a server, which affects the tenth message to the participant who joined first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    None,
    Lose,
    Duplicate,
    Reorder,
    Alter,
    Disconnect,
    Reject,
}

const FAULTY_MESSAGE: u64 = 10;

type Sender = mpsc::UnboundedSender<Result<ServerMessage, Status>>;

#[derive(Debug, Default)]
struct Room {
    name: String,
    sequence: u64,
    timestamp: i64,
    messages: u64,
    members: Vec<(i32, Sender)>,
    /// The message that a swapping server has held back.
    held: Option<ServerMessage>,
}

#[derive(Debug, Clone)]
struct Chat {
    fault: Fault,
    rooms: Arc<Mutex<Vec<Room>>>,
}

impl Chat {
    /// Broadcasts a participant's message, with the fault of this server.
    fn broadcast(&self, room: &str, id: i32, name: &str, request: &JoinMsgLeave) {
        let mut rooms = self.rooms.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(room) = rooms.iter_mut().find(|other| other.name == room) else {
            return;
        };
        let is_message = request.r#type() == EventType::Message;
        room.timestamp = room.timestamp.max(request.timestamp) + 1;
        room.messages += u64::from(is_message);
        let faulty = is_message && room.messages == FAULTY_MESSAGE;
        if faulty && self.fault == Fault::Reject {
            let notice = ServerMessage {
                sender_name: "Server".into(),
                msg_stream: "too fast".into(),
                r#type: EventType::Message.into(),
                timestamp: room.timestamp,
                ..ServerMessage::default()
            };
            if let Some((_, sender)) = room.members.iter().find(|(member, _)| *member == id) {
                drop(sender.send(Ok(notice)));
            }
            return;
        }
        room.sequence += 1;
        let text = match request.r#type() {
            EventType::Join => format!(
                "Participant {name} joined Chit Chat at logical time L={}",
                room.timestamp
            ),
            EventType::Message => request.msg.clone(),
            EventType::Leave => format!(
                "Participant {name} left Chit Chat at logical time L={}",
                room.timestamp
            ),
        };
        let message = ServerMessage {
            sender_id: id,
            sender_name: name.into(),
            msg_stream: text,
            r#type: request.r#type,
            timestamp: room.timestamp,
            sequence: room.sequence,
            ..ServerMessage::default()
        };
        for (index, (_, sender)) in room.members.iter().enumerate() {
            let mut messages = vec![message.clone()];
            if index == 0 {
                messages.extend(room.held.take());
                match self.fault {
                    Fault::Lose if faulty => messages.clear(),
                    Fault::Duplicate if faulty => messages.push(message.clone()),
                    Fault::Reorder if faulty => room.held = messages.pop(),
                    Fault::Alter if faulty => messages.iter_mut().for_each(|m| m.msg_stream.push('!')),
                    Fault::Disconnect if faulty => {
                        drop(sender.send(Err(Status::resource_exhausted("you are too slow"))));
                    }
                    _ => {}
                }
            }
            for message in messages {
                drop(sender.send(Ok(message)));
            }
        }
    }

    fn join(&self, room: &str, sender: Sender) -> i32 {
        let mut rooms = self.rooms.lock().unwrap_or_else(PoisonError::into_inner);
        if !rooms.iter().any(|other| other.name == room) {
            rooms.push(Room {
                name: room.into(),
                ..Room::default()
            });
        }
        let id = rooms
            .iter()
            .map(|room| i32::try_from(room.members.len()).unwrap_or(0))
            .sum::<i32>()
            + 1;
        if let Some(room) = rooms.iter_mut().find(|other| other.name == room) {
            room.members.push((id, sender));
        }
        id
    }

    fn leave(&self, id: i32) {
        let mut rooms = self.rooms.lock().unwrap_or_else(PoisonError::into_inner);
        for room in rooms.iter_mut() {
            // The entry stays, so that the first member remains the first. Only its channel is closed.
            if let Some((_, sender)) = room.members.iter_mut().find(|(member, _)| *member == id) {
                *sender = mpsc::unbounded_channel().0;
            }
        }
    }

    async fn serve(self, mut inbound: Streaming<JoinMsgLeave>, sender: Sender) {
        let Ok(Some(join)) = inbound.message().await else {
            return;
        };
        let (room, name) = (join.room.clone(), join.client_name.clone());
        let id = self.join(&room, sender);
        self.broadcast(&room, id, &name, &join);
        while let Ok(Some(request)) = inbound.message().await {
            if request.r#type() == EventType::Leave {
                self.leave(id);
            }
            self.broadcast(&room, id, &name, &request);
        }
        self.leave(id);
    }
}

#[tonic::async_trait]
impl ChatService for Chat {
    type ChatStream = UnboundedReceiverStream<Result<ServerMessage, Status>>;
    type SubscribeStream = UnboundedReceiverStream<Result<ServerMessage, Status>>;

    async fn chat(
        &self,
        request: Request<Streaming<JoinMsgLeave>>,
    ) -> Result<Response<Self::ChatStream>, Status> {
        let (sender, receiver) = mpsc::unbounded_channel();
        tokio::spawn(self.clone().serve(request.into_inner(), sender));
        Ok(Response::new(UnboundedReceiverStream::new(receiver)))
    }

    async fn subscribe(
        &self,
        _: Request<SubscribeRequest>,
    ) -> Result<Response<Self::SubscribeStream>, Status> {
        Err(Status::unimplemented("not here"))
    }

    async fn send_message(
        &self,
        _: Request<SendMessageRequest>,
    ) -> Result<Response<SendMessageResponse>, Status> {
        Err(Status::unimplemented("not here"))
    }

    async fn get_history(
        &self,
        _: Request<GetHistoryRequest>,
    ) -> Result<Response<GetHistoryResponse>, Status> {
        Err(Status::unimplemented("not here"))
    }

    async fn list_rooms(&self, _: Request<ListRoomsRequest>) -> Result<Response<ListRoomsResponse>, Status> {
        Err(Status::unimplemented("not here"))
    }

    async fn list_participants(
        &self,
        _: Request<ListParticipantsRequest>,
    ) -> Result<Response<ListParticipantsResponse>, Status> {
        Err(Status::unimplemented("not here"))
    }

    async fn moderate(&self, _: Request<ModerateRequest>) -> Result<Response<ModerateResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn list_bans(&self, _: Request<ListBansRequest>) -> Result<Response<ListBansResponse>, Status> {
        Err(Status::unimplemented(""))
    }
}

/// Starts a server on its own thread, for the rest of the test program.
fn serve(fault: Fault) -> SocketAddr {
    serve_chat(Chat {
        fault,
        rooms: Arc::default(),
    })
}

/// Starts a server of these rooms.
fn serve_chat(chat: Chat) -> SocketAddr {
    let (sender, receiver) = blocking::channel();
    thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async move {
            let incoming = TcpIncoming::bind("127.0.0.1:0".parse().unwrap())
                .unwrap()
                .with_nodelay(Some(true));
            sender.send(incoming.local_addr().unwrap()).unwrap();
            Server::builder()
                .add_service(ChatServiceServer::new(chat))
                .serve_with_incoming(incoming)
                .await
        })
    });
    receiver.recv().unwrap()
}

fn plan(server: SocketAddr) -> Plan {
    Plan {
        servers: vec![server.to_string()],
        ca: None,
        protocol: Protocol::Chitchat,
        subscribers: 4,
        connections: None,
        publishers: 2,
        rooms: 1,
        room: None,
        payload: 100,
        load: Load::Window(8),
        until: Until::Count(500),
        // Only a real stall takes this long.
        drain_timeout: Duration::from_secs(60),
        idle: false,
        pids: Vec::new(),
        threads: 1,
        http2: Http2Settings {
            max_frame_size: 16_384,
            stream_window: 65_535,
            connection_window: 65_535,
        },
        progress: false,
    }
}

fn run_without_faults(plan: Plan) -> Report {
    let report = chitchat_bench::run(plan).unwrap();
    assert_eq!(report.violations(), Vec::<String>::new());
    report
}

/// Runs against a faulty server. With one publisher its order is that of the room.
fn run_with_fault(fault: Fault) -> Report {
    let drain_timeout = Duration::from_secs(3);
    chitchat_bench::run(Plan {
        drain_timeout,
        publishers: 1,
        until: Until::Count(50),
        ..plan(serve(fault))
    })
    .unwrap()
}

#[test]
fn every_delivery_of_a_correct_server_is_counted_once() {
    let report = run_without_faults(plan(serve(Fault::None)));
    assert_eq!(report.sent, 500);
    assert_eq!(report.deliveries, 500 * 6);
    assert_eq!(report.latency.count(), 500 * 6);
}

#[test]
fn many_clients_share_connections_and_threads() {
    let shared = Plan {
        subscribers: 30,
        connections: Some(4),
        threads: 2,
        ..plan(serve(Fault::None))
    };
    assert_eq!(run_without_faults(shared).deliveries, 500 * 32);
}

#[test]
fn the_clients_are_spread_over_all_servers_of_the_same_rooms() {
    let rooms: Arc<Mutex<Vec<Room>>> = Arc::default();
    let servers: Vec<_> = std::iter::repeat_with(|| {
        serve_chat(Chat {
            fault: Fault::None,
            rooms: Arc::clone(&rooms),
        })
    })
    .take(2)
    .collect();
    let mut spread = plan(servers[0]);
    spread.servers = servers.iter().map(ToString::to_string).collect();
    let report = run_without_faults(spread.clone());
    assert_eq!(report.deliveries, 500 * 6);
    assert_eq!(report.echo.count(), 500);
    // Servers that do not share their rooms: each delivers only to its own clients.
    spread.servers = vec![serve(Fault::None).to_string(), serve(Fault::None).to_string()];
    spread.until = Until::Count(50);
    spread.drain_timeout = Duration::from_secs(1);
    let report = chitchat_bench::run(spread).unwrap();
    assert_eq!(report.faults.lost, 50 * 3);
}

#[test]
fn rooms_are_separate() {
    let rooms = Plan {
        subscribers: 6,
        publishers: 3,
        rooms: 3,
        ..plan(serve(Fault::None))
    };
    assert_eq!(run_without_faults(rooms).deliveries, 500 * 3);
}

#[test]
fn a_flood_of_long_texts_respects_both_flow_control_windows() {
    let flood = Plan {
        load: Load::Flood,
        payload: 20_000,
        until: Until::Count(300),
        ..plan(serve(Fault::None))
    };
    assert_eq!(run_without_faults(flood).deliveries, 300 * 6);
}

#[test]
fn a_schedule_is_completed() {
    let scheduled = Plan {
        load: Load::Rate(2_000),
        until: Until::Count(200),
        ..plan(serve(Fault::None))
    };
    let report = run_without_faults(scheduled);
    assert_eq!(report.deliveries, 200 * 6);
    assert_eq!(report.lag.map(|lag| lag.count()), Some(200));
}

#[test]
fn idle_clients_receive_the_one_message() {
    let idle = Plan {
        idle: true,
        publishers: 1,
        until: Until::Count(1),
        ..plan(serve(Fault::None))
    };
    assert_eq!(run_without_faults(idle).deliveries, 5);
}

#[test]
fn a_lost_delivery_is_detected() {
    let report = run_with_fault(Fault::Lose);
    assert_eq!(
        (
            report.faults.lost,
            report.faults.duplicated,
            report.faults.reordered
        ),
        (1, 0, 0)
    );
    assert_eq!((report.order.not_dense, report.differing), (1, 1));
}

#[test]
fn a_duplicate_delivery_is_detected() {
    let report = run_with_fault(Fault::Duplicate);
    assert_eq!(
        (
            report.faults.lost,
            report.faults.duplicated,
            report.faults.reordered
        ),
        (0, 1, 0)
    );
    assert!(report.order.not_dense > 0 && report.order.not_later > 0);
}

#[test]
fn reordered_deliveries_are_detected() {
    let report = run_with_fault(Fault::Reorder);
    assert_eq!(
        (
            report.faults.lost,
            report.faults.duplicated,
            report.faults.reordered
        ),
        (0, 0, 1)
    );
    assert!(report.order.not_dense > 0 && report.order.not_later > 0 && report.differing > 0);
}

#[test]
fn an_altered_text_is_detected() {
    let report = run_with_fault(Fault::Alter);
    assert!(report.faults.is_empty() && report.order.is_empty());
    assert_eq!(
        report.violations(),
        ["1 clients with a stream different from the others'"]
    );
}

#[test]
fn a_disconnected_stream_is_reported_with_its_reason() {
    let report = run_with_fault(Fault::Disconnect);
    assert_eq!(report.disconnects, 1);
    assert_eq!(report.disconnect_reasons, ["grpc-status 8: you are too slow"]);
}

#[test]
fn a_rejected_message_is_reported_and_does_not_stop_its_publisher() {
    let report = run_with_fault(Fault::Reject);
    assert_eq!((report.sent, report.rejected), (50, 1));
    assert_eq!(report.first_rejection.as_deref(), Some("too fast"));
    assert_eq!(report.faults.lost, 5);
}

#[test]
fn an_unreachable_server_is_reported() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    assert!(matches!(
        chitchat_bench::run(plan(address)),
        Err(BenchError::Unavailable(_))
    ));
}

#[test]
fn the_limit_server_delivers_everything_in_order() {
    let (sender, receiver) = blocking::channel();
    thread::spawn(move || {
        chitchat_bench::serve_limit("127.0.0.1:0", |address| sender.send(address).unwrap_or_default())
    });
    let limit = Plan {
        protocol: Protocol::Limit,
        load: Load::Flood,
        ..plan(receiver.recv().unwrap())
    };
    assert_eq!(
        run_without_faults(Plan {
            until: Until::Count(50_000),
            ..limit
        })
        .deliveries,
        50_000 * 6
    );
}
