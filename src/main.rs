//! The `chitchat` program: parses the command line and runs one command.

use std::process::ExitCode;

fn main() -> ExitCode {
    chitchat::cmd::main(std::env::args_os())
}
