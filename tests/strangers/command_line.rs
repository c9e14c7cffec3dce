//! Mistakes of whoever starts the server: what it says, and the exit codes of sysexits(3).

use std::net::TcpListener;
use std::process::Command;

use crate::outside::{CHITCHAT, run, text};

#[test]
fn all_configuration_mistakes_are_told_at_once() {
    // Nothing is bound: these ports are taken, and that is not among the mistakes.
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let mut serve = Command::new(CHITCHAT);
    serve
        .args(["serve", "--listen", &address, "--admin", &address])
        .args(["--max-message-chars", "0", "--feed-bytes", "7"])
        .args(["--keepalive-interval", "1ms", "--log", "=loud="])
        // Flags are environment variables too.
        .env("CHITCHAT_MAX_ROOMS", "0");
    let output = run(&mut serve, "");
    assert_eq!(output.status.code(), Some(78), "{output:?}");
    assert_eq!(text(&output.stdout), "");
    let told = text(&output.stderr);
    for flag in [
        "--listen and --admin",
        "--max-message-chars is 0",
        "--feed-bytes is 7",
        "--keepalive-interval is 1ms",
        "--log is \"=loud=\"",
        "--max-rooms is 0",
    ] {
        let lines = told.lines().filter(|line| line.contains(flag)).count();
        assert_eq!(lines, 1, "{flag} in {told}");
    }
    assert_eq!(told.lines().count(), 6, "{told}");
}

#[test]
fn usage_mistakes_are_64() {
    for mistake in [
        &["serve", "--no-such-flag"][..],
        &["serve", "--listen", "nowhere"],
        &["serve", "--drain-timeout", "soon"],
        &["serve", "--keepalive-interval", "500000000000years"],
        &["serve", "--worker-threads", "100000"],
        &["chat", "--name", "Ada", "--timeout", "12000years"],
        &["no-such-command"],
        &["chat"],
        &[],
    ] {
        let output = run(Command::new(CHITCHAT).args(mistake), "");
        assert_eq!(output.status.code(), Some(64), "{mistake:?}: {output:?}");
        assert!(!output.stderr.is_empty(), "{mistake:?}");
    }
}

#[test]
fn a_level_that_is_spelt_wrong_is_no_target() {
    for log in ["infos", "warn,nonsense"] {
        let mut serve = Command::new(CHITCHAT);
        serve.args([
            "serve",
            "--in-memory",
            "--listen",
            "127.0.0.1:0",
            "--admin",
            "127.0.0.1:0",
            "--log",
            log,
        ]);
        let output = run(&mut serve, "");
        assert_eq!(output.status.code(), Some(78), "{log:?}");
        assert!(
            text(&output.stderr).contains("is not a level"),
            "{log:?}: {output:?}"
        );
    }
}

#[test]
fn variables_are_read_as_deployments_write_them() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    // It never runs: with a store it fails there, and in memory it comes as far as the port.
    let serve = |in_memory: &str, grace: &str| {
        let mut serve = Command::new(CHITCHAT);
        serve
            .args([
                "serve",
                "--listen",
                &address,
                "--admin",
                "127.0.0.1:0",
                "--data-dir",
                "/dev/null/data",
            ])
            .env("CHITCHAT_IN_MEMORY", in_memory)
            .env("CHITCHAT_RESUME_GRACE", grace);
        let output = run(&mut serve, "");
        (output.status.code(), text(&output.stderr))
    };
    for off in ["", "0", "no", "off", "false"] {
        let (code, told) = serve(off, "");
        assert!(
            code == Some(74) && told.contains("/dev/null/data"),
            "{off:?}: {told}"
        );
    }
    for on in ["1", "yes", "on", "true"] {
        let (code, told) = serve(on, "");
        assert!(code == Some(69) && told.contains("--listen"), "{on:?}: {told}");
    }
    for (in_memory, grace) in [("maybe", "10s"), ("on", "soon")] {
        let (code, told) = serve(in_memory, grace);
        assert_eq!(code, Some(64), "{told}");
        let variable = if grace == "soon" {
            "CHITCHAT_RESUME_GRACE, the variable of --resume-grace"
        } else {
            "CHITCHAT_IN_MEMORY"
        };
        assert!(told.contains(variable), "{told}");
    }
}

#[test]
fn a_taken_port_is_one_line() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let output = run(
        Command::new(CHITCHAT).args(["serve", "--admin", "127.0.0.1:0", "--listen", &address]),
        "",
    );
    assert_eq!(output.status.code(), Some(69), "{output:?}");
    let told = text(&output.stderr);
    assert!(told.contains(&format!("--listen {address}")), "{told}");
    assert_eq!(told.lines().count(), 1, "{told}");
}

#[test]
fn help_and_version_are_no_mistakes() {
    for question in [
        &["--help"][..],
        &["--version"],
        &["serve", "--help"],
        &["chat", "--help"],
        &["health", "--help"],
        &["bench", "--help"],
    ] {
        let output = run(Command::new(CHITCHAT).args(question), "");
        assert_eq!(output.status.code(), Some(0), "{question:?}: {output:?}");
        assert!(
            !output.stdout.is_empty() && output.stderr.is_empty(),
            "{question:?}: {output:?}"
        );
    }
}
