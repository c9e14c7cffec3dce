//! Streams that are opened and on which nothing is said. Without a network, so that time passes as it is told to.

use std::convert::Infallible;
use std::future::{poll_fn, ready};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use chitchat::domain::Rules;
use chitchat::hub::{Hub, HubOptions};
use chitchat::rpc::ChatRoute;
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

/// What a client sends that opens a stream, says nothing and stays.
struct Silence;

impl http_body::Body for Silence {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        Poll::Pending
    }
}

/// The status with which a silent stream of `method` ends.
async fn end_of_silence(method: &str) -> Status {
    let metrics = Arc::new(Metrics::new(1, OtlpPipeline::default()));
    let report = Arc::new(TelemetryObserver::new(metrics, None));
    let store = Arc::new(MemoryStore::new(Retention::ON_DISK, 1));
    let hub = Hub::new(
        Rules::default(),
        HubOptions::default(),
        store,
        &[0; 32],
        report.clone(),
    );
    let others = service_fn(|_: Request<Body>| ready(Ok::<_, Infallible>(Response::new(Body::empty()))));
    let route = ChatRoute::new(others, hub, CancellationToken::new(), report);
    let request = Request::post(format!("/itu.chitchat.ChatService/{method}"))
        .body(Body::new(Silence))
        .unwrap();
    let mut body = route.oneshot(request).await.unwrap().into_body();
    let last = poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await;
    Status::from_header_map(last.unwrap().unwrap().trailers_ref().unwrap()).unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_stream_has_a_minute_to_begin() {
    for (method, reason) in [("Chat", "JOIN_TIMEOUT"), ("Subscribe", "REQUEST_TIMEOUT")] {
        let opened = Instant::now();
        let ended = tokio::time::timeout(Duration::from_secs(3_600), end_of_silence(method)).await;
        let status = ended.expect("a silent stream ends");
        assert_eq!(status.code(), Code::DeadlineExceeded, "{method}");
        assert_eq!(status.get_details_error_info().unwrap().reason, reason);
        assert_eq!(opened.elapsed().as_secs(), 60, "{method}");
    }
}
