//! The load generator against servers that keep their promises, and against servers that break one of them on purpose.
//! Every run is bounded by a count, so that nothing depends on how fast the machine is.
#![allow(
    clippy::unwrap_used,
    reason = "a helper that cannot set its test up has failed it"
)]

use std::net::SocketAddr;
use std::sync::mpsc as blocking;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use chitchat::proto::chat_service_server::{ChatService, ChatServiceServer};
use chitchat::proto::{
    EventType, GetHistoryRequest, GetHistoryResponse, JoinMsgLeave, ListParticipantsRequest,
    ListParticipantsResponse, ListRoomsRequest, ListRoomsResponse, SendMessageRequest, SendMessageResponse,
    ServerMessage, SubscribeRequest,
};
use chitchat_bench::{BenchError, Http2Settings, Load, Plan, Protocol, Report, Until};
use tokio::sync::mpsc;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status, Streaming};

/// What the server does wrong, to the participant who joined first and about the tenth message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    None,
    Loses,
    Repeats,
    Swaps,
    Alters,
    Cuts,
    Refuses,
}

const FAULTY_MESSAGE: u64 = 10;

type Sender = mpsc::UnboundedSender<Result<ServerMessage, Status>>;

#[derive(Debug, Default)]
struct Room {
    name: String,
    sequence: u64,
    timestamp: i64,
    said: u64,
    members: Vec<(i32, Sender)>,
    /// What a server that swaps holds back.
    held: Option<ServerMessage>,
}

#[derive(Debug, Clone)]
struct Chat {
    fault: Fault,
    rooms: Arc<Mutex<Vec<Room>>>,
}

impl Chat {
    /// Broadcasts what a participant says, with the fault that this server has.
    fn broadcast(&self, room: &str, id: i32, name: &str, said: &JoinMsgLeave) {
        let mut rooms = self.rooms.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(room) = rooms.iter_mut().find(|other| other.name == room) else {
            return;
        };
        let is_message = said.r#type() == EventType::Message;
        room.timestamp = room.timestamp.max(said.timestamp) + 1;
        room.said += u64::from(is_message);
        let faulty = is_message && room.said == FAULTY_MESSAGE;
        if faulty && self.fault == Fault::Refuses {
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
        let text = match said.r#type() {
            EventType::Join => format!(
                "Participant {name} joined Chit Chat at logical time L={}",
                room.timestamp
            ),
            EventType::Message => said.msg.clone(),
            EventType::Leave => format!(
                "Participant {name} left Chit Chat at logical time L={}",
                room.timestamp
            ),
        };
        let message = ServerMessage {
            sender_id: id,
            sender_name: name.into(),
            msg_stream: text,
            r#type: said.r#type,
            timestamp: room.timestamp,
            sequence: room.sequence,
            ..ServerMessage::default()
        };
        for (index, (_, sender)) in room.members.iter().enumerate() {
            let mut messages = vec![message.clone()];
            if index == 0 {
                messages.extend(room.held.take());
                match self.fault {
                    Fault::Loses if faulty => messages.clear(),
                    Fault::Repeats if faulty => messages.push(message.clone()),
                    Fault::Swaps if faulty => room.held = messages.pop(),
                    Fault::Alters if faulty => messages.iter_mut().for_each(|m| m.msg_stream.push('!')),
                    Fault::Cuts if faulty => {
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

    fn enter(&self, room: &str, sender: Sender) -> i32 {
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
            // A place stays, so that the first one remains the first one; only its channel closes.
            if let Some((_, sender)) = room.members.iter_mut().find(|(member, _)| *member == id) {
                *sender = mpsc::unbounded_channel().0;
            }
        }
    }

    async fn listen(self, mut inbound: Streaming<JoinMsgLeave>, sender: Sender) {
        let Ok(Some(join)) = inbound.message().await else {
            return;
        };
        let (room, name) = (join.room.clone(), join.client_name.clone());
        let id = self.enter(&room, sender);
        self.broadcast(&room, id, &name, &join);
        while let Ok(Some(said)) = inbound.message().await {
            if said.r#type() == EventType::Leave {
                self.leave(id);
            }
            self.broadcast(&room, id, &name, &said);
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
        tokio::spawn(self.clone().listen(request.into_inner(), sender));
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
}

/// Starts a server on a thread of its own; it lives as long as the test program.
fn serve(fault: Fault) -> SocketAddr {
    let (tell, told) = blocking::channel();
    thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            let incoming = TcpIncoming::bind("127.0.0.1:0".parse().unwrap())
                .unwrap()
                .with_nodelay(Some(true));
            tell.send(incoming.local_addr().unwrap()).unwrap();
            let chat = Chat {
                fault,
                rooms: Arc::default(),
            };
            Server::builder()
                .add_service(ChatServiceServer::new(chat))
                .serve_with_incoming(incoming)
                .await
        })
    });
    told.recv().unwrap()
}

fn plan(server: SocketAddr) -> Plan {
    Plan {
        server: server.to_string(),
        protocol: Protocol::Chitchat,
        subscribers: 4,
        connections: None,
        publishers: 2,
        rooms: 1,
        payload: 100,
        load: Load::Window(8),
        until: Until::Count(500),
        // Long enough that nothing but a real stall is given up.
        patience: Duration::from_secs(60),
        idle: false,
        pid: None,
        threads: 1,
        http2: Http2Settings {
            max_frame_size: 16_384,
            stream_window: 65_535,
            connection_window: 65_535,
        },
        progress: false,
    }
}

fn perfect(plan: Plan) -> Report {
    let report = chitchat_bench::run(plan).unwrap();
    assert_eq!(report.broken(), Vec::<String>::new());
    report
}

/// Runs against a server with a fault. One publisher, so that its own order is the room's.
fn faulty(fault: Fault) -> Report {
    let patience = Duration::from_secs(3);
    chitchat_bench::run(Plan {
        patience,
        publishers: 1,
        until: Until::Count(50),
        ..plan(serve(fault))
    })
    .unwrap()
}

#[test]
fn every_delivery_of_a_good_server_is_counted_once() {
    let report = perfect(plan(serve(Fault::None)));
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
    assert_eq!(perfect(shared).deliveries, 500 * 32);
}

#[test]
fn rooms_do_not_hear_each_other() {
    let rooms = Plan {
        subscribers: 6,
        publishers: 3,
        rooms: 3,
        ..plan(serve(Fault::None))
    };
    assert_eq!(perfect(rooms).deliveries, 500 * 3);
}

#[test]
fn a_flood_of_long_texts_respects_the_windows_both_ways() {
    let flood = Plan {
        load: Load::Flood,
        payload: 20_000,
        until: Until::Count(300),
        ..plan(serve(Fault::None))
    };
    assert_eq!(perfect(flood).deliveries, 300 * 6);
}

#[test]
fn a_timetable_is_kept_to_its_last_message() {
    let timetable = Plan {
        load: Load::Rate(2_000),
        until: Until::Count(200),
        ..plan(serve(Fault::None))
    };
    let report = perfect(timetable);
    assert_eq!(report.deliveries, 200 * 6);
    assert_eq!(report.lag.map(|lag| lag.count()), Some(200));
}

#[test]
fn idle_clients_get_their_one_message() {
    let idle = Plan {
        idle: true,
        publishers: 1,
        until: Until::Count(1),
        ..plan(serve(Fault::None))
    };
    assert_eq!(perfect(idle).deliveries, 5);
}

#[test]
fn a_lost_delivery_is_caught() {
    let report = faulty(Fault::Loses);
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
fn a_repeated_delivery_is_caught() {
    let report = faulty(Fault::Repeats);
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
fn swapped_deliveries_are_caught() {
    let report = faulty(Fault::Swaps);
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
fn an_altered_text_is_caught() {
    let report = faulty(Fault::Alters);
    assert!(report.faults.none() && report.order.none());
    assert_eq!(
        report.broken(),
        ["1 clients with a stream different from the others'"]
    );
}

#[test]
fn a_cut_stream_is_caught_and_explained() {
    let report = faulty(Fault::Cuts);
    assert_eq!(report.cut, 1);
    assert_eq!(report.reasons, ["grpc-status 8: you are too slow"]);
}

#[test]
fn a_refused_message_is_told_and_does_not_stop_its_publisher() {
    let report = faulty(Fault::Refuses);
    assert_eq!((report.sent, report.refused), (50, 1));
    assert_eq!(report.refusal.as_deref(), Some("too fast"));
    assert_eq!(report.faults.lost, 5);
}

#[test]
fn nobody_there_is_told() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let nobody = listener.local_addr().unwrap();
    drop(listener);
    assert!(matches!(
        chitchat_bench::run(plan(nobody)),
        Err(BenchError::Unavailable(_))
    ));
}

#[test]
fn the_limit_server_keeps_its_promises() {
    let (tell, told) = blocking::channel();
    thread::spawn(move || {
        chitchat_bench::serve_limit("127.0.0.1:0", |address| tell.send(address).unwrap_or_default())
    });
    let limit = Plan {
        protocol: Protocol::Limit,
        load: Load::Flood,
        ..plan(told.recv().unwrap())
    };
    assert_eq!(
        perfect(Plan {
            until: Until::Count(50_000),
            ..limit
        })
        .deliveries,
        50_000 * 6
    );
}
