//! `chitchat completions` and `chitchat man`: what a package installs beside the program.

use std::io::{self, ErrorKind, Write as _};
use std::path::{Path, PathBuf};

use clap::{Args, Command};
use clap_complete::Shell;

use super::Failure;

/// Print the completions for a shell
///
/// Completes the names of commands, flags and their values.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  chitchat completions bash > /usr/share/bash-completion/completions/chitchat
  chitchat completions zsh > ~/.zfunc/_chitchat
  chitchat completions fish > ~/.config/fish/completions/chitchat.fish")]
pub(super) struct CompletionsCommand {
    /// The shell
    #[arg(value_enum)]
    shell: Shell,
}

/// Print or write the manual pages
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  chitchat man | man -l -                        show the page
  chitchat man --dir /usr/local/share/man/man1   install the pages of all commands")]
pub(super) struct ManCommand {
    /// Write a page for the program and for each command into this existing directory instead
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
}

impl CompletionsCommand {
    pub(super) fn run(self, mut program: Command) -> Result<(), Failure> {
        let mut script = Vec::new();
        let name = program.get_name().to_owned();
        clap_complete::generate(self.shell, &mut program, name, &mut script);
        print(&script)
    }
}

impl ManCommand {
    pub(super) fn run(self, program: Command) -> Result<(), Failure> {
        match self.dir {
            None => print(&page(program)?),
            Some(directory) => write_pages(program, &directory),
        }
    }
}

fn page(command: Command) -> Result<Vec<u8>, Failure> {
    let mut page = Vec::new();
    clap_mangen::Man::new(command)
        .render(&mut page)
        .map_err(|error| Failure::Software(format!("cannot make the manual page: {error}")))?;
    Ok(page)
}

/// Writes `chitchat.1`, `chitchat-chat.1` and so on.
fn write_pages(mut program: Command, directory: &Path) -> Result<(), Failure> {
    // Gives the commands the names by which they are called.
    program.build();
    let mut commands = vec![program];
    while let Some(command) = commands.pop() {
        let name = command
            .get_display_name()
            .unwrap_or_else(|| command.get_name())
            .to_owned();
        let is_shown = |command: &&Command| !command.is_hide_set() && command.get_name() != "help";
        commands.extend(command.get_subcommands().filter(is_shown).cloned());
        let path = directory.join(format!("{name}.1"));
        std::fs::write(&path, page(command)?)
            .map_err(|error| Failure::Io(format!("cannot write {}: {error}", path.display())))?;
    }
    Ok(())
}

fn print(bytes: &[u8]) -> Result<(), Failure> {
    match io::stdout().write_all(bytes) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            Err(Failure::Io(format!("cannot write the output: {error}")))
        }
        _ => Ok(()),
    }
}
