//! The client behind a proxy that answers in place of the server.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

mod fake_server;

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use chitchat::client::{ConnectOptions, Event, JoinOptions, Publisher, RetryPolicy, ServerAddress, Session};
use fake_server::FakeServer;
use http::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;
use tokio_stream::StreamExt as _;
use tonic::body::Body;
use tonic::transport::Endpoint;
use tower::{Service as _, ServiceExt as _, service_fn};

/// What the proxy answers.
type Answer = fn() -> Response<Body>;

fn html(code: u16) -> Response<Body> {
    let page = "<html><body>the upstream server is not there</body></html>";
    Response::builder()
        .status(code)
        .header("content-type", "text/html")
        .body(Body::new(page.to_owned()))
        .unwrap()
}

fn empty(code: u16) -> Response<Body> {
    Response::builder().status(code).body(Body::empty()).unwrap()
}

/// A response of gRPC that was cut before its trailers.
fn without_trailers() -> Response<Body> {
    Response::builder()
        .header("content-type", "application/grpc")
        .body(Body::empty())
        .unwrap()
}

const OUTAGES: [Answer; 6] = [
    || html(502),
    || html(503),
    || html(429),
    || empty(504),
    || empty(503),
    without_trailers,
];

/// A proxy before a server. It answers by itself as often as [`Gateway::fail`] says.
struct Gateway {
    address: ServerAddress,
    server: FakeServer,
    failures: Arc<AtomicU32>,
}

impl Gateway {
    async fn start(answer: Answer) -> Self {
        let server = FakeServer::start().await;
        let failures = Arc::new(AtomicU32::new(0));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string().parse().unwrap();
        tokio::spawn(forward(listener, server.address, answer, Arc::clone(&failures)));
        Self {
            address,
            server,
            failures,
        }
    }

    fn fail(&self, times: u32) {
        self.failures.store(times, Ordering::SeqCst);
    }
}

async fn forward(listener: TcpListener, server: SocketAddr, answer: Answer, failures: Arc<AtomicU32>) {
    let upstream = Endpoint::from_shared(format!("http://{server}"))
        .unwrap()
        .connect_lazy();
    loop {
        let (socket, _) = listener.accept().await.unwrap();
        let (upstream, failures) = (upstream.clone(), Arc::clone(&failures));
        let service = service_fn(move |request: Request<hyper::body::Incoming>| {
            let mut upstream = upstream.clone();
            let fails = failures
                .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1))
                .is_ok();
            async move {
                if fails {
                    return Ok::<_, Infallible>(answer());
                }
                let ready = upstream.ready().await.unwrap();
                Ok(ready.call(request.map(Body::new)).await.unwrap())
            }
        });
        let connection = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
            .serve_connection(TokioIo::new(socket), TowerToHyperService::new(service));
        tokio::spawn(connection);
    }
}

fn quick() -> RetryPolicy {
    RetryPolicy {
        base_delay: Duration::from_millis(1),
        ..RetryPolicy::default()
    }
}

#[tokio::test]
async fn a_message_is_published_after_an_outage_behind_a_proxy() {
    for answer in OUTAGES {
        let gateway = Gateway::start(answer).await;
        let options = ConnectOptions::default();
        let mut publisher = Publisher::open(&gateway.address, &options, quick(), "bot", "")
            .await
            .unwrap();
        gateway.fail(3);
        let ack = publisher.publish("hello").await.unwrap();
        assert_eq!(ack.broadcast.msg_stream, "hello");
        assert_eq!(gateway.failures.load(Ordering::SeqCst), 0);
    }
}

#[tokio::test]
async fn a_session_survives_an_outage_behind_a_proxy() {
    for answer in OUTAGES {
        let gateway = Gateway::start(answer).await;
        let options = ConnectOptions::default();
        let mut session = Session::join(&gateway.address, &options, quick(), JoinOptions::new("Ada"))
            .await
            .unwrap();
        while !matches!(session.try_next().await.unwrap(), Some(Event::Message(_))) {}
        gateway.fail(3);
        gateway.server.drain();
        session.send("still here").unwrap();
        let mut attempts = 0;
        loop {
            match session.try_next().await.unwrap().unwrap() {
                Event::Reconnecting { attempt, .. } => attempts = attempt,
                Event::Message(message) if message.msg_stream == "still here" => break,
                _ => {}
            }
        }
        assert!(attempts >= 4, "{attempts}");
    }
}

#[tokio::test]
async fn a_web_server_is_not_taken_for_an_outage() {
    let gateway = Gateway::start(|| html(200)).await;
    let options = ConnectOptions::default();
    let mut publisher = Publisher::open(&gateway.address, &options, quick(), "bot", "")
        .await
        .unwrap();
    gateway.fail(1);
    let error = publisher.publish("hello").await.unwrap_err();
    assert!(!error.is_transient(), "{error}");
    assert!(
        error.to_string().contains("not from a chat server: HTTP 200"),
        "{error}"
    );
}
