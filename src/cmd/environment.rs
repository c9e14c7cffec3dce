//! How the flags read their environment variables, whatever command they belong to.

use clap::builder::{BoolishValueParser, Resettable};
use clap::{Arg, ArgAction, Command};

/// `command` and those below it, with variables as deployments write them: an empty one counts as not set (compose
/// files pass on what nobody has set as the empty string), and a switch takes `1`, `yes` and `on` beside `true`.
pub(super) fn lenient(command: Command) -> Command {
    command.mut_args(lenient_arg).mut_subcommands(lenient)
}

fn lenient_arg(arg: Arg) -> Arg {
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
