//! Histories with exactly one fault, which must be the only violation reported.

use std::sync::Arc;
use std::time::Duration;

use super::*;
use chitchat::proto::{EventType, Notice, NoticeCode, ServerMessage, Welcome};

const ROOM: &str = "tea";
const EPOCH: u64 = 7;

/// Builds the history of a correct run, into which tests introduce faults.
#[derive(Default)]
struct Run {
    history: History,
    log: Vec<Arc<ServerMessage>>,
    /// Whether each client is connected.
    live: Vec<bool>,
    lamport_time: i64,
    /// Milliseconds since the start of the run.
    now: u64,
}

impl Run {
    fn record(&mut self, client: usize, event: ClientEvent) {
        self.now += 1;
        let at = Duration::from_millis(self.now);
        self.history.clients[client].events.push(TimedEvent { at, event });
    }

    fn receive(&mut self, client: usize, message: &Arc<ServerMessage>) {
        self.record(client, ClientEvent::Received(Arc::clone(message)));
    }

    /// Appends an event, which every connected client receives.
    fn event(&mut self, client: usize, kind: EventType, text: &str, message_id: &str) -> Arc<ServerMessage> {
        self.lamport_time += 1;
        let time = self.lamport_time;
        let text = match kind {
            EventType::Message => text.to_owned(),
            _ => format!("It happened at logical time L={time}"),
        };
        let message = Arc::new(ServerMessage {
            sender_id: i32::try_from(client).unwrap() + 1,
            sender_name: self.history.clients[client].name.clone(),
            msg_stream: text,
            r#type: kind.into(),
            timestamp: time,
            room: ROOM.into(),
            sequence: self.log.len() as u64 + 1,
            epoch: EPOCH,
            message_id: message_id.into(),
            ..ServerMessage::default()
        });
        self.log.push(Arc::clone(&message));
        for other in 0..self.live.len() {
            if self.live[other] {
                self.receive(other, &message);
            }
        }
        message
    }

    fn welcome(&mut self, client: usize, sequence: u64, recovered: bool) {
        let welcome = Welcome {
            participant_id: i32::try_from(client).unwrap() + 1,
            epoch: EPOCH,
            sequence,
            recovered,
            first_sequence: 1,
            last_sequence: self.log.len() as u64,
            ..Welcome::default()
        };
        let message = Arc::new(ServerMessage {
            room: ROOM.into(),
            epoch: EPOCH,
            timestamp: self.lamport_time,
            welcome: Some(welcome),
            ..ServerMessage::default()
        });
        self.receive(client, &message);
    }

    fn join(&mut self, name: &str) -> usize {
        let client = self.history.clients.len();
        self.history.clients.push(ClientHistory {
            name: name.into(),
            room: ROOM.into(),
            events: Vec::new(),
        });
        self.record(
            client,
            ClientEvent::Join {
                resume: None,
                has_token: false,
            },
        );
        self.welcome(client, self.log.len() as u64, false);
        self.live.push(true);
        self.event(client, EventType::Join, "", "");
        client
    }

    fn send(&mut self, client: usize, message_id: &str) {
        let event = ClientEvent::Sent {
            message_id: message_id.into(),
            text: format!(" {message_id} says hello\n").into(),
            timestamp: 0,
        };
        self.record(client, event);
    }

    fn broadcast(&mut self, client: usize, message_id: &str) {
        let text = format!("{message_id} says hello");
        self.event(client, EventType::Message, &text, message_id);
    }

    fn say(&mut self, client: usize, message_id: &str) {
        self.send(client, message_id);
        self.broadcast(client, message_id);
    }

    fn disconnect(&mut self, client: usize) {
        self.live[client] = false;
        self.record(client, ClientEvent::Ended { is_clean: false });
    }

    /// Resumes after the last received event, and receives what it missed.
    fn resume(&mut self, client: usize) {
        let seen = self.history.clients[client]
            .events
            .iter()
            .rev()
            .find_map(|entry| match &entry.event {
                ClientEvent::Received(message) => Position::of(message),
                _ => None,
            })
            .unwrap();
        self.record(
            client,
            ClientEvent::Join {
                resume: Some(seen),
                has_token: true,
            },
        );
        self.welcome(client, seen.sequence, true);
        for missed in self.log.clone().iter().filter(|m| m.sequence > seen.sequence) {
            self.receive(client, missed);
        }
        self.live[client] = true;
    }

    fn leave(&mut self, client: usize) {
        self.record(client, ClientEvent::Leave);
        self.live[client] = false;
        self.event(client, EventType::Leave, "", "");
        self.record(client, ClientEvent::Ended { is_clean: true });
    }

    fn roster(&mut self, clients: &[usize]) {
        let participants = clients
            .iter()
            .map(|client| {
                (
                    i32::try_from(*client).unwrap() + 1,
                    self.history.clients[*client].name.clone(),
                )
            })
            .collect();
        self.history.rosters.push(Roster {
            room: ROOM.into(),
            position: Position {
                epoch: EPOCH,
                sequence: self.log.len() as u64,
            },
            participants,
        });
    }

    fn finish(mut self) -> History {
        self.history.log = Some(self.log);
        self.history.everybody_left = true;
        self.history
    }
}

/// Two senders, and an observer who is disconnected and resumes.
fn correct() -> Run {
    let mut run = Run::default();
    let (ada, bob, eve) = (run.join("Ada"), run.join("Bob"), run.join("Eve"));
    run.say(ada, "a1");
    run.say(bob, "b1");
    run.disconnect(eve);
    run.say(ada, "a2");
    run.say(bob, "b2");
    run.resume(eve);
    run.roster(&[eve, bob, ada]);
    run.say(ada, "a3");
    run
}

fn finish(mut run: Run) -> History {
    for client in 0..3 {
        run.leave(client);
    }
    run.roster(&[]);
    run.finish()
}

fn violated(history: &History) -> Vec<Invariant> {
    let mut violated: Vec<_> = check(history)
        .into_iter()
        .map(|violation| violation.invariant)
        .collect();
    violated.sort_unstable();
    violated.dedup();
    violated
}

/// The index, in a client's history, of the receipt of a message.
fn receipt(client: &ClientHistory, message_id: &str) -> usize {
    client
        .events
        .iter()
        .position(|entry| matches!(&entry.event, ClientEvent::Received(message) if message.message_id == message_id))
        .unwrap()
}

/// Changes an event in the log and in all clients.
fn change(history: &mut History, sequence: u64, change: impl Fn(&mut ServerMessage)) {
    let receipts = history.clients.iter_mut().flat_map(|client| &mut client.events);
    let received = receipts.filter_map(|entry| match &mut entry.event {
        ClientEvent::Received(message) => Some(message),
        _ => None,
    });
    for message in received.chain(history.log.iter_mut().flatten()) {
        if message.sequence == sequence {
            change(Arc::make_mut(message));
        }
    }
}

#[test]
fn a_correct_history_has_no_violations() {
    assert_eq!(check(&finish(correct())), []);
}

#[test]
fn i1_a_participant_misses_an_event() {
    let mut history = finish(correct());
    let at = receipt(&history.clients[2], "b1");
    // An event between two received ones: at the end of a lost stream, events may be missing.
    history.clients[2].events.remove(at - 1);
    assert_eq!(violated(&history), [Invariant::Validity]);
}

#[test]
fn i1_a_participant_misses_the_event_before_its_leave() {
    let mut run = correct();
    run.live[2] = false;
    run.say(0, "a4");
    assert_eq!(violated(&finish(run)), [Invariant::Validity]);
}

#[test]
fn i2_a_text_is_altered() {
    let mut history = finish(correct());
    change(&mut history, 4, |message| message.msg_stream.push('!'));
    assert_eq!(violated(&history), [Invariant::Integrity]);
}

#[test]
fn i2_a_message_was_not_sent() {
    let mut run = correct();
    run.broadcast(0, "a9");
    assert_eq!(violated(&finish(run)), [Invariant::Integrity]);
}

#[test]
fn i2_a_message_is_broadcast_twice() {
    let mut run = correct();
    run.say(0, "a1");
    assert_eq!(violated(&finish(run)), [Invariant::Integrity]);
}

#[test]
fn i3_two_events_have_the_same_position() {
    let mut history = finish(correct());
    let at = receipt(&history.clients[2], "a2");
    let ClientEvent::Received(message) = &mut history.clients[2].events[at].event else {
        panic!("it is a receipt");
    };
    Arc::make_mut(message).traceparent = "another".into();
    assert_eq!(violated(&history), [Invariant::Agreement]);
}

#[test]
fn i4_a_client_receives_two_events_in_another_order() {
    let mut history = finish(correct());
    let at = receipt(&history.clients[0], "b1");
    let events = &mut history.clients[0].events;
    let (first, second) = (events[at - 1].event.clone(), events[at].event.clone());
    (events[at - 1].event, events[at].event) = (second, first);
    assert_eq!(violated(&history), [Invariant::Order]);
}

#[test]
fn i4_a_sequence_is_skipped() {
    let mut history = finish(correct());
    // The last event is in the log only: no client is connected to receive it.
    change(&mut history, 11, |message| message.sequence = 12);
    history.rosters.pop();
    assert_eq!(violated(&history), [Invariant::Order]);
}

#[test]
fn i5_messages_of_a_sender_are_reordered() {
    let mut run = correct();
    run.send(0, "a4");
    run.send(0, "a5");
    run.broadcast(0, "a5");
    run.broadcast(0, "a4");
    assert_eq!(violated(&finish(run)), [Invariant::Fifo]);
}

#[test]
fn i6_a_message_is_not_later_than_what_its_sender_had_received() {
    let mut run = correct();
    let notice = Arc::new(ServerMessage {
        room: ROOM.into(),
        timestamp: run.lamport_time + 1,
        ..ServerMessage::default()
    });
    run.receive(0, &notice);
    run.say(0, "a4");
    assert_eq!(violated(&finish(run)), [Invariant::Causality]);
}

#[test]
fn i7_a_message_precedes_what_was_received_before_it_was_sent() {
    let mut run = correct();
    run.live[1] = false;
    run.send(0, "a4");
    // a4 has a later position than b3, although it was received before b3 was sent. The sender of b3 had not received
    // a4, so only real time is violated, not causality.
    let early = Duration::from_millis(run.now);
    run.now += 1_000;
    run.say(1, "b3");
    run.broadcast(0, "a4");
    let mut history = {
        run.disconnect(1);
        run.resume(1);
        finish(run)
    };
    let at = receipt(&history.clients[0], "a4");
    history.clients[0].events[at].at = early;
    assert_eq!(violated(&history), [Invariant::RealTime]);
}

#[test]
fn i8_a_lamport_time_does_not_increase() {
    let mut run = correct();
    run.leave(2);
    run.lamport_time -= 1;
    run.leave(0);
    run.leave(1);
    assert_eq!(violated(&run.finish()), [Invariant::Lamport]);
}

#[test]
fn i8_an_announcement_has_another_time() {
    let mut history = finish(correct());
    change(&mut history, 2, |message| message.msg_stream.push('0'));
    assert_eq!(violated(&history), [Invariant::Lamport]);
}

#[test]
fn i9_a_delivered_event_is_missing_from_the_log() {
    let mut history = finish(correct());
    let log = history.log.as_mut().unwrap();
    log.retain(|message| message.message_id != "a3");
    assert_eq!(violated(&history), [Invariant::Durability]);
}

#[test]
fn i9_a_log_ends_before_the_last_delivered_event() {
    let mut run = correct();
    run.disconnect(2);
    let (before, length) = (run.log.clone(), run.log.len() - 1);
    let seen = Position::of(before.last().unwrap());
    run.log.truncate(length);
    run.record(
        2,
        ClientEvent::Join {
            resume: seen,
            has_token: true,
        },
    );
    run.welcome(2, length as u64, false);
    run.log = before;
    run.history.everybody_left = false;
    assert_eq!(violated(&run.history), [Invariant::Durability]);
}

#[test]
fn i9_a_log_has_a_second_epoch() {
    let mut history = finish(correct());
    let log = history.log.as_mut().unwrap();
    let copy = ServerMessage {
        epoch: EPOCH + 1,
        ..(*log[0]).clone()
    };
    log.push(Arc::new(copy));
    history.everybody_left = false;
    history.rosters.clear();
    // The second epoch begins with a copy of Ada's JOIN, so she has joined twice with one stream.
    assert_eq!(violated(&history), [Invariant::Durability, Invariant::Leave]);
}

#[test]
fn i9_a_repeated_notice_names_an_event_that_is_not_there() {
    let mut run = correct();
    let notice = Arc::new(ServerMessage {
        room: ROOM.into(),
        epoch: EPOCH,
        message_id: "a1".into(),
        notice: Some(Notice {
            code: NoticeCode::MessageRepeated.into(),
            retry_delay: None,
            original_sequence: 5,
            ..Notice::default()
        }),
        ..ServerMessage::default()
    });
    run.receive(0, &notice);
    assert_eq!(violated(&finish(run)), [Invariant::Durability]);
}

#[test]
fn i10_a_resumed_stream_has_a_gap() {
    let mut history = finish(correct());
    let at = receipt(&history.clients[2], "a2");
    history.clients[2].events.remove(at);
    assert_eq!(violated(&history), [Invariant::Resume]);
}

#[test]
fn i10_a_resumed_stream_has_a_repeat() {
    let mut history = finish(correct());
    let (from, to) = (
        receipt(&history.clients[2], "b1"),
        receipt(&history.clients[2], "a2"),
    );
    let repeated = history.clients[2].events[from].clone();
    history.clients[2].events.insert(to, repeated);
    assert_eq!(violated(&history), [Invariant::Resume]);
}

#[test]
fn i10_a_possible_resume_is_denied() {
    let mut run = correct();
    run.disconnect(2);
    let seen = Position::of(run.log.last().unwrap());
    run.record(
        2,
        ClientEvent::Join {
            resume: seen,
            has_token: true,
        },
    );
    run.welcome(2, run.log.len() as u64, false);
    run.live[2] = true;
    assert_eq!(violated(&finish(run)), [Invariant::Resume]);
}

#[test]
fn i11_the_participants_disagree_with_the_log() {
    let mut run = correct();
    run.roster(&[0, 2]);
    assert_eq!(violated(&finish(run)), [Invariant::Roster]);
}

#[test]
fn i12_a_participant_never_leaves() {
    let mut run = correct();
    run.leave(0);
    run.leave(1);
    assert_eq!(violated(&run.finish()), [Invariant::Leave]);
}

#[test]
fn i12_a_participant_leaves_twice() {
    let mut run = correct();
    run.leave(2);
    run.event(2, EventType::Leave, "", "");
    run.leave(0);
    run.leave(1);
    assert_eq!(violated(&run.finish()), [Invariant::Leave]);
}

#[test]
fn i12_a_resumed_participant_leaves_and_joins_again() {
    let mut run = correct();
    run.event(2, EventType::Leave, "", "");
    run.event(2, EventType::Join, "", "");
    assert_eq!(violated(&finish(run)), [Invariant::Leave]);
}

#[test]
fn i13_an_event_of_another_room_is_received() {
    let mut run = correct();
    let misdelivered = Arc::new(ServerMessage {
        room: "milk".into(),
        sequence: 1,
        epoch: 1,
        ..ServerMessage::default()
    });
    run.receive(2, &misdelivered);
    let mut history = finish(run);
    // The only known event of the log of that room.
    history.log.as_mut().unwrap().push(misdelivered);
    history.everybody_left = false;
    assert!(violated(&history).contains(&Invariant::Rooms));
}

#[test]
fn a_violation_names_its_invariant() {
    let history = {
        let mut history = finish(correct());
        change(&mut history, 4, |message| message.msg_stream.push('!'));
        history
    };
    let text = check(&history)[0].to_string();
    assert!(
        text.starts_with("I2, a delivered message was sent, once: tea, event 4"),
        "{text}"
    );
}
