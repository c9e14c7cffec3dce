//! Benchmarks of the server's parts. `cargo bench` runs all of them, `cargo bench -- feed` those with that word in their
//! name. Whole servers are measured by the load generator and `bench/compare`.

mod feed;
mod fixtures;
mod fold;
mod framing;
mod sessions;
mod store;

use std::time::Duration;

use criterion::Criterion;

fn main() {
    let mut criterion = Criterion::default()
        .sample_size(30)
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(2))
        .configure_from_args();
    fold::bench(&mut criterion);
    sessions::bench(&mut criterion);
    framing::bench(&mut criterion);
    feed::bench(&mut criterion);
    store::bench(&mut criterion);
    criterion.final_summary();
}
