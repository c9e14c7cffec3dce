//! The commands of a room that are on their way into the order of several replicas, and who waits for them.

use std::collections::{HashMap, VecDeque};

use tokio::sync::{mpsc, oneshot};

use super::handle::{Member, ModerationReporter, Reply};
use super::order::{Replication, Submission};
use super::request::{HubError, PostOutcome, RequestMeta, ResumePoint};
use crate::domain::{Command, Epoch, RoomName};

/// Who waits for what becomes of a command.
pub(super) enum Caller {
    Join(JoinCaller),
    Say(RequestMeta),
    Post(RequestMeta, Reply<PostOutcome>),
    Leave(RequestMeta),
    Moderate(ModerationReporter, Reply<usize>),
}

/// Who waits for a JOIN, and where its stream is to start.
pub(super) struct JoinCaller {
    pub(super) resume_point: Option<ResumePoint>,
    pub(super) history: u32,
    pub(super) meta: RequestMeta,
    /// Whether its session is of a room that this replica did not know.
    pub(super) is_of_unknown_room: bool,
    pub(super) reply: Reply<Member>,
}

impl JoinCaller {
    /// A caller that does not wait any more.
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

impl Caller {
    pub(super) fn fail(self, error: HubError) {
        match self {
            Self::Join(caller) => drop(caller.reply.send(Err(error))),
            Self::Post(_, reply) => drop(reply.send(Err(error))),
            Self::Moderate(_, reply) => drop(reply.send(Err(error))),
            // Their streams end.
            Self::Say(_) | Self::Leave(_) => {}
        }
    }
}

/// The commands of a room that have no position in the order yet.
pub(super) struct Submissions {
    replication: Replication,
    /// Those that are not in the channel to the order yet. The mailbox is not drained while there are any.
    unsent: VecDeque<Submission>,
    /// The callers, by the numbers of their requests, each with the [count](Submission::lost_incarnations) with which it was sent, if it
    /// was.
    callers: HashMap<u64, (Option<u64>, Caller)>,
}

impl Submissions {
    pub(super) fn new(replication: Replication) -> Self {
        Self {
            replication,
            unsent: VecDeque::new(),
            callers: HashMap::new(),
        }
    }

    /// Adds a command for the room that has this epoch.
    pub(super) fn push(
        &mut self,
        room: &RoomName,
        epoch: Option<Epoch>,
        command: Command,
        caller: Option<Caller>,
    ) {
        let request = self.replication.next_request();
        if let Some(caller) = caller {
            self.callers.insert(request, (None, caller));
        }
        self.unsent.push_back(Submission {
            room: room.clone(),
            epoch,
            request,
            command,
            lost_incarnations: 0,
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
        let lost_incarnations = self.replication.status().lost_incarnations;
        if let Some(mut submission) = self.unsent.pop_front() {
            submission.lost_incarnations = lost_incarnations;
            if let Some((sent, _)) = self.callers.get_mut(&submission.request) {
                *sent = Some(lost_incarnations);
            }
            permit.send(submission);
        }
    }

    /// Waits until the order accepts more. Cancel safe.
    pub(super) async fn send(&mut self) {
        let submissions = self.replication.submissions.clone();
        match submissions.reserve().await {
            Ok(permit) => self.send_one(permit),
            // The replica has ended, and the process is about to.
            Err(_) => {
                self.unsent.clear();
                self.callers.clear();
            }
        }
        self.send_now();
    }

    pub(super) fn has_unsent(&self) -> bool {
        !self.unsent.is_empty()
    }

    /// Whether nothing is on its way.
    pub(super) fn is_empty(&self) -> bool {
        self.unsent.is_empty() && self.callers.is_empty()
    }

    pub(super) fn take_caller(&mut self, request: u64) -> Option<Caller> {
        self.callers.remove(&request).map(|(_, caller)| caller)
    }

    /// Forgets the callers of what was sent before so many incarnations were lost. Their calls have ended.
    pub(super) fn on_fenced(&mut self, lost_incarnations: u64) {
        self.callers
            .retain(|_, (sent, _)| sent.is_none_or(|sent| sent >= lost_incarnations));
    }

    pub(super) fn is_suspended(&self) -> bool {
        self.replication.is_suspended()
    }
}
