//! The sessions in the rooms that the user has left.

use std::time::Duration;

use tokio::sync::{oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};
use tokio_stream::StreamExt as _;

use super::app::Pending;
use crate::client::{Event, Session};
use crate::cmd::answer::is_repeated;

/// How many rooms may wait for acknowledgements. Each has a connection and what was entered in it.
const MAX_DEPARTED: usize = 8;

/// Ends sessions in the background, after what was entered in their rooms is acknowledged.
#[derive(Debug, Default)]
pub(super) struct DepartedRooms {
    /// Each returns the texts that were not acknowledged.
    running: JoinSet<Vec<String>>,
    /// Whether nothing is waited for any more.
    stop: watch::Sender<bool>,
}

impl DepartedRooms {
    pub(super) fn is_empty(&self) -> bool {
        self.running.is_empty()
    }

    pub(super) fn is_full(&self) -> bool {
        self.running.len() >= MAX_DEPARTED
    }

    /// Sends what is left of `pending`, and leaves the room. The server has `timeout` for each answer. The receiver ends when the
    /// participant has left.
    pub(super) fn leave(
        &mut self,
        session: Session,
        pending: Vec<Pending>,
        timeout: Duration,
    ) -> oneshot::Receiver<()> {
        let (left_sender, left_signal) = oneshot::channel();
        let leaving = leave(session, pending, timeout, self.stop.subscribe());
        self.running.spawn(async move {
            let unacknowledged = leaving.await;
            drop(left_sender);
            unacknowledged
        });
        left_signal
    }

    /// Waits until a participant has left, and returns the texts that were not acknowledged, in the order of their input. Pending
    /// while there is none. Cancel safe.
    pub(super) async fn next(&mut self) -> Vec<String> {
        match self.running.join_next().await {
            Some(unacknowledged) => unacknowledged.unwrap_or_default(),
            None => std::future::pending().await,
        }
    }

    /// Ends all sessions at once.
    pub(super) fn stop(&self) {
        self.stop.send_replace(true);
    }
}

async fn leave(
    mut session: Session,
    mut pending: Vec<Pending>,
    timeout: Duration,
    mut stop: watch::Receiver<bool>,
) -> Vec<String> {
    let mut deadline = Instant::now() + timeout;
    loop {
        while session.has_capacity()
            && let Some(next) = pending.iter_mut().find(|pending| pending.message_id.is_none())
            && let Ok(message_id) = session.send(next.text.clone())
        {
            next.message_id = Some(message_id.as_str().to_owned());
        }
        if pending.iter().all(|pending| pending.message_id.is_some()) {
            session.leave();
        }
        let event = tokio::select! {
            event = session.try_next() => event,
            () = sleep_until(deadline) => break,
            _ = stop.wait_for(|stop| *stop) => break,
        };
        match event {
            Ok(Some(Event::Message(message))) => {
                let id = Some(message.message_id.as_str());
                if let Some(index) = pending
                    .iter()
                    .position(|pending| pending.message_id.as_deref() == id)
                {
                    deadline = Instant::now() + timeout;
                    // A text that is rejected is one that the user has to be told about.
                    if message.notice.is_none() || is_repeated(&message) {
                        pending.remove(index);
                    }
                }
            }
            Ok(Some(_)) => {}
            Ok(None) | Err(_) => break,
        }
    }
    pending.into_iter().map(|pending| pending.text).collect()
}
