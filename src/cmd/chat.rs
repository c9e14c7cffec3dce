//! `chitchat chat`: takes part in a room, on a terminal or in a pipe.
//!
//! The chat loop runs on the runtime's thread. Reading the input and writing the output can block, so each has a thread of
//! its own and a bounded queue. Every wait for one of these threads has a timeout or ends at a signal, so that an idle
//! terminal or a blocked pipe does not keep the process alive.

mod chat_loop;
mod input;
mod output;
mod terminal;

use std::io::{IsTerminal as _, stdin, stdout};
use std::time::Duration;

use clap::Args;
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::client_args::{ConnectArgs, NameArg, RetryArg, RoomArgs};
use super::printer::JsonArg;
use super::{Failure, client_runtime};
use crate::client::{JoinOptions, Session};
use crate::domain::Name;
use crate::signals::Signals;
use crate::telemetry::ClientSpans;
use chat_loop::{ChatLoop, ChatOptions};
use input::Input;
use output::Output;
use terminal::Terminal;

/// How long a terminal may take to show the last lines.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(1);

/// Take part in a room
///
/// On a terminal, press Enter to send a line; /leave, Ctrl-D or Ctrl-C leaves. In a pipe, each line of stdin is sent, up to
/// the end of the input or a line /leave; the command exits with 0 if all of them were broadcast. If the connection is
/// lost, the client reconnects, shows the events it has missed, and sends the lines that are not acknowledged again.
/// With --json it also prints what it sends, so that `chitchat diagram` can show what it had received by then.
#[derive(Debug, Args)]
pub(super) struct ChatCommand {
    #[command(flatten)]
    name: NameArg,
    #[command(flatten)]
    room: RoomArgs,
    #[command(flatten)]
    connect: ConnectArgs,
    #[command(flatten)]
    retry: RetryArg,
    #[command(flatten)]
    json: JsonArg,
}

impl ChatCommand {
    pub(super) fn run(self) -> Result<(), Failure> {
        client_runtime::run_traced(|spans| self.chat(spans))
    }

    async fn chat(self, spans: ClientSpans) -> Result<(), Failure> {
        let mut signals = Signals::listen()
            .map_err(|error| Failure::Software(format!("cannot listen for signals: {error}")))?;
        let (name, session) = tokio::select! {
            session = self.join() => session?,
            signal = signals.next() => return Err(Failure::Interrupted(signal)),
        };

        let (terminal, inputs, output) = if self.json.json {
            (None, input::read_stdin()?, Output::stdout()?)
        } else {
            open_io()?
        };
        // On a terminal, notes are printed among the messages.
        let notes = match terminal {
            Some(_) => None,
            None => Some(Output::stderr()?),
        };
        let options = ChatOptions {
            // A user sees rejections; a script needs the exit code.
            is_scripted: !stdin().is_terminal(),
            response_timeout: self.connect.timeout,
            name,
            room: self.room.room().clone(),
            is_json: self.json.json,
            spans,
        };
        let ended = ChatLoop::new(session, options)
            .run(inputs, &output, notes.as_ref(), &mut signals)
            .await;
        // A terminal can block for as long as the user searches its history.
        let flush_timeout = terminal.as_ref().map_or(Duration::MAX, |_| FLUSH_TIMEOUT);
        let written = tokio::select! {
            written = timeout(flush_timeout, output.close()) => written.unwrap_or(Ok(())),
            signal = signals.next() => Err(Failure::Interrupted(signal)),
        };
        if let Some(notes) = notes {
            // Notes that cannot be written are lost.
            timeout(FLUSH_TIMEOUT, notes.close()).await.ok();
        }
        if let Some(terminal) = terminal {
            terminal.close().await;
        }
        ended.and(written)
    }

    async fn join(&self) -> Result<(Name, Session), Failure> {
        let options = self.connect.options();
        let joining = self.name.attempt(async |name| {
            let join = JoinOptions::new(name.as_str()).room(self.room.room().as_str());
            let session = Session::join(self.connect.server(), &options, self.retry.policy(), join).await?;
            Ok((name.clone(), session))
        });
        Ok(joining.await?)
    }
}

/// Opens the input and the output: with line editing if both are a terminal that supports it, else as plain lines.
fn open_io() -> Result<(Option<Terminal>, mpsc::Receiver<Input>, Output), Failure> {
    if stdin().is_terminal()
        && stdout().is_terminal()
        && let Some((terminal, inputs, output)) = Terminal::open()?
    {
        return Ok((Some(terminal), inputs, output));
    }
    Ok((None, input::read_stdin()?, Output::stdout()?))
}
