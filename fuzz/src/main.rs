//! Runs the fuzz target that the environment variable `FUZZ_TARGET` names, with libFuzzer: see `.ci/fuzz`.
#![no_main]

use std::sync::LazyLock;

use chitchat::fuzzing::{TARGETS, Target};

static TARGET: LazyLock<Target> = LazyLock::new(|| {
    let wanted = std::env::var("FUZZ_TARGET").unwrap_or_default();
    let found = TARGETS.iter().find(|(name, _)| *name == wanted);
    found.map(|(_, target)| *target).unwrap_or_else(|| {
        eprintln!(
            "FUZZ_TARGET is {wanted:?}; it must be one of: {:?}",
            TARGETS.map(|(name, _)| name)
        );
        std::process::exit(64);
    })
});

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| TARGET(bytes));
