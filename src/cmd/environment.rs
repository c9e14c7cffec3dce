//! How the flags read their environment variables, whatever command they belong to.

use std::ffi::OsString;

use clap::builder::{BoolishValueParser, Resettable};
use clap::error::{ContextKind, ContextValue};
use clap::{Arg, ArgAction, Command, Error};

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

/// `error`, which parsing `arguments` gave; where a value comes from a variable it says so instead of naming the flag alone.
pub(super) fn blamed(mut error: Error, command: &Command, arguments: &[OsString]) -> Error {
    let (Some(ContextValue::String(at)), Some(ContextValue::String(value))) = (
        error.get(ContextKind::InvalidArg),
        error.get(ContextKind::InvalidValue),
    ) else {
        return error;
    };
    let flag = at.split_whitespace().next().unwrap_or_default();
    let is_given = |argument: &OsString| argument.to_string_lossy().split('=').next() == Some(flag);
    if arguments.iter().any(is_given) {
        return error;
    }
    let variable = variables(command)
        .filter(|(long, _)| flag.strip_prefix("--") == Some(long))
        .find(|(_, variable)| std::env::var(variable).as_ref() == Ok(value));
    if let Some((_, variable)) = variable {
        let named = ContextValue::String(format!("{variable}, the variable of {at}"));
        error.insert(ContextKind::InvalidArg, named);
    }
    error
}

/// The flags of `command` and those below it that have variables, and these.
fn variables(command: &Command) -> Box<dyn Iterator<Item = (&str, &str)> + '_> {
    let own = command
        .get_arguments()
        .filter_map(|arg| Some((arg.get_long()?, arg.get_env()?.to_str()?)));
    Box::new(own.chain(command.get_subcommands().flat_map(variables)))
}
