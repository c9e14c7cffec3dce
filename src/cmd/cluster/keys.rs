//! `chitchat cluster keys`: makes what replicas and NATS servers prove to one another who they are with.

use std::fmt::Write as _;
use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use clap::Args;
use nkeys::{KeyPair, KeyPairType};
use rcgen::ExtendedKeyUsagePurpose;

use crate::cmd::Failure;
use crate::cmd::certs::{Authority, host};
use crate::cmd::stderr::note;
use crate::regular_file;

/// Make the keys of a cluster
///
/// Makes an NKey for each replica and one for `chitchat cluster init`, the secret that the replicas share, and certificates for
/// the NATS servers. What exists is kept, so that more replicas can be added later. Only the user may read the files: give
/// nats/ to the NATS servers, replicas/ to the replicas, and keep setup/.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  chitchat cluster keys
  chitchat cluster keys --name nats-0 --name nats-1 --name nats-2 /keys")]
pub(super) struct KeysCommand {
    /// Directory for the files; created if it does not exist
    #[arg(value_name = "DIR", default_value = "chitchat-cluster")]
    directory: PathBuf,
    /// Name of a replica, as in --replica-name; can be repeated
    #[arg(long = "replica", value_name = "NAME", value_parser = replica, default_values = ["chitchat-0", "chitchat-1", "chitchat-2"])]
    replicas: Vec<String>,
    /// Host name or address of a NATS server; can be repeated
    #[arg(long = "name", value_name = "NAME", value_parser = host, default_values = ["localhost", "127.0.0.1", "::1"])]
    names: Vec<String>,
    /// How many days the certificates are valid, 1 to 3650
    #[arg(long, value_name = "N", default_value_t = 365, value_parser = clap::value_parser!(u16).range(1..=3650))]
    days: u16,
}

/// The key of `chitchat cluster`.
const SETUP: &str = "setup";

/// The length of the secret that replicas share, in bytes, before it is encoded.
const SECRET_LEN: usize = 32;

fn replica(raw: &str) -> Result<String, String> {
    let is_valid = raw
        .bytes()
        .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-');
    if is_valid && !raw.is_empty() && raw != SETUP {
        Ok(raw.to_owned())
    } else {
        Err("expected lowercase letters, digits and hyphens, and not `setup`".into())
    }
}

/// The name of a variable in the configuration of NATS.
fn variable(name: &str) -> String {
    format!("{}_NKEY", name.replace('-', "_").to_ascii_uppercase())
}

impl KeysCommand {
    pub(super) fn run(&self) -> Result<(), Failure> {
        let directory = |name: &str| self.directory.join(name);
        let (nats, replicas, setup) = (directory("nats"), directory("replicas"), directory(SETUP));
        for directory in [&nats, &replicas, &setup] {
            DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(directory)
                .map_err(|error| failed(directory, &error))?;
        }
        let mut variables = String::from("# The public keys of the users in nats.conf.\n");
        let keys = self.replicas.iter().map(|name| (name.as_str(), &replicas));
        for (name, directory) in std::iter::once((SETUP, &setup)).chain(keys) {
            let key = self.key(&directory.join(format!("{name}.nk")))?;
            writeln!(variables, "{}: {}", variable(name), key.public_key()).ok();
        }
        // Not secret, and made of those that are there: so it is written again.
        let path = nats.join("nkeys.conf");
        fs::write(&path, variables).map_err(|error| failed(&path, &error))?;
        let secret: [u8; SECRET_LEN] = rand::random();
        create(&replicas.join("secret"), &STANDARD.encode(secret))?;
        self.certificates(&nats, &[&replicas, &setup])?;
        note(format_args!(
            "the keys of {} replicas are in {}",
            self.replicas.len(),
            self.directory.display()
        ));
        Ok(())
    }

    /// The key of a file, which is made if there is none.
    fn key(&self, path: &Path) -> Result<KeyPair, Failure> {
        let key = KeyPair::new_user();
        let seed = key
            .seed()
            .map_err(|error| Failure::Software(format!("a key cannot be made: {error}")))?;
        if create(path, &seed)? {
            return Ok(key);
        }
        let read = regular_file::read(path);
        let content = read.map_err(|error| Failure::Io(format!("{} {error}", path.display())))?;
        let seed = String::from_utf8_lossy(&content);
        KeyPair::from_seed(seed.trim())
            .ok()
            .filter(|key| key.key_pair_type() == KeyPairType::User)
            .ok_or_else(|| Failure::Data(format!("{} has no seed of a user's NKey", path.display())))
    }

    /// Makes the certificate of the NATS servers, unless there is one. The key of its authority is not kept.
    fn certificates(&self, nats: &Path, clients: &[&PathBuf]) -> Result<(), Failure> {
        if nats.join("server.pem").symlink_metadata().is_ok() {
            return Ok(());
        }
        let issue = || {
            let authority = Authority::new("Chit Chat cluster", self.days)?;
            // A NATS server also connects to the others.
            let purposes = [
                ExtendedKeyUsagePurpose::ServerAuth,
                ExtendedKeyUsagePurpose::ClientAuth,
            ];
            let issued = authority.issue(self.names.clone(), &self.names[0], &purposes)?;
            Ok::<_, rcgen::Error>((authority.pem(), issued))
        };
        let (ca, (certificate, key)) =
            issue().map_err(|error| Failure::Software(format!("a certificate cannot be made: {error}")))?;
        for directory in clients.iter().map(|path| path.as_path()).chain([nats]) {
            let path = directory.join("ca.pem");
            fs::write(&path, &ca).map_err(|error| failed(&path, &error))?;
        }
        create(&nats.join("server-key.pem"), &key)?;
        create(&nats.join("server.pem"), &certificate)?;
        Ok(())
    }
}

fn failed(path: &Path, error: &io::Error) -> Failure {
    Failure::Io(format!("cannot write {}: {error}", path.display()))
}

/// Makes a file that only the user may read. `false` if it exists.
fn create(path: &Path, content: &str) -> Result<bool, Failure> {
    let opened = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path);
    match opened {
        Ok(mut file) => {
            writeln!(file, "{}", content.trim_end()).map_err(|error| failed(path, &error))?;
            Ok(true)
        }
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
        Err(error) => Err(failed(path, &error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_exists_is_kept_when_replicas_are_added() {
        let directory = tempfile::tempdir().unwrap();
        let keys = |replicas: &[&str]| {
            let command = KeysCommand {
                directory: directory.path().to_owned(),
                replicas: replicas.iter().map(|&name| name.to_owned()).collect(),
                names: vec!["localhost".into()],
                days: 1,
            };
            command.run().unwrap();
        };
        let read = |name: &str| fs::read_to_string(directory.path().join(name)).unwrap();
        keys(&["chitchat-0"]);
        let kept = [
            "setup/setup.nk",
            "replicas/chitchat-0.nk",
            "replicas/secret",
            "nats/server.pem",
        ];
        let before = kept.map(read);
        let one = read("nats/nkeys.conf");
        keys(&["chitchat-0", "chitchat-1"]);
        assert_eq!(kept.map(read), before);
        let two = read("nats/nkeys.conf");
        assert!(two.starts_with(&one) && two.lines().count() == one.lines().count() + 1);
        let key = KeyPair::from_seed(read("replicas/chitchat-1.nk").trim()).unwrap();
        assert!(two.ends_with(&format!("CHITCHAT_1_NKEY: {}\n", key.public_key())));
    }
}
