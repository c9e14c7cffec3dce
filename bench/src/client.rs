//! The clients of a connection and the checks on what they receive.

use std::rc::Rc;

use super::codec::{Event, EventKind, EventSink};
use super::delivery_checker::{DeliveryChecker, DeliveryFaults};
use super::latency::Latency;
use super::order_checker::{Digest, OrderChecker, OrderFaults};
use super::payload_header::PayloadHeader;
use super::publisher::Publisher;
use super::run_state::{Counter, Counters, Phase, RunState};

/// A simulated participant.
#[derive(Debug)]
pub(super) struct Client {
    room: usize,
    /// One per publisher of the room.
    delivery_checkers: Vec<DeliveryChecker>,
    order_checker: OrderChecker,
    /// Set if this client also publishes.
    publisher: Option<Rc<Publisher>>,
    joined: bool,
    /// `None` while the stream is open, `Some(None)` if it ended without an error, and otherwise the error.
    ended: Option<Option<String>>,
    rejected: u64,
    first_rejection: Option<String>,
    misrouted: u64,
}

/// The outcome for one client.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct ClientResult {
    pub(super) room: usize,
    pub(super) faults: DeliveryFaults,
    pub(super) order: OrderFaults,
    pub(super) digest: Digest,
    /// Why its stream ended before the client left.
    pub(super) disconnect: Option<String>,
    /// How many of its own messages the server rejected, and the text of the first rejection.
    pub(super) rejected: u64,
    pub(super) first_rejection: Option<String>,
    /// Messages of this run from another room or from an unknown publisher.
    pub(super) misrouted: u64,
}

impl Client {
    /// Creates a client of `room`. The run's `publishers` are assigned to its `rooms` rooms round-robin.
    pub(super) fn new(
        room: usize,
        rooms: usize,
        publishers: usize,
        publisher: Option<Rc<Publisher>>,
    ) -> Self {
        let publishers_of_room = publishers.saturating_sub(room).div_ceil(rooms.max(1));
        Self {
            room,
            delivery_checkers: vec![DeliveryChecker::default(); publishers_of_room],
            order_checker: OrderChecker::default(),
            publisher,
            joined: false,
            ended: None,
            rejected: 0,
            first_rejection: None,
            misrouted: 0,
        }
    }

    pub(super) fn has_ended(&self) -> bool {
        self.ended.is_some()
    }

    /// The publisher, if this client publishes.
    pub(super) fn publisher(&self) -> Option<&Publisher> {
        self.publisher.as_deref()
    }

    /// The latest Lamport time received.
    pub(super) fn timestamp(&self) -> i64 {
        self.order_checker.timestamp()
    }

    /// Records that the connection failed.
    pub(super) fn on_connection_error(&mut self, why: &str) {
        self.ended.get_or_insert_with(|| Some(why.to_owned()));
    }

    /// Compares the received messages with the sent ones. `disconnect` is the reason why the stream ended before the
    /// client left.
    pub(super) fn result(self, shared: &RunState, rooms: usize, disconnect: Option<String>) -> ClientResult {
        let mut faults = DeliveryFaults::default();
        for (index, checker) in self.delivery_checkers.iter().enumerate() {
            faults += checker.faults(shared.sent_by(index * rooms + self.room));
        }
        ClientResult {
            room: self.room,
            faults,
            order: self.order_checker.faults(),
            digest: self.order_checker.digest(),
            disconnect,
            rejected: self.rejected,
            first_rejection: self.first_rejection,
            misrouted: self.misrouted,
        }
    }

    /// The reason why its stream ended; `None` while the stream is open.
    pub(super) fn end_reason(&self) -> Option<String> {
        self.ended.as_ref().map(|why| {
            why.clone()
                .unwrap_or_else(|| "the server ended the stream".to_owned())
        })
    }
}

/// Passes the events of one read to the clients of the connection.
#[derive(Debug)]
pub(super) struct EventBatch<'a> {
    pub(super) clients: &'a mut [Client],
    pub(super) latency: &'a mut Latency,
    /// The latency of what a publisher itself receives of its messages.
    pub(super) echo: &'a mut Latency,
    pub(super) phase: Phase,
    pub(super) now: u64,
    pub(super) run_id: u16,
    pub(super) rooms: usize,
    /// Whether the server assigns sequence numbers and Lamport times.
    pub(super) ordered: bool,
    pub(super) counts: BatchCounts,
}

/// What one read adds to the run's counters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct BatchCounts {
    joined: u64,
    events: u64,
    delivered: u64,
    ended: u64,
}

impl BatchCounts {
    /// Whether a stream ended.
    pub(super) fn has_ended_streams(self) -> bool {
        self.ended > 0
    }

    /// Adds these counts to the run's counters.
    pub(super) fn add_to(self, counters: &Counters, phase: Phase, now: u64) {
        if self.joined > 0 {
            counters.last_join_at.raise_to(now);
            counters.joined.add(self.joined);
        }
        if self.delivered > 0 {
            if is_measured(phase, now) {
                counters.measured.add(self.delivered);
            }
            counters.last_delivery_at.raise_to(now);
            counters.delivered.add(self.delivered);
        }
        if self.ended > 0 && phase != Phase::Leave {
            counters.disconnects.add(self.ended);
        }
        counters.events.add(self.events);
    }
}

/// Whether `time` is within the measured time.
fn is_measured(phase: Phase, time: u64) -> bool {
    match phase {
        Phase::Run { begin, end, .. } | Phase::Drain { begin, end, .. } => (begin..end).contains(&time),
        Phase::Join | Phase::Leave => false,
    }
}

impl EventBatch<'_> {
    /// Handles an event that is not a message of this run.
    #[cold]
    fn on_other_event(&mut self, slot: usize, event: &Event<'_>) {
        let Some(client) = self.clients.get_mut(slot) else {
            return;
        };
        let is_notice = event.kind == EventKind::Message && event.sequence == 0 && event.sender == 0;
        if !is_notice {
            if self.ordered {
                client.order_checker.observe(event.sequence, event.timestamp);
            }
            return;
        }
        client.rejected += 1;
        client
            .first_rejection
            .get_or_insert_with(|| String::from_utf8_lossy(event.text).into_owned());
        // A rejected message is never delivered, so it must not occupy the publisher's window.
        if let Some(publisher) = &client.publisher {
            publisher.on_returned();
        }
    }
}

impl EventSink for EventBatch<'_> {
    fn joined(&mut self, slot: usize) {
        if let Some(client) = self.clients.get_mut(slot)
            && !std::mem::replace(&mut client.joined, true)
        {
            self.counts.joined += 1;
        }
    }

    #[inline]
    fn event(&mut self, slot: usize, event: &Event<'_>) {
        self.counts.events += 1;
        let header = match event.kind {
            EventKind::Message => {
                PayloadHeader::read(event.text).filter(|header| header.run_id == self.run_id)
            }
            EventKind::Join | EventKind::Leave => None,
        };
        let Some(header) = header else {
            return self.on_other_event(slot, event);
        };
        let Some(client) = self.clients.get_mut(slot) else {
            return;
        };
        if self.ordered {
            client.order_checker.observe(event.sequence, event.timestamp);
            client.order_checker.update_digest(event.fingerprint);
        }
        let publisher = usize::from(header.publisher);
        let (index, room) = if self.rooms == 1 {
            (publisher, 0)
        } else {
            (publisher / self.rooms, publisher % self.rooms)
        };
        let checker = client
            .delivery_checkers
            .get_mut(index)
            .filter(|_| room == client.room);
        let Some(checker) = checker else {
            client.misrouted += 1;
            return;
        };
        if !checker.observe(header.number) {
            return;
        }
        self.counts.delivered += 1;
        let measured = is_measured(self.phase, header.intended);
        let took = self.now.saturating_sub(header.intended);
        if measured {
            self.latency.record(took);
        }
        if let Some(own) = &client.publisher
            && own.id() == header.publisher
        {
            own.on_returned();
            if measured {
                self.echo.record(took);
            }
        }
    }

    fn ended(&mut self, slot: usize, why: Option<String>) {
        if let Some(client) = self.clients.get_mut(slot)
            && client.ended.is_none()
        {
            client.ended = Some(why);
            self.counts.ended += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(run_id: u16, publisher: u16, number: u32) -> Vec<u8> {
        let mut text = vec![b'.'; 40];
        PayloadHeader {
            run_id,
            publisher,
            number,
            intended: 150,
        }
        .write(&mut text);
        text
    }

    /// Passes messages (publisher, number) with dense sequences to one client of room 0 of 2.
    fn receive(messages: &[(u16, u32)]) -> (ClientResult, BatchCounts, Latency) {
        let shared = RunState::new(7, 4);
        for sent in &shared.sent {
            sent.store(3, std::sync::atomic::Ordering::Relaxed);
        }
        let mut clients = [Client::new(0, 2, 4, None)];
        let (mut latency, mut echo) = (Latency::new().unwrap(), Latency::new().unwrap());
        let mut batch = EventBatch {
            clients: &mut clients,
            latency: &mut latency,
            echo: &mut echo,
            phase: Phase::Run {
                start: 100,
                begin: 100,
                end: 200,
            },
            now: 160,
            run_id: 7,
            rooms: 2,
            ordered: true,
            counts: BatchCounts::default(),
        };
        for (sequence, &(publisher, number)) in (1_i64..).zip(messages) {
            let text = text(7, publisher, number);
            let event = Event {
                kind: EventKind::Message,
                text: &text,
                sender: 1,
                sequence: sequence.cast_unsigned(),
                timestamp: sequence,
                fingerprint: 0,
            };
            batch.event(0, &event);
        }
        let counts = batch.counts;
        let [client] = clients;
        (client.result(&shared, 2, None), counts, latency)
    }

    const COMPLETE: [(u16, u32); 6] = [(0, 0), (2, 0), (0, 1), (0, 2), (2, 1), (2, 2)];

    #[test]
    fn a_complete_stream_of_two_publishers_has_no_faults() {
        let (result, counts, latency) = receive(&COMPLETE);
        assert!(result.faults.is_empty() && result.order.is_empty() && result.misrouted == 0);
        assert_eq!(counts.delivered, 6);
        assert_eq!(latency.count(), 6);
    }

    #[test]
    fn faults_are_detected_per_publisher() {
        let (lost, ..) = receive(&COMPLETE[1..]);
        assert_eq!(lost.faults.lost, 1);
        let mut twice = COMPLETE.to_vec();
        twice.push((2, 1));
        let (duplicated, counts, _) = receive(&twice);
        assert_eq!(duplicated.faults.duplicated, 1);
        assert_eq!(counts.delivered, 6, "a duplicate does not count as a delivery");
        let mut swapped = COMPLETE;
        swapped.swap(4, 5);
        assert_eq!(receive(&swapped).0.faults.reordered, 1);
    }

    #[test]
    fn messages_of_another_room_are_detected() {
        let mut misrouted = COMPLETE.to_vec();
        misrouted.extend([(1, 0), (9, 0)]);
        assert_eq!(receive(&misrouted).0.misrouted, 2);
    }
}
