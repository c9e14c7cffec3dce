//! A server on a free port, and clients that say just what a test wants said.

use std::net::SocketAddr;
use std::time::Duration;

use chitchat::cmd::Failure;
use chitchat::cmd::serve::Server;
use chitchat::config::{Config, StoreOptions};
use chitchat::proto::chat_service_client::ChatServiceClient;
use chitchat::proto::{EventType, JoinMsgLeave, ServerMessage};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status, Streaming};

/// How long anything may take that is to happen: only a broken server needs it.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// A server that runs until it is dropped or told to end.
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

    /// A server of the default configuration, but for what `change` makes of it.
    pub async fn with(change: impl FnOnce(&mut Config)) -> Self {
        let mut config = Config::default();
        config.listen.set_port(0);
        config.admin.set_port(0);
        config.store = StoreOptions::Memory;
        change(&mut config);
        let server = Server::bind(config).await.unwrap();
        let (listen, admin) = (server.listen(), server.admin());
        let (shutdown, told) = oneshot::channel();
        let running = tokio::spawn(server.run(async { told.await.unwrap_or("dropped") }));
        Self {
            listen,
            admin,
            shutdown,
            running,
        }
    }

    /// Tells the server to end; the handle is ready when it has.
    pub fn end(self) -> JoinHandle<Result<(), Failure>> {
        self.shutdown.send("test").unwrap();
        self.running
    }

    pub async fn channel(&self) -> Channel {
        Endpoint::from_shared(format!("http://{}", self.listen))
            .unwrap()
            .connect()
            .await
            .unwrap()
    }

    /// A client of the first version that has joined; what it heard of its own JOIN is read.
    pub async fn join(&self, name: &str) -> Client {
        let mut client = self.open().await;
        client.send(join(name)).await;
        let heard = client.next().await;
        assert_eq!(
            (heard.r#type(), heard.sender_name.as_str()),
            (EventType::Join, name.trim())
        );
        client.id = heard.sender_id;
        client
    }

    /// A stream on a connection of its own, on which nothing was said.
    pub async fn open(&self) -> Client {
        Client::open(self.channel().await).await
    }

    /// A page of the admin port: status and body.
    pub async fn get(&self, path: &str) -> (u16, String) {
        get(self.admin, path).await
    }

    /// The value of a metric (a sum over those that begin so).
    pub async fn metric(&self, name: &str) -> f64 {
        let (_, page) = self.get("/metrics").await;
        let values = page
            .lines()
            .filter(|line| line.starts_with(name))
            .filter_map(|line| line.rsplit(' ').next());
        values.map(|value| value.parse::<f64>().unwrap()).sum()
    }

    /// Waits until a metric has this value.
    pub async fn until_metric(&self, name: &str, value: f64) {
        let deadline = tokio::time::Instant::now() + PATIENCE;
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

/// One request of HTTP/1.1, as small as it can be.
pub async fn get(address: SocketAddr, path: &str) -> (u16, String) {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: admin\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    (status, body.to_owned())
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
        let (outgoing, messages) = mpsc::channel(1024);
        let mut chat = ChatServiceClient::new(channel);
        // The response headers come before anything was said.
        let call = chat.chat(ReceiverStream::new(messages));
        let incoming = timeout(PATIENCE, call)
            .await
            .expect("headers go out at once")
            .unwrap()
            .into_inner();
        Self {
            outgoing: Some(outgoing),
            incoming,
            id: 0,
        }
    }

    pub async fn send(&self, message: JoinMsgLeave) {
        self.outgoing.as_ref().unwrap().send(message).await.unwrap();
    }

    pub async fn say(&self, timestamp: i64, text: &str) {
        self.send(message(timestamp, text)).await;
    }

    /// Ends this side of the stream.
    pub fn half_close(&mut self) {
        self.outgoing = None;
    }

    /// What comes next, or how the stream ended.
    pub async fn next_or_end(&mut self) -> Result<ServerMessage, Status> {
        let next = timeout(PATIENCE, self.incoming.message())
            .await
            .expect("the server says something");
        next.and_then(|message| message.ok_or_else(|| Status::new(Code::Ok, "")))
    }

    pub async fn next(&mut self) -> ServerMessage {
        self.next_or_end().await.expect("the stream goes on")
    }

    /// What comes next, as `(time, sender, text)`.
    pub async fn heard(&mut self) -> (i64, String, String) {
        let message = self.next().await;
        (message.timestamp, message.sender_name, message.msg_stream)
    }

    /// How the stream ends, after whatever comes before.
    pub async fn end(&mut self) -> Status {
        loop {
            if let Err(status) = self.next_or_end().await {
                return status;
            }
        }
    }
}

/// A JOIN as the first version's client sends it.
pub fn join(name: &str) -> JoinMsgLeave {
    JoinMsgLeave {
        client_name: name.into(),
        timestamp: 0,
        r#type: EventType::Join.into(),
        ..JoinMsgLeave::default()
    }
}

/// A MESSAGE as the first version's client sends it.
pub fn message(timestamp: i64, text: &str) -> JoinMsgLeave {
    JoinMsgLeave {
        timestamp,
        msg: text.into(),
        r#type: EventType::Message.into(),
        ..JoinMsgLeave::default()
    }
}

/// A LEAVE as the first version's client sends it.
pub fn leave(timestamp: i64) -> JoinMsgLeave {
    JoinMsgLeave {
        timestamp,
        r#type: EventType::Leave.into(),
        ..JoinMsgLeave::default()
    }
}
