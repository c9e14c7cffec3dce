use super::*;
use crate::domain::{Attachment, Join, MessageId, Moderation, Name, Origin, Post, Text, Timestamp};

const V1: FoldVersions = FoldVersions { oldest: 1, newest: 1 };
const V2: FoldVersions = FoldVersions { oldest: 1, newest: 2 };

/// A partition, and the time of its messages.
struct Order {
    partition: Partition,
    numbers: BTreeMap<Place, u64>,
}

impl Order {
    fn new() -> Self {
        Self {
            partition: Partition::new().with_supported(V2),
            numbers: BTreeMap::new(),
        }
    }

    fn apply(&mut self, content: Content) -> Applied {
        let at = WallTime::from_millis(1_700_000_000_000);
        let place = self.partition.applied().next();
        self.partition.apply(place, Message { at, content }).unwrap()
    }

    fn hello(&mut self, rules: OrderRules, supported: FoldVersions) -> Applied {
        let nonce = self.partition.applied().get();
        self.apply(Content::Hello {
            nonce,
            rules,
            supported,
            name: "r".into(),
            version: "1".into(),
        })
    }

    fn begin(&mut self) -> Place {
        match self.hello(rules(), V1) {
            Applied::Hello { incarnation, .. } => incarnation,
            other => panic!("{other:?}"),
        }
    }

    fn heartbeat(&mut self, incarnation: Place) -> Place {
        let applied = self.partition.applied();
        self.apply(Content::Heartbeat {
            incarnation,
            applied,
            digest: self.partition.digest(),
            durable: None,
            name: "r".into(),
            version: "1".into(),
        });
        self.partition.applied()
    }

    fn command(
        &mut self,
        incarnation: Place,
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

    fn join(&mut self, incarnation: Place, room: &str, name: &str) -> Attachment {
        let decision = self.command(incarnation, room, None, join(name));
        match decision.outcome {
            Ok((_, Outcome::Joined { attachment, .. })) => attachment,
            other => panic!("{other:?}"),
        }
    }
}

fn rules() -> OrderRules {
    OrderRules::new(Rules::default(), 3)
}

fn join(name: &str) -> Command {
    Command::Join(Join {
        session: None,
        id: None,
        name: Name::try_from(name).unwrap(),
        owner: None,
        origin: Origin::default(),
        timestamp: Timestamp(0),
        is_resumable: true,
        trace: None,
    })
}

fn post(id: usize) -> Command {
    Command::Post(Post {
        name: Name::try_from("poster").unwrap(),
        origin: Origin::default(),
        message: crate::domain::Message {
            timestamp: Timestamp(0),
            text: Text::parse("hi", 9),
            message_id: Some(MessageId::try_from(format!("m{id}").as_str())),
            trace: None,
        },
    })
}

#[test]
fn the_limit_of_rooms_holds_for_all_but_the_lobby() {
    let mut order = Order::new();
    let replica = order.begin();
    for room in ["one", "two", "three"] {
        order.join(replica, room, "Ada");
    }
    let refused = order.command(replica, "four", None, join("Ada"));
    assert_eq!(refused.outcome.map(drop), Err(Refusal::TooManyRooms));
    assert!(refused.is_void);
    order.join(replica, RoomName::LOBBY, "Ada");
}

#[test]
fn the_attachments_of_a_deleted_room_are_forgotten() {
    let mut order = Order::new();
    let replica = order.begin();
    order.join(replica, "tea", "Ada");
    let epoch = order.partition.rooms.values().next().map(|room| room.epoch);
    let deletion = Command::Moderate(Moderation::Delete);
    assert!(order.command(replica, "tea", epoch, deletion).outcome.is_ok());
    assert!(order.partition.attachments.is_empty() && order.partition.rooms.is_empty());
    let late = order.command(replica, "tea", epoch, join("Bob"));
    assert_eq!(late.outcome.map(drop), Err(Refusal::RoomDeleted));
}

#[test]
fn whoever_has_written_since_is_not_lost() {
    let mut order = Order::new();
    let replica = order.begin();
    let seen = order.heartbeat(replica);
    order.heartbeat(replica);
    let lost = order.apply(Content::Lost {
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
    assert_eq!(order.partition.incarnations.len(), MAX_INCARNATIONS);
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
    let longer = OrderRules {
        rooms: Rules {
            max_participants: 1,
            ..Rules::default()
        },
        ..rules()
    };
    let others = [
        longer,
        OrderRules {
            max_rooms: 4,
            ..rules()
        },
        OrderRules {
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
    order.apply(Content::Lost {
        incarnation: replica,
        seen: order.partition.incarnations[&replica].seen,
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
    order.partition.max_message_ids = 3_000;
    let replica = order.begin();
    for (room, posts) in [("one", 2_500), ("two", 1_400), ("three", 1_400), ("one", 1_000)] {
        for id in 0..posts {
            let decision = order.command(replica, room, None, post(10_000 * order.numbers.len() + id));
            let room = &order.partition.rooms[&decision.room].room;
            if let Some(kept) = decision.kept_message_ids {
                assert_eq!(room.message_ids(), kept);
            }
            let sum = order
                .partition
                .rooms
                .values()
                .map(|room| room.room.message_ids())
                .sum::<usize>();
            assert_eq!(order.partition.message_ids, sum);
            assert!(sum <= 2 * 3_000, "{sum}");
        }
    }
    let ids = |name: &str| {
        order.partition.rooms[&RoomName::try_from(name).unwrap()]
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
    assert_eq!(order.partition.next_version(), None);
    let premature = order.apply(Content::Activate { version: 2 });
    assert!(matches!(premature, Applied::Ignored(Ignored::Premature)));
    let seen = order.partition.incarnations[&old].seen;
    order.apply(Content::Lost {
        incarnation: old,
        seen,
    });
    assert_eq!(order.partition.next_version(), Some(2));
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
    order.partition.supported = V1;
    let error = order.partition.check_version().unwrap_err().to_string();
    assert!(
        error.contains("version 2 of the order") && error.contains("supports 1:"),
        "{error}"
    );
}
