//! The fixtures of all benchmarks: rooms with participants, and messages of 100 bytes.

use bytes::{Bytes, BytesMut};
use chitchat::domain::{
    Attachment, Command, Epoch, Event, Join, Message, Name, Origin, Outcome, ParticipantId, Room, RoomName,
    Rules, Say, Text, Timestamp, WallTime,
};
use chitchat::hub::frame;

/// The length of a text, in bytes, as in the load generator.
pub(crate) const TEXT_LEN: usize = 100;

/// The wall time of all events.
pub(crate) const NOW: WallTime = WallTime::from_millis(1_795_000_000_000);

pub(crate) fn room_name() -> RoomName {
    RoomName::try_from("lobby").expect("the name is valid")
}

/// A room with participants whose ids are 1 to `participants`, and the attachment of the last.
pub(crate) fn room_of(participants: i32) -> (Room, Attachment) {
    let mut room = Room::new(Rules {
        max_participants: usize::MAX,
        ..Rules::default()
    });
    let mut last = None;
    for id in 1..=participants {
        last = Some(joined(&mut room, join(id)));
    }
    (room, last.expect("the room has participants"))
}

/// The JOIN of a participant who chooses this id.
pub(crate) fn join(id: i32) -> Join {
    Join {
        session: None,
        id: ParticipantId::from_wire(id),
        name: Name::try_from(format!("person {id}").as_str()).expect("the name is valid"),
        timestamp: Timestamp(0),
        owner: None,
        origin: Origin::default(),
        is_resumable: true,
        trace: None,
    }
}

/// A message from this attachment.
pub(crate) fn say(attachment: Attachment) -> Say {
    Say {
        attachment,
        message: Message {
            timestamp: Timestamp(0),
            text: Text::parse(&"x".repeat(TEXT_LEN), TEXT_LEN),
            message_id: None,
            trace: None,
        },
    }
}

/// Applies a JOIN that the room must accept, and returns its attachment.
pub(crate) fn joined(room: &mut Room, join: Join) -> Attachment {
    match room.apply(Command::Join(join), NOW) {
        Outcome::Joined { attachment, .. } | Outcome::Resumed { attachment, .. } => attachment,
        other => unreachable!("a valid JOIN was answered with {other:?}"),
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
    let (mut room, attachment) = room_of(1);
    (0..count)
        .map(|_| accepted(&mut room, Command::Say(say(attachment))))
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
