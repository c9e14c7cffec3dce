//! Properties of the fold for arbitrary commands, and tests of single rules.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use proptest::sample::Index;

use super::super::limits::{
    DEDUP_WINDOW_LEN, FIRST_ASSIGNED_ID, LAST_ASSIGNED_ID, MAX_BANS, MAX_REASON_CHARS,
};
use super::super::{
    BanTarget, DecodeError, MAX_ENCODED_COMMAND, MessageId, Name, Text, TextError, Timestamp,
};
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

/// What somebody does. Sessions and attachments are chosen from those that have been, so most commands make sense.
#[derive(Debug, Clone)]
enum Action {
    Join {
        join: Join,
        session: Option<Index>,
    },
    Say(Index, Message),
    Post(Post),
    Leave(Index, Option<Timestamp>),
    Detach(Index),
    ExpireGrace(Index),
    Moderate(Moderation),
    /// The wall clock advances by some milliseconds.
    Wait(u64),
}

fn timestamps() -> impl Strategy<Value = Timestamp> {
    prop_oneof![8 => 0..2_000_i64, 1 => any::<i64>(), 1 => Just(i64::MAX)].prop_map(Timestamp)
}

fn ids() -> impl Strategy<Value = ParticipantId> {
    // Those that clients choose, and the first and last that rooms assign.
    let ids = prop_oneof![
        8 => 1..5_i32,
        1 => FIRST_ASSIGNED_ID - 1..FIRST_ASSIGNED_ID + 3,
        1 => LAST_ASSIGNED_ID..LAST_ASSIGNED_ID + 2,
    ];
    ids.prop_map(|id| ParticipantId::from_wire(id).unwrap())
}

fn names() -> impl Strategy<Value = Name> {
    "[a-eA-E]".prop_map(|name| Name::try_from(name.as_str()).unwrap())
}

fn origins() -> impl Strategy<Value = Origin> {
    let subject = prop::option::of("[st]".prop_map(Arc::<str>::from));
    let address = (1..3_u8).prop_map(|last| [192, 0, 2, last].into());
    (subject, prop::option::of(address), prop::bool::weighted(0.1)).prop_map(
        |(subject, address, is_moderator)| Origin {
            subject,
            address,
            is_moderator,
        },
    )
}

fn ban_targets() -> impl Strategy<Value = BanTarget> {
    prop_oneof![
        names().prop_map(BanTarget::Name),
        "[st]".prop_map(|subject| BanTarget::Subject(subject.into())),
        (1..3_u8).prop_map(|last| BanTarget::Address([192, 0, 2, last].into())),
    ]
}

fn reason() -> Text {
    Text::parse("spam", MAX_REASON_CHARS).unwrap()
}

fn moderations() -> impl Strategy<Value = Moderation> {
    let remove = |who| Moderation::Remove {
        who,
        reason: reason(),
    };
    let ban = |(target, until)| {
        Moderation::Ban(Ban {
            target,
            until: WallTime::from_millis(until),
            reason: reason(),
        })
    };
    prop_oneof![
        1 => ids().prop_map(RemoveTarget::Participant).prop_map(remove),
        1 => ban_targets().prop_map(RemoveTarget::All).prop_map(remove),
        2 => (ban_targets(), 0..100_u64).prop_map(ban),
        2 => ban_targets().prop_map(Moderation::Unban),
        1 => Just(Moderation::Close),
        2 => Just(Moderation::Reopen),
    ]
}

fn joins() -> impl Strategy<Value = Action> {
    let owner = prop::option::weighted(0.3, "[st]".prop_map(Arc::<str>::from));
    let join = (
        prop::option::of(ids()),
        names(),
        owner,
        origins(),
        timestamps(),
        any::<bool>(),
    );
    (join, prop::option::of(any::<Index>())).prop_map(
        |((id, name, owner, origin, timestamp, is_resumable), session)| {
            let join = Join {
                session: None,
                id,
                name,
                timestamp,
                owner,
                origin,
                is_resumable,
                trace: None,
            };
            Action::Join { join, session }
        },
    )
}

fn messages() -> impl Strategy<Value = Message> {
    (timestamps(), "[xy\u{1b}]{0,10}", prop::option::of("[m ]{0,3}")).prop_map(|(timestamp, text, id)| {
        Message {
            timestamp,
            text: Text::parse(&text, 8),
            message_id: id.map(|id| MessageId::try_from(id.as_str())),
            trace: None,
        }
    })
}

fn actions() -> impl Strategy<Value = Vec<Action>> {
    let action = prop_oneof![
        4 => joins(),
        6 => (any::<Index>(), messages()).prop_map(|(attachment, message)| Action::Say(attachment, message)),
        1 => (names(), origins(), messages()).prop_map(|(name, origin, message)| Action::Post(Post { name, origin, message })),
        2 => (any::<Index>(), prop::option::of(timestamps())).prop_map(|(attachment, timestamp)| Action::Leave(attachment, timestamp)),
        2 => any::<Index>().prop_map(Action::Detach),
        1 => any::<Index>().prop_map(Action::ExpireGrace),
        1 => moderations().prop_map(Action::Moderate),
        1 => (0..20_u64).prop_map(Action::Wait),
    ];
    prop::collection::vec(action, 0..120)
}

fn timestamp_of(command: &Command) -> Option<i64> {
    let timestamp = match command {
        Command::Join(join) => join.timestamp,
        Command::Say(say) => say.message.timestamp,
        Command::Post(post) => post.message.timestamp,
        Command::Leave(leave) => leave.timestamp?,
        Command::Detach(_) | Command::ExpireGrace(_) | Command::Moderate(_) | Command::End(_) => return None,
    };
    Some(timestamp.0)
}

/// The attachment that a command comes from or is about.
fn attachment_of(command: &Command) -> Option<Attachment> {
    match command {
        Command::Say(say) => Some(say.attachment),
        Command::Leave(leave) => Some(leave.attachment),
        Command::Detach(attachment) | Command::ExpireGrace(attachment) => Some(*attachment),
        Command::Join(_) | Command::Post(_) | Command::Moderate(_) | Command::End(_) => None,
    }
}

/// Turns actions into commands, and remembers the sessions and attachments that have been.
#[derive(Debug, Default)]
struct History {
    sessions: Vec<Session>,
    attachments: Vec<Attachment>,
    /// In milliseconds.
    now: u64,
}

impl History {
    /// `None` if there was no attachment yet.
    fn command(&mut self, action: Action) -> Option<Command> {
        if let Action::Wait(millis) = action {
            self.now += millis;
        }
        let attachment = |index: Index| {
            let is_any = !self.attachments.is_empty();
            is_any.then(|| *index.get(&self.attachments))
        };
        Some(match action {
            Action::Join { mut join, session } => {
                let session = session.filter(|_| !self.sessions.is_empty());
                join.session = session.map(|index| *index.get(&self.sessions));
                Command::Join(join)
            }
            Action::Say(index, message) => Command::Say(Say {
                attachment: attachment(index)?,
                message,
            }),
            Action::Post(post) => Command::Post(post),
            Action::Leave(index, timestamp) => Command::Leave(Leave {
                attachment: attachment(index)?,
                timestamp,
                trace: None,
            }),
            Action::Detach(index) => Command::Detach(attachment(index)?),
            Action::ExpireGrace(index) => Command::ExpireGrace(attachment(index)?),
            Action::Moderate(moderation) => Command::Moderate(moderation),
            Action::Wait(_) => return None,
        })
    }

    fn remember(&mut self, outcome: &Outcome) {
        match outcome {
            Outcome::Joined {
                joined, attachment, ..
            } => {
                self.attachments.push(*attachment);
                self.sessions.push(Session {
                    participant: joined.participant,
                    join_sequence: joined.sequence,
                });
            }
            Outcome::Resumed { attachment, .. } => self.attachments.push(*attachment),
            _ => {}
        }
    }
}

/// Applies the actions, and calls `check` with the room before and after each command, the command and its time, and its outcome.
fn perform(
    room: &mut Room,
    actions: Vec<Action>,
    mut check: impl FnMut(&Room, &mut Room, (&Command, WallTime), &Outcome) -> Result<(), TestCaseError>,
) -> Result<(), TestCaseError> {
    let mut history = History::default();
    for action in actions {
        let Some(command) = history.command(action) else {
            continue;
        };
        let before = room.clone();
        let at = WallTime::from_millis(history.now);
        let outcome = room.apply(command.clone(), at);
        history.remember(&outcome);
        check(&before, room, (&command, at), &outcome)?;
    }
    Ok(())
}

/// The log that the actions produce, and the room that wrote it.
fn log_of(actions: Vec<Action>) -> (Room, Vec<Event>) {
    let (mut room, mut log) = (Room::new(rules()), Vec::new());
    perform(&mut room, actions, |_, _, _, outcome| {
        log.extend(outcome.events().cloned());
        Ok(())
    })
    .unwrap();
    (room, log)
}

fn lost(room: &Room) -> Vec<Attachment> {
    room.lost().collect()
}

proptest! {
    #[test]
    fn times_increase_sequences_are_dense_and_the_roster_follows_the_log(actions in actions()) {
        let mut roster: BTreeMap<ParticipantId, Name> = BTreeMap::new();
        let mut said: BTreeMap<MessageId, Sequence> = BTreeMap::new();
        perform(&mut Room::new(rules()), actions, |before, room, (command, _), outcome| {
            let (mut time, mut last) = (before.time(), before.last());
            for event in outcome.events() {
                prop_assert_eq!(event.sequence, last.next());
                prop_assert!(event.time > time);
                (time, last) = (event.time, event.sequence);
                match &event.kind {
                    EventKind::Join => {
                        prop_assert_eq!(roster.insert(event.participant, event.name.clone()), None);
                    }
                    EventKind::Message { message_id, .. } => {
                        if matches!(command, Command::Say(_)) {
                            prop_assert_eq!(roster.get(&event.participant), Some(&event.name));
                        }
                        if let Some(id) = message_id {
                            prop_assert_eq!(said.insert(id.clone(), event.sequence), None);
                        }
                    }
                    EventKind::Leave => {
                        prop_assert_eq!(roster.remove(&event.participant), Some(event.name.clone()));
                    }
                }
            }
            prop_assert_eq!(last, room.last());
            if let (Some(event), Some(claimed)) = (outcome.events().last(), timestamp_of(command)) {
                prop_assert!(event.time.get() > claimed, "an event is later than everything its sender has seen");
            }
            let now: BTreeMap<_, _> = room.participants().iter().map(|(id, participant)| (*id, participant.name.clone())).collect();
            prop_assert_eq!(&now, &roster);
            prop_assert!(roster.len() <= MAX_PARTICIPANTS);
            if let Outcome::Repeated { original, .. } = outcome {
                let message = match command {
                    Command::Say(say) => &say.message,
                    Command::Post(post) => &post.message,
                    _ => return Err(TestCaseError::fail("only a message can be repeated")),
                };
                prop_assert_eq!(message.valid_id().and_then(|id| said.get(id)), Some(original));
            }
            Ok(())
        })?;
    }

    #[test]
    fn a_command_without_an_event_changes_nothing_but_attachments_and_only_a_text_that_is_too_long_ticks(actions in actions()) {
        perform(&mut Room::new(rules()), actions, |before, room, _, outcome| {
            let ticks = room.time().get() - before.time().get();
            let time = match outcome {
                Outcome::Rejected { rejection, time } => {
                    let is_too_long = matches!(rejection, Rejection::Text(TextError::TooLong { .. }));
                    prop_assert_eq!(ticks, i64::from(is_too_long), "{:?}", rejection);
                    *time
                }
                Outcome::Repeated { time, .. } => *time,
                Outcome::Resumed { .. } | Outcome::Lost | Outcome::Ignored | Outcome::Ended => before.time(),
                Outcome::Accepted(_) | Outcome::Joined { .. } | Outcome::Moderated { .. } => return Ok(()),
            };
            prop_assert_eq!(room.time(), time);
            prop_assert_eq!(room.last(), before.last());
            prop_assert_eq!(room.participants(), before.participants());
            prop_assert_eq!(room.roster.next_id(), before.roster.next_id());
            if !matches!(outcome, Outcome::Resumed { .. } | Outcome::Lost) {
                prop_assert_eq!(lost(room), lost(before), "nobody is evicted by what is rejected");
            }
            Ok(())
        })?;
    }

    #[test]
    fn nobody_but_moderators_joins_from_an_address_that_has_its_part_of_the_room(actions in actions()) {
        let count = |room: &Room, address| {
            let states = room.roster.states();
            states.filter(|state| address == state.origin.address).count()
        };
        let most = rules().max_participants_per_address();
        prop_assert_eq!((most, MAX_PARTICIPANTS), (3, 4));
        perform(&mut Room::new(rules()), actions, |before, room, (command, _), outcome| {
            for last in 1..3 {
                let address = [192, 0, 2, last].into();
                prop_assert_eq!(room.roster.count_from(address), count(room, Some(address)));
            }
            let Command::Join(join) = command else { return Ok(()) };
            let address = join.origin.address;
            let is_limited = address.is_some() && !join.origin.is_moderator;
            match outcome {
                Outcome::Joined { .. } if is_limited => prop_assert!(count(room, address) <= most),
                Outcome::Rejected { rejection: Rejection::RoomFullForAddress(remaining), .. } => {
                    prop_assert!(is_limited && *remaining >= most && count(before, address) >= *remaining);
                }
                _ => {}
            }
            Ok(())
        })?;
    }

    #[test]
    fn the_owner_of_a_name_leaves_for_nobody_else_and_others_leave_for_the_owner(actions in actions()) {
        let mut owners: BTreeMap<ParticipantId, Arc<str>> = BTreeMap::new();
        perform(&mut Room::new(rules()), actions, |before, room, (command, _), outcome| {
            let (join, is_joined) = match command {
                Command::Join(join) => (Some(join), matches!(outcome, Outcome::Joined { .. })),
                _ => (None, false),
            };
            for event in outcome.events().filter(|event| event.kind == EventKind::Leave) {
                if let (Some(owner), Some(join)) = (owners.remove(&event.participant), join) {
                    prop_assert_eq!(Some(&owner), join.owner.as_ref(), "only its owner takes its place");
                }
            }
            match outcome {
                Outcome::Joined { displaced, attachment, .. } => {
                    for gone in displaced {
                        let name = &before.participants()[&gone.participant].name;
                        prop_assert!(before.is_attached(gone.participant) && !room.is_attached(gone.participant));
                        prop_assert!(before.roster.owner(gone.participant).is_none());
                        prop_assert!(join.is_some_and(|join| join.owner.is_some() && join.name.is_confusable_with(name)));
                    }
                    let owner = join.and_then(|join| join.owner.clone());
                    owners.extend(owner.map(|owner| (attachment.participant, owner)));
                }
                Outcome::Resumed { session, name, .. } => {
                    let owner = join.and_then(|join| join.owner.clone());
                    let id = session.participant;
                    prop_assert!(owners.get(&id).is_none_or(|own| Some(own) == owner.as_ref()));
                    prop_assert!(owner.is_none() || join.is_some_and(|join| join.name == *name));
                    owners.extend(owner.map(|owner| (id, owner)));
                }
                _ => {}
            }
            // Without ids and limits in the way, an owner is kept out by owners only.
            if let (Some(join), false, Outcome::Rejected { rejection: Rejection::NameTaken(_), .. }) = (join, is_joined, outcome)
                && join.owner.is_some()
            {
                let holders = before.participants().iter().filter(|(_, holder)| holder.name.is_confusable_with(&join.name));
                prop_assert!(holders.clone().any(|(id, _)| owners.contains_key(id)));
            }
            Ok(())
        })?;
    }

    #[test]
    fn only_the_newest_attachment_of_a_participant_who_is_not_lost_speaks_for_it(actions in actions()) {
        let mut current: BTreeMap<ParticipantId, Attachment> = BTreeMap::new();
        let mut is_lost: BTreeSet<ParticipantId> = BTreeSet::new();
        perform(&mut Room::new(rules()), actions, |_, room, (command, _), outcome| {
            if let Some(attachment) = attachment_of(command) {
                let participant = attachment.participant;
                let must_be_lost = matches!(command, Command::ExpireGrace(_));
                let is_valid = current.get(&participant) == Some(&attachment) && is_lost.contains(&participant) == must_be_lost;
                prop_assert_eq!(*outcome != Outcome::Ignored, is_valid);
            }
            for event in outcome.events().filter(|event| event.kind == EventKind::Leave) {
                current.remove(&event.participant);
                is_lost.remove(&event.participant);
            }
            match outcome {
                Outcome::Joined { attachment, .. } => {
                    prop_assert_eq!(current.insert(attachment.participant, *attachment), None);
                }
                Outcome::Resumed { session, attachment, replaced, .. } => {
                    let previous = current.insert(session.participant, *attachment);
                    let was_lost = is_lost.remove(&session.participant);
                    prop_assert_eq!(*replaced, previous.filter(|_| !was_lost));
                }
                Outcome::Lost => {
                    is_lost.extend(attachment_of(command).map(|attachment| attachment.participant));
                }
                _ => {}
            }
            prop_assert_eq!(lost(room).iter().map(|attachment| attachment.participant).collect::<BTreeSet<_>>(), is_lost.clone());
            Ok(())
        })?;
    }

    #[test]
    fn bans_and_closed_rooms_keep_out_all_but_moderators(actions in actions()) {
        perform(&mut Room::new(rules()), actions, |before, room, (command, at), outcome| {
            for id in room.participants().keys() {
                let origin = room.roster.origin(*id).unwrap();
                let skeletons = skeletons(room.participants()[id].name.as_str());
                prop_assert_eq!(room.bans.find(Some(&skeletons), origin, at), None, "{:?}", origin);
            }
            let speaker = match command {
                Command::Join(join) if matches!(outcome, Outcome::Joined { .. }) => Some(&join.origin),
                Command::Post(post) if matches!(outcome, Outcome::Accepted(_)) => Some(&post.origin),
                Command::Say(say) if matches!(outcome, Outcome::Accepted(_)) => {
                    before.roster.origin(say.attachment.participant)
                }
                _ => None,
            };
            prop_assert!(speaker.is_none_or(|origin| !before.is_closed() || origin.is_moderator));
            if let Command::Post(post) = command
                && let Outcome::Accepted(_) = outcome
            {
                prop_assert_eq!(before.bans.find(Some(&skeletons(post.name.as_str())), &post.origin, at), None);
            }
            Ok(())
        })?;
    }

    #[test]
    fn the_same_commands_yield_the_same_outcomes(actions in actions()) {
        let mut other = Room::new(rules());
        perform(&mut Room::new(rules()), actions, |_, _, (command, at), outcome| {
            prop_assert_eq!(&other.apply(command.clone(), at), outcome);
            Ok(())
        })?;
    }

    #[test]
    fn ids_that_clients_chose_and_ids_that_were_assigned_never_meet(actions in actions(), cut in 0..60_usize) {
        let (mut chosen, mut assigned) = (BTreeSet::new(), BTreeSet::new());
        let (mut room, mut replayed) = (Room::new(rules()), Room::new(rules()));
        room.roster.set_next_id(LAST_ASSIGNED_ID - 2);
        replayed.roster.set_next_id(LAST_ASSIGNED_ID - 2);
        let mut count = 0;
        perform(&mut room, actions, |before, room, (command, _), outcome| {
            for event in outcome.events() {
                prop_assert_eq!(replayed.replay(event, false), Ok(()));
            }
            prop_assert_eq!(replayed.roster.next_id(), room.roster.next_id(), "it is assigned alike after replay");
            let newest = outcome.events().last().map(|event| event.participant);
            match command {
                Command::Join(Join { id: Some(_), .. }) => chosen.extend(newest),
                Command::Join(_) | Command::Post(_) => {
                    // Some ids were assigned before, but all others first.
                    prop_assert!(newest.is_none_or(|id| before.participants().get(&id).is_none()));
                    assigned.extend(newest);
                }
                _ => {}
            }
            count += 1;
            if count == cut {
                *room = Room::from_snapshot(rules(), room.take_snapshot());
            }
            Ok(())
        })?;
        prop_assert!(chosen.is_disjoint(&assigned), "{:?} {:?}", chosen, assigned);
    }

    #[test]
    fn the_time_never_runs_backwards_across_restarts(
        actions in actions(),
        restarts in prop::collection::btree_set(0..120_usize, 0..5),
        snapshots in prop::collection::btree_set(0..120_usize, 0..5),
        bursts in prop::collection::btree_set(0..120_usize, 0..3),
    ) {
        let mut room = Room::new(rules());
        // What the store has, and the latest time that anybody has seen.
        let (mut snapshot, mut log) = (room.take_snapshot(), Vec::new());
        let (mut shown, mut count) = (room.time(), 0);
        perform(&mut room, actions, |_, room, (command, _), outcome| {
            log.extend(outcome.events().cloned());
            if let Command::Say(Say { attachment, .. }) = command {
                // More ticks than a room may show without a snapshot.
                for _ in 0..if bursts.contains(&count) { CLOCK_RESERVE + 1 } else { 0 } {
                    let say = Say { attachment: *attachment, message: message("much too long", None) };
                    room.apply(Command::Say(say), WallTime::default());
                    if room.needs_snapshot() {
                        snapshot = room.take_snapshot();
                    }
                }
            }
            if room.needs_snapshot() || snapshots.contains(&count) {
                snapshot = room.take_snapshot();
            }
            prop_assert!(room.time() >= shown);
            shown = room.time();
            if restarts.contains(&count) {
                let bans: Vec<Ban> = room.bans.iter().cloned().collect();
                let is_closed = room.is_closed();
                *room = Room::from_snapshot(rules(), snapshot.clone());
                for event in log.iter().filter(|event| event.sequence > snapshot.last) {
                    prop_assert_eq!(room.replay(event, true), Ok(()));
                }
                room.finish_recovery();
                prop_assert!(room.time() >= shown, "{} < {}", room.time(), shown);
                prop_assert!(room.time().get() <= shown.get() + CLOCK_RESERVE);
                prop_assert!(!room.needs_snapshot());
                prop_assert_eq!((room.bans.iter().cloned().collect(), room.is_closed()), (bans, is_closed));
            }
            count += 1;
            Ok(())
        })?;
    }
}

fn join(name: &str, id: i32) -> Command {
    let name = Name::try_from(name).unwrap();
    Command::Join(Join {
        session: None,
        id: ParticipantId::from_wire(id),
        name,
        timestamp: Timestamp(0),
        owner: None,
        origin: Origin::default(),
        is_resumable: true,
        trace: None,
    })
}

/// Lets somebody join, and returns the attachment.
fn joined(room: &mut Room, name: &str, id: i32) -> Attachment {
    match room.apply(join(name, id), WallTime::default()) {
        Outcome::Joined { attachment, .. } => attachment,
        other => panic!("not joined: {other:?}"),
    }
}

/// Lets somebody join and lose the connection, and returns the attachment.
fn joined_and_lost(room: &mut Room, name: &str, id: i32) -> Attachment {
    let attachment = joined(room, name, id);
    assert_eq!(
        room.apply(Command::Detach(attachment), WallTime::default()),
        Outcome::Lost
    );
    attachment
}

fn leave(attachment: Attachment) -> Command {
    Command::Leave(Leave {
        attachment,
        timestamp: None,
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
    Command::Post(Post {
        name,
        origin: Origin::default(),
        message,
    })
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
    let ada = joined(&mut room, "Ada", 1);
    assert!(matches!(
        rejection(&mut room, join("ADA", 2)),
        Rejection::NameTaken(_)
    ));
    assert!(matches!(
        rejection(&mut room, join("Bob", 1)),
        Rejection::IdTaken(_)
    ));
    accepted(&mut room, leave(ada));
    joined(&mut room, "ADA", 2);
}

/// The JOIN of the owner of a name.
fn join_as(owner: &str, name: &str, id: i32) -> Command {
    match join(name, id) {
        Command::Join(join) => Command::Join(Join {
            owner: Some(owner.into()),
            ..join
        }),
        other => other,
    }
}

#[test]
fn the_owner_of_a_name_takes_it_from_whoever_does_not_own_it() {
    let mut room = Room::new(rules());
    let stranger = joined(&mut room, "ada", 1);
    let Outcome::Joined {
        evicted, displaced, ..
    } = room.apply(join_as("a", "Аda", 2), WallTime::default())
    else {
        unreachable!("the owner joins");
    };
    assert_eq!(displaced, [stranger]);
    assert_eq!((evicted.len(), evicted[0].name.as_str()), (1, "ada"));
    // What the stream that is gone still sends has no effect.
    let said = room.apply(
        Command::Say(Say {
            attachment: stranger,
            message: message("x", None),
        }),
        WallTime::default(),
    );
    assert_eq!(said, Outcome::Ignored);
    for other in [join("Ada", 3), join_as("b", "Ada", 3), join_as("a", "Ada", 3)] {
        assert!(matches!(rejection(&mut room, other), Rejection::NameTaken(_)));
    }
    let post = post("Ada", message("x", None));
    assert!(matches!(rejection(&mut room, post), Rejection::NameTaken(_)));
}

#[test]
fn an_owner_that_is_lost_keeps_its_name_and_id_from_others() {
    let mut room = Room::new(rules());
    let Outcome::Joined { attachment, .. } = room.apply(join_as("a", "Ada", 1), WallTime::default()) else {
        unreachable!("the owner joins");
    };
    assert_eq!(
        room.apply(Command::Detach(attachment), WallTime::default()),
        Outcome::Lost
    );
    for other in [join("ada", 2), join_as("b", "Ada", 2)] {
        assert!(matches!(rejection(&mut room, other), Rejection::NameTaken(_)));
    }
    assert!(matches!(
        rejection(&mut room, join("Bob", 1)),
        Rejection::IdTaken(_)
    ));
    let again = room.apply(join_as("a", "Ada", 2), WallTime::default());
    assert!(matches!(again, Outcome::Joined { evicted, .. } if evicted.len() == 1));
}

#[test]
fn a_lost_participant_yields_its_name_and_id_to_somebody_who_joins() {
    let mut room = Room::new(rules());
    joined_and_lost(&mut room, "Ada", 1);
    joined_and_lost(&mut room, "Bob", 2);
    let outcome = room.apply(join("ADA", 2), WallTime::default());
    let Outcome::Joined { evicted, joined, .. } = outcome else {
        panic!("{outcome:?}");
    };
    let leaves: Vec<_> = evicted
        .iter()
        .map(|event| (event.name.as_str(), event.sequence.get()))
        .collect();
    assert_eq!(leaves, [("Bob", 3), ("Ada", 4)]);
    assert_eq!((joined.sequence.get(), joined.participant.get()), (5, 2));
    assert_eq!(room.participants().len(), 1);
}

#[test]
fn a_rejected_join_evicts_nobody() {
    let mut room = Room::new(rules());
    let ada = joined_and_lost(&mut room, "Ada", 1);
    joined(&mut room, "Bob", 2);
    let last = room.last();
    assert!(matches!(
        rejection(&mut room, join("Bob", 1)),
        Rejection::NameTaken(_)
    ));
    assert!(matches!(
        rejection(&mut room, join("Ada", 2)),
        Rejection::IdTaken(_)
    ));
    let too_late = match join("Ada", 1) {
        Command::Join(join) => Command::Join(Join {
            timestamp: Timestamp(MAX_AHEAD + 9),
            ..join
        }),
        other => other,
    };
    assert!(matches!(rejection(&mut room, too_late), Rejection::Clock(_)));
    assert_eq!(room.last(), last);
    assert_eq!(lost(&room), [ada]);
}

#[test]
fn somebody_who_joins_takes_the_place_of_a_lost_participant_in_a_full_room() {
    let mut room = Room::new(rules());
    for (id, name) in [(1, "a"), (2, "b"), (3, "c"), (4, "d")] {
        joined_and_lost(&mut room, name, id);
    }
    assert_eq!(rejection(&mut room, join("e", 5)), Rejection::RoomFull(4));
    joined(&mut room, "a", 5);
}

fn join_from(last: u8, is_moderator: bool, name: &str, id: i32) -> Command {
    match join(name, id) {
        Command::Join(join) => Command::Join(Join {
            origin: Origin {
                subject: None,
                address: Some([192, 0, 2, last].into()),
                is_moderator,
            },
            ..join
        }),
        other => other,
    }
}

#[test]
fn one_address_does_not_fill_a_room_unless_it_resumes_or_moderates() {
    let mut room = Room::new(rules());
    let is_joined = |room: &mut Room, command| {
        let outcome = room.apply(command, WallTime::default());
        matches!(outcome, Outcome::Joined { .. })
    };
    for (id, name) in [(1, "a"), (2, "b"), (3, "c")] {
        assert!(is_joined(&mut room, join_from(1, false, name, id)));
    }
    // The same for a replica that begins with a checkpoint.
    let mut other = Room::from_state(room.state()).unwrap();
    for room in [&mut room, &mut other] {
        let full = rejection(room, join_from(1, false, "d", 4));
        assert_eq!(full, Rejection::RoomFullForAddress(3));
    }
    assert!(is_joined(&mut other, join_from(1, true, "d", 4)));
    let ada = ParticipantId::from_wire(1).unwrap();
    let attachment = room.roster.current_attachment(ada).unwrap();
    room.apply(Command::Detach(attachment), WallTime::default());
    // Whoever joins in place of somebody from there needs no further place.
    assert!(is_joined(&mut room, join_from(1, false, "a", 1)));
    assert!(is_joined(&mut room, join_from(2, false, "d", 4)));
    assert_eq!(
        rejection(&mut room, join_from(2, false, "e", 5)),
        Rejection::RoomFull(4)
    );
    // Somebody moves there.
    let resume = match join_from(1, false, "d", 4) {
        Command::Join(join) => Command::Join(Join {
            session: Some(Session {
                participant: ParticipantId::from_wire(4).unwrap(),
                join_sequence: room.last(),
            }),
            ..join
        }),
        other => other,
    };
    let resumed = room.apply(resume, WallTime::default());
    assert!(matches!(resumed, Outcome::Resumed { .. }), "{resumed:?}");
    assert_eq!(room.roster.count_from([192, 0, 2, 1].into()), 4);
}

#[test]
fn a_room_with_few_places_may_be_full_of_one_address() {
    for max_participants in 1..4 {
        let mut room = Room::new(Rules {
            max_participants,
            ..rules()
        });
        let ids = 1..;
        for (id, name) in ids.zip(["a", "b", "c"]).take(max_participants) {
            let outcome = room.apply(join_from(1, false, name, id), WallTime::default());
            assert!(matches!(outcome, Outcome::Joined { .. }), "{outcome:?}");
        }
        let full = rejection(&mut room, join_from(2, false, "d", 9));
        assert_eq!(full, Rejection::RoomFull(max_participants));
    }
}

#[test]
fn a_name_that_several_participants_have_is_taken_although_they_are_lost() {
    let mut room = Room::new(Rules {
        allow_duplicate_names: true,
        ..rules()
    });
    joined(&mut room, "Ada", 1);
    joined(&mut room, "Ada", 2);
    let mut room = Room::from_snapshot(rules(), room.take_snapshot());
    assert!(matches!(
        rejection(&mut room, join("Ada", 3)),
        Rejection::NameTaken(_)
    ));
    let first = lost(&room)[0];
    accepted(&mut room, Command::ExpireGrace(first));
    joined(&mut room, "Ada", 3);
}

#[test]
fn messages_of_an_attachment_that_was_taken_over_have_no_effect() {
    let mut room = Room::new(rules());
    let old = joined(&mut room, "Ada", 1);
    let session = Session {
        participant: old.participant,
        join_sequence: room.last(),
    };
    let resume = match join("Ada", 0) {
        Command::Join(join) => Command::Join(Join {
            session: Some(session),
            ..join
        }),
        other => other,
    };
    let outcome = room.apply(resume, WallTime::default());
    let Outcome::Resumed {
        attachment: new,
        replaced,
        ..
    } = outcome
    else {
        panic!("{outcome:?}");
    };
    assert_eq!(replaced, Some(old));
    let say = |attachment| {
        Command::Say(Say {
            attachment,
            message: message("hi", None),
        })
    };
    for command in [say(old), leave(old), Command::Detach(old)] {
        assert_eq!(room.apply(command, WallTime::default()), Outcome::Ignored);
    }
    assert_eq!(accepted(&mut room, say(new)).sequence.get(), 2);
}

#[test]
fn ids_that_rooms_assign_cannot_be_chosen() {
    let mut room = Room::new(rules());
    for id in [FIRST_ASSIGNED_ID, LAST_ASSIGNED_ID] {
        let rejection = rejection(&mut room, join("Ada", id));
        assert!(matches!(rejection, Rejection::IdReserved(_)), "{rejection:?}");
    }
    for (id, name) in [
        (FIRST_ASSIGNED_ID - 1, "a"),
        (LAST_ASSIGNED_ID + 1, "b"),
        (-1, "c"),
    ] {
        joined(&mut room, name, id);
    }
    assert_eq!(joined(&mut room, "d", 0).participant.get(), FIRST_ASSIGNED_ID);
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
        joined(&mut room, "Servers", 1);
    }
}

#[test]
fn a_repeated_post_is_answered_even_if_its_sender_has_joined_since() {
    let mut room = Room::new(rules());
    let post = |text| post("Ada", message(text, Some("m1")));
    accepted(&mut room, post("x"));
    joined(&mut room, "Ada", 1);
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
    joined(&mut room, "Ada", 1);
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
        joined(&mut room, "Ada", id);
    }
}

#[test]
fn a_text_that_is_too_long_ticks_the_clock_by_one_and_has_no_sequence() {
    let mut room = Room::new(rules());
    let attachment = joined(&mut room, "Ada", 1);
    let message = Message {
        timestamp: Timestamp(7),
        ..message("far too long", None)
    };
    let outcome = room.apply(Command::Say(Say { attachment, message }), WallTime::default());
    let Outcome::Rejected {
        rejection: Rejection::Text(TextError::TooLong { chars: 12, limit: 8 }),
        time,
    } = outcome
    else {
        panic!("{outcome:?}");
    };
    assert_eq!((time.get(), room.last().get()), (2, 1));
}

#[test]
fn a_room_and_one_that_is_recovered_from_its_log_forget_a_message_id_at_the_same_event() {
    let (mut room, mut log) = (Room::new(rules()), Vec::new());
    let mut snapshot = room.take_snapshot();
    log.push(accepted(&mut room, post("bot", message("x", Some("m1")))));
    while room.last().get() < DEDUP_WINDOW_LEN as u64 {
        if room.last().get() == 100 {
            snapshot = room.take_snapshot();
        }
        log.push(accepted(&mut room, post("bot", message("y", None))));
    }
    let mut recovered = Room::from_snapshot(rules(), snapshot.clone());
    for event in &log {
        if event.sequence <= snapshot.last {
            recovered.remember_message_id(event);
        } else {
            recovered.replay(event, false).unwrap();
        }
    }
    for mut room in [room, recovered] {
        let repeat = room.apply(post("bot", message("x", Some("m1"))), WallTime::default());
        assert!(matches!(repeat, Outcome::Repeated { original, .. } if original.get() == 1));
        accepted(&mut room, post("bot", message("y", None)));
        accepted(&mut room, post("bot", message("x", Some("m1"))));
        // From a snapshot of this moment.
        let snapshot = room.take_snapshot();
        let mut recovered = Room::from_snapshot(rules(), snapshot);
        recovered.remember_message_id(&log[0]);
        assert_eq!(recovered.message_ids(), 0, "it is too old");
    }
}

#[test]
fn the_encodings_do_not_change_within_a_version() {
    let mut room = Room::new(rules());
    let mut bytes = Vec::new();
    let join = join_as("a", "Ada", -7);
    join.encode(&mut bytes);
    assert_eq!(bytes, b"\x01\x01\0\x01\x0d\x03Ada\x01\x01a\0\0\0\0\x01\0");
    let attachment = joined(&mut room, "Ada", -7);
    accepted(
        &mut room,
        Command::Say(Say {
            attachment,
            message: message("hi", Some("m1")),
        }),
    );
    assert_eq!(room.state().hash(), 0xccb8_ab3e_65be_6a47);
}

#[test]
fn states_that_no_room_can_have_are_rejected() {
    let mut room = Room::new(rules());
    let ada = joined(&mut room, "Ada", 1);
    joined(&mut room, "Bob", 2);
    let say = |id| {
        Command::Say(Say {
            attachment: ada,
            message: message("hi", Some(id)),
        })
    };
    accepted(&mut room, say("m1"));
    accepted(&mut room, say("m2"));
    let wrong: [fn(&mut RoomState); 8] = [
        |state| state.next_id = 1,
        |state| state.participants.swap(0, 1),
        |state| state.participants[1].id = state.participants[0].id,
        |state| state.participants[0].attachment = 0,
        |state| state.last_attachment = 1,
        |state| state.last_attachment = u64::MAX,
        |state| state.message_ids.swap(0, 1),
        |state| state.last = Sequence::new(3),
    ];
    assert!(Room::from_state(room.state()).is_ok());
    for damage in wrong {
        let mut state = room.state();
        damage(&mut state);
        assert!(Room::from_state(state.clone()).is_err(), "{state:?}");
    }
}

#[test]
fn only_one_encoding_is_accepted() {
    let detach = |number: &[u8]| Command::decode(&[&[1, 5, 2][..], number].concat());
    assert!(detach(&[5]).is_ok());
    let largest = [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1];
    assert!(detach(&largest).is_ok());
    for wrong in [
        &[0x85, 0][..],
        &[0xff; 11],
        &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2],
    ] {
        assert!(
            matches!(detach(wrong), Err(DecodeError::Malformed(_))),
            "{wrong:?}"
        );
    }
    assert!(detach(&[]).is_err() && Command::decode(&[1, 9]).is_err());
    assert_eq!(
        Command::decode(&vec![1; MAX_ENCODED_COMMAND + 1]),
        Err(DecodeError::TooLong(MAX_ENCODED_COMMAND + 1))
    );
}

proptest! {
    #[test]
    fn a_replayed_log_yields_the_room_that_wrote_it(actions in actions(), cut in 0..120_usize) {
        let (room, log) = log_of(actions.clone());
        let mut before = Room::new(rules());
        perform(&mut before, actions.into_iter().take(cut).collect(), |_, _, _, _| Ok(()))?;
        let snapshot = before.take_snapshot();
        // From the snapshot and the log, or from the log alone: the same roster, position and deduplication window.
        let mut restored = Room::from_snapshot(rules(), snapshot.clone());
        let mut replayed = Room::new(rules());
        for event in &log {
            let is_resumable = room.participants().get(&event.participant).is_some_and(|holder| holder.is_resumable);
            if event.sequence <= snapshot.last {
                restored.remember_message_id(event);
            } else {
                prop_assert_eq!(restored.replay(event, is_resumable), Ok(()));
            }
            prop_assert_eq!(replayed.replay(event, is_resumable), Ok(()));
        }
        for mut other in [restored, replayed] {
            other.finish_recovery();
            prop_assert_eq!(other.participants(), room.participants());
            prop_assert_eq!(other.last(), room.last());
            let has_messages = log.iter().any(|event| matches!(event.kind, EventKind::Message { .. }));
            prop_assert_eq!((room.has_messages(), other.has_messages()), (has_messages, has_messages));
            prop_assert_eq!(lost(&other).len(), other.participants().len());
            prop_assert!(other.dedup.entries().eq(room.dedup.entries()));
            for event in &log {
                if let EventKind::Message { text, message_id: Some(id) } = &event.kind {
                    prop_assert_eq!(other.dedup.get(id, text), Some(Seen::SameText(event.sequence)));
                }
            }
        }
    }

    #[test]
    fn a_room_that_is_made_from_a_state_decides_as_the_room_whose_state_it_is(actions in actions(), every in 1..8_usize) {
        let (mut twin, mut count) = (Room::new(rules()), 0);
        perform(&mut Room::new(rules()), actions, |_, room, (command, at), outcome| {
            if count % every == 0 {
                let state = RoomState::decode(&twin.state().encode()).unwrap();
                twin = Room::from_state(state).unwrap();
            }
            count += 1;
            prop_assert_eq!(&twin.apply(command.clone(), at), outcome);
            prop_assert_eq!(twin.state(), room.state());
            prop_assert_eq!(twin.state().hash(), room.state().hash());
            Ok(())
        })?;
    }

    #[test]
    fn decoding_a_command_reverses_encoding(actions in actions(), index in any::<Index>()) {
        perform(&mut Room::new(rules()), actions, |_, _, (command, _), _| {
            let mut bytes = Vec::new();
            command.encode(&mut bytes);
            prop_assert_eq!(&Command::decode(&bytes), &Ok(command.clone()));
            let cut = index.index(bytes.len());
            prop_assert!(Command::decode(&bytes[..cut]).is_err(), "{cut} of {bytes:?}");
            bytes.push(0);
            prop_assert_eq!(Command::decode(&bytes), Err(DecodeError::TrailingBytes(1)));
            bytes[0] += 1;
            prop_assert_eq!(Command::decode(&bytes), Err(DecodeError::UnknownVersion(bytes[0])));
            Ok(())
        })?;
    }

    #[test]
    fn a_log_with_a_gap_cannot_be_replayed(actions in actions(), gap in 0..20_usize) {
        let (_, mut log) = log_of(actions);
        prop_assume!(gap + 1 < log.len());
        log.remove(gap);
        let mut replayed = Room::new(rules());
        let error = log.iter().find_map(|event| replayed.replay(event, false).err());
        let (after, next) = (Sequence::new(gap as u64), Sequence::new(gap as u64 + 2));
        prop_assert_eq!(error, Some(ReplayError::Gap { after, next }));
    }
}

fn ban(target: BanTarget, until: u64) -> Command {
    Command::Moderate(Moderation::Ban(Ban {
        target,
        until: WallTime::from_millis(until),
        reason: reason(),
    }))
}

fn name(name: &str) -> BanTarget {
    BanTarget::Name(Name::try_from(name).unwrap())
}

/// The names of those who leave because of a moderator's command.
fn removed(room: &mut Room, command: Command) -> Vec<String> {
    match room.apply(command, WallTime::default()) {
        Outcome::Moderated { removed, .. } => removed.iter().map(|event| event.name.to_string()).collect(),
        other => panic!("not moderated: {other:?}"),
    }
}

#[test]
fn a_ban_of_a_name_covers_every_spelling_until_it_ends() {
    let mut room = Room::new(rules());
    joined(&mut room, "Ada", 1);
    joined_and_lost(&mut room, "Bob", 2);
    assert_eq!(removed(&mut room, ban(name("АDА"), 100)), ["Ada"]);
    for spelling in ["Ada", "ADA", "Аdа"] {
        let rejection = rejection(&mut room, join(spelling, 3));
        assert!(matches!(rejection, Rejection::Banned { .. }), "{spelling}");
        assert_eq!(
            rejection.to_string(),
            "you are banned from this room until 1970-01-01T00:00:00Z: spam"
        );
    }
    assert!(matches!(
        rejection(&mut room, post("ada", message("hi", None))),
        Rejection::Banned { .. }
    ));
    let later = room.apply(join("Ada", 3), WallTime::from_millis(100));
    assert!(matches!(later, Outcome::Joined { .. }), "{later:?}");
    assert_eq!(room.bans(WallTime::from_millis(100)).count(), 0);
}

#[test]
fn a_ban_ends_under_any_spelling_of_its_name() {
    let mut room = Room::new(rules());
    removed(&mut room, ban(name("Ada"), 100));
    removed(&mut room, ban(name("Ada"), 200));
    assert_eq!(room.bans(WallTime::default()).count(), 1);
    let unban = |target| Command::Moderate(Moderation::Unban(target));
    removed(&mut room, unban(name("Аdа")));
    joined(&mut room, "Ada", 1);
    assert_eq!(
        rejection(&mut room, unban(name("Ada"))),
        Rejection::TargetNotFound("ban")
    );
}

#[test]
fn a_room_has_no_more_bans_than_its_limit_of_which_ended_ones_do_not_count() {
    let mut room = Room::new(rules());
    let subject = |number: usize| BanTarget::Subject(number.to_string().into());
    for number in 0..MAX_BANS {
        removed(&mut room, ban(subject(number), 100));
    }
    let one_more = || ban(subject(MAX_BANS), 200);
    assert_eq!(rejection(&mut room, one_more()), Rejection::TooManyBans(MAX_BANS));
    removed(&mut room, ban(subject(0), 150));
    let later = room.apply(one_more(), WallTime::from_millis(120));
    assert!(matches!(later, Outcome::Moderated { .. }));
    assert_eq!(room.take_snapshot().bans.len(), 2);
}

#[test]
fn participants_are_removed_by_id_and_may_join_again() {
    let mut room = Room::new(rules());
    joined(&mut room, "Ada", 1);
    let remove = || {
        Command::Moderate(Moderation::Remove {
            who: RemoveTarget::Participant(ParticipantId::from_wire(1).unwrap()),
            reason: reason(),
        })
    };
    assert_eq!(removed(&mut room, remove()), ["Ada"]);
    assert!(!room.needs_snapshot(), "the log has it");
    assert_eq!(
        rejection(&mut room, remove()),
        Rejection::TargetNotFound("participant")
    );
    joined(&mut room, "Ada", 1);
}

#[test]
fn a_deleted_room_rejects_every_command() {
    let mut room = Room::new(rules());
    let ada = joined(&mut room, "Ada", 1);
    assert!(removed(&mut room, Command::Moderate(Moderation::Delete)).is_empty());
    let last = room.last();
    for command in [
        join("Bob", 2),
        leave(ada),
        Command::Detach(ada),
        Command::Moderate(Moderation::Reopen),
    ] {
        assert_eq!(rejection(&mut room, command), Rejection::RoomDeleted);
    }
    assert_eq!(room.last(), last);
    assert!(
        room.check_reader(&Origin::default(), WallTime::default())
            .is_err()
    );
}

#[test]
fn a_room_ends_only_if_nobody_is_in_it_nothing_has_happened_since_and_nobody_is_kept_out() {
    let mut room = Room::new(rules());
    let end = |room: &Room, stage| {
        Command::End(End {
            last: room.last(),
            stage,
        })
    };
    let ada = joined_and_lost(&mut room, "Ada", 1);
    let last = room.last();
    for stage in [EndStage::Proposed, EndStage::Agreed, EndStage::Decided] {
        let command = end(&room, stage);
        assert_eq!(
            room.apply(command, WallTime::default()),
            Outcome::Ignored,
            "Ada is in it"
        );
    }
    accepted(&mut room, Command::ExpireGrace(ada));
    let late = Command::End(End {
        last,
        stage: EndStage::Decided,
    });
    assert_eq!(
        room.apply(late, WallTime::default()),
        Outcome::Ignored,
        "she has left since"
    );
    removed(&mut room, ban(BanTarget::Subject("bob".into()), 100));
    let command = end(&room, EndStage::Decided);
    assert_eq!(
        room.apply(command.clone(), WallTime::from_millis(99)),
        Outcome::Ignored
    );
    removed(&mut room, Command::Moderate(Moderation::Close));
    assert_eq!(
        room.apply(command.clone(), WallTime::from_millis(100)),
        Outcome::Ignored
    );
    removed(&mut room, Command::Moderate(Moderation::Reopen));
    for stage in [EndStage::Proposed, EndStage::Agreed] {
        let command = end(&room, stage);
        assert_eq!(
            room.apply(command, WallTime::from_millis(100)),
            Outcome::Ignored,
            "not all agree"
        );
    }
    assert_eq!(room.apply(command, WallTime::from_millis(100)), Outcome::Ended);
    assert_eq!(rejection(&mut room, join("Bob", 2)), Rejection::RoomDeleted);
}
