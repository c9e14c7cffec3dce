//! A run: a server at a site, clients in a room, and at the end the history of all that.

use std::net::SocketAddr;
use std::sync::Arc;

use crate::{Client as Record, History, Place, Roster};
use chitchat::proto::chat_service_client::ChatServiceClient;
use chitchat::proto::get_history_request::Page;
use chitchat::proto::{GetHistoryRequest, ListParticipantsRequest};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tonic::transport::{Channel, Endpoint};

use super::client::Client;
use super::{Orders, PATIENCE, Progress, Recorder};

/// The room of all runs.
pub const ROOM: &str = "tea";

pub struct Run {
    recorder: Arc<Recorder>,
    /// Where the server is.
    address: SocketAddr,
    pub members: Vec<Member>,
    done: Vec<Record>,
    rosters: Vec<Roster>,
    seed: u64,
}

/// A client that runs.
pub struct Member {
    pub name: String,
    orders: watch::Sender<Orders>,
    pub progress: watch::Receiver<Progress>,
    task: JoinHandle<Record>,
}

impl Member {
    pub fn order(&self, change: impl FnOnce(&mut Orders)) {
        self.orders.send_modify(change);
    }

    pub fn now(&self) -> Progress {
        *self.progress.borrow()
    }

    /// Waits until it has come so far.
    pub async fn until(&self, what: &str, mut is_far: impl FnMut(&Progress) -> bool) {
        let mut progress = self.progress.clone();
        let reached = timeout(PATIENCE, progress.wait_for(|progress| is_far(progress))).await;
        assert!(
            matches!(reached, Ok(Ok(_))),
            "{}: {what} does not happen: {:?}",
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

    /// Takes in a client that has at most `window` messages unacknowledged.
    pub fn add(&mut self, name: &str, window: usize) -> &Member {
        self.add_through(self.address, name, window)
    }

    /// Takes in a client that reaches the server by another address.
    pub fn add_through(&mut self, address: SocketAddr, name: &str, window: usize) -> &Member {
        let (orders, told) = watch::channel(Orders::default());
        let (tells, progress) = watch::channel(Progress::default());
        self.seed = self.seed.wrapping_add(1);
        let client = Client::new(
            name,
            ROOM,
            Arc::clone(&self.recorder),
            address,
            window,
            told,
            tells,
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

    /// Lets everybody send `count` messages more.
    pub fn allow(&self, count: u64) {
        for member in &self.members {
            member.order(|orders| {
                // A client of no window sends nothing.
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

    /// Waits until everybody has had a stream since then.
    pub async fn until_back(&self, since: &[u64]) {
        for (member, streams) in self.members.iter().zip(since) {
            member
                .until("coming back", |progress| {
                    progress.has_left || progress.streams > *streams
                })
                .await;
        }
    }

    /// Waits until everything that may be sent is acknowledged.
    pub async fn until_settled(&self) {
        for member in &self.members {
            member
                .until("acknowledgement", |progress| {
                    progress.acknowledged == progress.sent
                })
                .await;
        }
    }

    /// The calls beside Chat.
    pub async fn calls(&self) -> ChatServiceClient<Channel> {
        let endpoint = Endpoint::from_shared(format!("http://{}", self.address)).unwrap();
        ChatServiceClient::new(endpoint.connect().await.unwrap())
    }

    /// Takes note of who is in the room.
    pub async fn ask_roster(&mut self, epoch: u64) {
        let mut calls = self.calls().await;
        let request = ListParticipantsRequest { room: ROOM.into() };
        let answer = calls.list_participants(request).await.unwrap().into_inner();
        let participants = answer.participants.into_iter().map(|who| (who.id, who.name));
        self.rosters.push(Roster {
            room: ROOM.into(),
            place: Place {
                epoch,
                sequence: answer.sequence,
            },
            participants: participants.collect(),
        });
    }

    /// Takes those out who have left.
    pub async fn reap(&mut self) {
        let (gone, members) = self.members.drain(..).partition(|member| member.now().has_left);
        self.members = members;
        let gone: Vec<Member> = gone;
        for member in gone {
            self.done.push(member.task.await.unwrap());
        }
    }

    /// Everybody leaves; gives the whole history, with the log as the server has it now.
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

    /// Everybody stops where they are; gives what they recorded.
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

    /// The room's log, page by page, and its epoch.
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
