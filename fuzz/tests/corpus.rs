//! The fuzz targets accept what earlier runs have found. Needs the instrumented build of `.ci/fuzz`.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::Path;
use std::process::Command;

#[test]
fn every_target_accepts_its_corpus() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus");
    let targets: Vec<_> = fs::read_dir(corpus).unwrap().map(Result::unwrap).collect();
    assert!(!targets.is_empty());
    for target in targets {
        let mut fuzzer = Command::new(env!("CARGO_BIN_EXE_chitchat-fuzz"));
        fuzzer.env("FUZZ_TARGET", target.file_name());
        let output = fuzzer.arg("-runs=0").arg(target.path()).output().unwrap();
        let log = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{}: {log}", target.path().display());
    }
}
