//! The systemd unit, checked by systemd-analyze.

use std::fs;
use std::process::Command;

use crate::files;
use crate::process::{CHITCHAT, external_program, serve_flags, succeed, text};

const UNIT: &str = "deploy/systemd/chitchat.service";

fn systemd_analyze() -> Option<String> {
    external_program("CHITCHAT_TEST_SYSTEMD_ANALYZE", "systemd-analyze", &["--version"])
}

#[test]
fn systemd_accepts_the_units() {
    let Some(program) = systemd_analyze() else { return };
    let folder = tempfile::tempdir().unwrap();
    let unit = folder.path().join("chitchat.service");
    // systemd-analyze checks that the program exists.
    let installed = files::text(UNIT).replace("/usr/local/bin/chitchat", CHITCHAT);
    assert!(installed.contains(&format!("ExecStart={CHITCHAT} serve\n")));
    fs::write(&unit, installed).unwrap();
    let socket = folder.path().join("chitchat.socket");
    fs::write(&socket, files::text("deploy/systemd/chitchat.socket")).unwrap();
    let output = Command::new(program)
        .arg("verify")
        .args([&unit, &socket])
        .output()
        .unwrap();
    let stderr = text(&output.stderr);
    let ours: Vec<&str> = stderr.lines().filter(|line| line.contains("chitchat")).collect();
    assert!(ours.is_empty(), "{ours:#?}");
}

#[test]
fn the_unit_is_hardened() {
    let Some(program) = systemd_analyze() else { return };
    let mut command = Command::new(program);
    // The exposure, of 100: what remains is the network, which a chat server needs.
    command.args(["security", "--offline=true", "--threshold=15", "--no-pager"]);
    succeed(command.arg(files::path(UNIT)), "");
}

#[test]
fn systemd_never_gives_up_restarting() {
    let unit = files::text(UNIT);
    assert!(unit.contains("\nStartLimitIntervalSec=0\n"));
    assert!(unit.contains("\nRestart=on-failure\n") && unit.contains("\nRestartSec=5s\n"));
}

#[test]
fn the_unit_sets_variables_that_the_server_has() {
    let flags = serve_flags();
    let unit = files::text(UNIT);
    let variables: Vec<&str> = unit
        .lines()
        .filter_map(|line| line.strip_prefix("Environment=")?.split_once('='))
        .map(|(name, _)| name)
        .collect();
    assert!(variables.len() >= 4, "{variables:?}");
    for variable in variables {
        assert!(flags.iter().any(|flag| flag.variable == variable), "{variable}");
    }
    let value = |key: &str| {
        unit.lines()
            .find_map(|line| line.strip_prefix(key))
            .unwrap_or_else(|| panic!("no {key}"))
    };
    let seconds = |text: &str| text.trim_end_matches('s').parse::<u32>().expect("seconds");
    assert!(seconds(value("TimeoutStopSec=")) > seconds(value("Environment=CHITCHAT_DRAIN_TIMEOUT=")));
    assert_eq!(
        value("Environment=CHITCHAT_DATA_DIR="),
        format!("/var/lib/{}", value("StateDirectory="))
    );
}
