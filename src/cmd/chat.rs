//! `chitchat chat`: takes part in a room, on a terminal or in a pipe.
//!
//! The runtime's thread holds the conversation; reading the input and writing the output can block, so each has a thread
//! of its own and a bounded queue between. Nothing waits for those two threads at the end: a terminal that nobody types
//! on, a pipe that nobody reads, do not hold the program.

mod input;
mod output;
mod session;
mod terminal;

use std::io::{IsTerminal as _, stdin, stdout};
use std::time::Duration;

use clap::Args;
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::server_address::{ServerArgument, patience};
use super::{Failure, client_runtime};
use crate::client::{Connection, Conversation, Join, Settings};
use crate::domain::{Name, RoomName};
use crate::shutdown::Signals;
use input::Input;
use output::Output;
use session::Session;
use terminal::Terminal;

/// How long a terminal has to show the last lines.
const LAST_LINES_WITHIN: Duration = Duration::from_secs(1);

/// Take part in a room.
///
/// On a terminal, type a line to say it; /leave, Ctrl-D or Ctrl-C leaves. In a pipe, every line of the input is said;
/// the command succeeds when all of them were broadcast.
#[derive(Debug, Args)]
pub(super) struct ChatCommand {
    /// What you are called in the room.
    #[arg(long, env = "CHITCHAT_NAME", value_parser = name)]
    name: Name,
    /// The room.
    #[arg(long, env = "CHITCHAT_ROOM", value_parser = room, default_value = RoomName::LOBBY)]
    room: RoomName,
    #[command(flatten)]
    at: ServerArgument,
    /// How long to wait for the server's answers before giving up on it.
    #[arg(long, env = "CHITCHAT_TIMEOUT", value_name = "TIME", default_value = "10s", value_parser = patience)]
    timeout: Duration,
}

impl ChatCommand {
    pub(super) fn run(self) -> Result<(), Failure> {
        client_runtime::run(self.chat())
    }

    async fn chat(self) -> Result<(), Failure> {
        let mut signals = Signals::listen()
            .map_err(|error| Failure::Software(format!("cannot listen for signals: {error}")))?;
        let conversation = tokio::select! {
            conversation = self.join() => conversation?,
            _ = signals.next() => return Err(Failure::Interrupted),
        };

        let (terminal, inputs, output) = faces()?;
        let session = Session {
            // Whoever types sees what is refused; a program is told by the exit code.
            every_line_counts: !stdin().is_terminal(),
            answer_within: self.timeout,
        };
        let ended = session.hold(conversation, inputs, &output, &mut signals).await;
        // A terminal is not waited for: whoever searches in earlier lines holds up what arrives.
        let patience = terminal.as_ref().map_or(Duration::MAX, |_| LAST_LINES_WITHIN);
        let written = tokio::select! {
            written = timeout(patience, output.finish()) => written.unwrap_or(Ok(())),
            _ = signals.next() => Err(Failure::Interrupted),
        };
        if let Some(terminal) = terminal {
            terminal.close().await;
        }
        ended.and(written)
    }

    async fn join(&self) -> Result<Conversation, Failure> {
        let settings = Settings {
            answer_within: self.timeout,
            ..Settings::default()
        };
        let connection = Connection::open(&self.at.server, &settings).await?;
        let join = Join::new(self.name.as_str()).room(self.room.as_str());
        Ok(connection.join(join).await?)
    }
}

/// Where lines come from and where they go: line editing where both ends are a terminal that can do it, else plain lines.
fn faces() -> Result<(Option<Terminal>, mpsc::Receiver<Input>, Output), Failure> {
    if stdin().is_terminal()
        && stdout().is_terminal()
        && let Some((terminal, inputs, output)) = Terminal::open()?
    {
        return Ok((Some(terminal), inputs, output));
    }
    Ok((None, input::from_stdin()?, Output::to_stdout()?))
}

fn name(raw: &str) -> Result<Name, String> {
    Name::try_from(raw).map_err(|error| format!("it {error}"))
}

fn room(raw: &str) -> Result<RoomName, String> {
    RoomName::try_from(raw).map_err(|error| format!("it {error}"))
}
