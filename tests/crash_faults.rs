//! Failpoints: crashes between any two steps of a batch violate no invariant, and the checker detects a server with faults.
//!
//! `cargo test --features failpoints --test crash_faults`
// Helpers of tests panic as tests do.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use chitchat::proto::SendMessageRequest;
use chitchat_verify::crash_harness::{Run, ServerFixture, ServerProcess, TIMEOUT, seed};
use chitchat_verify::{History, Invariant, check};
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use tokio::task::block_in_place;

/// The program under test.
const CHITCHAT: &str = env!("CARGO_BIN_EXE_chitchat");

fn fixture(failpoints: &str) -> ServerFixture {
    let mut fixture = ServerFixture::new(CHITCHAT, &["--resume-grace", "10m"]);
    fixture.set_failpoints(failpoints);
    fixture
}

fn start(fixture: &ServerFixture) -> ServerProcess {
    block_in_place(|| fixture.start())
}

/// Starts three clients that send messages and one that only receives.
fn run(fixture: &ServerFixture) -> Run {
    let mut run = Run::new(fixture.address, 1);
    for (name, window) in [("Ada", 16), ("Bob", 16), ("Cleo", 16), ("Eve", 0)] {
        run.add_client(name, window);
    }
    run
}

fn allow(run: &Run, count: u64) {
    for client in run.clients.iter().take(3) {
        client.update_plan(|plan| plan.send_limit += count);
    }
}

/// Waits until `count` messages of each sender are acknowledged and all clients have received them.
async fn wait_for_delivery(run: &Run, count: u64) {
    for client in run.clients.iter().take(3) {
        client
            .wait_until("acknowledgement", |progress| progress.acknowledged >= count)
            .await;
    }
    let last = run
        .clients
        .iter()
        .map(|client| client.progress().last_sequence)
        .max()
        .unwrap();
    for client in &run.clients {
        client
            .wait_until("delivery", |progress| progress.last_sequence >= last)
            .await;
    }
}

/// Sends messages until the server has exited, which it does at `point`.
async fn send_until_exit(run: &Run, server: &mut ServerProcess, point: &str) {
    let deadline = Instant::now() + TIMEOUT;
    while !server.has_exited() {
        assert!(Instant::now() < deadline, "{point} is not reached");
        if run.acknowledged() >= run.clients.iter().map(|client| client.progress().sent).sum() {
            allow(run, 5);
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

fn violations(history: &History) -> Vec<Invariant> {
    let violations = check(history);
    for violation in violations.iter().take(5) {
        println!("{violation}");
    }
    let mut invariants: Vec<_> = violations
        .into_iter()
        .map(|violation| violation.invariant)
        .collect();
    invariants.sort_unstable();
    invariants.dedup();
    invariants
}

/// The violations after a server without failpoints has replaced the one that exited.
async fn violations_after(mut fixture: ServerFixture, run: Run) -> Vec<Invariant> {
    fixture.set_failpoints("");
    let streams = run.streams();
    let _server = start(&fixture);
    run.wait_for_reconnects(&streams).await;
    run.wait_for_acknowledgements().await;
    violations(&run.finish().await)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_between_any_two_steps_violates_no_invariant() {
    let mut random = StdRng::seed_from_u64(seed());
    let mut fixture = fixture("");
    let run = run(&fixture);
    let points = [
        "before-append",
        "before-write",
        "before-sync",
        "after-sync",
        "after-append",
        "after-publish",
    ];
    for point in points {
        // The first batch after a start (JOINs and resent messages), and a later one.
        for passage in [1, random.random_range(2..20)] {
            fixture.set_failpoints(&format!("{point}=kill:{passage}"));
            let mut server = start(&fixture);
            send_until_exit(&run, &mut server, point).await;
            let exit = block_in_place(|| server.wait_for_exit());
            assert_eq!(exit.code, None, "{exit:?}");
            assert_eq!(exit.lines, [format!("chitchat: killed at {point}")]);
        }
    }
    assert_eq!(violations_after(fixture, run).await, []);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_sync_ends_the_server_and_violates_no_invariant() {
    let fixture = fixture("before-sync=fail:9");
    let mut server = start(&fixture);
    let run = run(&fixture);
    send_until_exit(&run, &mut server, "the sync").await;
    let exit = block_in_place(|| server.wait_for_exit());
    assert_eq!(exit.code, Some(74), "{exit:?}");
    assert_eq!(
        exit.lines,
        [format!(
            "chitchat: ended because the store failed: cannot write in {}: simulated disk failure; what was acknowledged \
             is stored",
            fixture.path("data").display()
        )]
    );
    assert_eq!(violations_after(fixture, run).await, []);
}

#[tokio::test(flavor = "multi_thread")]
async fn slow_syncs_violate_no_invariant() {
    assert_eq!(violations_of("slow-sync=on").await, []);
}

/// The violations in a run without a crash.
async fn violations_of(failpoints: &str) -> Vec<Invariant> {
    let fixture = fixture(failpoints);
    let _server = start(&fixture);
    let run = run(&fixture);
    run.wait_for_reconnects(&[0; 4]).await;
    allow(&run, 60);
    wait_for_delivery(&run, 60).await;
    violations(&run.finish().await)
}

/// The violations in a run in which the server is killed after all messages were delivered.
async fn violations_of_crash_with(failpoints: &str) -> Vec<Invariant> {
    let fixture = fixture(failpoints);
    let server = start(&fixture);
    let run = run(&fixture);
    run.wait_for_reconnects(&[0; 4]).await;
    allow(&run, 20);
    wait_for_delivery(&run, 20).await;
    let streams = run.streams();
    block_in_place(|| server.kill());
    let _server = start(&fixture);
    run.wait_for_reconnects(&streams).await;
    // With faults the rest of the conversation need not work.
    violations(&run.stop().await)
}

#[tokio::test(flavor = "multi_thread")]
async fn without_faults_there_are_no_violations() {
    assert_eq!(violations_of("").await, []);
    assert_eq!(violations_of_crash_with("").await, []);
}

#[tokio::test(flavor = "multi_thread")]
async fn events_that_are_not_stored_are_detected() {
    // No client is left to receive the last LEAVE, so only the roster shows it.
    assert_eq!(
        violations_of("skip-append=on").await,
        [Invariant::Durability, Invariant::Roster, Invariant::Leave]
    );
    let violations = violations_of_crash_with("skip-append=on").await;
    assert!(violations.contains(&Invariant::Durability), "{violations:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_skipped_sync_is_detected() {
    assert_eq!(violations_of("skip-sync=on").await, []);
    let violations = violations_of_crash_with("skip-sync=on").await;
    assert!(violations.contains(&Invariant::Durability), "{violations:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn reordered_events_are_detected() {
    assert_eq!(violations_of("swap-events=on").await, [Invariant::Order]);
}

#[tokio::test(flavor = "multi_thread")]
async fn reordered_messages_of_a_sender_are_detected() {
    assert_eq!(violations_of("swap-requests=on").await, [Invariant::Fifo]);
}

#[tokio::test(flavor = "multi_thread")]
async fn forgotten_message_ids_are_detected() {
    // A batch is stored but not delivered, so its messages are sent again.
    let mut fixture = fixture("skip-dedupe=on,after-append=kill:12");
    let mut server = start(&fixture);
    let run = run(&fixture);
    run.wait_for_reconnects(&[0; 4]).await;
    send_until_exit(&run, &mut server, "the point").await;
    fixture.set_failpoints("skip-dedupe=on");
    let streams = run.streams();
    let _server = start(&fixture);
    run.wait_for_reconnects(&streams).await;
    run.wait_for_acknowledgements().await;
    assert_eq!(violations(&run.finish().await), [Invariant::Integrity]);
}

/// Sends long messages to a server until it is killed at `failpoints`. Returns the sequences of the acknowledged ones by
/// message id.
async fn send_until_killed(fixture: &ServerFixture, failpoints: &str, from: u64) -> BTreeMap<String, u64> {
    // The compactor may reach the point before the server listens.
    let Ok(mut server) = block_in_place(|| fixture.try_start()) else {
        return BTreeMap::new();
    };
    let mut senders = tokio::task::JoinSet::new();
    for sender in 0..8 {
        let mut client = Run::new(fixture.address, 1).connect().await;
        senders.spawn(async move {
            let mut acknowledged = Vec::new();
            for n in from.. {
                let request = SendMessageRequest {
                    room: "tea".into(),
                    client_name: format!("Ada{sender}"),
                    msg: "x".repeat(1_900),
                    message_id: format!("{sender}-{n}"),
                    ..SendMessageRequest::default()
                };
                let message_id = request.message_id.clone();
                match client.send_message(request).await {
                    Ok(response) => {
                        let broadcast = response.into_inner().broadcast.unwrap();
                        acknowledged.push((message_id, broadcast.sequence));
                    }
                    Err(_) => break,
                }
            }
            acknowledged
        });
    }
    let deadline = Instant::now() + TIMEOUT;
    while !server.has_exited() {
        assert!(Instant::now() < deadline, "{failpoints} is not reached");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let exit = block_in_place(|| server.wait_for_exit());
    assert_eq!(exit.code, None, "{exit:?}");
    senders.join_all().await.into_iter().flatten().collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_at_any_step_of_a_segments_life_loses_nothing() {
    // Segments of 1 MiB, of which two are retained.
    let options = ["--retain-total-bytes", "2MiB", "--durability", "os"];
    let mut fixture = ServerFixture::new(CHITCHAT, &options);
    let points = [
        "segment-created",
        "segment-synced",
        "segment-renamed",
        "seal-written",
        "seal-synced",
        "rewrite-written",
        "rewrite-renamed",
        "rewrite-unlink",
    ];
    let mut acknowledged = BTreeMap::new();
    let mut from = 0;
    for point in points {
        for passage in [2, 3] {
            let failpoints = format!("{point}=kill:{passage}");
            fixture.set_failpoints(&failpoints);
            acknowledged.append(&mut send_until_killed(&fixture, &failpoints, from).await);
            from += 1_000_000;
            fixture.set_failpoints("");
            let server = start(&fixture);
            let (log, _) = Run::new(fixture.address, 1).log().await;
            block_in_place(|| server.kill());
            let sequences: Vec<u64> = log.iter().map(|message| message.sequence).collect();
            let (first, last) = (sequences[0], sequences[sequences.len() - 1]);
            assert!(
                sequences.iter().copied().eq(first..=last),
                "{failpoints}: there is a gap"
            );
            for (message_id, sequence) in acknowledged.iter().filter(|(_, sequence)| **sequence >= first) {
                let stored = sequence
                    .checked_sub(first)
                    .and_then(|index| log.get(usize::try_from(index).unwrap()));
                let stored = stored.map(|message| message.message_id.as_str());
                assert_eq!(
                    stored,
                    Some(message_id.as_str()),
                    "{failpoints}: event {sequence}"
                );
            }
            assert!(
                log.len() > 100,
                "{failpoints}: only {} events are retained",
                log.len()
            );
        }
    }
}
