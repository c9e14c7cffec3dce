//! The fixtures of all benchmarks: rooms with participants, and messages of 100 bytes.

use bytes::{Bytes, BytesMut};
use chitchat::domain::{
    Command, Epoch, Event, Join, Message, Name, Outcome, ParticipantId, Room, RoomName, Rules, Say, Text,
    Timestamp, WallTime,
};
use chitchat::hub::frame;

/// The length of a text, in bytes, as in the load generator.
pub(crate) const TEXT_LEN: usize = 100;

/// The wall time of all events.
pub(crate) const NOW: WallTime = WallTime::from_millis(1_795_000_000_000);

pub(crate) fn room_name() -> RoomName {
    RoomName::try_from("lobby").expect("the name is valid")
}

/// A room with participants whose ids are 1 to `participants`.
pub(crate) fn room_of(participants: i32) -> Room {
    let mut room = Room::new(Rules::default());
    for id in 1..=participants {
        accepted(&mut room, Command::Join(join(id)));
    }
    room
}

/// The JOIN of a participant who chooses this id.
pub(crate) fn join(id: i32) -> Join {
    Join {
        id: ParticipantId::from_wire(id),
        name: Name::try_from(format!("person {id}").as_str()).expect("the name is valid"),
        timestamp: Timestamp(0),
        is_resumable: true,
        trace: None,
    }
}

/// A message of this participant.
pub(crate) fn say(participant: i32) -> Say {
    Say {
        participant: ParticipantId::from_wire(participant).expect("no participant has the id 0"),
        message: Message {
            timestamp: Timestamp(0),
            text: Text::parse(&"x".repeat(TEXT_LEN), TEXT_LEN),
            message_id: None,
            trace: None,
        },
    }
}

/// Applies a command that the room must accept, and returns its event.
pub(crate) fn accepted(room: &mut Room, command: Command) -> Event {
    match room.apply(command, NOW) {
        Outcome::Accepted(event) => event,
        other => unreachable!("a valid command was answered with {other:?}"),
    }
}

/// `count` messages of one participant, as they follow its JOIN in a log.
pub(crate) fn events(count: usize) -> Vec<Event> {
    let mut room = room_of(1);
    (0..count)
        .map(|_| accepted(&mut room, Command::Say(say(1))))
        .collect()
}

/// The same events framed, and the length of each frame.
pub(crate) fn frames(count: usize) -> (Bytes, Vec<usize>) {
    let (room, epoch) = (room_name(), Epoch::created_at(NOW));
    let mut bytes = BytesMut::new();
    let lengths = events(count)
        .iter()
        .map(|event| {
            let before = bytes.len();
            frame::write_event(&mut bytes, &room, epoch, event);
            bytes.len() - before
        })
        .collect();
    (bytes.freeze(), lengths)
}
