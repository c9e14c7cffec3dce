//! testssl.sh: which versions and ciphers the server offers, and whether it is vulnerable to what is known of TLS.

use std::process::Command;

use serde_json::Value;

use crate::certificates::Authority;
use crate::process::{external_program, serve, succeed};

/// Findings about the machine that runs the test.
const ABOUT_THE_MACHINE: [&str; 1] = ["engine_problem"];

#[test]
fn only_strong_versions_and_ciphers_are_offered_and_nothing_is_vulnerable() {
    let Some(testssl) = external_program("CHITCHAT_TEST_TESTSSL", "testssl", &["--version"]) else {
        return;
    };
    let directory = tempfile::tempdir().unwrap();
    let issued = Authority::new("test").issue(directory.path(), "server", &["localhost"]);
    let server = serve(&[
        "--tls-cert",
        issued.certificate.to_str().unwrap(),
        "--tls-key",
        issued.key.to_str().unwrap(),
    ]);
    let file = directory.path().join("findings.json");
    let mut check = Command::new(testssl);
    check
        .args(["--quiet", "--warnings", "off", "--color", "0", "--nodns", "none"])
        .args(["--protocols", "--std", "--pfs", "--vulnerable", "--jsonfile"])
        .arg(&file)
        .arg(server.address.to_string());
    succeed(&mut check, "");
    let findings: Vec<Value> = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    let finding = |id: &str| {
        let found = findings.iter().find(|finding| finding["id"] == id);
        found.unwrap_or_else(|| panic!("no {id}: {findings:#?}"))["finding"]
            .as_str()
            .unwrap()
    };
    for (id, expected) in [
        ("SSLv2", "not offered"),
        ("SSLv3", "not offered"),
        ("TLS1", "not offered"),
        ("TLS1_1", "not offered"),
        ("TLS1_2", "offered"),
        ("TLS1_3", "offered with final"),
        ("ALPN_HTTP2", "h2"),
        ("cipherlist_AVERAGE", "not offered"),
        ("cipherlist_STRONG", "offered"),
        ("PFS", "offered"),
    ] {
        assert_eq!(finding(id), expected, "{id}");
    }
    assert!(findings.len() > 40, "{findings:#?}");
    for finding in &findings {
        let is_good = ["OK", "INFO"]
            .iter()
            .any(|severity| finding["severity"] == *severity);
        let is_about_the_server = !ABOUT_THE_MACHINE.iter().any(|id| finding["id"] == *id);
        assert!(is_good || !is_about_the_server, "{finding:#}");
    }
}
