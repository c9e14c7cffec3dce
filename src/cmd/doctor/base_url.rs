//! Where a backend is, and asking it.

use std::str::FromStr;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Uri, header};
use http_body::Body as _;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::time::timeout;

/// How long one answer may take.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);

/// The largest answer that is read.
const MAX_ANSWER: usize = 8 << 20;

/// Where a backend's HTTP interface is: `http://host:port`, perhaps with a path before all others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct BaseUrl {
    authority: String,
    host: String,
    port: u16,
    prefix: String,
}

/// What a backend answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) body: String,
}

impl FromStr for BaseUrl {
    type Err = String;

    fn from_str(raw: &str) -> Result<Self, String> {
        let expected = || format!("{raw:?} is no URL like http://127.0.0.1:9090");
        let uri: Uri = raw.parse().map_err(|_| expected())?;
        let (Some("http"), Some(host), None) = (uri.scheme_str(), uri.host(), uri.query()) else {
            return Err(expected());
        };
        let port = uri.port_u16().unwrap_or(80);
        Ok(Self {
            authority: format!("{host}:{port}"),
            // As the system's resolver wants it.
            host: host.trim_matches(['[', ']']).to_owned(),
            port,
            prefix: uri.path().trim_end_matches('/').to_owned(),
        })
    }
}

impl std::fmt::Display for BaseUrl {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "http://{}{}", self.authority, self.prefix)
    }
}

impl BaseUrl {
    /// Asks for a path (which begins with a slash) with these parameters. Gives up after five seconds.
    ///
    /// # Errors
    ///
    /// A line of what went wrong, when there was no answer.
    ///
    /// # Cancellation
    ///
    /// Closes the connection.
    pub(super) async fn get(&self, path: &str, parameters: &[(&str, &str)]) -> Result<Answer, String> {
        match timeout(ANSWER_WITHIN, self.ask(path, parameters)).await {
            Ok(answer) => answer,
            Err(_) => Err(format!("{self} did not answer within {ANSWER_WITHIN:?}")),
        }
    }

    async fn ask(&self, path: &str, parameters: &[(&str, &str)]) -> Result<Answer, String> {
        let failed = |error: &dyn std::fmt::Display| format!("{self} cannot be asked: {error}");
        let stream = TcpStream::connect((self.host.as_str(), self.port))
            .await
            .map_err(|error| failed(&error))?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| failed(&error))?;
        let query: Vec<_> = parameters
            .iter()
            .map(|(name, value)| format!("{name}={}", escaped(value)))
            .collect();
        let mark = if query.is_empty() { "" } else { "?" };
        let request = Request::get(format!("{}{path}{mark}{}", self.prefix, query.join("&")))
            .header(header::HOST, &self.authority)
            .header(header::ACCEPT, "application/json, text/plain;q=0.5")
            .body(String::new())
            .map_err(|error| failed(&error))?;
        let answering = async {
            let (parts, body) = sender
                .send_request(request)
                .await
                .map_err(|error| failed(&error))?
                .into_parts();
            let mut body = std::pin::pin!(body);
            let mut read = Vec::new();
            while let Some(frame) = std::future::poll_fn(|cx| body.as_mut().poll_frame(cx)).await {
                let data: Bytes = frame
                    .map_err(|error| failed(&error))?
                    .into_data()
                    .unwrap_or_default();
                if read.len() + data.len() > MAX_ANSWER {
                    return Err(format!("{self} answers more than {MAX_ANSWER} bytes"));
                }
                read.extend_from_slice(&data);
            }
            Ok(Answer {
                status: parts.status.as_u16(),
                body: String::from_utf8_lossy(&read).into_owned(),
            })
        };
        let mut answering = std::pin::pin!(answering);
        // The connection moves the bytes; it ends when the answer is read, or before when it breaks.
        tokio::select! {
            answer = &mut answering => answer,
            ended = connection => match ended {
                Ok(()) => answering.await,
                Err(error) => Err(failed(&error)),
            },
        }
    }
}

/// A value as it stands in a query, with everything escaped that is not plain.
fn escaped(value: &str) -> String {
    let mut escaped = String::with_capacity(value.len());
    for byte in value.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            escaped.push(byte.into());
        } else {
            escaped.push_str(&format!("%{byte:02X}"));
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_base_is_a_host_a_port_and_perhaps_a_prefix() {
        let base: BaseUrl = "http://[::1]:3200/tempo/".parse().unwrap();
        assert_eq!((base.host.as_str(), base.port), ("::1", 3_200));
        assert_eq!(base.to_string(), "http://[::1]:3200/tempo");
        assert_eq!("http://loki".parse::<BaseUrl>().unwrap().port, 80);
        for wrong in [
            "",
            "localhost:9090",
            "https://a",
            "http://",
            "http://a?b",
            "/path",
        ] {
            assert!(wrong.parse::<BaseUrl>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn queries_are_escaped() {
        assert_eq!(escaped("{a=\"b c\"}"), "%7Ba%3D%22b%20c%22%7D");
    }
}
