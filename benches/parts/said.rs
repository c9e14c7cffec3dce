//! What the benches say: rooms with people in them, and texts of 100 bytes.

use bytes::{Bytes, BytesMut};
use chitchat::domain::{
    Command, Epoch, Event, Join, Message, Name, Outcome, ParticipantId, Room, RoomName, Rules, Say, Text,
    Timestamp, WallTime,
};
use chitchat::hub::frame;

/// How long a text is, in bytes: as long as in `chitchat bench`.
pub(crate) const TEXT_LEN: usize = 100;

/// When everything happens.
pub(crate) const NOW: WallTime = WallTime::from_millis(1_795_000_000_000);

/// The room of all benches.
pub(crate) fn room_name() -> RoomName {
    RoomName::try_from("lobby").expect("the name is one")
}

/// A room with `people` in it, whose ids are 1, 2, ….
pub(crate) fn room_of(people: i32) -> Room {
    let mut room = Room::new(Rules::default());
    for id in 1..=people {
        accepted(&mut room, Command::Join(join(id)));
    }
    room
}

/// A JOIN of a participant who chooses the id.
pub(crate) fn join(id: i32) -> Join {
    Join {
        id: ParticipantId::from_wire(id),
        name: Name::try_from(format!("person {id}").as_str()).expect("the name is one"),
        timestamp: Timestamp(0),
        is_resumable: true,
        trace: None,
    }
}

/// A text, as a participant says it.
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

/// What becomes of a command that nobody could refuse.
pub(crate) fn accepted(room: &mut Room, command: Command) -> Event {
    match room.apply(command, NOW) {
        Outcome::Accepted(event) => event,
        other => unreachable!("a sound command was answered with {other:?}"),
    }
}

/// `count` texts of one participant, as the events of a log that begins with a JOIN.
pub(crate) fn events(count: usize) -> Vec<Event> {
    let mut room = room_of(1);
    (0..count)
        .map(|_| accepted(&mut room, Command::Say(say(1))))
        .collect()
}

/// The same, framed for the wire: all of it, and how long each is.
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
