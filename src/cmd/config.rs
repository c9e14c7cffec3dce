//! `chitchat config`: where the configuration of the client commands is, and what it says.

use std::fs::{DirBuilder, OpenOptions};
use std::io::{ErrorKind, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};

use clap::parser::ValueSource;
use clap::{Arg, Args, Command, Subcommand};
use serde_json::json;

use super::Failure;
use super::client_args::{PROFILE, token_in_env};
use super::config_file::{self, ConfigFile};
use super::env::normalize_env;
use super::printer::{JsonArg, Printer};
use super::table::Align;
use crate::client::escape;

/// All keys, commented out.
const EXAMPLE: &str = include_str!("config_example.toml");

/// Make and show the configuration file of the client
///
/// A flag overrides an environment variable, which overrides the file. The server (`chitchat serve`) does not read it.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  chitchat config init   make the file
  chitchat config show --profile work
  chitchat config path")]
pub(super) struct ConfigCommand {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Print where the file is or would be
    Path,
    /// Print the values that apply, and where each is from
    ///
    /// Never prints a token.
    Show(ShowCommand),
    /// Write a file in which everything is commented out
    ///
    /// Only you can read it. An existing file is not overwritten.
    Init,
}

#[derive(Debug, Args)]
struct ShowCommand {
    // With an id of its own, because this is not a client command.
    /// Show this profile [default: the one that is selected in the file]
    #[arg(id = "shown_profile", long = PROFILE, env = "CHITCHAT_PROFILE", value_name = "NAME")]
    profile: Option<String>,
    #[command(flatten)]
    json: JsonArg,
}

impl ConfigCommand {
    pub(super) fn run(self, program: &Command) -> Result<(), Failure> {
        match self.action {
            Action::Path => print_line(&config_file::path()?.display().to_string()),
            Action::Show(command) => command.run(program),
            Action::Init => init(),
        }
    }
}

fn print_line(line: &str) -> Result<(), Failure> {
    Printer::new(&JsonArg::default()).print(|| line.to_owned(), || line.into())
}

fn init() -> Result<(), Failure> {
    let path = config_file::path()?;
    let mut builder = DirBuilder::new();
    builder.recursive(true).mode(0o700);
    let created = path
        .parent()
        .map_or(Ok(()), |directory| builder.create(directory));
    let written = created.and_then(|()| {
        let mut options = OpenOptions::new();
        let mut file = options.write(true).create_new(true).mode(0o600).open(&path)?;
        file.write_all(EXAMPLE.as_bytes())
    });
    let path = path.display();
    match written {
        Ok(()) => print_line(&format!(
            "made {path}; edit it, and look at it with: chitchat config show"
        )),
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Err(Failure::Usage(format!(
            "{path} exists already and is not overwritten; edit it, or remove it first"
        ))),
        Err(error) => Err(Failure::Io(format!("cannot write {path}: {error}"))),
    }
}

struct Row {
    key: String,
    value: Option<String>,
    origin: String,
}

impl ShowCommand {
    fn run(self, program: &Command) -> Result<(), Failure> {
        let file = ConfigFile::load(program, self.profile.as_ref())?;
        let rows = rows(program, &file)?;
        let text = |row: &Row| {
            let value = row.value.as_deref().unwrap_or_default();
            [&row.key, value, &row.origin].map(|cell| escape::text(cell).into_owned())
        };
        let object = |row: &Row| json!({"key": row.key, "value": row.value, "from": row.origin});
        Printer::new(&self.json).table([Align::Left; 3], ["KEY", "VALUE", "FROM"], &rows, text, object)
    }
}

const NOT_SET: &str = "not set";

fn rows(program: &Command, file: &ConfigFile) -> Result<Vec<Row>, Failure> {
    let line = |line: usize| format!("{}:{line}", file.path.display());
    let profile = Row {
        key: PROFILE.to_owned(),
        value: file.profile.as_ref().map(|(name, _)| name.clone()),
        origin: match &file.profile {
            Some((_, Some(number))) => line(*number),
            Some((_, None)) => "--profile or CHITCHAT_PROFILE".to_owned(),
            None => NOT_SET.to_owned(),
        },
    };
    let mut rows = vec![profile];
    // A client command with all flags, called without any.
    let flags = config_file::flags(program);
    let command = Command::new(PROFILE)
        .no_binary_name(true)
        .arg(Arg::new(PROFILE).long(PROFILE))
        .args(flags.values().copied());
    let call = |command: Command| {
        let called = normalize_env(command).try_get_matches_from([""; 0]);
        called.map_err(|error| {
            let text = error.to_string();
            let line = text.lines().next().unwrap_or_default();
            Failure::Usage(line.trim_start_matches("error: ").to_owned())
        })
    };
    let given = call(command.clone())?;
    let settings = file.settings(&given);
    let matches = call(file.apply(command, &given))?;
    for (key, flag) in flags {
        let id = flag.get_id().as_str();
        let value = matches.get_raw(id).and_then(|mut values| values.next());
        let variable = flag.get_env().unwrap_or_default();
        let origin = match (matches.value_source(id), settings.get(key)) {
            (Some(ValueSource::EnvVariable), _) => variable.to_string_lossy().into_owned(),
            (Some(_), Some(setting)) => line(setting.line),
            (Some(_), None) => "default".to_owned(),
            (None, _) => NOT_SET.to_owned(),
        };
        rows.push(Row {
            key: key.to_owned(),
            value: value.map(|value| value.to_string_lossy().into_owned()),
            origin,
        });
    }
    if token_in_env().is_some() {
        rows.push(Row {
            key: "token".to_owned(),
            value: Some("(not shown)".to_owned()),
            origin: "CHITCHAT_TOKEN".to_owned(),
        });
    }
    Ok(rows)
}
