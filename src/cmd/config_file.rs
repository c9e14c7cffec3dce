//! The configuration file of the client commands: default values for their flags.
//!
//! A flag can be set in the file, under its long name, if it has an environment variable. What a key means, which values it
//! accepts and where it applies is declared once, with the flag.

use std::collections::BTreeMap;
use std::error::Error as _;
use std::ffi::OsString;
use std::fs;
use std::io::ErrorKind::{NotADirectory, NotFound};
use std::ops::Range;
use std::path::{Path, PathBuf};

use clap::builder::Resettable;
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, Command, ValueHint};
use toml::Spanned;
use toml::de::{DeString, DeTable, DeValue};

use super::Failure;
use super::client_args::{PROFILE, token_in_env};
use super::user_dir::{home_dir, user_dir};
use crate::regular_file;

const DEFAULT_PROFILE: &str = "default-profile";

/// The id of the flag with the server's address, and its key.
const SERVER: &str = "server";

/// The keys of what is meant for the file's server alone: no other server must get its token.
const SERVER_KEYS: [&str; 6] = ["ca", "cert", "insecure-token", "key", "server-name", TOKEN_FILE];

const TOKEN_FILE: &str = "token-file";

/// What the configuration file says in one profile.
#[derive(Debug, Default)]
pub(super) struct ConfigFile {
    pub(super) path: PathBuf,
    /// The profile, and the line that selects it unless the command line or the environment does.
    pub(super) profile: Option<(String, Option<usize>)>,
    settings: BTreeMap<String, Setting>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Setting {
    value: OsString,
    pub(super) line: usize,
}

/// The path of the configuration file, whether it exists or not.
pub(super) fn path() -> Result<PathBuf, Failure> {
    let fallback = if cfg!(target_os = "macos") {
        "Library/Application Support"
    } else {
        ".config"
    };
    let directory = user_dir("XDG_CONFIG_HOME", fallback).ok_or_else(|| {
        let mistake =
            "there is no place for a configuration file; set HOME or XDG_CONFIG_HOME to an absolute path";
        Failure::Config(vec![mistake.into()])
    })?;
    Ok(directory.join("chitchat/config.toml"))
}

/// The flags that the file can set, by their keys.
pub(super) fn flags(program: &Command) -> BTreeMap<&str, &Arg> {
    let own = program.get_arguments().filter(|_| is_client_command(program));
    let own = own.filter_map(|flag| Some((key(flag)?, flag)));
    let mut flags: BTreeMap<&str, &Arg> = program.get_subcommands().flat_map(self::flags).collect();
    flags.extend(own);
    flags
}

fn key(flag: &Arg) -> Option<&str> {
    flag.get_long()
        .filter(|_| flag.get_env().is_some() && flag.get_id() != PROFILE)
}

fn is_client_command(command: &Command) -> bool {
    command.get_arguments().any(|flag| flag.get_id() == PROFILE)
}

/// What was given to the client command of `program` that was called; `None` for other commands.
pub(super) fn client_command<'a>(
    mut program: &Command,
    mut matches: &'a ArgMatches,
) -> Option<&'a ArgMatches> {
    while let Some((name, inner)) = matches.subcommand() {
        program = program.find_subcommand(name)?;
        matches = inner;
    }
    is_client_command(program).then_some(matches)
}

impl ConfigFile {
    /// Reads the file. It may be missing, unless there must be a `profile`.
    pub(super) fn load(program: &Command, profile: Option<&String>) -> Result<Self, Failure> {
        let path = match (path(), profile) {
            (Ok(path), _) => path,
            (Err(_), None) => return Ok(Self::default()),
            (Err(failure), Some(_)) => return Err(failure),
        };
        let text = match fs::symlink_metadata(&path) {
            Err(error) if matches!(error.kind(), NotFound | NotADirectory) => Ok(Vec::new()),
            _ => regular_file::read(&path),
        };
        text.and_then(|text| String::from_utf8(text).map_err(|_| "is not UTF-8".into()))
            .map_err(|reason| format!("{} {reason}", path.display()))
            .and_then(|text| Self::parse(path, &text, program, profile))
            .map_err(|mistake| Failure::Config(vec![mistake]))
    }

    fn parse(path: PathBuf, text: &str, program: &Command, profile: Option<&String>) -> Result<Self, String> {
        let parser = Parser {
            path: &path,
            text,
            flags: flags(program),
        };
        let table = DeTable::parse(text)
            .map_err(|error| parser.mistake(error.span().unwrap_or_default(), error.message()))?;
        let mut settings = BTreeMap::new();
        let mut profiles = BTreeMap::new();
        let mut default = None;
        for (key, value) in table.get_ref() {
            match key.get_ref().as_ref() {
                DEFAULT_PROFILE => {
                    let name = value.get_ref().as_str();
                    let name = name.ok_or_else(|| parser.wrong_type(key, value, "a string"))?;
                    default = Some((name, key.span()));
                }
                PROFILE => {
                    for (name, profile) in parser.table(key, value)? {
                        let settings = parser.table(name, profile)?.iter();
                        let settings = settings.map(|(key, value)| parser.setting(key, value));
                        let settings: BTreeMap<_, _> = settings.collect::<Result<_, _>>()?;
                        profiles.insert(name.get_ref().as_ref(), settings);
                    }
                }
                _ => settings.extend([parser.setting(key, value)?]),
            }
        }
        let selected = match (profile, default) {
            (Some(name), _) => Some((name.as_str(), None)),
            (None, Some((name, span))) => Some((name, Some(span))),
            (None, None) => None,
        };
        if let Some((name, span)) = &selected {
            let found = profiles.remove(name).ok_or_else(|| {
                let names: Vec<&str> = profiles.keys().copied().collect();
                let mistake = match names.as_slice() {
                    [] => format!("there is no profile {name:?}; the file has no profiles"),
                    _ => format!(
                        "there is no profile {name:?}; expected one of {}",
                        names.join(", ")
                    ),
                };
                match span {
                    Some(span) => parser.mistake(span.clone(), &mistake),
                    None => format!("{}: {mistake}", path.display()),
                }
            })?;
            if let (Some(outer), Some(inner)) = (settings.get(SERVER), found.get(SERVER))
                && outer.value != inner.value
            {
                settings.retain(|key, _| !SERVER_KEYS.contains(&key.as_str()));
            }
            settings.extend(found);
        }
        let profile = selected.map(|(name, span)| (name.to_owned(), span.map(|span| parser.line(&span))));
        Ok(Self {
            profile,
            settings,
            path,
        })
    }

    /// The settings that apply to a client command that was called with `given`.
    pub(super) fn settings(&self, given: &ArgMatches) -> BTreeMap<&str, &Setting> {
        let server = match given.value_source(SERVER) {
            Some(ValueSource::CommandLine | ValueSource::EnvVariable) => {
                given.get_raw(SERVER).and_then(|mut values| values.next())
            }
            _ => None,
        };
        let file_server = self.settings.get(SERVER).map(|setting| setting.value.as_os_str());
        let is_other_server = server.is_some() && server != file_server;
        let has_token = token_in_env().is_some();
        let settings = self.settings.iter().map(|(key, setting)| (key.as_str(), setting));
        settings
            .filter(|(key, _)| !(is_other_server && SERVER_KEYS.contains(key)))
            // The variable with a token has precedence over the file, like any other.
            .filter(|(key, _)| !(has_token && *key == TOKEN_FILE))
            .collect()
    }

    /// Makes the settings the defaults of the client commands' flags. `given` is what the command was called with.
    pub(super) fn apply(&self, program: Command, given: &ArgMatches) -> Command {
        set_defaults(program, &self.settings(given))
    }
}

fn set_defaults(mut command: Command, settings: &BTreeMap<&str, &Setting>) -> Command {
    if is_client_command(&command) {
        command = command.mut_args(|flag| match key(&flag).and_then(|key| settings.get(key)) {
            Some(setting) => flag.default_value(setting.value.clone()),
            None => flag,
        });
    }
    command.mut_subcommands(|command| set_defaults(command, settings))
}

struct Parser<'a> {
    path: &'a Path,
    text: &'a str,
    flags: BTreeMap<&'a str, &'a Arg>,
}

impl Parser<'_> {
    fn setting(
        &self,
        key: &Spanned<DeString<'_>>,
        value: &Spanned<DeValue<'_>>,
    ) -> Result<(String, Setting), String> {
        let name = key.get_ref().as_ref();
        let Some(flag) = self.flags.get(name) else {
            let keys: Vec<&str> = self.flags.keys().copied().collect();
            let mistake = format!("unknown key {name:?}; expected one of {}", keys.join(", "));
            return Err(self.mistake(key.span(), &mistake));
        };
        let is_switch = matches!(flag.get_action(), ArgAction::SetTrue);
        let value = match value.get_ref() {
            DeValue::Boolean(on) if is_switch => on.to_string().into(),
            DeValue::String(text) if !is_switch => {
                if let Some(reason) = self.rejection(name, text) {
                    return Err(self.mistake(value.span(), &format!("{name} = {text:?}: {reason}")));
                }
                self.resolve(flag, text)
            }
            _ if is_switch => return Err(self.wrong_type(key, value, "true or false")),
            _ => return Err(self.wrong_type(key, value, "a string in quotes")),
        };
        let line = self.line(&key.span());
        Ok((name.to_owned(), Setting { value, line }))
    }

    /// Why the flag with this key does not accept `value`.
    fn rejection(&self, key: &str, value: &str) -> Option<String> {
        // Flags can refer to one another.
        let flags = self
            .flags
            .values()
            .map(|flag| (*flag).clone().env(Resettable::Reset));
        let command = Command::new(PROFILE).no_binary_name(true).args(flags);
        let error = command.try_get_matches_from([format!("--{key}={value}")]).err()?;
        match (error.kind(), error.get(ContextKind::ValidValue)) {
            (ErrorKind::ValueValidation, _) => error.source().map(ToString::to_string),
            (ErrorKind::InvalidValue, Some(ContextValue::Strings(valid))) if !valid.is_empty() => {
                Some(format!("expected one of {}", valid.join(", ")))
            }
            (ErrorKind::InvalidValue, _) => Some("it is empty".into()),
            // That another flag is missing, too.
            _ => None,
        }
    }

    /// Makes paths independent of the directory in which the command runs.
    fn resolve(&self, flag: &Arg, value: &str) -> OsString {
        if flag.get_value_hint() != ValueHint::AnyPath {
            return value.into();
        }
        let path = match (value.strip_prefix("~/"), home_dir()) {
            (Some(rest), Some(home)) => home.join(rest),
            _ => self.path.parent().unwrap_or(self.path).join(value),
        };
        path.into()
    }

    fn table<'t>(
        &self,
        key: &Spanned<DeString<'_>>,
        value: &'t Spanned<DeValue<'t>>,
    ) -> Result<&'t DeTable<'t>, String> {
        let table = value.get_ref().as_table();
        table.ok_or_else(|| self.wrong_type(key, value, "a table like [profile.work]"))
    }

    fn wrong_type(
        &self,
        key: &Spanned<DeString<'_>>,
        value: &Spanned<DeValue<'_>>,
        expected: &str,
    ) -> String {
        let found = value.get_ref().type_str();
        self.mistake(
            key.span(),
            &format!("{}: expected {expected}, found {found}", key.get_ref()),
        )
    }

    fn mistake(&self, at: Range<usize>, mistake: &str) -> String {
        // The parser's messages can have several lines.
        let mistake = mistake.replace('\n', ", ");
        format!("{}:{}: {mistake}", self.path.display(), self.line(&at))
    }

    fn line(&self, at: &Range<usize>) -> usize {
        let before = self.text.get(..at.start).unwrap_or(self.text);
        before.matches('\n').count() + 1
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;
    use crate::cmd::Cli;

    fn parse(text: &str, profile: Option<&str>) -> Result<ConfigFile, String> {
        let profile = profile.map(str::to_owned);
        ConfigFile::parse(
            "/home/config.toml".into(),
            text,
            &Cli::command(),
            profile.as_ref(),
        )
    }

    fn value<'a>(file: &'a ConfigFile, key: &str) -> Option<&'a str> {
        file.settings.get(key)?.value.to_str()
    }

    #[test]
    fn mistakes_are_reported_with_their_line() {
        for (text, expected) in [
            (
                "name = \"Ada\"\nsever = \"here\"",
                "2: unknown key \"sever\"; expected one of admin, ca, ",
            ),
            (
                "[profile.work]\nprofile = \"home\"",
                "2: unknown key \"profile\"; expected",
            ),
            ("token = \"secret\"", "1: unknown key \"token\"; expected"),
            (
                "\n\ntimeout = \"soon\"",
                "3: timeout = \"soon\": expected number at 0; expected a duration like 2m",
            ),
            (
                "time = \"noon\"",
                "1: time = \"noon\": expected one of lamport, local, utc, none",
            ),
            ("ca = \"\"", "1: ca = \"\": it is empty"),
            ("room = 7", "1: room: expected a string in quotes, found integer"),
            (
                "insecure-token = \"yes\"",
                "1: insecure-token: expected true or false, found string",
            ),
            (
                "profile = 1",
                "1: profile: expected a table like [profile.work], found integer",
            ),
            (
                "[profile]\nwork = 1",
                "2: work: expected a table like [profile.work], found integer",
            ),
            (
                "default-profile = true",
                "1: default-profile: expected a string, found boolean",
            ),
            (
                "\ndefault-profile = \"wrok\"\n[profile.work]",
                "2: there is no profile \"wrok\"; expected one of work",
            ),
            // In a profile that is not used, too.
            ("[profile.work]\n[profile.home]\nname = \"\"", "3: name = \"\": "),
            ("name = \"Ada\"\nroom = ", "2: "),
            ("name = \"Ada\"\nname = \"Bob\"", "2: duplicate key"),
        ] {
            let mistake = parse(text, None).unwrap_err();
            assert!(
                mistake.starts_with(&format!("/home/config.toml:{expected}")) && !mistake.contains('\n'),
                "{text:?}: {mistake}"
            );
            assert!(!mistake.contains("secret"), "{mistake}");
        }
        let nested = format!("room = {}", "[".repeat(100_000));
        assert!(parse(&nested, None).is_err());
    }

    #[test]
    fn a_profile_adds_to_what_is_outside_of_profiles() {
        let text = "default-profile = \"work\"\nname = \"Ada\"\nroom = \"tea\"\n\
                    [profile.work]\nroom = \"team\"\n[profile.home]\nname = \"ada\"";
        let work = parse(text, None).unwrap();
        assert_eq!(work.profile, Some(("work".into(), Some(1))));
        assert_eq!(
            (value(&work, "name"), value(&work, "room")),
            (Some("Ada"), Some("team"))
        );
        let home = parse(text, Some("home")).unwrap();
        assert_eq!(home.profile, Some(("home".into(), None)));
        assert_eq!(
            (value(&home, "name"), value(&home, "room")),
            (Some("ada"), Some("tea"))
        );
        let mistake = parse(text, Some("away")).unwrap_err();
        assert_eq!(
            mistake,
            "/home/config.toml: there is no profile \"away\"; expected one of home, work"
        );
        assert!(
            parse("", Some("home"))
                .unwrap_err()
                .ends_with("the file has no profiles")
        );
    }

    #[test]
    fn paths_are_relative_to_the_file() {
        let file = parse(
            "ca = \"ca.pem\"\nkey = \"/etc/key.pem\"\nserver = \"here:1\"",
            None,
        )
        .unwrap();
        assert_eq!(value(&file, "ca"), Some("/home/ca.pem"));
        assert_eq!(value(&file, "key"), Some("/etc/key.pem"));
        assert_eq!(value(&file, "server"), Some("here:1"));
    }

    #[test]
    fn another_server_does_not_get_the_token() {
        let text = "server = \"work:1\"\ntoken-file = \"token\"\nname = \"Ada\"";
        let file = parse(text, None).unwrap();
        let keys = |arguments: &[&str]| -> Vec<String> {
            let arguments = [&["chitchat", "rooms"], arguments].concat();
            let matches = Cli::command().try_get_matches_from(arguments).unwrap();
            let settings = file.settings(client_command(&Cli::command(), &matches).unwrap());
            settings.into_keys().map(str::to_owned).collect()
        };
        assert_eq!(keys(&[]), ["name", "server", "token-file"]);
        assert_eq!(keys(&["--server", "work:1"]), ["name", "server", "token-file"]);
        assert_eq!(keys(&["--server", "home:1"]), ["name", "server"]);
    }

    #[test]
    fn the_server_of_a_profile_does_not_get_the_token_of_another_one() {
        let text = "server = \"a:1\"\ntoken-file = \"a\"\nca = \"a.pem\"\n[profile.b]\nserver = \"b:1\"\ncert = \"b.pem\"\n\
                    [profile.c]\nserver = \"a:1\"";
        let keys = |profile| {
            let settings = parse(text, Some(profile)).unwrap().settings;
            settings.into_keys().collect::<Vec<_>>()
        };
        assert_eq!(keys("b"), ["cert", "server"]);
        assert_eq!(keys("c"), ["ca", "server", "token-file"]);
    }

    #[test]
    fn only_client_commands_read_the_file() {
        let program = Cli::command();
        for (line, is_client) in [
            ("chitchat rooms", true),
            ("chitchat moderate bans tea", true),
            ("chitchat serve", false),
            ("chitchat config path", false),
            ("chitchat store info", false),
        ] {
            let matches = program.clone().try_get_matches_from(line.split(' ')).unwrap();
            assert_eq!(client_command(&program, &matches).is_some(), is_client, "{line}");
        }
    }

    #[test]
    fn the_documented_file_is_right() {
        let page = include_str!("../../docs/configuration.md");
        let (_, example) = page.split_once("```toml\n").unwrap();
        let file = parse(example.split("```").next().unwrap(), Some("work")).unwrap();
        assert_eq!(value(&file, "ca"), Some("/home/work-ca.pem"));
    }

    #[test]
    fn the_example_has_every_key_with_a_value_that_is_accepted() {
        let example = include_str!("config_example.toml");
        assert!(parse(example, None).unwrap().settings.is_empty());
        let program = Cli::command();
        // Comments have a space behind the sign, keys have none.
        let lines = example.lines().map(|line| match line.strip_prefix('#') {
            Some(line) if !line.starts_with(' ') => line,
            _ => line,
        });
        let file = parse(&lines.collect::<Vec<_>>().join("\n"), None).unwrap();
        assert_eq!(file.profile.as_ref().map(|(name, _)| name.as_str()), Some("work"));
        assert!(
            file.settings.keys().eq(flags(&program).into_keys()),
            "{:?}",
            file.settings
        );
        assert!(SERVER_KEYS.iter().all(|key| file.settings.contains_key(*key)));
    }
}
