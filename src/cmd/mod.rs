//! The command line: one file a command, and what they share.

mod aside;
mod bench;
mod chat;
mod client_arguments;
mod client_failure;
mod client_runtime;
mod doctor;
mod duration;
mod environment;
mod failure;
mod hangup;
mod health;
mod history;
mod json;
mod lines;
mod name_argument;
mod number;
mod printer;
mod retry_argument;
mod room_argument;
mod rooms;
mod send;
pub mod serve;
mod server_address;
mod tail;
mod who;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

pub use failure::Failure;

/// A gRPC chat server in which a room is an ordered log, and its clients.
#[derive(Debug, Parser)]
#[command(name = "chitchat", version, about, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Serve(serve::Args),
    Chat(chat::ChatCommand),
    Send(send::SendCommand),
    Tail(tail::TailCommand),
    History(history::HistoryCommand),
    Who(who::WhoCommand),
    Rooms(rooms::RoomsCommand),
    Health(health::HealthCommand),
    Doctor(Box<doctor::DoctorCommand>),
    Bench(bench::Bench),
    #[command(hide = true)]
    BenchLimitServer(bench::LimitServer),
}

impl Command {
    fn run(self) -> Result<(), Failure> {
        match self {
            Self::Serve(args) => serve::run(args),
            Self::Chat(command) => command.run(),
            Self::Send(command) => command.run(),
            Self::Tail(command) => command.run(),
            Self::History(command) => command.run(),
            Self::Who(command) => command.run(),
            Self::Rooms(command) => command.run(),
            Self::Health(command) => command.run(),
            Self::Doctor(command) => command.run(),
            Self::Bench(command) => command.run(),
            Self::BenchLimitServer(command) => command.run(),
        }
    }
}

/// Parses `arguments` (the program's name first), runs the command they name and gives the exit code. What went wrong
/// goes to stderr as one line.
pub fn main(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let arguments: Vec<OsString> = arguments.into_iter().collect();
    let mut command = environment::lenient(Cli::command());
    let parsed = command
        .try_get_matches_from_mut(&arguments)
        .map_err(|error| environment::blamed(error, &command, &arguments))
        .and_then(|matches| Cli::from_arg_matches(&matches));
    let cli = match parsed {
        Ok(cli) => cli,
        Err(error) => return failure::report_usage(&error),
    };
    match cli.command.run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}
