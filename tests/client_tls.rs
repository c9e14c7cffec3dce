//! The client over TLS, and `chitchat certs`.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

mod certificates;
mod process;

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

use certificates::{Authority, Issued};
use chitchat::client::{
    ClientError, ConnectOptions, Event, JoinOptions, RetryPolicy, ServerAddress, Session, TlsError,
    TlsOptions,
};
use process::{
    CHITCHAT, Process, Server, TIMEOUT, load_generator, run, serve, serve_at, succeed, text, unused_address,
};
use tempfile::TempDir;
use tokio_stream::StreamExt as _;

fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn serve_tls(issued: &Issued, flags: &[&str]) -> Server {
    let files = [
        "--tls-cert",
        path(&issued.certificate),
        "--tls-key",
        path(&issued.key),
    ];
    serve(&[&files, flags].concat())
}

/// Runs `chitchat health` against the port at this host name.
fn health(scheme: &str, host: &str, server: &Server, flags: &[&str]) -> Output {
    let address = format!("{scheme}{host}:{}", server.address.port());
    let mut command = Command::new(CHITCHAT);
    command.args(["health", "--server", &address]).args(flags);
    run(&mut command, "")
}

#[track_caller]
fn assert_fails(output: &Output, code: i32, reasons: &[&str]) {
    let stderr = text(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{stderr}");
    assert_eq!(stderr.lines().count(), 1, "{stderr}");
    for reason in reasons {
        assert!(stderr.contains(reason), "no {reason:?} in {stderr}");
    }
}

#[test]
fn what_certs_makes_is_all_that_a_server_and_its_clients_need() {
    let directory = tempfile::tempdir().unwrap();
    let certs = directory.path().join("certs");
    let printed = succeed(Command::new(CHITCHAT).args(["certs", path(&certs)]), "");
    assert!(printed.contains("chitchat serve --tls-cert "), "{printed}");
    let mut names = Vec::new();
    for entry in fs::read_dir(&certs).unwrap() {
        let entry = entry.unwrap();
        names.push(entry.file_name().into_string().unwrap());
        assert_eq!(entry.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    }
    names.sort();
    assert_eq!(
        names,
        [
            "ca-key.pem",
            "ca.pem",
            "client-key.pem",
            "client.pem",
            "server-key.pem",
            "server.pem"
        ]
    );

    let file = |name: &str| path(&certs.join(name)).to_owned();
    let issued = Issued {
        certificate: certs.join("server.pem"),
        key: certs.join("server-key.pem"),
    };
    let server = serve_tls(&issued, &["--tls-client-ca", &file("ca.pem")]);
    let address = format!("https://localhost:{}", server.address.port());
    let command = |name: &str| {
        let mut command = Command::new(CHITCHAT);
        command
            .args([name, "--server", &address])
            .env("CHITCHAT_CA", file("ca.pem"))
            .env("CHITCHAT_CERT", file("client.pem"))
            .env("CHITCHAT_KEY", file("client-key.pem"));
        command
    };
    succeed(command("send").args(["--name", "Ada", "Hello over TLS"]), "");
    let history = succeed(&mut command("history"), "");
    assert!(history.contains("Ada: Hello over TLS"), "{history}");
    let chat = succeed(command("chat").args(["--name", "Bob"]), "me too\n");
    assert!(chat.contains("Bob: me too"), "{chat}");
    let doctor = succeed(&mut command("doctor"), "");
    assert!(
        doctor.contains(&format!("ok       server      {address} is SERVING")),
        "{doctor}"
    );

    let before = fs::read(certs.join("ca.pem")).unwrap();
    let again = run(Command::new(CHITCHAT).args(["certs", path(&certs)]), "");
    assert_fails(&again, 64, &["ca.pem", "is not overwritten"]);
    assert_eq!(fs::read(certs.join("ca.pem")).unwrap(), before);
}

#[test]
fn each_certificate_that_is_not_accepted_has_its_reason() {
    let directory = tempfile::tempdir().unwrap();
    let authority = Authority::new("test");
    let ca = authority.write(directory.path().join("ca.pem"));
    let trusted = ["--ca", path(&ca)];
    let (of, other) = (directory.path(), Authority::new("other"));
    let good = authority.issue(of, "good", &["localhost"]);
    for (issued, host, reasons) in [
        (
            authority.issue_for_years(of, "old", &["localhost"], [2001, 2010]),
            "localhost",
            &["https://localhost:", "expired at 2010-01-01T00:00:00Z"][..],
        ),
        (
            authority.issue_for_years(of, "young", &["localhost"], [2900, 3001]),
            "localhost",
            &["not valid before 2900-01-01T00:00:00Z"],
        ),
        (
            authority.issue(of, "elsewhere", &["chat.example", "192.0.2.1"]),
            "localhost",
            &["is for chat.example, 192.0.2.1, not for localhost"],
        ),
        (good, "127.0.0.1", &["is for localhost, not for 127.0.0.1"]),
        (
            other.issue(of, "unknown", &["localhost"]),
            "localhost",
            &["CA that is not trusted", "--ca"],
        ),
        (
            authority.issue_for_client(of, "client"),
            "localhost",
            &["certificate is not valid", "client authentication"],
        ),
    ] {
        let server = serve_tls(&issued, &[]);
        assert_fails(&health("https://", host, &server, &trusted), 69, reasons);
    }
}

/// A server for `localhost` with a certificate of an authority whose own is in `ca.pem`.
fn trusted_server(flags: &[&str]) -> (TempDir, Authority, Server) {
    let directory = tempfile::tempdir().unwrap();
    let authority = Authority::new("test");
    authority.write(directory.path().join("ca.pem"));
    let issued = authority.issue(directory.path(), "server", &["localhost"]);
    let server = serve_tls(&issued, flags);
    (directory, authority, server)
}

#[test]
fn the_system_decides_whom_to_trust_unless_there_is_a_file() {
    let (directory, _authority, server) = trusted_server(&[]);
    let ca = directory.path().join("ca.pem");
    let address = format!("https://localhost:{}", server.address.port());
    let mut command = Command::new(CHITCHAT);
    command
        .args(["health", "--server", &address])
        // What replaces the files of the system.
        .env("SSL_CERT_FILE", &ca);
    assert_eq!(succeed(&mut command, ""), "SERVING\n");
    let named = health(
        "https://",
        "127.0.0.1",
        &server,
        &["--ca", path(&ca), "--server-name", "localhost"],
    );
    assert_eq!(text(&named.stdout), "SERVING\n", "{named:?}");
}

#[test]
fn a_client_and_a_server_that_do_not_agree_on_tls_are_told() {
    let (directory, _authority, mut encrypted) = trusted_server(&[]);
    let ca = directory.path().join("ca.pem");
    assert_fails(
        &health("", "localhost", &encrypted, &[]),
        69,
        &["requires TLS; use https://"],
    );
    let logged = encrypted.log_line("\"reason\":\"plain_text\"");
    assert!(logged.contains("does not use TLS"), "{logged}");
    let mut plain = serve(&[]);
    assert_fails(
        &health("https://", "localhost", &plain, &["--ca", path(&ca)]),
        69,
        &["does not use TLS on this port; use http://"],
    );
    let logged = plain.log_line("\"reason\":\"tls\"");
    assert!(logged.contains("--tls-cert"), "{logged}");
    // Whoever gives a CA certificate expects encryption.
    assert_fails(
        &health("", "localhost", &plain, &["--ca", path(&ca)]),
        78,
        &["https://"],
    );
    let missing = health("https://", "localhost", &encrypted, &["--ca", "missing.pem"]);
    assert_fails(&missing, 78, &["missing.pem cannot be read"]);
}

#[test]
fn the_flag_for_a_certificate_overrides_the_one_in_the_configuration() {
    let directory = tempfile::tempdir().unwrap();
    let authority = Authority::new("test");
    let ca = authority.write(directory.path().join("ca.pem"));
    let issued = authority.issue(directory.path(), "server", &["localhost"]);
    let server = serve_tls(&issued, &["--tls-client-ca", path(&ca)]);
    let client = authority.issue_for_client(directory.path(), "client");
    let health = |configuration: &str, flags: &[&str]| {
        let file = directory.path().join("chitchat/config.toml");
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(file, configuration).unwrap();
        let mut command = Command::new(CHITCHAT);
        command
            .args(["health", "--server"])
            .arg(format!("https://localhost:{}", server.address.port()))
            .args(["--ca", path(&ca)])
            .args(flags)
            .env("XDG_CONFIG_HOME", directory.path());
        run(&mut command, "")
    };
    let server_line = format!("server = \"https://localhost:{}\"\n", server.address.port());
    let configuration = format!(
        "{server_line}cert = \"missing.pem\"\nkey = {:?}\n",
        path(&client.key)
    );
    let certificate = ["--cert", path(&client.certificate)];
    let renewed = health(&configuration, &certificate);
    assert!(renewed.status.success(), "{renewed:?}");
    let half = health("", &certificate);
    assert_fails(&half, 64, &["chitchat: --cert needs --key, too"]);
    let half = health("", &["--key", path(&client.key)]);
    assert_fails(&half, 64, &["chitchat: --key needs --cert, too"]);
}

#[test]
fn a_client_whose_certificate_is_not_accepted_is_told() {
    let directory = tempfile::tempdir().unwrap();
    let authority = Authority::new("test");
    let ca = authority.write(directory.path().join("ca.pem"));
    let issued = authority.issue(directory.path(), "server", &["localhost"]);
    let server = serve_tls(&issued, &["--tls-client-ca", path(&ca)]);
    let trusted = ["--ca", path(&ca)];
    let none = health("https://", "localhost", &server, &trusted);
    assert_fails(&none, 77, &["only clients with a certificate", "--cert"]);
    let stranger = Authority::new("other").issue_for_client(directory.path(), "stranger");
    let identity = [
        "--cert",
        path(&stranger.certificate),
        "--key",
        path(&stranger.key),
    ];
    let flags = [&trusted[..], &identity].concat();
    let refused = health("https://", "localhost", &server, &flags);
    assert_fails(&refused, 77, &["does not accept the certificate", "its CA"]);
    let doctor = run(
        Command::new(CHITCHAT)
            .args(["doctor", "--server"])
            .arg(format!("https://localhost:{}", server.address.port()))
            .args(trusted),
        "",
    );
    assert!(text(&doctor.stdout).contains("--tls-client-ca"), "{doctor:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_does_not_reconnect_to_a_server_that_it_does_not_trust() {
    let directory = tempfile::tempdir().unwrap();
    let authority = Authority::new("test");
    let ca = authority.write(directory.path().join("ca.pem"));
    let listen = unused_address();
    let start = |issued: &Issued| {
        let files = [
            "--tls-cert",
            path(&issued.certificate),
            "--tls-key",
            path(&issued.key),
        ];
        serve_at(listen, &[&["--in-memory"], &files[..]].concat())
    };
    let mut server = start(&authority.issue(directory.path(), "server", &["localhost"]));
    let address: ServerAddress = format!("https://localhost:{}", listen.port()).parse().unwrap();
    let options = ConnectOptions {
        tls: TlsOptions {
            ca: Some(ca),
            ..TlsOptions::default()
        },
        ..ConnectOptions::default()
    };
    let patient = RetryPolicy {
        patience: Duration::from_secs(3_600),
        ..RetryPolicy::default()
    };
    let mut session = Session::join(&address, &options, patient, JoinOptions::new("Ada"))
        .await
        .unwrap();
    server.stop();
    let impostor = Authority::new("other").issue(directory.path(), "impostor", &["localhost"]);
    let _server = start(&impostor);
    let waiting = async {
        loop {
            match session.try_next().await {
                Ok(Some(Event::Reconnecting { .. } | _)) => {}
                Ok(None) => panic!("the session was not left"),
                Err(error) => return error,
            }
        }
    };
    let error = tokio::time::timeout(TIMEOUT, waiting).await.expect("an error");
    let ClientError::Tls { error, .. } = error else {
        panic!("{error}");
    };
    assert_eq!(error, TlsError::UnknownIssuer);
}

#[test]
fn the_names_of_a_certificate_are_checked() {
    let directory = tempfile::tempdir().unwrap();
    let certs = |name: &str| {
        let mut command = Command::new(CHITCHAT);
        command.current_dir(&directory).args(["certs", "--name", name]);
        run(&mut command, "")
    };
    assert_fails_with_usage(&certs("no name"));
    assert_fails_with_usage(&certs("https://chat.example"));
    let made = certs("*.chat.example");
    assert!(made.status.success(), "{made:?}");
    assert!(text(&made.stdout).contains("chitchat-certs/ca.pem"), "{made:?}");
}

#[track_caller]
fn assert_fails_with_usage(output: &Output) {
    assert_eq!(output.status.code(), Some(64), "{output:?}");
    assert!(text(&output.stderr).contains("chat.example"), "{output:?}");
}

/// The commands of a section of the README, one per line.
fn commands(heading: &str) -> Vec<String> {
    let readme = fs::read_to_string(Path::new(process::CHECKOUT).join("README.md")).unwrap();
    let (_, section) = readme.split_once(&format!("\n## {heading}\n")).unwrap();
    let (_, block) = section.split_once("```sh\n").unwrap();
    let (block, _) = block.split_once("```").unwrap();
    block
        .replace("\\\n", "")
        .lines()
        .map(|line| line.split(" #").next().unwrap().trim().to_owned())
        .collect()
}

#[test]
fn the_readme_shows_how_to_run_on_a_public_host() {
    let directory = tempfile::tempdir().unwrap();
    let listen = unused_address();
    let commands = commands("Run it on a public host");
    let [certs, token, serve, chat] = &commands[..] else {
        panic!("{commands:?}");
    };
    let shell = |command: &str| {
        let script = command
            .replace("chat.example:50052", &format!("localhost:{}", listen.port()))
            .replace("chat.example", "localhost")
            .replace("0.0.0.0:50052", &listen.to_string());
        let mut shell = Command::new("sh");
        shell
            .args(["-c", &script])
            .current_dir(&directory)
            .env(
                "PATH",
                format!("{}:/bin:/usr/bin", path(Path::new(CHITCHAT).parent().unwrap())),
            )
            .env("CHITCHAT_IN_MEMORY", "true")
            .env("CHITCHAT_ADMIN", "127.0.0.1:0");
        shell
    };
    succeed(&mut shell(certs), "");
    succeed(&mut shell(token), "");
    let server = Process::start(&mut shell(&format!("exec {serve}")));
    server.stdout_line("serving");
    let chat = succeed(&mut shell(chat), "Hello\n");
    assert!(chat.contains("Ada: Hello"), "{chat}");
}

#[test]
fn the_load_generator_checks_deliveries_over_tls() {
    let directory = tempfile::tempdir().unwrap();
    let authority = Authority::new("test");
    let ca = authority.write(directory.path().join("ca.pem"));
    let issued = authority.issue(directory.path(), "server", &["localhost"]);
    let server = serve_tls(&issued, &[]);
    let address = format!("https://localhost:{}", server.address.port());
    let bench = |address: &str, ca: &[&str]| {
        let mut command = Command::new(load_generator());
        command.args([
            "--server",
            address,
            "--count",
            "2000",
            "--subscribers",
            "8",
            "--payload",
            "2000",
        ]);
        run(command.args(ca), "")
    };
    let output = bench(&address, &["--ca", path(&ca)]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let other = Authority::new("other").write(directory.path().join("other.pem"));
    let output = bench(&address, &["--ca", path(&other)]);
    assert!(text(&output.stderr).contains("certificate"), "{output:?}");
    assert_eq!(bench(&address, &[]).status.code(), Some(64));
}
