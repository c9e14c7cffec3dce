//! Reflection in both versions of its protocol.

use std::process::Command;

use serde_json::Value;

use crate::process::{buf, grpcurl, serve, succeed};

#[test]
fn buf_can_call_the_server_by_either_version() {
    let Some(buf) = buf() else { return };
    let server = serve(&[]);
    for version in ["grpc-v1", "grpc-v1alpha"] {
        let call = |name: &str, requests: &str| {
            let mut curl = Command::new(&buf);
            curl.args(["curl", "--protocol", "grpc", "--http2-prior-knowledge"])
                .args(["--reflect-protocol", version, "--data", "@-"])
                .arg(format!("http://{}/{name}", server.address));
            succeed(&mut curl, requests)
        };
        let health = call("grpc.health.v1.Health/Check", "{}");
        assert!(health.contains("\"SERVING\""), "{version}: {health}");
        let received = call(
            "itu.chitchat.ChatService/Chat",
            r#"{"type": "JOIN", "clientName": "Ada"}
               {"type": "MESSAGE", "msg": "by buf"}
               {"type": "LEAVE"}"#,
        );
        assert!(received.contains("\"by buf\""), "{version}: {received}");
    }
}

#[test]
fn either_version_lists_the_services_and_knows_health() {
    let Some(grpcurl) = grpcurl() else { return };
    let server = serve(&[]);
    for version in ["v1", "v1alpha"] {
        let mut command = Command::new(&grpcurl);
        command
            .args(["-plaintext", "-max-time", "30", "-d", "@"])
            .arg(server.address.to_string())
            .arg(format!(
                "grpc.reflection.{version}.ServerReflection/ServerReflectionInfo"
            ));
        let responses = succeed(
            &mut command,
            r#"{"listServices": ""} {"fileContainingSymbol": "grpc.health.v1.Health"}
               {"fileContainingSymbol": "itu.chitchat.ChatService"}"#,
        );
        let responses: Vec<Value> = serde_json::Deserializer::from_str(&responses)
            .into_iter()
            .map(Result::unwrap)
            .collect();
        let services = responses[0]["listServicesResponse"]["service"]
            .as_array()
            .unwrap();
        for name in ["itu.chitchat.ChatService", "grpc.health.v1.Health"] {
            assert!(
                services.iter().any(|service| service["name"] == name),
                "{version}: no {name} in {services:?}"
            );
        }
        for response in &responses[1..] {
            let files = &response["fileDescriptorResponse"]["fileDescriptorProto"];
            assert!(files.is_array(), "{version}: {response:#}");
        }
    }
}
