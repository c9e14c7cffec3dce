//! Certificates of every kind, also of kinds that no sensible authority would issue.
#![allow(
    dead_code,
    missing_docs,
    unreachable_pub,
    clippy::unwrap_used,
    reason = "each test uses another part of it"
)]

use std::fs;
use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose, date_time_ymd,
};

/// The name of authorities that nobody trusts.
pub const FORGED_ISSUER: &str = "one of many";

/// A certificate authority.
pub struct Authority(CertifiedIssuer<'static, KeyPair>);

/// The paths of a certificate and its key.
#[derive(Debug, Clone)]
pub struct Issued {
    pub certificate: PathBuf,
    pub key: PathBuf,
}

impl Authority {
    pub fn new(name: &str) -> Self {
        let mut params = CertificateParams::new([]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.distinguished_name.push(DnType::CommonName, name);
        (params.not_before, params.not_after) = (date_time_ymd(2000, 1, 1), date_time_ymd(4000, 1, 1));
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    /// Writes its certificate to a file.
    pub fn write(&self, path: impl AsRef<Path>) -> PathBuf {
        fs::write(&path, self.0.pem()).unwrap();
        path.as_ref().to_owned()
    }

    /// Writes the certificate and the key of a server to `name.pem` and `name-key.pem` in `directory`.
    pub fn issue(&self, directory: &Path, name: &str, names: &[&str]) -> Issued {
        self.issue_for_years(directory, name, names, [2001, 3001])
    }

    /// Like [`Self::issue`], for the time from the beginning of the first year to that of the second.
    pub fn issue_for_years(&self, directory: &Path, name: &str, names: &[&str], years: [i32; 2]) -> Issued {
        let purposes = [ExtendedKeyUsagePurpose::ServerAuth];
        self.issue_with(directory, name, names, years, &purposes)
    }

    /// Writes the certificate and the key of a client.
    pub fn issue_for_client(&self, directory: &Path, name: &str) -> Issued {
        let purposes = [ExtendedKeyUsagePurpose::ClientAuth];
        self.issue_with(directory, name, &[], [2001, 3001], &purposes)
    }

    /// Writes the certificate and the key of a client, with those of `authorities` that are all called [`FORGED_ISSUER`], so that each may have
    /// signed each.
    pub fn issue_chain_for_client(&self, directory: &Path, name: &str, authorities: usize) -> Issued {
        let issued = self.issue_for_client(directory, name);
        let chain: String = (0..authorities)
            .map(|_| Self::new(FORGED_ISSUER).0.pem())
            .collect();
        let certificate = fs::read_to_string(&issued.certificate).unwrap();
        fs::write(&issued.certificate, certificate + &chain).unwrap();
        issued
    }

    fn issue_with(
        &self,
        directory: &Path,
        name: &str,
        names: &[&str],
        years: [i32; 2],
        purposes: &[ExtendedKeyUsagePurpose],
    ) -> Issued {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(names).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.extended_key_usages = purposes.to_vec();
        [params.not_before, params.not_after] = years.map(|year| date_time_ymd(year, 1, 1));
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.0).unwrap();
        let issued = Issued {
            certificate: directory.join(format!("{name}.pem")),
            key: directory.join(format!("{name}-key.pem")),
        };
        fs::write(&issued.certificate, certificate.pem()).unwrap();
        fs::write(&issued.key, key.serialize_pem()).unwrap();
        issued
    }
}
