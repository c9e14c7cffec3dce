//! The fold: commands in, outcomes out.

use std::hint::black_box;

use chitchat::domain::{Command, MessageId, Outcome, Room, Rules};
use criterion::{BatchSize, BenchmarkId, Criterion, Throughput};

use crate::fixtures::{NOW, events, join, room_of, say};

/// The number of events that are replayed.
const REPLAYED: usize = 10_000;

pub(crate) fn bench(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("fold");
    group.throughput(Throughput::Elements(1));
    for participants in [1, 1_000] {
        let (mut room, attachment) = room_of(participants);
        let command = Command::Say(say(attachment));
        group.bench_function(BenchmarkId::new("say, participants", participants), |bencher| {
            bencher.iter_batched(
                || command.clone(),
                |command| black_box(room.apply(command, NOW)),
                BatchSize::SmallInput,
            );
        });
    }
    let ((mut room, attachment), mut number) = (room_of(1), 0_u64);
    group.bench_function("say with a message id", |bencher| {
        bencher.iter_batched(
            || {
                number += 1;
                let mut say = say(attachment);
                say.message.message_id = Some(MessageId::try_from(format!("m{number}").as_str()));
                Command::Say(say)
            },
            |command| black_box(room.apply(command, NOW)),
            BatchSize::SmallInput,
        );
    });
    group.throughput(Throughput::Elements(REPLAYED as u64));
    let joined = Room::new(Rules::default()).apply(Command::Join(join(1)), NOW);
    let Outcome::Joined { joined, .. } = joined else {
        unreachable!("a valid JOIN was answered with {joined:?}");
    };
    let mut log = vec![joined];
    log.extend(events(REPLAYED));
    group.bench_function("replay a log", |bencher| {
        bencher.iter_batched(
            || Room::new(Rules::default()),
            |mut room| {
                for event in &log {
                    room.replay(event, true).expect("the log is valid");
                }
                room
            },
            BatchSize::SmallInput,
        );
    });
    group.finish();
}
