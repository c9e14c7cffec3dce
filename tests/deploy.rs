//! Checks, without a container engine, that the image and the compose file match the program.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

mod process;

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use process::{CHECKOUT, CHITCHAT, run, serve, serve_flags, serve_with, succeed, text};

fn file(path: &str) -> String {
    fs::read_to_string(Path::new(CHECKOUT).join(path)).unwrap()
}

/// The server's variables that a text sets, with their values, without those that it reads (`${…}`).
fn variables(file: &str) -> Vec<(String, String)> {
    file.lines()
        .map(|line| line.split(" #").next().unwrap_or(line))
        .filter(|line| !line.trim_start().starts_with('#') && !line.contains("${CHITCHAT_"))
        .flat_map(|line| line.split("CHITCHAT_").skip(1))
        .map(|named| {
            let end = named
                .find(|c: char| !(c.is_ascii_uppercase() || c == '_'))
                .unwrap();
            let value = named[end..].trim_start_matches(['=', ':', ' ']);
            let value = value.split_whitespace().next().unwrap_or_default();
            (
                format!("CHITCHAT_{}", &named[..end]),
                value.trim_matches('"').to_owned(),
            )
        })
        .collect()
}

fn value_of<'a>(variables: &'a [(String, String)], name: &str) -> &'a str {
    let found = variables.iter().find(|(variable, _)| variable == name);
    &found.unwrap_or_else(|| panic!("{name} is not set")).1
}

/// The value of the first line of the compose file with this key.
fn compose_value<'a>(compose: &'a str, key: &str) -> &'a str {
    let line = compose
        .lines()
        .find_map(|line| line.trim().strip_prefix(key)?.strip_prefix(':'));
    line.unwrap_or_else(|| panic!("no {key}")).trim()
}

#[test]
fn the_server_has_every_variable_that_is_set() {
    let flags = serve_flags();
    for path in [
        "Dockerfile",
        "deploy/compose.yaml",
        "deploy/compose.tls.yaml",
        "deploy/compose.cluster.yaml",
    ] {
        let variables = variables(&file(path));
        assert!(!variables.is_empty(), "{path}");
        for (name, _) in variables {
            // Only the build uses CHITCHAT_REVISION.
            assert!(
                name == "CHITCHAT_REVISION" || flags.iter().any(|flag| flag.variable == name),
                "{path} sets {name}, which `chitchat serve` does not have"
            );
        }
    }
}

#[test]
fn the_server_starts_with_what_is_set() {
    let mut command = Command::new(CHITCHAT);
    for path in ["Dockerfile", "deploy/compose.yaml"] {
        command.envs(variables(&file(path)));
    }
    // A deliberate error, which must be the only one, so that the server checks its configuration but does not run.
    let output = run(command.args(["serve", "--max-rooms", "0"]), "");
    assert_eq!(
        text(&output.stderr),
        "chitchat: --max-rooms is 0; it must be 1 or more\n"
    );
}

#[test]
fn with_tls_and_tokens_the_server_runs_and_its_health_check_succeeds() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
    let (secrets, keys) = (path("secrets"), path("keys"));
    succeed(Command::new(CHITCHAT).args(["certs", &secrets]), "");
    succeed(Command::new(CHITCHAT).args(["token", &keys]), "");
    fs::copy(path("keys/jwks.json"), path("secrets/jwks.json")).unwrap();
    let overlay = file("deploy/compose.tls.yaml");
    // As the server in the container sees it.
    let here = |value: &str| value.replace("/run/chitchat", &secrets);
    let variables: Vec<(String, String)> = variables(&overlay)
        .into_iter()
        .map(|(name, value)| {
            let value = value.split(":-").last().unwrap().trim_end_matches('}');
            (name, here(value))
        })
        .collect();
    let variables: Vec<_> = variables
        .iter()
        .map(|(name, value)| (name.as_str(), value.as_str()))
        .collect();
    let server = serve_with(&[], &variables);
    let line = overlay.lines().find(|line| line.contains("\"health\"")).unwrap();
    let mut words = line.split('"').skip(1).step_by(2).map(str::to_owned);
    assert_eq!(words.nth(1).as_deref(), Some("/usr/local/bin/chitchat"));
    let arguments = words.map(|word| {
        let word = word.replace("127.0.0.1:50052", &server.address.to_string());
        here(&word.replace("${TLS_NAME:-localhost}", "localhost"))
    });
    let health = run(Command::new(CHITCHAT).args(arguments), "");
    assert_eq!(text(&health.stdout), "SERVING\n", "{health:?}");
    let refused = run(
        Command::new(CHITCHAT)
            .args(["rooms", "--ca", &path("secrets/ca.pem")])
            .args([
                "--server",
                &format!("https://localhost:{}", server.address.port()),
            ]),
        "",
    );
    assert!(
        text(&refused.stderr).contains("this server needs a token"),
        "{refused:?}"
    );
}

#[test]
fn both_health_checks_run_a_command_of_the_program() {
    let server = serve(&[]);
    for path in ["Dockerfile", "deploy/compose.yaml"] {
        let file = file(path);
        let line = file
            .lines()
            .find(|line| line.contains("\"health\""))
            .unwrap_or_else(|| panic!("{path} has no health check"));
        let words: Vec<&str> = line.split('"').skip(1).step_by(2).collect();
        let (program, arguments) = match words.as_slice() {
            ["CMD", program, arguments @ ..] | [program, arguments @ ..] => (program, arguments),
            [] => unreachable!("it contains one"),
        };
        assert_eq!(*program, "/usr/local/bin/chitchat", "{path}");
        let address = server.address.to_string();
        let arguments: Vec<&str> = arguments
            .iter()
            .map(|argument| match *argument {
                "127.0.0.1:50052" => &address,
                argument => argument,
            })
            .collect();
        assert!(arguments.contains(&address.as_str()), "{path}: {line}");
        let output = run(Command::new(CHITCHAT).args(arguments), "");
        assert_eq!(text(&output.stdout), "SERVING\n", "{path}: {output:?}");
    }
}

#[test]
fn ports_are_the_same_everywhere_and_published_on_this_host_only() {
    let (dockerfile, compose) = (file("Dockerfile"), file("deploy/compose.yaml"));
    let image = variables(&dockerfile);
    let mut exposed = Vec::new();
    for name in ["CHITCHAT_LISTEN", "CHITCHAT_ADMIN"] {
        let port = value_of(&image, name)
            .strip_prefix("0.0.0.0:")
            .expect("reachable from outside the container");
        // On this host only, with a host port that a variable can change.
        let published: Vec<&str> = compose
            .lines()
            .filter(|line| line.ends_with(&format!(":{port}\"")))
            .collect();
        assert_eq!(published.len(), 1, "{published:?}");
        assert!(
            published[0].contains("- \"127.0.0.1:${CHITCHAT_")
                && published[0].contains(&format!(":-{port}}}:")),
            "{published:?}"
        );
        exposed.push(port);
    }
    assert!(dockerfile.contains(&format!("\nEXPOSE {}\n", exposed.join(" "))));
}

#[test]
fn the_container_is_hardened_and_is_not_killed_while_it_drains() {
    let (dockerfile, compose) = (file("Dockerfile"), file("deploy/compose.yaml"));
    for line in ["\nUSER 65532:65532\n", "\nSTOPSIGNAL SIGTERM\n"] {
        assert!(dockerfile.contains(line), "no {line:?}");
    }
    assert_eq!(compose_value(&compose, "user"), "\"65532:65532\"");
    assert_eq!(compose_value(&compose, "read_only"), "true");
    assert!(compose.contains("cap_drop:\n      - ALL\n"));
    assert!(compose.contains("- no-new-privileges:true\n"));
    // It writes only to its volume, which its user owns.
    let data = variables(&dockerfile);
    let data = value_of(&data, "CHITCHAT_DATA_DIR");
    assert!(dockerfile.contains(&format!(" --chown=65532:65532 /out/data {data}\n")));
    assert!(compose.contains(&format!("- data:{data}\n")) && compose.contains("\nvolumes:\n  data:\n"));
    assert!(!compose_value(&compose, "mem_limit").is_empty());
    let seconds = |value: &str| {
        let seconds = value.strip_suffix('s').and_then(|seconds| seconds.parse().ok());
        Duration::from_secs(seconds.unwrap_or_else(|| panic!("{value} is not a number of seconds")))
    };
    let drain = variables(&compose);
    let drain = seconds(value_of(&drain, "CHITCHAT_DRAIN_TIMEOUT"));
    assert!(seconds(compose_value(&compose, "stop_grace_period")) > drain);
}

#[test]
fn the_image_is_built_from_files_that_exist() {
    let (dockerfile, ignored) = (file("Dockerfile"), file(".dockerignore"));
    let copies = dockerfile
        .lines()
        .filter_map(|line| line.strip_prefix("COPY "))
        .filter(|copy| !copy.starts_with("--from"));
    let mut count = 0;
    for copy in copies {
        let mut words: Vec<&str> = copy.split_whitespace().collect();
        words.pop();
        for path in words {
            assert!(Path::new(CHECKOUT).join(path).exists(), "{path} does not exist");
            assert!(
                ignored.lines().any(|line| line == format!("!{path}")),
                "{path} is ignored"
            );
            count += 1;
        }
    }
    assert!(count > 0, "something is copied");
    // A frontend that `# syntax=` names would be pulled from a registry.
    assert!(
        !dockerfile.contains("syntax="),
        "a frontend that is not the engine's own"
    );
    // The toolchain of the image is the one that the manifest asks for.
    let manifest = file("Cargo.toml");
    let version = manifest
        .lines()
        .find_map(|line| line.strip_prefix("rust-version = "));
    let version = version.unwrap().trim_matches('"');
    assert!(dockerfile.contains(&format!("FROM rust:{version}-")), "{version}");
}

/// The files that an engine sends to the build: what .dockerignore does not exclude.
fn copy_build_context(to: &Path) {
    let ignored = file(".dockerignore");
    assert!(
        ignored.lines().any(|line| line == "*"),
        "everything is excluded first"
    );
    for path in ignored.lines().filter_map(|line| line.strip_prefix('!')) {
        let target = to.join(path);
        fs::create_dir_all(target.parent().unwrap()).unwrap();
        let copied = Command::new("cp")
            .arg("-R")
            .arg(Path::new(CHECKOUT).join(path))
            .arg(target)
            .status();
        assert!(copied.unwrap().success(), "{path}");
    }
}

#[test]
fn cargo_accepts_the_build_context_without_the_rest_of_the_checkout() {
    let context = tempfile::tempdir().unwrap();
    copy_build_context(context.path());
    // For this target only, because cargo has not downloaded the dependencies of other targets.
    let target = run(Command::new("rustc").args(["--print", "host-tuple"]), "");
    let mut fetch = Command::new(env!("CARGO"));
    fetch
        .args([
            "fetch",
            "--offline",
            "--locked",
            "--target",
            text(&target.stdout).trim(),
        ])
        .current_dir(context.path());
    let output = run(&mut fetch, "");
    assert!(output.status.success(), "{}", text(&output.stderr));
}
