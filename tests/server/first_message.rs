//! Streams without a first message. They run without a network, so that the clock can be paused.

use std::convert::Infallible;
use std::future::{poll_fn, ready};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use chitchat::domain::Rules;
use chitchat::hub::{Hub, HubOptions};
use chitchat::rpc::{RateLimits, Rates, StreamingService};
use chitchat::store::{MemoryStore, Retention};
use chitchat::telemetry::{Metrics, OtlpPipeline, TelemetryObserver};
use http::{Request, Response};
use http_body::{Body as _, Frame};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tonic::body::Body;
use tonic::{Code, Status};
use tonic_types::StatusExt as _;
use tower::{ServiceExt as _, service_fn};

/// A request body that never sends a frame and never ends.
struct Silence;

impl http_body::Body for Silence {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        Poll::Pending
    }
}

/// The status with which a stream of `method` without a first message ends.
async fn status_without_first_message(method: &str) -> Status {
    let metrics = Arc::new(Metrics::new(1, OtlpPipeline::default()));
    let observer = Arc::new(TelemetryObserver::new(metrics, None));
    let store = Arc::new(MemoryStore::new(Retention::ON_DISK, 1));
    let hub = Hub::new(
        Rules::default(),
        HubOptions::default(),
        store,
        &[0; 32],
        observer.clone(),
    );
    let others = service_fn(|_: Request<Body>| ready(Ok::<_, Infallible>(Response::new(Body::empty()))));
    let rates = Arc::new(Rates::new(RateLimits::default()));
    let route = StreamingService::new(others, hub, CancellationToken::new(), rates, None, observer);
    let request = Request::post(format!("/itu.chitchat.ChatService/{method}"))
        .header("content-type", "application/grpc")
        .body(Body::new(Silence))
        .unwrap();
    let mut body = route.oneshot(request).await.unwrap().into_body();
    let last = poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await;
    Status::from_header_map(last.unwrap().unwrap().trailers_ref().unwrap()).unwrap()
}

#[tokio::test(start_paused = true)]
async fn the_first_message_must_arrive_within_a_minute() {
    for (method, reason) in [("Chat", "JOIN_TIMEOUT"), ("Subscribe", "REQUEST_TIMEOUT")] {
        let opened = Instant::now();
        let ended =
            tokio::time::timeout(Duration::from_secs(3_600), status_without_first_message(method)).await;
        let status = ended.expect("the stream ends");
        assert_eq!(status.code(), Code::DeadlineExceeded, "{method}");
        assert_eq!(status.get_details_error_info().unwrap().reason, reason);
        assert_eq!(opened.elapsed().as_secs(), 60, "{method}");
    }
}
