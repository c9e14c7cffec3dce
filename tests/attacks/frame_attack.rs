//! Attacks with frames that no client library would send.

use std::net::SocketAddr;
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use chitchat::proto::{
    GetHistoryRequest, JoinMsgLeave, ListParticipantsRequest, ResumePoint, SendMessageRequest,
    SubscribeRequest, subscribe_request,
};
use rand::rngs::StdRng;
use rand::{Rng as _, RngCore as _, SeedableRng as _};
use tokio::io::AsyncWriteExt as _;
use tokio::time::{sleep, timeout};

use crate::frames::{
    CONTINUATION, DATA, END_HEADERS, END_STREAM, HEADERS, PING, PRIORITY, RST_STREAM, SETTINGS, WINDOW_UPDATE,
};
use crate::frames::{call, data, frame, grpc, preface};
use crate::{MAX_FILES, connect};

/// A window for what follows a JOIN and some messages, in bytes.
const FEW_MESSAGES: u32 = 4_000;

/// What the attackers of one kind do.
pub struct FrameAttack {
    pub name: &'static str,
    /// How many connections at a time, if the operating system allows so many.
    max_connections: usize,
    /// The window of each stream for responses, in bytes.
    window: u32,
    /// Whether the attacker reads what the server sends.
    reads: bool,
    /// How many payloads a connection sends before it is dropped.
    payloads: usize,
    /// The next bytes.
    payload: fn(&mut Attacker) -> Vec<u8>,
}

impl FrameAttack {
    /// How many connections at a time: two attacks take at most half of the sockets that this process may open.
    pub fn connections(&self) -> usize {
        self.max_connections.min(*MAX_FILES / 4)
    }

    /// How long each attacker waits before it sends again. Thousands of them would otherwise keep the machine busy themselves.
    fn pause(&self) -> Duration {
        Duration::from_millis(if self.connections() > 1_000 { 100 } else { 2 })
    }

    /// Repeats the attack on one connection after the other.
    pub async fn run(&'static self, server: SocketAddr, seed: u64, until: Instant) {
        let mut random = StdRng::seed_from_u64(seed);
        let mut read = vec![0; 1 << 16];
        while Instant::now() < until {
            let from = random.random_range(2..6);
            let Some(mut socket) = connect(server, from).await else {
                sleep(Duration::from_millis(50)).await;
                continue;
            };
            let mut attacker = Attacker::new(random.random());
            let mut bytes = preface(self.window);
            let mut payloads = 0;
            while Instant::now() < until && payloads < self.payloads {
                bytes.extend((self.payload)(&mut attacker));
                payloads += 1;
                // A server that does not read does what it should.
                match timeout(Duration::from_millis(200), socket.write_all(&bytes)).await {
                    Ok(Err(_)) => break,
                    Ok(Ok(())) | Err(_) => bytes.clear(),
                }
                if self.reads && matches!(socket.try_read(&mut read), Ok(0)) {
                    break;
                }
                sleep(self.pause()).await;
            }
            sleep(Duration::from_millis(10)).await;
        }
    }
}

/// The state of one connection.
pub struct Attacker {
    random: StdRng,
    pub stream: u32,
}

impl Attacker {
    pub fn new(seed: u64) -> Self {
        Self {
            random: StdRng::seed_from_u64(seed),
            stream: 1,
        }
    }

    /// The id of the next stream.
    fn next_stream(&mut self) -> u32 {
        self.stream += 2;
        self.stream
    }

    pub fn text(&mut self, len: usize) -> String {
        (0..len).map(|_| self.random.random_range('a'..='z')).collect()
    }

    /// A call with one message.
    fn call(&mut self, method: &str, message: &impl prost::Message) -> Vec<u8> {
        let stream = self.next_stream();
        let message = frame(DATA, END_STREAM, stream, &grpc(message));
        [call(stream, method), message].concat()
    }

    /// A message of 100 random letters.
    pub fn message(&mut self) -> JoinMsgLeave {
        JoinMsgLeave {
            msg: self.text(100),
            r#type: 1,
            timestamp: 1,
            ..JoinMsgLeave::default()
        }
    }

    /// A stream that joins a new room and sends thousands of messages like this one.
    fn flood_room(&mut self, message: &JoinMsgLeave) -> Vec<u8> {
        let room = self.text(20);
        let join = self.join(room);
        let message = JoinMsgLeave {
            r#type: 1,
            ..message.clone()
        };
        let messages = repeated(5_000, &grpc(&message));
        let frames = messages
            .chunks(16_000)
            .map(|part| frame(DATA, 0, self.stream, part));
        [join, frames.collect::<Vec<_>>().concat()].concat()
    }

    /// A stream that stays open after its JOIN.
    pub fn join(&mut self, room: String) -> Vec<u8> {
        let stream = self.next_stream();
        let join = JoinMsgLeave {
            room,
            client_name: self.text(12),
            id: self.random.random(),
            history: self.random.random_range(0..200),
            wants_welcome: true,
            ..JoinMsgLeave::default()
        };
        [call(stream, "Chat"), data(stream, &join)].concat()
    }

    /// Opens `count` streams in one room, which stay open.
    fn join_often(&mut self, count: usize, room: &str) -> Vec<u8> {
        (0..count).flat_map(|_| self.join(room.into())).collect()
    }
}

/// A WINDOW_UPDATE frame that enlarges the connection's flow-control window by 1 GiB.
fn open_window() -> Vec<u8> {
    frame(WINDOW_UPDATE, 0, 0, &(1_u32 << 30).to_be_bytes())
}

fn repeated(count: usize, frame: &[u8]) -> Vec<u8> {
    frame.repeat(count)
}

/// Hundreds of short headers, as many as a request may have, as literals without indexing.
static MANY_HEADERS: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let letters = || b'a'..=b'z';
    let names = letters().flat_map(|one| letters().map(move |two| [one, two]));
    let fields = names.take(450).flat_map(|[one, two]| [0, 2, one, two, 0]);
    fields.collect()
});

/// A frame that begins a call, with more fields after its headers.
fn call_with(flags: u8, stream: u32, method: &str, fields: &[u8]) -> Vec<u8> {
    let call = call(stream, method);
    frame(HEADERS, flags, stream, &[&call[9..], fields].concat())
}

pub static FRAME_ATTACKS: &[FrameAttack] = &[
    FrameAttack {
        name: "connections that send nothing",
        max_connections: 300,
        window: 0,
        reads: false,
        payloads: usize::MAX,
        payload: |_| Vec::new(),
    },
    FrameAttack {
        name: "PRIORITY frames",
        max_connections: 8,
        window: 65_535,
        reads: true,
        payloads: usize::MAX,
        payload: |_| repeated(1_000, &frame(PRIORITY, 0, 3, &[0, 0, 0, 0, 9])),
    },
    FrameAttack {
        name: "WINDOW_UPDATE frames",
        max_connections: 8,
        window: 65_535,
        reads: true,
        payloads: usize::MAX,
        payload: |_| repeated(1_000, &frame(WINDOW_UPDATE, 0, 0, &[0, 0, 0, 1])),
    },
    FrameAttack {
        name: "PINGs whose answers are not read",
        max_connections: 8,
        window: 65_535,
        reads: false,
        payloads: usize::MAX,
        payload: |_| repeated(1_000, &frame(PING, 0, 0, &[1; 8])),
    },
    FrameAttack {
        name: "SETTINGS whose answers are not read",
        max_connections: 8,
        window: 65_535,
        reads: false,
        payloads: usize::MAX,
        payload: |_| repeated(500, &frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 255, 255])),
    },
    FrameAttack {
        name: "SETTINGS that change the windows of many streams",
        max_connections: 8,
        window: 65_535,
        reads: true,
        payloads: usize::MAX,
        payload: |attacker| {
            if attacker.stream < 200 {
                return attacker.join_often(10, "lobby");
            }
            let windows = [60_000_u32, 65_535].map(|window| {
                let setting = [&[0, 4][..], &window.to_be_bytes()].concat();
                frame(SETTINGS, 0, 0, &setting)
            });
            repeated(100, &windows.concat())
        },
    },
    FrameAttack {
        name: "streams that are reset at once",
        max_connections: 8,
        window: 65_535,
        reads: true,
        payloads: usize::MAX,
        payload: |attacker| {
            let mut bytes = Vec::new();
            for _ in 0..100 {
                bytes.extend(attacker.join("lobby".into()));
                bytes.extend(frame(RST_STREAM, 0, attacker.stream, &[0, 0, 0, 8]));
            }
            bytes
        },
    },
    FrameAttack {
        name: "headers without end",
        max_connections: 8,
        window: 65_535,
        reads: true,
        payloads: 200,
        payload: |attacker| {
            if attacker.stream == 1 {
                attacker.next_stream();
                return frame(HEADERS, 0, attacker.stream, &[]);
            }
            let field = [&[0, 4][..], b"name", &[127, 0][..], &[b'x'; 127]].concat();
            frame(CONTINUATION, 0, attacker.stream, &field)
        },
    },
    FrameAttack {
        name: "many headers without end",
        max_connections: 300,
        window: 65_535,
        reads: false,
        payloads: usize::MAX,
        payload: |attacker| match attacker.stream {
            1 => call_with(0, attacker.next_stream(), "Chat", &MANY_HEADERS),
            _ => Vec::new(),
        },
    },
    FrameAttack {
        name: "requests with many headers",
        max_connections: 64,
        window: 0,
        reads: false,
        payloads: usize::MAX,
        payload: |attacker| {
            let calls: Vec<_> = (0..30)
                .map(|_| call_with(END_HEADERS, attacker.next_stream(), "Chat", &MANY_HEADERS))
                .collect();
            calls.concat()
        },
    },
    FrameAttack {
        name: "trailers that are not read",
        max_connections: 32,
        window: 0,
        reads: false,
        payloads: 3,
        payload: |attacker| {
            let mut bytes = Vec::new();
            for _ in 0..50 {
                bytes.extend(attacker.join("lobby".into()));
                let trailers = END_STREAM | END_HEADERS;
                bytes.extend(frame(HEADERS, trailers, attacker.stream, &MANY_HEADERS));
            }
            bytes
        },
    },
    FrameAttack {
        name: "headers that fill the table with buffers",
        max_connections: 64,
        window: 65_535,
        reads: true,
        payloads: usize::MAX,
        payload: |attacker| {
            // A literal path that is added to the table, and a long value that is not.
            let fields = [
                &[0x44, 2, b'/', b'x', 0, 1, b'a', 0x7f, 0x81, 0x7b][..],
                &[b'x'; 15_872],
            ]
            .concat();
            let calls = (0..10).flat_map(|_| {
                let stream = attacker.next_stream();
                frame(HEADERS, END_HEADERS | END_STREAM, stream, &fields)
            });
            calls.collect()
        },
    },
    FrameAttack {
        name: "messages that never end",
        max_connections: 8,
        window: 65_535,
        reads: true,
        payloads: 1_000,
        payload: |attacker| {
            let stream = attacker.next_stream();
            let mut partial = grpc(&SendMessageRequest {
                msg: "x".repeat(60_000),
                ..SendMessageRequest::default()
            });
            partial.truncate(30_000);
            let mut bytes = call(stream, "Chat");
            for part in partial.chunks(16_000) {
                bytes.extend(frame(DATA, 0, stream, part));
            }
            bytes
        },
    },
    FrameAttack {
        name: "empty DATA frames",
        max_connections: 8,
        window: 65_535,
        reads: true,
        payloads: usize::MAX,
        payload: |attacker| {
            if attacker.stream == 1 {
                return attacker.join("lobby".into());
            }
            repeated(1_000, &frame(DATA, 0, attacker.stream, &[]))
        },
    },
    FrameAttack {
        name: "messages byte by byte, which are not read",
        max_connections: 200,
        window: 0,
        reads: false,
        payloads: usize::MAX,
        payload: |attacker| {
            if attacker.stream == 1 {
                return attacker.join("lobby".into());
            }
            repeated(1_000, &frame(DATA, 0, attacker.stream, &[0]))
        },
    },
    FrameAttack {
        name: "history that nobody reads",
        max_connections: 16,
        window: 0,
        reads: false,
        payloads: 400,
        payload: |attacker| {
            let request = GetHistoryRequest {
                room: "tea".into(),
                limit: 1_000,
                ..GetHistoryRequest::default()
            };
            attacker.call("GetHistory", &request)
        },
    },
    FrameAttack {
        name: "lists that nobody reads",
        max_connections: 16,
        window: 0,
        reads: false,
        payloads: 400,
        payload: |attacker| {
            let request = ListParticipantsRequest {
                room: "lobby".into(),
                ..ListParticipantsRequest::default()
            };
            attacker.call("ListParticipants", &request)
        },
    },
    FrameAttack {
        name: "subscribers that do not read",
        max_connections: 32,
        window: 1,
        reads: false,
        payloads: 100,
        payload: |attacker| {
            let request = SubscribeRequest {
                room: "tea".into(),
                start: Some(subscribe_request::Start::Last(10_000)),
            };
            attacker.call("Subscribe", &request)
        },
    },
    FrameAttack {
        name: "participants that are lost",
        max_connections: 16,
        window: 65_535,
        reads: true,
        payloads: 30,
        payload: |attacker| {
            let room = ["lobby", "milk"][usize::from(attacker.random.random::<bool>())];
            attacker.join_often(10, room)
        },
    },
    FrameAttack {
        name: "rooms that nobody needs",
        max_connections: 8,
        window: 65_535,
        reads: true,
        payloads: 100,
        payload: |attacker| {
            let room = attacker.text(20);
            attacker.join(room)
        },
    },
    FrameAttack {
        name: "forged tokens and places",
        max_connections: 8,
        window: 65_535,
        reads: true,
        payloads: 300,
        payload: |attacker| {
            let stream = attacker.next_stream();
            let join = JoinMsgLeave {
                room: "tea".into(),
                client_name: "\u{1d159}".into(),
                session_token: format!(
                    "{:x}.{:x}.{:032x}",
                    attacker.stream,
                    1,
                    attacker.random.random::<u128>()
                ),
                resume: Some(ResumePoint {
                    epoch: attacker.random.random(),
                    sequence: attacker.random.random(),
                }),
                ..JoinMsgLeave::default()
            };
            [call(stream, "Chat"), data(stream, &join)].concat()
        },
    },
    FrameAttack {
        name: "posts that drive the clock",
        max_connections: 8,
        window: 65_535,
        reads: true,
        payloads: usize::MAX,
        payload: |attacker| {
            let request = SendMessageRequest {
                room: "lobby".into(),
                client_name: attacker.text(8),
                msg: attacker.text(1_000),
                timestamp: attacker.random.random(),
                message_id: attacker.text(16),
                ..SendMessageRequest::default()
            };
            attacker.call("SendMessage", &request)
        },
    },
    FrameAttack {
        name: "posts in bursts",
        max_connections: 64,
        window: 65_535,
        reads: true,
        payloads: usize::MAX,
        payload: |attacker| {
            let posts = (0..100).flat_map(|_| {
                let request = SendMessageRequest {
                    room: "lobby".into(),
                    client_name: "Bob".into(),
                    msg: "x".into(),
                    ..SendMessageRequest::default()
                };
                attacker.call("SendMessage", &request)
            });
            posts.collect()
        },
    },
    FrameAttack {
        name: "participants that join in bursts and are lost",
        max_connections: 64,
        window: 65_535,
        reads: true,
        payloads: 2,
        payload: |attacker| attacker.join_often(100, "lobby"),
    },
    FrameAttack {
        name: "members that flood",
        max_connections: 4,
        window: 65_535,
        reads: true,
        payloads: usize::MAX,
        payload: |attacker| {
            if attacker.stream == 1 {
                return attacker.join("milk".into());
            }
            let message = attacker.message();
            repeated(200, &data(attacker.stream, &message))
        },
    },
    FrameAttack {
        name: "crowds in one room",
        max_connections: 32,
        window: 1 << 30,
        reads: true,
        payloads: usize::MAX,
        payload: |attacker| {
            if attacker.stream == 1 {
                return [open_window(), attacker.join("crowd".into())].concat();
            }
            if attacker.stream < 200 {
                return attacker.join_often(10, "crowd");
            }
            // Some twenty messages per second, of all connections together.
            if attacker.random.random_ratio(499, 500) {
                return Vec::new();
            }
            let message = attacker.message();
            data(attacker.stream, &message)
        },
    },
    FrameAttack {
        name: "crowds of connections in two rooms",
        max_connections: 3_000,
        window: 1 << 30,
        reads: true,
        payloads: usize::MAX,
        payload: |attacker| {
            if attacker.stream == 1 {
                return [
                    open_window(),
                    attacker.join("milk".into()),
                    attacker.join("sugar".into()),
                ]
                .concat();
            }
            // Some forty messages per second and room, of all connections together.
            if attacker.random.random_ratio(749, 750) {
                return Vec::new();
            }
            let message = attacker.message();
            [3, 5].map(|stream| data(stream, &message)).concat()
        },
    },
    FrameAttack {
        name: "crowds of connections that flood one room",
        max_connections: 2_000,
        window: 1 << 30,
        reads: true,
        payloads: usize::MAX,
        payload: |attacker| {
            if attacker.stream == 1 {
                return [open_window(), attacker.join("flooded".into())].concat();
            }
            // Too few for any of the connections to be busy by itself. All of them together are.
            let message = attacker.message();
            repeated(20, &data(attacker.stream, &message))
        },
    },
    FrameAttack {
        name: "rooms that are flooded once",
        max_connections: 8,
        window: 1 << 30,
        reads: true,
        payloads: 10,
        payload: |attacker| {
            if attacker.stream == 1 {
                let room = attacker.text(20);
                return attacker.join(room);
            }
            let messages = (0..1_000).flat_map(|_| {
                let message = JoinMsgLeave {
                    msg: "x".into(),
                    r#type: 1,
                    message_id: attacker.text(16),
                    ..JoinMsgLeave::default()
                };
                data(attacker.stream, &message)
            });
            messages.collect()
        },
    },
    FrameAttack {
        name: "floods of rooms by clients that receive nothing",
        max_connections: 16,
        window: 0,
        reads: false,
        payloads: 100,
        payload: |attacker| attacker.flood_room(&JoinMsgLeave::default()),
    },
    FrameAttack {
        name: "floods of rooms that are not read",
        max_connections: 16,
        window: FEW_MESSAGES,
        reads: false,
        payloads: 100,
        payload: |attacker| attacker.flood_room(&JoinMsgLeave::default()),
    },
    FrameAttack {
        name: "rejections that are not read",
        max_connections: 16,
        window: FEW_MESSAGES,
        reads: false,
        payloads: 100,
        payload: |attacker| {
            attacker.flood_room(&JoinMsgLeave {
                // Only visible characters are valid.
                message_id: " ".into(),
                ..JoinMsgLeave::default()
            })
        },
    },
    FrameAttack {
        name: "refusals that are not read",
        max_connections: 64,
        window: 0,
        reads: false,
        payloads: usize::MAX,
        payload: |attacker| {
            let calls = (0..100).flat_map(|_| call(attacker.next_stream(), "Chat"));
            calls.collect()
        },
    },
    FrameAttack {
        name: "bytes without meaning",
        max_connections: 16,
        window: 65_535,
        reads: true,
        payloads: 20,
        payload: |attacker| {
            let mut bytes = vec![0; 2_000];
            attacker.random.fill_bytes(&mut bytes);
            bytes
        },
    },
    FrameAttack {
        name: "valid frames in a wrong order",
        max_connections: 16,
        window: 65_535,
        reads: true,
        payloads: 50,
        payload: |attacker| {
            let kind = attacker.random.random_range(0..12);
            let flags = attacker.random.random_range(0..8) | END_HEADERS;
            let stream = attacker.random.random_range(0..40);
            let mut payload = vec![0; attacker.random.random_range(0..40)];
            attacker.random.fill_bytes(&mut payload);
            frame(kind, flags, stream, &payload)
        },
    },
];
