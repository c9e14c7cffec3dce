//! How a program proves to NATS who it is.

use std::path::{Path, PathBuf};

use async_nats::Auth;
use nkeys::{KeyPair, KeyPairType};

use crate::regular_file;

/// A file with a secret for NATS. It is read whenever a connection is made, so that a new one is used from then on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Credentials {
    /// The seed of an `NKey` of a user.
    NKey(PathBuf),
    /// What `nsc generate creds` writes: the JWT of a user, and the seed of its `NKey`.
    Creds(PathBuf),
}

impl Credentials {
    fn path(&self) -> &Path {
        match self {
            Self::NKey(path) | Self::Creds(path) => path,
        }
    }

    /// Reads the file, and answers the challenge of a server.
    ///
    /// # Errors
    ///
    /// What is wrong, with the flag.
    pub(crate) fn sign(&self, nonce: &[u8]) -> Result<Auth, String> {
        let flag = match self {
            Self::NKey(_) => "--cluster-nkey",
            Self::Creds(_) => "--cluster-creds",
        };
        let failed = |why: &str| format!("{flag} {} {why}", self.path().display());
        let content = regular_file::read(self.path()).map_err(|error| failed(&error))?;
        let content = String::from_utf8(content).map_err(|_| failed("is not text"))?;
        let mut auth = Auth::new();
        let seed = match self {
            Self::NKey(_) => content.trim(),
            Self::Creds(_) => {
                let jwt = section(&content, "NATS USER JWT");
                let jwt = jwt.ok_or_else(|| failed("has no section `NATS USER JWT`"))?;
                auth.jwt = Some(jwt.to_owned());
                section(&content, "USER NKEY SEED")
                    .ok_or_else(|| failed("has no section `USER NKEY SEED`"))?
            }
        };
        let key = KeyPair::from_seed(seed)
            .ok()
            .filter(|key| key.key_pair_type() == KeyPairType::User)
            .ok_or_else(|| failed("has no seed of a user's NKey, which begins with SU"))?;
        let signature = key.sign(nonce).map_err(|error| failed(&error.to_string()))?;
        auth.signature = Some(signature);
        if auth.jwt.is_none() {
            auth.nkey = Some(key.public_key());
        }
        Ok(auth)
    }
}

/// The line below `-----BEGIN title-----`.
fn section<'a>(content: &'a str, title: &str) -> Option<&'a str> {
    let begin = format!("BEGIN {title}-");
    let mut lines = content.lines().skip_while(|line| !line.contains(&begin)).skip(1);
    let line = lines.next()?.trim();
    (!line.is_empty()).then_some(line)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What reading this content says.
    fn sign(credentials: fn(PathBuf) -> Credentials, content: &str) -> Result<Auth, String> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("secret");
        std::fs::write(&path, content).unwrap();
        credentials(path).sign(b"nonce")
    }

    #[test]
    fn a_seed_signs_with_its_key() {
        let key = KeyPair::new_user();
        let auth = sign(Credentials::NKey, &format!("{}\n", key.seed().unwrap())).unwrap();
        assert_eq!(auth.nkey, Some(key.public_key()));
        key.verify(b"nonce", &auth.signature.unwrap()).unwrap();
    }

    #[test]
    fn credentials_have_a_token_and_a_seed() {
        let key = KeyPair::new_user();
        let content = format!(
            "-----BEGIN NATS USER JWT-----\na.b.c\n------END NATS USER JWT------\n\n\
             -----BEGIN USER NKEY SEED-----\n{}\n------END USER NKEY SEED------\n",
            key.seed().unwrap()
        );
        let auth = sign(Credentials::Creds, &content).unwrap();
        assert_eq!((auth.jwt.as_deref(), auth.nkey), (Some("a.b.c"), None));
        key.verify(b"nonce", &auth.signature.unwrap()).unwrap();
        let half = content.split("-----BEGIN USER").next().unwrap();
        let error = sign(Credentials::Creds, half).err().unwrap();
        assert!(error.contains("has no section `USER NKEY SEED`"), "{error}");
    }

    #[test]
    fn what_is_not_the_seed_of_a_user_is_refused() {
        let account = KeyPair::new_account().seed().unwrap();
        let public = KeyPair::new_user().public_key();
        for content in ["", "SUAB", &account, &public] {
            let error = sign(Credentials::NKey, content).err().unwrap();
            assert!(error.starts_with("--cluster-nkey /"), "{error}");
            assert!(error.ends_with("which begins with SU"), "{error}");
        }
        let absent = Credentials::NKey("/nowhere".into()).sign(b"").err().unwrap();
        assert!(
            absent.starts_with("--cluster-nkey /nowhere cannot be read"),
            "{absent}"
        );
    }
}
