//! HTTP requests to the servers beside this one: telemetry backends, and the monitoring ports of NATS.

use std::str::FromStr;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Uri, header};
use http_body::Body as _;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpStream;
use tokio::time::timeout;

/// Timeout for one request.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Limit for the body of a response in bytes.
const MAX_BODY: usize = 8 << 20;

/// The base URL of a backend: `http://host:port`, optionally with a path prefix.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct BaseUrl {
    authority: String,
    host: String,
    port: u16,
    prefix: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Response {
    pub(super) status: u16,
    pub(super) body: String,
}

impl FromStr for BaseUrl {
    type Err = String;

    fn from_str(raw: &str) -> Result<Self, String> {
        let expected = || format!("{raw:?} is not a URL like http://127.0.0.1:9090");
        let uri: Uri = raw.parse().map_err(|_| expected())?;
        let (Some("http"), Some(host), None) = (uri.scheme_str(), uri.host(), uri.query()) else {
            return Err(expected());
        };
        let port = uri.port_u16().unwrap_or(80);
        Ok(Self {
            authority: format!("{host}:{port}"),
            // The resolver expects an IPv6 address without brackets.
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
    /// Sends a GET request for `path`, which begins with a slash, with these query parameters.
    ///
    /// # Errors
    /// A line for users if the request fails, has no complete response within [`TIMEOUT`], or has a response longer than
    /// [`MAX_BODY`]. A response with any status is not an error.
    pub(super) async fn get(&self, path: &str, parameters: &[(&str, &str)]) -> Result<Response, String> {
        match timeout(TIMEOUT, self.request(path, parameters)).await {
            Ok(response) => response,
            Err(_) => Err(format!("{self} did not answer within {TIMEOUT:?}")),
        }
    }

    /// Gets `path` and parses the response as JSON. The error is a line for users.
    pub(super) async fn get_json(&self, path: &str, parameters: &[(&str, &str)]) -> Result<Value, String> {
        let answer = self.get(path, parameters).await?;
        match answer.status {
            200 => serde_json::from_str(&answer.body)
                .map_err(|_| format!("{self}{path} does not answer with JSON")),
            status => Err(format!("{self}{path} answers with status {status}")),
        }
    }

    async fn request(&self, path: &str, parameters: &[(&str, &str)]) -> Result<Response, String> {
        let failed = |error: &dyn std::fmt::Display| format!("cannot query {self}: {error}");
        let stream = TcpStream::connect((self.host.as_str(), self.port))
            .await
            .map_err(|error| failed(&error))?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| failed(&error))?;
        let query: Vec<_> = parameters
            .iter()
            .map(|(name, value)| format!("{name}={}", percent_encode(value)))
            .collect();
        let mark = if query.is_empty() { "" } else { "?" };
        let request = Request::get(format!("{}{path}{mark}{}", self.prefix, query.join("&")))
            .header(header::HOST, &self.authority)
            .header(header::ACCEPT, "application/json, text/plain;q=0.5")
            .body(String::new())
            .map_err(|error| failed(&error))?;
        let response = async {
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
                if read.len() + data.len() > MAX_BODY {
                    return Err(format!("the response of {self} has more than {MAX_BODY} bytes"));
                }
                read.extend_from_slice(&data);
            }
            Ok(Response {
                status: parts.status.as_u16(),
                body: String::from_utf8_lossy(&read).into_owned(),
            })
        };
        let mut response = std::pin::pin!(response);
        // Polling the connection drives the request. It may complete before the response has been read from its buffer.
        tokio::select! {
            response = &mut response => response,
            ended = connection => match ended {
                Ok(()) => response.await,
                Err(error) => Err(failed(&error)),
            },
        }
    }
}

fn percent_encode(value: &str) -> String {
    let mut encoded = String::with_capacity(value.len());
    for byte in value.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            encoded.push(byte.into());
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_base_url_may_have_a_path_prefix() {
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
    fn query_parameters_are_percent_encoded() {
        assert_eq!(percent_encode("{a=\"b c\"}"), "%7Ba%3D%22b%20c%22%7D");
    }
}
