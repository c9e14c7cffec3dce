//! Many at once: one order for all, and nothing left behind.

use std::time::Duration;

use chitchat::proto::{JoinMsgLeave, ServerMessage};
use tokio::task::JoinSet;

use crate::harness::{Client, TestServer, join, leave};

const SENDERS: usize = 50;
const RECEIVERS: usize = 50;
const MESSAGES: usize = 40;

/// A client that has joined, whose stream begins with its own JOIN.
async fn enter(server: &TestServer, name: String) -> (Client, ServerMessage) {
    let mut client = server.open().await;
    client
        .send(JoinMsgLeave {
            client_name: name,
            ..join("")
        })
        .await;
    let joined = client.next().await;
    (client, joined)
}

#[tokio::test(flavor = "multi_thread")]
async fn all_streams_are_identical() {
    let server = TestServer::start().await;
    let mut clients = Vec::new();
    for n in 0..SENDERS + RECEIVERS {
        clients.push(enter(&server, format!("client-{n}")).await);
    }
    let mut reading = JoinSet::new();
    for (n, (mut client, joined)) in clients.into_iter().enumerate() {
        reading.spawn(async move {
            let mut heard = vec![joined];
            let mut latest = heard[0].timestamp;
            let mut to_say = if n < SENDERS { MESSAGES } else { 0 };
            while heard.last().unwrap().sequence < (SENDERS + RECEIVERS + SENDERS * MESSAGES) as u64 {
                if to_say > 0 {
                    to_say -= 1;
                    client.say(latest + 1, &format!("{n}/{to_say}")).await;
                }
                let message = client.next().await;
                latest = latest.max(message.timestamp);
                heard.push(message);
            }
            (heard, client)
        });
    }
    let results = reading.join_all().await;
    let first = results
        .iter()
        .map(|(heard, _)| heard)
        .max_by_key(|heard| heard.len())
        .unwrap();
    assert_eq!(first[0].sequence, 1, "the longest stream is the first client's");
    for (index, message) in first.iter().enumerate() {
        assert_eq!(message.sequence, index as u64 + 1);
        assert!(index == 0 || message.timestamp > first[index - 1].timestamp);
    }
    for (heard, _) in &results {
        assert_eq!(heard[..], first[heard[0].sequence as usize - 1..]);
    }
    // Each sender's messages are all there, in the order in which they were said.
    for n in 0..SENDERS {
        let prefix = format!("{n}/");
        let said: Vec<usize> = first
            .iter()
            .filter_map(|m| m.msg_stream.strip_prefix(&prefix)?.parse().ok())
            .collect();
        assert_eq!(said, (0..MESSAGES).rev().collect::<Vec<_>>());
    }
}

/// Open descriptors of this process, and its resident memory in KiB.
fn resources() -> (usize, u64) {
    let descriptors = std::fs::read_dir("/proc/self/fd").unwrap().count();
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let resident = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .unwrap();
    (
        descriptors,
        resident.trim().trim_end_matches(" kB").parse().unwrap(),
    )
}

/// A thousand clients on some connections come, hear themselves, and go.
async fn come_and_go(server: &TestServer, clients: usize) {
    let mut channels = Vec::new();
    for _ in 0..20 {
        channels.push(server.channel().await);
    }
    let mut going = JoinSet::new();
    for n in 0..clients {
        let channel = channels[n % channels.len()].clone();
        going.spawn(async move {
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
    going.join_all().await;
    server.until_metric("chitchat_connected_clients", 0.0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_that_come_and_go_twenty_times_leave_nothing_behind() {
    // Half of them vanish: they have no time to come back here.
    let server = TestServer::with(|config| config.hub.resume_grace = Duration::ZERO).await;
    for _ in 0..3 {
        come_and_go(&server, 1_000).await;
    }
    server.until_metric("chitchat_connections_open", 0.0).await;
    let tasks = tokio::runtime::Handle::current().metrics().num_alive_tasks();
    let (descriptors, resident) = resources();
    for _ in 3..20 {
        come_and_go(&server, 1_000).await;
    }
    server.until_metric("chitchat_connections_open", 0.0).await;
    let (descriptors_now, resident_now) = resources();
    assert!(
        descriptors_now <= descriptors + 5,
        "{descriptors} descriptors became {descriptors_now}"
    );
    // The test's own clients are in this process too: what they leave counts as well.
    assert!(
        resident_now <= resident + resident / 4 + 8_192,
        "{resident} KiB became {resident_now} KiB"
    );
    let tasks_now = tokio::runtime::Handle::current().metrics().num_alive_tasks();
    assert!(tasks_now <= tasks + 5, "{tasks} tasks became {tasks_now}");
    // The rooms, which go on, know that everybody has gone.
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
