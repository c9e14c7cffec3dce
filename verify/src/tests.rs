//! Histories in which just one thing is wrong: the checker says just that.

use std::sync::Arc;
use std::time::Duration;

use super::*;
use chitchat::proto::{EventType, Notice, NoticeCode, ServerMessage, Welcome};

const ROOM: &str = "tea";
const EPOCH: u64 = 7;

/// A run of a server without faults, unless a test makes one.
#[derive(Default)]
struct Run {
    history: History,
    log: Vec<Arc<ServerMessage>>,
    /// Who receives what happens, by the client's index.
    live: Vec<bool>,
    time: i64,
    now: u64,
}

impl Run {
    fn step(&mut self, client: usize, what: What) {
        self.now += 1;
        let at = Duration::from_millis(self.now);
        self.history.clients[client].steps.push(Step { at, what });
    }

    fn receive(&mut self, client: usize, message: &Arc<ServerMessage>) {
        self.step(client, What::Received(Arc::clone(message)));
    }

    /// Something happens in the room, and everybody who is there receives it.
    fn event(&mut self, client: usize, kind: EventType, text: &str, message_id: &str) -> Arc<ServerMessage> {
        self.time += 1;
        let time = self.time;
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
            timestamp: self.time,
            welcome: Some(welcome),
            ..ServerMessage::default()
        });
        self.receive(client, &message);
    }

    fn join(&mut self, name: &str) -> usize {
        let client = self.history.clients.len();
        self.history.clients.push(Client {
            name: name.into(),
            room: ROOM.into(),
            steps: Vec::new(),
        });
        self.step(
            client,
            What::Join {
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
        let what = What::Sent {
            message_id: message_id.into(),
            text: format!(" {message_id} says hello\n").into(),
            timestamp: 0,
        };
        self.step(client, what);
    }

    fn broadcast(&mut self, client: usize, message_id: &str) {
        let text = format!("{message_id} says hello");
        self.event(client, EventType::Message, &text, message_id);
    }

    fn say(&mut self, client: usize, message_id: &str) {
        self.send(client, message_id);
        self.broadcast(client, message_id);
    }

    fn lose(&mut self, client: usize) {
        self.live[client] = false;
        self.step(client, What::Ended { is_clean: false });
    }

    /// Comes back after its place, and receives what it missed.
    fn come_back(&mut self, client: usize) {
        let seen = self.history.clients[client]
            .steps
            .iter()
            .rev()
            .find_map(|step| match &step.what {
                What::Received(message) => Place::of(message),
                _ => None,
            })
            .unwrap();
        self.step(
            client,
            What::Join {
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
        self.step(client, What::Leave);
        self.live[client] = false;
        self.event(client, EventType::Leave, "", "");
        self.step(client, What::Ended { is_clean: true });
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
            place: Place {
                epoch: EPOCH,
                sequence: self.log.len() as u64,
            },
            participants,
        });
    }

    fn over(mut self) -> History {
        self.history.log = Some(self.log);
        self.history.is_over = true;
        self.history
    }
}

/// Two senders and an observer, one of whom loses the connection and comes back.
fn good() -> Run {
    let mut run = Run::default();
    let (ada, bob, eve) = (run.join("Ada"), run.join("Bob"), run.join("Eve"));
    run.say(ada, "a1");
    run.say(bob, "b1");
    run.lose(eve);
    run.say(ada, "a2");
    run.say(bob, "b2");
    run.come_back(eve);
    run.roster(&[eve, bob, ada]);
    run.say(ada, "a3");
    run
}

fn end(mut run: Run) -> History {
    for client in 0..3 {
        run.leave(client);
    }
    run.roster(&[]);
    run.over()
}

fn broken(history: &History) -> Vec<Invariant> {
    let mut broken: Vec<_> = check(history)
        .into_iter()
        .map(|violation| violation.invariant)
        .collect();
    broken.sort_unstable();
    broken.dedup();
    broken
}

/// The index of the step with which a client received a message.
fn receipt(client: &Client, message_id: &str) -> usize {
    client
        .steps
        .iter()
        .position(|step| matches!(&step.what, What::Received(message) if message.message_id == message_id))
        .unwrap()
}

/// Changes an event everywhere.
fn change(history: &mut History, sequence: u64, change: impl Fn(&mut ServerMessage)) {
    let receipts = history.clients.iter_mut().flat_map(|client| &mut client.steps);
    let received = receipts.filter_map(|step| match &mut step.what {
        What::Received(message) => Some(message),
        _ => None,
    });
    for message in received.chain(history.log.iter_mut().flatten()) {
        if message.sequence == sequence {
            change(Arc::make_mut(message));
        }
    }
}

#[test]
fn a_good_history_has_nothing_wrong() {
    assert_eq!(check(&end(good())), []);
}

#[test]
fn i1_an_event_that_a_member_did_not_receive() {
    let mut history = end(good());
    let at = receipt(&history.clients[2], "b1");
    // The last before the connection was lost: then the resume has a hole, unless it is the one before.
    history.clients[2].steps.remove(at - 1);
    assert_eq!(broken(&history), [Invariant::Validity]);
}

#[test]
fn i1_an_event_missing_before_the_own_leave() {
    let mut run = good();
    run.live[2] = false;
    run.say(0, "a4");
    assert_eq!(broken(&end(run)), [Invariant::Validity]);
}

#[test]
fn i2_a_text_that_changed() {
    let mut history = end(good());
    change(&mut history, 4, |message| message.msg_stream.push('!'));
    assert_eq!(broken(&history), [Invariant::Integrity]);
}

#[test]
fn i2_a_message_that_nobody_sent() {
    let mut run = good();
    run.broadcast(0, "a9");
    assert_eq!(broken(&end(run)), [Invariant::Integrity]);
}

#[test]
fn i2_a_message_that_is_there_twice() {
    let mut run = good();
    run.say(0, "a1");
    assert_eq!(broken(&end(run)), [Invariant::Integrity]);
}

#[test]
fn i3_another_event_at_the_same_place() {
    let mut history = end(good());
    let at = receipt(&history.clients[2], "a2");
    let What::Received(message) = &mut history.clients[2].steps[at].what else {
        panic!("it is a receipt");
    };
    Arc::make_mut(message).traceparent = "another".into();
    assert_eq!(broken(&history), [Invariant::Agreement]);
}

#[test]
fn i4_two_events_in_another_order() {
    let mut history = end(good());
    let at = receipt(&history.clients[0], "b1");
    let steps = &mut history.clients[0].steps;
    let (first, second) = (steps[at - 1].what.clone(), steps[at].what.clone());
    (steps[at - 1].what, steps[at].what) = (second, first);
    assert_eq!(broken(&history), [Invariant::Order]);
}

#[test]
fn i4_a_number_that_is_left_out() {
    let mut history = end(good());
    // The last event, which only the log has: nobody is there any more to receive it.
    change(&mut history, 11, |message| message.sequence = 12);
    history.rosters.pop();
    assert_eq!(broken(&history), [Invariant::Order]);
}

#[test]
fn i5_a_senders_messages_in_another_order() {
    let mut run = good();
    run.send(0, "a4");
    run.send(0, "a5");
    run.broadcast(0, "a5");
    run.broadcast(0, "a4");
    assert_eq!(broken(&end(run)), [Invariant::Fifo]);
}

#[test]
fn i6_earlier_than_what_its_sender_had_seen() {
    let mut run = good();
    let notice = Arc::new(ServerMessage {
        room: ROOM.into(),
        timestamp: run.time + 1,
        ..ServerMessage::default()
    });
    run.receive(0, &notice);
    run.say(0, "a4");
    assert_eq!(broken(&end(run)), [Invariant::Causality]);
}

#[test]
fn i7_before_what_had_been_received_when_it_was_sent() {
    let mut run = good();
    run.live[1] = false;
    run.send(0, "a4");
    // It stands behind, and was received before the other was sent, which its sender does not know.
    let early = Duration::from_millis(run.now);
    run.now += 1_000;
    run.say(1, "b3");
    run.broadcast(0, "a4");
    let mut history = {
        run.lose(1);
        run.come_back(1);
        end(run)
    };
    let at = receipt(&history.clients[0], "a4");
    history.clients[0].steps[at].at = early;
    assert_eq!(broken(&history), [Invariant::RealTime]);
}

#[test]
fn i8_a_time_that_does_not_increase() {
    let mut run = good();
    run.leave(2);
    run.time -= 1;
    run.leave(0);
    run.leave(1);
    assert_eq!(broken(&run.over()), [Invariant::Lamport]);
}

#[test]
fn i8_an_announcement_of_another_time() {
    let mut history = end(good());
    change(&mut history, 2, |message| message.msg_stream.push('0'));
    assert_eq!(broken(&history), [Invariant::Lamport]);
}

#[test]
fn i9_an_event_that_is_not_in_the_log_at_the_end() {
    let mut history = end(good());
    let log = history.log.as_mut().unwrap();
    log.retain(|message| message.message_id != "a3");
    assert_eq!(broken(&history), [Invariant::Durability]);
}

#[test]
fn i9_a_log_that_ends_before_what_was_received() {
    let mut run = good();
    run.lose(2);
    let (before, kept) = (run.log.clone(), run.log.len() - 1);
    let seen = Place::of(before.last().unwrap());
    run.log.truncate(kept);
    run.step(
        2,
        What::Join {
            resume: seen,
            has_token: true,
        },
    );
    run.welcome(2, kept as u64, false);
    run.log = before;
    run.history.is_over = false;
    assert_eq!(broken(&run.history), [Invariant::Durability]);
}

#[test]
fn i9_a_log_that_began_anew() {
    let mut history = end(good());
    let log = history.log.as_mut().unwrap();
    let anew = ServerMessage {
        epoch: EPOCH + 1,
        ..(*log[0]).clone()
    };
    log.push(Arc::new(anew));
    history.is_over = false;
    history.rosters.clear();
    // The same JOIN at the begin of a second log: somebody joined who had left.
    assert_eq!(broken(&history), [Invariant::Durability, Invariant::Leave]);
}

#[test]
fn i9_an_acknowledgement_of_what_is_not_there() {
    let mut run = good();
    let notice = Arc::new(ServerMessage {
        room: ROOM.into(),
        epoch: EPOCH,
        message_id: "a1".into(),
        notice: Some(Notice {
            code: NoticeCode::MessageRepeated.into(),
            retry_delay: None,
            original_sequence: 5,
        }),
        ..ServerMessage::default()
    });
    run.receive(0, &notice);
    assert_eq!(broken(&end(run)), [Invariant::Durability]);
}

#[test]
fn i10_a_resume_with_a_hole() {
    let mut history = end(good());
    let at = receipt(&history.clients[2], "a2");
    history.clients[2].steps.remove(at);
    assert_eq!(broken(&history), [Invariant::Resume]);
}

#[test]
fn i10_a_resume_with_a_repeat() {
    let mut history = end(good());
    let (from, to) = (
        receipt(&history.clients[2], "b1"),
        receipt(&history.clients[2], "a2"),
    );
    let repeated = history.clients[2].steps[from].clone();
    history.clients[2].steps.insert(to, repeated);
    assert_eq!(broken(&history), [Invariant::Resume]);
}

#[test]
fn i10_a_resume_that_was_possible_and_is_denied() {
    let mut run = good();
    run.lose(2);
    let seen = Place::of(run.log.last().unwrap());
    run.step(
        2,
        What::Join {
            resume: seen,
            has_token: true,
        },
    );
    run.welcome(2, run.log.len() as u64, false);
    run.live[2] = true;
    assert_eq!(broken(&end(run)), [Invariant::Resume]);
}

#[test]
fn i11_a_roster_that_is_not_what_the_log_says() {
    let mut run = good();
    run.roster(&[0, 2]);
    assert_eq!(broken(&end(run)), [Invariant::Roster]);
}

#[test]
fn i12_somebody_who_never_left() {
    let mut run = good();
    run.leave(0);
    run.leave(1);
    assert_eq!(broken(&run.over()), [Invariant::Leave]);
}

#[test]
fn i12_a_second_leave() {
    let mut run = good();
    run.leave(2);
    run.event(2, EventType::Leave, "", "");
    run.leave(0);
    run.leave(1);
    assert_eq!(broken(&run.over()), [Invariant::Leave]);
}

#[test]
fn i12_leaving_and_joining_again_although_the_stay_went_on() {
    let mut run = good();
    run.event(2, EventType::Leave, "", "");
    run.event(2, EventType::Join, "", "");
    assert_eq!(broken(&end(run)), [Invariant::Leave]);
}

#[test]
fn i13_an_event_of_another_room() {
    let mut run = good();
    let stranger = Arc::new(ServerMessage {
        room: "milk".into(),
        sequence: 1,
        epoch: 1,
        ..ServerMessage::default()
    });
    run.receive(2, &stranger);
    let mut history = end(run);
    // It is a log of its own, of which nothing else is known.
    history.log.as_mut().unwrap().push(stranger);
    history.is_over = false;
    assert!(broken(&history).contains(&Invariant::Rooms));
}

#[test]
fn every_invariant_says_what_it_is() {
    let history = {
        let mut history = end(good());
        change(&mut history, 4, |message| message.msg_stream.push('!'));
        history
    };
    let told = check(&history)[0].to_string();
    assert!(
        told.starts_with("I2, what is delivered was sent, once: tea, event 4"),
        "{told}"
    );
}
