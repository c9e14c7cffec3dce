//! h2spec, which sends what violates HTTP/2, and checks the answers.

use std::process::Command;

use crate::process::{h2spec, run, serve, text};

/// The checks that fail, which do not show a fault of the server: h2spec is made for a web server.
const EXPECTED_FAILURES: [&str; 2] = [
    // The connection is closed while bytes of it are unread, so the system resets it.
    "Sends invalid connection preface",
    // Streams are answered at once, so there are never too many at a time.
    "Sends HEADERS frames that causes their advertised concurrent stream limit to be exceeded",
];

#[test]
fn violations_of_http2_are_answered_as_the_standard_says() {
    let Some(h2spec) = h2spec() else { return };
    let server = serve(&[]);
    let mut command = Command::new(h2spec);
    command
        .args(["--timeout", "5", "--host", &server.address.ip().to_string()])
        .args(["--port", &server.address.port().to_string()]);
    let output = run(&mut command, "");
    let output = text(&output.stdout);
    let (_, failures) = output.split_once("Failures:").unwrap_or_default();
    let failures: Vec<_> = failures
        .lines()
        .filter_map(|line| line.trim().strip_prefix("× ")?.split_once(": "))
        .map(|(_, check)| check)
        .collect();
    let unexpected = failures.iter().find(|check| !EXPECTED_FAILURES.contains(check));
    assert_eq!(unexpected, None, "{output}");
    assert!(output.contains("145 tests, "), "{output}");
}
