//! grpcurl, which learns the service by reflection.

use std::process::{Command, Output};

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::process::{CHECKOUT, Process, Server, grpcurl, run, serve, succeed, text};

struct Grpcurl {
    program: String,
    server: Server,
}

fn start() -> Option<Grpcurl> {
    let program = grpcurl()?;
    let server = serve(&[]);
    Some(Grpcurl { program, server })
}

impl Grpcurl {
    /// grpcurl with `flags` before the address and `arguments` after it.
    fn command(&self, flags: &[&str], arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command
            .args(["-plaintext", "-max-time", "30"])
            .args(flags)
            .arg(self.server.address.to_string())
            .args(arguments);
        command
    }

    /// Asserts that the command succeeds, and returns its stdout.
    fn succeed(&self, flags: &[&str], arguments: &[&str]) -> String {
        succeed(&mut self.command(flags, arguments), "")
    }

    /// Asserts that the command fails.
    fn fail(&self, flags: &[&str], arguments: &[&str]) -> Output {
        let output = run(&mut self.command(flags, arguments), "");
        assert!(!output.status.success(), "{}", text(&output.stdout));
        output
    }

    fn status(&self, service: &str) -> String {
        let request = format!("{{\"service\": \"{service}\"}}");
        let response = self.succeed(&["-d", &request], &["grpc.health.v1.Health/Check"]);
        let response: Value = serde_json::from_str(&response).unwrap();
        response["status"].as_str().unwrap().to_owned()
    }
}

#[test]
fn services_and_calls_are_listed() {
    let Some(grpcurl) = start() else { return };
    assert_eq!(
        grpcurl.succeed(&[], &["list"]).lines().collect::<Vec<_>>(),
        [
            "grpc.health.v1.Health",
            "grpc.reflection.v1.ServerReflection",
            "grpc.reflection.v1alpha.ServerReflection",
            "itu.chitchat.ChatService",
        ]
    );
    let calls = grpcurl.succeed(&[], &["list", "itu.chitchat.ChatService"]);
    assert!(
        calls.lines().any(|call| call == "itu.chitchat.ChatService.Chat"),
        "{calls}"
    );
}

#[test]
fn services_and_messages_are_described() {
    let Some(grpcurl) = start() else { return };
    let service = grpcurl.succeed(&[], &["describe", "itu.chitchat.ChatService"]);
    let chat =
        "rpc Chat ( stream .itu.chitchat.JoinMsgLeave ) returns ( stream .itu.chitchat.ServerMessage );";
    assert!(service.contains(chat), "{service}");

    let message = grpcurl.succeed(&[], &["describe", "itu.chitchat.JoinMsgLeave"]);
    // The field numbers of the first version never change.
    for field in [
        "int32 id = 1;",
        "string client_name = 2;",
        "int64 timestamp = 4;",
        "string msg = 5;",
        ".itu.chitchat.EventType type = 8;",
        "reserved 3, 6, 7;",
    ] {
        assert!(message.contains(field), "no {field} in {message}");
    }
    let message = grpcurl.succeed(&[], &["describe", "itu.chitchat.ServerMessage"]);
    for field in [
        "int32 sender_id = 1;",
        "string sender_name = 2;",
        "string msg_stream = 4;",
        ".itu.chitchat.EventType type = 5;",
        "int64 timestamp = 6;",
        "reserved 3;",
    ] {
        assert!(message.contains(field), "no {field} in {message}");
    }
    let health = grpcurl.succeed(&[], &["describe", "grpc.health.v1.Health"]);
    assert!(
        health.contains("rpc Check") && health.contains("rpc Watch"),
        "{health}"
    );
}

#[test]
fn health_can_be_checked() {
    let Some(grpcurl) = start() else { return };
    for service in ["", "itu.chitchat.ChatService"] {
        assert_eq!(grpcurl.status(service), "SERVING", "{service:?}");
    }
    let unknown = grpcurl.fail(
        &["-d", r#"{"service": "unknown"}"#],
        &["grpc.health.v1.Health/Check"],
    );
    assert!(text(&unknown.stderr).contains("Code: NotFound"), "{unknown:?}");
}

#[test]
fn health_can_be_watched_until_the_server_drains() {
    let Some(mut grpcurl) = start() else { return };
    let mut watches: Vec<_> = ["{}", r#"{"service": "itu.chitchat.ChatService"}"#]
        .map(|request| {
            Process::start(&mut grpcurl.command(&["-d", request], &["grpc.health.v1.Health/Watch"]))
        })
        .into();
    for watch in &mut watches {
        watch.stdout_line(r#""status": "SERVING""#);
    }
    grpcurl.server.signal(Signal::SIGTERM);
    for watch in &mut watches {
        watch.stdout_line(r#""status": "NOT_SERVING""#);
    }
    // An open Watch does not prolong the drain.
    assert_eq!(grpcurl.server.wait().code(), Some(0));
}

#[test]
fn a_conversation_can_be_held() {
    let Some(grpcurl) = start() else { return };
    let input = r#"
        {"type": "JOIN", "clientName": "Ada", "timestamp": 1}
        {"type": "MESSAGE", "msg": "Hello from grpcurl", "timestamp": 2}
        {"type": "LEAVE", "timestamp": 3}
    "#;
    let received = succeed(
        &mut grpcurl.command(&["-d", "@"], &["itu.chitchat.ChatService/Chat"]),
        input,
    );
    let received: Vec<Value> = serde_json::Deserializer::from_str(&received)
        .into_iter()
        .map(Result::unwrap)
        .collect();
    assert_eq!(received.len(), 2, "{received:#?}");
    assert_eq!(
        received[0]["msgStream"],
        "Participant Ada joined Chit Chat at logical time L=2"
    );
    assert_eq!(received[1]["msgStream"], "Hello from grpcurl");
    assert_eq!(
        (&received[1]["type"], &received[1]["timestamp"]),
        (&Value::from("MESSAGE"), &Value::from("3"))
    );
    for (message, sequence) in received.iter().zip(["1", "2"]) {
        assert_eq!(
            (&message["senderName"], &message["room"], &message["sequence"]),
            (&"Ada".into(), &"lobby".into(), &sequence.into())
        );
    }
}

#[test]
fn errors_have_a_code_and_a_reason() {
    let Some(grpcurl) = start() else { return };
    let rejected = grpcurl.fail(
        &["-format-error", "-d", r#"{"type": "MESSAGE", "msg": "hi"}"#],
        &["itu.chitchat.ChatService/Chat"],
    );
    let error: Value = serde_json::from_slice(&rejected.stderr).unwrap();
    // The code is FAILED_PRECONDITION.
    assert_eq!(
        (&error["code"], rejected.status.code()),
        (&9.into(), Some(64 + 9))
    );
    assert_eq!(error["details"][0]["reason"], "NOT_JOINED", "{error:#}");
}

#[test]
fn unknown_calls_and_services_are_unimplemented() {
    let Some(grpcurl) = start() else { return };
    for call in [
        "itu.chitchat.ChatService/Juggle",
        "itu.chitchat.JugglingService/Juggle",
    ] {
        let folder = format!("{CHECKOUT}/tests/interop");
        let flags = ["-import-path", &folder, "-proto", "unknown.proto"];
        let output = grpcurl.fail(&flags, &[call]);
        assert!(
            text(&output.stderr).contains("Code: Unimplemented"),
            "{call}: {output:?}"
        );
    }
}
