//! Flags that are set by environment variables.

use std::ffi::OsString;

use clap::builder::{BoolishValueParser, Resettable};
use clap::error::{ContextKind, ContextValue};
use clap::{Arg, ArgAction, Command};

/// Makes `command` and its subcommands lenient about environment variables: an empty variable counts as unset (compose
/// files pass on unset variables as empty strings), and switches accept `1`, `yes` and `on` as well as `true`.
pub(super) fn normalize_env(command: Command) -> Command {
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
pub(super) fn attribute_to_env(
    mut error: clap::Error,
    command: &Command,
    arguments: &[OsString],
) -> clap::Error {
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
fn variables(command: &Command) -> Box<dyn Iterator<Item = (&str, &str)> + '_> {
    let own = command
        .get_arguments()
        .filter_map(|arg| Some((arg.get_long()?, arg.get_env()?.to_str()?)));
    Box::new(own.chain(command.get_subcommands().flat_map(variables)))
}
