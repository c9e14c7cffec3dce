//! Many clients at once: one order for all, and no leaks.

use std::time::Duration;

use chitchat::procfs::resident_memory;
use chitchat::proto::JoinMsgLeave;
use tokio::task::JoinSet;

use crate::harness::{Client, TestServer, join, leave};

const SENDERS: usize = 50;
const RECEIVERS: usize = 50;
const MESSAGES: usize = 40;

#[tokio::test(flavor = "multi_thread")]
async fn all_participants_receive_the_same_events_in_the_same_order() {
    let server = TestServer::start().await;
    let mut clients = Vec::new();
    for n in 0..SENDERS + RECEIVERS {
        let mut client = server.open().await;
        client.send(join(&format!("client-{n}"))).await;
        let joined = client.next().await;
        clients.push((client, joined));
    }
    let mut tasks = JoinSet::new();
    for (n, (mut client, joined)) in clients.into_iter().enumerate() {
        tasks.spawn(async move {
            let mut received = vec![joined];
            let mut latest = received[0].timestamp;
            let mut unsent = if n < SENDERS { MESSAGES } else { 0 };
            while received.last().unwrap().sequence < (SENDERS + RECEIVERS + SENDERS * MESSAGES) as u64 {
                if unsent > 0 {
                    unsent -= 1;
                    client.say(latest + 1, &format!("{n}/{unsent}")).await;
                }
                let message = client.next().await;
                latest = latest.max(message.timestamp);
                received.push(message);
            }
            (received, client)
        });
    }
    let results = tasks.join_all().await;
    let first = results
        .iter()
        .map(|(received, _)| received)
        .max_by_key(|received| received.len())
        .unwrap();
    assert_eq!(first[0].sequence, 1, "the longest stream is the first client's");
    for (index, message) in first.iter().enumerate() {
        assert_eq!(message.sequence, index as u64 + 1);
        assert!(index == 0 || message.timestamp > first[index - 1].timestamp);
    }
    for (received, _) in &results {
        assert_eq!(received[..], first[received[0].sequence as usize - 1..]);
    }
    // All messages of each sender are there, in the order in which they were sent.
    for n in 0..SENDERS {
        let prefix = format!("{n}/");
        let numbers: Vec<usize> = first
            .iter()
            .filter_map(|m| m.msg_stream.strip_prefix(&prefix)?.parse().ok())
            .collect();
        assert_eq!(numbers, (0..MESSAGES).rev().collect::<Vec<_>>());
    }
}

/// Open descriptors of this process, and its resident memory in KiB.
fn resources() -> (usize, u64) {
    let descriptors = std::fs::read_dir("/proc/self/fd").unwrap().count();
    (descriptors, resident_memory().unwrap() / 1024)
}

/// Lets `clients` join over twenty connections, receive their own JOIN, and leave or disconnect.
async fn join_and_leave(server: &TestServer, clients: usize) {
    let mut channels = Vec::new();
    for _ in 0..20 {
        channels.push(server.channel().await);
    }
    let mut tasks = JoinSet::new();
    for n in 0..clients {
        let channel = channels[n % channels.len()].clone();
        tasks.spawn(async move {
            let mut client = Client::open(channel).await;
            let join = JoinMsgLeave {
                room: format!("room-{}", n % 50),
                ..join(&format!("client-{n}"))
            };
            client.send(join).await;
            client.next().await;
            if n % 2 == 0 {
                client.send(leave(0)).await;
                client.end().await;
            }
        });
    }
    tasks.join_all().await;
    server.wait_for_metric("chitchat_connected_clients", 0.0).await;
}

/// Runs [`twenty_thousand_clients`] in a process of its own, because the memory of a process is that of all its tests.
#[test]
fn twenty_thousand_clients_leave_no_tasks_descriptors_or_memory_behind() {
    let test = ["--exact", "load::twenty_thousand_clients", "--ignored"];
    let output = std::process::Command::new(std::env::current_exe().unwrap())
        .args(test)
        .output()
        .unwrap();
    let stdout = String::from_utf8_lossy(&output.stdout);
    assert!(stdout.contains("test result: ok. 1 passed"), "{stdout}");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "runs in a process of its own"]
async fn twenty_thousand_clients() {
    // Half of them disconnect without a LEAVE; without a grace period they leave at once.
    let server = TestServer::with(|config| config.hub.resume_grace = Duration::ZERO).await;
    for _ in 0..3 {
        join_and_leave(&server, 1_000).await;
    }
    server.wait_for_metric("chitchat_connections_open", 0.0).await;
    let tasks = tokio::runtime::Handle::current().metrics().num_alive_tasks();
    let (descriptors, resident) = resources();
    for _ in 3..20 {
        join_and_leave(&server, 1_000).await;
    }
    server.wait_for_metric("chitchat_connections_open", 0.0).await;
    let (descriptors_now, resident_now) = resources();
    assert!(
        descriptors_now <= descriptors + 5,
        "{descriptors} descriptors became {descriptors_now}"
    );
    // The clients of the test are in this process too, with what they leave behind.
    assert!(
        resident_now <= resident + resident / 4 + 8_192,
        "{resident} KiB became {resident_now} KiB"
    );
    let tasks_now = tokio::runtime::Handle::current().metrics().num_alive_tasks();
    assert!(tasks_now <= tasks + 5, "{tasks} tasks became {tasks_now}");
    // The rooms are still there, and all participants have left them.
    assert_eq!(server.metric("chitchat_rooms_active").await, 50.0);
    let (joins, leaves) = (
        server
            .metric("chitchat_events_broadcast_total{kind=\"join\"}")
            .await,
        server
            .metric("chitchat_events_broadcast_total{kind=\"leave\"}")
            .await,
    );
    assert_eq!((joins, leaves), (20_000.0, 20_000.0));
}
