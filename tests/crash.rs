//! Kills the server again and again under load, with clients that reconnect each time. At the end the checker must find no
//! violation in what the clients recorded.
//!
//! A long run: `CRASH_ROUNDS=500 cargo test --release --test crash -- --ignored --nocapture`. The seed is printed;
//! `CRASH_SEED` repeats the sizes and the moments of the faults, as far as the timing of the machine repeats.
// Helpers of tests panic as tests do.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

use std::time::{Duration, Instant};

use chitchat_verify::check;
use chitchat_verify::crash_harness::{Run, ServerFixture, seed};
use nix::sys::signal::Signal;
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use tokio::task::block_in_place;

/// The program under test.
const CHITCHAT: &str = env!("CARGO_BIN_EXE_chitchat");

/// The number of messages per sender and round.
const PER_ROUND: u64 = 40;

#[tokio::test(flavor = "multi_thread")]
async fn twenty_crashes_violate_no_invariant() {
    crash(rounds(20)).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes minutes"]
async fn five_hundred_crashes_violate_no_invariant() {
    crash(rounds(500)).await;
}

/// The server is stopped for longer than all of its timeouts, and then continues.
#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_server_violates_no_invariant() {
    let seed = seed();
    let fixture = ServerFixture::new(
        CHITCHAT,
        &[
            "--resume-grace",
            "1s",
            "--keepalive-interval",
            "1s",
            "--keepalive-timeout",
            "1s",
        ],
    );
    let server = block_in_place(|| fixture.start());
    let mut run = Run::new(fixture.address, seed);
    for (name, window) in [("Ada", 16), ("Bob", 16), ("Cleo", 16), ("Eve", 0)] {
        run.add_client(name, window);
    }
    run.wait_for_reconnects(&[0; 4]).await;
    for _ in 0..3 {
        let enough = run.acknowledged() + PER_ROUND;
        run.allow_sends(PER_ROUND);
        run.wait_for_total(enough).await;
        server.signal(Signal::SIGSTOP);
        tokio::time::sleep(Duration::from_secs(4)).await;
        server.signal(Signal::SIGCONT);
        run.wait_for_acknowledgements().await;
    }
    let sent = run.acknowledged();
    let violations = check(&run.finish().await);
    assert!(violations.is_empty(), "CRASH_SEED={seed}: {}", violations[0]);
    assert_eq!(sent, 3 * 3 * PER_ROUND);
    let exit = block_in_place(|| server.stop());
    assert_eq!((exit.code, exit.lines.len()), (Some(0), 0), "{exit:?}");
}

fn rounds(default: u64) -> u64 {
    std::env::var("CRASH_ROUNDS").map_or(default, |rounds| rounds.parse().unwrap())
}

async fn crash(rounds: u64) {
    let seed = seed();
    let mut random = StdRng::seed_from_u64(seed);
    // All clients reconnect within the grace period, so there are no LEAVE events for those that stay.
    let fixture = ServerFixture::new(CHITCHAT, &["--resume-grace", "10m"]);
    let mut server = block_in_place(|| fixture.start());
    let mut run = Run::new(fixture.address, seed);
    for name in ["Ada", "Bob", "Cleo", "Dan"] {
        run.add_client(name, 16);
    }
    for name in ["Eve", "Finn"] {
        run.add_client(name, 0);
    }
    run.wait_for_reconnects(&[0; 6]).await;
    let epoch = run.log().await.1;
    let begun = Instant::now();
    for round in 0..rounds {
        // A guest joins, sends some messages and leaves, across crashes if need be.
        let guest = run.add_client(&format!("Guest{round}"), 4);
        guest.update_plan(|plan| {
            plan.send_limit = 6;
            plan.leave = true;
        });
        let streams = run.streams();
        let before = run.acknowledged();
        for client in run.clients.iter().take(4) {
            client.update_plan(|plan| plan.send_limit += PER_ROUND);
        }
        // Kill the server in the middle of the round, at a random instruction.
        let enough = before + random.random_range(1..PER_ROUND * 4);
        run.wait_for_total(enough).await;
        tokio::time::sleep(Duration::from_micros(random.random_range(0..3_000))).await;
        block_in_place(|| server.kill());
        server = block_in_place(|| fixture.start());
        run.wait_for_reconnects(&streams).await;
        run.record_roster(epoch).await;
        run.collect_finished().await;
    }
    run.wait_for_acknowledgements().await;
    let sent = run.acknowledged();
    let elapsed = begun.elapsed();
    let history = run.finish().await;
    let violations = check(&history);
    let events = history.log.as_ref().map_or(0, Vec::len);
    println!(
        "{rounds} crashes in {elapsed:.1?}: {sent} messages and {events} events, {} violations",
        violations.len()
    );
    for violation in violations.iter().take(20) {
        println!("{violation}");
    }
    assert!(violations.is_empty(), "CRASH_SEED={seed}: {}", violations[0]);
    assert!(events as u64 >= sent + 2 * (6 + rounds));
    let exit = block_in_place(|| server.stop());
    assert_eq!((exit.code, exit.lines.len()), (Some(0), 0), "{exit:?}");
}
