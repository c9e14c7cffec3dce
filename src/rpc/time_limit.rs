//! The time limits of a call: the deadline that its client sets, and the age that a stream may reach.

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body as HttpBody, Frame};
use rand::Rng;
use tokio::time::{Instant, Sleep, sleep_until};
use tonic::Status;
use tonic::body::Body;

use super::error::{RpcError, trailers};
use crate::reason::Reason;

/// Longer deadlines are ignored.
const MAX_DEADLINE: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// The deadline of a call, from the header `grpc-timeout`: up to eight digits and a unit.
pub(super) fn deadline(headers: &HeaderMap) -> Option<Instant> {
    let value = headers.get("grpc-timeout")?.to_str().ok()?;
    let (digits, unit) = value.split_at_checked(value.len().checked_sub(1)?)?;
    if digits.len() > 8 || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let count: u64 = digits.parse().ok()?;
    let timeout = match unit {
        "H" => Duration::from_secs(count * 3_600),
        "M" => Duration::from_secs(count * 60),
        "S" => Duration::from_secs(count),
        "m" => Duration::from_millis(count),
        "u" => Duration::from_micros(count),
        "n" => Duration::from_nanos(count),
        _ => return None,
    };
    (timeout <= MAX_DEADLINE).then(|| Instant::now() + timeout)
}

fn deadline_exceeded() -> RpcError {
    RpcError::new(Reason::DeadlineExceeded, "the deadline of the call is over")
}

/// Waits for `response` until `deadline`.
pub(super) async fn respond_by<T>(
    deadline: Option<Instant>,
    response: impl Future<Output = Result<T, RpcError>>,
) -> Result<T, RpcError> {
    let Some(deadline) = deadline else {
        return response.await;
    };
    let (mut sleep, mut response) = (pin!(sleep_until(deadline)), pin!(response));
    poll_fn(|cx| match sleep.as_mut().poll(cx) {
        Poll::Ready(()) => Poll::Ready(Err(deadline_exceeded())),
        Poll::Pending => response.as_mut().poll(cx),
    })
    .await
}

/// How long a stream may last.
pub(super) struct StreamLimit {
    /// The limit that is reached first.
    limit: Option<(Pin<Box<Sleep>>, Reason)>,
}

impl StreamLimit {
    /// The limit of a stream with these request headers. `max_age` is varied by up to a tenth, so that streams that have begun
    /// together do not end together.
    pub(super) fn new(headers: &HeaderMap, max_age: Option<Duration>) -> Self {
        let jitter = || rand::rng().random_range(0.9..1.1);
        let age = max_age.map(|age| (Instant::now() + age.mul_f64(jitter()), Reason::StreamAged));
        let deadline = deadline(headers).map(|at| (at, Reason::DeadlineExceeded));
        let first = deadline.into_iter().chain(age).min_by_key(|(at, _)| *at);
        Self {
            limit: first.map(|(at, reason)| (Box::pin(sleep_until(at)), reason)),
        }
    }

    /// Ready, once, with the error that ends the stream.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<RpcError> {
        let Some((sleep, reason)) = &mut self.limit else {
            return Poll::Pending;
        };
        ready!(sleep.as_mut().poll(cx));
        let error = match reason {
            Reason::StreamAged => {
                RpcError::new(*reason, "the stream has reached its maximum age; connect again")
            }
            _ => deadline_exceeded(),
        };
        self.limit = None;
        Poll::Ready(error)
    }
}

/// A response body that ends at a deadline.
pub(super) struct LimitedBody {
    body: Option<Body>,
    sleep: Pin<Box<Sleep>>,
}

impl LimitedBody {
    pub(super) fn new(body: Body, deadline: Instant) -> Self {
        Self {
            body: Some(body),
            sleep: Box::pin(sleep_until(deadline)),
        }
    }
}

impl HttpBody for LimitedBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = &mut *self;
        let Some(body) = &mut this.body else {
            return Poll::Ready(None);
        };
        if this.sleep.as_mut().poll(cx).is_ready() {
            this.body = None;
            return Poll::Ready(Some(trailers(&deadline_exceeded().to_status())));
        }
        Pin::new(body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(HttpBody::is_end_stream)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(timeout: &str) -> HeaderMap {
        HeaderMap::from_iter([("grpc-timeout".parse().unwrap(), timeout.parse().unwrap())])
    }

    #[tokio::test(start_paused = true)]
    async fn a_timeout_has_a_unit() {
        for (value, expected) in [
            ("2H", Some(Duration::from_secs(7_200))),
            ("3M", Some(Duration::from_secs(180))),
            ("99999999S", None),
            ("5S", Some(Duration::from_secs(5))),
            ("250m", Some(Duration::from_millis(250))),
            ("7u", Some(Duration::from_micros(7))),
            ("0n", Some(Duration::ZERO)),
            ("123456789n", None),
            ("5", None),
            ("S", None),
            ("", None),
            ("-1S", None),
            ("+1S", None),
            ("1s", None),
            ("1\u{e4}", None),
        ] {
            let Ok(value) = http::HeaderValue::from_bytes(value.as_bytes()) else {
                continue;
            };
            let mut headers = HeaderMap::new();
            headers.insert("grpc-timeout", value.clone());
            let found = deadline(&headers).map(|at| at - Instant::now());
            assert_eq!(found, expected, "{value:?}");
        }
        assert!(deadline(&HeaderMap::new()).is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn the_limit_that_is_reached_first_ends_a_stream() {
        let begin = Instant::now();
        for (timeout, age, reason, seconds) in [
            ("5S", None, Reason::DeadlineExceeded, 5.0..5.1),
            ("1H", Some(100), Reason::StreamAged, 90.0..110.1),
            ("5S", Some(100), Reason::DeadlineExceeded, 5.0..5.1),
        ] {
            let now = Instant::now();
            let mut limit = StreamLimit::new(&headers(timeout), age.map(Duration::from_secs));
            let error = poll_fn(|cx| limit.poll(cx)).await;
            assert_eq!(error.reason(), reason);
            assert!(
                seconds.contains(&now.elapsed().as_secs_f64()),
                "{:?}",
                begin.elapsed()
            );
        }
    }
}
