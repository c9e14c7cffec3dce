//! Replicas that share their rooms through three real NATS servers, some of which are killed, paused, or cut off.
// Helpers of tests panic as tests do.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

mod balancer;
mod cluster;
mod fault;
mod faults;
mod nats;
mod network;
#[path = "../process/mod.rs"]
mod process;
mod replica;

use std::net::SocketAddr;
use std::process::Command;

use chitchat_verify::crash_harness::seed;
use futures_util::StreamExt as _;
use process::{CHITCHAT, Finished, unused_address, wait_until};
use tokio::task::block_in_place;

use cluster::Cluster;
use nats::Nats;
use replica::Replica;

/// The number of NATS servers, and of replicas.
const NODES: usize = 3;

/// The number of messages per sender and round.
const PER_ROUND: u64 = 60;

#[tokio::test(flavor = "multi_thread")]
async fn replicas_have_one_order_and_survive_the_death_of_one_of_them_and_of_the_leader_of_nats() {
    let seed = seed();
    let Some(mut cluster) = Cluster::start(seed).await else {
        return;
    };
    let streams = cluster.run.streams();
    cluster
        .round(PER_ROUND, |servers| servers.replicas[1].kill())
        .await;
    // Two clients were there.
    let moved = cluster
        .run
        .streams()
        .iter()
        .zip(&streams)
        .filter(|(now, before)| now > before)
        .count();
    assert!(moved >= 1, "{moved}");
    // It has everything again that it missed.
    cluster.servers.replicas[1].start();
    block_in_place(|| cluster.servers.replicas[1].wait_until_ready());
    let leader = block_in_place(|| cluster.servers.nats.leader());
    cluster
        .round(PER_ROUND, |servers| servers.nats.kill_node(leader))
        .await;
    // An orderly stop, of one that has clients.
    let streams = cluster.run.streams();
    let busiest =
        block_in_place(|| (0..NODES).max_by_key(|node| cluster.servers.replicas[*node].clients())).unwrap();
    cluster
        .round(PER_ROUND, |servers| servers.replicas[busiest].terminate())
        .await;
    assert!(cluster.run.streams() > streams);
    cluster.servers.replicas[busiest].start();
    block_in_place(|| cluster.servers.replicas[busiest].wait_until_ready());
    cluster.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn replicas_start_again_with_checkpoints_and_the_stream_is_truncated() {
    let seed = seed();
    // The third one has what the others have when it starts again.
    let with_directory = |n| (n < 2).then(|| format!("replica{n}"));
    let Some(mut cluster) = Cluster::start_with(seed, false, with_directory).await else {
        return;
    };
    cluster.round(PER_ROUND, |_| {}).await;
    block_in_place(|| {
        wait_until("the stream is truncated", || {
            (cluster.servers.nats.first() > 1).then_some(())
        });
    });
    // One that has nothing any more gets a checkpoint from another, since the stream does not have everything.
    cluster
        .round(PER_ROUND, |servers| {
            servers.replicas[1].kill();
            servers.replicas[1].remove_directory();
            servers.replicas[1].start();
        })
        .await;
    block_in_place(|| cluster.servers.replicas[1].wait_until_ready());
    assert!(cluster.servers.replicas[1].newest_checkpoint() > Some(1));
    // All of them at once, and not in order.
    cluster
        .round(PER_ROUND, |servers| {
            servers.replicas.iter_mut().for_each(Replica::kill);
            servers.replicas.iter_mut().for_each(Replica::start);
        })
        .await;
    block_in_place(|| {
        cluster
            .servers
            .replicas
            .iter()
            .for_each(Replica::wait_until_ready);
    });
    // The last thing that a replica does in an orderly stop.
    let before = cluster.servers.replicas[0].newest_checkpoint();
    cluster
        .round(PER_ROUND, |servers| servers.replicas[0].terminate())
        .await;
    assert!(cluster.servers.replicas[0].newest_checkpoint() > before);
    cluster.servers.replicas[0].start();
    block_in_place(|| cluster.servers.replicas[0].wait_until_ready());
    cluster.finish().await;
}

/// The limits of the rooms change if all replicas were stopped, and only then.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "waits until a replica is lost"]
async fn replicas_with_other_rules_take_part_once_those_before_are_lost() {
    let Some(mut nats) = block_in_place(Nats::start) else {
        return;
    };
    let mut before = Replica::new(&mut nats, "before", None);
    block_in_place(|| before.wait_until_ready());
    let mut after = Replica::new(&mut nats, "after", None);
    after.kill();
    after
        .command
        .extend(["--max-message-chars", "100"].map(str::to_owned));
    let refused = block_in_place(|| {
        let mut command = Command::new(CHITCHAT);
        let failed: Finished = process::run(command.args(&after.command), "").into();
        failed
    });
    assert_eq!(refused.code, Some(78), "{refused:?}");
    assert!(refused.stderr.contains("--max-message-chars"), "{refused:?}");
    before.kill();
    after.start();
    block_in_place(|| after.wait_until_ready());
    before.start();
    let refused = block_in_place(|| before.process.take().unwrap().wait());
    assert_eq!(refused.code(), Some(78));
}

/// A program of the next version takes the place of this one.
#[cfg(feature = "failpoints")]
#[tokio::test(flavor = "multi_thread")]
#[ignore = "waits until a replica is lost"]
async fn an_old_program_does_not_take_part_once_a_new_version_is_active() {
    let Some(mut nats) = block_in_place(Nats::start) else {
        return;
    };
    let mut old = Replica::new(&mut nats, "old", None);
    block_in_place(|| old.wait_until_ready());
    let mut new = Replica::new(&mut nats, "new", None);
    new.kill();
    new.failpoints = "next-fold-version=on";
    new.command
        .iter_mut()
        .filter(|flag| *flag == "warn")
        .for_each(|level| *level = "info".into());
    new.start();
    // Both at a time.
    block_in_place(|| new.wait_until_ready());
    old.kill();
    let refused = block_in_place(|| {
        new.wait_until_printed("fold_version_activated");
        old.start();
        old.wait_until_printed("version 2 of the command log is active, and this program supports 1");
        old.process.take().unwrap().wait()
    });
    assert_eq!(refused.code(), Some(78));
    block_in_place(|| new.wait_until_ready());
}

#[test]
fn what_is_wrong_with_nats_is_said() {
    let Some(mut nats) = Nats::start() else {
        return;
    };
    let init = nats.chitchat(&["init", "--replicas", "1"]);
    assert_eq!(init.code, Some(78), "{init:?}");
    assert!(
        init.stderr
            .contains("num_replicas of the stream CHAT-0 is 3; it must be 1"),
        "{init:?}"
    );
    let status = nats.chitchat(&["status"]);
    assert_eq!(status.code, Some(0), "{status:?}");
    // Whether they sync is unknown, unless their monitoring ports are given.
    let unchecked = nats.chitchat(&["init"]);
    assert_eq!(unchecked.code, Some(0), "{unchecked:?}");
    assert!(unchecked.stderr.contains("NOT CHECKED"), "{unchecked:?}");
    let urls: Vec<_> = nats
        .monitors
        .iter()
        .map(|address| format!("http://{address}"))
        .collect();
    let monitor = urls.join(",");
    for action in ["init", "status"] {
        let checked = nats.chitchat(&[action, "--monitor", &monitor]);
        assert_eq!(checked.code, Some(0), "{checked:?}");
        assert!(!checked.stderr.contains("NOT CHECKED"), "{checked:?}");
    }
    let incomplete = nats.chitchat(&["init", "--monitor", &urls[0]]);
    assert_eq!(incomplete.code, Some(78), "{incomplete:?}");
    assert!(
        incomplete
            .stderr
            .contains("n1 stores the stream, and was not checked"),
        "{incomplete:?}"
    );
    nats.reconfigure(2, |config| {
        format!(
            "{}max_payload: 65536\n",
            config.replace("sync_interval: always", "sync_interval: 2m")
        )
    });
    let lazy = nats.chitchat(&["init", "--monitor", &monitor]);
    assert_eq!(lazy.code, Some(78), "{lazy:?}");
    for mistake in [
        format!("{}: its max_payload is 65536", nats.addresses[2]),
        format!("n2 ({}): it does not sync", urls[2]),
    ] {
        assert!(lazy.stderr.contains(&mistake), "{mistake}: {lazy:?}");
    }
    let status = wait_until("the NATS servers have a leader again", || {
        let status = nats.chitchat(&["status", "--monitor", &monitor]);
        (status.code == Some(78)).then_some(status)
    });
    assert!(
        status
            .lines
            .iter()
            .any(|line| line.contains(&urls[2]) && line.ends_with("WRONG")),
        "{status:?}"
    );
    // Messages may be longer than a server accepts.
    let small = unused_address();
    let config = nats.path("small.conf");
    std::fs::write(
        &config,
        format!("server_name: small\nlisten: {small}\nmax_payload: 32KB\n"),
    )
    .unwrap();
    let _server = nats.start_alone(small, &["-c", config.to_str().unwrap()]);
    let mut command = Command::new(CHITCHAT);
    command
        .args(process::SERVE_IN_MEMORY)
        .arg("--cluster")
        .arg(format!("nats://{small}"))
        .arg("--cluster-secret")
        .arg(nats.secret());
    let failed: Finished = process::run(&mut command, "").into();
    assert_eq!(failed.code, Some(78), "{failed:?}");
    assert!(
        failed
            .stderr
            .contains("max_payload of the NATS server small is 32768 bytes"),
        "{failed:?}"
    );
    // A replica needs the secret, and keeps nothing on the disk.
    let mut command = Command::new(CHITCHAT);
    command.args(["serve", "--cluster", &nats.url(), "--cluster-secret", "/dev/null"]);
    let failed: Finished = process::run(&mut command, "").into();
    assert_eq!(failed.code, Some(78), "{failed:?}");
    for mistake in ["--in-memory", "--cluster-secret /dev/null is not a file"] {
        assert!(failed.stderr.contains(mistake), "{failed:?}");
    }
}

/// As while the NATS servers connect to each other.
#[tokio::test(flavor = "multi_thread")]
async fn a_question_that_nats_loses_is_asked_again() {
    let Some(nats) = block_in_place(Nats::start) else {
        return;
    };
    // This server has no JetStream, so the test answers in its place.
    let address = unused_address();
    let listen = address.to_string();
    let _server = block_in_place(|| {
        nats.start_alone(address, &["-a", "127.0.0.1", "-p", &listen["127.0.0.1:".len()..]])
    });
    let client = async_nats::connect(&listen).await.unwrap();
    let mut questions = client.subscribe("$JS.API.STREAM.INFO.CHAT-0").await.unwrap();
    client.flush().await.unwrap();
    let answering = tokio::spawn(async move {
        questions.next().await.unwrap();
        let again = questions.next().await.unwrap();
        let answer = r#"{"error": {"err_code": 10059, "description": "stream not found"}}"#;
        client.publish(again.reply.unwrap(), answer.into()).await.unwrap();
        client.flush().await.unwrap();
    });
    let status = block_in_place(|| nats.chitchat(&["status", "--cluster", &format!("nats://{address}")]));
    assert_eq!(status.code, Some(66), "{status:?}");
    assert!(status.stderr.contains("chitchat cluster init"), "{status:?}");
    answering.await.unwrap();
}

#[test]
fn the_rooms_of_a_single_server_come_into_a_cluster() {
    let Some(mut nats) = Nats::start() else {
        return;
    };
    let (single, directories) = (
        nats.path("single"),
        [0, 1].map(|n| nats.path(&format!("replica{n}"))),
    );
    let client = |address: SocketAddr, arguments: &[&str]| {
        let mut command = Command::new(CHITCHAT);
        command.args(arguments).args(["--server", &address.to_string()]);
        process::succeed(&mut command, "")
    };
    let mut server = process::serve_at(unused_address(), &["--data-dir", single.to_str().unwrap()]);
    for text in ["one", "two"] {
        client(server.address, &["send", "--room", "tea", "--name", "Ada", text]);
    }
    let history = client(server.address, &["history", "--room", "tea", "--json"]);
    let import = [
        "import",
        single.to_str().unwrap(),
        directories[0].to_str().unwrap(),
    ];
    let failed = nats.chitchat(&import);
    assert!(failed.stderr.contains("in use by another server"), "{failed:?}");
    server.stop();
    let imported = nats.chitchat(&import);
    assert_eq!(imported.code, Some(0), "{imported:?}");
    assert_eq!(
        nats.chitchat(&import).code,
        Some(78),
        "the stream is not empty any more"
    );
    // The second one gets the rooms from the first, even if it starts before.
    let mut replicas = [1, 0].map(|n| {
        let name = format!("r{n}");
        Replica::new(&mut nats, &name, Some(directories[n].clone()))
    });
    for replica in &replicas {
        replica.wait_until_ready();
        assert_eq!(
            client(replica.address, &["history", "--room", "tea", "--json"]),
            history
        );
    }
    client(
        replicas[0].address,
        &["send", "--room", "tea", "--name", "Ada", "three"],
    );
    let [one, other] = [0, 1].map(|n| client(replicas[n].address, &["history", "--room", "tea", "--json"]));
    assert!(one.starts_with(&history) && one.contains("three"), "{one}");
    assert_eq!(one, other);
    replicas.iter_mut().for_each(Replica::terminate);

    // And back.
    let back = nats.path("back");
    let export = ["export", directories[0].to_str().unwrap(), back.to_str().unwrap()];
    let exported = nats.chitchat(&export);
    assert_eq!(exported.code, Some(0), "{exported:?}");
    let again = nats.chitchat(&export);
    assert!(again.stderr.contains("is not empty"), "{again:?}");
    let mut server = process::serve_at(unused_address(), &["--data-dir", back.to_str().unwrap()]);
    let history = client(server.address, &["history", "--room", "tea", "--json"]);
    assert_eq!(history, one, "the same sequences and epochs");
    client(
        server.address,
        &["send", "--room", "tea", "--name", "Ada", "four"],
    );
    let longer = client(server.address, &["history", "--room", "tea", "--json"]);
    assert!(
        longer.starts_with(&history) && longer.contains("four"),
        "{longer}"
    );
    server.stop();
    let mut check = Command::new(CHITCHAT);
    process::succeed(check.args(["store", "check", "--data-dir"]).arg(&back), "");
}

/// Removes the stream and makes it anew.
fn replace_stream(nats: &Nats, messages: u64) {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let delete = async {
        let client = async_nats::connect(nats.addresses[0].to_string()).await.unwrap();
        let deleted = client.request("$JS.API.STREAM.DELETE.CHAT-0", "".into()).await;
        assert!(deleted.unwrap().payload.starts_with(b"{"));
        client
    };
    let client = runtime.block_on(delete);
    wait_until("the stream is made anew", || {
        (nats.chitchat(&["init", "--max-bytes", "256MiB"]).code == Some(0)).then_some(())
    });
    runtime.block_on(async {
        for _ in 0..messages {
            let stored = client.request("chat.0.order", "other".into()).await.unwrap();
            assert!(!stored.payload.starts_with(b"{\"error\""), "{stored:?}");
        }
    });
}

#[test]
fn a_replica_does_not_continue_on_another_stream() {
    let Some(mut nats) = Nats::start() else {
        return;
    };
    let directory = nats.path("replica");
    // The first server is cut off from the others, and so has no stream.
    let alone = unused_address();
    let _alone = nats.start_alone(alone, &["-a", "127.0.0.1", "-p", &alone.port().to_string()]);
    let mut replica = Replica::new(&mut nats, "r", Some(directory));
    replica.kill();
    replica.set_nats(&format!("nats://{alone},{}", nats.url()));
    replica.start();
    replica.wait_until_ready();
    wait_until("it has a checkpoint", || replica.newest_checkpoint());
    replica.terminate();
    let newest = replica.newest_checkpoint().unwrap();
    replica.set_nats(&nats.url());

    // Shorter than the checkpoint, as long, and longer.
    for (messages, expected) in [
        (0, "the stream ends at 0"),
        (newest, "the stream has another message at"),
        (newest + 5, "the stream has another message at"),
    ] {
        replace_stream(&nats, messages);
        replica.start();
        replica.wait_until_printed(expected);
        replica.kill();
    }

    // One that is at work ends.
    replace_stream(&nats, 0);
    replica.remove_directory();
    replica.start();
    replica.wait_until_ready();
    replace_stream(&nats, 0);
    replica.wait_until_printed("the stream has another message at");
    assert!(!replica.process.take().unwrap().wait().success());
}
