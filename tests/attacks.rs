//! Attacks by clients that send what no client library would and read little, all on one server, while others chat.
//!
//! `cargo test --release --test attacks latency -- --ignored --nocapture` measures how long messages of others take meanwhile,
//! and beside threads that use as much CPU at the same times.
//! `ATTACK_SECONDS=600 cargo test --test attacks -- --ignored --nocapture` runs them for ten minutes, in random order
//! (`CRASH_SEED`), two at a time; `ATTACKS=posts,headers` chooses those with these words in their names.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

#[path = "frames/mod.rs"]
mod frames;
#[path = "process/mod.rs"]
mod process;

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, LazyLock};
use std::thread;
use std::time::{Duration, Instant};

use chitchat::config::raise_fd_limit;
use chitchat::proto::chat_service_client::ChatServiceClient;
use chitchat::proto::{
    GetHistoryRequest, JoinMsgLeave, ListParticipantsRequest, ResumePoint, SendMessageRequest,
    SubscribeRequest, subscribe_request,
};
use chitchat_verify::check;
use chitchat_verify::crash_harness::{Run, seed};
use rand::rngs::StdRng;
use rand::seq::SliceRandom as _;
use rand::{Rng as _, RngCore as _, SeedableRng as _};
use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::{JoinSet, block_in_place};
use tokio::time::{sleep, timeout};
use tonic::transport::Channel;

use frames::{DATA, END_HEADERS, END_STREAM, HEADERS, PING, PRIORITY, RST_STREAM, SETTINGS, WINDOW_UPDATE};
use frames::{call, data, frame, grpc, preface};
use process::{Server, http_get, serve_at, unused_address, wait_until, wait_within};

/// What the server is allowed to use, and what it is held to.
const MAX_MEMORY: u64 = 512 << 20;

/// By how much it may have grown when all is over, a quarter of that. The store has an index then, and pages of memory that are used in part
/// cannot be given back.
const MAX_GROWTH: u64 = MAX_MEMORY / 4;

/// How often an attack and its control are measured, by turns: a disk may be several times slower a minute later.
const LATENCY_ROUNDS: u32 = 4;

/// How many files and sockets this process may open.
static MAX_FILES: LazyLock<usize> = LazyLock::new(|| {
    let limit = raise_fd_limit().and_then(|limit| usize::try_from(limit).ok());
    limit.unwrap_or(usize::MAX)
});

const CONTINUATION: u8 = 9;

/// A window for what follows a JOIN and some messages, in bytes.
const FEW_MESSAGES: u32 = 4_000;

/// What the attackers of one kind do.
struct Attack {
    name: &'static str,
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

impl Attack {
    /// How many connections at a time: two attacks take at most half of the sockets that this process may open.
    fn connections(&self) -> usize {
        self.max_connections.min(*MAX_FILES / 4)
    }

    /// How long each attacker waits before it sends again. Thousands of them would otherwise keep the machine busy themselves.
    fn pause(&self) -> Duration {
        Duration::from_millis(if self.connections() > 1_000 { 100 } else { 2 })
    }
}

/// The state of one connection.
struct Attacker {
    random: StdRng,
    stream: u32,
}

impl Attacker {
    /// The id of the next stream.
    fn next_stream(&mut self) -> u32 {
        self.stream += 2;
        self.stream
    }

    fn text(&mut self, len: usize) -> String {
        (0..len).map(|_| self.random.random_range('a'..='z')).collect()
    }

    /// A call with one message.
    fn call(&mut self, method: &str, message: &impl prost::Message) -> Vec<u8> {
        let stream = self.next_stream();
        let message = frame(DATA, END_STREAM, stream, &grpc(message));
        [call(stream, method), message].concat()
    }

    /// A message of 100 random letters.
    fn message(&mut self) -> JoinMsgLeave {
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
    fn join(&mut self, room: String) -> Vec<u8> {
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

static ATTACKS: &[Attack] = &[
    Attack {
        name: "connections that send nothing",
        max_connections: 300,
        window: 0,
        reads: false,
        payloads: usize::MAX,
        payload: |_| Vec::new(),
    },
    Attack {
        name: "PRIORITY frames",
        max_connections: 8,
        window: 65_535,
        reads: true,
        payloads: usize::MAX,
        payload: |_| repeated(1_000, &frame(PRIORITY, 0, 3, &[0, 0, 0, 0, 9])),
    },
    Attack {
        name: "WINDOW_UPDATE frames",
        max_connections: 8,
        window: 65_535,
        reads: true,
        payloads: usize::MAX,
        payload: |_| repeated(1_000, &frame(WINDOW_UPDATE, 0, 0, &[0, 0, 0, 1])),
    },
    Attack {
        name: "PINGs whose answers are not read",
        max_connections: 8,
        window: 65_535,
        reads: false,
        payloads: usize::MAX,
        payload: |_| repeated(1_000, &frame(PING, 0, 0, &[1; 8])),
    },
    Attack {
        name: "SETTINGS whose answers are not read",
        max_connections: 8,
        window: 65_535,
        reads: false,
        payloads: usize::MAX,
        payload: |_| repeated(500, &frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 255, 255])),
    },
    Attack {
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
    Attack {
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
    Attack {
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
    Attack {
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
    Attack {
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
    Attack {
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
    Attack {
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
    Attack {
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
    Attack {
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
    Attack {
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
    Attack {
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
    Attack {
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
    Attack {
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
    Attack {
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
    Attack {
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
    Attack {
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
    Attack {
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
    Attack {
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
    Attack {
        name: "participants that join in bursts and are lost",
        max_connections: 64,
        window: 65_535,
        reads: true,
        payloads: 2,
        payload: |attacker| attacker.join_often(100, "lobby"),
    },
    Attack {
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
    Attack {
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
    Attack {
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
    Attack {
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
    Attack {
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
    Attack {
        name: "floods of rooms by clients that receive nothing",
        max_connections: 16,
        window: 0,
        reads: false,
        payloads: 100,
        payload: |attacker| attacker.flood_room(&JoinMsgLeave::default()),
    },
    Attack {
        name: "floods of rooms that are not read",
        max_connections: 16,
        window: FEW_MESSAGES,
        reads: false,
        payloads: 100,
        payload: |attacker| attacker.flood_room(&JoinMsgLeave::default()),
    },
    Attack {
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
    Attack {
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
    Attack {
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
    Attack {
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

/// Connects from another address than the clients that chat, as other people would.
async fn connect(to: SocketAddr, from: u8) -> Option<TcpStream> {
    let socket = TcpSocket::new_v4().ok()?;
    socket.bind(SocketAddr::from(([127, 0, 0, from], 0))).unwrap();
    timeout(Duration::from_secs(2), socket.connect(to))
        .await
        .ok()?
        .ok()
}

/// Repeats an attack on one connection after the other.
async fn attack(attack: &'static Attack, server: SocketAddr, seed: u64, until: Instant) {
    let mut random = StdRng::seed_from_u64(seed);
    let mut read = vec![0; 1 << 16];
    while Instant::now() < until {
        let from = random.random_range(2..6);
        let Some(mut socket) = connect(server, from).await else {
            sleep(Duration::from_millis(50)).await;
            continue;
        };
        let mut attacker = Attacker {
            random: StdRng::seed_from_u64(random.random()),
            stream: 1,
        };
        let mut bytes = preface(attack.window);
        let mut payloads = 0;
        while Instant::now() < until && payloads < attack.payloads {
            bytes.extend((attack.payload)(&mut attacker));
            payloads += 1;
            // A server that does not read does what it should.
            match timeout(Duration::from_millis(200), socket.write_all(&bytes)).await {
                Ok(Err(_)) => break,
                Ok(Ok(())) | Err(_) => bytes.clear(),
            }
            if attack.reads && matches!(socket.try_read(&mut read), Ok(0)) {
                break;
            }
            sleep(attack.pause()).await;
        }
        sleep(Duration::from_millis(10)).await;
    }
}

/// Keeps connections to the admin port busy with requests that never end.
async fn attack_admin(admin: SocketAddr, until: Instant) {
    while Instant::now() < until {
        let Some(mut socket) = connect(admin, 2).await else {
            sleep(Duration::from_millis(50)).await;
            continue;
        };
        for byte in b"GET /metrics HTTP/1.1\r\nHost: a\r\nX: "
            .iter()
            .chain([b'x'].iter().cycle())
        {
            if Instant::now() >= until || socket.write_all(&[*byte]).await.is_err() {
                break;
            }
            sleep(Duration::from_millis(20)).await;
        }
    }
}

/// What a process uses.
#[derive(Debug, Clone, Copy)]
struct Usage {
    /// In bytes.
    memory: u64,
    descriptors: usize,
    threads: u64,
}

fn usage(process: u32) -> Usage {
    let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let field = |name: &str| -> u64 {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        line.split_whitespace().next().unwrap().parse().unwrap()
    };
    Usage {
        memory: field("VmRSS:") << 10,
        descriptors: fs::read_dir(format!("/proc/{process}/fd")).unwrap().count(),
        threads: field("Threads:"),
    }
}

/// The value of a metric without labels.
fn metric(server: &Server, name: &str) -> f64 {
    let metrics = server.get("/metrics");
    let line = metrics.lines().find(|line| line.split(' ').next() == Some(name));
    line.unwrap_or_else(|| panic!("no {name}"))
        .rsplit(' ')
        .next()
        .unwrap()
        .parse()
        .unwrap()
}

/// The attacks that the environment chooses, or all.
fn chosen() -> Vec<&'static Attack> {
    let only = std::env::var("ATTACKS").unwrap_or_default();
    let is_chosen = |attack: &&Attack| only.split(',').any(|part| attack.name.contains(part));
    ATTACKS.iter().filter(is_chosen).collect()
}

/// Runs all attacks, two at a time, for `seconds` in all. Asserts that clients which behave well go on, that the server keeps
/// to its memory, and that it uses no more than before once the attackers are gone.
async fn run_attacks(seconds: u64) {
    let directory = tempfile::tempdir().unwrap();
    let data = directory.path().join("data");
    let flags = [
        "--max-memory",
        "512MiB",
        "--resume-grace",
        "5s",
        "--stall-timeout",
        "5s",
        "--log",
        "off",
        "--data-dir",
        data.to_str().unwrap(),
    ];
    let mut server = block_in_place(|| serve_at(unused_address(), &flags));
    let mut run = Run::new(server.address, seed());
    for (name, window) in [("Ada", 4), ("Bob", 4), ("Eve", 0)] {
        run.add_client(name, window);
    }
    run.allow_sends(200);
    run.wait_for_acknowledgements().await;
    let before = usage(server.id());

    let mut random = StdRng::seed_from_u64(seed());
    let mut order = chosen();
    order.shuffle(&mut random);
    let end = Instant::now() + Duration::from_secs(seconds);
    let rounds = order.len().div_ceil(2);
    let per_round = Duration::from_secs(seconds)
        .div_f64(rounds as f64)
        .max(Duration::from_secs(2))
        .min(Duration::from_secs(20));
    let mut peak = before;
    let mut next = 0;
    while Instant::now() < end || next < order.len() {
        let pair = [order[next % order.len()], order[(next + 1) % order.len()]];
        next += 2;
        let until = Instant::now() + per_round;
        let mut attackers = JoinSet::new();
        for kind in pair {
            for _ in 0..kind.connections() {
                attackers.spawn(attack(kind, server.address, random.random(), until));
            }
        }
        for _ in 0..40 {
            attackers.spawn(attack_admin(server.admin, until));
        }
        let (mut messages, mut slowest) = (0, Duration::ZERO);
        while Instant::now() < until {
            let started = Instant::now();
            let acknowledged = run.acknowledged();
            run.allow_sends(5);
            run.wait_for_total(acknowledged + 10).await;
            let took = started.elapsed();
            (messages, slowest) = (messages + 10, slowest.max(took));
            let live = block_in_place(|| http_get(server.admin, "/livez"));
            assert!(
                live.is_some_and(|live| live.starts_with("HTTP/1.1 200")),
                "{}: /livez",
                pair[0].name
            );
            let now = usage(server.id());
            assert!(
                now.memory < MAX_MEMORY,
                "{} and {}: {now:?}",
                pair[0].name,
                pair[1].name
            );
            peak.memory = peak.memory.max(now.memory);
            peak.descriptors = peak.descriptors.max(now.descriptors);
            sleep(Duration::from_millis(50)).await;
        }
        attackers.join_all().await;
        println!(
            "{} + {}: {messages} messages, ten of them took at most {slowest:?}, {} MiB",
            pair[0].name,
            pair[1].name,
            usage(server.id()).memory >> 20
        );
    }
    println!("before {before:?}, at most {peak:?}");

    run.wait_for_acknowledgements().await;
    let history = run.finish().await;
    let violations = check(&history);
    assert!(violations.is_empty(), "{:?}", violations.first());
    block_in_place(|| {
        wait_until("the connections end", || {
            (metric(&server, "chitchat_connections_open") < 2.0).then_some(())
        });
        // Rooms and connections end when they have been idle for a minute.
        let after = wait_within(
            Duration::from_secs(150),
            "memory, descriptors and threads are given back",
            || {
                let after = usage(server.id());
                (after.memory <= before.memory + MAX_GROWTH
                    && after.descriptors <= before.descriptors + 8
                    && after.threads <= before.threads + 8)
                    .then_some(after)
            },
        );
        println!("after {after:?}");
        server.stop();
    });
}

/// The CPU time that a task has used, from its `schedstat`, which is exact, unlike `stat`; `None` if it has ended.
fn cpu_time(task: impl AsRef<Path>) -> Option<Duration> {
    let stat = fs::read_to_string(task.as_ref().join("schedstat")).ok()?;
    Some(Duration::from_nanos(stat.split(' ').next()?.parse().unwrap()))
}

/// The CPU time that a process has used.
fn cpu_used(process: u32) -> Duration {
    let tasks = fs::read_dir(format!("/proc/{process}/task")).unwrap();
    let times = tasks.filter_map(|task| cpu_time(task.unwrap().path()));
    times.sum()
}

/// How long messages took, and what was used meanwhile.
struct Measured {
    /// The times until the messages were acknowledged, in milliseconds.
    times: Vec<f64>,
    /// The CPU time that the server and this process had used after so much time, from the start to the end.
    cpu: Vec<(Duration, Duration)>,
}

impl Measured {
    /// The CPU that was used on average, in cores.
    fn cores(&self) -> f64 {
        let (time, used) = self.cpu.last().unwrap();
        used.as_secs_f64() / time.as_secs_f64()
    }

    /// The CPU time that was used in the first `time`.
    fn cpu_until(&self, time: Duration) -> Duration {
        let next = self.cpu.partition_point(|(at, _)| *at <= time);
        let ((from, used), Some((to, used_then))) = (self.cpu[next - 1], self.cpu.get(next)) else {
            return self.cpu.last().unwrap().1;
        };
        let part = (time - from).as_secs_f64() / (*to - from).as_secs_f64();
        used + (*used_then - used).mul_f64(part)
    }
}

/// Sends a message every 20 ms until `until`.
fn measure(server: &Server, until: Instant) -> Measured {
    let (address, id) = (server.address, server.id());
    // Not on the runtime of the attackers, which they keep busy.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let measuring = thread::spawn(move || runtime.unwrap().block_on(measure_posts(address, id, until)));
    block_in_place(|| measuring.join().unwrap())
}

async fn measure_posts(server: SocketAddr, id: u32, until: Instant) -> Measured {
    let used = || cpu_used(id) + cpu_used(std::process::id());
    let channel = Channel::from_shared(format!("http://{server}")).unwrap();
    let mut client = ChatServiceClient::new(channel.connect().await.unwrap());
    let (started, before) = (Instant::now(), used());
    let mut cpu = vec![(Duration::ZERO, Duration::ZERO)];
    let mut times = Vec::new();
    while Instant::now() < until {
        let sent = Instant::now();
        let request = SendMessageRequest {
            room: "quiet".into(),
            client_name: "Ada".into(),
            msg: "Hello".into(),
            ..SendMessageRequest::default()
        };
        client.send_message(request).await.unwrap();
        times.push(sent.elapsed().as_secs_f64() * 1e3);
        sleep(Duration::from_millis(20)).await;
        // A thread that has ended takes its time with it.
        let newest = cpu[cpu.len() - 1].1;
        cpu.push((started.elapsed(), used().saturating_sub(before).max(newest)));
    }
    Measured { times, cpu }
}

/// The median and the 99th percentile.
fn percentiles(mut times: Vec<f64>) -> [f64; 2] {
    times.sort_by(f64::total_cmp);
    [50, 99].map(|percent| times[times.len() * percent / 100])
}

/// Uses as much CPU as `attack` at each time, without the `idle` cores that it takes to measure, until `until`.
fn burn(attack: &Arc<Measured>, idle: f64, until: Instant) -> Vec<thread::JoinHandle<()>> {
    let cpu = || cpu_time("/proc/thread-self").unwrap();
    let count = u32::try_from(thread::available_parallelism().unwrap().get()).unwrap();
    let burn = move |attack: Arc<Measured>| {
        let (started, used_before) = (Instant::now(), cpu());
        let share = |time: Duration| attack.cpu_until(time).saturating_sub(time.mul_f64(idle)) / count;
        while Instant::now() < until {
            while cpu() - used_before < share(started.elapsed()) && Instant::now() < until {
                std::hint::spin_loop();
            }
            thread::sleep(Duration::from_millis(2));
        }
    };
    let burners = (0..count).map(|_| Arc::clone(attack));
    burners
        .map(|attack| thread::spawn(move || burn(attack)))
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn others_go_on_during_attacks() {
    run_attacks(20).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes ten minutes"]
async fn others_go_on_during_attacks_for_long() {
    let seconds = std::env::var("ATTACK_SECONDS").ok();
    run_attacks(seconds.map_or(600, |seconds| seconds.parse().unwrap())).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measurement, which takes 25 minutes"]
async fn latency_during_attacks_and_beside_as_much_other_work() {
    let directory = tempfile::tempdir().unwrap();
    let data = directory.path().join("data");
    let flags = [
        "--max-memory",
        "512MiB",
        "--log",
        "off",
        "--data-dir",
        data.to_str().unwrap(),
    ];
    let server = block_in_place(|| serve_at(unused_address(), &flags));
    let soon = || Instant::now() + Duration::from_secs(5);
    let undisturbed = measure(&server, soon());
    let idle = undisturbed.cores();
    println!(
        "| attack | cores | p50 ms | p99 ms | control p50 | control p99 | p99 ratio |\n|---|---|---|---|---|---|---|"
    );
    let [p50, p99] = percentiles(undisturbed.times);
    println!("| none | {idle:.2} | {p50:.2} | {p99:.2} | | | |");
    for kind in chosen() {
        let (mut attacked_times, mut control_times) = (Vec::new(), Vec::new());
        let mut cores = 0.0;
        for round in 0..LATENCY_ROUNDS {
            let until = soon();
            let mut attackers = JoinSet::new();
            for seed in 0..kind.connections() as u64 {
                attackers.spawn(attack(kind, server.address, seed << 8 | u64::from(round), until));
            }
            let attacked = Arc::new(measure(&server, until));
            attackers.join_all().await;
            sleep(Duration::from_secs(1)).await;
            let until = soon();
            let burners = burn(&attacked, idle, until);
            control_times.extend(measure(&server, until).times);
            burners.into_iter().for_each(|burner| burner.join().unwrap());
            attacked_times.extend_from_slice(&attacked.times);
            cores += attacked.cores() / f64::from(LATENCY_ROUNDS);
        }
        let [p50, p99] = percentiles(attacked_times);
        let [control_p50, control_p99] = percentiles(control_times);
        println!(
            "| {} | {cores:.2} | {p50:.2} | {p99:.2} | {control_p50:.2} | {control_p99:.2} | {:.2} |",
            kind.name,
            p99 / control_p99
        );
    }
}
