//! The commands of a room that are on their way into the command log of several replicas, and who waits for them.

use std::collections::{HashMap, VecDeque};

use tokio::sync::{mpsc, oneshot};

use super::handle::{Member, ModerationReporter, Reply};
use super::replication::{Replication, Submission};
use super::request::{HubError, PostOutcome, RequestMeta, ResumePoint};
use crate::domain::{Command, Epoch, RoomName};

/// What answers the caller of a command once it is ordered.
pub(super) enum PendingReply {
    Join(PendingJoin),
    Say(RequestMeta),
    Post(RequestMeta, Reply<PostOutcome>),
    Leave(RequestMeta),
    Moderate(ModerationReporter, Reply<usize>),
}

/// What answers the caller of a JOIN, and where its stream is to start.
pub(super) struct PendingJoin {
    pub(super) resume_point: Option<ResumePoint>,
    pub(super) history: u32,
    pub(super) meta: RequestMeta,
    /// Whether its session is of a room that this replica did not know.
    pub(super) is_of_unknown_room: bool,
    pub(super) reply: Reply<Member>,
}

impl PendingJoin {
    /// Of a caller that does not wait any more.
    pub(super) fn gone() -> Self {
        Self {
            resume_point: None,
            history: 0,
            meta: RequestMeta::now(),
            is_of_unknown_room: false,
            reply: oneshot::channel().0,
        }
    }
}

impl PendingReply {
    pub(super) fn fail(self, error: HubError) {
        match self {
            Self::Join(pending) => drop(pending.reply.send(Err(error))),
            Self::Post(_, reply) => drop(reply.send(Err(error))),
            Self::Moderate(_, reply) => drop(reply.send(Err(error))),
            // Their streams end.
            Self::Say(_) | Self::Leave(_) => {}
        }
    }
}

/// The commands of a room that have no position in the command log yet.
pub(super) struct Submissions {
    replication: Replication,
    /// Those that are not in the channel to the command log yet. The mailbox is not drained while there are any.
    unsent: VecDeque<Submission>,
    /// The replies by the numbers of their requests, each with the generation in which its command was sent, if it was.
    pending: HashMap<u64, (Option<u64>, PendingReply)>,
}

impl Submissions {
    pub(super) fn new(replication: Replication) -> Self {
        Self {
            replication,
            unsent: VecDeque::new(),
            pending: HashMap::new(),
        }
    }

    /// Adds a command for the room that has this epoch.
    pub(super) fn push(
        &mut self,
        room: &RoomName,
        epoch: Option<Epoch>,
        command: Command,
        pending: Option<PendingReply>,
    ) {
        let request = self.replication.next_request();
        if let Some(pending) = pending {
            self.pending.insert(request, (None, pending));
        }
        self.unsent.push_back(Submission {
            room: room.clone(),
            epoch,
            request,
            command,
            generation: 0,
        });
        self.send_now();
    }

    /// Sends as much as the channel accepts at once.
    fn send_now(&mut self) {
        while !self.unsent.is_empty()
            && let Ok(permit) = self.replication.submissions.clone().try_reserve()
        {
            self.send_one(permit);
        }
    }

    fn send_one(&mut self, permit: mpsc::Permit<'_, Submission>) {
        let generation = self.replication.status().generation;
        if let Some(mut submission) = self.unsent.pop_front() {
            submission.generation = generation;
            if let Some((sent, _)) = self.pending.get_mut(&submission.request) {
                *sent = Some(generation);
            }
            permit.send(submission);
        }
    }

    /// Waits until the command log accepts more. Cancel safe.
    pub(super) async fn send(&mut self) {
        let submissions = self.replication.submissions.clone();
        match submissions.reserve().await {
            Ok(permit) => self.send_one(permit),
            // The replica has ended, and the process is about to.
            Err(_) => {
                self.unsent.clear();
                self.pending.clear();
            }
        }
        self.send_now();
    }

    pub(super) fn has_unsent(&self) -> bool {
        !self.unsent.is_empty()
    }

    /// Whether nothing is on its way.
    pub(super) fn is_empty(&self) -> bool {
        self.unsent.is_empty() && self.pending.is_empty()
    }

    pub(super) fn take_pending(&mut self, request: u64) -> Option<PendingReply> {
        self.pending.remove(&request).map(|(_, pending)| pending)
    }

    /// Drops the replies to commands that were sent before `generation`. Their calls have ended.
    pub(super) fn on_fenced(&mut self, generation: u64) {
        self.pending
            .retain(|_, (sent, _)| sent.is_none_or(|sent| sent >= generation));
    }

    pub(super) fn is_suspended(&self) -> bool {
        self.replication.is_suspended()
    }
}
