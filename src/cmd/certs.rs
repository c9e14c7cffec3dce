//! `chitchat certs`: makes certificates for development.

use std::fs::{DirBuilder, OpenOptions};
use std::io::Write as _;
use std::net::IpAddr;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use clap::Args;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose,
};
use rustls::pki_types::DnsName;

use super::Failure;

/// Certificates are valid from this long ago, so that clocks may differ.
const BACKDATED: Duration = Duration::from_secs(60 * 60);

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// Make certificates for development
///
/// Makes an authority, and certificates from it for a server and a client. Whoever has the file ca-key.pem can pass for every server and client that trusts ca.pem. For a public server, use the
/// certificate of a public authority.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  chitchat certs   for a server on this machine, in ./chitchat-certs
  chitchat certs --name chat.example --days 7 /tmp/certs")]
pub(super) struct CertsCommand {
    /// Directory for the files; created if it does not exist
    #[arg(value_name = "DIR", default_value = "chitchat-certs")]
    directory: PathBuf,
    /// Host name or address of the server; can be repeated
    #[arg(long = "name", value_name = "NAME", value_parser = host, default_values = ["localhost", "127.0.0.1", "::1"])]
    names: Vec<String>,
    /// Name of the client
    #[arg(long, value_name = "NAME", default_value = "client")]
    client: String,
    /// How many days the certificates are valid, 1 to 3650
    #[arg(long, value_name = "N", default_value_t = 90, value_parser = clap::value_parser!(u16).range(1..=3650))]
    days: u16,
}

/// Parses the name of a host, which may begin with `*.`, or an address.
pub(super) fn host(raw: &str) -> Result<String, String> {
    let name = raw.strip_prefix("*.").unwrap_or(raw);
    if raw.parse::<IpAddr>().is_ok() || DnsName::try_from(name).is_ok() {
        Ok(raw.to_owned())
    } else {
        Err("expected a host name such as chat.example, or an IP address".into())
    }
}

impl CertsCommand {
    pub(super) fn run(self) -> Result<(), Failure> {
        let generated = self
            .generate()
            .map_err(|error| Failure::Software(format!("the certificates cannot be made: {error}")))?;
        let files = generated.map(|(name, pem)| (self.directory.join(name), pem));
        if let Some((path, _)) = files.iter().find(|(path, _)| path.symlink_metadata().is_ok()) {
            return Err(Failure::Usage(format!(
                "{} exists already and is not overwritten; remove it, or choose another directory",
                path.display()
            )));
        }
        let failed = |path: &PathBuf, error| Failure::Io(format!("cannot write {}: {error}", path.display()));
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.directory)
            .map_err(|error| failed(&self.directory, error))?;
        for (path, pem) in &files {
            OpenOptions::new()
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(path)
                .and_then(|mut file| file.write_all(pem.as_bytes()))
                .map_err(|error| failed(path, error))?;
        }
        let directory = self.directory.display();
        let lines = format!(
            "made 3 certificates with their keys in {directory}, valid for {} days\n\
             chitchat serve --tls-cert {directory}/server.pem --tls-key {directory}/server-key.pem\n\
             chitchat health --server https://{} --ca {directory}/ca.pem",
            self.days,
            authority(&self.names[0])
        );
        writeln!(std::io::stdout(), "{lines}")
            .map_err(|error| Failure::Io(format!("cannot write to stdout: {error}")))
    }

    /// The names and contents of the files.
    fn generate(&self) -> Result<[(&'static str, String); 6], rcgen::Error> {
        let authority = Authority::new("Chit Chat development authority", self.days)?;
        let (server, server_key) = authority.issue(
            self.names.clone(),
            &self.names[0],
            &[ExtendedKeyUsagePurpose::ServerAuth],
        )?;
        let (client, client_key) =
            authority.issue(vec![], &self.client, &[ExtendedKeyUsagePurpose::ClientAuth])?;
        Ok([
            ("ca.pem", authority.pem()),
            ("ca-key.pem", authority.issuer.key().serialize_pem()),
            ("server.pem", server),
            ("server-key.pem", server_key),
            ("client.pem", client),
            ("client-key.pem", client_key),
        ])
    }
}

/// A new authority for certificates.
pub(super) struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    days: u16,
}

impl Authority {
    pub(super) fn new(name: &str, days: u16) -> Result<Self, rcgen::Error> {
        let mut authority = params(vec![], name, days)?;
        authority.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        authority.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let issuer = CertifiedIssuer::self_signed(authority, KeyPair::generate()?)?;
        Ok(Self { issuer, days })
    }

    /// Its own certificate.
    pub(super) fn pem(&self) -> String {
        self.issuer.pem()
    }

    /// A certificate for hosts with these names, and its key.
    pub(super) fn issue(
        &self,
        names: Vec<String>,
        common_name: &str,
        purposes: &[ExtendedKeyUsagePurpose],
    ) -> Result<(String, String), rcgen::Error> {
        let mut params = params(names, common_name, self.days)?;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = purposes.to_vec();
        params.use_authority_key_identifier_extension = true;
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &self.issuer)?;
        Ok((certificate.pem(), key.serialize_pem()))
    }
}

fn params(names: Vec<String>, common_name: &str, days: u16) -> Result<CertificateParams, rcgen::Error> {
    let mut params = CertificateParams::new(names)?;
    params.distinguished_name.push(DnType::CommonName, common_name);
    let now = SystemTime::now();
    params.not_before = (now - BACKDATED).into();
    params.not_after = (now + DAY * days.into()).into();
    Ok(params)
}

/// A host as it is written in an address.
fn authority(host: &str) -> String {
    match host.parse() {
        Ok(IpAddr::V6(address)) => format!("[{address}]:50052"),
        _ => format!("{host}:50052"),
    }
}
