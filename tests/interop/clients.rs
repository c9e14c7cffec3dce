//! The clients in `docs/clients.md`.

use std::fs;
use std::path::Path;
use std::process::Command;

use tempfile::TempDir;

use crate::grpcio::generate;
use crate::process::{
    CHECKOUT, CHITCHAT, FREE_PORT, Process, Server, external_program, python, serve, serve_at, succeed,
};

/// Writes the program of the page that is in `language` to a file, and returns its directory.
fn write_program(language: &str, file: &str) -> TempDir {
    let page = fs::read_to_string(Path::new(CHECKOUT).join("docs/clients.md")).unwrap();
    let (_, program) = page.split_once(&format!("```{language}\n")).unwrap();
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join(file), program.split("```").next().unwrap()).unwrap();
    directory
}

/// Runs a client that loses its server and gets it back. `client` makes the command from the address.
fn assert_resumes(client: impl FnOnce(&str) -> Command) {
    let data = tempfile::tempdir().unwrap();
    let flags = ["--data-dir", data.path().to_str().unwrap()];
    let server = serve_at(FREE_PORT, &flags);
    let address = server.address;
    let mut ada = Process::start(&mut client(&address.to_string()));
    assert!(ada.line().contains("Participant Ada joined"));
    ada.write_line("one");
    assert!(ada.line().ends_with("Ada: one"));
    // Kills it.
    drop(server);
    ada.write_line("two");
    ada.write_line("three");
    let server = serve_at(address, &flags);
    assert!(ada.line().ends_with("Ada: two"));
    assert!(ada.line().ends_with("Ada: three"));
    let finished = ada.finish();
    assert_eq!(
        (finished.code, finished.lines.len()),
        (Some(0), 0),
        "{finished:?}"
    );
    let mut history = Command::new(CHITCHAT);
    history.args(["history", "tea", "--server", &server.address.to_string()]);
    let history = succeed(&mut history, "");
    assert_eq!(history.lines().count(), 5, "{history}");
}

/// Runs a client that sends two lines and leaves.
fn assert_talks(client: &mut Command, server: &Server) {
    client.args([&server.address.to_string(), "Ada", "tea"]);
    let printed = succeed(client, "one\ntwo\n");
    let lines: Vec<&str> = printed.lines().collect();
    assert_eq!(lines.len(), 3, "{printed}");
    for (line, end) in lines
        .iter()
        .zip([" joined Chit Chat at logical time L=2", "Ada: one", "Ada: two"])
    {
        assert!(line.ends_with(end), "{printed}");
    }
}

#[test]
fn the_python_client_resumes() {
    let Some(python) = python() else { return };
    let directory = write_program("python", "client.py");
    generate(&python, directory.path());
    assert_resumes(|address| {
        let mut command = Command::new(&python);
        command.current_dir(directory.path());
        command.args(["client.py", address, "Ada", "tea"]);
        command
    });
}

#[test]
fn the_node_client_resumes() {
    let load = ["-e", "require('@grpc/grpc-js'); require('@grpc/proto-loader')"];
    let Some(node) = external_program("CHITCHAT_TEST_GRPC_JS", "node", &load) else {
        return;
    };
    let directory = write_program("js", "client.js");
    assert_resumes(|address| {
        let mut command = Command::new(node);
        command.current_dir(directory.path());
        command.args(["client.js", address]);
        command.arg(Path::new(CHECKOUT).join("proto/chat.proto"));
        command.args(["Ada", "tea"]);
        command
    });
}

/// Generates code from `proto/` into `directory`, if there is the `protoc` with plugins of `.ci/tools`.
fn protoc(directory: &Path, flags: &[&str]) -> Option<()> {
    let protoc = external_program("CHITCHAT_TEST_PROTOC", "protoc with plugins", &["--version"])?;
    let mut command = Command::new(protoc);
    command.current_dir(directory).args(flags).arg("chat.proto");
    command.arg(format!("--proto_path={CHECKOUT}/proto"));
    succeed(&mut command, "");
    Some(())
}

#[test]
fn the_go_client_talks() {
    let Some(go) = external_program("CHITCHAT_TEST_GO", "go", &["version"]) else {
        return;
    };
    let directory = write_program("go", "main.go");
    let path = directory.path();
    if protoc(path, &["--go_out=.", "--go-grpc_out=."]).is_none() {
        return;
    }
    for file in ["go.mod", "go.sum"] {
        fs::copy(
            Path::new(CHECKOUT).join(".ci/clients").join(file),
            path.join(file),
        )
        .unwrap();
    }
    let mut build = Command::new(go);
    // As .ci/tools has compiled the modules.
    build
        .current_dir(path)
        .args(["build", "-o", "client", "."])
        .env("CGO_ENABLED", "0");
    succeed(&mut build, "");
    assert_talks(&mut Command::new(path.join("client")), &serve(&[]));
}

#[test]
fn the_java_client_talks() {
    let Some(javac) = external_program("CHITCHAT_TEST_JAVAC", "javac", &["-version"]) else {
        return;
    };
    let directory = write_program("java", "Client.java");
    let path = directory.path();
    fs::create_dir(path.join("stub")).unwrap();
    if protoc(path, &["--java_out=stub", "--grpc-java_out=stub"]).is_none() {
        return;
    }
    let jars = std::env::var("CHITCHAT_TEST_JARS").unwrap_or_else(|_| "lib".to_owned()) + "/*";
    let mut build = Command::new(javac);
    build.current_dir(path);
    // Compiles faster, as it runs only for seconds.
    build.args(["-J-XX:TieredStopAtLevel=1", "-J-XX:+UseSerialGC", "-proc:none"]);
    build.args([
        "-cp",
        &jars,
        "-sourcepath",
        "stub",
        "-d",
        "classes",
        "Client.java",
    ]);
    succeed(&mut build, "");
    let mut client = Command::new("java");
    client.current_dir(path).args(["-XX:TieredStopAtLevel=1", "-cp"]);
    client.args([&format!("classes:{jars}"), "Client"]);
    assert_talks(&mut client, &serve(&[]));
}
