//! Reflection in both versions, as tools of either time ask for it.

use std::process::Command;

use serde_json::Value;

use crate::outside::{buf, grpcurl, serve, succeed};

#[test]
fn buf_finds_its_way_by_either_version() {
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
        let heard = call(
            "itu.chitchat.ChatService/Chat",
            r#"{"type": "JOIN", "clientName": "Ada"}
               {"type": "MESSAGE", "msg": "by buf"}
               {"type": "LEAVE"}"#,
        );
        assert!(heard.contains("\"by buf\""), "{version}: {heard}");
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
        let answers = succeed(
            &mut command,
            r#"{"listServices": ""} {"fileContainingSymbol": "grpc.health.v1.Health"}
               {"fileContainingSymbol": "itu.chitchat.ChatService"}"#,
        );
        let answers: Vec<Value> = serde_json::Deserializer::from_str(&answers)
            .into_iter()
            .map(Result::unwrap)
            .collect();
        let services = answers[0]["listServicesResponse"]["service"].as_array().unwrap();
        for name in ["itu.chitchat.ChatService", "grpc.health.v1.Health"] {
            assert!(
                services.iter().any(|service| service["name"] == name),
                "{version}: no {name} in {services:?}"
            );
        }
        for answer in &answers[1..] {
            let files = &answer["fileDescriptorResponse"]["fileDescriptorProto"];
            assert!(files.is_array(), "{version}: {answer:#}");
        }
    }
}
