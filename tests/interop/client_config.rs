//! The configuration file of the client commands, `chitchat config`.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;
use tempfile::TempDir;

use crate::process::{CHITCHAT, run, serve, succeed, text, unused_address};

/// A home directory with a configuration file.
struct Home {
    directory: TempDir,
    file: PathBuf,
}

impl Home {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("chitchat/config.toml");
        Self { directory, file }
    }

    fn with(content: &str) -> Self {
        let home = Self::new();
        fs::create_dir(home.file.parent().unwrap()).unwrap();
        fs::write(&home.file, content).unwrap();
        home
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(CHITCHAT);
        command
            .args(arguments)
            .env("XDG_CONFIG_HOME", self.directory.path())
            .env("HOME", self.directory.path());
        command
    }

    fn run(&self, arguments: &[&str]) -> Output {
        run(&mut self.command(arguments), "")
    }

    /// Runs a command that must fail with exit code 78, and returns the line on stderr without its start.
    fn mistake(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        let stderr = text(&output.stderr);
        assert_eq!(output.status.code(), Some(78), "{arguments:?}: {output:?}");
        assert_eq!(stderr.lines().count(), 1, "{stderr}");
        let start = format!("chitchat: {}", self.file.display());
        stderr
            .strip_prefix(&start)
            .unwrap_or_else(|| panic!("{stderr}"))
            .trim_end()
            .to_owned()
    }
}

/// The value of each key in the output of `chitchat config show --json`, and where it is from.
fn shown(output: &str, key: &str) -> (Value, String) {
    let lines = output
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap());
    let mut row = lines.filter(|row| row["key"] == key);
    let row = row.next().unwrap_or_else(|| panic!("{key} in {output}"));
    (row["value"].clone(), row["from"].as_str().unwrap().to_owned())
}

#[test]
fn every_client_command_uses_the_file() {
    let address = unused_address().to_string();
    let home = Home::with(&format!("server = \"{address}\"\npatience = \"0s\""));
    for arguments in [
        &["chat"][..],
        &["send", "hello"],
        &["tail"],
        &["history"],
        &["who"],
        &["rooms"],
        &["diagram"],
        &["health"],
        &["doctor", "--wait", "100ms"],
        &["moderate", "bans", "tea"],
    ] {
        let output = home.run(arguments);
        assert_eq!(output.status.code(), Some(69), "{arguments:?}: {output:?}");
        let printed = text(&output.stderr) + &text(&output.stdout);
        assert!(printed.contains(&address), "{arguments:?}: {printed}");
    }
}

#[test]
fn a_flag_overrides_a_variable_and_a_variable_the_file() {
    let server = serve(&[]);
    let address = server.address;
    let content = format!("server = \"{address}\"\nname = \"filed\"\n[profile.second]\nname = \"second\"");
    let home = Home::with(&content);
    let sent = |flags: &[&str], variables: &[(&str, &str)]| {
        let mut command = home.command(&["send", "hello"]);
        succeed(command.args(flags).envs(variables.iter().copied()), "")
    };
    for (flags, variables, name) in [
        (&[][..], &[][..], "filed"),
        (&["--profile", "second"], &[], "second"),
        (&[], &[("CHITCHAT_PROFILE", "second")], "second"),
        (&[], &[("CHITCHAT_NAME", "")], "filed"),
        (
            &["--profile", "second"],
            &[("CHITCHAT_NAME", "variable")],
            "variable",
        ),
        (&["--name", "flag"], &[("CHITCHAT_NAME", "variable")], "flag"),
    ] {
        let printed = sent(flags, variables);
        assert!(
            printed.contains(&format!(" {name}: hello")),
            "{flags:?} {variables:?}: {printed}"
        );
    }
}

#[test]
fn a_wrong_file_stops_client_commands_and_nothing_else() {
    let home = Home::with("[profile.work]\nsever = \"here\"");
    assert!(
        home.mistake(&["rooms"])
            .starts_with(":2: unknown key \"sever\"; expected one of ")
    );
    assert!(home.mistake(&["config", "show"]).starts_with(":2: "));
    for arguments in [
        &["rooms", "--help"][..],
        &["--version"],
        &["completions", "bash"],
        &["man"],
        &["config", "path"],
    ] {
        succeed(&mut home.command(arguments), "");
    }
    // The server has its own name for a wrong configuration.
    let output = home.run(&["serve", "--in-memory", "--max-rooms", "0"]);
    assert!(
        text(&output.stderr).starts_with("chitchat: --max-rooms is 0"),
        "{output:?}"
    );
    // Nor does the file change what is printed for packages.
    let right = Home::with("server = \"configured.invalid:50052\"");
    let manual = succeed(&mut right.command(&["rooms", "--help"]), "");
    assert!(!manual.contains("configured.invalid"), "{manual}");
}

#[test]
fn a_missing_file_is_one_without_settings() {
    let home = Home::new();
    let shown_without = succeed(&mut home.command(&["config", "show", "--json"]), "");
    let (server, from) = shown(&shown_without, "server");
    assert_eq!(
        (server.as_str(), from.as_str()),
        (Some("127.0.0.1:50052"), "default")
    );
    assert_eq!(
        home.mistake(&["rooms", "--profile", "work"]),
        ": there is no profile \"work\"; the file has no profiles"
    );
    let mut homeless = Command::new(CHITCHAT);
    homeless
        .args(["config", "path"])
        .env_remove("HOME")
        .env_remove("XDG_CONFIG_HOME");
    assert_eq!(run(&mut homeless, "").status.code(), Some(78));
    // A pipe is not waited for.
    fs::create_dir_all(&home.file).unwrap();
    assert_eq!(home.mistake(&["rooms"]), " is not a file");
}

#[test]
fn show_tells_where_values_are_from_but_not_the_token() {
    let home = Home::with(
        "default-profile = \"work\"\n[profile.work]\nserver = \"chat.example:1\"\ntoken-file = \"t\"",
    );
    let mut command = home.command(&["config", "show", "--json"]);
    let printed = succeed(command.env("CHITCHAT_ROOM", "tea"), "");
    let file = home.file.display();
    for (key, value, from) in [
        ("profile", "work".into(), format!("{file}:1")),
        ("server", "chat.example:1".into(), format!("{file}:3")),
        ("room", "tea".into(), "CHITCHAT_ROOM".to_owned()),
        ("timeout", "10s".into(), "default".to_owned()),
        ("name", Value::Null, "not set".to_owned()),
        (
            "token-file",
            home.file.with_file_name("t").to_str().into(),
            format!("{file}:4"),
        ),
    ] {
        assert_eq!(shown(&printed, key), (value, from), "{key}");
    }
    // A token in the environment has precedence over a file with one.
    let mut command = home.command(&["config", "show", "--json"]);
    let printed = succeed(command.env("CHITCHAT_TOKEN", "secret"), "");
    assert_eq!(shown(&printed, "token").1, "CHITCHAT_TOKEN");
    assert_eq!(shown(&printed, "token-file").1, "not set");
    assert!(!printed.contains("secret"), "{printed}");
    // That of another server does not apply.
    let mut command = home.command(&["config", "show", "--json"]);
    let printed = succeed(command.env("CHITCHAT_SERVER", "elsewhere:1"), "");
    assert_eq!(shown(&printed, "token-file").1, "not set");
}

#[test]
fn init_writes_a_private_file_once() {
    let home = Home::new();
    let path = succeed(&mut home.command(&["config", "path"]), "");
    assert_eq!(Path::new(path.trim_end()), home.file);
    succeed(&mut home.command(&["config", "init"]), "");
    let mode = fs::metadata(&home.file).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    succeed(&mut home.command(&["config", "show"]), "");
    fs::write(&home.file, "room = \"tea\"").unwrap();
    let output = home.run(&["config", "init"]);
    assert_eq!(output.status.code(), Some(64), "{output:?}");
    assert_eq!(fs::read_to_string(&home.file).unwrap(), "room = \"tea\"");
}
