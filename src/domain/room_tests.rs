//! What holds for every sequence of commands.

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
    // Small ids that the clients of this test choose, and the first that the room assigns.
    prop_oneof![1..5_i32, 1_000_001..1_000_004_i32].prop_map(|id| ParticipantId::chosen(id).unwrap())
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
        .prop_map(|(speaker, timestamp, text, id)| {
            let message_id = id.map(|id| MessageId::try_from(id.as_str()));
            Command::Say(Say {
                speaker,
                timestamp,
                text: Text::parse(&text, 8),
                message_id,
                trace: None,
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
        Command::Say(say) => Some(say.timestamp.0),
        Command::Post(post) => Some(post.timestamp.0),
        Command::Leave(leave) => leave.timestamp.map(|timestamp| timestamp.0),
    }
}

proptest! {
    #[test]
    fn times_increase_sequences_are_dense_and_the_roster_is_the_fold(commands in conversations()) {
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
                        prop_assert!(event.time.get() > claimed, "a reply is later than what its sender had seen");
                    }
                    match &event.kind {
                        EventKind::Joined => {
                            prop_assert_eq!(roster.insert(event.participant, event.name.clone()), None);
                        }
                        EventKind::Said { message_id, .. } => {
                            prop_assert_eq!(roster.get(&event.participant), Some(&event.name));
                            if let Some(id) = message_id {
                                prop_assert_eq!(said.insert(id.clone(), event.sequence), None);
                            }
                        }
                        EventKind::Left => {
                            prop_assert_eq!(roster.remove(&event.participant), Some(event.name.clone()));
                        }
                    }
                }
                Outcome::Repeated { original, time: receipt } => {
                    let Command::Say(Say { message_id: Some(Ok(id)), .. }) = &command else {
                        return Err(TestCaseError::fail("only a message with an id can be repeated"));
                    };
                    prop_assert_eq!(said.get(id), Some(&original));
                    prop_assert!(receipt > time);
                    prop_assert_eq!(room.last(), last);
                }
                Outcome::Refused { refusal, time: receipt } => {
                    let counted =
                        matches!(refusal, Refusal::Text(_) | Refusal::MessageId(_) | Refusal::MessageIdTaken { .. });
                    prop_assert_eq!(receipt > time, counted, "{:?}", refusal);
                    prop_assert_eq!(receipt, room.time());
                    prop_assert_eq!(room.last(), last);
                }
            }
            let now: BTreeMap<_, _> = room.participants().iter().map(|(id, who)| (*id, who.name.clone())).collect();
            prop_assert_eq!(&now, &roster);
            prop_assert!(roster.len() <= MAX_PARTICIPANTS);
        }
    }

    #[test]
    fn the_same_commands_make_the_same_room(commands in conversations()) {
        let (mut one, mut other) = (Room::new(rules()), Room::new(rules()));
        for command in commands {
            prop_assert_eq!(one.apply(command.clone(), WallTime::default()), other.apply(command, WallTime::default()));
        }
    }
}

fn join(name: &str, id: i32) -> Command {
    let name = Name::try_from(name).unwrap();
    Command::Join(Join {
        id: ParticipantId::chosen(id),
        name,
        timestamp: Timestamp(0),
        is_resumable: false,
        trace: None,
    })
}

fn refusal(outcome: Outcome) -> Refusal {
    match outcome {
        Outcome::Refused { refusal, .. } => refusal,
        other => panic!("not refused: {other:?}"),
    }
}

#[test]
fn a_name_is_held_by_one_at_a_time() {
    let mut room = Room::new(rules());
    assert!(matches!(
        room.apply(join("Ada", 1), WallTime::default()),
        Outcome::Accepted(_)
    ));
    assert!(matches!(
        refusal(room.apply(join("ADA", 2), WallTime::default())),
        Refusal::NameTaken(_)
    ));
    assert!(matches!(
        refusal(room.apply(join("Bob", 1), WallTime::default())),
        Refusal::IdTaken(_)
    ));
    let leave = Leave {
        participant: ParticipantId::chosen(1).unwrap(),
        timestamp: None,
        trace: None,
    };
    assert!(matches!(
        room.apply(Command::Leave(leave), WallTime::default()),
        Outcome::Accepted(_)
    ));
    assert!(matches!(
        room.apply(join("ADA", 2), WallTime::default()),
        Outcome::Accepted(_)
    ));
}

#[test]
fn nobody_speaks_as_the_server() {
    for allow_duplicate_names in [false, true] {
        nobody_speaks_as_the_server_in(Room::new(Rules {
            allow_duplicate_names,
            ..rules()
        }));
    }
}

fn nobody_speaks_as_the_server_in(mut room: Room) {
    for name in ["Server", "SERVER", "Sеrver"] {
        assert!(
            matches!(
                refusal(room.apply(join(name, 1), WallTime::default())),
                Refusal::NameTaken(_)
            ),
            "{name}"
        );
    }
    assert!(matches!(
        room.apply(join("Servers", 1), WallTime::default()),
        Outcome::Accepted(_)
    ));
}

#[test]
fn a_repeat_is_answered_though_its_sender_is_in_the_room_meanwhile() {
    let mut room = Room::new(rules());
    let post = |text: &str| {
        Command::Post(Post {
            name: Name::try_from("Ada").unwrap(),
            timestamp: Timestamp(0),
            text: Text::parse(text, 8),
            message_id: Some(MessageId::try_from("m1")),
            trace: None,
        })
    };
    let mut apply = |command| room.apply(command, WallTime::default());
    assert!(matches!(apply(post("x")), Outcome::Accepted(_)));
    assert!(matches!(apply(join("Ada", 1)), Outcome::Accepted(_)));
    match apply(post("x")) {
        Outcome::Repeated { original, .. } => assert_eq!(original.get(), 1),
        other => panic!("{other:?}"),
    }
    assert!(matches!(
        refusal(apply(post("y"))),
        Refusal::MessageIdTaken { .. }
    ));
}

#[test]
fn names_may_repeat_where_that_is_allowed() {
    let mut room = Room::new(Rules {
        allow_duplicate_names: true,
        ..rules()
    });
    for id in 1..=2 {
        assert!(matches!(
            room.apply(join("Ada", id), WallTime::default()),
            Outcome::Accepted(_)
        ));
    }
}

#[test]
fn a_room_takes_as_many_as_the_rules_say() {
    let mut room = Room::new(rules());
    for (id, name) in [(1, "a"), (2, "b"), (3, "c"), (4, "d")] {
        assert!(matches!(
            room.apply(join(name, id), WallTime::default()),
            Outcome::Accepted(_)
        ));
    }
    assert_eq!(
        refusal(room.apply(join("e", 5), WallTime::default())),
        Refusal::RoomFull(4)
    );
}

#[test]
fn a_refused_text_ticks_the_clock_and_takes_no_place() {
    let mut room = Room::new(rules());
    room.apply(join("Ada", 1), WallTime::default());
    let say = Say {
        speaker: ParticipantId::chosen(1).unwrap(),
        timestamp: Timestamp(7),
        text: Text::parse("far too long", 8),
        message_id: None,
        trace: None,
    };
    let outcome = room.apply(Command::Say(say), WallTime::default());
    let Outcome::Refused {
        refusal: Refusal::Text(TextError::TooLong { chars: 12, limit: 8 }),
        time,
    } = outcome
    else {
        panic!("{outcome:?}");
    };
    assert_eq!((time.get(), room.last().get()), (8, 1));
}

proptest! {
    #[test]
    fn a_replayed_log_is_the_room_it_came_from(commands in conversations(), cut in 0..120_usize) {
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
        // From the snapshot and the log, or from the log alone: the same participants, place and memory.
        let mut restored = Room::restore(rules(), snapshot.clone());
        let mut replayed = Room::new(rules());
        for event in &log {
            if event.sequence <= snapshot.last {
                restored.recall(event);
            } else {
                prop_assert_eq!(restored.replay(event, false), Ok(()));
            }
            prop_assert_eq!(replayed.replay(event, false), Ok(()));
        }
        for other in [&restored, &replayed] {
            prop_assert_eq!(other.participants(), room.participants());
            prop_assert_eq!(other.last(), room.last());
            // Refused messages tick the clock and are not in the log.
            prop_assert!(other.time() <= room.time());
            for event in &log {
                if let EventKind::Said { text, message_id: Some(id) } = &event.kind {
                    prop_assert_eq!(other.message_ids.find(id, text), Some(Known::Same(event.sequence)));
                }
            }
        }
    }

    #[test]
    fn a_log_with_a_hole_is_not_followed(commands in conversations(), hole in 0..20_usize) {
        let mut room = Room::new(rules());
        let mut log = Vec::new();
        for command in commands {
            if let Outcome::Accepted(event) = room.apply(command, WallTime::default()) {
                log.push(event);
            }
        }
        prop_assume!(hole + 1 < log.len());
        log.remove(hole);
        let mut replayed = Room::new(rules());
        let error = log.iter().find_map(|event| replayed.replay(event, false).err());
        let (after, next) = (Sequence::new(hole as u64), Sequence::new(hole as u64 + 2));
        prop_assert_eq!(error, Some(ReplayError::Hole { after, next }));
    }
}

#[test]
fn a_post_from_outside_has_a_sender_of_its_own() {
    let mut room = Room::new(rules());
    room.apply(join("Ada", 1), WallTime::default());
    let post = |name: &str| {
        let name = Name::try_from(name).unwrap();
        Command::Post(Post {
            name,
            timestamp: Timestamp(0),
            text: Text::parse("hi", 8),
            message_id: None,
            trace: None,
        })
    };
    assert!(matches!(
        refusal(room.apply(post("ada"), WallTime::default())),
        Refusal::NameTaken(_)
    ));
    let Outcome::Accepted(event) = room.apply(post("bot"), WallTime::default()) else {
        panic!("not accepted")
    };
    assert_ne!(event.participant.get(), 1);
    assert_eq!(room.participants().len(), 1);
}
