//! A run: clients in a room of a server, and the history that they record.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::{ClientHistory, History, Position, Roster};
use chitchat::proto::chat_service_client::ChatServiceClient;
use chitchat::proto::get_history_request::Page;
use chitchat::proto::{GetHistoryRequest, ListParticipantsRequest};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tonic::transport::{Channel, Endpoint};

use super::client::Client;
use super::{ClientPlan, Progress, Recorder, TIMEOUT};

/// The room that all clients join.
const ROOM: &str = "tea";

/// The clients of a server, all in one room, and what they have recorded.
pub struct Run {
    recorder: Arc<Recorder>,
    /// The address of the server.
    address: SocketAddr,
    pub clients: Vec<ClientHandle>,
    /// The histories of the clients that have left.
    finished: Vec<ClientHistory>,
    rosters: Vec<Roster>,
    seed: u64,
}

/// A running client.
pub struct ClientHandle {
    name: String,
    plan: watch::Sender<ClientPlan>,
    progress: watch::Receiver<Progress>,
    task: JoinHandle<ClientHistory>,
}

impl ClientHandle {
    pub fn update_plan(&self, change: impl FnOnce(&mut ClientPlan)) {
        self.plan.send_modify(change);
    }

    pub fn progress(&self) -> Progress {
        *self.progress.borrow()
    }

    /// Waits until `is_reached` returns true for the progress. Panics after [`TIMEOUT`]; `what` names the condition.
    pub async fn wait_until(&self, what: &str, mut is_reached: impl FnMut(&Progress) -> bool) {
        let mut progress = self.progress.clone();
        let reached = timeout(TIMEOUT, progress.wait_for(|progress| is_reached(progress))).await;
        assert!(
            matches!(reached, Ok(Ok(_))),
            "{}: timeout waiting for {what}: {:?}",
            self.name,
            self.progress()
        );
    }
}

impl Run {
    pub fn new(address: SocketAddr, seed: u64) -> Self {
        Self {
            recorder: Recorder::new(),
            address,
            clients: Vec::new(),
            finished: Vec::new(),
            rosters: Vec::new(),
            seed,
        }
    }

    /// Starts a client that has at most `window` unacknowledged messages.
    pub fn add_client(&mut self, name: &str, window: usize) -> &ClientHandle {
        self.add_client_at(self.address, name, window)
    }

    /// Like [`Self::add_client`]; the client connects to `address`, for example to a proxy.
    pub fn add_client_at(&mut self, address: SocketAddr, name: &str, window: usize) -> &ClientHandle {
        let (plan, plan_receiver) = watch::channel(ClientPlan::default());
        let (progress_sender, progress) = watch::channel(Progress::default());
        self.seed = self.seed.wrapping_add(1);
        let client = Client::new(
            name,
            ROOM,
            Arc::clone(&self.recorder),
            address,
            window,
            plan_receiver,
            progress_sender,
            self.seed,
        );
        let task = tokio::spawn(client.run());
        self.clients.push(ClientHandle {
            name: name.into(),
            plan,
            progress,
            task,
        });
        self.clients.last().unwrap()
    }

    /// Permits every client to send `count` more messages. A client whose window is 0 sends none.
    pub fn allow_sends(&self, count: u64) {
        for client in &self.clients {
            client.update_plan(|plan| plan.send_limit += count);
        }
    }

    /// The number of acknowledged messages of all clients that have not been collected.
    pub fn acknowledged(&self) -> u64 {
        self.clients
            .iter()
            .map(|client| client.progress().acknowledged)
            .sum()
    }

    /// The number of streams that each client has had.
    pub fn streams(&self) -> Vec<u64> {
        self.clients
            .iter()
            .map(|client| client.progress().streams)
            .collect()
    }

    /// Waits until every client has had a new stream since [`Self::streams`] returned `since`.
    pub async fn wait_for_reconnects(&self, since: &[u64]) {
        for (client, streams) in self.clients.iter().zip(since) {
            client
                .wait_until("reconnecting", |progress| {
                    progress.has_left || progress.streams > *streams
                })
                .await;
        }
    }

    /// Waits until every sent message is acknowledged.
    pub async fn wait_for_acknowledgements(&self) {
        for client in &self.clients {
            client
                .wait_until("acknowledgement", |progress| {
                    progress.acknowledged == progress.sent
                })
                .await;
        }
    }

    /// Waits until [`Self::acknowledged`] is at least `count`. Panics after [`TIMEOUT`].
    pub async fn wait_for_total(&self, count: u64) {
        let deadline = Instant::now() + TIMEOUT;
        while self.acknowledged() < count {
            assert!(
                Instant::now() < deadline,
                "timeout: {} messages are acknowledged, not {count}",
                self.acknowledged()
            );
            tokio::time::sleep(Duration::from_micros(500)).await;
        }
    }

    /// Connects to the server for unary calls.
    pub async fn connect(&self) -> ChatServiceClient<Channel> {
        let endpoint = Endpoint::from_shared(format!("http://{}", self.address)).unwrap();
        ChatServiceClient::new(endpoint.connect().await.unwrap())
    }

    /// Lists the participants and records the response as a [`Roster`] of `epoch`.
    pub async fn record_roster(&mut self, epoch: u64) {
        let mut client = self.connect().await;
        let request = ListParticipantsRequest {
            room: ROOM.into(),
            ..ListParticipantsRequest::default()
        };
        let response = client.list_participants(request).await.unwrap().into_inner();
        let participants = response
            .participants
            .into_iter()
            .map(|participant| (participant.id, participant.name));
        self.rosters.push(Roster {
            room: ROOM.into(),
            position: Position {
                epoch,
                sequence: response.sequence,
            },
            participants: participants.collect(),
        });
    }

    /// Removes the clients that have left, and keeps their histories.
    pub async fn collect_finished(&mut self) {
        for client in self.clients.extract_if(.., |client| client.progress().has_left) {
            self.finished.push(client.task.await.unwrap());
        }
    }

    /// Makes every client leave.
    pub async fn leave(&mut self) {
        for client in &self.clients {
            client.update_plan(|plan| {
                plan.send_limit = 0;
                plan.leave = true;
            });
        }
        for client in &self.clients {
            client.wait_until("leaving", |progress| progress.has_left).await;
        }
        self.collect_finished().await;
    }

    /// Makes every client leave. Returns the complete history, including the log of the server.
    pub async fn finish(mut self) -> History {
        self.leave().await;
        let (log, epoch) = self.log().await;
        self.record_roster(epoch).await;
        History {
            clients: self.finished,
            log: Some(log),
            rosters: self.rosters,
            everybody_left: true,
        }
    }

    /// Stops every client without leaving. Returns what they recorded.
    pub async fn stop(mut self) -> History {
        for client in self.clients {
            client.update_plan(|plan| plan.stop = true);
            self.finished.push(client.task.await.unwrap());
        }
        History {
            clients: self.finished,
            rosters: self.rosters,
            ..History::default()
        }
    }

    /// Reads the log of the room and its epoch.
    pub async fn log(&self) -> (Vec<Arc<chitchat::proto::ServerMessage>>, u64) {
        self.try_log().await.unwrap()
    }

    /// Like [`Run::log`], of a server that may be unable to read it.
    ///
    /// # Errors
    ///
    /// The status with which the server answers.
    pub async fn try_log(&self) -> Result<(Vec<Arc<chitchat::proto::ServerMessage>>, u64), tonic::Status> {
        let mut client = self.connect().await;
        let mut log = Vec::new();
        let mut after = 0;
        loop {
            let request = GetHistoryRequest {
                room: ROOM.into(),
                page: Some(Page::AfterSequence(after)),
                limit: 1_000,
            };
            let response = client.get_history(request).await?.into_inner();
            let Some(last) = response.messages.last() else {
                return Ok((log, response.epoch));
            };
            after = last.sequence;
            log.extend(
                response
                    .messages
                    .into_iter()
                    .map(|message| self.recorder.share(message)),
            );
        }
    }
}
