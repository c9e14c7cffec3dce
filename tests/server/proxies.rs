//! What proxies, load balancers and probes need from the server.

use std::time::Duration;

use chitchat::proto::chat_service_client::ChatServiceClient;
use chitchat::proto::{EventType, GetHistoryRequest, JoinMsgLeave, NoticeCode, SubscribeRequest};
use http::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use response_body::read_to_string;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::body::Body;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, IntoRequest};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_reflection::pb::v1::ServerReflectionRequest;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tonic_types::StatusExt;
use tower::{Service, ServiceExt};

use crate::harness::{Client, TIMEOUT, TestServer, join, join_wanting_welcome, wait_for_shutdown};

/// The body of a response, without its trailers.
mod response_body {
    use std::pin::Pin;

    use http_body::Body as _;
    use tonic::body::Body;

    pub async fn read_to_string(mut body: Body) -> String {
        let mut text = Vec::new();
        while let Some(frame) = std::future::poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
            text.extend(frame.unwrap().into_data().unwrap_or_default());
        }
        String::from_utf8(text).unwrap()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_is_not_grpc_is_refused_by_its_content_type() {
    let server = TestServer::start().await;
    let mut channel = server.channel().await;
    for path in [
        "/itu.chitchat.ChatService/Chat",
        "/itu.chitchat.ChatService/ListRooms",
        "/",
    ] {
        for content_type in [
            "application/json",
            "application/grpc-web",
            "application/grpc+json",
            "application/grpcs",
            "",
        ] {
            let request = Request::post(path)
                .header("content-type", content_type)
                .body(Body::new("{}".to_owned()))
                .unwrap();
            let response = channel.ready().await.unwrap().call(request).await.unwrap();
            assert_eq!(
                response.status(),
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "{content_type}"
            );
            let text = read_to_string(response.into_body()).await;
            assert!(text.contains("application/grpc"), "{text}");
        }
    }
    for content_type in [
        "application/grpc",
        "Application/gRPC+proto",
        "application/grpc; charset=utf-8",
    ] {
        let request = Request::post("/itu.chitchat.ChatService/ListRooms")
            .header("content-type", content_type)
            .header("te", "trailers")
            .body(Body::new("\0\0\0\0\0".to_owned()))
            .unwrap();
        let response = channel.ready().await.unwrap().call(request).await.unwrap();
        assert_eq!(response.status(), StatusCode::OK, "{content_type}");
    }
}

/// `message` with a deadline that tonic does not enforce by itself.
fn with_timeout<T>(message: impl IntoRequest<T>, timeout: &str) -> tonic::Request<T> {
    let mut request = message.into_request();
    request
        .metadata_mut()
        .insert("grpc-timeout", timeout.parse().unwrap());
    request
}

#[tokio::test(flavor = "multi_thread")]
async fn the_deadline_of_a_call_is_kept() {
    let server = TestServer::start().await;
    let mut chat = server.client().await;
    let _ada = server.join("Ada").await;

    let (sender, messages) = mpsc::channel(4);
    sender.send(join("Bob")).await.unwrap();
    let request = with_timeout(ReceiverStream::new(messages), "500m");
    let mut bob = chat.chat(request).await.unwrap().into_inner();
    let mut received = Vec::new();
    let status = loop {
        match bob.message().await {
            Ok(message) => received.extend(message),
            Err(status) => break status,
        }
    };
    assert_eq!(status.code(), Code::DeadlineExceeded, "{status}");
    assert_eq!(
        status.get_details_error_info().unwrap().reason,
        "DEADLINE_EXCEEDED"
    );
    assert_eq!(received[0].r#type(), EventType::Join);
    server
        .wait_for_metric(
            "chitchat_streams_ended_total{reason=\"deadline\",method=\"Chat\"}",
            1.0,
        )
        .await;

    let subscribe = with_timeout(SubscribeRequest::default(), "100m");
    let mut events = chat.subscribe(subscribe).await.unwrap().into_inner();
    let status = events.message().await.unwrap_err();
    assert_eq!(status.code(), Code::DeadlineExceeded, "{status}");

    let mut health = HealthClient::new(server.channel().await);
    let watch = with_timeout(HealthCheckRequest::default(), "100m");
    let mut states = health.watch(watch).await.unwrap().into_inner();
    states.message().await.unwrap();
    let status = states.message().await.unwrap_err();
    assert_eq!(status.code(), Code::DeadlineExceeded, "{status}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_unary_call_whose_deadline_is_over_is_not_answered() {
    let server = TestServer::start().await;
    let _ada = server.join("Ada").await;
    // tonic's channel would end the call by itself.
    let mut channel = server.channel().await;
    let message = prost::Message::encode_to_vec(&GetHistoryRequest::default());
    assert!(message.is_empty());
    let request = Request::post("/itu.chitchat.ChatService/GetHistory")
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .header("grpc-timeout", "0n")
        .body(Body::new("\0\0\0\0\0".to_owned()))
        .unwrap();
    match channel.ready().await.unwrap().call(request).await {
        Ok(response) => {
            let status = tonic::Status::from_header_map(response.headers()).unwrap();
            assert_eq!(status.code(), Code::DeadlineExceeded, "{status}");
        }
        Err(error) => assert!(format!("{error:?}").contains("TimeoutExpired"), "{error:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_health_watch_of_an_unknown_service_says_so_and_stays() {
    let server = TestServer::start().await;
    let mut health = HealthClient::new(server.channel().await);
    let request = HealthCheckRequest {
        service: "nobody".into(),
    };
    let status = health.check(request.clone()).await.unwrap_err();
    assert_eq!(status.code(), Code::NotFound);
    let mut states = health.watch(request).await.unwrap().into_inner();
    let state = states.message().await.unwrap().unwrap();
    assert_eq!(state.status(), ServingStatus::ServiceUnknown);
    // The stream ends when the server drains, and not before.
    let ended = tokio::spawn(async move { states.message().await });
    health.check(HealthCheckRequest::default()).await.unwrap();
    assert!(!ended.is_finished());
    server.shut_down().await;
    assert!(matches!(ended.await.unwrap(), Ok(None)));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_reflection_stream_does_not_hold_the_drain() {
    let server = TestServer::with(|config| config.drain_timeout = Duration::from_secs(3_600)).await;
    let mut reflection = ServerReflectionClient::new(server.channel().await);
    let (sender, requests) = mpsc::channel(4);
    let list = ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::ListServices(String::new())),
    };
    sender.send(list).await.unwrap();
    let mut answers = reflection
        .server_reflection_info(ReceiverStream::new(requests))
        .await
        .unwrap()
        .into_inner();
    answers.message().await.unwrap().unwrap();
    wait_for_shutdown(server.begin_drain()).await;
    assert!(matches!(answers.message().await, Ok(None)));
    drop(sender);
}

#[tokio::test(flavor = "multi_thread")]
async fn few_reflection_streams_are_open_at_a_time() {
    let server = TestServer::start().await;
    let channel = server.channel().await;
    let open = async || {
        let (sender, requests) = mpsc::channel(1);
        let mut client = ServerReflectionClient::new(channel.clone());
        let opened = client.server_reflection_info(ReceiverStream::new(requests)).await;
        opened.map(|response| (sender, response))
    };
    let mut streams = Vec::new();
    for _ in 0..24 {
        streams.push(open().await.unwrap());
    }
    let refused = open().await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted);
    drop(streams.pop());
    let opening = async {
        while open().await.is_err() {
            tokio::task::yield_now().await;
        }
    };
    timeout(TIMEOUT, opening).await.expect("its place is free again");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_reaches_its_age_is_told_to_connect_again() {
    let server = TestServer::with(|config| {
        config.transport.max_stream_age = Some(Duration::from_secs(1));
        config.hub.resume_grace = Duration::from_secs(60);
    })
    .await;
    let (mut ada, welcome) = server.join_with(join_wanting_welcome("Ada")).await;
    let joined = ada.next().await;
    let notice = ada.next().await.notice.unwrap();
    assert_eq!(notice.code(), NoticeCode::Reconnect);
    let status = ada.end().await;
    assert_eq!(status.code(), Code::Unavailable, "{status}");
    assert_eq!(status.get_details_error_info().unwrap().reason, "STREAM_AGED");
    // Nobody notices: the session is resumed.
    let resume = JoinMsgLeave {
        session_token: welcome.session_token,
        resume: Some(chitchat::proto::ResumePoint {
            epoch: joined.epoch,
            sequence: joined.sequence,
        }),
        ..join_wanting_welcome("Ada")
    };
    let (_ada, welcome) = server.join_with(resume).await;
    assert!(welcome.recovered);
    let mut alex = Client::open(server.channel().await).await;
    alex.send(join("Alex")).await;
    // No notice, which the first version does not know.
    assert_eq!(alex.next().await.sequence, joined.sequence + 1);
    assert_eq!(alex.end().await.code(), Code::Unavailable);
}

/// A header of the PROXY protocol for a client with this IPv4 address.
fn proxy_header(client: [u8; 4]) -> Vec<u8> {
    let fixed = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c";
    [fixed, &client[..], &[127, 0, 0, 1, 0x12, 0x34, 0, 80]].concat()
}

/// Connects like a proxy for a client with this address.
async fn proxied(server: &TestServer, client: [u8; 4]) -> Result<Channel, tonic::transport::Error> {
    let address = server.listen;
    let connector = tower::service_fn(move |_| async move {
        let mut stream = TcpStream::connect(address).await?;
        stream.write_all(&proxy_header(client)).await?;
        Ok::<_, std::io::Error>(TokioIo::new(stream))
    });
    let endpoint = Endpoint::from_static("http://localhost");
    endpoint.connect_with_connector(connector).await
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_per_address_see_the_clients_behind_a_listed_proxy() {
    let server = TestServer::with(|config| {
        config.proxies = vec!["127.0.0.0/8".parse().unwrap()];
        config.transport.max_connections_per_address = 1;
    })
    .await;
    // Connections that have sent nothing yet are nobody's, and delay nobody.
    let mut silent = Vec::new();
    for _ in 0..50 {
        silent.push(TcpStream::connect(server.listen).await.unwrap());
    }
    let mut clients = Vec::new();
    for (address, name) in [([192, 0, 2, 1], "Ada"), ([192, 0, 2, 2], "Bob")] {
        let mut client = Client::open(proxied(&server, address).await.unwrap()).await;
        client.send(join(name)).await;
        client.next().await;
        clients.push(client);
    }
    let mut again = ChatServiceClient::new(proxied(&server, [192, 0, 2, 1]).await.unwrap());
    let status = again.chat(tokio_stream::pending()).await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted, "{status}");

    // A listed proxy must say whom it connects.
    let mut stream = TcpStream::connect(server.listen).await.unwrap();
    stream
        .write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
        .await
        .unwrap();
    server
        .wait_for_metric("chitchat_connections_refused_total{reason=\"proxy_header\"}", 1.0)
        .await;
    drop(silent);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_is_no_listed_proxy_cannot_choose_its_address() {
    let server = TestServer::with(|config| config.proxies = vec!["192.0.2.0/24".parse().unwrap()]).await;
    let mut stream = TcpStream::connect(server.listen).await.unwrap();
    stream.write_all(&proxy_header([198, 51, 100, 7])).await.unwrap();
    server
        .wait_for_metric("chitchat_connections_refused_total{reason=\"protocol\"}", 1.0)
        .await;
    server.join("Ada").await;
}
