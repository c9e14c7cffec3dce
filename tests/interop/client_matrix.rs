//! Each client against a server with TLS and tokens: with a token that is good, and refused for each reason. All but `buf curl`, which
//! sends one message, use only the messages of the first version, or are our own.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};
use std::time::{SystemTime, UNIX_EPOCH};

use chitchat::auth::{Grant, SigningKey};
use rcgen::{KeyPair, PKCS_ED25519};
use serde_json::json;
use tempfile::TempDir;

use crate::certificates::Authority;
use crate::grpcio::generate;
use crate::process::{CHECKOUT, CHITCHAT, Server, buf, external_program, grpcurl, python, run, serve, text};

/// A server with TLS that requires tokens, and what its clients need.
struct Protected {
    directory: TempDir,
    key: SigningKey,
    server: Server,
}

fn new_key() -> SigningKey {
    let pair = KeyPair::generate_for(&PKCS_ED25519).unwrap();
    SigningKey::from_pem(pair.serialize_pem().as_bytes()).unwrap()
}

fn grant() -> Grant {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    Grant {
        issuer: "issuer".into(),
        audience: "chat".into(),
        subject: "somebody".into(),
        name: None,
        rooms: vec!["*".into()],
        rights: vec!["read".into(), "write".into(), "create".into()],
        expires_at: now + 3_600,
    }
}

impl Protected {
    fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let authority = Authority::new("Chit Chat test");
        authority.write(directory.path().join("ca.pem"));
        let issued = authority.issue(directory.path(), "server", &["localhost"]);
        let key = new_key();
        let keys = directory.path().join("jwks.json");
        fs::write(&keys, json!({ "keys": [key.public_jwk()] }).to_string()).unwrap();
        let path = |path: &Path| path.to_str().unwrap().to_owned();
        let server = serve(&[
            "--tls-cert",
            &path(&issued.certificate),
            "--tls-key",
            &path(&issued.key),
            "--auth-keys",
            &path(&keys),
            "--auth-issuer",
            "issuer",
            "--auth-audience",
            "chat",
        ]);
        Self {
            directory,
            key,
            server,
        }
    }

    fn ca(&self) -> String {
        self.directory.path().join("ca.pem").to_str().unwrap().to_owned()
    }

    fn address(&self) -> String {
        format!("localhost:{}", self.server.address.port())
    }

    /// The tokens, each with what a refusal says.
    fn cases(&self) -> Vec<(Option<String>, &'static str)> {
        let issue = |change: &dyn Fn(&mut Grant)| {
            let mut grant = grant();
            change(&mut grant);
            Some(self.key.issue(&grant))
        };
        vec![
            (None, "this server needs a token"),
            (issue(&|grant| grant.expires_at = 1), "the token has expired"),
            (
                Some(new_key().issue(&grant())),
                "signed with a key that this server does not have",
            ),
            (
                issue(&|grant| grant.rooms = vec!["tea".into()]),
                "your token does not grant the room \"lobby\"",
            ),
            (
                issue(&|grant| grant.rights = vec!["read".into()]),
                "your token does not grant the right to write in a room",
            ),
        ]
    }

    /// Asserts that `client`, which is given a token, is heard with a good one, and says why it is refused with any other.
    fn check(&self, name: &str, client: impl Fn(Option<&str>) -> Output) {
        for (token, line) in self.cases() {
            let output = client(token.as_deref());
            let (printed, errors) = (text(&output.stdout), text(&output.stderr));
            assert!(!output.status.success(), "{name}, {line}: {printed}");
            // Some clients escape quotes.
            let errors = errors.replace("\\\"", "\"");
            assert!(errors.contains(line), "{name}, {line}: {errors}");
        }
        let output = client(Some(&self.key.issue(&grant())));
        assert!(output.status.success(), "{name}: {}", text(&output.stderr));
        let printed = text(&output.stdout);
        assert!(printed.contains(&format!("Hello from {name}")), "{printed}");
    }
}

fn authorization(token: Option<&str>) -> Vec<String> {
    let header = |token| format!("authorization: Bearer {token}");
    token.map_or_else(Vec::new, |token| vec!["-H".into(), header(token)])
}

#[test]
fn our_own_client_is_heard_or_told_why_not() {
    let protected = Protected::start();
    let server = format!("https://{}", protected.address());
    protected.check("chitchat", |token| {
        let mut command = Command::new(CHITCHAT);
        command.args([
            "chat",
            "--name",
            "Ada",
            "--server",
            &server,
            "--ca",
            &protected.ca(),
        ]);
        command.envs(token.map(|token| ("CHITCHAT_TOKEN", token)));
        run(&mut command, "Hello from chitchat\n")
    });
}

#[test]
fn grpcurl_is_heard_or_told_why_not() {
    let Some(grpcurl) = grpcurl() else { return };
    let protected = Protected::start();
    let messages = r#"
        {"type": "JOIN", "clientName": "grpcurl", "timestamp": 1}
        {"type": "MESSAGE", "msg": "Hello from grpcurl", "timestamp": 2}
        {"type": "LEAVE", "timestamp": 3}
    "#;
    protected.check("grpcurl", |token| {
        let mut command = Command::new(&grpcurl);
        command
            .args(["-max-time", "30", "-cacert", &protected.ca()])
            .args(authorization(token))
            .args(["-d", "@", &protected.address(), "itu.chitchat.ChatService/Chat"]);
        run(&mut command, messages)
    });
}

#[test]
fn buf_curl_is_heard_or_told_why_not() {
    let Some(buf) = buf() else { return };
    let protected = Protected::start();
    let url = format!(
        "https://{}/itu.chitchat.ChatService/SendMessage",
        protected.address()
    );
    protected.check("buf curl", |token| {
        let mut command = Command::new(&buf);
        command
            .current_dir(CHECKOUT)
            .args(["curl", "--protocol", "grpc", "--cacert", &protected.ca()])
            .args(authorization(token))
            .args([
                "--data",
                r#"{"clientName": "buf", "msg": "Hello from buf curl"}"#,
                &url,
            ]);
        run(&mut command, "")
    });
}

#[test]
fn grpcio_is_heard_or_told_why_not() {
    let Some(python) = python() else { return };
    let protected = Protected::start();
    let generated = tempfile::tempdir().unwrap();
    generate(&python, generated.path());
    protected.check("grpcio", |token| {
        let mut command = Command::new(&python);
        command
            .arg(Path::new(CHECKOUT).join("tests/interop/grpcio_once.py"))
            .args([&protected.address(), &protected.ca()])
            .args(token)
            .env("PYTHONPATH", generated.path())
            .env("PYTHONDONTWRITEBYTECODE", "1");
        run(&mut command, "")
    });
}

#[test]
fn grpc_js_is_heard_or_told_why_not() {
    let load = ["-e", "require('@grpc/grpc-js'); require('@grpc/proto-loader')"];
    let Some(node) = external_program("CHITCHAT_TEST_GRPC_JS", "node", &load) else {
        return;
    };
    let protected = Protected::start();
    protected.check("grpc-js", |token| {
        let mut command = Command::new(&node);
        command
            .arg(Path::new(CHECKOUT).join("tests/interop/grpcjs_once.js"))
            .args([&protected.address(), &protected.ca()])
            .arg(Path::new(CHECKOUT).join("proto"))
            .args(token);
        run(&mut command, "")
    });
}
