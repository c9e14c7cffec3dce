//! Every fault, under load. What the clients have seen must violate no invariant, and all replicas must have the same log.
//!
//! The long runs, with an optimised program:
//!
//! - `CLUSTER_ROUNDS=20 cargo test --release --features failpoints --test cluster every_fault -- --ignored --nocapture`: every fault 20
//!   times, and how long clients waited. `CLUSTER_FAULTS=Cut,Paused` selects faults by parts of their names. A full disk needs the
//!   superuser.
//! - `cargo test --release --test cluster rolling -- --ignored --nocapture`: 200 orderly restarts of replicas and NATS servers.

use std::collections::BTreeMap;
use std::env;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::time::Duration;

use chitchat_verify::crash_harness::seed;
use rand::rngs::StdRng;
use rand::seq::SliceRandom as _;
use rand::{Rng as _, SeedableRng as _};

use crate::cluster::Cluster;
use crate::fault::{Fault, NatsFault, ReplicaFault, Role, Stalls};
use crate::process::skip;

/// After so many faults all clients leave, and other ones begin, so that what they have seen fits into memory.
const MAX_FAULTS: usize = 40;

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_of_nats_and_a_replica_that_are_cut_off_lose_nothing() {
    let faults = [
        Fault::Nats(Role::Leader, NatsFault::Cut),
        Fault::Replica(ReplicaFault::Cut),
    ];
    endure(faults.into()).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes an hour or two"]
async fn every_fault_violates_no_invariant() {
    let rounds = env::var("CLUSTER_ROUNDS").map_or(1, |rounds| rounds.parse().unwrap());
    let selected = env::var("CLUSTER_FAULTS").unwrap_or_default();
    let is_selected = |fault: &Fault| selected.split(',').any(|part| fault.to_string().contains(part));
    let (full, others): (Vec<_>, Vec<_>) = Fault::all()
        .into_iter()
        .filter(is_selected)
        .partition(|fault| fault.needs_small_disks());
    assert!(
        !others.is_empty() || !full.is_empty(),
        "CLUSTER_FAULTS={selected} names no fault"
    );
    let mut stalls = BTreeMap::new();
    for faults in [others, full] {
        let is_superuser = fs::metadata("/proc/self").unwrap().uid() == 0;
        if faults.iter().any(|fault| fault.needs_small_disks()) && !is_superuser {
            skip("a full disk: only the superuser can make a file system");
            continue;
        }
        let faults: Vec<_> = (0..rounds).flat_map(|_| faults.iter().copied()).collect();
        for (fault, more) in endure(faults).await {
            stalls.entry(fault).or_insert_with(Vec::new).extend(more);
        }
    }
    println!(
        "\n{:<34}{:>6}  no client: median, longest (s)  slowest: median, longest (s)",
        "fault", "times"
    );
    for (fault, stalls) in stalls {
        let of = |of: fn(&Stalls) -> Duration| {
            let mut all: Vec<_> = stalls.iter().map(|stalls| of(stalls).as_secs_f64()).collect();
            all.sort_unstable_by(f64::total_cmp);
            format!("{:>12.1}{:>10.1}", all[all.len() / 2], all[all.len() - 1])
        };
        let (all, one) = (of(|stalls| stalls.of_all), of(|stalls| stalls.of_one));
        println!("{:<34}{:>6}{all}      {one}", fault.to_string(), stalls.len());
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes half an hour"]
async fn two_hundred_rolling_restarts_lose_nothing() {
    let faults = [
        Fault::Replica(ReplicaFault::Terminated),
        Fault::Nats(Role::Leader, NatsFault::Terminated),
        Fault::Replica(ReplicaFault::Terminated),
        Fault::Nats(Role::Follower, NatsFault::Terminated),
    ];
    endure(faults.into_iter().cycle().take(200).collect()).await;
}

/// Injects the faults in random order. Returns how long clients waited.
async fn endure(mut faults: Vec<Fault>) -> BTreeMap<Fault, Vec<Stalls>> {
    let seed = seed();
    let mut random = StdRng::seed_from_u64(seed);
    faults.shuffle(&mut random);
    let small_disks = faults.iter().any(|fault| fault.needs_small_disks());
    let mut all: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for faults in faults.chunks(MAX_FAULTS) {
        let with_directory = |n| Some(format!("replica{n}"));
        let Some(mut cluster) = Cluster::start_with(seed, small_disks, with_directory).await else {
            return all;
        };
        for fault in faults {
            let stalls;
            (cluster, stalls) = cluster.endure(*fault, random.random_range(0..usize::MAX)).await;
            println!(
                "{fault}: nobody for {:.1?}, one for {:.1?}",
                stalls.of_all, stalls.of_one
            );
            all.entry(*fault).or_default().push(stalls);
        }
        cluster.finish().await;
    }
    all
}
