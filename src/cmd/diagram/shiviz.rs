//! Logs for ShiViz, with the vector clock of each event.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use serde_json::json;

use super::conversation::{ClientEvent, Conversation, step_of};

/// The first line tells ShiViz how to parse the events, the second one that there is one execution.
const HEADER: &str = "(?<host>\\S*) (?<clock>{.*})\\n(?<event>.*)\n\n";

const SERVER: &str = "Server";

type VectorClock = BTreeMap<String, u64>;

struct Writer<'a> {
    conversation: &'a Conversation,
    hosts: Vec<String>,
    clocks: Vec<VectorClock>,
    /// How many events of each client are written.
    written: Vec<usize>,
    server: VectorClock,
    /// The server's clock after each step.
    broadcasts: Vec<VectorClock>,
    out: String,
}

/// Writes the events of the server and of all clients, each after everything that happened before it.
pub(super) fn write(conversation: &Conversation) -> String {
    let clients = conversation.clients.len();
    let mut writer = Writer {
        conversation,
        hosts: hosts(conversation),
        clocks: vec![VectorClock::new(); clients],
        written: vec![0; clients],
        server: VectorClock::new(),
        broadcasts: Vec::new(),
        out: HEADER.to_owned(),
    };
    for (index, step) in conversation.steps.iter().enumerate() {
        if let Some(sender) = step.sender {
            writer.advance(sender, Some(index));
            let sent = writer.clocks[sender].clone();
            merge(&mut writer.server, &sent);
        }
        tick(&mut writer.server, SERVER);
        let clock = writer.server.clone();
        writer.event(SERVER, &clock, &step.broadcast());
        writer.broadcasts.push(clock);
    }
    for client in 0..clients {
        writer.advance(client, None);
    }
    writer.out
}

impl Writer<'_> {
    /// Writes the events of a client up to the one that sent the message of step `until`, or all.
    fn advance(&mut self, client: usize, until: Option<usize>) {
        let events = &self.conversation.clients[client].events;
        let end = match until {
            Some(step) => events
                .iter()
                .position(|event| *event == ClientEvent::Sent(step))
                .map(|place| place + 1),
            None => Some(events.len()),
        };
        // A message may have been sent before an earlier one, as seen by the server.
        let end = end.unwrap_or_default().max(self.written[client]);
        let host = self.hosts[client].clone();
        for &event in &events[self.written[client]..end] {
            let step = &self.conversation.steps[step_of(event)];
            let label = match event {
                ClientEvent::Sent(_) => format!("sends {}", step.call()),
                ClientEvent::Received(index) => {
                    if let Some(broadcast) = self.broadcasts.get(index) {
                        merge(&mut self.clocks[client], broadcast);
                    }
                    format!("receives {}", step.broadcast())
                }
            };
            tick(&mut self.clocks[client], &host);
            let clock = self.clocks[client].clone();
            self.event(&host, &clock, &label);
        }
        self.written[client] = end;
    }

    fn event(&mut self, host: &str, clock: &VectorClock, label: &str) {
        writeln!(self.out, "{host} {}\n{label}", json!(clock)).expect("writing to a String cannot fail");
    }
}

fn tick(clock: &mut VectorClock, host: &str) {
    *clock.entry(host.to_owned()).or_default() += 1;
}

fn merge(clock: &mut VectorClock, other: &VectorClock) {
    for (host, &time) in other {
        let own = clock.entry(host.clone()).or_default();
        *own = time.max(*own);
    }
}

/// The name of each client without white space, which ends the name of a host.
fn hosts(conversation: &Conversation) -> Vec<String> {
    let mut used = BTreeSet::from([SERVER.to_owned()]);
    let clients = conversation.clients.iter().enumerate();
    clients
        .map(|(index, client)| {
            let mut host: String = client
                .name
                .chars()
                .map(|c| if c.is_whitespace() { '_' } else { c })
                .collect();
            if !used.insert(host.clone()) {
                host = format!("{host}#{index}");
                used.insert(host.clone());
            }
            host
        })
        .collect()
}
