//! Errors in flags and environment variables: the messages, and the exit codes of sysexits(3).

use std::net::TcpListener;
use std::path::Path;
use std::process::Command;

use crate::process::{CHECKOUT, CHITCHAT, load_generator, run, succeed, text};

#[test]
fn all_configuration_errors_are_reported_at_once() {
    // The ports are taken, which is not reported because nothing is bound.
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let mut serve = Command::new(CHITCHAT);
    serve
        .args(["serve", "--listen", &address, "--admin", &address])
        .args(["--max-message-chars", "0", "--feed-bytes", "7"])
        .args(["--keepalive-interval", "1ms", "--log", "=loud="])
        .args(["--tls-cert", "missing.pem", "--tls-key", "missing.pem"])
        .env("CHITCHAT_MAX_ROOMS", "0");
    let output = run(&mut serve, "");
    assert_eq!(output.status.code(), Some(78), "{output:?}");
    assert_eq!(text(&output.stdout), "");
    let stderr = text(&output.stderr);
    for flag in [
        "--listen and --admin",
        "--max-message-chars is 0",
        "--feed-bytes is 7",
        "--keepalive-interval is 1ms",
        "--log is \"=loud=\"",
        "--max-rooms is 0",
        "--tls-cert missing.pem cannot be read",
    ] {
        let lines = stderr.lines().filter(|line| line.contains(flag)).count();
        assert_eq!(lines, 1, "{flag} in {stderr}");
    }
    assert_eq!(stderr.lines().count(), 7, "{stderr}");
}

#[test]
fn usage_errors_exit_with_64() {
    for arguments in [
        &["serve", "--no-such-flag"][..],
        &["serve", "--listen", "nowhere"],
        &["serve", "--drain-timeout", "soon"],
        &["serve", "--keepalive-interval", "500000000000years"],
        &["serve", "--worker-threads", "100000"],
        &["serve", "--tls-cert", "cert.pem"],
        &["chat", "--name", "Ada", "--timeout", "12000years"],
        &["no-such-command"],
        &[],
    ] {
        let output = run(Command::new(CHITCHAT).args(arguments), "");
        assert_eq!(output.status.code(), Some(64), "{arguments:?}: {output:?}");
        assert!(!output.stderr.is_empty(), "{arguments:?}");
    }
}

#[test]
fn other_machines_are_not_served_in_plain_text_by_accident() {
    let mut serve = Command::new(CHITCHAT);
    serve.args([
        "serve",
        "--in-memory",
        "--listen",
        "0.0.0.0:0",
        "--admin",
        "127.0.0.1:0",
    ]);
    let output = run(&mut serve, "");
    assert_eq!(output.status.code(), Some(78), "{output:?}");
    let stderr = text(&output.stderr);
    for part in ["0.0.0.0:0", "--tls-cert", "--insecure"] {
        assert!(stderr.contains(part), "{stderr}");
    }
}

#[test]
fn a_misspelt_log_level_is_rejected() {
    for log in ["infos", "warn,nonsense"] {
        let mut serve = Command::new(CHITCHAT);
        serve
            .args(["serve", "--in-memory", "--listen", "127.0.0.1:0"])
            .args(["--admin", "127.0.0.1:0", "--log", log]);
        let output = run(&mut serve, "");
        assert_eq!(output.status.code(), Some(78), "{log:?}");
        assert!(
            text(&output.stderr).contains("is not a level"),
            "{log:?}: {output:?}"
        );
    }
}

#[test]
fn boolean_and_empty_variables_are_read_as_deployments_write_them() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    // With a store the server fails to open it; in memory it refuses the directory.
    let serve = |in_memory: &str, grace: &str| {
        let mut serve = Command::new(CHITCHAT);
        serve
            .args(["serve", "--listen", &address, "--admin", "127.0.0.1:0"])
            .args(["--data-dir", "/dev/null/data"])
            .env("CHITCHAT_IN_MEMORY", in_memory)
            .env("CHITCHAT_RESUME_GRACE", grace);
        let output = run(&mut serve, "");
        (output.status.code(), text(&output.stderr))
    };
    for off in ["", "0", "no", "off", "false"] {
        let (code, stderr) = serve(off, "");
        assert!(
            code == Some(74) && stderr.contains("/dev/null/data"),
            "{off:?}: {stderr}"
        );
    }
    for on in ["1", "yes", "on", "true"] {
        let (code, stderr) = serve(on, "");
        assert!(
            code == Some(78) && stderr.contains("--in-memory and --data-dir"),
            "{on:?}: {stderr}"
        );
    }
    for (in_memory, grace) in [("maybe", "10s"), ("on", "soon")] {
        let (code, stderr) = serve(in_memory, grace);
        assert_eq!(code, Some(64), "{stderr}");
        let variable = if grace == "soon" {
            "CHITCHAT_RESUME_GRACE, the variable of --resume-grace"
        } else {
            "CHITCHAT_IN_MEMORY"
        };
        assert!(stderr.contains(variable), "{stderr}");
    }
}

#[test]
fn a_taken_port_is_reported_on_one_line() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let output = run(
        Command::new(CHITCHAT).args([
            "serve",
            "--in-memory",
            "--admin",
            "127.0.0.1:0",
            "--listen",
            &address,
        ]),
        "",
    );
    assert_eq!(output.status.code(), Some(69), "{output:?}");
    let stderr = text(&output.stderr);
    assert!(stderr.contains(&format!("--listen {address}")), "{stderr}");
    assert_eq!(stderr.lines().count(), 1, "{stderr}");
}

#[test]
fn bench_says_which_program_it_has_become() {
    for arguments in [&["bench"][..], &["bench", "--help"]] {
        let output = run(Command::new(CHITCHAT).args(arguments), "");
        assert_eq!(output.status.code(), Some(64), "{arguments:?}: {output:?}");
        assert!(text(&output.stderr).contains("chitchat-bench"), "{output:?}");
        assert!(output.stdout.is_empty(), "{output:?}");
    }
}

#[test]
fn help_and_version_succeed() {
    for arguments in [
        &["--help"][..],
        &["--version"],
        &["serve", "--help"],
        &["chat", "--help"],
        &["health", "--help"],
    ] {
        let output = run(Command::new(CHITCHAT).args(arguments), "");
        assert_eq!(output.status.code(), Some(0), "{arguments:?}: {output:?}");
        assert!(
            !output.stdout.is_empty() && output.stderr.is_empty(),
            "{arguments:?}: {output:?}"
        );
    }
}

#[test]
fn the_release_archive_is_complete() {
    let out = tempfile::tempdir().unwrap();
    // Beside the program under test, so that nothing is built.
    load_generator();
    let mut dist = Command::new(Path::new(CHECKOUT).join(".ci/dist"));
    let archive = succeed(dist.arg(out.path()).arg(CHITCHAT), "");
    let listed = succeed(Command::new("tar").args(["--list", "--file", archive.trim()]), "");
    for file in [
        "/bin/chitchat",
        "/bin/chitchat-bench",
        "/man/man1/chitchat.1",
        "/man/man1/chitchat-chat.1",
        "/man/man1/chitchat-store-check.1",
        "/completions/chitchat.bash",
        "/completions/chitchat.zsh",
        "/completions/chitchat.fish",
        "/proto/chat.proto",
        "/LICENSE-MIT",
        "/LICENSE-APACHE",
    ] {
        assert!(
            listed.lines().any(|line| line.ends_with(file)),
            "{file}: {listed}"
        );
    }
}

#[test]
fn completions_and_manual_pages_know_the_flags() {
    let bash = succeed(Command::new(CHITCHAT).args(["completions", "bash"]), "");
    assert!(bash.contains("--no-follow") && bash.contains("diagram"), "{bash}");
    // The shell accepts it.
    succeed(Command::new("bash").args(["-n", "/dev/stdin"]), &bash);
    let page = succeed(Command::new(CHITCHAT).arg("man"), "");
    assert!(
        page.contains(".TH chitchat 1") && page.contains("Exit codes"),
        "{page}"
    );
}
