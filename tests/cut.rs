//! Connections that are cut at random points of their streams: the clients end with the same log as everybody.
// Helpers of tests panic as tests do.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

mod outage;

use std::time::{Duration, Instant};

use chitchat::verify::check;
use outage::{PATIENCE, Proxy, Run, Site, seed};
use tokio::task::block_in_place;

const CUTS: u32 = 200;

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_is_cut_two_hundred_times_is_whole() {
    let seed = seed();
    let site = Site::new(&["--resume-grace", "10m"]);
    let server = block_in_place(|| site.start());
    let proxy = Proxy::start(site.address, CUTS, 6_000, seed).await;
    let mut run = Run::new(site.address, seed);
    run.add("Near", 8);
    run.add_through(proxy.address, "Far", 8);
    run.add_through(proxy.address, "Listener", 0);
    // Both talk for as long as there are cuts, the near one about as much as the far one can.
    let deadline = Instant::now() + PATIENCE;
    while *proxy.cuts.borrow() < CUTS {
        let cuts = *proxy.cuts.borrow();
        assert!(
            Instant::now() < deadline,
            "CRASH_SEED={seed}: nothing happens after {cuts} cuts"
        );
        let far = run.members[1].now().sent;
        run.members[0].order(|orders| orders.allowance = far);
        run.members[1].order(|orders| orders.allowance = far + 8);
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    run.until_settled().await;
    let history = run.end().await;
    let wrong = check(&history);
    for violation in wrong.iter().take(20) {
        println!("{violation}");
    }
    assert!(wrong.is_empty(), "CRASH_SEED={seed}: {}", wrong[0]);
    let streams: usize = history
        .clients
        .iter()
        .map(|client| {
            let joins = client
                .steps
                .iter()
                .filter(|step| matches!(step.what, chitchat::verify::What::Join { .. }));
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
