//! The command line: one module per command, and what they share.

mod bench;
mod certs;
mod chat;
mod client_args;
mod client_runtime;
mod completions;
mod diagram;
mod doctor;
mod failure;
mod health;
mod history;
mod json;
mod lines;
mod message_format;
mod moderate;
mod parse;
mod printer;
mod rooms;
mod send;
pub mod serve;
mod stderr;
mod store;
mod table;
mod tail;
mod time_zone;
mod token;
mod who;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::builder::{BoolishValueParser, Resettable};
use clap::error::{ContextKind, ContextValue};
use clap::{Arg, ArgAction, CommandFactory, FromArgMatches, Parser, Subcommand};

pub use client_runtime::run_traced;
pub use failure::Failure;
pub use parse::{duration, integer};

/// Shown in the help, and in the README.
const EXIT_CODES: &str = "\
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
#[command(name = "chitchat", version, about, max_term_width = 100, after_help = EXIT_CODES)]
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
    Certs(certs::CertsCommand),
    Token(token::TokenCommand),
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
            Self::Certs(command) => command.run(),
            Self::Token(command) => command.run(),
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
    let mut command = normalize_env(C::command());
    let parsed = command
        .try_get_matches_from_mut(&arguments)
        .map_err(|error| attribute_to_env(error, &command, &arguments))
        .and_then(|matches| C::from_arg_matches(&matches));
    let parsed = match parsed {
        Ok(parsed) => parsed,
        Err(error) => return failure::report_usage(&error),
    };
    match run(parsed) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
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

/// Makes `command` and its subcommands lenient about environment variables: an empty variable counts as unset (compose
/// files pass on unset variables as empty strings), and switches accept `1`, `yes` and `on` as well as `true`.
fn normalize_env(command: clap::Command) -> clap::Command {
    command.mut_args(normalize_env_arg).mut_subcommands(normalize_env)
}

fn normalize_env_arg(arg: Arg) -> Arg {
    let Some(name) = arg.get_env() else {
        return arg;
    };
    if std::env::var_os(name).is_some_and(|value| value.is_empty()) {
        return arg.env(Resettable::Reset);
    }
    match arg.get_action() {
        ArgAction::SetTrue => arg.value_parser(BoolishValueParser::new()),
        _ => arg,
    }
}

/// If `error`, the result of parsing `arguments`, is about a value from an environment variable, adds the variable's name.
fn attribute_to_env(mut error: clap::Error, command: &clap::Command, arguments: &[OsString]) -> clap::Error {
    let (Some(ContextValue::String(flag_usage)), Some(ContextValue::String(value))) = (
        error.get(ContextKind::InvalidArg),
        error.get(ContextKind::InvalidValue),
    ) else {
        return error;
    };
    let flag = flag_usage.split_whitespace().next().unwrap_or_default();
    let is_given = |argument: &OsString| argument.to_string_lossy().split('=').next() == Some(flag);
    if arguments.iter().any(is_given) {
        return error;
    }
    let variable = variables(command)
        .filter(|(long, _)| flag.strip_prefix("--") == Some(long))
        .find(|(_, variable)| std::env::var(variable).as_ref() == Ok(value));
    if let Some((_, variable)) = variable {
        let named = ContextValue::String(format!("{variable}, the variable of {flag_usage}"));
        error.insert(ContextKind::InvalidArg, named);
    }
    error
}

/// The long flags of `command` and its subcommands that have an environment variable, paired with the variable.
fn variables(command: &clap::Command) -> Box<dyn Iterator<Item = (&str, &str)> + '_> {
    let own = command
        .get_arguments()
        .filter_map(|arg| Some((arg.get_long()?, arg.get_env()?.to_str()?)));
    Box::new(own.chain(command.get_subcommands().flat_map(variables)))
}
