//! The command line: one module per command, and what they share.

mod answer;
mod base_url;
mod bench;
mod certs;
mod chat;
mod client_args;
mod client_runtime;
mod cluster;
mod completions;
mod config;
mod config_file;
mod diagram;
mod doctor;
mod env;
mod failure;
mod health;
mod history;
mod json;
mod lines;
mod message_format;
mod moderate;
mod output;
mod parse;
mod printer;
mod rooms;
mod send;
pub mod serve;
mod stderr;
mod store;
mod table;
mod tail;
mod thread;
mod time_zone;
mod token;
mod user_dir;
mod who;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

pub use client_runtime::run_traced;
use config_file::ConfigFile;
use env::{attribute_to_env, normalize_env};
pub use failure::Failure;
pub use parse::{duration, integer};

/// The exit codes are also in the README.
const AFTER_HELP: &str = "\
Examples:
  chitchat serve --in-memory
  chitchat chat --name Ada
  chitchat send 'The backup is done'

Exit codes:
    0  success
   64  the command line is wrong
   65  the input is wrong: a text is rejected, a line is too long, a log is damaged
   66  the room, or the part of its log that was asked for, does not exist
   69  the server cannot be reached, does not answer or is not available
   70  an internal error
   74  reading or writing failed
   76  the server violated the protocol
   77  the server rejected the request: the name is taken, a limit is reached, a right is missing
   78  the configuration is wrong
  130  interrupted by SIGINT (143: by SIGTERM)";

/// A gRPC chat server in which a room is an ordered log, and its clients.
#[derive(Debug, Parser)]
#[command(name = "chitchat", version, about, max_term_width = 100, after_help = AFTER_HELP)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Serve(Box<serve::Args>),
    Chat(chat::ChatCommand),
    Send(send::SendCommand),
    Tail(tail::TailCommand),
    History(history::HistoryCommand),
    Who(who::WhoCommand),
    Rooms(rooms::RoomsCommand),
    Diagram(diagram::DiagramCommand),
    Moderate(moderate::ModerateCommand),
    Health(health::HealthCommand),
    Doctor(Box<doctor::DoctorCommand>),
    Store(store::StoreCommand),
    Cluster(cluster::ClusterCommand),
    Certs(certs::CertsCommand),
    Token(token::TokenCommand),
    Config(config::ConfigCommand),
    Completions(completions::CompletionsCommand),
    Man(completions::ManCommand),
    #[command(hide = true, alias = "bench-limit-server")]
    Bench(bench::Bench),
}

impl Command {
    fn run(self) -> Result<(), Failure> {
        match self {
            Self::Serve(args) => serve::run(*args),
            Self::Chat(command) => command.run(),
            Self::Send(command) => command.run(),
            Self::Tail(command) => command.run(),
            Self::History(command) => command.run(),
            Self::Who(command) => command.run(),
            Self::Rooms(command) => command.run(),
            Self::Diagram(command) => command.run(),
            Self::Moderate(command) => command.run(),
            Self::Health(command) => command.run(),
            Self::Doctor(command) => command.run(),
            Self::Store(command) => command.run(),
            Self::Cluster(command) => command.run(),
            Self::Certs(command) => command.run(),
            Self::Token(command) => command.run(),
            Self::Config(command) => command.run(&Cli::command()),
            Self::Completions(command) => command.run(Cli::command()),
            Self::Man(command) => command.run(Cli::command()),
            Self::Bench(command) => command.run(),
        }
    }
}

/// Runs the `chitchat` program and returns its exit code. The first of the `arguments` is the program's name.
pub fn main(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    run_program(arguments, |cli: Cli| cli.command.run())
}

/// Parses `arguments`, of which the first is the program's name, passes the result to `run`, and returns the exit code.
/// Errors are written to stderr.
pub fn run_program<C: CommandFactory + FromArgMatches>(
    arguments: impl IntoIterator<Item = OsString>,
    run: impl FnOnce(C) -> Result<(), Failure>,
) -> ExitCode {
    let arguments: Vec<OsString> = arguments.into_iter().collect();
    let parsed = match parse_arguments(&arguments) {
        Ok(parsed) => parsed,
        Err(exit_code) => return exit_code,
    };
    match run(parsed) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}

/// Parses the command line and, for a client command, the configuration file. Reports what is wrong and returns the exit
/// code.
fn parse_arguments<C: CommandFactory + FromArgMatches>(arguments: &[OsString]) -> Result<C, ExitCode> {
    let parse = |command| {
        let mut command = normalize_env(command);
        let matches = command.try_get_matches_from_mut(arguments);
        matches.map_err(|error| failure::report_usage(&attribute_to_env(error, &command, arguments)))
    };
    // Without the file, which must not get in the way of the server, of the help and of a wrong command line.
    let mut matches = parse(C::command())?;
    if let Some(given) = config_file::client_command(&C::command(), &matches) {
        let file = ConfigFile::load(&C::command(), given.get_one(client_args::PROFILE));
        let file = file.map_err(|failure| failure.report())?;
        matches = parse(file.apply(C::command(), given))?;
    }
    if let Some(given) = config_file::client_command(&C::command(), &matches) {
        client_args::check_client_certificate(given).map_err(|failure| failure.report())?;
    }
    C::from_arg_matches(&matches).map_err(|error| failure::report_usage(&error))
}

/// Fuzz target: command lines, one argument per line.
#[cfg(any(feature = "fuzzing", test))]
pub(crate) fn fuzz_options(bytes: &[u8]) {
    let arguments = String::from_utf8_lossy(bytes);
    let arguments = std::iter::once("chitchat").chain(arguments.split('\n'));
    if let Ok(Cli {
        command: Command::Serve(args),
    }) = Cli::try_parse_from(arguments)
    {
        args.fuzz();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The words of the command in a line of shell, up to a redirection, a pipe or a comment (behind several spaces).
    fn words(line: &str) -> Vec<String> {
        let (_, command) = line.split_once("chitchat ").unwrap();
        let end = ["   ", " > ", " | "]
            .iter()
            .filter_map(|end| command.find(end))
            .min();
        let command = &command[..end.unwrap_or(command.len())];
        let mut words = vec!["chitchat".to_owned()];
        for (index, part) in command.split('\'').enumerate() {
            if index % 2 == 1 {
                words.push(part.to_owned());
            } else {
                words.extend(part.split_whitespace().map(str::to_owned));
            }
        }
        words
    }

    #[test]
    fn every_command_has_a_short_description_and_examples_that_parse() {
        let program = Cli::command();
        let shown = program.get_subcommands().filter(|command| !command.is_hide_set());
        for command in std::iter::once(&program).chain(shown) {
            let name = command.get_name();
            let about = command.get_about().unwrap().to_string();
            assert!(about.len() <= 70, "{name}: {about}");
            let help = command
                .get_after_help()
                .map(ToString::to_string)
                .unwrap_or_default();
            let examples = help
                .strip_prefix("Examples:\n")
                .unwrap_or_else(|| panic!("{name}: {help}"));
            let examples: Vec<&str> = examples.lines().take_while(|line| !line.is_empty()).collect();
            assert!((2..=3).contains(&examples.len()), "{name}: {help}");
            for example in examples {
                assert!(example.len() <= 100, "{example}");
                let words = words(example);
                assert!(name == "chitchat" || words[1] == name, "{name}: {example}");
                Cli::try_parse_from(&words).unwrap_or_else(|error| panic!("{words:?}: {error}"));
            }
        }
    }

    #[test]
    fn who_is_removed_is_named_in_one_way() {
        let is_accepted = |flags: &str| {
            let words = format!("chitchat moderate remove tea {flags}");
            Cli::try_parse_from(words.split_whitespace()).is_ok()
        };
        assert!(is_accepted("--id -5") && is_accepted("--name Eve") && is_accepted("--address ::1"));
        assert!(
            !is_accepted("") && !is_accepted("--id 5 --name Eve") && !is_accepted("--name Eve --subject eve")
        );
    }
}
