//! Why a connection over TLS failed.

use std::error::Error as StdError;
use std::io;
use std::time::SystemTime;

use humantime::format_rfc3339_seconds;

/// Why a connection over TLS could not be established. Displayed as a sentence about the server ("it").
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TlsError {
    /// The server's certificate, or a CA certificate in its chain, has expired.
    #[error("its certificate has expired at {}", format_rfc3339_seconds(*.not_after))]
    Expired {
        /// The end of the validity.
        not_after: SystemTime,
    },
    /// The server's certificate, or a CA certificate in its chain, is not valid yet.
    #[error(
        "its certificate is not valid before {}; is the clock of this machine right?",
        format_rfc3339_seconds(*.not_before)
    )]
    NotYetValid {
        /// The beginning of the validity.
        not_before: SystemTime,
    },
    /// The server's certificate is for other names.
    #[error("its certificate is for {}, not for {expected}", list(.names))]
    WrongName {
        /// The name that was expected.
        expected: String,
        /// The names in the certificate.
        names: Vec<String>,
    },
    /// The CA of the server's certificate is not trusted.
    #[error("its certificate is from a CA that is not trusted; give the CA certificate with --ca")]
    UnknownIssuer,
    /// The server's certificate cannot be used for another reason.
    #[error("its certificate is not valid: {0}")]
    InvalidCertificate(String),
    /// The server does not use TLS.
    #[error("it does not use TLS on this port; use http:// if nothing else encrypts")]
    PlainText,
    /// The server requires TLS, and the address begins with `http://`.
    #[error("it requires TLS; use https://")]
    Required,
    /// The server accepts only clients with a certificate.
    #[error("it accepts only clients with a certificate; give one with --cert and --key")]
    ClientCertificateRequired,
    /// The server does not accept the client's certificate.
    #[error("it does not accept the certificate of --cert: {0}")]
    ClientCertificateRejected(String),
    /// The server offers another protocol than HTTP/2.
    #[error("it does not offer HTTP/2 on this port")]
    NoHttp2,
    /// The handshake failed for another reason.
    #[error("the TLS handshake failed: {0}")]
    Handshake(String),
    /// The options for TLS are wrong.
    #[error("{0}")]
    Options(String),
    /// The crate was built without its feature `tls`.
    #[error("this program was built without TLS, so it cannot use https://")]
    Unsupported,
}

fn list(names: &[String]) -> String {
    if names.is_empty() {
        "no name".to_owned()
    } else {
        names.join(", ")
    }
}

impl TlsError {
    /// The first TLS error in the chain of sources.
    pub(super) fn find(error: &(dyn StdError + 'static)) -> Option<Self> {
        std::iter::successors(Some(error), |error| (*error).source()).find_map(|error| {
            // The source of an I/O error is not the error that it contains, but the source of that.
            let inner = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
            let error = inner.map_or(error, |inner| inner as _);
            let found = error.downcast_ref::<Self>().cloned();
            #[cfg(feature = "tls")]
            let found = found.or_else(|| error.downcast_ref::<rustls::Error>().map(Self::from));
            found
        })
    }
}

#[cfg(feature = "tls")]
mod from_rustls {
    use std::time::{Duration, SystemTime};

    use rustls::pki_types::UnixTime;
    use rustls::{AlertDescription, CertificateError, Error, InvalidMessage};

    use super::TlsError;

    fn system_time(time: UnixTime) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(time.as_secs())
    }

    impl From<&Error> for TlsError {
        fn from(error: &Error) -> Self {
            use AlertDescription as Alert;
            match error {
                Error::InvalidCertificate(error) => Self::from(error),
                Error::InvalidMessage(
                    InvalidMessage::InvalidContentType | InvalidMessage::UnknownProtocolVersion,
                ) => Self::PlainText,
                Error::AlertReceived(Alert::CertificateRequired) => Self::ClientCertificateRequired,
                Error::AlertReceived(Alert::NoApplicationProtocol) => Self::NoHttp2,
                Error::AlertReceived(Alert::UnknownCA) => {
                    Self::ClientCertificateRejected("its CA is not one that the server trusts".into())
                }
                Error::AlertReceived(Alert::CertificateExpired) => {
                    Self::ClientCertificateRejected("it has expired, or is not valid yet".into())
                }
                Error::AlertReceived(
                    alert @ (Alert::BadCertificate
                    | Alert::UnsupportedCertificate
                    | Alert::CertificateRevoked
                    | Alert::CertificateUnknown
                    | Alert::AccessDenied),
                ) => Self::ClientCertificateRejected(format!("the server's alert is {alert:?}")),
                Error::AlertReceived(alert) => Self::Handshake(format!("the server's alert is {alert:?}")),
                error => Self::Handshake(error.to_string()),
            }
        }
    }

    impl From<&CertificateError> for TlsError {
        fn from(error: &CertificateError) -> Self {
            match error {
                CertificateError::ExpiredContext { not_after, .. } => Self::Expired {
                    not_after: system_time(*not_after),
                },
                CertificateError::NotValidYetContext { not_before, .. } => Self::NotYetValid {
                    not_before: system_time(*not_before),
                },
                CertificateError::NotValidForNameContext { expected, presented } => Self::WrongName {
                    expected: expected.to_str().into_owned(),
                    names: presented.iter().map(|name| bare_name(name).to_owned()).collect(),
                },
                CertificateError::UnknownIssuer => Self::UnknownIssuer,
                error => Self::InvalidCertificate(error.to_string()),
            }
        }
    }

    /// The name in `DnsName("chat.example")` or `IpAddress(192.0.2.1)`, as the TLS library presents it.
    fn bare_name(presented: &str) -> &str {
        let inner = presented
            .split_once('(')
            .and_then(|(_, rest)| rest.strip_suffix(')'));
        inner.unwrap_or(presented).trim_matches('"')
    }

    #[cfg(test)]
    mod tests {
        use std::io;
        use std::sync::Arc;

        use tonic::Status;

        use super::*;

        #[test]
        fn the_cause_is_found_in_a_status() {
            let alert = Error::AlertReceived(AlertDescription::CertificateRequired);
            let mut status = Status::unavailable("transport error");
            status.set_source(Arc::new(io::Error::other(alert)));
            assert_eq!(TlsError::find(&status), Some(TlsError::ClientCertificateRequired));
            assert_eq!(TlsError::find(&io::Error::from(io::ErrorKind::BrokenPipe)), None);
        }

        #[test]
        fn the_names_of_a_certificate_are_listed_as_they_are() {
            let names = [
                "DnsName(\"*.chat.example\")",
                "IpAddress(192.0.2.1)",
                "DirectoryName",
            ];
            let names = names.map(|name| bare_name(name).to_owned()).to_vec();
            let error = TlsError::WrongName {
                expected: "chat.example".into(),
                names,
            };
            assert_eq!(
                error.to_string(),
                "its certificate is for *.chat.example, 192.0.2.1, DirectoryName, not for chat.example"
            );
        }
    }
}
