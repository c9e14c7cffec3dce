//! The clients of one connection and what they make of what they receive.

use std::rc::Rc;

use super::checker::{Checker, Faults};
use super::latency::Latency;
use super::order::{Digest, Order, OrderFaults};
use super::publisher::Publisher;
use super::shared::{Counters, Phase, Shared, Tally};
use super::stamp::Stamp;
use super::wire::{Event, Kind, Sink};

/// How a client takes part, and what it has received.
#[derive(Debug)]
pub(super) struct Client {
    room: usize,
    /// One for each publisher of the room.
    checkers: Vec<Checker>,
    order: Order,
    /// Set on a publisher: it also reads.
    publisher: Option<Rc<Publisher>>,
    joined: bool,
    /// Why its stream ended, if it did; `Some(None)` = well.
    ended: Option<Option<String>>,
    refused: u64,
    refusal: Option<String>,
    foreign: u64,
}

/// What became of one client.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct ClientResult {
    pub(super) room: usize,
    pub(super) faults: Faults,
    pub(super) order: OrderFaults,
    pub(super) digest: Digest,
    /// Why its stream ended before it left.
    pub(super) cut: Option<String>,
    /// Messages of its own that the server refused, and what it said about the first.
    pub(super) refused: u64,
    pub(super) refusal: Option<String>,
    /// Messages of this run that it should not have received: of another room, or of a publisher that does not exist.
    pub(super) foreign: u64,
}

impl Client {
    /// A client of a room to which `publishers` of `rooms` rooms' publishers are dealt in turn.
    pub(super) fn new(
        room: usize,
        rooms: usize,
        publishers: usize,
        publisher: Option<Rc<Publisher>>,
    ) -> Self {
        let heard = publishers.saturating_sub(room).div_ceil(rooms.max(1));
        Self {
            room,
            checkers: vec![Checker::default(); heard],
            order: Order::default(),
            publisher,
            joined: false,
            ended: None,
            refused: 0,
            refusal: None,
            foreign: 0,
        }
    }

    pub(super) fn has_ended(&self) -> bool {
        self.ended.is_some()
    }

    /// Set on a publisher.
    pub(super) fn publisher(&self) -> Option<&Publisher> {
        self.publisher.as_deref()
    }

    /// The latest Lamport time it has seen.
    pub(super) fn timestamp(&self) -> i64 {
        self.order.timestamp()
    }

    /// The connection is gone.
    pub(super) fn cut(&mut self, why: &str) {
        self.ended.get_or_insert_with(|| Some(why.to_owned()));
    }

    /// Judges by what was sent. `cut` = why its stream ended before it said goodbye.
    pub(super) fn result(self, shared: &Shared, rooms: usize, cut: Option<String>) -> ClientResult {
        let mut faults = Faults::default();
        for (index, checker) in self.checkers.iter().enumerate() {
            faults += checker.judge(shared.sent_by(index * rooms + self.room));
        }
        ClientResult {
            room: self.room,
            faults,
            order: self.order.faults(),
            digest: self.order.seen(),
            cut,
            refused: self.refused,
            refusal: self.refusal,
            foreign: self.foreign,
        }
    }

    /// Why its stream has ended, if it has.
    pub(super) fn end(&self) -> Option<String> {
        self.ended.as_ref().map(|why| {
            why.clone()
                .unwrap_or_else(|| "the server ended the stream".to_owned())
        })
    }
}

/// What is common to everything that one read brought.
#[derive(Debug)]
pub(super) struct Batch<'a> {
    pub(super) clients: &'a mut [Client],
    pub(super) latency: &'a mut Latency,
    pub(super) phase: Phase,
    pub(super) now: u64,
    pub(super) run: u16,
    pub(super) rooms: usize,
    /// Whether the server stamps what it sends with a sequence and a Lamport time.
    pub(super) ordered: bool,
    pub(super) tally: Batched,
}

/// What one read adds to the counters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Batched {
    joined: u64,
    events: u64,
    fresh: u64,
    ended: u64,
}

impl Batched {
    /// Whether a stream ended.
    pub(super) fn has_ends(self) -> bool {
        self.ended > 0
    }

    /// Adds it to what all threads have counted.
    pub(super) fn add_to(self, counters: &Counters, phase: Phase, now: u64) {
        if self.joined > 0 {
            counters.joined_at.raise(now);
            counters.joined.add(self.joined);
        }
        if self.fresh > 0 {
            if within(phase, now) {
                counters.measured.add(self.fresh);
            }
            counters.fresh_at.raise(now);
            counters.fresh.add(self.fresh);
        }
        if self.ended > 0 && phase != Phase::Leave {
            counters.cut.add(self.ended);
        }
        counters.events.add(self.events);
    }
}

/// Whether a time belongs to what is measured.
fn within(phase: Phase, time: u64) -> bool {
    match phase {
        Phase::Run { begin, end, .. } | Phase::Drain { begin, end, .. } => (begin..end).contains(&time),
        Phase::Join | Phase::Leave => false,
    }
}

impl Batch<'_> {
    /// A message that is not of this run.
    #[cold]
    fn other(&mut self, seat: usize, event: &Event<'_>) {
        let Some(client) = self.clients.get_mut(seat) else {
            return;
        };
        let private = event.kind == Kind::Message && event.sequence == 0 && event.sender == 0;
        if !private {
            if self.ordered {
                client.order.see(event.sequence, event.timestamp);
            }
            return;
        }
        client.refused += 1;
        client
            .refusal
            .get_or_insert_with(|| String::from_utf8_lossy(event.text).into_owned());
        // What was refused does not come back: its place in the window is free again, or the publisher would starve.
        if let Some(publisher) = &client.publisher {
            publisher.returned();
        }
    }
}

impl Sink for Batch<'_> {
    fn joined(&mut self, seat: usize) {
        if let Some(client) = self.clients.get_mut(seat)
            && !std::mem::replace(&mut client.joined, true)
        {
            self.tally.joined += 1;
        }
    }

    #[inline]
    fn event(&mut self, seat: usize, event: &Event<'_>) {
        self.tally.events += 1;
        let stamp = match event.kind {
            Kind::Message => Stamp::read(event.text).filter(|stamp| stamp.run == self.run),
            Kind::Join | Kind::Leave => None,
        };
        let Some(stamp) = stamp else {
            return self.other(seat, event);
        };
        let Some(client) = self.clients.get_mut(seat) else {
            return;
        };
        if self.ordered {
            client.order.see(event.sequence, event.timestamp);
            client.order.digest(event.print);
        }
        let publisher = usize::from(stamp.publisher);
        let (index, room) = if self.rooms == 1 {
            (publisher, 0)
        } else {
            (publisher / self.rooms, publisher % self.rooms)
        };
        let checker = client.checkers.get_mut(index).filter(|_| room == client.room);
        let Some(checker) = checker else {
            client.foreign += 1;
            return;
        };
        if !checker.see(stamp.number) {
            return;
        }
        self.tally.fresh += 1;
        if within(self.phase, stamp.intended) {
            self.latency.record(self.now.saturating_sub(stamp.intended));
        }
        if let Some(own) = &client.publisher
            && own.id() == stamp.publisher
        {
            own.returned();
        }
    }

    fn ended(&mut self, seat: usize, why: Option<String>) {
        if let Some(client) = self.clients.get_mut(seat)
            && client.ended.is_none()
        {
            client.ended = Some(why);
            self.tally.ended += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(run: u16, publisher: u16, number: u32) -> Vec<u8> {
        let mut text = vec![b'.'; 40];
        Stamp {
            run,
            publisher,
            number,
            intended: 150,
        }
        .write(&mut text);
        text
    }

    /// Lets one client of room 0 of 2 receive messages of (publisher, number), with dense sequences.
    fn receive(messages: &[(u16, u32)]) -> (ClientResult, Batched, Latency) {
        let shared = Shared::new(7, 4);
        for sent in &shared.sent {
            sent.store(3, std::sync::atomic::Ordering::Relaxed);
        }
        let mut clients = [Client::new(0, 2, 4, None)];
        let mut latency = Latency::new().unwrap();
        let mut batch = Batch {
            clients: &mut clients,
            latency: &mut latency,
            phase: Phase::Run {
                start: 100,
                begin: 100,
                end: 200,
            },
            now: 160,
            run: 7,
            rooms: 2,
            ordered: true,
            tally: Batched::default(),
        };
        for (sequence, &(publisher, number)) in (1_i64..).zip(messages) {
            let text = text(7, publisher, number);
            let event = Event {
                kind: Kind::Message,
                text: &text,
                sender: 1,
                sequence: sequence.cast_unsigned(),
                timestamp: sequence,
                print: 0,
            };
            batch.event(0, &event);
        }
        let tally = batch.tally;
        let [client] = clients;
        (client.result(&shared, 2, None), tally, latency)
    }

    const PERFECT: [(u16, u32); 6] = [(0, 0), (2, 0), (0, 1), (0, 2), (2, 1), (2, 2)];

    #[test]
    fn a_perfect_stream_of_two_publishers_has_no_faults() {
        let (result, tally, latency) = receive(&PERFECT);
        assert!(result.faults.none() && result.order.none() && result.foreign == 0);
        assert_eq!(tally.fresh, 6);
        assert_eq!(latency.count(), 6);
    }

    #[test]
    fn planted_faults_are_caught_for_each_publisher() {
        let (lost, ..) = receive(&PERFECT[1..]);
        assert_eq!(lost.faults.lost, 1);
        let mut twice = PERFECT.to_vec();
        twice.push((2, 1));
        let (duplicated, tally, _) = receive(&twice);
        assert_eq!(duplicated.faults.duplicated, 1);
        assert_eq!(tally.fresh, 6, "a duplicate is no delivery");
        let mut swapped = PERFECT;
        swapped.swap(4, 5);
        assert_eq!(receive(&swapped).0.faults.reordered, 1);
    }

    #[test]
    fn messages_of_another_room_are_caught() {
        let mut strayed = PERFECT.to_vec();
        strayed.extend([(1, 0), (9, 0)]);
        assert_eq!(receive(&strayed).0.foreign, 2);
    }
}
