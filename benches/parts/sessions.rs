//! Sessions: what a JOIN, a LEAVE, a lost connection and the end of a grace period cost, whatever the number of participants
//! and of those who are lost.

use std::hint::black_box;

use chitchat::domain::{Command, Join, Leave, Room, Sequence, Session};
use criterion::{BatchSize, BenchmarkId, Criterion, Throughput};

use crate::fixtures::{NOW, join, joined, room_of};

/// The number of participants.
const MEMBERS: [i32; 3] = [100, 10_000, 50_000];

pub(crate) fn bench(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("sessions");
    group.throughput(Throughput::Elements(1));
    for members in MEMBERS {
        let (mut room, newest) = room_of(members);
        let newcomer = members + 1;
        let name = |what| BenchmarkId::new(what, members);
        group.bench_function(name("join and leave, members"), |bencher| {
            bencher.iter_batched(
                || join(newcomer),
                |join| {
                    let attachment = joined(&mut room, join);
                    let leave = Leave {
                        attachment,
                        timestamp: None,
                        trace: None,
                    };
                    black_box(room.apply(Command::Leave(leave), NOW))
                },
                BatchSize::SmallInput,
            );
        });
        let session = Session {
            participant: newest.participant,
            join_sequence: Sequence::new(members.unsigned_abs().into()),
        };
        let mut attachment = newest;
        group.bench_function(name("loss and resume, members"), |bencher| {
            bencher.iter_batched(
                || Join {
                    session: Some(session),
                    ..join(members)
                },
                |resume| {
                    room.apply(Command::Detach(attachment), NOW);
                    attachment = joined(&mut room, resume);
                },
                BatchSize::SmallInput,
            );
        });
        group.bench_function(name("join, loss and end of grace, members"), |bencher| {
            bencher.iter_batched(
                || join(newcomer),
                |join| {
                    let attachment = joined(&mut room, join);
                    room.apply(Command::Detach(attachment), NOW);
                    black_box(room.apply(Command::ExpireGrace(attachment), NOW))
                },
                BatchSize::SmallInput,
            );
        });
        // A restored room, in which everybody is lost.
        let mut room = Room::from_snapshot(*room.rules(), room.take_snapshot());
        group.bench_function(
            name("join under the name of one of the lost, members"),
            |bencher| {
                bencher.iter_batched(
                    || join(members),
                    |join| {
                        let attachment = joined(&mut room, join);
                        black_box(room.apply(Command::Detach(attachment), NOW))
                    },
                    BatchSize::SmallInput,
                );
            },
        );
    }
    group.finish();
}
