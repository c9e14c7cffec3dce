//! Tokens on the command line: `chitchat token`, the server's flags, and the client's.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

mod process;

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Output};

use nix::sys::signal::Signal;
use process::{CHITCHAT, Process, SERVE_IN_MEMORY, Server, run, serve, succeed, text};
use tempfile::TempDir;

/// A directory in which `chitchat token` keeps its key.
struct Issuer(TempDir);

impl Issuer {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> String {
        self.0.path().join(name).to_str().unwrap().to_owned()
    }

    fn token(&self, flags: &[&str]) -> String {
        let mut command = Command::new(CHITCHAT);
        command.args(["token", &self.path("keys")]).args(flags);
        succeed(&mut command, "").trim().to_owned()
    }

    /// The path of a file with a token.
    fn token_file(&self, name: &str, flags: &[&str]) -> String {
        let path = self.path(name);
        fs::write(&path, self.token(flags)).unwrap();
        path
    }

    fn serve(&self, flags: &[&str]) -> Server {
        let keys = self.path("keys/jwks.json");
        let required = [
            "--auth-keys",
            &keys,
            "--auth-issuer",
            "chitchat",
            "--auth-audience",
            "chitchat",
        ];
        serve(&[&required, flags].concat())
    }
}

fn client(server: &Server, command: &str) -> Command {
    let mut client = Command::new(CHITCHAT);
    client.args([command, "--server", &server.address.to_string()]);
    client
}

#[track_caller]
fn assert_refused(output: &Output, code: i32, line: &str) {
    assert_eq!(text(&output.stderr).trim(), format!("chitchat: {line}"));
    assert_eq!(output.status.code(), Some(code));
}

#[test]
fn what_token_makes_is_all_that_a_server_and_its_clients_need() {
    let issuer = Issuer::new();
    let token = issuer.token_file("token", &["--name", "Ada", "--room", "team-*"]);
    let mode = |name: &str| fs::metadata(issuer.path(name)).unwrap().permissions().mode() & 0o777;
    assert_eq!(
        (mode("keys/token-key.pem"), mode("keys/jwks.json")),
        (0o600, 0o644)
    );
    let jwks = fs::read_to_string(issuer.path("keys/jwks.json")).unwrap();
    assert!(!jwks.contains("\"d\""), "{jwks}");
    let server = issuer.serve(&[]);
    let with_file = |command: &str| {
        let mut client = client(&server, command);
        client.args(["--token-file", &token]);
        client
    };
    succeed(
        with_file("send").args(["--room", "team-1", "--name", "Ada", "Hello"]),
        "",
    );
    let chat = succeed(
        with_file("chat").args(["--name", "Ada", "--room", "team-1"]),
        "me again\n",
    );
    assert!(chat.contains("Ada: me again"), "{chat}");
    // The same key signs another token.
    let reader = issuer.token(&["--rights", "read"]);
    let history = succeed(
        client(&server, "history")
            .args(["--room", "team-1"])
            .env("CHITCHAT_TOKEN", reader),
        "",
    );
    assert!(history.contains("Ada: Hello"), "{history}");
}

#[test]
fn a_refusal_is_one_line_and_is_not_repeated() {
    let issuer = Issuer::new();
    let token = issuer.token_file(
        "token",
        &["--name", "Ada", "--room", "team-*", "--rights", "read,write"],
    );
    let server = issuer.serve(&[]);
    let missing = "this server needs a token; send it as \"authorization: Bearer ...\"";
    for command in ["rooms", "history", "who", "tail"] {
        assert_refused(&run(&mut client(&server, command), ""), 77, missing);
    }
    let chat = |token: &str, arguments: &[&str]| {
        run(
            client(&server, "chat")
                .args(["--token-file", token])
                .args(arguments),
            "",
        )
    };
    assert_refused(
        &run(client(&server, "chat").args(["--name", "Ada"]), ""),
        77,
        missing,
    );
    assert_refused(
        &chat(&token, &["--name", "Bob", "--room", "team-1"]),
        77,
        "your token is for the name \"Ada\"; use that, or none",
    );
    assert_refused(
        &chat(&token, &["--name", "Ada", "--room", "lobby"]),
        77,
        "your token does not grant the room \"lobby\"",
    );
    assert_refused(
        &chat(&token, &["--name", "Ada", "--room", "team-1"]),
        77,
        "your token does not grant the right to create in a room",
    );
    let other = issuer.token_file("other", &["--audience", "other"]);
    assert_refused(
        &chat(&other, &["--name", "Ada"]),
        77,
        "the token is for another audience than this server",
    );
    let none = issuer.path("none");
    let unreadable = chat(&none, &["--name", "Ada"]);
    assert_eq!(unreadable.status.code(), Some(78));
    assert!(text(&unreadable.stderr).contains("cannot be read"));
    let mut elsewhere = Command::new(CHITCHAT);
    elsewhere.args(["rooms", "--server", "192.0.2.1:50052", "--token-file", &token]);
    assert_refused(
        &run(&mut elsewhere, ""),
        78,
        "the token is not sent to 192.0.2.1:50052, because it could be read on the way; use https://, or --insecure-token if a proxy or the network encrypts",
    );
    succeed(&mut client(&server, "health"), "");
}

#[test]
fn keys_that_cannot_be_used_stop_the_start() {
    let issuer = Issuer::new();
    let start = |flags: &[&str]| {
        let mut command = Command::new(CHITCHAT);
        command.args(SERVE_IN_MEMORY).args(flags);
        run(&mut command, "")
    };
    let keys = issuer.path("keys.json");
    let flags = ["--auth-keys", &keys, "--auth-issuer", "i", "--auth-audience", "a"];
    let missing = start(&flags);
    assert_eq!(missing.status.code(), Some(78));
    assert!(text(&missing.stderr).contains(&format!("--auth-keys {keys} cannot be read")));
    fs::write(&keys, "{}").unwrap();
    let empty = start(&flags);
    assert!(text(&empty.stderr).contains("is not a JSON Web Key Set"));
    for incomplete in [&flags[..2], &flags[2..], &flags[..4], &["--anonymous", "read"]] {
        assert_eq!(start(incomplete).status.code(), Some(64), "{incomplete:?}");
    }
}

#[test]
fn sighup_reads_the_keys_again() {
    let issuer = Issuer::new();
    let token = issuer.token_file("token", &[]);
    let mut server = issuer.serve(&[]);
    server.signal(Signal::SIGHUP);
    server.log_line("\"event\":\"auth_keys_loaded\",\"count\":1");
    fs::write(issuer.path("keys/jwks.json"), "no keys").unwrap();
    let failed = server.log_line("\"event\":\"auth_keys_reload_failed\"");
    assert!(failed.contains("contains no key"), "{failed}");
    succeed(client(&server, "rooms").args(["--token-file", &token]), "");
    server.stop();
}

#[test]
fn no_token_and_no_text_is_logged_at_any_level() {
    let issuer = Issuer::new();
    let good = issuer.token(&["--name", "Ada", "--rights", "read,write,create,moderate"]);
    let other = issuer.token(&["--audience", "planted-audience"]);
    let mut server = issuer.serve(&["--log", "trace"]);
    let planted = "planted-secret.planted-claims.planted-signature";
    let call = |token: &str, command: &str, arguments: &[&str]| {
        let mut client = client(&server, command);
        run(client.args(arguments).env("CHITCHAT_TOKEN", token), "hello\n")
    };
    let mut outputs = Vec::new();
    for token in [good.as_str(), &other, planted] {
        outputs.push(call(token, "chat", &["--name", "Ada"]));
        outputs.push(call(token, "send", &["--name", "Ada", "hello"]));
        call(token, "send", &["--name", "Ada", "unspeakable"]);
        let address = server.address.to_string();
        let mut moderate = Command::new(CHITCHAT);
        moderate.args(["moderate", "close", "lobby", "--server", &address]);
        outputs.push(run(moderate.env("CHITCHAT_TOKEN", token), ""));
        outputs.push(call(token, "send", &["--name", "Ada", "hello"]));
        outputs.push(call(token, "rooms", &[]));
        outputs.push(call(token, "tail", &["--room", "none", "--patience", "0s"]));
    }
    server.stop();
    let log = server.rest_of_log();
    let has = |part: &str| log.iter().any(|line| line.contains(part));
    assert!(
        has("client_joined") && has("\"token_malformed\"") && has("\"audit\""),
        "{log:?}"
    );
    let secrets = [
        good.split('.').nth(1).unwrap(),
        good.rsplit('.').next().unwrap(),
        other.split('.').nth(1).unwrap(),
        other.rsplit('.').next().unwrap(),
        "planted",
        "Bearer ey",
        "unspeakable",
    ];
    let printed = outputs
        .iter()
        .flat_map(|output| [text(&output.stdout), text(&output.stderr)]);
    for line in log.into_iter().chain(printed) {
        for secret in secrets {
            assert!(!line.contains(secret), "{line}");
        }
    }
}

#[test]
fn a_moderator_decides_on_the_command_line_and_it_is_on_record() {
    let issuer = Issuer::new();
    let moderator = issuer.token_file(
        "moderator",
        &["--subject", "eva", "--rights", "read,write,create,moderate"],
    );
    let member = issuer.token_file("member", &["--subject", "bob"]);
    let mut server = issuer.serve(&["--log", "warn,audit=info"]);
    let mut command = client(&server, "chat");
    command.args(["tea", "--name", "Bob", "--token-file", &member]);
    let mut bob = Process::start(&mut command);
    bob.write_line("hello");
    bob.stdout_line("Bob: hello");
    let moderate = |token: &str, arguments: &[&str]| {
        let mut command = Command::new(CHITCHAT);
        command.arg("moderate").args(arguments);
        command.args(["--server", &server.address.to_string(), "--token-file", token]);
        run(&mut command, "")
    };
    assert_refused(
        &moderate(&member, &["close", "tea"]),
        77,
        "your token does not grant the right to moderate in a room",
    );
    let succeeds = |arguments: &[&str]| {
        let output = moderate(&moderator, arguments);
        assert!(output.status.success(), "{}", text(&output.stderr));
        text(&output.stdout).trim().to_owned()
    };
    let ban = succeeds(&["ban", "tea", "--name", "BOB", "--for", "1h", "--reason", "spam"]);
    assert_eq!(ban, "1 participant has left");
    bob.stderr_line("you are banned from this room until ");
    assert_eq!(bob.wait().code(), Some(77));
    let listed = succeeds(&["bans", "tea"]);
    assert!(
        listed.starts_with("name BOB until ") && listed.ends_with(": spam"),
        "{listed}"
    );
    let json = succeeds(&["bans", "tea", "--json"]);
    assert!(json.contains("\"name\":\"BOB\""), "{json}");
    assert_eq!(succeeds(&["unban", "tea", "--name", "bob"]), "");
    for arguments in [
        ["close", "tea"],
        ["reopen", "tea"],
        ["delete", "tea"],
        ["delete", "lobby"],
    ] {
        let output = moderate(&moderator, &arguments);
        assert_eq!(output.status.success(), arguments[1] == "tea", "{arguments:?}");
    }
    for incomplete in [
        &["ban", "tea", "--name", "Bob"][..],
        &["ban", "tea", "--for", "1h"],
        &["delete"],
        &["remove", "tea", "--id", "7", "--name", "Bob"],
    ] {
        assert_eq!(
            moderate(&moderator, incomplete).status.code(),
            Some(64),
            "{incomplete:?}"
        );
    }
    server.stop();
    let log = server.rest_of_log();
    let records: Vec<&String> = log
        .iter()
        .filter(|line| line.contains("\"target\":\"audit\""))
        .collect();
    let actions = ["ban", "unban", "close", "reopen", "delete"];
    assert_eq!(records.len(), actions.len(), "{log:?}");
    for (record, action) in records.iter().zip(actions) {
        for part in [
            "\"subject\":\"eva\"",
            "\"room\":\"tea\"",
            &format!("\"action\":\"{action}\""),
        ] {
            assert!(record.contains(part), "{record}");
        }
    }
    let expected = "\"whom\":\"name BOB\",\"duration_seconds\":3600,\"reason\":\"spam\",\"removed\":1";
    assert!(records[0].contains(expected), "{}", records[0]);
}

#[test]
fn a_session_goes_on_with_the_renewed_token() {
    let issuer = Issuer::new();
    // Tokens are accepted for ten seconds more.
    let short = issuer.token_file("token", &["--ttl", "1s"]);
    let server = issuer.serve(&[]);
    let mut command = client(&server, "chat");
    command.args(["--name", "Ada", "--token-file", &short]);
    let mut ada = Process::start(&mut command);
    ada.write_line("before");
    ada.stdout_line("Ada: before");
    issuer.token_file("token", &[]);
    let expired = "chitchat_streams_ended_total{reason=\"expired\",method=\"Chat\"} 1";
    process::wait_until("the token has expired", || {
        server.get("/metrics").contains(expired).then_some(())
    });
    ada.write_line("after");
    ada.stdout_line("Ada: after");
    ada.close_stdin();
    assert!(ada.wait().success());
    assert!(Path::new(&short).exists());
}
