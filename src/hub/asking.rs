//! A request to a room, under way.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::sync::oneshot;

use super::error::HubError;
use super::registry::Hub;
use super::request::{Reply, Request};
use crate::domain::RoomName;
use crate::order::Sender;

/// A request to a room, under way: a future of the answer. Dropping it at any time is safe: what the room was asked may
/// have happened all the same, and a [`super::Member`] that nobody takes leaves again.
pub struct Asking<T> {
    hub: Arc<Hub>,
    room: RoomName,
    stage: Stage<T>,
}

enum Stage<T> {
    /// The request is in nobody's inbox.
    Looking(Request, oneshot::Receiver<Result<T, HubError>>),
    Sending(
        Sender<Request>,
        Option<Request>,
        oneshot::Receiver<Result<T, HubError>>,
    ),
    Waiting(oneshot::Receiver<Result<T, HubError>>),
    Over,
}

impl<T> Asking<T> {
    pub(super) fn new(hub: Arc<Hub>, room: RoomName, request: impl FnOnce(Reply<T>) -> Request) -> Self {
        let (reply, answer) = oneshot::channel();
        Self {
            hub,
            room,
            stage: Stage::Looking(request(reply), answer),
        }
    }

    /// A request that no room need be asked for.
    pub(super) fn refused(hub: Arc<Hub>, room: RoomName, error: HubError) -> Self {
        let (reply, answer) = oneshot::channel();
        reply.send(Err(error)).ok();
        Self {
            hub,
            room,
            stage: Stage::Waiting(answer),
        }
    }
}

impl<T> Unpin for Asking<T> {}

impl<T> Future for Asking<T> {
    type Output = Result<T, HubError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        loop {
            let this = &mut *self;
            match std::mem::replace(&mut this.stage, Stage::Over) {
                Stage::Looking(request, answer) => {
                    let room = match this.hub.room(&this.room) {
                        Ok(room) => room,
                        Err(error) => return Poll::Ready(Err(error)),
                    };
                    this.stage = Stage::Sending(Sender::new(Arc::clone(&room.inbox)), Some(request), answer);
                }
                Stage::Sending(mut sender, mut request, answer) => {
                    let Poll::Ready(sent) = sender.poll_push(cx, &mut request) else {
                        this.stage = Stage::Sending(sender, request, answer);
                        return Poll::Pending;
                    };
                    this.stage = match (sent, request) {
                        // The room was let go between looking it up and here: the next look wakes it again.
                        (Err(_), Some(request)) => Stage::Looking(request, answer),
                        _ => Stage::Waiting(answer),
                    };
                }
                Stage::Waiting(mut answer) => {
                    let Poll::Ready(answered) = Pin::new(&mut answer).poll(cx) else {
                        this.stage = Stage::Waiting(answer);
                        return Poll::Pending;
                    };
                    // A room that ends without an answer has failed or is draining: it is unavailable either way.
                    return Poll::Ready(answered.unwrap_or(Err(HubError::Failed)));
                }
                Stage::Over => return Poll::Ready(Err(HubError::Failed)),
            }
        }
    }
}
