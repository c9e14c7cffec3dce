//! The flags that several client commands have in common.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use super::Failure;
use super::parse::{duration, timeout};
use crate::client::{ConnectOptions, Connection, RetryPolicy, ServerAddress, TlsOptions, Token};
use crate::domain::{Name, RoomName};

#[derive(Debug, Args)]
pub(super) struct ServerArg {
    /// Address of the server: host:port, or https://host:port for TLS
    #[arg(
        long,
        env = "CHITCHAT_SERVER",
        value_name = "ADDR",
        default_value = "127.0.0.1:50052"
    )]
    pub(super) server: ServerAddress,
    /// Trust the issuers in this file (PEM) instead of those that the system trusts
    #[arg(long, env = "CHITCHAT_CA", value_name = "FILE")]
    ca: Option<PathBuf>,
    /// Your certificate, if the server wants one (PEM)
    #[arg(long, env = "CHITCHAT_CERT", value_name = "FILE", requires = "key")]
    cert: Option<PathBuf>,
    /// Private key of --cert (PEM)
    #[arg(long, env = "CHITCHAT_KEY", value_name = "FILE", requires = "cert")]
    key: Option<PathBuf>,
    /// Name that the server's certificate must have [default: the host of --server]
    #[arg(long, env = "CHITCHAT_SERVER_NAME", value_name = "NAME")]
    server_name: Option<String>,
    /// Send the token in this file with each call; it is read for each connection. A token in the variable CHITCHAT_TOKEN is sent if
    /// there is no file
    #[arg(long, env = "CHITCHAT_TOKEN_FILE", value_name = "FILE")]
    token_file: Option<PathBuf>,
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
            ..ConnectOptions::default()
        }
    }

    /// There is no flag for the token itself, because other users can see the arguments of a process.
    fn token(&self) -> Option<Token> {
        let variable = || std::env::var("CHITCHAT_TOKEN").ok();
        match &self.token_file {
            Some(path) => Some(Token::File(path.clone())),
            None => variable().filter(|token| !token.is_empty()).map(Token::Value),
        }
    }
}

#[derive(Debug, Args)]
pub(super) struct ConnectArgs {
    #[command(flatten)]
    server: ServerArg,
    /// How long to wait for the connection and for each response of the server
    #[arg(long, env = "CHITCHAT_TIMEOUT", value_name = "TIME", default_value = "10s", value_parser = timeout)]
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
    /// reconnect. The first connection is attempted once
    #[arg(long, env = "CHITCHAT_PATIENCE", value_name = "TIME", default_value = "2m", value_parser = duration)]
    patience: Duration,
}

impl RetryArg {
    pub(super) fn policy(&self) -> RetryPolicy {
        RetryPolicy {
            patience: self.patience,
            ..RetryPolicy::default()
        }
    }
}

#[derive(Debug, Args)]
pub(super) struct NameArg {
    /// Your name in the room
    #[arg(long, env = "CHITCHAT_NAME", value_parser = name)]
    pub(super) name: Name,
}

fn name(raw: &str) -> Result<Name, String> {
    Name::try_from(raw).map_err(|error| format!("it {error}"))
}

#[derive(Debug, Args)]
pub(super) struct RoomArg {
    /// Name of the room
    #[arg(long, env = "CHITCHAT_ROOM", value_parser = room, default_value = RoomName::LOBBY)]
    pub(super) room: RoomName,
}

pub(super) fn room(raw: &str) -> Result<RoomName, String> {
    RoomName::try_from(raw).map_err(|error| format!("it {error}"))
}
