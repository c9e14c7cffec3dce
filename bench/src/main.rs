//! The `chitchat-bench` program.

use std::process::ExitCode;

use chitchat_bench::Cli;

fn main() -> ExitCode {
    chitchat::cmd::run_program(std::env::args_os(), Cli::run)
}
