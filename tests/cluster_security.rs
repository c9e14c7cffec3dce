//! The configuration of NATS in deploy/nats, with the keys of `chitchat cluster keys`: replicas can do what they need to, and nothing else.
// Helpers of tests panic as tests do.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

mod process;

use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use async_nats::{ConnectOptions, Event};
use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use nkeys::KeyPair;
use process::{CHECKOUT, CHITCHAT, Finished, Process, Server, external_program, unused_address, wait_until};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::sync::mpsc;
use tokio::time::timeout;

const NODES: usize = 3;

/// Three NATS servers as they are shipped, and their keys.
struct Nats {
    directory: TempDir,
    addresses: Vec<SocketAddr>,
    monitors: Vec<SocketAddr>,
    _nodes: Vec<Process>,
}

impl Nats {
    /// `None` if there is no program.
    fn start() -> Option<Self> {
        let program = external_program("CHITCHAT_TEST_NATS_SERVER", "nats-server", &["--version"])?;
        let directory = TempDir::with_prefix("chitchat-nats-").unwrap();
        let path = |name: &str| directory.path().join(name);
        let keys = path("made");
        let mut command = Command::new(CHITCHAT);
        command.args(["cluster", "keys"]).arg(&keys);
        process::succeed(&mut command, "");
        symlink(keys.join("nats"), path("keys")).unwrap();
        fs::copy(
            Path::new(CHECKOUT).join("deploy/nats/nats.conf"),
            path("nats.conf"),
        )
        .unwrap();
        let unused = || (0..NODES).map(|_| unused_address()).collect::<Vec<_>>();
        let (addresses, routes, monitors) = (unused(), unused(), unused());
        let urls: Vec<_> = routes.iter().map(|address| format!("tls://{address}")).collect();
        let start = |node: usize| {
            let child = Command::new(&program)
                .args(["-c", "nats.conf"])
                .current_dir(directory.path())
                .env("NATS_NAME", format!("n{node}"))
                .env("NATS_LISTEN", addresses[node].to_string())
                .env("NATS_CLUSTER_LISTEN", routes[node].to_string())
                .env("NATS_MONITOR_LISTEN", monitors[node].to_string())
                .env("NATS_ROUTES", format!("[{}]", urls.join(", ")))
                .env("NATS_STORE", path(&format!("data{node}")))
                .env("NATS_MAX_STORE", "1GB")
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(fs::File::create(path(&format!("n{node}.log"))).unwrap())
                .spawn();
            Process::from(child.unwrap())
        };
        let nodes = (0..NODES).map(start).collect();
        wait_until("the NATS servers accept connections", || {
            let connect = |address: &SocketAddr| TcpStream::connect(address).is_ok();
            addresses.iter().all(connect).then_some(())
        });
        Some(Self {
            directory,
            addresses,
            monitors,
            _nodes: nodes,
        })
    }

    fn urls(&self) -> String {
        let url = |address: &SocketAddr| format!("tls://{address}");
        self.addresses.iter().map(url).collect::<Vec<_>>().join(",")
    }

    fn file(&self, name: &str) -> PathBuf {
        self.directory.path().join("made").join(name)
    }

    /// A command that connects with this key.
    fn chitchat(&self, arguments: &[&str], key: &str) -> Command {
        let mut command = Command::new(CHITCHAT);
        command
            .args(arguments)
            .env("CHITCHAT_CLUSTER", self.urls())
            .env("CHITCHAT_CLUSTER_CA", self.file("replicas/ca.pem"))
            .env("CHITCHAT_CLUSTER_NKEY", self.file(key));
        command
    }

    fn finished(&self, arguments: &[&str], key: &str) -> Finished {
        process::run(&mut self.chitchat(arguments, key), "").into()
    }

    /// A replica of this name, with this key.
    fn serve(&self, name: &str, key: &str) -> Server {
        let data = self.directory.path().join(name);
        let flags = [
            "serve",
            "--data-dir",
            data.to_str().unwrap(),
            "--listen",
            "127.0.0.1:0",
            "--admin",
            "127.0.0.1:0",
            "--replica-name",
            name,
        ];
        let mut command = self.chitchat(&flags, key);
        command.env("CHITCHAT_CLUSTER_SECRET", self.file("replicas/secret"));
        Server::from_process(Process::start(&mut command))
    }

    /// A connection with the key of a replica, and what NATS denies to it.
    async fn connect(&self, name: &str) -> (async_nats::Client, mpsc::Receiver<String>) {
        let (denials, denied) = mpsc::channel(16);
        let seed = fs::read_to_string(self.file(&format!("replicas/{name}.nk"))).unwrap();
        let client = ConnectOptions::with_nkey(seed.trim().into())
            .custom_inbox_prefix(format!("_INBOX.{name}"))
            .add_root_certificates(self.file("replicas/ca.pem"))
            .event_callback(move |event| {
                if let Event::ServerError(error) = event {
                    denials.try_send(error.to_string()).ok();
                }
                std::future::ready(())
            })
            .connect(format!("tls://{}", self.addresses[0]))
            .await
            .unwrap();
        (client, denied)
    }
}

fn is_ready(server: &Server) -> bool {
    server.get("/readyz").starts_with("HTTP/1.1 200")
}

#[tokio::test(flavor = "multi_thread")]
async fn replicas_can_do_what_they_need_to_and_nothing_else() {
    let Some(nats) = Nats::start() else {
        return;
    };
    for secret in ["setup/setup.nk", "replicas/secret", "nats/server-key.pem"] {
        let mode = fs::metadata(nats.file(secret)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{secret}");
    }
    // Only the key of the operator makes the stream.
    let denied = nats.finished(&["cluster", "init"], "replicas/chitchat-0.nk");
    assert_eq!(denied.code, Some(78), "{denied:?}");
    assert!(
        denied.stderr.contains("NATS denies it to this user")
            && denied.stderr.contains("Permissions Violation"),
        "{denied:?}"
    );
    let monitors: Vec<_> = nats
        .monitors
        .iter()
        .map(|address| format!("http://{address}"))
        .collect();
    let init = [
        "cluster",
        "init",
        "--max-bytes",
        "256MiB",
        "--monitor",
        &monitors.join(","),
    ];
    wait_until("the NATS servers have a stream", || {
        let init = nats.finished(&init, "setup/setup.nk");
        (init.code == Some(0)).then_some(())
    });

    // What else only that key can do: bring in the rooms of a single server.
    let path = |name: &str| nats.directory.path().join(name).to_str().unwrap().to_owned();
    let single = path("single");
    let mut server = process::serve_at(unused_address(), &["--data-dir", &single]);
    let send = [
        "send",
        "--server",
        &server.address.to_string(),
        "--name",
        "Ada",
        "Before",
    ];
    process::succeed(Command::new(CHITCHAT).args(send), "");
    server.stop();
    let imported = nats.finished(
        &["cluster", "import", &single, &path("chitchat-0")],
        "setup/setup.nk",
    );
    assert_eq!(imported.code, Some(0), "{imported:?}");

    let replicas = [0, 1].map(|n| {
        let name = format!("chitchat-{n}");
        nats.serve(&name, &format!("replicas/{name}.nk"))
    });
    wait_until("the replicas are ready", || {
        replicas.iter().all(is_ready).then_some(())
    });
    let [first, second] = replicas.each_ref().map(|replica| replica.address.to_string());
    let send = ["send", "--server", &first, "--name", "Ada", "Hello"];
    process::succeed(Command::new(CHITCHAT).args(send), "");
    wait_until("the other replica has the message", || {
        let history = process::run(Command::new(CHITCHAT).args(["history", "--server", &second]), "");
        let text = process::text(&history.stdout);
        (text.contains("Before") && text.contains("Hello")).then_some(())
    });
    // They are known by their heartbeats.
    wait_until("both replicas are shown", || {
        let status = nats.finished(&["cluster", "status"], "setup/setup.nk");
        let is_shown = |name: &str| status.lines.iter().any(|line| line.starts_with(name));
        (status.code == Some(0) && is_shown("chitchat-0") && is_shown("chitchat-1")).then_some(())
    });

    // A replica cannot read what another one is answered, nor forge what the stream has, nor remove it.
    let (client, mut denied) = nats.connect("chitchat-1").await;
    let expect = async |denied: &mut mpsc::Receiver<String>, subject: &str| {
        let next = timeout(process::TIMEOUT, denied.recv()).await;
        let text = next
            .unwrap_or_else(|_| panic!("{subject} is not denied"))
            .unwrap();
        assert!(
            text.contains("Permissions Violation") && text.contains(&format!("\"{subject}\"")),
            "{subject}: {text}"
        );
    };
    for subject in ["_INBOX.chitchat-0.>", "_INBOX.>", "chat.0.>", ">"] {
        let _subscription = client.subscribe(subject.to_owned()).await.unwrap();
        client.flush().await.unwrap();
        expect(&mut denied, subject).await;
    }
    for subject in [
        "live.chat.0.order",
        "_INBOX.chitchat-0.x",
        "$JS.API.STREAM.DELETE.CHAT-0",
        "$JS.API.STREAM.UPDATE.CHAT-0",
        "$JS.API.STREAM.CREATE.other",
    ] {
        client.publish(subject.to_owned(), "forged".into()).await.unwrap();
        client.flush().await.unwrap();
        expect(&mut denied, subject).await;
    }
    // What it needs to is not denied: a question to the others, and its answer.
    let (other, mut denied_to_other) = nats.connect("chitchat-0").await;
    let mut questions = client.subscribe("sync.chat.0.test").await.unwrap();
    // `flush` does not wait for the server. The reply shows that it has processed the subscription.
    let info = "$JS.API.STREAM.INFO.CHAT-0";
    client.request(info, "".into()).await.unwrap();
    let answering = tokio::spawn(async move {
        let question = tokio_stream::StreamExt::next(&mut questions).await.unwrap();
        let inbox = question.reply.unwrap();
        client.publish(inbox, "answer".into()).await.unwrap();
        client
    });
    let answer = timeout(
        process::TIMEOUT,
        other.request("sync.chat.0.test", "question".into()),
    )
    .await;
    assert_eq!(answer.unwrap().unwrap().payload.as_ref(), b"answer");
    let client = answering.await.unwrap();
    other.request(info, "".into()).await.unwrap();
    // Denials arrive in order: an earlier one would be received instead of this one.
    for (client, denied) in [(&client, &mut denied), (&other, &mut denied_to_other)] {
        client.publish("forbidden", "".into()).await.unwrap();
        client.flush().await.unwrap();
        expect(denied, "forbidden").await;
    }
}

#[test]
fn a_wrong_key_is_said_and_what_is_denied_too() {
    let Some(nats) = Nats::start() else {
        return;
    };
    // Of other servers.
    let mut command = Command::new(CHITCHAT);
    command.args(["cluster", "keys"]).arg(nats.file("others"));
    process::succeed(&mut command, "");
    let other = "others/replicas/chitchat-0.nk";
    for arguments in [&["cluster", "status"][..], &process::SERVE_IN_MEMORY] {
        let mut command = nats.chitchat(arguments, other);
        command.env("CHITCHAT_CLUSTER_SECRET", nats.file("replicas/secret"));
        let refused: Finished = process::run(&mut command, "").into();
        assert_eq!(refused.code, Some(78), "{refused:?}");
        assert!(
            refused
                .stderr
                .lines()
                .any(|line| line.starts_with("chitchat: NATS does not accept this user")),
            "{refused:?}"
        );
    }
    let none = nats.finished(&["cluster", "status"], "nowhere");
    assert_eq!(none.code, Some(78), "{none:?}");
    assert!(none.stderr.contains("--cluster-nkey /"), "{none:?}");
    // The inbox of a replica has its name, so another one's key is of no use.
    let mut replica = nats.serve("chitchat-1", "replicas/chitchat-0.nk");
    let line = replica.log_line("nats_permission_denied");
    assert!(line.contains("_INBOX.chitchat-1."), "{line}");
    assert!(!is_ready(&replica));
}

#[test]
fn the_user_and_the_password_of_an_address_are_used() {
    let Some(program) = external_program("CHITCHAT_TEST_NATS_SERVER", "nats-server", &["--version"]) else {
        return;
    };
    let directory = TempDir::with_prefix("chitchat-nats-").unwrap();
    let address = unused_address();
    let config = format!(
        "listen: {address}\njetstream {{ store_dir: {:?}, sync_interval: always, max_file_store: 1GB }}\n\
         authorization {{ user: ada, password: \"p@ss\" }}\n",
        directory.path().join("data")
    );
    let _node = start_one(&program, &directory, address, &config);
    let init = |user: &str| -> Finished {
        let url = format!("nats://{user}@{address}");
        let mut command = Command::new(CHITCHAT);
        command.args([
            "cluster",
            "init",
            "--replicas",
            "1",
            "--max-bytes",
            "64MiB",
            "--cluster",
            &url,
        ]);
        process::run(&mut command, "").into()
    };
    let accepted = init("ada:p%40ss");
    assert_eq!(accepted.code, Some(0), "{accepted:?}");
    let refused = init("ada:pass");
    assert_eq!(refused.code, Some(78), "{refused:?}");
    assert!(!refused.stderr.contains("pass@"), "{refused:?}");
}

/// Starts a NATS server with this configuration.
fn start_one(program: &str, directory: &TempDir, address: SocketAddr, config: &str) -> Process {
    let path = directory.path().join("nats.conf");
    fs::write(&path, config).unwrap();
    let mut command = Command::new(program);
    command
        .arg("-c")
        .arg(&path)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let node = Process::from(command.spawn().unwrap());
    wait_until("the NATS server accepts connections", || {
        TcpStream::connect(address).ok()
    });
    node
}

/// What `issuer` says of `subject`, as a token that NATS accepts.
fn token(issuer: &KeyPair, subject: &KeyPair, mut claims: Value) -> String {
    claims["version"] = 2.into();
    let header = json!({ "typ": "JWT", "alg": "ed25519-nkey" });
    let payload = json!({
        "jti": "1", "iat": 1_700_000_000, "iss": issuer.public_key(), "sub": subject.public_key(), "name": "test", "nats": claims,
    });
    let encode = |bytes: &[u8]| BASE64_URL_SAFE_NO_PAD.encode(bytes);
    let parts = [header, payload].map(|part| encode(part.to_string().as_bytes()));
    let signed = parts.join(".");
    format!("{signed}.{}", encode(&issuer.sign(signed.as_bytes()).unwrap()))
}

/// The contents of a credentials file.
fn credentials(account: &KeyPair) -> String {
    let user = KeyPair::new_user();
    let unlimited = json!({ "type": "user", "pub": {}, "sub": {}, "subs": -1, "data": -1, "payload": -1 });
    format!(
        "-----BEGIN NATS USER JWT-----\n{}\n------END NATS USER JWT------\n\n\
         -----BEGIN USER NKEY SEED-----\n{}\n------END USER NKEY SEED------\n",
        token(account, &user, unlimited),
        user.seed().unwrap()
    )
}

#[test]
fn a_credentials_file_is_used_if_the_nats_servers_have_an_operator() {
    let Some(program) = external_program("CHITCHAT_TEST_NATS_SERVER", "nats-server", &["--version"]) else {
        return;
    };
    let directory = TempDir::with_prefix("chitchat-nats-").unwrap();
    let path = |name: &str| directory.path().join(name);
    let address = unused_address();
    let operator = KeyPair::new_operator();
    let [system, account, other] = [(); 3].map(|()| KeyPair::new_account());
    // The system account cannot have streams.
    let accounts = [(&system, 0), (&account, -1)].map(|(account, storage)| {
        let limits = json!({
            "subs": -1, "data": -1, "payload": -1, "imports": -1, "exports": -1, "wildcards": true, "conn": -1, "leaf": -1,
            "mem_storage": storage, "disk_storage": storage, "streams": storage, "consumer": storage,
        });
        let claims = json!({ "type": "account", "limits": limits });
        format!("{}: {:?}", account.public_key(), token(&operator, account, claims))
    });
    let operator = token(&operator, &operator, json!({ "type": "operator" }));
    let config = format!(
        "listen: {address}\njetstream {{ store_dir: {:?}, sync_interval: always, max_file_store: 1GB }}\noperator: {operator:?}\n\
         system_account: {}\nresolver: MEMORY\nresolver_preload: {{ {} }}\n",
        path("data"),
        system.public_key(),
        accounts.join(", ")
    );
    let node = start_one(&program, &directory, address, &config);
    fs::write(path("secret"), "of the tests, and longer than 32 bytes").unwrap();
    fs::write(path("creds"), credentials(&account)).unwrap();
    fs::write(path("others"), credentials(&other)).unwrap();
    let chitchat = |arguments: &[&str], file: &str| {
        let mut command = Command::new(CHITCHAT);
        command
            .args(arguments)
            .env("CHITCHAT_CLUSTER", format!("nats://{address}"))
            .env("CHITCHAT_CLUSTER_CREDS", path(file))
            .env("CHITCHAT_CLUSTER_SECRET", path("secret"));
        command
    };
    let init = ["cluster", "init", "--replicas", "1", "--max-bytes", "64MiB"];
    let refused: Finished = process::run(&mut chitchat(&init, "others"), "").into();
    assert_eq!(refused.code, Some(78), "{refused:?}");
    assert!(
        refused.stderr.contains("NATS does not accept this user"),
        "{refused:?}"
    );
    let accepted: Finished = process::run(&mut chitchat(&init, "creds"), "").into();
    assert_eq!(accepted.code, Some(0), "{accepted:?}");
    let replica = Server::from_process(Process::start(&mut chitchat(&process::SERVE_IN_MEMORY, "creds")));
    wait_until("the replica is ready", || is_ready(&replica).then_some(()));

    // A file that was replaced is read when it connects again.
    fs::write(path("creds"), credentials(&account)).unwrap();
    drop(node);
    wait_until("the replica is not ready", || (!is_ready(&replica)).then_some(()));
    let _node = start_one(&program, &directory, address, &config);
    wait_until("the replica is ready again", || is_ready(&replica).then_some(()));
    let to = replica.address.to_string();
    let send = ["send", "--server", &to, "--name", "Ada", "Hello"];
    process::succeed(Command::new(CHITCHAT).args(send), "");
}
