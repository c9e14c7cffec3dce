//! Python's grpcio, with the scenarios of `grpcio_client.py`.

use std::path::Path;
use std::process::Command;

use crate::process::{CHECKOUT, python, serve, succeed};

/// Generates the Python code from `proto/` into `directory`.
pub(crate) fn generate(python: &str, directory: &Path) {
    let out = |kind: &str| format!("--{kind}_out={}", directory.display());
    let mut protoc = Command::new(python);
    protoc
        .current_dir(CHECKOUT)
        .args(["-m", "grpc_tools.protoc", "--proto_path=proto"])
        .args([out("python"), out("grpc_python")])
        .arg("chat.proto");
    succeed(&mut protoc, "");
}

fn scenario(name: &str) {
    let Some(python) = python() else { return };
    let generated = tempfile::tempdir().unwrap();
    generate(&python, generated.path());
    let server = serve(&["--max-message-chars", "128"]);
    let mut client = Command::new(&python);
    client
        .arg(Path::new(CHECKOUT).join("tests/interop/grpcio_client.py"))
        .args([&server.address.to_string(), name])
        .env("PYTHONPATH", generated.path())
        .env("PYTHONDONTWRITEBYTECODE", "1");
    succeed(&mut client, "");
    let metrics = server.get("/metrics");
    assert!(metrics.contains("\nchitchat_connected_clients 0\n"), "{metrics}");
}

#[test]
fn python_clients_talk_and_leave() {
    scenario("talk");
}

#[test]
fn a_killed_python_client_leaves_once() {
    scenario("vanish");
}
