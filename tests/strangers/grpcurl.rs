//! grpcurl, over reflection alone.

use std::process::{Command, Output};

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::outside::{CHECKOUT, Running, Server, grpcurl, run, serve, succeed, text};

struct Grpcurl {
    program: String,
    server: Server,
}

/// A server and the program to ask it with.
fn start() -> Option<Grpcurl> {
    let program = grpcurl()?;
    let server = serve(&[]);
    Some(Grpcurl { program, server })
}

impl Grpcurl {
    /// grpcurl with these flags, then the address, then these words.
    fn command(&self, flags: &[&str], words: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command
            .args(["-plaintext", "-max-time", "30"])
            .args(flags)
            .arg(self.server.address.to_string())
            .args(words);
        command
    }

    fn says(&self, flags: &[&str], words: &[&str]) -> String {
        succeed(&mut self.command(flags, words), "")
    }

    fn fails(&self, flags: &[&str], words: &[&str]) -> Output {
        let output = run(&mut self.command(flags, words), "");
        assert!(!output.status.success(), "{}", text(&output.stdout));
        output
    }

    fn status(&self, service: &str) -> String {
        let request = format!("{{\"service\": \"{service}\"}}");
        let answer = self.says(&["-d", &request], &["grpc.health.v1.Health/Check"]);
        let answer: Value = serde_json::from_str(&answer).unwrap();
        answer["status"].as_str().unwrap().to_owned()
    }
}

#[test]
fn lists_what_is_there() {
    let Some(grpcurl) = start() else { return };
    assert_eq!(
        grpcurl.says(&[], &["list"]).lines().collect::<Vec<_>>(),
        [
            "grpc.health.v1.Health",
            "grpc.reflection.v1.ServerReflection",
            "grpc.reflection.v1alpha.ServerReflection",
            "itu.chitchat.ChatService",
        ]
    );
    let calls = grpcurl.says(&[], &["list", "itu.chitchat.ChatService"]);
    assert!(
        calls.lines().any(|call| call == "itu.chitchat.ChatService.Chat"),
        "{calls}"
    );
}

#[test]
fn describes_services_and_messages() {
    let Some(grpcurl) = start() else { return };
    let service = grpcurl.says(&[], &["describe", "itu.chitchat.ChatService"]);
    let chat =
        "rpc Chat ( stream .itu.chitchat.JoinMsgLeave ) returns ( stream .itu.chitchat.ServerMessage );";
    assert!(service.contains(chat), "{service}");

    let message = grpcurl.says(&[], &["describe", "itu.chitchat.JoinMsgLeave"]);
    // The numbers of the first version are for ever.
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
    let message = grpcurl.says(&[], &["describe", "itu.chitchat.ServerMessage"]);
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
    let health = grpcurl.says(&[], &["describe", "grpc.health.v1.Health"]);
    assert!(
        health.contains("rpc Check") && health.contains("rpc Watch"),
        "{health}"
    );
}

#[test]
fn asks_for_health() {
    let Some(grpcurl) = start() else { return };
    for service in ["", "itu.chitchat.ChatService"] {
        assert_eq!(grpcurl.status(service), "SERVING", "{service:?}");
    }
    let unknown = grpcurl.fails(
        &["-d", r#"{"service": "nobody"}"#],
        &["grpc.health.v1.Health/Check"],
    );
    assert!(text(&unknown.stderr).contains("Code: NotFound"), "{unknown:?}");
}

#[test]
fn watches_health_until_the_server_drains() {
    let Some(mut grpcurl) = start() else { return };
    let mut watches: Vec<_> = ["{}", r#"{"service": "itu.chitchat.ChatService"}"#]
        .map(|request| {
            Running::start(&mut grpcurl.command(&["-d", request], &["grpc.health.v1.Health/Watch"]))
        })
        .into();
    for watch in &mut watches {
        watch.line(r#""status": "SERVING""#);
    }
    grpcurl.server.signal(Signal::SIGTERM);
    for watch in &mut watches {
        watch.line(r#""status": "NOT_SERVING""#);
    }
    // Watching does not hold the server up.
    assert_eq!(grpcurl.server.exit().code(), Some(0));
}

#[test]
fn holds_a_conversation() {
    let Some(grpcurl) = start() else { return };
    let said = r#"
        {"type": "JOIN", "clientName": "Ada", "timestamp": 1}
        {"type": "MESSAGE", "msg": "Hello from a stranger", "timestamp": 2}
        {"type": "LEAVE", "timestamp": 3}
    "#;
    let heard = succeed(
        &mut grpcurl.command(&["-d", "@"], &["itu.chitchat.ChatService/Chat"]),
        said,
    );
    let heard: Vec<Value> = serde_json::Deserializer::from_str(&heard)
        .into_iter()
        .map(Result::unwrap)
        .collect();
    assert_eq!(heard.len(), 2, "{heard:#?}");
    assert_eq!(
        heard[0]["msgStream"],
        "Participant Ada joined Chit Chat at logical time L=2"
    );
    assert_eq!(heard[1]["msgStream"], "Hello from a stranger");
    assert_eq!(
        (&heard[1]["type"], &heard[1]["timestamp"]),
        (&Value::from("MESSAGE"), &Value::from("3"))
    );
    for (message, sequence) in heard.iter().zip(["1", "2"]) {
        assert_eq!(
            (&message["senderName"], &message["room"], &message["sequence"]),
            (&"Ada".into(), &"lobby".into(), &sequence.into())
        );
    }
}

#[test]
fn is_told_in_types_what_was_wrong() {
    let Some(grpcurl) = start() else { return };
    let refused = grpcurl.fails(
        &["-format-error", "-d", r#"{"type": "MESSAGE", "msg": "hi"}"#],
        &["itu.chitchat.ChatService/Chat"],
    );
    let error: Value = serde_json::from_slice(&refused.stderr).unwrap();
    // FAILED_PRECONDITION, with a reason for programs.
    assert_eq!((&error["code"], refused.status.code()), (&9.into(), Some(64 + 9)));
    assert_eq!(error["details"][0]["reason"], "NOT_JOINED", "{error:#}");
}

#[test]
fn unknown_calls_are_unimplemented() {
    let Some(grpcurl) = start() else { return };
    for call in [
        "itu.chitchat.ChatService/Juggle",
        "itu.chitchat.JugglingService/Juggle",
    ] {
        let folder = format!("{CHECKOUT}/tests/strangers");
        let flags = ["-import-path", &folder, "-proto", "unknown.proto"];
        let answer = grpcurl.fails(&flags, &[call]);
        assert!(
            text(&answer.stderr).contains("Code: Unimplemented"),
            "{call}: {answer:?}"
        );
    }
}
