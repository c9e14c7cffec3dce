//! h2spec, which sends what violates HTTP/2, and checks the answers.

use std::process::Command;

use crate::process::{Server, h2spec, run, serve, text};

/// The checks that fail, which do not show a fault of the server: h2spec is made for a web server.
const EXPECTED_FAILURES: [&str; 2] = [
    // The connection is closed while bytes of it are unread, so the system resets it.
    "Sends invalid connection preface",
    // Streams are answered at once, so there are never too many at a time.
    "Sends HEADERS frames that causes their advertised concurrent stream limit to be exceeded",
];

/// How often h2spec runs at most. Its requests are not gRPC and are answered at once. If the answer is sent before the violation
/// arrives, h2spec takes it for the answer to that. A violation that the server does not notice fails every time.
const RUNS: usize = 10;

/// Runs all checks. Returns those that have failed and are not expected to, and the output.
fn unexpected_failures(h2spec: &str, server: &Server) -> (Vec<String>, String) {
    let mut command = Command::new(h2spec);
    command
        .args(["--timeout", "5", "--host", &server.address.ip().to_string()])
        .args(["--port", &server.address.port().to_string()]);
    let output = run(&mut command, "");
    let output = text(&output.stdout);
    assert!(output.contains("145 tests, "), "{output}");
    let (_, failures) = output.split_once("Failures:").unwrap_or_default();
    let failures = failures
        .lines()
        .filter_map(|line| line.trim().strip_prefix("× ")?.split_once(": "))
        .map(|(_, check)| check.to_owned())
        .filter(|check| !EXPECTED_FAILURES.contains(&check.as_str()));
    (failures.collect(), output)
}

#[test]
fn violations_of_http2_are_answered_as_the_standard_says() {
    let Some(h2spec) = h2spec() else { return };
    let server = serve(&[]);
    let (mut unexpected, mut output) = unexpected_failures(&h2spec, &server);
    for _ in 1..RUNS {
        if unexpected.is_empty() {
            return;
        }
        let (again, newer) = unexpected_failures(&h2spec, &server);
        unexpected.retain(|check| again.contains(check));
        output = newer;
    }
    assert!(unexpected.is_empty(), "{unexpected:?}\n{output}");
}
