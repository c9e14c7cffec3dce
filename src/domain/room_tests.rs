//! Properties of the fold for arbitrary commands, and tests of single rules.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::super::{MessageId, Name, Text, TextError, Timestamp};
use super::*;

const MAX_AHEAD: i64 = 1_000;
const MAX_PARTICIPANTS: usize = 4;

fn rules() -> Rules {
    Rules {
        max_message_chars: 8,
        max_clock_ahead: MAX_AHEAD,
        max_participants: MAX_PARTICIPANTS,
        allow_duplicate_names: false,
    }
}

fn timestamps() -> impl Strategy<Value = Timestamp> {
    prop_oneof![8 => 0..2_000_i64, 1 => any::<i64>(), 1 => Just(i64::MAX)].prop_map(Timestamp)
}

fn ids() -> impl Strategy<Value = ParticipantId> {
    // Small ids, which clients choose here, and the first that the room assigns.
    prop_oneof![1..5_i32, 1_000_001..1_000_004_i32].prop_map(|id| ParticipantId::from_wire(id).unwrap())
}

fn joins() -> impl Strategy<Value = Command> {
    (prop::option::of(ids()), "[a-cA-C]", timestamps()).prop_map(|(id, name, timestamp)| {
        Command::Join(Join {
            id,
            name: Name::try_from(name.as_str()).unwrap(),
            timestamp,
            is_resumable: false,
            trace: None,
        })
    })
}

fn says() -> impl Strategy<Value = Command> {
    (
        ids(),
        timestamps(),
        "[xy\u{1b}]{0,10}",
        prop::option::of("[m ]{0,3}"),
    )
        .prop_map(|(participant, timestamp, text, id)| {
            let message_id = id.map(|id| MessageId::try_from(id.as_str()));
            Command::Say(Say {
                participant,
                message: Message {
                    timestamp,
                    text: Text::parse(&text, 8),
                    message_id,
                    trace: None,
                },
            })
        })
}

fn leaves() -> impl Strategy<Value = Command> {
    (ids(), prop::option::of(timestamps())).prop_map(|(participant, timestamp)| {
        Command::Leave(Leave {
            participant,
            timestamp,
            trace: None,
        })
    })
}

fn conversations() -> impl Strategy<Value = Vec<Command>> {
    prop::collection::vec(prop_oneof![3 => joins(), 6 => says(), 2 => leaves()], 0..120)
}

fn timestamp_of(command: &Command) -> Option<i64> {
    match command {
        Command::Join(join) => Some(join.timestamp.0),
        Command::Say(say) => Some(say.message.timestamp.0),
        Command::Post(post) => Some(post.message.timestamp.0),
        Command::Leave(leave) => leave.timestamp.map(|timestamp| timestamp.0),
    }
}

proptest! {
    #[test]
    fn times_increase_sequences_are_dense_and_the_roster_follows_the_log(commands in conversations()) {
        let mut room = Room::new(rules());
        let mut roster: BTreeMap<ParticipantId, Name> = BTreeMap::new();
        let mut said: BTreeMap<MessageId, Sequence> = BTreeMap::new();
        for command in commands {
            let (time, last) = (room.time(), room.last());
            let outcome = room.apply(command.clone(), WallTime::default());
            match outcome {
                Outcome::Accepted(event) => {
                    prop_assert_eq!(event.sequence.get(), last.get() + 1);
                    prop_assert!(event.time > time);
                    if let Some(claimed) = timestamp_of(&command) {
                        prop_assert!(event.time.get() > claimed, "an event is later than everything its sender has seen");
                    }
                    match &event.kind {
                        EventKind::Join => {
                            prop_assert_eq!(roster.insert(event.participant, event.name.clone()), None);
                        }
                        EventKind::Message { message_id, .. } => {
                            prop_assert_eq!(roster.get(&event.participant), Some(&event.name));
                            if let Some(id) = message_id {
                                prop_assert_eq!(said.insert(id.clone(), event.sequence), None);
                            }
                        }
                        EventKind::Leave => {
                            prop_assert_eq!(roster.remove(&event.participant), Some(event.name.clone()));
                        }
                    }
                }
                Outcome::Repeated { original, time: receipt } => {
                    let Command::Say(Say { message: Message { message_id: Some(Ok(id)), .. }, .. }) = &command else {
                        return Err(TestCaseError::fail("only a message with an id can be repeated"));
                    };
                    prop_assert_eq!(said.get(id), Some(&original));
                    prop_assert!(receipt > time);
                    prop_assert_eq!(room.last(), last);
                }
                Outcome::Rejected { rejection, time: receipt } => {
                    let has_ticked =
                        matches!(rejection, Rejection::Text(_) | Rejection::MessageId(_) | Rejection::MessageIdTaken { .. });
                    prop_assert_eq!(receipt > time, has_ticked, "{:?}", rejection);
                    prop_assert_eq!(receipt, room.time());
                    prop_assert_eq!(room.last(), last);
                }
            }
            let now: BTreeMap<_, _> = room.participants().iter().map(|(id, participant)| (*id, participant.name.clone())).collect();
            prop_assert_eq!(&now, &roster);
            prop_assert!(roster.len() <= MAX_PARTICIPANTS);
        }
    }

    #[test]
    fn the_same_commands_yield_the_same_outcomes(commands in conversations()) {
        let (mut one, mut other) = (Room::new(rules()), Room::new(rules()));
        for command in commands {
            prop_assert_eq!(one.apply(command.clone(), WallTime::default()), other.apply(command, WallTime::default()));
        }
    }
}

fn join(name: &str, id: i32) -> Command {
    let name = Name::try_from(name).unwrap();
    Command::Join(Join {
        id: ParticipantId::from_wire(id),
        name,
        timestamp: Timestamp(0),
        is_resumable: false,
        trace: None,
    })
}

fn message(text: &str, message_id: Option<&str>) -> Message {
    Message {
        timestamp: Timestamp(0),
        text: Text::parse(text, 8),
        message_id: message_id.map(MessageId::try_from),
        trace: None,
    }
}

fn post(name: &str, message: Message) -> Command {
    let name = Name::try_from(name).unwrap();
    Command::Post(Post { name, message })
}

fn accepted(room: &mut Room, command: Command) -> Event {
    match room.apply(command, WallTime::default()) {
        Outcome::Accepted(event) => event,
        other => panic!("not accepted: {other:?}"),
    }
}

fn rejection(room: &mut Room, command: Command) -> Rejection {
    match room.apply(command, WallTime::default()) {
        Outcome::Rejected { rejection, .. } => rejection,
        other => panic!("not rejected: {other:?}"),
    }
}

#[test]
fn a_name_belongs_to_one_participant_at_a_time() {
    let mut room = Room::new(rules());
    let ada = accepted(&mut room, join("Ada", 1)).participant;
    assert!(matches!(
        rejection(&mut room, join("ADA", 2)),
        Rejection::NameTaken(_)
    ));
    assert!(matches!(
        rejection(&mut room, join("Bob", 1)),
        Rejection::IdTaken(_)
    ));
    accepted(&mut room, Command::Leave(Leave::by_server(ada)));
    accepted(&mut room, join("ADA", 2));
}

#[test]
fn nobody_can_have_the_servers_name() {
    for allow_duplicate_names in [false, true] {
        let mut room = Room::new(Rules {
            allow_duplicate_names,
            ..rules()
        });
        for name in ["Server", "SERVER", "Sеrver"] {
            assert!(
                matches!(rejection(&mut room, join(name, 1)), Rejection::NameTaken(_)),
                "{name}"
            );
        }
        accepted(&mut room, join("Servers", 1));
    }
}

#[test]
fn a_repeated_post_is_answered_even_if_its_sender_has_joined_since() {
    let mut room = Room::new(rules());
    let post = |text| post("Ada", message(text, Some("m1")));
    accepted(&mut room, post("x"));
    accepted(&mut room, join("Ada", 1));
    match room.apply(post("x"), WallTime::default()) {
        Outcome::Repeated { original, .. } => assert_eq!(original.get(), 1),
        other => panic!("{other:?}"),
    }
    assert!(matches!(
        rejection(&mut room, post("y")),
        Rejection::MessageIdTaken { .. }
    ));
}

#[test]
fn a_post_has_a_sender_id_of_its_own() {
    let mut room = Room::new(rules());
    accepted(&mut room, join("Ada", 1));
    assert!(matches!(
        rejection(&mut room, post("ada", message("hi", None))),
        Rejection::NameTaken(_)
    ));
    let event = accepted(&mut room, post("bot", message("hi", None)));
    assert_ne!(event.participant.get(), 1);
    assert_eq!(room.participants().len(), 1);
}

#[test]
fn duplicate_names_are_accepted_if_allowed() {
    let mut room = Room::new(Rules {
        allow_duplicate_names: true,
        ..rules()
    });
    for id in 1..=2 {
        accepted(&mut room, join("Ada", id));
    }
}

#[test]
fn a_full_room_rejects_a_join() {
    let mut room = Room::new(rules());
    for (id, name) in [(1, "a"), (2, "b"), (3, "c"), (4, "d")] {
        accepted(&mut room, join(name, id));
    }
    assert_eq!(rejection(&mut room, join("e", 5)), Rejection::RoomFull(4));
}

#[test]
fn a_rejected_text_ticks_the_clock_and_has_no_sequence() {
    let mut room = Room::new(rules());
    let participant = accepted(&mut room, join("Ada", 1)).participant;
    let message = Message {
        timestamp: Timestamp(7),
        ..message("far too long", None)
    };
    let outcome = room.apply(Command::Say(Say { participant, message }), WallTime::default());
    let Outcome::Rejected {
        rejection: Rejection::Text(TextError::TooLong { chars: 12, limit: 8 }),
        time,
    } = outcome
    else {
        panic!("{outcome:?}");
    };
    assert_eq!((time.get(), room.last().get()), (8, 1));
}

proptest! {
    #[test]
    fn a_replayed_log_yields_the_room_that_wrote_it(commands in conversations(), cut in 0..120_usize) {
        let mut room = Room::new(rules());
        let mut log = Vec::new();
        let mut snapshot = room.snapshot();
        for (index, command) in commands.into_iter().enumerate() {
            if let Outcome::Accepted(event) = room.apply(command, WallTime::default()) {
                log.push(event);
            }
            if index == cut {
                snapshot = room.snapshot();
            }
        }
        // From the snapshot and the log, or from the log alone: the same roster, position and deduplication window.
        let mut restored = Room::restore(rules(), snapshot.clone());
        let mut replayed = Room::new(rules());
        for event in &log {
            if event.sequence <= snapshot.last {
                restored.remember_message_id(event);
            } else {
                prop_assert_eq!(restored.replay(event, false), Ok(()));
            }
            prop_assert_eq!(replayed.replay(event, false), Ok(()));
        }
        for other in [&restored, &replayed] {
            prop_assert_eq!(other.participants(), room.participants());
            prop_assert_eq!(other.last(), room.last());
            let has_messages = log.iter().any(|event| matches!(event.kind, EventKind::Message { .. }));
            prop_assert_eq!((room.has_messages(), other.has_messages()), (has_messages, has_messages));
            // Rejected messages tick the clock and are not in the log.
            prop_assert!(other.time() <= room.time());
            for event in &log {
                if let EventKind::Message { text, message_id: Some(id) } = &event.kind {
                    prop_assert_eq!(other.dedup.get(id, text), Some(Seen::SameText(event.sequence)));
                }
            }
        }
    }

    #[test]
    fn a_log_with_a_gap_cannot_be_replayed(commands in conversations(), gap in 0..20_usize) {
        let mut room = Room::new(rules());
        let mut log = Vec::new();
        for command in commands {
            if let Outcome::Accepted(event) = room.apply(command, WallTime::default()) {
                log.push(event);
            }
        }
        prop_assume!(gap + 1 < log.len());
        log.remove(gap);
        let mut replayed = Room::new(rules());
        let error = log.iter().find_map(|event| replayed.replay(event, false).err());
        let (after, next) = (Sequence::new(gap as u64), Sequence::new(gap as u64 + 2));
        prop_assert_eq!(error, Some(ReplayError::Gap { after, next }));
    }
}
