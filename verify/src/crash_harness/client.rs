//! A client that outlives its server: it reconnects with its session token and resume point, and sends again what was
//! not acknowledged. It depends on the wire contract only, not on the client library.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use crate::{ClientEvent, ClientHistory, Position};
use chitchat::proto::chat_service_client::ChatServiceClient;
use chitchat::proto::{EventType, JoinMsgLeave, NoticeCode, ResumePoint, ServerMessage};
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::transport::Endpoint;
use tonic::{Status, Streaming};

use super::{Recorder, TIMEOUT};

/// The delay before a reconnect.
const RECONNECT_DELAY: Duration = Duration::from_millis(10);

/// The timeout for connecting and for the response headers of Chat.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// What a client is to do. The run may change it at any time.
#[derive(Debug, Clone, Copy, Default)]
pub struct ClientPlan {
    /// The maximum number of messages to send in total.
    pub send_limit: u64,
    /// Whether to leave once all of them are sent and acknowledged.
    pub leave: bool,
    /// Whether to stop immediately, without leaving.
    pub stop: bool,
}

/// The progress of a client.
#[derive(Debug, Clone, Copy, Default)]
pub struct Progress {
    /// The number of streams on which it was welcomed.
    pub streams: u64,
    pub sent: u64,
    pub acknowledged: u64,
    /// The sequence of the latest event that it has received.
    pub last_sequence: u64,
    pub has_left: bool,
}

/// How a stream ended.
enum StreamEnd {
    Left,
    Lost,
}

pub(super) struct Client {
    history: ClientHistory,
    recorder: Arc<Recorder>,
    address: SocketAddr,
    /// The maximum number of unacknowledged messages.
    window: usize,
    plan: watch::Receiver<ClientPlan>,
    progress: watch::Sender<Progress>,
    random: StdRng,
    lamport_time: i64,
    session_token: String,
    /// The position of the latest event received, after which the client resumes.
    position: Option<Position>,
    /// Id and text of the unacknowledged messages.
    outbox: VecDeque<(Arc<str>, Arc<str>)>,
}

impl Client {
    #[expect(clippy::too_many_arguments, reason = "one call, which passes all fields")]
    pub(super) fn new(
        name: &str,
        room: &str,
        recorder: Arc<Recorder>,
        address: SocketAddr,
        window: usize,
        plan: watch::Receiver<ClientPlan>,
        progress: watch::Sender<Progress>,
        seed: u64,
    ) -> Self {
        let history = ClientHistory {
            name: name.into(),
            room: room.into(),
            events: Vec::new(),
        };
        Self {
            history,
            recorder,
            address,
            window,
            plan,
            progress,
            random: StdRng::seed_from_u64(seed),
            lamport_time: 0,
            session_token: String::new(),
            position: None,
            outbox: VecDeque::new(),
        }
    }

    /// Reconnects until the client has left or is stopped. Returns its history.
    pub(super) async fn run(mut self) -> ClientHistory {
        let mut plan = self.plan.clone();
        loop {
            let end = tokio::select! {
                end = self.stream() => end,
                // Also completes when the run is over, because the sender is dropped.
                _ = plan.wait_for(|plan| plan.stop) => return self.history,
            };
            match end {
                Ok(StreamEnd::Left) => break,
                Ok(StreamEnd::Lost) => self.record(ClientEvent::Ended { is_clean: false }),
                // The connection failed, so no stream ended.
                Err(_) => {}
            }
            tokio::time::sleep(RECONNECT_DELAY).await;
        }
        self.record(ClientEvent::Ended { is_clean: true });
        self.progress.send_modify(|progress| progress.has_left = true);
        self.history
    }

    fn record(&mut self, event: ClientEvent) {
        self.recorder.record(&mut self.history, event);
    }

    fn tick(&mut self) -> i64 {
        self.lamport_time += 1;
        self.lamport_time
    }

    /// Connects and runs one stream to its end. Returns an error if it cannot connect.
    async fn stream(&mut self) -> Result<StreamEnd, tonic::transport::Error> {
        let channel = Endpoint::from_shared(format!("http://{}", self.address))?
            .connect_timeout(CONNECT_TIMEOUT)
            .tcp_nodelay(true)
            .connect()
            .await?;
        // Unbounded, because a message that is sent again may still be queued when it is acknowledged.
        let (outgoing, messages) = mpsc::unbounded_channel();
        let resume = self.position;
        self.record(ClientEvent::Join {
            resume,
            has_token: !self.session_token.is_empty(),
        });
        let join = JoinMsgLeave {
            client_name: self.history.name.clone(),
            room: self.history.room.clone(),
            timestamp: self.tick(),
            r#type: EventType::Join.into(),
            resume: resume.map(|Position { epoch, sequence }| ResumePoint { epoch, sequence }),
            session_token: self.session_token.clone(),
            wants_welcome: true,
            ..JoinMsgLeave::default()
        };
        outgoing.send(join).unwrap();
        let mut chat = ChatServiceClient::new(channel);
        let call = timeout(CONNECT_TIMEOUT, chat.chat(UnboundedReceiverStream::new(messages)));
        let Ok(Ok(response)) = call.await else {
            return Ok(StreamEnd::Lost);
        };
        let end = self.exchange(outgoing, response.into_inner()).await;
        Ok(end.unwrap_or(StreamEnd::Lost))
    }

    /// Sends and receives until the stream ends.
    async fn exchange(
        &mut self,
        outgoing: mpsc::UnboundedSender<JoinMsgLeave>,
        mut incoming: Streaming<ServerMessage>,
    ) -> Result<StreamEnd, Status> {
        let mut plan = self.plan.clone();
        let mut is_welcomed = false;
        let mut outgoing = Some(outgoing);
        loop {
            let current_plan = *plan.borrow_and_update();
            if let Some(queue) = outgoing.as_ref().filter(|_| is_welcomed) {
                self.send_allowed(queue, current_plan);
                let is_done =
                    self.outbox.is_empty() && self.progress.borrow().sent >= current_plan.send_limit;
                if current_plan.leave && is_done {
                    self.record(ClientEvent::Leave);
                    let leave = JoinMsgLeave {
                        timestamp: self.tick(),
                        r#type: EventType::Leave.into(),
                        ..JoinMsgLeave::default()
                    };
                    // A closed queue means that the stream has ended, which is handled below.
                    queue.send(leave).ok();
                    outgoing = None;
                }
            }
            let received = tokio::select! {
                received = incoming.message() => received?,
                Ok(()) = plan.changed() => continue,
                () = tokio::time::sleep(TIMEOUT), if !is_welcomed => {
                    panic!("{} got no welcome", self.history.name)
                }
            };
            let Some(message) = received else {
                let has_left = outgoing.is_none();
                return Ok(if has_left {
                    StreamEnd::Left
                } else {
                    StreamEnd::Lost
                });
            };
            if self.receive(message) {
                is_welcomed = true;
                if let Some(queue) = &outgoing {
                    for (message_id, text) in self.outbox.clone() {
                        self.send(queue, message_id, text);
                    }
                }
            }
        }
    }

    fn send_allowed(&mut self, queue: &mpsc::UnboundedSender<JoinMsgLeave>, plan: ClientPlan) {
        while self.outbox.len() < self.window && self.progress.borrow().sent < plan.send_limit {
            self.progress.send_modify(|progress| progress.sent += 1);
            let sent = self.progress.borrow().sent;
            let message_id: Arc<str> = format!("{}-{sent}", self.history.name).into();
            // Mostly short texts and some long ones, so that the server has batches of all sizes.
            let long = self.random.random_ratio(1, 8);
            let length = self.random.random_range(0..if long { 1_900 } else { 40 });
            let text: Arc<str> = format!("{message_id} {}", "x".repeat(length)).into();
            self.outbox
                .push_back((Arc::clone(&message_id), Arc::clone(&text)));
            self.send(queue, message_id, text);
        }
    }

    fn send(&mut self, queue: &mpsc::UnboundedSender<JoinMsgLeave>, message_id: Arc<str>, text: Arc<str>) {
        let timestamp = self.tick();
        let message = JoinMsgLeave {
            timestamp,
            msg: text.to_string(),
            r#type: EventType::Message.into(),
            message_id: message_id.to_string(),
            ..JoinMsgLeave::default()
        };
        self.record(ClientEvent::Sent {
            message_id,
            text,
            timestamp,
        });
        // A lost message is sent again on the next stream.
        queue.send(message).ok();
    }

    /// Handles a message. Returns whether it was the welcome.
    fn receive(&mut self, message: ServerMessage) -> bool {
        self.lamport_time = self.lamport_time.max(message.timestamp);
        let message = self.recorder.share(message);
        self.record(ClientEvent::Received(Arc::clone(&message)));
        if let Some(position) = Position::of(&message) {
            self.position = Some(position);
        }
        let is_repeated = message
            .notice
            .as_ref()
            .is_some_and(|notice| notice.code() == NoticeCode::MessageRepeated);
        let last_sequence = self.position.map_or(0, |position| position.sequence);
        let pending = self.outbox.len();
        if message.sequence > 0 || is_repeated {
            self.outbox.retain(|(id, _)| **id != *message.message_id);
        }
        let acknowledged = (pending - self.outbox.len()) as u64;
        let welcome = message.welcome.as_ref();
        if let Some(welcome) = welcome {
            self.session_token.clone_from(&welcome.session_token);
            // The stream continues after this position, whether or not the session was recovered.
            self.position = Some(Position {
                epoch: welcome.epoch,
                sequence: welcome.sequence,
            });
        }
        self.progress.send_modify(|progress| {
            progress.acknowledged += acknowledged;
            progress.last_sequence = last_sequence;
            progress.streams += u64::from(welcome.is_some());
        });
        welcome.is_some()
    }
}
