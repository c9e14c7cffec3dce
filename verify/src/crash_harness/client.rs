//! A client that outlasts its server: it comes back with its token and its place, and sends again what was not
//! acknowledged. It is written from the contract alone.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use crate::{Client as Record, Place, What};
use chitchat::proto::chat_service_client::ChatServiceClient;
use chitchat::proto::{EventType, JoinMsgLeave, NoticeCode, ResumePoint, ServerMessage};
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::transport::Endpoint;
use tonic::{Status, Streaming};

use super::{PATIENCE, Recorder};

/// How long a client waits before it tries again.
const PAUSE: Duration = Duration::from_millis(10);

/// How long a connection attempt and the answer to a JOIN may take before it is tried anew.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);

/// What a client is to do.
#[derive(Debug, Clone, Copy, Default)]
pub struct Orders {
    /// How many messages it may have sent by now.
    pub allowance: u64,
    /// Whether it is to leave when it has sent them all and all are acknowledged.
    pub leave: bool,
    /// Whether it is to stop where it is.
    pub stop: bool,
}

/// How far a client has come.
#[derive(Debug, Clone, Copy, Default)]
pub struct Progress {
    /// How many streams it has had.
    pub streams: u64,
    pub sent: u64,
    pub acknowledged: u64,
    /// The newest event that it has received.
    pub last: u64,
    pub has_left: bool,
}

/// How a stream came to its end.
enum End {
    Left,
    Lost,
}

pub struct Client {
    record: Record,
    recorder: Arc<Recorder>,
    address: SocketAddr,
    /// How many of its messages may be unacknowledged.
    window: usize,
    orders: watch::Receiver<Orders>,
    progress: watch::Sender<Progress>,
    random: StdRng,
    time: i64,
    token: String,
    seen: Option<Place>,
    /// Id and text of what is not acknowledged.
    outbox: VecDeque<(Arc<str>, Arc<str>)>,
}

impl Client {
    #[expect(clippy::too_many_arguments, reason = "its parts, put together once")]
    pub fn new(
        name: &str,
        room: &str,
        recorder: Arc<Recorder>,
        address: SocketAddr,
        window: usize,
        orders: watch::Receiver<Orders>,
        progress: watch::Sender<Progress>,
        seed: u64,
    ) -> Self {
        let record = Record {
            name: name.into(),
            room: room.into(),
            steps: Vec::new(),
        };
        Self {
            record,
            recorder,
            address,
            window,
            orders,
            progress,
            random: StdRng::seed_from_u64(seed),
            time: 0,
            token: String::new(),
            seen: None,
            outbox: VecDeque::new(),
        }
    }

    /// Runs until it has left.
    pub async fn run(mut self) -> Record {
        let mut orders = self.orders.clone();
        loop {
            let end = tokio::select! {
                end = self.stream() => end,
                // Nobody gives orders any more when the run is over.
                _ = orders.wait_for(|orders| orders.stop) => return self.record,
            };
            match end {
                Ok(End::Left) => break,
                Ok(End::Lost) => self.note(What::Ended { is_clean: false }),
                // There was no stream.
                Err(_) => {}
            }
            tokio::time::sleep(PAUSE).await;
        }
        self.note(What::Ended { is_clean: true });
        self.progress.send_modify(|progress| progress.has_left = true);
        self.record
    }

    fn note(&mut self, what: What) {
        self.recorder.note(&mut self.record, what);
    }

    fn tick(&mut self) -> i64 {
        self.time += 1;
        self.time
    }

    /// One connection from its begin to its end. An error when it could not be made.
    async fn stream(&mut self) -> Result<End, tonic::transport::Error> {
        let channel = Endpoint::from_shared(format!("http://{}", self.address))?
            .connect_timeout(ANSWER_WITHIN)
            .tcp_nodelay(true)
            .connect()
            .await?;
        // Nothing is left out: what is sent again may still wait while the window has moved on.
        let (outgoing, messages) = mpsc::unbounded_channel();
        let resume = self.seen;
        self.note(What::Join {
            resume,
            has_token: !self.token.is_empty(),
        });
        let join = JoinMsgLeave {
            client_name: self.record.name.clone(),
            room: self.record.room.clone(),
            timestamp: self.tick(),
            r#type: EventType::Join.into(),
            resume: resume.map(|Place { epoch, sequence }| ResumePoint { epoch, sequence }),
            session_token: self.token.clone(),
            wants_welcome: true,
            ..JoinMsgLeave::default()
        };
        outgoing.send(join).unwrap();
        let mut chat = ChatServiceClient::new(channel);
        let call = timeout(ANSWER_WITHIN, chat.chat(UnboundedReceiverStream::new(messages)));
        let Ok(Ok(answer)) = call.await else {
            return Ok(End::Lost);
        };
        let end = self.talk(outgoing, answer.into_inner()).await;
        Ok(end.unwrap_or(End::Lost))
    }

    /// An error is the stream's.
    async fn talk(
        &mut self,
        outgoing: mpsc::UnboundedSender<JoinMsgLeave>,
        mut incoming: Streaming<ServerMessage>,
    ) -> Result<End, Status> {
        let mut orders = self.orders.clone();
        let mut is_welcome = false;
        let mut outgoing = Some(outgoing);
        loop {
            let now = *orders.borrow_and_update();
            if let Some(queue) = outgoing.as_ref().filter(|_| is_welcome) {
                self.say_more(queue, now);
                let is_done = self.outbox.is_empty() && self.progress.borrow().sent >= now.allowance;
                if now.leave && is_done {
                    self.note(What::Leave);
                    let leave = JoinMsgLeave {
                        timestamp: self.tick(),
                        r#type: EventType::Leave.into(),
                        ..JoinMsgLeave::default()
                    };
                    // A queue that is closed is a stream that has ended, which is seen below.
                    queue.send(leave).ok();
                    outgoing = None;
                }
            }
            let received = tokio::select! {
                received = incoming.message() => received?,
                Ok(()) = orders.changed() => continue,
                () = tokio::time::sleep(PATIENCE), if !is_welcome => {
                    panic!("{} is not welcomed", self.record.name)
                }
            };
            let Some(message) = received else {
                let has_left = outgoing.is_none();
                return Ok(if has_left { End::Left } else { End::Lost });
            };
            if self.receive(message) {
                is_welcome = true;
                if let Some(queue) = &outgoing {
                    for (message_id, text) in self.outbox.clone() {
                        self.send(queue, message_id, text);
                    }
                }
            }
        }
    }

    fn say_more(&mut self, queue: &mpsc::UnboundedSender<JoinMsgLeave>, orders: Orders) {
        while self.outbox.len() < self.window && self.progress.borrow().sent < orders.allowance {
            self.progress.send_modify(|progress| progress.sent += 1);
            let sent = self.progress.borrow().sent;
            let message_id: Arc<str> = format!("{}-{sent}", self.record.name).into();
            // Most are short; some are long, so that batches are of all sizes.
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
        self.note(What::Sent {
            message_id,
            text,
            timestamp,
        });
        // What is lost on the way is sent again on the next stream.
        queue.send(message).ok();
    }

    /// Whether it was the welcome.
    fn receive(&mut self, message: ServerMessage) -> bool {
        self.time = self.time.max(message.timestamp);
        let message = self.recorder.share(message);
        self.note(What::Received(Arc::clone(&message)));
        if let Some(place) = Place::of(&message) {
            self.seen = Some(place);
        }
        let is_repeated = message
            .notice
            .as_ref()
            .is_some_and(|notice| notice.code() == NoticeCode::MessageRepeated);
        let place = self.seen.map_or(0, |place| place.sequence);
        let pending = self.outbox.len();
        if message.sequence > 0 || is_repeated {
            self.outbox.retain(|(id, _)| **id != *message.message_id);
        }
        let settled = (pending - self.outbox.len()) as u64;
        let welcome = message.welcome.as_ref();
        if let Some(welcome) = welcome {
            self.token.clone_from(&welcome.session_token);
            // Where the stream goes on, whether or not that is where it was.
            self.seen = Some(Place {
                epoch: welcome.epoch,
                sequence: welcome.sequence,
            });
        }
        self.progress.send_modify(|progress| {
            progress.acknowledged += settled;
            progress.last = place;
            progress.streams += u64::from(welcome.is_some());
        });
        welcome.is_some()
    }
}
