//! `chitchat bench`: refers the user to the separate program `chitchat-bench`.

use std::ffi::OsString;

use clap::Args;

use super::Failure;

/// Say where the load generator is.
#[derive(Debug, Args)]
#[command(disable_help_flag = true)]
pub(super) struct Bench {
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, hide = true)]
    _arguments: Vec<OsString>,
}

impl Bench {
    pub(super) fn run(self) -> Result<(), Failure> {
        Err(Failure::Usage(
            "the load generator is the program chitchat-bench (cargo run --release -p chitchat-bench -- --help)".into(),
        ))
    }
}
