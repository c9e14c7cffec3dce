//! Drives one connection: writes what its publisher and its protocol want to say, reads and checks what arrives.

use std::cell::RefCell;
use std::io::ErrorKind;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::Interest;
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, watch};
use tokio::time::{Instant, timeout_at};

use super::audience::{Batch, Batched, Client, ClientResult};
use super::latency::Latency;
use super::publisher::Publisher;
use super::shared::{Phase, Shared, Tally};
use super::wire::{Cut, Memo, Wire};

/// How much is read at once. All connections of a thread share one buffer of this size.
const READ_BUFFER: usize = 262_144;
/// The most that a protocol may leave for later: more is a fault.
const MAX_LEFT_OVER: usize = READ_BUFFER / 2;
/// How long a farewell may take.
const FAREWELL: Duration = Duration::from_secs(5);

/// What the connections of one thread share.
#[derive(Debug)]
pub(super) struct Desk {
    pub(super) shared: Arc<Shared>,
    pub(super) rooms: usize,
    pub(super) ordered: bool,
    pub(super) payload: usize,
    /// The read buffer; borrowed only between two awaits.
    buffer: RefCell<Vec<u8>>,
    /// What the clients of this thread have read lately.
    pub(super) memo: Rc<RefCell<Memo>>,
    pub(super) latency: RefCell<Latency>,
    /// How late the generator itself was.
    pub(super) lag: RefCell<Latency>,
}

impl Desk {
    pub(super) fn new(
        shared: Arc<Shared>,
        rooms: usize,
        ordered: bool,
        payload: usize,
        latency: Latency,
        lag: Latency,
    ) -> Self {
        Self {
            shared,
            rooms,
            ordered,
            payload,
            buffer: RefCell::new(vec![0; READ_BUFFER]),
            memo: Rc::default(),
            latency: RefCell::new(latency),
            lag: RefCell::new(lag),
        }
    }
}

/// One connection and everybody on it.
#[derive(Debug)]
pub(super) struct Connection<W> {
    desk: Rc<Desk>,
    stream: TcpStream,
    wire: W,
    clients: Vec<Client>,
    publisher: Option<Rc<Publisher>>,
    out: Vec<u8>,
    written: usize,
    /// Whether the publisher could send more at once.
    more: bool,
    /// What the protocol could not yet make sense of.
    left_over: Vec<u8>,
    text: Vec<u8>,
    /// The publisher's own Lamport time.
    lamport: i64,
    /// Held until the server has said something.
    entering: Option<OwnedSemaphorePermit>,
}

/// Why the driving loop returned.
#[derive(Debug, PartialEq, Eq)]
enum Stop {
    /// It is time to leave.
    Leave,
    /// The connection is of no use any more.
    Cut(Cut),
}

impl<W: Wire> Connection<W> {
    pub(super) fn new(
        desk: Rc<Desk>,
        stream: TcpStream,
        wire: W,
        clients: Vec<Client>,
        publisher: Option<Rc<Publisher>>,
    ) -> Self {
        let text = vec![b'.'; desk.payload];
        Self {
            desk,
            stream,
            wire,
            clients,
            publisher,
            out: Vec::new(),
            written: 0,
            more: false,
            left_over: Vec::new(),
            text,
            lamport: 1,
            entering: None,
        }
    }

    /// Gives the permit back when the server says something, which shows that it has accepted the connection.
    pub(super) fn enter(mut self, permit: OwnedSemaphorePermit) -> Self {
        self.entering = Some(permit);
        self
    }

    /// Takes part until the run is over; tells what became of each client.
    pub(super) async fn drive(mut self) -> Vec<ClientResult> {
        let mut phases = self.desk.shared.phase.subscribe();
        self.wire.open(&mut self.out);
        let cut = match self.take_part(&mut phases).await {
            Stop::Leave => None,
            Stop::Cut(cut) => Some(cut.0),
        };
        let shared = Arc::clone(&self.desk.shared);
        if let Some(publisher) = &self.publisher {
            publisher.give_up(&shared);
        }
        if let Some(why) = &cut {
            let lively = self.clients.iter_mut().filter(|client| !client.has_ended());
            let mut count = 0;
            for client in lively {
                client.cut(why);
                count += 1;
            }
            // A connection that only publishes has no client of its own, but its end is one all the same.
            shared.cut(why);
            shared
                .counters
                .cut
                .add(if self.clients.is_empty() { 1 } else { count });
        }
        // What ends from here on ends because the client left.
        let ends: Vec<_> = self.clients.iter().map(Client::end).collect();
        if cut.is_none() {
            self.say_goodbye().await;
        }
        shared.counters.closed.add(1);
        if self.clients.is_empty() && cut.is_some() {
            return vec![ClientResult {
                cut,
                ..ClientResult::default()
            }];
        }
        let rooms = self.desk.rooms;
        self.clients
            .into_iter()
            .zip(ends)
            .map(|(client, end)| client.result(&shared, rooms, end))
            .collect()
    }

    async fn take_part(&mut self, phases: &mut watch::Receiver<Phase>) -> Stop {
        loop {
            let phase = *phases.borrow_and_update();
            // The future that waits for the next phase is kept over many reads: making it anew costs a lock each time.
            let mut next_phase = pin!(phases.changed());
            loop {
                if phase == Phase::Leave {
                    return Stop::Leave;
                }
                if let Err(cut) = self.say(phase) {
                    return Stop::Cut(cut);
                }
                let interest = self.interest();
                let ready = tokio::select! {
                    biased;
                    ready = self.stream.ready(interest) => Some(ready),
                    () = alarm(self.publisher.as_deref()) => None,
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
                        Ok(false) => return Stop::Cut(Cut("the server closed the connection".to_owned())),
                        Err(cut) => return Stop::Cut(cut),
                    },
                    Some(Err(error)) => return Stop::Cut(Cut(error.to_string())),
                    Some(Ok(_)) | None => {}
                }
                // A socket that is always ready must not keep the others waiting.
                tokio::task::coop::consume_budget().await;
            }
        }
    }

    /// What to wait for: always for input; for room to write only when there is something to write.
    fn interest(&self) -> Interest {
        let waiting = self.more || self.written < self.out.len();
        if waiting {
            Interest::READABLE | Interest::WRITABLE
        } else {
            Interest::READABLE
        }
    }

    /// Writes what the protocol and the publisher have to say, as far as the socket takes it.
    fn say(&mut self, phase: Phase) -> Result<(), Cut> {
        let full = self.publish(phase);
        self.flush()?;
        self.more = full && self.out.is_empty();
        Ok(())
    }

    /// Makes a batch ready; whether it ended because it was full.
    fn publish(&mut self, phase: Phase) -> bool {
        let Some(publisher) = &self.publisher else {
            return false;
        };
        // What was not written yet comes first, so that what waits here stays bounded.
        if !self.out.is_empty() || publisher.is_finished() {
            return false;
        }
        let lamport = &mut self.lamport;
        *lamport = (*lamport).max(self.clients.first().map_or(0, Client::timestamp));
        let mut later = || {
            *lamport = lamport.saturating_add(1);
            *lamport
        };
        publisher.fill(
            &mut self.wire,
            phase,
            &self.desk.shared,
            &mut self.text,
            &mut later,
            &mut self.desk.lag.borrow_mut(),
            &mut self.out,
        )
    }

    fn flush(&mut self) -> Result<(), Cut> {
        while let Some(rest) = self.out.get(self.written..).filter(|rest| !rest.is_empty()) {
            match self.stream.try_write(rest) {
                Ok(count) => self.written += count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(Cut(format!("cannot write: {error}"))),
            }
        }
        self.out.clear();
        self.written = 0;
        Ok(())
    }

    /// Reads once and lets the clients see it. `false` when the server has closed the connection.
    fn read(&mut self, phase: Phase) -> Result<bool, Cut> {
        let desk = Rc::clone(&self.desk);
        let mut buffer = desk.buffer.borrow_mut();
        let kept = self.left_over.len();
        let (front, space) = buffer
            .split_at_mut_checked(kept)
            .ok_or_else(|| Cut("more was left over than a buffer holds".to_owned()))?;
        front.copy_from_slice(&self.left_over);
        let count = match self.stream.try_read(space) {
            Ok(0) => return Ok(false),
            Ok(count) => count,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(true),
            Err(error) => return Err(Cut(format!("cannot read: {error}"))),
        };
        self.entering = None;
        let input = buffer.get(..kept + count).unwrap_or_default();
        let now = desk.shared.now();
        let mut latency = desk.latency.borrow_mut();
        let mut batch = Batch {
            clients: &mut self.clients,
            latency: &mut latency,
            phase,
            now,
            run: desk.shared.run,
            rooms: desk.rooms,
            ordered: desk.ordered,
            tally: Batched::default(),
        };
        let result = self.wire.receive(input, &mut batch, &mut self.out);
        let tally = batch.tally;
        for publisher in self.clients.iter().filter_map(Client::publisher) {
            publisher.wake_if_remote();
        }
        let done = result?;
        if tally.has_ends() && phase != Phase::Leave {
            self.clients
                .iter()
                .filter_map(Client::end)
                .for_each(|why| desk.shared.cut(&why));
        }
        tally.add_to(&desk.shared.counters, phase, now);
        self.left_over.clear();
        self.left_over
            .extend_from_slice(input.get(done..).unwrap_or_default());
        if self.left_over.len() > MAX_LEFT_OVER {
            return Err(Cut("a message longer than the protocol allows".to_owned()));
        }
        Ok(true)
    }

    /// Says goodbye for every client and waits, within bounds, until the server has answered.
    async fn say_goodbye(&mut self) {
        let deadline = Instant::now() + FAREWELL;
        let mut awaited = false;
        for (seat, client) in self.clients.iter().enumerate() {
            if !client.has_ended() {
                let timestamp = self.lamport.max(client.timestamp()).saturating_add(1);
                awaited |= self.wire.leave(seat, timestamp, &mut self.out);
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

/// Waits for the publisher's alarm; for ever where there is none.
async fn alarm(publisher: Option<&Publisher>) {
    match publisher {
        Some(publisher) => publisher.alarmed().await,
        None => std::future::pending().await,
    }
}
