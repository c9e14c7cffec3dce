//! A run: clients in a room of a server, and the history that they record.

use std::net::SocketAddr;
use std::sync::Arc;

use crate::{ClientHistory, History, Position, Roster};
use chitchat::proto::chat_service_client::ChatServiceClient;
use chitchat::proto::get_history_request::Page;
use chitchat::proto::{GetHistoryRequest, ListParticipantsRequest};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tonic::transport::{Channel, Endpoint};

use super::client::Client;
use super::{Orders, PATIENCE, Progress, Recorder};

/// The room that all clients join.
const ROOM: &str = "tea";

pub struct Run {
    recorder: Arc<Recorder>,
    /// The address of the server.
    address: SocketAddr,
    pub members: Vec<Member>,
    done: Vec<ClientHistory>,
    rosters: Vec<Roster>,
    seed: u64,
}

/// A running client.
pub struct Member {
    pub name: String,
    orders: watch::Sender<Orders>,
    pub progress: watch::Receiver<Progress>,
    task: JoinHandle<ClientHistory>,
}

impl Member {
    pub fn order(&self, change: impl FnOnce(&mut Orders)) {
        self.orders.send_modify(change);
    }

    pub fn now(&self) -> Progress {
        *self.progress.borrow()
    }

    /// Waits until the progress satisfies `is_far`. Panics after [`PATIENCE`]; `what` names the condition.
    pub async fn until(&self, what: &str, mut is_far: impl FnMut(&Progress) -> bool) {
        let mut progress = self.progress.clone();
        let reached = timeout(PATIENCE, progress.wait_for(|progress| is_far(progress))).await;
        assert!(
            matches!(reached, Ok(Ok(_))),
            "{}: timeout waiting for {what}: {:?}",
            self.name,
            self.now()
        );
    }
}

impl Run {
    pub fn new(address: SocketAddr, seed: u64) -> Self {
        Self {
            recorder: Recorder::new(),
            address,
            members: Vec::new(),
            done: Vec::new(),
            rosters: Vec::new(),
            seed,
        }
    }

    /// Starts a client that has at most `window` unacknowledged messages.
    pub fn add(&mut self, name: &str, window: usize) -> &Member {
        self.add_through(self.address, name, window)
    }

    /// Starts a client that connects to `address`, such as that of a proxy.
    pub fn add_through(&mut self, address: SocketAddr, name: &str, window: usize) -> &Member {
        let (orders, orders_receiver) = watch::channel(Orders::default());
        let (progress_sender, progress) = watch::channel(Progress::default());
        self.seed = self.seed.wrapping_add(1);
        let client = Client::new(
            name,
            ROOM,
            Arc::clone(&self.recorder),
            address,
            window,
            orders_receiver,
            progress_sender,
            self.seed,
        );
        let task = tokio::spawn(client.run());
        self.members.push(Member {
            name: name.into(),
            orders,
            progress,
            task,
        });
        self.members.last().unwrap()
    }

    /// Permits every client to send `count` more messages.
    pub fn allow(&self, count: u64) {
        for member in &self.members {
            member.order(|orders| {
                // A client whose window is 0 sends nothing.
                orders.allowance += count;
            });
        }
    }

    pub fn acknowledged(&self) -> u64 {
        self.members.iter().map(|member| member.now().acknowledged).sum()
    }

    pub fn streams(&self) -> Vec<u64> {
        self.members.iter().map(|member| member.now().streams).collect()
    }

    /// Waits until every client has had a new stream since [`Self::streams`] returned `since`.
    pub async fn until_back(&self, since: &[u64]) {
        for (member, streams) in self.members.iter().zip(since) {
            member
                .until("reconnecting", |progress| {
                    progress.has_left || progress.streams > *streams
                })
                .await;
        }
    }

    /// Waits until every sent message is acknowledged.
    pub async fn until_settled(&self) {
        for member in &self.members {
            member
                .until("acknowledgement", |progress| {
                    progress.acknowledged == progress.sent
                })
                .await;
        }
    }

    /// Opens a connection for unary calls.
    pub async fn calls(&self) -> ChatServiceClient<Channel> {
        let endpoint = Endpoint::from_shared(format!("http://{}", self.address)).unwrap();
        ChatServiceClient::new(endpoint.connect().await.unwrap())
    }

    /// Requests the participants and records the response as a [`Roster`] of `epoch`.
    pub async fn ask_roster(&mut self, epoch: u64) {
        let mut calls = self.calls().await;
        let request = ListParticipantsRequest { room: ROOM.into() };
        let answer = calls.list_participants(request).await.unwrap().into_inner();
        let participants = answer
            .participants
            .into_iter()
            .map(|participant| (participant.id, participant.name));
        self.rosters.push(Roster {
            room: ROOM.into(),
            position: Position {
                epoch,
                sequence: answer.sequence,
            },
            participants: participants.collect(),
        });
    }

    /// Collects the histories of the clients that have left.
    pub async fn reap(&mut self) {
        let (gone, members) = self.members.drain(..).partition(|member| member.now().has_left);
        self.members = members;
        let gone: Vec<Member> = gone;
        for member in gone {
            self.done.push(member.task.await.unwrap());
        }
    }

    /// Makes every client leave. Returns the complete history, including the log of the server.
    pub async fn end(mut self) -> History {
        for member in &self.members {
            member.order(|orders| {
                orders.allowance = 0;
                orders.leave = true;
            });
        }
        for member in &self.members {
            member.until("leaving", |progress| progress.has_left).await;
        }
        self.reap().await;
        let (log, epoch) = self.log().await;
        self.ask_roster(epoch).await;
        History {
            clients: self.done,
            log: Some(log),
            rosters: self.rosters,
            is_over: true,
        }
    }

    /// Stops every client without leaving. Returns what they recorded.
    pub async fn stop(mut self) -> History {
        for member in self.members {
            member.order(|orders| orders.stop = true);
            self.done.push(member.task.await.unwrap());
        }
        History {
            clients: self.done,
            rosters: self.rosters,
            ..History::default()
        }
    }

    /// Reads the log of the room and its epoch.
    pub async fn log(&self) -> (Vec<Arc<chitchat::proto::ServerMessage>>, u64) {
        let mut calls = self.calls().await;
        let mut log = Vec::new();
        let mut after = 0;
        loop {
            let request = GetHistoryRequest {
                room: ROOM.into(),
                page: Some(Page::AfterSequence(after)),
                limit: 1_000,
            };
            let answer = calls.get_history(request).await.unwrap().into_inner();
            let Some(last) = answer.messages.last() else {
                return (log, answer.epoch);
            };
            after = last.sequence;
            log.extend(
                answer
                    .messages
                    .into_iter()
                    .map(|message| self.recorder.share(message)),
            );
        }
    }
}
