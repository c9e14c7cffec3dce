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

use super::client_arguments::ClientArguments;
use super::name_argument::NameArgument;
use super::retry_argument::RetryArgument;
use super::room_argument::RoomArgument;
use super::{Failure, client_runtime};
use crate::client::{Join, Presence};
use crate::shutdown::Signals;
use crate::telemetry::ClientSpans;
use input::Input;
use output::Output;
use session::Session;
use terminal::Terminal;

/// How long a terminal has to show the last lines.
const LAST_LINES_WITHIN: Duration = Duration::from_secs(1);

/// Take part in a room.
///
/// On a terminal, type a line to say it; /leave, Ctrl-D or Ctrl-C leaves. In a pipe, every line of the input is said,
/// up to its end or a line /leave; the command succeeds when all of them were broadcast. When the connection is lost it
/// is sought again, and what was said meanwhile is caught up with on both sides.
#[derive(Debug, Args)]
pub(super) struct ChatCommand {
    #[command(flatten)]
    by: NameArgument,
    #[command(flatten)]
    at: RoomArgument,
    #[command(flatten)]
    client: ClientArguments,
    #[command(flatten)]
    retry: RetryArgument,
}

impl ChatCommand {
    pub(super) fn run(self) -> Result<(), Failure> {
        client_runtime::run_traced(|spans| self.chat(spans))
    }

    async fn chat(self, spans: ClientSpans) -> Result<(), Failure> {
        let mut signals = Signals::listen()
            .map_err(|error| Failure::Software(format!("cannot listen for signals: {error}")))?;
        let presence = tokio::select! {
            presence = self.join() => presence?,
            signal = signals.next() => return Err(Failure::Interrupted(signal)),
        };

        let (terminal, inputs, output) = faces()?;
        // On a terminal they are lines among the others.
        let asides = match terminal {
            Some(_) => None,
            None => Some(Output::to_stderr()?),
        };
        let session = Session {
            // Whoever types sees what is refused; a program is told by the exit code.
            every_line_counts: !stdin().is_terminal(),
            answer_within: self.client.timeout,
            room: self.at.room.clone(),
            spans,
        };
        let ended = session
            .hold(presence, inputs, &output, asides.as_ref(), &mut signals)
            .await;
        // A terminal is not waited for: whoever searches in earlier lines holds up what arrives.
        let patience = terminal.as_ref().map_or(Duration::MAX, |_| LAST_LINES_WITHIN);
        let written = tokio::select! {
            written = timeout(patience, output.finish()) => written.unwrap_or(Ok(())),
            signal = signals.next() => Err(Failure::Interrupted(signal)),
        };
        if let Some(asides) = asides {
            // What nobody reads is not waited for.
            timeout(LAST_LINES_WITHIN, asides.finish()).await.ok();
        }
        if let Some(terminal) = terminal {
            terminal.close().await;
        }
        ended.and(written)
    }

    async fn join(&self) -> Result<Presence, Failure> {
        let join = Join::new(self.by.name.as_str()).room(self.at.room.as_str());
        let retry = self.retry.retry();
        Ok(Presence::join(self.client.server(), &self.client.settings(), retry, join).await?)
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
