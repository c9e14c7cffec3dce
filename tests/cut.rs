//! Cuts connections at random points of their streams; all clients must end with the same log.
// Helpers of tests panic as tests do.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

mod proxy;

use std::time::{Duration, Instant};

use chitchat_verify::check;
use chitchat_verify::crash_harness::{Run, ServerFixture, TIMEOUT, seed};
use proxy::Proxy;
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use tokio::task::block_in_place;

/// The program under test.
const CHITCHAT: &str = env!("CARGO_BIN_EXE_chitchat");

const CUTS: usize = 200;

#[tokio::test(flavor = "multi_thread")]
async fn two_hundred_cuts_violate_no_invariant() {
    let seed = seed();
    let fixture = ServerFixture::new(CHITCHAT, &["--resume-grace", "10m"]);
    let server = block_in_place(|| fixture.start());
    let mut random = StdRng::seed_from_u64(seed);
    let proxy = Proxy::start(fixture.address).await;
    proxy.cut_after((0..CUTS).map(|_| random.random_range(0..6_000)));
    let mut run = Run::new(fixture.address, seed);
    run.add_client("Near", 8);
    run.add_client_at(proxy.address, "Far", 8);
    run.add_client_at(proxy.address, "Listener", 0);
    // Both send messages until the last cut; the near client keeps to the pace of the far one.
    let deadline = Instant::now() + TIMEOUT;
    while proxy.cuts() < CUTS {
        let cuts = proxy.cuts();
        assert!(
            Instant::now() < deadline,
            "CRASH_SEED={seed}: no progress after {cuts} cuts"
        );
        let far = run.clients[1].progress().sent;
        run.clients[0].update_plan(|plan| plan.send_limit = far);
        run.clients[1].update_plan(|plan| plan.send_limit = far + 8);
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    run.wait_for_acknowledgements().await;
    let history = run.finish().await;
    let violations = check(&history);
    for violation in violations.iter().take(20) {
        println!("{violation}");
    }
    assert!(violations.is_empty(), "CRASH_SEED={seed}: {}", violations[0]);
    let streams: usize = history
        .clients
        .iter()
        .map(|client| {
            let joins = client
                .events
                .iter()
                .filter(|entry| matches!(entry.event, chitchat_verify::ClientEvent::Join { .. }));
            joins.count()
        })
        .sum();
    println!(
        "{CUTS} cuts: {streams} streams, {} events",
        history.log.unwrap().len()
    );
    let exit = block_in_place(|| server.stop());
    assert_eq!((exit.code, exit.lines.len()), (Some(0), 0), "{exit:?}");
}
