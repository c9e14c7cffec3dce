//! TLS of the gRPC port.

use std::io::Write as _;
use std::path::Path;
use std::time::Duration;

use chitchat::rpc::TlsFiles;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{AlertDescription, ClientConfig};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tonic::Code;
use tonic_types::StatusExt;

use crate::certificates::{Authority, Issued};
use crate::harness::{Client, TIMEOUT, TestServer, join};
use crate::raw_http2::{ACK, PING, frame, preface};
use crate::tls_client::{channel, client_config, connect};

/// An authority, and a server for `localhost` with a certificate from it.
struct Encrypted {
    directory: TempDir,
    authority: Authority,
    issued: Issued,
    server: TestServer,
}

impl Encrypted {
    async fn start() -> Self {
        Self::with(|_, _, _| {}).await
    }

    async fn with(change: impl FnOnce(&mut chitchat::config::Config, &mut TlsFiles, &Path)) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let authority = Authority::new("test");
        authority.write(directory.path().join("ca.pem"));
        let issued = authority.issue(directory.path(), "server", &["localhost"]);
        let mut files = TlsFiles {
            certificate: issued.certificate.clone(),
            key: issued.key.clone(),
            client_ca: None,
        };
        let server = TestServer::with(|config| {
            change(config, &mut files, directory.path());
            config.tls = Some(files);
        })
        .await;
        Self {
            directory,
            authority,
            issued,
            server,
        }
    }

    fn client_config(&self, identity: Option<&Issued>) -> ClientConfig {
        client_config(self.directory.path(), identity)
    }

    async fn join(&self, name: &str) -> Client {
        let channel = channel(self.server.listen, self.client_config(None))
            .await
            .unwrap();
        let mut client = Client::open(channel).await;
        client.send(join(name)).await;
        assert_eq!(client.next().await.sender_name, name);
        client
    }
}

fn refused(reason: &str) -> String {
    format!("chitchat_connections_refused_total{{reason=\"{reason}\"}}")
}

fn reloads(outcome: &str) -> String {
    format!("chitchat_tls_reloads_total{{outcome=\"{outcome}\"}}")
}

/// The beginning of a handshake: a record that contains the first bytes of a ClientHello of 60,000 bytes.
fn begun_handshake(payload: usize) -> Vec<u8> {
    let mut record = vec![22, 3, 1];
    record.extend(u16::try_from(payload).unwrap().to_be_bytes());
    let mut hello = vec![1, 0, 0xea, 0x60, 3, 3];
    hello.resize(payload, 7);
    record.extend(hello);
    record
}

async fn read_to_end(stream: &mut TcpStream) -> Vec<u8> {
    let mut received = Vec::new();
    // The connection may be reset.
    let reading = stream.read_to_end(&mut received);
    timeout(TIMEOUT, reading)
        .await
        .expect("the connection is closed")
        .ok();
    received
}

#[tokio::test(flavor = "multi_thread")]
async fn participants_chat_over_tls() {
    let encrypted = Encrypted::with(|config, _, _| config.transport.budgets.unread = 256 << 10).await;
    let mut ada = encrypted.join("Ada").await;
    let bob = encrypted.join("Bob").await;
    assert_eq!(ada.next().await.sender_name, "Bob");
    // More than one TLS record and one buffer of the connection.
    let text = "x".repeat(2_000);
    for _ in 0..200 {
        bob.say(0, &text).await;
    }
    for _ in 0..200 {
        assert_eq!(ada.next_line().await.2, text);
    }
    let expiry = "chitchat_tls_certificate_expiry_timestamp_seconds";
    assert_eq!(encrypted.server.metric(expiry).await, 32_535_216_000.0);
    encrypted.server.shut_down().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn half_open_handshakes_delay_nobody_and_are_closed() {
    const HALF_OPEN: usize = 1_000;
    chitchat::config::raise_fd_limit();
    let encrypted = Encrypted::with(|config, _, _| {
        config.transport.handshake_timeout = Duration::from_secs(3);
    })
    .await;
    let mut half_open = Vec::new();
    for _ in 0..HALF_OPEN {
        let mut stream = TcpStream::connect(encrypted.server.listen).await.unwrap();
        stream.write_all(&begun_handshake(100)).await.unwrap();
        half_open.push(stream);
    }
    encrypted.join("Ada").await;
    for stream in &mut half_open {
        read_to_end(stream).await;
    }
    let metric = refused("handshake");
    encrypted.server.wait_for_metric(&metric, HALF_OPEN as f64).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_may_not_begin_too_many_handshakes() {
    let encrypted = Encrypted::with(|config, _, _| {
        config.transport.rates.handshakes = 1;
        config.transport.max_connections_per_address = 8;
    })
    .await;
    let mut closed = 0.0;
    // One after the other, so the limit of connections is not reached.
    for _ in 0..30 {
        let mut stream = TcpStream::connect(encrypted.server.listen).await.unwrap();
        stream.write_all(&begun_handshake(100)).await.unwrap();
        stream.shutdown().await.unwrap();
        read_to_end(&mut stream).await;
        closed += 1.0;
    }
    let address = encrypted.server.metric(&refused("address")).await;
    let handshake = encrypted.server.metric(&refused("handshake")).await;
    assert!(handshake >= 8.0 && address >= 1.0, "{handshake} {address}");
    encrypted
        .server
        .wait_for_metric("chitchat_connections_refused_total", closed)
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handshake_has_a_maximum_length() {
    let encrypted = Encrypted::start().await;
    let mut stream = TcpStream::connect(encrypted.server.listen).await.unwrap();
    for _ in 0..2 {
        stream.write_all(&begun_handshake(16_000)).await.unwrap();
    }
    read_to_end(&mut stream).await;
    encrypted.server.wait_for_metric(&refused("handshake"), 1.0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn incomplete_records_count_as_unread() {
    let encrypted = Encrypted::with(|config, _, _| config.transport.budgets.unread = 1 << 20).await;
    let mut ada = encrypted.join("Ada").await;
    let mut stalled = Vec::new();
    for _ in 0..100 {
        let mut stream = connect(encrypted.server.listen, encrypted.client_config(None))
            .await
            .unwrap();
        // The preface, and SETTINGS.
        stream
            .write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0")
            .await
            .unwrap();
        stream.flush().await.unwrap();
        let mut stream = stream.into_inner().0;
        // A record of 16,384 bytes that lacks most of its end. The connection may be closed already.
        stream.write_all(&[23, 3, 3, 0x40, 0]).await.ok();
        stream.write_all(&[7; 16_000]).await.ok();
        stalled.push(stream);
    }
    let cut = "chitchat_connections_cut_total{reason=\"unread\"}";
    let is_cut = async {
        while encrypted.server.metric(cut).await < 10.0 {
            tokio::task::yield_now().await;
        }
    };
    timeout(TIMEOUT, is_cut)
        .await
        .expect("more than three quarters of the budget are not held");
    ada.say(0, "hello").await;
    assert_eq!(ada.next_line().await.2, "hello");
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_changes_its_keys_all_the_time_is_read_from_slowly() {
    let encrypted = Encrypted::start().await;
    let listen = encrypted.server.listen;
    let mut stream = connect(listen, encrypted.client_config(None)).await.unwrap();
    stream.write_all(&preface(65_535)).await.unwrap();
    let ping = frame(PING, 0, 0, &[7; 8]);
    let throttled = "chitchat_throttled_total{limit=\"short_frames\"}";
    // 8,192 short records may come at once: 62 with each PING, whose end is one, too.
    let mut pings = 0;
    while encrypted.server.metric(throttled).await == 0.0 {
        assert!(pings < 1_000, "it is not throttled");
        pings += 1;
        let (socket, tls) = stream.get_mut();
        let mut records = Vec::new();
        for part in ping.chunks(9) {
            for _ in 0..31 {
                tls.refresh_traffic_keys().unwrap();
            }
            tls.writer().write_all(part).unwrap();
            while tls.wants_write() {
                tls.write_tls(&mut records).unwrap();
            }
        }
        timeout(TIMEOUT, socket.write_all(&records))
            .await
            .unwrap()
            .unwrap();
    }
    assert!(pings >= 130, "{pings}");
    // It is served nevertheless, and so are others.
    let mut answers = Vec::new();
    let is_ping = |answers: &[u8]| {
        let answer = frame(PING, ACK, 0, &[7; 8]);
        answers.windows(answer.len()).any(|part| part == answer)
    };
    while !is_ping(&answers) {
        let reading = stream.read_buf(&mut answers);
        assert!(timeout(TIMEOUT, reading).await.unwrap().unwrap() > 0);
    }
    encrypted.join("Ada").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn handshakes_count_as_connections_of_their_address() {
    let encrypted = Encrypted::with(|config, _, _| {
        config.transport.max_connections_per_address = 1;
    })
    .await;
    let mut begun = TcpStream::connect(encrypted.server.listen).await.unwrap();
    begun.write_all(&begun_handshake(100)).await.unwrap();
    encrypted
        .server
        .wait_for_metric("chitchat_connections_open", 1.0)
        .await;
    let channel = channel(encrypted.server.listen, encrypted.client_config(None))
        .await
        .unwrap();
    let mut chat = chitchat::proto::chat_service_client::ChatServiceClient::new(channel);
    let status = chat.chat(tokio_stream::pending()).await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted, "{status}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_without_tls_is_told_that_it_is_required() {
    let encrypted = Encrypted::start().await;
    let mut client = encrypted.server.client().await;
    let status = client.chat(tokio_stream::pending()).await.unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition, "{status}");
    assert!(status.message().contains("requires TLS"), "{status}");
    assert_eq!(status.get_details_error_info().unwrap().reason, "TLS_REQUIRED");
    drop(client);
    encrypted
        .server
        .wait_for_metric(&refused("plain_text"), 1.0)
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_with_tls_is_told_that_there_is_none() {
    let directory = tempfile::tempdir().unwrap();
    Authority::new("test").write(directory.path().join("ca.pem"));
    let server = TestServer::start().await;
    let error = connect(server.listen, client_config(directory.path(), None))
        .await
        .unwrap_err();
    let reason = error.get_ref().unwrap().downcast_ref::<rustls::Error>().unwrap();
    assert!(matches!(reason, rustls::Error::InvalidMessage(_)), "{reason}");
    let mut stream = TcpStream::connect(server.listen).await.unwrap();
    stream.write_all(&begun_handshake(100)).await.unwrap();
    let answer = String::from_utf8(read_to_end(&mut stream).await).unwrap();
    assert!(answer.contains("does not use TLS"), "{answer}");
    server.wait_for_metric(&refused("tls"), 2.0).await;
    // The server goes on.
    server.join("Ada").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn http_1_is_refused_within_the_handshake_or_with_an_answer() {
    let encrypted = Encrypted::start().await;
    let mut config = encrypted.client_config(None);
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    let error = connect(encrypted.server.listen, config.clone())
        .await
        .unwrap_err();
    let reason = error.get_ref().unwrap().downcast_ref::<rustls::Error>().unwrap();
    let expected = rustls::Error::AlertReceived(AlertDescription::NoApplicationProtocol);
    assert_eq!(*reason, expected);
    encrypted.server.wait_for_metric(&refused("handshake"), 1.0).await;

    config.alpn_protocols.clear();
    let mut stream = connect(encrypted.server.listen, config).await.unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    let reading = stream.read_to_string(&mut answer);
    timeout(TIMEOUT, reading).await.expect("an answer").unwrap();
    assert!(answer.starts_with("HTTP/1.1 505 "), "{answer}");
    encrypted.server.wait_for_metric(&refused("protocol"), 1.0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn only_clients_with_a_certificate_of_the_issuer_are_accepted() {
    let encrypted = Encrypted::with(|_, files, directory| {
        files.client_ca = Some(directory.join("ca.pem"));
    })
    .await;
    let (directory, listen) = (encrypted.directory.path(), encrypted.server.listen);
    let member = encrypted.authority.issue_for_client(directory, "member");
    let channel = channel(listen, encrypted.client_config(Some(&member)))
        .await
        .unwrap();
    let mut ada = Client::open(channel).await;
    ada.send(join("Ada")).await;
    ada.next().await;

    let stranger = Authority::new("other").issue_for_client(directory, "stranger");
    let long = encrypted.authority.issue_chain_for_client(directory, "long", 4);
    for (identity, expected) in [
        (None, AlertDescription::CertificateRequired),
        (Some(&stranger), AlertDescription::UnknownCA),
        // To find out which of many certificates has signed which takes long.
        (Some(&long), AlertDescription::CertificateUnknown),
    ] {
        // With TLS 1.3 the client learns of it when it reads.
        let mut stream = connect(listen, encrypted.client_config(identity)).await.unwrap();
        let reading = stream.read_u8();
        let error = timeout(TIMEOUT, reading).await.expect("an alert").unwrap_err();
        let reason = error.get_ref().unwrap().downcast_ref::<rustls::Error>().unwrap();
        assert_eq!(*reason, rustls::Error::AlertReceived(expected));
    }
    encrypted.server.wait_for_metric(&refused("handshake"), 3.0).await;

    // An issuer may be sent although it is not needed.
    let member = encrypted.authority.issue_chain_for_client(directory, "member", 3);
    let mut stream = connect(listen, encrypted.client_config(Some(&member)))
        .await
        .unwrap();
    stream.write_all(&preface(65_535)).await.unwrap();
    timeout(TIMEOUT, stream.read_u8())
        .await
        .expect("an answer")
        .unwrap();
    encrypted.server.wait_for_metric(&refused("handshake"), 3.0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_is_replaced_without_ending_connections() {
    let encrypted = Encrypted::start().await;
    let mut ada = encrypted.join("Ada").await;
    let certificate_in_use = async || {
        let stream = connect(encrypted.server.listen, encrypted.client_config(None)).await;
        let stream = stream.unwrap();
        let chain = stream.get_ref().1.peer_certificates().unwrap();
        chain[0].clone().into_owned()
    };
    let before = certificate_in_use().await;

    // The key is not that of the certificate, as when only one of them has been replaced.
    let directory = tempfile::tempdir().unwrap();
    let newer = encrypted
        .authority
        .issue_for_years(directory.path(), "newer", &["localhost"], [2001, 3002]);
    std::fs::copy(&newer.certificate, &encrypted.issued.certificate).unwrap();
    encrypted.server.wait_for_metric(&reloads("failure"), 1.0).await;
    assert_eq!(certificate_in_use().await, before);
    assert_eq!(encrypted.server.metric(&reloads("success")).await, 0.0);

    std::fs::copy(&newer.key, &encrypted.issued.key).unwrap();
    encrypted.server.wait_for_metric(&reloads("success"), 1.0).await;
    let expected = CertificateDer::from_pem_file(&newer.certificate).unwrap();
    assert_eq!(certificate_in_use().await, expected);
    let expiry = "chitchat_tls_certificate_expiry_timestamp_seconds";
    assert_eq!(encrypted.server.metric(expiry).await, 32_566_752_000.0);
    ada.say(0, "still here").await;
    assert_eq!(ada.next_line().await.2, "still here");
}
