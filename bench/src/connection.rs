//! Drives one connection: writes what its publisher and codec produce, reads and checks what arrives.

use std::cell::RefCell;
use std::io::ErrorKind;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::Interest;
use tokio::sync::{OwnedSemaphorePermit, watch};
use tokio::time::{Instant, timeout_at};

use super::client::{BatchCounts, Client, ClientResult, EventBatch};
use super::codec::{Codec, ConnectionError, DecodeCache};
use super::error::BenchError;
use super::latency::Latency;
use super::publisher::Publisher;
use super::run_state::{Counter, Phase, RunState};
use super::stream::Stream;

/// Size in bytes of the read buffer, which all connections of a thread share.
const READ_BUFFER: usize = 262_144;
/// The most bytes that a codec may leave unparsed.
const MAX_UNPARSED: usize = READ_BUFFER / 2;
/// How long to wait for the server to end the streams after the clients have left.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(5);

/// What the connections of a worker thread share.
#[derive(Debug)]
pub(super) struct WorkerContext {
    pub(super) shared: Arc<RunState>,
    pub(super) rooms: usize,
    pub(super) ordered: bool,
    pub(super) payload: usize,
    /// Never borrowed across an await.
    buffer: RefCell<Vec<u8>>,
    pub(super) cache: Rc<RefCell<DecodeCache>>,
    pub(super) latency: RefCell<Latency>,
    /// The latency of what publishers themselves receive of their messages.
    pub(super) echo: RefCell<Latency>,
    /// How late messages were sent, compared with the schedule.
    pub(super) lag: RefCell<Latency>,
}

impl WorkerContext {
    pub(super) fn new(
        shared: Arc<RunState>,
        rooms: usize,
        ordered: bool,
        payload: usize,
    ) -> Result<Self, BenchError> {
        Ok(Self {
            shared,
            rooms,
            ordered,
            payload,
            buffer: RefCell::new(vec![0; READ_BUFFER]),
            cache: Rc::default(),
            latency: RefCell::new(Latency::new()?),
            echo: RefCell::new(Latency::new()?),
            lag: RefCell::new(Latency::new()?),
        })
    }
}

/// A connection and the clients that share it.
#[derive(Debug)]
pub(super) struct Connection<C> {
    context: Rc<WorkerContext>,
    stream: Stream,
    codec: C,
    clients: Vec<Client>,
    publisher: Option<Rc<Publisher>>,
    out: Vec<u8>,
    written: usize,
    /// Whether the publisher stopped because its batch was full, so that it can send more at once.
    publisher_has_more: bool,
    /// The incomplete input of the last read.
    unparsed: Vec<u8>,
    text: Vec<u8>,
    /// The publisher's Lamport time.
    lamport: i64,
    /// Held until the first byte arrives from the server.
    connect_permit: Option<OwnedSemaphorePermit>,
}

/// Why [`Connection::exchange`] returned.
#[derive(Debug, PartialEq, Eq)]
enum Stop {
    /// The run is over.
    Leave,
    Failed(ConnectionError),
}

impl<C: Codec> Connection<C> {
    pub(super) fn new(
        context: Rc<WorkerContext>,
        stream: Stream,
        codec: C,
        clients: Vec<Client>,
        publisher: Option<Rc<Publisher>>,
    ) -> Self {
        let text = vec![b'.'; context.payload];
        Self {
            context,
            stream,
            codec,
            clients,
            publisher,
            out: Vec::new(),
            written: 0,
            publisher_has_more: false,
            unparsed: Vec::new(),
            text,
            lamport: 1,
            connect_permit: None,
        }
    }

    /// Holds `permit` until the first byte arrives, which shows that the server has accepted the connection.
    pub(super) fn with_connect_permit(mut self, permit: OwnedSemaphorePermit) -> Self {
        self.connect_permit = Some(permit);
        self
    }

    /// Runs the connection until the run is over and returns the outcome for each client.
    pub(super) async fn drive(mut self) -> Vec<ClientResult> {
        let mut phases = self.context.shared.phase.subscribe();
        self.codec.open(&mut self.out);
        let disconnect = match self.exchange(&mut phases).await {
            Stop::Leave => None,
            Stop::Failed(error) => Some(error.0),
        };
        let shared = Arc::clone(&self.context.shared);
        if let Some(publisher) = &self.publisher {
            publisher.stop(&shared);
        }
        if let Some(why) = &disconnect {
            let live = self.clients.iter_mut().filter(|client| !client.has_ended());
            let mut count = 0;
            for client in live {
                client.on_connection_error(why);
                count += 1;
            }
            // A connection that only publishes has no client, but its failure counts as well.
            shared.record_disconnect(why);
            shared
                .counters
                .disconnects
                .add(if self.clients.is_empty() { 1 } else { count });
        }
        // Collected before leaving: from here on a stream ends because its client left, which is not a disconnect.
        let end_reasons: Vec<_> = self.clients.iter().map(Client::end_reason).collect();
        if disconnect.is_none() {
            self.leave().await;
        }
        if self.clients.is_empty() && disconnect.is_some() {
            return vec![ClientResult {
                disconnect,
                ..ClientResult::default()
            }];
        }
        let rooms = self.context.rooms;
        self.clients
            .into_iter()
            .zip(end_reasons)
            .map(|(client, end_reason)| client.result(&shared, rooms, end_reason))
            .collect()
    }

    async fn exchange(&mut self, phases: &mut watch::Receiver<Phase>) -> Stop {
        loop {
            let phase = *phases.borrow_and_update();
            // Kept across reads, because creating this future takes a lock.
            let mut next_phase = pin!(phases.changed());
            loop {
                if phase == Phase::Leave {
                    return Stop::Leave;
                }
                if let Err(error) = self.write(phase) {
                    return Stop::Failed(error);
                }
                let interest = self.interest();
                let ready = tokio::select! {
                    biased;
                    ready = self.stream.ready(interest) => Some(ready),
                    () = wakeup(self.publisher.as_deref()) => None,
                    changed = &mut next_phase => {
                        if changed.is_err() {
                            return Stop::Leave;
                        }
                        break;
                    }
                };
                match ready {
                    Some(Ok(ready)) if ready.is_readable() || ready.is_error() => match self.read(phase) {
                        Ok(true) => {}
                        Ok(false) => {
                            return Stop::Failed(ConnectionError(
                                "the server closed the connection".to_owned(),
                            ));
                        }
                        Err(error) => return Stop::Failed(error),
                    },
                    Some(Err(error)) => return Stop::Failed(ConnectionError(error.to_string())),
                    Some(Ok(_)) | None => {}
                }
                // Do not starve the other connections when this socket is always ready.
                tokio::task::coop::consume_budget().await;
            }
        }
    }

    /// Always readable; writable only when there is something to write.
    fn interest(&self) -> Interest {
        let waiting = self.publisher_has_more || self.written < self.out.len();
        if waiting {
            Interest::READABLE | Interest::WRITABLE
        } else {
            Interest::READABLE
        }
    }

    /// Writes what the codec and the publisher produce, as far as the socket accepts it.
    fn write(&mut self, phase: Phase) -> Result<(), ConnectionError> {
        let full = self.publish(phase);
        self.flush()?;
        self.publisher_has_more = full && self.out.is_empty();
        Ok(())
    }

    /// Prepares the next batch of messages. Returns whether the batch is full.
    fn publish(&mut self, phase: Phase) -> bool {
        let Some(publisher) = &self.publisher else {
            return false;
        };
        // The pending output is written first, which bounds its size.
        if !self.out.is_empty() || publisher.is_finished() {
            return false;
        }
        let lamport = &mut self.lamport;
        *lamport = (*lamport).max(self.clients.first().map_or(0, Client::timestamp));
        let mut next_timestamp = || {
            *lamport = lamport.saturating_add(1);
            *lamport
        };
        publisher.fill(
            &mut self.codec,
            phase,
            &self.context.shared,
            &mut self.text,
            &mut next_timestamp,
            &mut self.context.lag.borrow_mut(),
            &mut self.out,
        )
    }

    fn flush(&mut self) -> Result<(), ConnectionError> {
        self.stream
            .flush()
            .map_err(|error| ConnectionError(format!("cannot write: {error}")))?;
        while let Some(rest) = self.out.get(self.written..).filter(|rest| !rest.is_empty()) {
            match self.stream.try_write(rest) {
                Ok(count) => self.written += count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(ConnectionError(format!("cannot write: {error}"))),
            }
        }
        self.out.clear();
        self.written = 0;
        Ok(())
    }

    /// Reads once and passes the events to the clients. Returns `false` when the server has closed the connection.
    fn read(&mut self, phase: Phase) -> Result<bool, ConnectionError> {
        let context = Rc::clone(&self.context);
        let mut buffer = context.buffer.borrow_mut();
        let unparsed = self.unparsed.len();
        let (front, space) = buffer.split_at_mut_checked(unparsed).ok_or_else(|| {
            ConnectionError("the unparsed input does not fit into the read buffer".to_owned())
        })?;
        front.copy_from_slice(&self.unparsed);
        let count = match self.stream.try_read(space) {
            Ok(0) => return Ok(false),
            Ok(count) => count,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(true),
            Err(error) => return Err(ConnectionError(format!("cannot read: {error}"))),
        };
        self.connect_permit = None;
        let input = buffer.get(..unparsed + count).unwrap_or_default();
        let now = context.shared.now();
        let mut latency = context.latency.borrow_mut();
        let mut echo = context.echo.borrow_mut();
        let mut batch = EventBatch {
            clients: &mut self.clients,
            latency: &mut latency,
            echo: &mut echo,
            phase,
            now,
            run_id: context.shared.run_id,
            rooms: context.rooms,
            ordered: context.ordered,
            counts: BatchCounts::default(),
        };
        let result = self.codec.receive(input, &mut batch, &mut self.out);
        let counts = batch.counts;
        for publisher in self.clients.iter().filter_map(Client::publisher) {
            publisher.wake_sibling();
        }
        let done = result?;
        if counts.has_ended_streams() && phase != Phase::Leave {
            self.clients
                .iter()
                .filter_map(Client::end_reason)
                .for_each(|why| context.shared.record_disconnect(&why));
        }
        counts.add_to(&context.shared.counters, phase, now);
        self.unparsed.clear();
        self.unparsed
            .extend_from_slice(input.get(done..).unwrap_or_default());
        if self.unparsed.len() > MAX_UNPARSED {
            return Err(ConnectionError(
                "a message longer than the protocol allows".to_owned(),
            ));
        }
        Ok(true)
    }

    /// Makes every client leave and waits, within [`LEAVE_TIMEOUT`], until the server has ended their streams.
    async fn leave(&mut self) {
        let deadline = Instant::now() + LEAVE_TIMEOUT;
        let mut awaited = false;
        for (slot, client) in self.clients.iter().enumerate() {
            if !client.has_ended() {
                let timestamp = self.lamport.max(client.timestamp()).saturating_add(1);
                awaited |= self.codec.leave(slot, timestamp, &mut self.out);
            }
        }
        while awaited && !self.clients.iter().all(Client::has_ended) {
            if self.flush().is_err() {
                return;
            }
            let ready = timeout_at(deadline, self.stream.ready(self.interest())).await;
            let Ok(Ok(ready)) = ready else { return };
            if ready.is_readable() && self.read(Phase::Leave) != Ok(true) {
                return;
            }
        }
    }
}

/// Completes when the publisher is woken; never if there is no publisher.
async fn wakeup(publisher: Option<&Publisher>) {
    match publisher {
        Some(publisher) => publisher.woken().await,
        None => std::future::pending().await,
    }
}
