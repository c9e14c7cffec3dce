//! The flags that several client commands have in common.

use std::path::PathBuf;
use std::time::Duration;

use clap::parser::ValueSource;
use clap::{ArgMatches, Args};

use super::Failure;
use super::parse::{duration, timeout};
use crate::client::{ClientError, ConnectOptions, Connection, RetryPolicy, ServerAddress, TlsOptions, Token};
use crate::domain::{Name, RoomName};

/// The id of the flag that selects a profile. The commands that have it are the client commands.
pub(super) const PROFILE: &str = "profile";

#[derive(Debug, Args)]
pub(super) struct ServerArg {
    // Only `run_program` uses it.
    /// Use the settings of this profile in the configuration file; see `chitchat config`
    #[arg(
        id = PROFILE,
        long = PROFILE,
        env = "CHITCHAT_PROFILE",
        value_name = "NAME",
        help_heading = "Connection"
    )]
    _profile: Option<String>,
    /// Address of the server: host:port, or https://host:port for TLS
    #[arg(
        short,
        long,
        env = "CHITCHAT_SERVER",
        value_name = "ADDR",
        default_value = "127.0.0.1:50052",
        help_heading = "Connection"
    )]
    pub(super) server: ServerAddress,
    /// Trust the CA certificates in this file (PEM) instead of those that the system trusts
    #[arg(
        long,
        env = "CHITCHAT_CA",
        value_name = "FILE",
        help_heading = "TLS and token"
    )]
    ca: Option<PathBuf>,
    /// Your certificate, if the server wants one (PEM)
    #[arg(
        long,
        env = "CHITCHAT_CERT",
        value_name = "FILE",
        help_heading = "TLS and token"
    )]
    cert: Option<PathBuf>,
    /// Private key of --cert (PEM)
    #[arg(
        long,
        env = "CHITCHAT_KEY",
        value_name = "FILE",
        help_heading = "TLS and token"
    )]
    key: Option<PathBuf>,
    /// Name that the server's certificate must have [default: the host of --server]
    #[arg(
        long,
        env = "CHITCHAT_SERVER_NAME",
        value_name = "NAME",
        help_heading = "TLS and token"
    )]
    server_name: Option<String>,
    /// Send the token in this file with each call; it is read for each connection. A token in the variable CHITCHAT_TOKEN is sent if
    /// there is no file
    #[arg(
        long,
        env = "CHITCHAT_TOKEN_FILE",
        value_name = "FILE",
        help_heading = "TLS and token"
    )]
    token_file: Option<PathBuf>,
    /// Send the token to another machine although the address does not begin with https://: for a network that encrypts
    #[arg(long, env = "CHITCHAT_INSECURE_TOKEN", help_heading = "TLS and token")]
    insecure_token: bool,
}

/// Checks that a client's certificate or key that was given has its counterpart, from any source.
pub(super) fn check_client_certificate(matches: &ArgMatches) -> Result<(), Failure> {
    for (flag, counterpart) in [("cert", "key"), ("key", "cert")] {
        let is_given = matches!(
            matches.value_source(flag),
            Some(ValueSource::CommandLine | ValueSource::EnvVariable)
        );
        if is_given && matches.value_source(counterpart).is_none() {
            return Err(Failure::Usage(format!("--{flag} needs --{counterpart}, too")));
        }
    }
    Ok(())
}

impl ServerArg {
    pub(super) fn options(&self, response_timeout: Duration) -> ConnectOptions {
        ConnectOptions {
            response_timeout,
            tls: TlsOptions {
                ca: self.ca.clone(),
                certificate: self.cert.clone(),
                key: self.key.clone(),
                server_name: self.server_name.clone(),
            },
            token: self.token(),
            insecure_token: self.insecure_token,
            ..ConnectOptions::default()
        }
    }

    /// There is no flag for the token itself, because other users can see the arguments of a process.
    fn token(&self) -> Option<Token> {
        match &self.token_file {
            Some(path) => Some(Token::File(path.clone())),
            None => token_in_env().map(Token::Value),
        }
    }
}

pub(super) fn token_in_env() -> Option<String> {
    let token = std::env::var("CHITCHAT_TOKEN").ok()?;
    (!token.is_empty()).then_some(token)
}

#[derive(Debug, Args)]
pub(super) struct ConnectArgs {
    #[command(flatten)]
    server: ServerArg,
    /// How long to wait for the connection and for each response of the server
    #[arg(long, env = "CHITCHAT_TIMEOUT", value_name = "TIME", default_value = "10s", value_parser = timeout, help_heading = "Connection")]
    pub(super) timeout: Duration,
}

impl ConnectArgs {
    pub(super) const fn server(&self) -> &ServerAddress {
        &self.server.server
    }

    pub(super) fn options(&self) -> ConnectOptions {
        self.server.options(self.timeout)
    }

    pub(super) async fn connect(&self) -> Result<Connection, Failure> {
        Ok(Connection::open(self.server(), &self.options()).await?)
    }
}

#[derive(Debug, Args)]
pub(super) struct RetryArg {
    /// How long to try to reconnect after the connection is lost or the server stops responding; 0s = do not
    /// reconnect. The first connection is attempted once [default: 2m; the full screen of chat has no limit]
    #[arg(long, env = "CHITCHAT_PATIENCE", value_name = "TIME", value_parser = duration, help_heading = "Connection")]
    patience: Option<Duration>,
}

impl RetryArg {
    pub(super) fn policy(&self) -> RetryPolicy {
        let default = RetryPolicy::default();
        RetryPolicy {
            patience: self.patience.unwrap_or(default.patience),
            ..default
        }
    }

    /// The policy of a client that a user keeps open.
    pub(super) fn unlimited_policy(&self) -> RetryPolicy {
        RetryPolicy {
            patience: self.patience.unwrap_or(Duration::MAX),
            ..RetryPolicy::default()
        }
    }
}

#[derive(Debug, Args)]
pub(super) struct NameArg {
    /// Your name in the room [default: that of your user account, followed by -2, -3, ... if it is taken]
    #[arg(short = 'u', long, env = "CHITCHAT_NAME", value_parser = name)]
    name: Option<Name>,
}

impl NameArg {
    /// The name that was given or, if there is none, default names in the order of preference.
    pub(super) fn candidates(&self) -> Vec<Name> {
        if let Some(name) = &self.name {
            return vec![name.clone()];
        }
        let account = ["USER", "LOGNAME"]
            .iter()
            .find_map(|variable| Name::try_from(std::env::var(variable).ok()?.as_str()).ok());
        let account = account.as_ref().map_or(GUEST, Name::as_str);
        let numbered = (2..=MAX_DEFAULT_NAMES).map(|number| format!("{account}-{number}"));
        std::iter::once(account.to_owned())
            .chain(numbered)
            .filter_map(|name| Name::try_from(name.as_str()).ok())
            .collect()
    }

    /// Calls `attempt` with the name or, while that is taken, with further default names.
    pub(super) async fn attempt<T>(
        &self,
        mut attempt: impl AsyncFnMut(&Name) -> Result<T, ClientError>,
    ) -> Result<T, ClientError> {
        let mut result = Err(ClientError::Closed);
        for name in self.candidates() {
            result = attempt(&name).await;
            if !result.as_ref().is_err_and(ClientError::is_name_taken) {
                break;
            }
        }
        result
    }
}

/// The default name if the user account has no usable one.
const GUEST: &str = "guest";
/// How many default names are tried.
const MAX_DEFAULT_NAMES: u32 = 9;

fn name(raw: &str) -> Result<Name, String> {
    Name::try_from(raw).map_err(|error| format!("it {error}"))
}

#[derive(Debug, Args)]
pub(super) struct RoomArg {
    /// Name of the room
    #[arg(short, long, env = "CHITCHAT_ROOM", value_name = "ROOM", value_parser = room, default_value = RoomName::LOBBY)]
    pub(super) room: RoomName,
}

/// The room as an argument without a flag, or as [`RoomArg`].
#[derive(Debug, Args)]
pub(super) struct RoomArgs {
    /// Name of the room; the same as --room
    #[arg(value_name = "ROOM", value_parser = room)]
    positional_room: Option<RoomName>,
    #[command(flatten)]
    flag: RoomArg,
}

impl RoomArgs {
    pub(super) fn room(&self) -> &RoomName {
        self.positional_room.as_ref().unwrap_or(&self.flag.room)
    }
}

pub(super) fn room(raw: &str) -> Result<RoomName, String> {
    RoomName::try_from(raw).map_err(|error| format!("it {error}"))
}
