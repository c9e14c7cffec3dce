//! Python's grpcio.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::outside::{CHECKOUT, python, serve, succeed};

/// Generates the client's code from `proto/` as any user would. Gives its folder.
fn generate(python: &str, name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    fs::create_dir_all(&folder).unwrap();
    let out = |kind: &str| format!("--{kind}_out={}", folder.display());
    let mut protoc = Command::new(python);
    protoc
        .current_dir(CHECKOUT)
        .args(["-m", "grpc_tools.protoc", "--proto_path=proto"])
        .args([out("python"), out("grpc_python")])
        .arg("chat.proto");
    succeed(&mut protoc, "");
    folder
}

fn scenario(name: &str) {
    let Some(python) = python() else { return };
    let generated = generate(&python, &format!("grpcio-{name}"));
    let server = serve(&["--max-message-chars", "128"]);
    let mut client = Command::new(&python);
    client
        .arg(Path::new(CHECKOUT).join("tests/strangers/grpcio_client.py"))
        .args([&server.address.to_string(), name])
        .env("PYTHONPATH", generated)
        .env("PYTHONDONTWRITEBYTECODE", "1");
    succeed(&mut client, "");
    let metrics = server.page("/metrics");
    assert!(metrics.contains("\nchitchat_connected_clients 0\n"), "{metrics}");
}

#[test]
fn python_talks() {
    scenario("talk");
}

#[test]
fn a_python_that_is_killed_has_left_once() {
    scenario("vanish");
}
