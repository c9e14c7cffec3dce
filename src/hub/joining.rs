//! A JOIN under way.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Instant;

use tokio::sync::oneshot;

use super::member::Member;
use super::registry::Hub;
use super::request::Request;
use crate::domain::{Join, Refusal, RoomName};
use crate::order::Sender;

/// Why somebody could not come in.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum JoinError {
    /// The room said no.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// There are as many rooms as may be, and somebody in each.
    #[error("there are {0} rooms, which is the limit, and somebody in each; join one of them or try later")]
    TooManyRooms(usize),
    /// The server takes nobody in any more.
    #[error("the server is draining")]
    Draining,
}

/// A JOIN under way: a future of the [`Member`]. Dropping it at any time is safe; if the JOIN gets into the room's log
/// all the same, the LEAVE follows.
pub struct Joining {
    hub: Arc<Hub>,
    room: RoomName,
    /// Kept while it is not in an inbox.
    join: Option<Join>,
    received: Instant,
    stage: Stage,
}

enum Stage {
    Looking,
    Sending(
        Sender<Request>,
        Option<Request>,
        oneshot::Receiver<Result<Member, Refusal>>,
    ),
    Waiting(oneshot::Receiver<Result<Member, Refusal>>),
}

impl Joining {
    pub(super) const fn new(hub: Arc<Hub>, room: RoomName, join: Join, received: Instant) -> Self {
        Self {
            hub,
            room,
            join: Some(join),
            received,
            stage: Stage::Looking,
        }
    }
}

impl Future for Joining {
    type Output = Result<Member, JoinError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        loop {
            let this = &mut *self;
            match &mut this.stage {
                Stage::Looking => {
                    let Some(join) = this.join.take() else {
                        return Poll::Ready(Err(JoinError::Draining));
                    };
                    let room = match this.hub.room(&this.room) {
                        Ok(room) => room,
                        Err(error) => return Poll::Ready(Err(error)),
                    };
                    let (reply, answer) = oneshot::channel();
                    let request = Request::Join {
                        join,
                        reply,
                        received: this.received,
                    };
                    this.stage = Stage::Sending(Sender::new(Arc::clone(&room.inbox)), Some(request), answer);
                }
                Stage::Sending(sender, request, _) => {
                    let sent = ready!(sender.poll_push(cx, request));
                    let Stage::Sending(_, request, answer) =
                        std::mem::replace(&mut this.stage, Stage::Looking)
                    else {
                        continue;
                    };
                    match (sent, request) {
                        // The room was let go between looking it up and here: the next look makes it anew.
                        (Err(_), Some(Request::Join { join, .. })) => this.join = Some(join),
                        _ => this.stage = Stage::Waiting(answer),
                    }
                }
                Stage::Waiting(answer) => {
                    return match ready!(Pin::new(answer).poll(cx)) {
                        Ok(answer) => Poll::Ready(answer.map_err(JoinError::from)),
                        // The room ended without an answer.
                        Err(_) => Poll::Ready(Err(JoinError::Draining)),
                    };
                }
            }
        }
    }
}
