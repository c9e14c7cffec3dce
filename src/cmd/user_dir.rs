//! Where a user's files are.

use std::path::PathBuf;

/// The directory in the environment variable `variable` or, if there is none, `fallback` in the home directory. `None`
/// without a home directory. As the XDG base directory specification says, a relative path counts as unset.
pub(super) fn user_dir(variable: &str, fallback: &str) -> Option<PathBuf> {
    absolute(variable).or_else(|| Some(home_dir()?.join(fallback)))
}

pub(super) fn home_dir() -> Option<PathBuf> {
    absolute("HOME")
}

fn absolute(variable: &str) -> Option<PathBuf> {
    let path = PathBuf::from(std::env::var_os(variable)?);
    path.is_absolute().then_some(path)
}
