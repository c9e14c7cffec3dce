//! How the server process ends on signals, as a process manager sends them.

use std::fs;
use std::net::TcpStream;
use std::process::Command;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::certificates::Authority;
use crate::process::{CHITCHAT, Process, Server, is_ci, run, serve, skip, text};

/// Starts a `chat` that has joined.
fn participant(server: &Server, name: &str) -> Process {
    let mut command = Command::new(CHITCHAT);
    command.args(["chat", "--name", name, "--server", &server.address.to_string()]);
    let chat = Process::start(&mut command);
    chat.stdout_line(&format!("Participant {name} joined"));
    chat
}

#[test]
fn sigterm_ends_a_server_with_clients_within_the_drain_timeout() {
    let mut server = serve(&["--drain-timeout", "20s"]);
    let mut ada = participant(&server, "Ada");
    let mut bob = participant(&server, "Bob");
    ada.write_line("before the end");
    bob.stdout_line("before the end");
    let signalled = Instant::now();
    server.signal(Signal::SIGTERM);
    assert_eq!(server.wait().code(), Some(0));
    assert!(
        signalled.elapsed() < Duration::from_secs(20),
        "it took {:?}",
        signalled.elapsed()
    );
    // The clients try to reconnect until their input ends.
    for client in [&mut ada, &mut bob] {
        client.stderr_line("chitchat: reconnecting");
        client.close_stdin();
        assert_eq!(client.wait().code(), Some(0));
    }
}

#[test]
fn sigint_ends_the_server_too() {
    let mut server = serve(&[]);
    server.signal(Signal::SIGINT);
    assert_eq!(server.wait().code(), Some(0));
}

#[test]
fn clients_that_do_not_disconnect_are_cut_at_the_drain_timeout() {
    let mut server = serve(&["--drain-timeout", "300ms"]);
    // A stopped client does not respond to the GOAWAY.
    let ada = participant(&server, "Ada");
    ada.signal(Signal::SIGSTOP);
    let silent = TcpStream::connect(server.address).unwrap();
    server.signal(Signal::SIGTERM);
    assert_eq!(server.wait().code(), Some(0));
    drop(silent);
}

#[test]
fn a_second_signal_ends_the_server_at_once() {
    let mut server = serve(&["--drain-timeout", "1h"]);
    // Stopped clients delay the drain. The connection of one alone can end at once.
    let stopped = ["Ada", "Bob", "Cleo", "Dora"].map(|name| participant(&server, name));
    for client in &stopped {
        client.signal(Signal::SIGSTOP);
    }
    let silent = TcpStream::connect(server.address).unwrap();
    server.signal(Signal::SIGTERM);
    server.log_line("\"event\":\"draining\"");
    // What follows within half a second is the same signal once more.
    std::thread::sleep(Duration::from_millis(600));
    server.signal(Signal::SIGINT);
    assert_eq!(server.wait().code(), Some(130));
    server.stderr_line("SIGINT after SIGTERM: ending at once");
    drop(silent);
}

#[test]
fn a_signal_that_comes_twice_within_a_moment_is_one() {
    let mut server = serve(&["--drain-timeout", "2s"]);
    let silent = TcpStream::connect(server.address).unwrap();
    server.signal(Signal::SIGTERM);
    server.signal(Signal::SIGTERM);
    server.signal(Signal::SIGINT);
    assert_eq!(server.wait().code(), Some(0));
    drop(silent);
}

#[test]
fn sighup_and_sigusr1_make_the_log_verbose_and_back() {
    let mut server = serve(&["--log", "chitchat=info"]);
    for (signal, filter) in [
        (Signal::SIGHUP, "debug"),
        (Signal::SIGUSR1, "chitchat=info"),
        (Signal::SIGHUP, "debug"),
    ] {
        server.signal(signal);
        server.log_line(&format!(
            "\"event\":\"log_filter_changed\",\"filter\":\"{filter}\""
        ));
    }
    let _ada = participant(&server, "Ada");
    server.stop();
}

#[test]
fn with_tls_sighup_reads_the_certificate_again() {
    let directory = tempfile::tempdir().unwrap();
    let issued = Authority::new("test").issue(directory.path(), "server", &["localhost"]);
    let [certificate, key] = [&issued.certificate, &issued.key].map(|path| path.to_str().unwrap());
    let mut server = serve(&["--tls-cert", certificate, "--tls-key", key]);
    assert!(
        server.announcement.contains("(gRPC over TLS)"),
        "{}",
        server.announcement
    );
    server.log_line("\"event\":\"certificate_loaded\",\"not_after\":\"3001-01-01T00:00:00Z\"");
    server.signal(Signal::SIGHUP);
    server.log_line("\"event\":\"certificate_loaded\"");
    fs::write(&issued.key, "no key").unwrap();
    let failed = server.log_line("\"event\":\"tls_reload_failed\"");
    assert!(failed.contains("contains no private key"), "{failed}");
    server.signal(Signal::SIGUSR1);
    server.log_line("\"event\":\"log_filter_changed\",\"filter\":\"debug\"");
    server.stop();
}

/// Starts a server by the shell command `serve`, waits until it serves, and terminates it. Returns its exit code.
fn exit_code_of(serve: &str) -> Option<i32> {
    let script = format!("exec \"$0\" serve --in-memory --listen 127.0.0.1:0 --admin 127.0.0.1:0 {serve}");
    let mut command = Command::new("sh");
    command.args(["-c", &script, CHITCHAT]);
    let mut server = Process::start(&mut command);
    server.stdout_line("serving");
    server.signal(Signal::SIGTERM);
    server.wait().code()
}

#[test]
fn a_stderr_that_is_closed_or_full_is_no_error() {
    for stderr in ["2>&-", "2>/dev/full"] {
        assert_eq!(
            exit_code_of(&format!("--log-format pretty {stderr}")),
            Some(0),
            "{stderr}"
        );
    }
}

/// Runs a command in a network in which DNS queries get no answer, not even an ICMP error: packets to the name server are
/// routed back to the loopback interface, where the kernel drops them because the address is not local.
const WITHOUT_DNS: &str = r#"
    ip link set lo up
    ip addr add 192.0.2.1/32 dev lo
    ip route add default dev lo src 192.0.2.1
    mount --bind "$RESOLV_CONF" /etc/resolv.conf
    exec "$@"
"#;

#[test]
fn a_hanging_name_lookup_does_not_delay_the_exit() {
    let resolv_conf = tempfile::NamedTempFile::new().unwrap();
    fs::write(&resolv_conf, "nameserver 198.51.100.53\n").unwrap();
    let unshare = |arguments: &[&str]| {
        let mut command = Command::new("unshare");
        command
            .args(["--mount", "--net"])
            .args(arguments)
            .env("RESOLV_CONF", resolv_conf.path());
        command
    };
    let without_dns = |arguments: &[&str]| unshare(&[&["sh", "-ec", WITHOUT_DNS, "sh"], arguments].concat());
    let can_unshare = unshare(&["true"])
        .output()
        .is_ok_and(|output| output.status.success());
    if !can_unshare {
        return skip("cannot make a network namespace; that needs root and unshare");
    }
    let probe = run(&mut without_dns(&["true"]), "");
    if !probe.status.success() {
        let reason = format!("cannot set up a network namespace: {}", text(&probe.stderr));
        assert!(!is_ci(), "{reason}");
        return skip(&reason);
    }

    let serve = [
        CHITCHAT,
        "serve",
        "--in-memory",
        "--drain-timeout",
        "2s",
        "--log-format",
        "json",
    ];
    let mut server =
        Process::start(without_dns(&serve).env("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector.test:4317"));
    server.stdout_line(r#""event":"serving""#);
    let signalled = Instant::now();
    server.signal(Signal::SIGTERM);
    assert_eq!(server.wait().code(), Some(0));
    // The drain timeout and a margin for a busy machine; the lookup takes at least 10 s.
    assert!(
        signalled.elapsed() < Duration::from_secs(5),
        "it took {:?}",
        signalled.elapsed()
    );
}
