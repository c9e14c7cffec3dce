//! Runs `bench/compare` and checks that it writes its table and its chart. The figures are not checked, because a timing is not
//! a test.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

mod process;

use std::fs;
use std::path::Path;
use std::process::Command;

use process::{CHECKOUT, CHITCHAT, external_program, text};

/// Any Python: the comparison needs only its standard library.
fn python() -> Option<String> {
    external_program("CHITCHAT_TEST_PYTHON", "python3", &["--version"])
}

fn compare(python: &str, out: &Path, arguments: &[&str]) -> (bool, String) {
    let output = Command::new(python)
        .arg("-B")
        .arg(Path::new(CHECKOUT).join("bench/compare"))
        .args(["--binary", CHITCHAT, "--out"])
        .arg(out)
        .args(arguments)
        .output()
        .unwrap();
    (output.status.success(), text(&output.stderr))
}

#[test]
fn a_quick_comparison_writes_its_results() {
    let Some(python) = python() else { return };
    let out = Path::new(env!("CARGO_TARGET_TMPDIR")).join("compare");
    let (succeeded, stderr) = compare(
        &python,
        &out,
        &["--quick", "--only", "w1,echo", "--systems", "memory,sync,limit"],
    );
    assert!(succeeded, "{stderr}");
    let runs = fs::read_to_string(out.join("raw.jsonl")).unwrap();
    let runs: Vec<serde_json::Value> = runs
        .lines()
        .skip(1)
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let done: Vec<_> = runs
        .iter()
        .map(|run| (run["workload"].as_str().unwrap(), run["system"].as_str().unwrap()))
        .collect();
    let expected = [
        ("w1", "memory"),
        ("w1", "sync"),
        ("w1", "limit"),
        ("echo", "memory"),
        ("echo", "sync"),
    ];
    assert_eq!(done, expected);
    for run in &runs {
        assert_eq!(run["report"]["ok"], true, "{run}");
        assert!(run["report"]["deliveries"].as_u64().unwrap() > 0, "{run}");
    }
    let table = fs::read_to_string(out.join("RESULTS.md")).unwrap();
    assert!(table.contains("| server CPU per delivery |"), "{table}");
    assert!(
        table.contains("4 KiB appended and synced 50 times a second in"),
        "{table}"
    );
    assert!(!table.contains("failed"), "{table}");
    let chart = fs::read_to_string(out.join("comparison.svg")).unwrap();
    assert!(
        chart.starts_with("<svg ") && chart.ends_with("</svg>\n"),
        "{chart}"
    );
    assert!(chart.contains("plain TCP (the limit)"), "{chart}");
}

#[test]
fn unknown_systems_are_rejected() {
    let Some(python) = python() else { return };
    let out = Path::new(env!("CARGO_TARGET_TMPDIR")).join("compare-rejected");
    let (succeeded, stderr) = compare(&python, &out, &["--systems", "memory,irc"]);
    assert!(!succeeded);
    assert!(
        stderr.contains("--systems irc: must be one of memory, os, sync"),
        "{stderr}"
    );
}

/// Runs the comparison of a cluster, and checks that it replaces its section of the results and nothing else.
fn compare_cluster(directory: &str, workload: &str, systems: &str) {
    let Some(python) = python() else { return };
    let out = Path::new(env!("CARGO_TARGET_TMPDIR")).join(directory);
    fs::create_dir_all(&out).unwrap();
    let results = out.join("RESULTS.md");
    fs::write(
        &results,
        "# One server\n\nkept\n\n## Three replicas\n\nreplaced\n",
    )
    .unwrap();
    let arguments = ["--cluster", "--quick", "--only", workload, "--systems", systems];
    let (succeeded, stderr) = compare(&python, &out, &arguments);
    assert!(succeeded, "{stderr}");
    let text = fs::read_to_string(results).unwrap();
    assert!(
        text.starts_with("# One server\n\nkept\n\n## Three replicas\n\n"),
        "{text}"
    );
    assert!(!text.contains("replaced"), "{text}");
    assert!(!text.contains("failed") && !text.contains('†'), "{text}");
    for run in fs::read_to_string(out.join("raw-cluster.jsonl"))
        .unwrap()
        .lines()
        .skip(1)
    {
        let run: serde_json::Value = serde_json::from_str(run).unwrap();
        assert_eq!(run["report"]["ok"], true, "{run}");
        assert!(run["report"]["echo_ms"]["count"].as_u64().unwrap() > 0, "{run}");
    }
}

#[test]
fn the_comparison_of_a_cluster_has_its_own_section() {
    compare_cluster("compare-cluster", "order", "memory");
}

/// Takes half a minute: `cargo test --test compare -- --ignored`.
#[test]
#[ignore = "takes half a minute"]
fn replicas_and_jetstream_can_be_compared() {
    compare_cluster("compare-replicas", "order,quiet", "replicas,jetstream");
}
