//! `chitchat token`: makes tokens to try out a server with.

use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use rcgen::{KeyPair, PKCS_ED25519};
use serde_json::json;

use super::Failure;
use super::parse::timeout;
use super::stderr::note;
use crate::auth::{Grant, Right, RoomPatterns, SigningKey};
use crate::domain::Name;
use crate::wall_clock::unix_time;

const KEY_FILE: &str = "token-key.pem";
const PUBLIC_FILE: &str = "jwks.json";

/// Make a token, and a key that signs it, for development
///
/// Prints the token. Whoever has the file token-key.pem can make tokens for every server that has its public key, jwks.json, as
/// --auth-keys. On a public server, use the keys of an identity provider.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  chitchat token --name Ada > ada.token   and the key, in ./chitchat-keys
  chitchat token --room 'team-*' --rights read,write,create,moderate --ttl 8h")]
pub(super) struct TokenCommand {
    /// Directory for the key; created with a new key if it has none
    #[arg(value_name = "DIR", default_value = "chitchat-keys")]
    directory: PathBuf,
    /// Who the token is for (sub)
    #[arg(long, value_name = "TEXT", default_value = "somebody")]
    subject: String,
    /// The only name that they may have in a room [default: any name]
    #[arg(long, value_name = "NAME", value_parser = name)]
    name: Option<Name>,
    /// Room that the token grants, in which * stands for any characters; can be repeated
    #[arg(long = "room", value_name = "PATTERN", default_values = ["*"], value_parser = pattern)]
    rooms: Vec<String>,
    /// What the token grants there: read, write, create, moderate; separated by commas
    #[arg(long, value_name = "RIGHTS", default_value = "read,write,create", value_delimiter = ',', value_parser = right)]
    rights: Vec<String>,
    /// How long the token is valid
    #[arg(long, value_name = "TIME", default_value = "1h", value_parser = timeout)]
    ttl: Duration,
    /// The issuer (iss), as in --auth-issuer of the server
    #[arg(long, value_name = "TEXT", default_value = "chitchat")]
    issuer: String,
    /// The server that the token is for (aud), as in its --auth-audience
    #[arg(long, value_name = "TEXT", default_value = "chitchat")]
    audience: String,
}

fn name(raw: &str) -> Result<Name, String> {
    Name::try_from(raw).map_err(|error| format!("it {error}"))
}

fn pattern(raw: &str) -> Result<String, String> {
    RoomPatterns::new([raw])
        .map(|_| raw.to_owned())
        .ok_or_else(|| "expected 1 to 64 characters".into())
}

fn right(raw: &str) -> Result<String, String> {
    Right::from_name(raw)
        .map(|right| right.as_str().to_owned())
        .ok_or_else(|| format!("expected {}", Right::ALL.map(Right::as_str).join(", ")))
}

impl TokenCommand {
    pub(super) fn run(self) -> Result<(), Failure> {
        let key = self.key()?;
        let token = key.issue(&Grant {
            issuer: self.issuer,
            audience: self.audience,
            subject: self.subject,
            name: self.name.map(|name| name.as_str().to_owned()),
            rooms: self.rooms,
            rights: self.rights,
            expires_at: unix_time() + self.ttl.as_secs(),
        });
        writeln!(io::stdout(), "{token}")
            .map_err(|error| Failure::Io(format!("cannot write to stdout: {error}")))
    }

    /// Reads the key, or makes one together with the file for servers.
    fn key(&self) -> Result<SigningKey, Failure> {
        let path = self.directory.join(KEY_FILE);
        let invalid = |reason| Failure::Data(format!("{} {reason}", path.display()));
        match fs::read(&path) {
            Ok(pem) => return SigningKey::from_pem(&pem).map_err(invalid),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(Failure::Io(format!("cannot read {}: {error}", path.display()))),
        }
        let pair = KeyPair::generate_for(&PKCS_ED25519)
            .map_err(|error| Failure::Software(format!("the key cannot be made: {error}")))?;
        let pem = pair.serialize_pem();
        let key = SigningKey::from_pem(pem.as_bytes()).map_err(invalid)?;
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.directory)
            .map_err(|error| cannot_write(&self.directory, &error))?;
        let public = self.directory.join(PUBLIC_FILE);
        let jwks = format!("{}\n", json!({"keys": [key.public_jwk()]}));
        for (path, mode, content) in [(&public, 0o644, &jwks), (&path, 0o600, &pem)] {
            OpenOptions::new()
                .write(true)
                .create_new(true)
                .mode(mode)
                .open(path)
                .and_then(|mut file| file.write_all(content.as_bytes()))
                .map_err(|error| cannot_write(path, &error))?;
        }
        note(format_args!(
            "made a key; start the server with --auth-keys {} --auth-issuer {} --auth-audience {}",
            public.display(),
            self.issuer,
            self.audience
        ));
        Ok(key)
    }
}

fn cannot_write(path: &Path, error: &io::Error) -> Failure {
    Failure::Io(format!("cannot write {}: {error}", path.display()))
}
