//! Tells the answers of a gRPC server from those of a proxy before it.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode};
use http_body::{Body as HttpBody, Frame};
use tonic::body::Body;
use tonic::codegen::Service;
use tonic::transport::{Channel, Error};
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

/// A channel whose requests have the token, if there is one, and whose responses have a gRPC status, always.
///
/// tonic decodes whatever it receives: of the web page with which a proxy answers when it does not reach the server it says that
/// the compression flag is 60, which is `<`.
#[derive(Debug, Clone)]
pub(super) struct GrpcChannel {
    channel: Channel,
    authorization: Option<HeaderValue>,
}

impl GrpcChannel {
    pub(super) const fn new(channel: Channel, authorization: Option<HeaderValue>) -> Self {
        Self {
            channel,
            authorization,
        }
    }
}

impl Service<Request<Body>> for GrpcChannel {
    type Response = Response<Body>;
    type Error = Error;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        self.channel.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        if let Some(authorization) = &self.authorization {
            request.headers_mut().insert(AUTHORIZATION, authorization.clone());
        }
        let response = self.channel.call(request);
        Box::pin(async move {
            let response = response.await?;
            if let Some(status) = status_from_http(response.status(), response.headers()) {
                return Ok(status.into_http());
            }
            let has_status = response.headers().contains_key(Status::GRPC_STATUS);
            Ok(response.map(|body| Body::new(CompleteBody { body, has_status })))
        })
    }
}

/// The status for a response that is not one of gRPC.
fn status_from_http(http: StatusCode, headers: &HeaderMap) -> Option<Status> {
    let content_type = headers.get(CONTENT_TYPE).map(|value| value.as_bytes());
    let is_grpc = content_type.is_some_and(|value| value.starts_with(b"application/grpc"));
    if headers.contains_key(Status::GRPC_STATUS) || (http == StatusCode::OK && is_grpc) {
        return None;
    }
    // https://github.com/grpc/grpc/blob/master/doc/http-grpc-status-mapping.md, which however knows only some codes of proxies.
    let code = match http {
        StatusCode::BAD_REQUEST => Code::Internal,
        StatusCode::UNAUTHORIZED => Code::Unauthenticated,
        StatusCode::FORBIDDEN => Code::PermissionDenied,
        StatusCode::NOT_FOUND => Code::Unimplemented,
        StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS => Code::Unavailable,
        http if http.is_server_error() => Code::Unavailable,
        _ => Code::Unknown,
    };
    let message = format!("the answer is not from a chat server: HTTP {http}");
    let retry_after = headers
        .get(RETRY_AFTER)
        .and_then(|value| value.to_str().ok()?.parse().ok());
    let Some(seconds) = retry_after else {
        return Some(Status::new(code, message));
    };
    let details = ErrorDetails::with_retry_info(Some(Duration::from_secs(seconds)));
    Some(Status::with_error_details(code, message, details))
}

/// A response body that fails if it ends without a status, as when a proxy loses its server. tonic would report that the status is
/// unknown, which is not a reason to try again.
struct CompleteBody {
    body: Body,
    has_status: bool,
}

impl HttpBody for CompleteBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        match &frame {
            Some(Ok(frame)) if frame.is_trailers() => self.has_status = true,
            None if !self.has_status => {
                self.has_status = true;
                let lost = "the answer ended without a status, as when a proxy loses the server";
                return Poll::Ready(Some(Err(Status::unavailable(lost))));
            }
            _ => {}
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.has_status && self.body.is_end_stream()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_proxies_answer_is_an_outage_or_a_mistake() {
        let html = HeaderMap::from_iter([(CONTENT_TYPE, "text/html".parse().unwrap())]);
        for (http, code) in [
            (429, Code::Unavailable),
            (502, Code::Unavailable),
            (503, Code::Unavailable),
            (504, Code::Unavailable),
            (522, Code::Unavailable),
            (404, Code::Unimplemented),
            (403, Code::PermissionDenied),
            (200, Code::Unknown),
        ] {
            let status = status_from_http(StatusCode::from_u16(http).unwrap(), &html).unwrap();
            assert_eq!(status.code(), code, "{status}");
            assert!(status.message().contains(&http.to_string()), "{status}");
        }
        let grpc = HeaderMap::from_iter([(CONTENT_TYPE, "application/grpc+proto".parse().unwrap())]);
        assert!(status_from_http(StatusCode::OK, &grpc).is_none());
        assert!(status_from_http(StatusCode::BAD_GATEWAY, &grpc).is_some());
    }

    #[test]
    fn the_delay_that_a_proxy_asks_for_is_kept() {
        let headers = HeaderMap::from_iter([(RETRY_AFTER, "7".parse().unwrap())]);
        let status = status_from_http(StatusCode::SERVICE_UNAVAILABLE, &headers).unwrap();
        let delay = status.get_details_retry_info().unwrap().retry_delay;
        assert_eq!(delay, Some(Duration::from_secs(7)));
    }
}
