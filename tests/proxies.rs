//! The example configurations of proxies, with the real programs: clients go on through restarts of the server and streams
//! that the proxy cuts, and lose nothing.
//!
//! `ROLLS=20 cargo test --test proxies rolling -- --nocapture` replaces the server 20 times, and prints the longest gap that a
//! client saw.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

#[path = "process/mod.rs"]
mod process;

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use chitchat::proto::SendMessageRequest;
use chitchat::proto::chat_service_client::ChatServiceClient;
use chitchat_verify::check;
use chitchat_verify::crash_harness::Run;
use process::{
    CHECKOUT, CHITCHAT, Process, Server, external_program, serve, serve_at, succeed, unused_address,
    wait_until,
};
use tempfile::TempDir;
use tokio::task::block_in_place;
use tokio::time::sleep;
use tonic::transport::Endpoint;

/// How many clients chat.
const CLIENTS: usize = 50;

/// A proxy in front of a server, with one of the example configurations.
struct Proxy {
    address: SocketAddr,
    _process: Process,
    directory: TempDir,
}

impl Proxy {
    /// Starts nginx in front of `server`. `change` changes the configuration further.
    fn nginx(server: SocketAddr, change: impl Fn(String) -> String) -> Option<Self> {
        let program = external_program("CHITCHAT_TEST_NGINX", "nginx", &["-v"])?;
        let (directory, address) = (TempDir::new().unwrap(), unused_address());
        let path = |name: &str| directory.path().join(name).display().to_string();
        certificates(directory.path());
        let config = example("nginx.conf")
            .replace("127.0.0.1:50052", &server.to_string())
            .replace("listen 8443 ssl http2", &format!("listen {address} ssl http2"))
            .replace("/etc/nginx/chitchat-cert.pem", &path("server.pem"))
            .replace("/etc/nginx/chitchat-key.pem", &path("server-key.pem"))
            .replace("/var/log/nginx/chitchat.log", &path("access.log"));
        // Where the distribution's nginx may write.
        let paths = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
            .map(|kind| format!("    {kind}_temp_path {};\n", path(kind)));
        let config = config.replace("http {\n", &format!("http {{\n{}", paths.concat()));
        fs::write(path("nginx.conf"), change(config)).unwrap();
        // What a distribution's configuration sets outside of the example.
        let global = format!(
            "daemon off; master_process off; pid {}; error_log stderr error;",
            path("pid")
        );
        let mut command = Command::new(program);
        command.args([
            "-p",
            directory.path().to_str().unwrap(),
            "-c",
            &path("nginx.conf"),
            "-g",
            &global,
        ]);
        Some(Self::start(&mut command, address, directory))
    }

    /// Starts HAProxy in front of `server`. `change` changes the configuration further.
    fn haproxy(server: &Server, change: impl Fn(String) -> String) -> Option<Self> {
        let program = external_program("CHITCHAT_TEST_HAPROXY", "haproxy", &["-v"])?;
        let (directory, address) = (TempDir::new().unwrap(), unused_address());
        let path = |name: &str| directory.path().join(name).display().to_string();
        certificates(directory.path());
        let both = ["server.pem", "server-key.pem"].map(|name| fs::read_to_string(path(name)).unwrap());
        fs::write(path("both.pem"), both.concat()).unwrap();
        let config = example("haproxy.cfg")
            .replace("127.0.0.1:50052", &server.address.to_string())
            .replace("port 9464", &format!("port {}", server.admin.port()))
            .replace("bind :8443", &format!("bind {address}"))
            .replace("/etc/haproxy/chitchat.pem", &path("both.pem"));
        fs::write(path("haproxy.cfg"), change(config)).unwrap();
        let mut command = Command::new(program);
        command.args(["-db", "-f", &path("haproxy.cfg")]);
        Some(Self::start(&mut command, address, directory))
    }

    fn start(command: &mut Command, address: SocketAddr, directory: TempDir) -> Self {
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut process = Process::from(command.spawn().unwrap());
        wait_until("the proxy listens", || {
            assert!(!process.has_exited(), "{:?}", process.rest_of_stderr());
            std::net::TcpStream::connect(address).ok()
        });
        Self {
            address,
            _process: process,
            directory,
        }
    }
}

fn example(name: &str) -> String {
    fs::read_to_string(Path::new(CHECKOUT).join("deploy/proxies").join(name)).unwrap()
}

/// Makes a certificate for this host.
fn certificates(directory: &Path) {
    succeed(Command::new(CHITCHAT).arg("certs").arg(directory), "");
}

/// A configuration for clients without TLS, as the recording clients are.
fn plain(config: String) -> String {
    let lines = config.lines().filter(|line| !line.trim().starts_with("ssl_"));
    let config: String = lines.map(|line| format!("{line}\n")).collect();
    config.replace(" ssl http2", " http2")
}

/// The command of a server at `address` that waits until the data directory is free.
fn next_server(address: SocketAddr, data: &str) -> Command {
    let mut command = Command::new(CHITCHAT);
    command.args([
        "serve",
        "--listen",
        &address.to_string(),
        "--admin",
        "127.0.0.1:0",
    ]);
    command.args(["--data-dir", data, "--wait-for-data-dir", "30s"]);
    command
}

/// Clients that chat through a proxy.
async fn join(server: &Server, proxy: &Proxy) -> Run {
    let mut run = Run::new(server.address, 1);
    for n in 0..CLIENTS {
        run.add_client_at(proxy.address, &format!("client-{n}"), 2);
    }
    run.allow_sends(2);
    run.wait_for_acknowledgements().await;
    run
}

async fn finish(run: Run) {
    run.wait_for_acknowledgements().await;
    let violations = check(&run.finish().await);
    assert!(violations.is_empty(), "{:?}", violations.first());
}

/// Sends messages one after the other through the proxy, and repeats those that fail, until `stop` completes. Returns the
/// longest time that one took.
async fn longest_gap(proxy: SocketAddr, stop: impl Future<Output = ()>) -> Duration {
    let mut longest = Duration::ZERO;
    let send = async {
        for n in 0.. {
            let started = Instant::now();
            let request = SendMessageRequest {
                client_name: "Probe".into(),
                msg: "Is anybody there?".into(),
                message_id: format!("probe-{n}"),
                ..SendMessageRequest::default()
            };
            let endpoint = Endpoint::from_shared(format!("http://{proxy}")).unwrap();
            loop {
                if let Ok(channel) = endpoint.connect().await
                    && ChatServiceClient::new(channel)
                        .send_message(request.clone())
                        .await
                        .is_ok()
                {
                    break;
                }
                sleep(Duration::from_millis(10)).await;
            }
            longest = longest.max(started.elapsed());
            sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::select! {
        () = stop => {}
        () = send => {}
    }
    longest
}

/// Replaces the server `rolls` times while clients chat through the proxy.
async fn roll(proxy: &Proxy, mut server: Server, data: &str, rolls: usize) {
    let run = join(&server, proxy).await;
    let rolling = async {
        for _ in 0..rolls {
            let streams = run.streams();
            run.allow_sends(4);
            let next = Process::start(&mut next_server(server.address, data));
            next.stdout_line("waiting");
            block_in_place(|| server.stop());
            server = block_in_place(|| Server::from_process(next));
            run.wait_for_reconnects(&streams).await;
            run.wait_for_acknowledgements().await;
        }
    };
    let longest = longest_gap(proxy.address, rolling).await;
    println!("{rolls} restarts with {CLIENTS} clients: a message took at most {longest:?}");
    finish(run).await;
    block_in_place(|| server.stop());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rolling_restart_behind_nginx_loses_nothing() {
    let directory = TempDir::new().unwrap();
    let data = directory.path().join("data").display().to_string();
    let server = block_in_place(|| serve_at(unused_address(), &["--data-dir", &data]));
    let Some(proxy) = Proxy::nginx(server.address, plain) else {
        return;
    };
    let rolls = std::env::var("ROLLS").map_or(2, |rolls| rolls.parse().unwrap());
    roll(&proxy, server, &data, rolls).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rolling_restart_behind_haproxy_loses_nothing() {
    let directory = TempDir::new().unwrap();
    let data = directory.path().join("data").display().to_string();
    let server = block_in_place(|| serve_at(unused_address(), &["--data-dir", &data]));
    let without_tls = |config: String| {
        let (bind, tls) = ("bind ", " ssl crt ");
        let lines = config.lines().map(|line| match line.split_once(tls) {
            Some((start, _)) if line.contains(bind) => format!("{start} proto h2\n"),
            // The admin port of the next server is another one.
            _ => format!("{}\n", line.split(" check port").next().unwrap_or_default()),
        });
        lines.collect()
    };
    let Some(proxy) = Proxy::haproxy(&server, without_tls) else {
        return;
    };
    roll(&proxy, server, &data, 2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_that_nginx_cuts_because_they_are_idle_continue() {
    let directory = TempDir::new().unwrap();
    let data = directory.path().join("data").display().to_string();
    let server = block_in_place(|| serve_at(unused_address(), &["--data-dir", &data]));
    let impatient = |config: String| plain(config).replace("grpc_read_timeout 12h", "grpc_read_timeout 1s");
    let Some(proxy) = Proxy::nginx(server.address, impatient) else {
        return;
    };
    let run = join(&server, &proxy).await;
    let streams = run.streams();
    run.wait_for_reconnects(&streams).await;
    run.allow_sends(2);
    finish(run).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_reach_a_server_over_tls_through_proxies() {
    let server = serve(&[]);
    let proxies = [
        Proxy::nginx(server.address, |config| config),
        Proxy::haproxy(&server, |config| config),
    ];
    for proxy in proxies.iter().flatten() {
        let address = format!("https://localhost:{}", proxy.address.port());
        let ca = proxy.directory.path().join("ca.pem");
        let command = |arguments: &[&str]| {
            let mut command = Command::new(CHITCHAT);
            command
                .args(arguments)
                .args(["--server", &address, "--ca"])
                .arg(&ca);
            command
        };
        wait_until("the proxy knows that the server is ready", || {
            command(&["health"])
                .output()
                .unwrap()
                .status
                .success()
                .then_some(())
        });
        succeed(&mut command(&["send", "--name", "Ada", "through a proxy"]), "");
        let history = succeed(&mut command(&["history"]), "");
        assert!(history.contains("through a proxy"), "{history}");
    }
}
