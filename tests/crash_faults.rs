//! Crashes between any two steps of a batch lose nothing; and the crash test catches a server that breaks its promises.
//!
//! `cargo test --features failpoints --test crash_faults`
// Helpers of tests panic as tests do.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

mod outage;

use std::time::{Duration, Instant};

use chitchat::verify::{History, Invariant, check};
use outage::{PATIENCE, Run, Server, Site, seed};
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use tokio::task::block_in_place;

fn site(failpoints: &str) -> Site {
    let mut site = Site::new(&["--resume-grace", "10m"]);
    site.set_failpoints(failpoints);
    site
}

fn start(site: &Site) -> Server {
    block_in_place(|| site.start())
}

/// Three who talk and one who listens.
fn run(site: &Site) -> Run {
    let mut run = Run::new(site.address, 1);
    for (name, window) in [("Ada", 16), ("Bob", 16), ("Cleo", 16), ("Eve", 0)] {
        run.add(name, window);
    }
    run
}

fn allow(run: &Run, count: u64) {
    for member in run.members.iter().take(3) {
        member.order(|orders| orders.allowance += count);
    }
}

/// Waits until everybody has been heard by everybody.
async fn until_heard(run: &Run, count: u64) {
    for member in run.members.iter().take(3) {
        member
            .until("acknowledgement", |progress| progress.acknowledged >= count)
            .await;
    }
    let last = run.members.iter().map(|member| member.now().last).max().unwrap();
    for member in &run.members {
        member.until("delivery", |progress| progress.last >= last).await;
    }
}

/// Keeps everybody talking until the server has ended, which it does when it passes `point`.
async fn talk_until_ended(run: &Run, server: &mut Server, point: &str) {
    let deadline = Instant::now() + PATIENCE;
    while !server.has_ended() {
        assert!(Instant::now() < deadline, "{point} is not passed");
        if run.acknowledged() >= run.members.iter().map(|member| member.now().sent).sum() {
            allow(run, 5);
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

fn broken(history: &History) -> Vec<Invariant> {
    let wrong = check(history);
    for violation in wrong.iter().take(5) {
        println!("{violation}");
    }
    let mut broken: Vec<_> = wrong.into_iter().map(|violation| violation.invariant).collect();
    broken.sort_unstable();
    broken.dedup();
    broken
}

/// What is wrong when a server without faults has taken the place of the one that ended.
async fn broken_after(mut site: Site, run: Run) -> Vec<Invariant> {
    site.set_failpoints("");
    let streams = run.streams();
    let _server = start(&site);
    run.until_back(&streams).await;
    run.until_settled().await;
    broken(&run.end().await)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_between_any_two_steps_loses_nothing() {
    let mut random = StdRng::seed_from_u64(seed());
    let mut site = site("");
    let run = run(&site);
    let points = [
        "before-append",
        "before-write",
        "before-sync",
        "after-sync",
        "after-append",
        "after-publish",
    ];
    for point in points {
        // The first batch after a start, which is the JOINs or what is sent again, and one later.
        for passage in [1, random.random_range(2..20)] {
            site.set_failpoints(&format!("{point}=kill:{passage}"));
            let mut server = start(&site);
            talk_until_ended(&run, &mut server, point).await;
            let exit = block_in_place(|| server.exit());
            assert_eq!(exit.code, None, "{exit:?}");
            assert_eq!(exit.lines, [format!("chitchat: killed at {point}")]);
        }
    }
    assert_eq!(broken_after(site, run).await, []);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sync_that_fails_ends_the_server_and_loses_nothing() {
    let site = site("before-sync=fail:9");
    let mut server = start(&site);
    let run = run(&site);
    talk_until_ended(&run, &mut server, "the sync").await;
    let exit = block_in_place(|| server.exit());
    assert_eq!(exit.code, Some(74), "{exit:?}");
    assert_eq!(
        exit.lines,
        [format!(
            "chitchat: ended because the store failed: cannot write in {}: simulated disk failure; what was acknowledged \
             is stored",
            site.path("data").display()
        )]
    );
    assert_eq!(broken_after(site, run).await, []);
}

#[tokio::test(flavor = "multi_thread")]
async fn syncs_that_are_slow_only_take_longer() {
    assert_eq!(broken_by("slow-sync=on").await, []);
}

/// What the checker finds wrong with a run of some messages, without a crash.
async fn broken_by(failpoints: &str) -> Vec<Invariant> {
    let site = site(failpoints);
    let _server = start(&site);
    let run = run(&site);
    run.until_back(&[0; 4]).await;
    allow(&run, 60);
    until_heard(&run, 60).await;
    broken(&run.end().await)
}

/// What the checker finds wrong with a run in which the server is killed when everybody has heard everything.
async fn broken_by_crash_and(failpoints: &str) -> Vec<Invariant> {
    let site = site(failpoints);
    let server = start(&site);
    let run = run(&site);
    run.until_back(&[0; 4]).await;
    allow(&run, 20);
    until_heard(&run, 20).await;
    let streams = run.streams();
    block_in_place(|| server.kill());
    let _server = start(&site);
    run.until_back(&streams).await;
    // What comes after it need not work when promises are broken.
    broken(&run.stop().await)
}

#[tokio::test(flavor = "multi_thread")]
async fn without_faults_nothing_is_found() {
    assert_eq!(broken_by("").await, []);
    assert_eq!(broken_by_crash_and("").await, []);
}

#[tokio::test(flavor = "multi_thread")]
async fn events_that_are_not_stored_are_found() {
    // The last LEAVE, which nobody was there to receive, is known to nobody.
    assert_eq!(
        broken_by("skip-append=on").await,
        [Invariant::Durability, Invariant::Roster, Invariant::Leave]
    );
    let broken = broken_by_crash_and("skip-append=on").await;
    assert!(broken.contains(&Invariant::Durability), "{broken:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sync_that_is_skipped_is_found() {
    assert_eq!(broken_by("skip-sync=on").await, []);
    let broken = broken_by_crash_and("skip-sync=on").await;
    assert!(broken.contains(&Invariant::Durability), "{broken:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn events_in_the_wrong_order_are_found() {
    assert_eq!(broken_by("swap-events=on").await, [Invariant::Order]);
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_of_a_sender_in_the_wrong_order_are_found() {
    assert_eq!(broken_by("swap-requests=on").await, [Invariant::Fifo]);
}

#[tokio::test(flavor = "multi_thread")]
async fn message_ids_that_are_forgotten_are_found() {
    // A batch of messages is stored, and nobody hears of it: they are sent again.
    let mut site = site("skip-dedupe=on,after-append=kill:12");
    let mut server = start(&site);
    let run = run(&site);
    run.until_back(&[0; 4]).await;
    talk_until_ended(&run, &mut server, "the point").await;
    site.set_failpoints("skip-dedupe=on");
    let streams = run.streams();
    let _server = start(&site);
    run.until_back(&streams).await;
    run.until_settled().await;
    assert_eq!(broken(&run.end().await), [Invariant::Integrity]);
}
