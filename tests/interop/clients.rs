//! The clients in `docs/clients.md`.

use std::fs;
use std::path::Path;
use std::process::Command;

use tempfile::TempDir;

use crate::grpcio::generate;
use crate::process::{
    CHECKOUT, CHITCHAT, FREE_PORT, Process, external_program, python, serve, serve_at, succeed,
};

/// Writes the program of the page that is in `language` to a file, and returns its directory.
fn write_program(language: &str, file: &str) -> TempDir {
    let page = fs::read_to_string(Path::new(CHECKOUT).join("docs/clients.md")).unwrap();
    let (_, program) = page.split_once(&format!("```{language}\n")).unwrap();
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join(file), program.split("```").next().unwrap()).unwrap();
    directory
}

#[test]
fn the_python_client_resumes() {
    let Some(python) = python() else { return };
    let directory = write_program("python", "client.py");
    generate(&python, directory.path());
    let data = tempfile::tempdir().unwrap();
    let flags = ["--data-dir", data.path().to_str().unwrap()];
    let server = serve_at(FREE_PORT, &flags);
    let address = server.address;
    let mut command = Command::new(&python);
    command
        .current_dir(directory.path())
        .args(["client.py", &address.to_string(), "Ada", "tea"]);
    let mut ada = Process::start(&mut command);
    assert!(ada.line().contains("Participant Ada joined"));
    ada.write_line("one");
    assert!(ada.line().ends_with("Ada: one"));
    // Kills it.
    drop(server);
    ada.write_line("two");
    let server = serve_at(address, &flags);
    assert!(ada.line().ends_with("Ada: two"));
    let finished = ada.finish();
    assert_eq!(
        (finished.code, finished.lines.len()),
        (Some(0), 0),
        "{finished:?}"
    );
    let mut history = Command::new(CHITCHAT);
    history.args(["history", "tea", "--server", &server.address.to_string()]);
    let history = succeed(&mut history, "");
    assert_eq!(history.lines().count(), 4, "{history}");
}

#[test]
fn the_node_client_talks() {
    let load = ["-e", "require('@grpc/grpc-js'); require('@grpc/proto-loader')"];
    let Some(node) = external_program("CHITCHAT_TEST_GRPC_JS", "node", &load) else {
        return;
    };
    let directory = write_program("js", "client.js");
    let server = serve(&[]);
    let mut command = Command::new(node);
    command.current_dir(directory.path()).arg("client.js").args([
        &server.address.to_string(),
        Path::new(CHECKOUT).join("proto/chat.proto").to_str().unwrap(),
        "Bob",
        "tea",
    ]);
    let printed = succeed(&mut command, "one\ntwo\n");
    let lines: Vec<&str> = printed.lines().collect();
    assert_eq!(lines.len(), 3, "{printed}");
    assert!(
        lines[1].ends_with("Bob: one") && lines[2].ends_with("Bob: two"),
        "{printed}"
    );
}
