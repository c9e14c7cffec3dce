//! A server on free ports, and clients that send exactly the messages of a test.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use chitchat::cmd::Failure;
use chitchat::cmd::serve::Server;
use chitchat::config::{Config, StoreOptions};
use chitchat::proto::chat_service_client::ChatServiceClient;
use chitchat::proto::{EventType, JoinMsgLeave, ServerMessage, Welcome};
use chitchat::store::Durability;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status, Streaming};

/// Upper bound for every wait. Even a busy machine needs much less.
pub const TIMEOUT: Duration = Duration::from_secs(20);

/// A server that runs until it is dropped or shut down.
pub struct TestServer {
    pub listen: SocketAddr,
    pub admin: SocketAddr,
    shutdown: oneshot::Sender<&'static str>,
    running: JoinHandle<Result<(), Failure>>,
}

impl TestServer {
    pub async fn start() -> Self {
        Self::with(|_| {}).await
    }

    /// Starts a server with the default configuration, changed by `change`.
    pub async fn with(change: impl FnOnce(&mut Config)) -> Self {
        let mut config = Config::default();
        config.listen.set_port(0);
        config.admin.set_port(0);
        config.store = StoreOptions::Memory;
        change(&mut config);
        let server = Server::bind(config).await.unwrap();
        let (listen, admin) = (server.local_addr(), server.admin_addr());
        let (shutdown, signal) = oneshot::channel();
        let running = tokio::spawn(server.run(async { signal.await.unwrap_or("dropped") }));
        Self {
            listen,
            admin,
            shutdown,
            running,
        }
    }

    /// Like [`Self::with`], with the rooms stored in `directory` and a grace period of a minute.
    pub async fn stored_in(directory: &Path, change: impl FnOnce(&mut Config)) -> Self {
        Self::with(|config| {
            config.store = StoreOptions::Disk {
                directory: directory.to_owned(),
                durability: Durability::Os,
                accept_loss: false,
                wait: None,
            };
            config.hub.resume_grace = Duration::from_secs(60);
            change(config);
        })
        .await
    }

    /// Tells the server to drain. The handle is ready when it has.
    pub fn begin_drain(self) -> JoinHandle<Result<(), Failure>> {
        self.shutdown.send("test").unwrap();
        self.running
    }

    /// Drains the server and waits until it has.
    pub async fn shut_down(self) {
        wait_for_shutdown(self.begin_drain()).await;
    }

    pub async fn channel(&self) -> Channel {
        Endpoint::from_shared(format!("http://{}", self.listen))
            .unwrap()
            .connect()
            .await
            .unwrap()
    }

    /// A client for the unary calls and Subscribe.
    pub async fn client(&self) -> ChatServiceClient<Channel> {
        ChatServiceClient::new(self.channel().await)
    }

    /// A client of the first version that has joined and received its own JOIN.
    pub async fn join(&self, name: &str) -> Client {
        let mut client = self.open().await;
        client.send(join(name)).await;
        let event = client.next().await;
        assert_eq!(
            (event.r#type(), event.sender_name.as_str()),
            (EventType::Join, name.trim())
        );
        client.id = event.sender_id;
        client
    }

    /// A client that has sent `first`, a JOIN that asks for a welcome, and received the welcome.
    pub async fn join_with(&self, first: JoinMsgLeave) -> (Client, Welcome) {
        let mut client = self.open().await;
        client.send(first).await;
        let welcome = client.next().await.welcome;
        (client, welcome.expect("the first message is the welcome"))
    }

    /// The status with which a stream ends whose first message is `first`.
    pub async fn end_after(&self, first: JoinMsgLeave) -> Status {
        let mut client = self.open().await;
        client.send(first).await;
        client.end().await
    }

    /// A Chat stream on a connection of its own.
    pub async fn open(&self) -> Client {
        Client::open(self.channel().await).await
    }

    /// Requests `path` from the admin port and returns status and body.
    pub async fn get(&self, path: &str) -> (u16, String) {
        let mut stream = TcpStream::connect(self.admin).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: admin\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut response = String::new();
        stream.read_to_string(&mut response).await.unwrap();
        let (head, body) = response.split_once("\r\n\r\n").unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        (status, body.to_owned())
    }

    /// The sum of the series whose name and labels begin with `name`.
    pub async fn metric(&self, name: &str) -> f64 {
        let (_, page) = self.get("/metrics").await;
        let values = page
            .lines()
            .filter(|line| line.starts_with(name))
            .filter_map(|line| line.rsplit(' ').next());
        values.map(|value| value.parse::<f64>().unwrap()).sum()
    }

    /// Waits until [`Self::metric`] returns `value`.
    pub async fn wait_for_metric(&self, name: &str, value: f64) {
        let deadline = tokio::time::Instant::now() + TIMEOUT;
        loop {
            let now = self.metric(name).await;
            if now == value {
                return;
            }
            assert!(
                tokio::time::Instant::now() < deadline,
                "{name} is {now}, not {value}"
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

/// Waits until a server that drains has shut down.
pub async fn wait_for_shutdown(running: JoinHandle<Result<(), Failure>>) {
    timeout(TIMEOUT, running)
        .await
        .expect("the server shuts down")
        .unwrap()
        .unwrap();
}

/// One Chat stream.
pub struct Client {
    outgoing: Option<mpsc::Sender<JoinMsgLeave>>,
    incoming: Streaming<ServerMessage>,
    /// The participant's id, once it has joined.
    pub id: i32,
}

impl Client {
    pub async fn open(channel: Channel) -> Self {
        Self::open_with(channel, None).await.unwrap()
    }

    /// Opens a stream with the value of an `authorization` header. An error if the server ends it at once.
    pub async fn open_with(channel: Channel, authorization: Option<&str>) -> Result<Self, Status> {
        let (outgoing, messages) = mpsc::channel(1024);
        let mut chat = ChatServiceClient::new(channel);
        let request = with_authorization(ReceiverStream::new(messages), authorization);
        // The server sends the response headers before the first message.
        let incoming = timeout(TIMEOUT, chat.chat(request))
            .await
            .expect("the server sends its headers")?
            .into_inner();
        Ok(Self {
            outgoing: Some(outgoing),
            incoming,
            id: 0,
        })
    }

    pub async fn send(&self, message: JoinMsgLeave) {
        self.outgoing.as_ref().unwrap().send(message).await.unwrap();
    }

    /// Sends a message unless the stream has ended.
    pub async fn try_say(&self, text: &str) {
        self.outgoing.as_ref().unwrap().send(message(0, text)).await.ok();
    }

    pub async fn say(&self, timestamp: i64, text: &str) {
        self.send(message(timestamp, text)).await;
    }

    pub fn half_close(&mut self) {
        self.outgoing = None;
    }

    /// The next message, or the status with which the stream ended.
    pub async fn try_next(&mut self) -> Result<ServerMessage, Status> {
        let next = timeout(TIMEOUT, self.incoming.message())
            .await
            .expect("the server sends a message");
        next.and_then(|message| message.ok_or_else(|| Status::new(Code::Ok, "")))
    }

    pub async fn next(&mut self) -> ServerMessage {
        self.try_next().await.expect("the stream continues")
    }

    /// The time, sender and text of the next message.
    pub async fn next_line(&mut self) -> (i64, String, String) {
        let message = self.next().await;
        (message.timestamp, message.sender_name, message.msg_stream)
    }

    /// The status with which the stream ends, after any number of messages.
    pub async fn end(&mut self) -> Status {
        loop {
            if let Err(status) = self.try_next().await {
                return status;
            }
        }
    }
}

/// A request with the value of an `authorization` header.
pub fn with_authorization<T>(request: T, authorization: Option<&str>) -> Request<T> {
    let mut request = Request::new(request);
    if let Some(value) = authorization {
        request
            .metadata_mut()
            .insert("authorization", value.parse().unwrap());
    }
    request
}

/// A JOIN of a client of the first version.
pub fn join(name: &str) -> JoinMsgLeave {
    JoinMsgLeave {
        client_name: name.into(),
        timestamp: 0,
        r#type: EventType::Join.into(),
        ..JoinMsgLeave::default()
    }
}

/// A JOIN that asks for a welcome.
pub fn join_wanting_welcome(name: &str) -> JoinMsgLeave {
    JoinMsgLeave {
        wants_welcome: true,
        ..join(name)
    }
}

/// A MESSAGE of a client of the first version.
pub fn message(timestamp: i64, text: &str) -> JoinMsgLeave {
    JoinMsgLeave {
        timestamp,
        msg: text.into(),
        r#type: EventType::Message.into(),
        ..JoinMsgLeave::default()
    }
}

/// A LEAVE of a client of the first version.
pub fn leave(timestamp: i64) -> JoinMsgLeave {
    JoinMsgLeave {
        timestamp,
        r#type: EventType::Leave.into(),
        ..JoinMsgLeave::default()
    }
}
