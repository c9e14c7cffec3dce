use super::*;
use crate::cluster::fixtures;
use crate::domain::{Attachment, Moderation};

const V1: FoldVersions = FoldVersions { oldest: 1, newest: 1 };
const V2: FoldVersions = FoldVersions { oldest: 1, newest: 2 };

/// A state machine, and the time of its messages.
struct Order {
    state_machine: StateMachine,
    numbers: BTreeMap<LogPosition, u64>,
}

impl Order {
    fn new() -> Self {
        Self {
            state_machine: StateMachine::new().with_supported(V2),
            numbers: BTreeMap::new(),
        }
    }

    fn apply(&mut self, content: Content) -> Applied {
        let at = WallTime::from_millis(1_700_000_000_000);
        let position = self.state_machine.applied().next();
        self.state_machine
            .apply(position, Message { at, content })
            .unwrap()
    }

    fn hello(&mut self, rules: ClusterRules, supported: FoldVersions) -> Applied {
        let nonce = self.state_machine.applied().get();
        self.apply(Content::Hello {
            nonce,
            rules,
            supported,
            name: "r".into(),
            version: "1".into(),
        })
    }

    fn begin(&mut self) -> LogPosition {
        match self.hello(rules(), V1) {
            Applied::Hello { incarnation, .. } => incarnation,
            other => panic!("{other:?}"),
        }
    }

    fn heartbeat(&mut self, incarnation: LogPosition) -> LogPosition {
        let applied = self.state_machine.applied();
        self.apply(Content::Heartbeat {
            incarnation,
            applied,
            digest: self.state_machine.digest(),
            checkpoint: None,
            name: "r".into(),
            version: "1".into(),
        });
        self.state_machine.applied()
    }

    fn command(
        &mut self,
        incarnation: LogPosition,
        room: &str,
        epoch: Option<Epoch>,
        command: Command,
    ) -> Decision {
        let number = self.numbers.entry(incarnation).or_default();
        *number += 1;
        let content = Content::Batch {
            incarnation,
            number: *number,
            commands: vec![RoomCommand {
                room: RoomName::try_from(room).unwrap(),
                epoch,
                request: 1,
                command,
            }],
        };
        match self.apply(content) {
            Applied::Batch { mut decisions, .. } => decisions.pop().unwrap(),
            other => panic!("{other:?}"),
        }
    }

    fn join(&mut self, incarnation: LogPosition, room: &str, name: &str) -> Attachment {
        let decision = self.command(incarnation, room, None, join(name));
        match decision.outcome {
            Ok((_, Outcome::Joined { attachment, .. })) => attachment,
            other => panic!("{other:?}"),
        }
    }
}

fn rules() -> ClusterRules {
    ClusterRules::new(Rules::default(), 3)
}

fn join(name: &str) -> Command {
    Command::Join(fixtures::join(name))
}

fn post(id: usize) -> Command {
    Command::Post(fixtures::post(Some(format!("m{id}"))))
}

#[test]
fn the_limit_of_rooms_holds_for_all_but_the_lobby() {
    let mut order = Order::new();
    let replica = order.begin();
    for room in ["one", "two", "three"] {
        order.join(replica, room, "Ada");
    }
    let refused = order.command(replica, "four", None, join("Ada"));
    assert_eq!(refused.outcome.map(drop), Err(RoutingError::TooManyRooms));
    assert!(refused.is_void);
    order.join(replica, RoomName::LOBBY, "Ada");
}

#[test]
fn the_attachments_of_a_deleted_room_are_forgotten() {
    let mut order = Order::new();
    let replica = order.begin();
    order.join(replica, "tea", "Ada");
    let epoch = order.state_machine.rooms.values().next().map(|room| room.epoch);
    let deletion = Command::Moderate(Moderation::Delete);
    assert!(order.command(replica, "tea", epoch, deletion).outcome.is_ok());
    assert!(order.state_machine.attachments.is_empty() && order.state_machine.rooms.is_empty());
    let late = order.command(replica, "tea", epoch, join("Bob"));
    assert_eq!(late.outcome.map(drop), Err(RoutingError::RoomGone));
}

#[test]
fn whoever_has_written_since_is_not_lost() {
    let mut order = Order::new();
    let replica = order.begin();
    let seen = order.heartbeat(replica);
    order.heartbeat(replica);
    let lost = order.apply(Content::Fence {
        incarnation: replica,
        seen,
    });
    assert!(matches!(lost, Applied::Ignored(Ignored::Alive)), "{lost:?}");
}

#[test]
fn the_incarnation_that_was_not_seen_for_longest_makes_way_for_another() {
    let mut order = Order::new();
    let first = order.begin();
    let second = order.begin();
    let ada = order.join(second, "tea", "Ada");
    for _ in 2..MAX_INCARNATIONS {
        order.begin();
    }
    order.heartbeat(first);
    let Applied::Hello {
        evicted: Some((evicted, decisions)),
        ..
    } = order.hello(rules(), V1)
    else {
        panic!("nobody makes way");
    };
    assert_eq!(evicted, second);
    assert_eq!(decisions.len(), 1);
    assert_eq!(decisions[0].command, Command::Detach(ada));
    assert!(matches!(decisions[0].outcome, Ok((_, Outcome::Lost))));
    assert_eq!(order.state_machine.incarnations.len(), MAX_INCARNATIONS);
    let fenced = order.apply(Content::Batch {
        incarnation: second,
        number: 2,
        commands: Vec::new(),
    });
    assert!(matches!(fenced, Applied::Ignored(Ignored::Fenced)));
}

#[test]
fn the_rules_change_when_nobody_lives_who_has_others() {
    let mut order = Order::new();
    let replica = order.begin();
    order.join(replica, "tea", "Ada");
    let longer = ClusterRules {
        rooms: Rules {
            max_participants: 1,
            ..Rules::default()
        },
        ..rules()
    };
    let others = [
        longer,
        ClusterRules {
            max_rooms: 4,
            ..rules()
        },
        ClusterRules {
            name_tables: 7,
            ..rules()
        },
    ];
    for other in others {
        let refused = order.hello(other, V1);
        assert!(
            matches!(refused, Applied::Ignored(Ignored::OtherRules)),
            "{refused:?}"
        );
    }
    order.apply(Content::Fence {
        incarnation: replica,
        seen: order.state_machine.incarnations[&replica].seen,
    });
    let Applied::Hello {
        incarnation,
        rules: Some(changed),
        ..
    } = order.hello(longer, V1)
    else {
        panic!("it is not welcome");
    };
    assert_eq!(changed, longer.rooms);
    // They hold in the rooms that there are.
    let full = order.command(incarnation, "tea", None, join("Bob"));
    let Ok((_, Outcome::Rejected { rejection, .. })) = full.outcome else {
        panic!("{full:?}");
    };
    assert_eq!(rejection, crate::domain::Rejection::RoomFull(1));
}

#[test]
fn all_rooms_together_remember_a_bounded_number_of_message_ids() {
    let mut order = Order::new();
    order.state_machine.max_message_ids = 3_000;
    let replica = order.begin();
    for (room, posts) in [("one", 2_500), ("two", 1_400), ("three", 1_400), ("one", 1_000)] {
        for id in 0..posts {
            let decision = order.command(replica, room, None, post(10_000 * order.numbers.len() + id));
            let room = &order.state_machine.rooms[&decision.room].room;
            if let Some(kept) = decision.kept_message_ids {
                assert_eq!(room.message_ids(), kept);
            }
            let sum = order
                .state_machine
                .rooms
                .values()
                .map(|room| room.room.message_ids())
                .sum::<usize>();
            assert_eq!(order.state_machine.message_ids, sum);
            assert!(sum <= 2 * 3_000, "{sum}");
        }
    }
    let ids = |name: &str| {
        order.state_machine.rooms[&RoomName::try_from(name).unwrap()]
            .room
            .message_ids()
    };
    // Those that grow have no more than their part.
    assert!(ids("three") <= 1_000, "{}", ids("three"));
    assert!(ids("two") <= 1_500 && ids("two") > 256, "{}", ids("two"));
}

#[test]
fn a_version_is_activated_once_all_that_live_support_it() {
    let mut order = Order::new();
    let (old, _new) = (order.begin(), order.hello(rules(), V2));
    assert_eq!(order.state_machine.next_version(), None);
    let premature = order.apply(Content::Activate { version: 2 });
    assert!(matches!(premature, Applied::Ignored(Ignored::NotReady)));
    let seen = order.state_machine.incarnations[&old].seen;
    order.apply(Content::Fence {
        incarnation: old,
        seen,
    });
    assert_eq!(order.state_machine.next_version(), Some(2));
    let activated = order.apply(Content::Activate { version: 2 });
    assert!(matches!(activated, Applied::Activated(2)));
    let again = order.apply(Content::Activate { version: 2 });
    assert!(matches!(again, Applied::Ignored(Ignored::Repeated)));
    let refused = order.hello(rules(), V1);
    assert!(matches!(
        refused,
        Applied::Ignored(Ignored::Unsupported { active: 2 })
    ));
    // A program that does not know the version does not guess.
    order.state_machine.supported = V1;
    let error = order.state_machine.check_version().unwrap_err().to_string();
    assert!(
        error.contains("version 2 of the command log") && error.contains("supports 1:"),
        "{error}"
    );
}

fn end(stage: EndStage, last: u64) -> Command {
    let last = Sequence::new(last);
    Command::End(End { last, stage })
}

impl Order {
    /// A replica proposes the end of a room whose newest event is `last`, or agrees to it. Returns the stage that it has got to.
    fn end(
        &mut self,
        incarnation: LogPosition,
        room: &str,
        stage: EndStage,
        last: u64,
    ) -> (EndStage, Outcome) {
        let epoch = self.state_machine.epoch(&RoomName::try_from(room).unwrap());
        let decision = self.command(incarnation, room, epoch, end(stage, last));
        match (decision.command, decision.outcome) {
            (Command::End(end), Ok((_, outcome))) => (end.stage, outcome),
            other => panic!("{other:?}"),
        }
    }

    /// The state machine that is made of its state, as a replica that begins with a checkpoint.
    fn restore(&mut self) {
        let (state, rooms) = self.state_machine.state();
        self.state_machine = StateMachine::from_state(state.clone(), rooms).with_supported(V2);
        assert_eq!(self.state_machine.state().0, state);
    }
}

use EndStage::{Agreed, Decided, Proposed};

#[test]
fn a_room_ends_once_all_that_live_agree() {
    let mut order = Order::new();
    let [one, two, three] = [(); 3].map(|()| order.begin());
    let ada = order.join(one, "tea", "Ada");
    assert_eq!(
        order.end(one, "tea", Proposed, 1),
        (Agreed, Outcome::Ignored),
        "she is in it, so nobody is asked"
    );
    assert!(order.state_machine.ends.is_empty());
    let epoch = order.state_machine.epoch(&RoomName::try_from("tea").unwrap());
    order.command(one, "tea", epoch, Command::Detach(ada));
    assert_eq!(
        order.end(one, "tea", Proposed, 1).1,
        Outcome::Ignored,
        "she is lost"
    );
    order.command(two, "tea", epoch, Command::ExpireGrace(ada));
    assert_eq!(
        order.end(one, "tea", Proposed, 1).1,
        Outcome::Ignored,
        "she has left since"
    );
    assert_eq!(
        order.end(two, "tea", Agreed, 2),
        (Agreed, Outcome::Ignored),
        "nobody has asked"
    );
    assert_eq!(order.end(one, "tea", Proposed, 2), (Proposed, Outcome::Ignored));
    assert_eq!(
        order.end(two, "tea", Decided, 2),
        (Agreed, Outcome::Ignored),
        "the third has not"
    );
    order.restore();
    assert_eq!(
        order.end(two, "tea", Agreed, 2),
        (Agreed, Outcome::Ignored),
        "nor is it counted twice"
    );
    assert_eq!(order.end(three, "tea", Agreed, 2), (Decided, Outcome::Ended));
    let state_machine = &order.state_machine;
    assert!(
        state_machine.rooms.is_empty()
            && state_machine.ends.is_empty()
            && state_machine.attachments.is_empty()
    );
    // What was on its way to it does not reach the next one.
    let late = order.command(one, "tea", epoch, join("Bob"));
    assert_eq!(late.outcome.map(drop), Err(RoutingError::RoomGone));
    assert!(late.is_void);
    order.join(one, "tea", "Bob");
    assert!(order.state_machine.epoch(&RoomName::try_from("tea").unwrap()) > epoch);
    let late = order.command(one, "tea", epoch, end(Decided, 1));
    assert_eq!(late.outcome.map(drop), Err(RoutingError::RoomGone));
}

#[test]
fn whoever_was_asked_before_is_asked_again() {
    let mut order = Order::new();
    let [one, two] = [(); 2].map(|()| order.begin());
    let tea = RoomName::try_from("tea").unwrap();
    order.command(one, "tea", None, post(0));
    order.end(one, "tea", Proposed, 1);
    // Something happens, and then what was said before does not count.
    let epoch = order.state_machine.epoch(&tea);
    order.command(one, "tea", epoch, post(1));
    assert!(order.state_machine.ends.is_empty());
    assert_eq!(order.end(two, "tea", Agreed, 1).1, Outcome::Ignored);
    assert_eq!(order.end(two, "tea", Agreed, 2).1, Outcome::Ignored);
    assert_eq!(order.end(two, "tea", Proposed, 2), (Proposed, Outcome::Ignored));
    // Another one proposes it: the second may need the room by now.
    assert_eq!(order.end(one, "tea", Proposed, 2), (Proposed, Outcome::Ignored));
    // A replica that has come since has not agreed, and one that is lost need not.
    let three = order.begin();
    assert!(
        order.state_machine.ends.is_empty(),
        "what was agreed before is old"
    );
    assert_eq!(order.end(two, "tea", Agreed, 2).1, Outcome::Ignored);
    assert_eq!(order.end(one, "tea", Proposed, 2), (Proposed, Outcome::Ignored));
    assert_eq!(order.end(two, "tea", Agreed, 2), (Agreed, Outcome::Ignored));
    let seen = order.state_machine.incarnations[&three].seen;
    order.apply(Content::Fence {
        incarnation: three,
        seen,
    });
    assert!(
        order.state_machine.epoch(&tea).is_some(),
        "until somebody says so again"
    );
    assert_eq!(order.end(one, "tea", Agreed, 2), (Decided, Outcome::Ended));
}

#[test]
fn a_room_that_keeps_somebody_out_does_not_end() {
    let mut order = Order::new();
    let replica = order.begin();
    let tea = RoomName::try_from("tea").unwrap();
    order.command(replica, "tea", None, post(0));
    for (moderation, can_end) in [(Moderation::Close, false), (Moderation::Reopen, true)] {
        let epoch = order.state_machine.epoch(&tea);
        let decision = order.command(replica, "tea", epoch, Command::Moderate(moderation));
        assert!(decision.outcome.is_ok());
        assert_eq!(
            order.end(replica, "tea", Proposed, 1).1 == Outcome::Ended,
            can_end
        );
    }
    // The lobby is no exception, and a command that was meant for no room in particular ends none.
    order.command(replica, RoomName::LOBBY, None, post(0));
    let unmeant = order.command(replica, RoomName::LOBBY, None, end(Decided, 1));
    assert!(matches!(unmeant.outcome, Ok((_, Outcome::Ignored))));
    assert_eq!(order.end(replica, RoomName::LOBBY, Proposed, 1).1, Outcome::Ended);
}

#[test]
fn places_of_rooms_that_have_ended_are_free() {
    let mut order = Order::new();
    let replica = order.begin();
    for round in 0..9 {
        for room in ["one", "two", "three"] {
            order.command(replica, room, None, post(round));
        }
        let refused = order.command(replica, "four", None, post(round));
        assert_eq!(refused.outcome.map(drop), Err(RoutingError::TooManyRooms));
        for room in ["one", "two", "three"] {
            assert_eq!(order.end(replica, room, Proposed, 1), (Decided, Outcome::Ended));
        }
        assert_eq!(order.state_machine.message_ids, 0);
    }
}
