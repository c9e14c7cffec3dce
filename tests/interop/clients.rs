//! The clients in `docs/clients.md`.

use std::fs;
use std::path::Path;
use std::process::Command;

use tempfile::TempDir;

use crate::grpcio::generate;
use crate::process::{
    CHECKOUT, CHITCHAT, FREE_PORT, Process, Server, external_program, python, serve, serve_at, succeed,
};

/// The programs of the page that are in `language`: a short one and perhaps one that resumes.
fn programs(language: &str) -> Vec<String> {
    let page = fs::read_to_string(Path::new(CHECKOUT).join("docs/clients.md")).unwrap();
    let start = format!("```{language}\n");
    let programs = page.split(&start).skip(1);
    programs
        .map(|program| program.split("```").next().unwrap().to_owned())
        .collect()
}

/// Writes a program to a file, and returns its directory.
fn write_program(program: &str, file: &str) -> TempDir {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join(file), program).unwrap();
    directory
}

#[test]
fn the_clients_are_short() {
    for language in ["python", "js", "go", "java"] {
        let program = &programs(language)[0];
        // The imports come first, and are not counted.
        let body = match language {
            "go" => program.split_once("\n)\n").unwrap().1,
            _ => program,
        };
        let is_import = |line: &str| {
            line.starts_with("import ") || line.starts_with("const {") && line.contains("require(")
        };
        let lines = body.lines().filter(|line| !line.is_empty() && !is_import(line));
        let lines = lines.count();
        assert!((10..=30).contains(&lines), "{language}: {lines}");
    }
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

/// Runs a client that sends two lines and leaves. `flags` come after the address.
fn assert_talks(client: &mut Command, flags: &[&str], server: &Server) {
    client
        .arg(server.address.to_string())
        .args(flags)
        .args(["Ada", "tea"]);
    let printed = succeed(client, "one\ntwo\n");
    let lines: Vec<&str> = printed.lines().collect();
    assert_eq!(lines.len(), 4, "{printed}");
    for (line, end) in lines.iter().zip([
        "Server: Welcome to tea, Ada.",
        " joined Chit Chat at logical time L=2",
        "Ada: one",
        "Ada: two",
    ]) {
        assert!(line.ends_with(end), "{printed}");
    }
}

#[test]
fn the_python_clients_talk_and_resume() {
    let Some(python) = python() else { return };
    let [short, resuming] = &programs("python")[..] else {
        panic!()
    };
    let directory = write_program(short, "client.py");
    fs::write(directory.path().join("resuming.py"), resuming).unwrap();
    generate(&python, directory.path());
    let client = |program: &str| {
        let mut command = Command::new(&python);
        command.current_dir(directory.path()).arg(program);
        command
    };
    assert_talks(&mut client("client.py"), &[], &serve(&[]));
    assert_resumes(|address| {
        let mut command = client("resuming.py");
        command.args([address, "Ada", "tea"]);
        command
    });
}

#[test]
fn the_node_clients_talk_and_resume() {
    let load = ["-e", "require('@grpc/grpc-js'); require('@grpc/proto-loader')"];
    let Some(node) = external_program("CHITCHAT_TEST_GRPC_JS", "node", &load) else {
        return;
    };
    let [short, resuming] = &programs("js")[..] else {
        panic!()
    };
    let directory = write_program(short, "client.js");
    fs::write(directory.path().join("resuming.js"), resuming).unwrap();
    let client = |program: &str| {
        let mut command = Command::new(&node);
        command.current_dir(directory.path()).arg(program);
        command
    };
    let contract = format!("{CHECKOUT}/proto/chat.proto");
    assert_talks(&mut client("client.js"), &[&contract], &serve(&[]));
    assert_resumes(|address| {
        let mut command = client("resuming.js");
        command.args([address, &contract, "Ada", "tea"]);
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
    let directory = write_program(&programs("go")[0], "main.go");
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
    assert_talks(&mut Command::new(path.join("client")), &[], &serve(&[]));
}

#[test]
fn the_java_client_talks() {
    let Some(javac) = external_program("CHITCHAT_TEST_JAVAC", "javac", &["-version"]) else {
        return;
    };
    let directory = write_program(&programs("java")[0], "Client.java");
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
    assert_talks(&mut client, &[], &serve(&[]));
}
