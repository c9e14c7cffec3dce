//! `chitchat chat`: takes part in a room, on a terminal's full screen or line by line.
//!
//! Both loops run on the runtime's thread. Reading the input and writing the output can block, so each has a thread of
//! its own and a bounded queue. Every wait for one of these threads has a timeout or ends at a signal, so that an idle
//! terminal or a blocked pipe does not keep the process alive.

mod chat_loop;
mod full_screen;
mod input;

use std::io::{IsTerminal as _, stdin, stdout};

use clap::Args;

use super::client_args::{ConnectArgs, NameArg, RetryArg, RoomArgs};
use super::message_format::TimeArg;
use super::output::{self, Output};
use super::printer::JsonArg;
use super::{Failure, client_runtime};
use crate::client::{JoinOptions, RetryPolicy, Session};
use crate::domain::Name;
use crate::signals::Signals;
use crate::telemetry::ClientSpans;
use chat_loop::{ChatLoop, ChatOptions};
use full_screen::Joiner;

/// Take part in a room
///
/// On a terminal, uses the full screen; /help lists its commands and keys. With --plain, or TERM=dumb, or if the input or
/// output is not a terminal, works line by line: each line of stdin is sent, up to the end of the input or a line /leave.
/// In a pipe this goes on even if stdout is closed, and the command exits with 0 if all lines were broadcast. If the
/// connection is lost, the client reconnects, shows the events it has missed, and sends the lines that are not
/// acknowledged again. With --json it also prints what it sends, so that `chitchat diagram` can show what it had received by then.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  chitchat chat tea --name Ada                      the full screen in the room tea
  chitchat chat --profile work                      with a profile of the configuration
  tail -f app.log | chitchat chat logs --name app   each line of a pipe is a message")]
pub(super) struct ChatCommand {
    #[command(flatten)]
    name: NameArg,
    #[command(flatten)]
    room: RoomArgs,
    #[command(flatten)]
    connect: ConnectArgs,
    #[command(flatten)]
    retry: RetryArg,
    /// Work line by line on a terminal, too
    #[arg(long, conflicts_with = "json", help_heading = "Output")]
    plain: bool,
    #[command(flatten)]
    time: TimeArg,
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
        let is_full_screen = !self.plain && !self.json.json && supports_full_screen();
        let retry = if is_full_screen {
            self.retry.unlimited_policy()
        } else {
            self.retry.policy()
        };
        let (name, session) = tokio::select! {
            session = self.join(&retry) => session?,
            signal = signals.next() => return Err(Failure::Interrupted(signal)),
        };
        if is_full_screen {
            let joiner = Joiner {
                server: self.connect.server().clone(),
                options: self.connect.options(),
                retry,
            };
            let room = self.room.room().clone();
            return full_screen::run(
                joiner,
                session,
                name,
                room,
                self.time.columns(),
                spans,
                &mut signals,
            )
            .await;
        }

        let (inputs, output, notes) = (input::read_stdin()?, Output::stdout()?, Output::stderr()?);
        let options = ChatOptions {
            // A user sees rejections; a script needs the exit code.
            is_scripted: !stdin().is_terminal(),
            response_timeout: self.connect.timeout,
            name,
            room: self.room.room().clone(),
            is_json: self.json.json,
            format: self.time.format(),
            spans,
        };
        let ended = ChatLoop::new(session, options)
            .run(inputs, &output, &notes, &mut signals)
            .await;
        output::close(ended, (output, notes), &mut signals, false).await
    }

    async fn join(&self, retry: &RetryPolicy) -> Result<(Name, Session), Failure> {
        let options = self.connect.options();
        let joining = self.name.attempt(async |name| {
            let join = JoinOptions::new(name.as_str()).room(self.room.room().as_str());
            let session = Session::join(self.connect.server(), &options, retry.clone(), join).await?;
            Ok((name.clone(), session))
        });
        Ok(joining.await?)
    }
}

/// Whether the command's terminal can show a full screen.
fn supports_full_screen() -> bool {
    let term = std::env::var("TERM").unwrap_or_default();
    stdin().is_terminal() && stdout().is_terminal() && !matches!(term.as_str(), "" | "dumb")
}
