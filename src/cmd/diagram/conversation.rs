//! The content of a diagram: what clients sent to a room, what the server made of it, and who received that.

use std::collections::{BTreeMap, BTreeSet};

use prost_types::Timestamp;

use crate::client::escape;
use crate::proto::{EventType, JoinMsgLeave, NoticeCode, Participant, ServerMessage};

/// The longest text in a label, in characters.
const MAX_LABEL_CHARS: usize = 60;

/// The longest text that is refused, beside the reason.
const MAX_REFUSED_CHARS: usize = 20;

/// A line of a saved log.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Record {
    Sent(JoinMsgLeave),
    Received(Box<ServerMessage>, Option<Timestamp>),
}

/// Everything that is known about a room, in any order.
#[derive(Debug, Default)]
pub(super) struct Source {
    /// Events from the server's log.
    pub(super) events: Vec<ServerMessage>,
    /// Participants of the room, some of whom may have joined before the first event.
    pub(super) participants: Vec<Participant>,
    /// The logs of clients, and of readers that did not join.
    pub(super) logs: Vec<Vec<Record>>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Conversation {
    pub(super) clients: Vec<Client>,
    /// In the order of the room.
    pub(super) steps: Vec<Step>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Client {
    pub(super) name: String,
    /// What happened at this client, in its order. Without its log: it received everything that the server sent before
    /// its next message was received.
    pub(super) events: Vec<ClientEvent>,
}

/// An event at a client, with the index of its step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ClientEvent {
    Sent(usize),
    Received(usize),
}

/// What the server did at a Lamport time: it received a message, unless it acted by itself, and sent something.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Step {
    pub(super) time: i64,
    pub(super) kind: StepKind,
    /// The index of the client whose message the server received.
    pub(super) sender: Option<usize>,
    /// The indices of the clients that received what the server sent: in the order of their arrival where it is known.
    pub(super) receivers: Vec<usize>,
    /// The name of the participant.
    name: String,
    /// The text that the client sent.
    text: String,
    /// The text of the server.
    answer: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum StepKind {
    Join,
    Message,
    Leave,
    /// A notice of the server.
    Notice,
}

impl Step {
    /// The label of the message that the client sent.
    pub(super) fn call(&self) -> String {
        let what = match self.kind {
            StepKind::Join => "JOIN".to_owned(),
            StepKind::Leave => "LEAVE".to_owned(),
            StepKind::Message | StepKind::Notice => self.quoted(),
        };
        format!("{what} (L={})", self.time)
    }

    /// The label of what the server sent.
    pub(super) fn broadcast(&self) -> String {
        match self.kind {
            StepKind::Join => format!("{} JOINS (L={})", self.name, self.time),
            // The text has the time.
            StepKind::Leave => self.answer.clone(),
            StepKind::Message => self.call(),
            StepKind::Notice => format!("{} (L={})", self.answer, self.time),
        }
    }

    /// The whole step, without its time.
    pub(super) fn summary(&self) -> String {
        match self.kind {
            StepKind::Join => format!("{} joins", self.name),
            StepKind::Leave => format!("{} leaves", self.name),
            StepKind::Message => format!("{}: {}", self.name, self.quoted()),
            StepKind::Notice if self.sender.is_some() => {
                let text = shorten(&self.text, MAX_REFUSED_CHARS);
                format!("{}: \"{text}\" refused: {}", self.name, self.answer)
            }
            StepKind::Notice => format!("to {}: {}", self.name, self.answer),
        }
    }

    fn quoted(&self) -> String {
        format!("\"{}\"", self.text)
    }
}

/// The position of a step. Lamport times increase along the events of an epoch; a notice comes after the event that
/// has its time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Position {
    epoch: u64,
    time: i64,
    /// The index of the log and the record in it; `None` for an event of the room.
    private: Option<(usize, usize)>,
}

impl Position {
    const fn of(event: &ServerMessage) -> Self {
        Self {
            epoch: event.epoch,
            time: event.timestamp,
            private: None,
        }
    }
}

/// Something that the server sent.
struct Entry<'a> {
    message: &'a ServerMessage,
    /// The message that is refused.
    refused: Option<&'a JoinMsgLeave>,
}

/// A log of a client that joined.
struct ClientLog<'a> {
    records: &'a [Record],
    /// The position of its JOIN.
    joined_at: Position,
    /// What it received, with the time of arrival.
    received: BTreeMap<Position, Option<(i64, i32)>>,
    has_left: bool,
}

/// A client from its JOIN to its LEAVE, or a single message of one that did not join.
struct Presence {
    client: usize,
    log: Option<usize>,
    joined: Option<usize>,
    left: Option<usize>,
}

impl Conversation {
    pub(super) fn new(source: &Source) -> Self {
        let (entries, logs) = collect(source);
        Builder::new(&logs, source, &entries).build(&entries)
    }

    /// Keeps the steps from Lamport time `from` to `to`, at most the newest `last` of them, and at most `max_clients`
    /// clients, preferring those that sent something. Returns how many clients are left out.
    pub(super) fn narrow(&mut self, from: i64, to: i64, last: usize, max_clients: usize) -> usize {
        let kept: Vec<usize> = (0..self.steps.len())
            .filter(|&step| (from..=to).contains(&self.steps[step].time))
            .collect();
        let kept = &kept[kept.len().saturating_sub(last)..];
        let step_index: BTreeMap<usize, usize> = kept.iter().copied().zip(0..).collect();

        let senders: BTreeSet<usize> = kept.iter().filter_map(|&step| self.steps[step].sender).collect();
        let mut shown: Vec<usize> = kept
            .iter()
            .flat_map(|&step| &self.steps[step].receivers)
            .copied()
            .chain(senders.iter().copied())
            .collect::<BTreeSet<usize>>()
            .into_iter()
            .collect();
        let left_out = shown.len().saturating_sub(max_clients);
        shown.sort_by_key(|client| (!senders.contains(client), *client));
        shown.truncate(max_clients);
        shown.sort_unstable();
        let client_index: BTreeMap<usize, usize> = shown.iter().copied().zip(0..).collect();

        self.steps = kept
            .iter()
            .map(|&step| {
                let step = &self.steps[step];
                let receivers = step.receivers.iter();
                Step {
                    sender: step.sender.and_then(|sender| client_index.get(&sender).copied()),
                    receivers: receivers
                        .filter_map(|client| client_index.get(client).copied())
                        .collect(),
                    ..step.clone()
                }
            })
            .collect();
        self.clients = shown
            .iter()
            .map(|&client| {
                let client = &self.clients[client];
                let events = client.events.iter();
                Client {
                    name: client.name.clone(),
                    events: events
                        .filter_map(|event| {
                            Some(match event {
                                ClientEvent::Sent(step) => ClientEvent::Sent(*step_index.get(step)?),
                                ClientEvent::Received(step) => ClientEvent::Received(*step_index.get(step)?),
                            })
                        })
                        .collect(),
                }
            })
            .collect();
        left_out
    }
}

/// Sorts everything that the server sent, and analyses the logs of clients that joined.
fn collect(source: &Source) -> (BTreeMap<Position, Entry<'_>>, Vec<ClientLog<'_>>) {
    let mut entries = BTreeMap::new();
    for message in &source.events {
        entries.insert(
            Position::of(message),
            Entry {
                message,
                refused: None,
            },
        );
    }
    let mut logs = Vec::new();
    for records in &source.logs {
        let Some(name) = joined_name(records) else {
            for record in records {
                if let Record::Received(message, _) = record
                    && is_event(message)
                {
                    entries.insert(
                        Position::of(message),
                        Entry {
                            message,
                            refused: None,
                        },
                    );
                }
            }
            continue;
        };
        let mut sent: BTreeMap<&str, &JoinMsgLeave> = BTreeMap::new();
        let mut joined_at = None;
        let mut received = BTreeMap::new();
        let (mut epoch, mut has_left) = (0, false);
        for (index, record) in records.iter().enumerate() {
            match record {
                Record::Sent(call) => {
                    sent.insert(&call.message_id, call);
                    has_left |= call.r#type() == EventType::Leave;
                }
                Record::Received(message, at) => {
                    let mut entry = Entry {
                        message,
                        refused: None,
                    };
                    let mut position = Position::of(message);
                    if is_event(message) {
                        epoch = message.epoch;
                        if message.r#type() == EventType::Join && message.sender_name == name {
                            joined_at = joined_at.or(Some(position));
                        }
                    } else if is_repeated(message) || joined_at.is_none() {
                        continue;
                    } else {
                        position = Position {
                            epoch: if message.epoch == 0 { epoch } else { message.epoch },
                            private: Some((logs.len(), index)),
                            ..position
                        };
                        entry.refused = sent.get(message.message_id.as_str()).copied();
                    }
                    // What was said before the client joined is not a delivery of that time.
                    if joined_at.is_some() {
                        received.insert(position, at.as_ref().map(|at| (at.seconds, at.nanos)));
                    }
                    entries.insert(position, entry);
                }
            }
        }
        if let Some(joined_at) = joined_at {
            logs.push(ClientLog {
                records,
                joined_at,
                received,
                has_left,
            });
        }
    }
    (entries, logs)
}

/// The name under which the client of this log joined.
fn joined_name(records: &[Record]) -> Option<&str> {
    records.iter().find_map(|record| match record {
        Record::Sent(call) if call.r#type() == EventType::Join => Some(call.client_name.trim()),
        _ => None,
    })
}

const fn is_event(message: &ServerMessage) -> bool {
    message.sender_id != 0 && message.notice.is_none()
}

fn is_repeated(message: &ServerMessage) -> bool {
    let notice = message.notice.as_ref();
    notice.is_some_and(|notice| notice.code() == NoticeCode::MessageRepeated)
}

struct Builder<'a> {
    logs: &'a [ClientLog<'a>],
    names: Vec<String>,
    client_of_name: BTreeMap<String, usize>,
    presences: Vec<Presence>,
    /// The participants, in the order in which they joined: their ids, and the indices of their presences.
    present: Vec<(i32, usize)>,
    /// Sender and receivers are indices of presences.
    steps: Vec<Step>,
    step_at: BTreeMap<Position, usize>,
    step_of_message: BTreeMap<&'a str, usize>,
}

impl<'a> Builder<'a> {
    /// Begins with those who joined before the first event.
    fn new(logs: &'a [ClientLog<'a>], source: &Source, entries: &BTreeMap<Position, Entry<'_>>) -> Self {
        let mut builder = Self {
            logs,
            names: Vec::new(),
            client_of_name: BTreeMap::new(),
            presences: Vec::new(),
            present: Vec::new(),
            steps: Vec::new(),
            step_at: BTreeMap::new(),
            step_of_message: BTreeMap::new(),
        };
        let begin = entries.keys().next().map_or(i64::MIN, |position| position.time);
        let mut earlier: BTreeMap<i32, &str> = source
            .participants
            .iter()
            .filter(|participant| participant.joined_timestamp < begin)
            .map(|participant| (participant.id, participant.name.as_str()))
            .collect();
        let mut joined = BTreeSet::new();
        for Entry { message, .. } in entries.values() {
            match message.r#type() {
                EventType::Join => {
                    joined.insert(message.sender_id);
                }
                EventType::Leave if !joined.contains(&message.sender_id) => {
                    earlier.insert(message.sender_id, &message.sender_name);
                }
                EventType::Leave | EventType::Message => {}
            }
        }
        for (id, name) in earlier {
            builder.enter(id, name, None);
        }
        builder
    }

    fn build(mut self, entries: &BTreeMap<Position, Entry<'a>>) -> Conversation {
        for (position, entry) in entries {
            self.step(*position, entry);
        }
        let mut clients: Vec<Client> = self
            .names
            .iter()
            .map(|name| Client {
                name: name.clone(),
                events: Vec::new(),
            })
            .collect();
        for (index, presence) in self.presences.iter().enumerate() {
            let events = match presence.log {
                Some(log) => self.logged_events(index, &self.logs[log]),
                None => self.assumed_events(index),
            };
            clients[presence.client].events.extend(events);
        }
        let client = |presence: usize| self.presences[presence].client;
        let steps = self.steps.iter().map(|step| Step {
            sender: step.sender.map(client),
            receivers: step.receivers.iter().map(|&presence| client(presence)).collect(),
            ..step.clone()
        });
        Conversation {
            steps: steps.collect(),
            clients,
        }
    }

    fn add_client(&mut self, name: String) -> usize {
        self.names.push(name);
        self.names.len() - 1
    }

    /// Adds a participant. One who comes back under the same name is the same client.
    fn enter(&mut self, id: i32, name: &str, log: Option<usize>) -> usize {
        let shown = escape::name(name).into_owned();
        let client = match self.client_of_name.get(&shown) {
            Some(&client) => {
                let is_present = |&(_, presence): &(i32, usize)| self.presences[presence].client == client;
                if self.present.iter().any(is_present) {
                    self.add_client(format!("{shown} ({id})"))
                } else {
                    client
                }
            }
            None => {
                let client = self.add_client(shown.clone());
                self.client_of_name.insert(shown, client);
                client
            }
        };
        let presence = self.add_presence(client, log);
        self.present.push((id, presence));
        presence
    }

    fn add_presence(&mut self, client: usize, log: Option<usize>) -> usize {
        self.presences.push(Presence {
            client,
            log,
            joined: None,
            left: None,
        });
        self.presences.len() - 1
    }

    fn presence_of(&self, id: i32) -> Option<usize> {
        self.present
            .iter()
            .find(|(other, _)| *other == id)
            .map(|(_, presence)| *presence)
    }

    /// The client that posts a message without being a participant.
    fn poster(&mut self, name: &str) -> usize {
        let shown = escape::name(name).into_owned();
        let client = match self.client_of_name.get(&shown) {
            Some(&client) => client,
            None => {
                let client = self.add_client(shown.clone());
                self.client_of_name.insert(shown, client);
                client
            }
        };
        self.add_presence(client, None)
    }

    fn step(&mut self, position: Position, entry: &Entry<'a>) {
        let message = entry.message;
        let index = self.steps.len();
        let id = message.sender_id;
        let (kind, sender, receivers) = if let Some((log, _)) = position.private {
            let owner = self
                .presences
                .iter()
                .position(|presence| presence.log == Some(log));
            // A notice to a client that is not a participant yet.
            let Some(owner) = owner else { return };
            let sender = entry.refused.map(|_| owner);
            (StepKind::Notice, sender, vec![owner])
        } else {
            match message.r#type() {
                EventType::Join => {
                    let log = self.logs.iter().position(|log| log.joined_at == position);
                    let joined = self.enter(id, &message.sender_name, log);
                    self.presences[joined].joined = Some(index);
                    (StepKind::Join, Some(joined), self.receivers(position))
                }
                EventType::Leave => {
                    let left = self.presence_of(id);
                    self.present.retain(|(other, _)| *other != id);
                    // Its log tells whether it left or the server ended its session.
                    let sender = left
                        .filter(|&left| self.presences[left].log.is_none_or(|log| self.logs[log].has_left));
                    if let Some(left) = left {
                        self.presences[left].left = Some(index);
                    }
                    (StepKind::Leave, sender, self.receivers(position))
                }
                EventType::Message => {
                    let mut receivers = self.receivers(position);
                    let sender = self.presence_of(id).unwrap_or_else(|| {
                        let poster = self.poster(&message.sender_name);
                        // The response to its call.
                        receivers.push(poster);
                        poster
                    });
                    (StepKind::Message, Some(sender), receivers)
                }
            }
        };
        let name = match position.private {
            Some(_) => receivers
                .first()
                .map(|&owner| self.names[self.presences[owner].client].clone()),
            None => None,
        };
        self.step_at.insert(position, index);
        if !message.message_id.is_empty() {
            self.step_of_message.insert(&message.message_id, index);
        }
        self.steps.push(Step {
            time: message.timestamp,
            kind,
            sender,
            receivers,
            name: name.unwrap_or_else(|| escape::name(&message.sender_name).into_owned()),
            text: label(entry.refused.map_or(&message.msg_stream, |call| &call.msg)),
            answer: label(&message.msg_stream),
        });
    }

    /// The presences that receive the event at `position`.
    fn receivers(&self, position: Position) -> Vec<usize> {
        let mut receivers: Vec<_> = self
            .present
            .iter()
            .filter_map(|&(_, presence)| match self.presences[presence].log {
                Some(log) => Some((*self.logs[log].received.get(&position)?, presence)),
                None => Some((None, presence)),
            })
            .collect();
        // Stable: without times the order is that in which they joined.
        receivers.sort_by_key(|(at, _)| (at.is_none(), *at));
        receivers.into_iter().map(|(_, presence)| presence).collect()
    }

    fn assumed_events(&self, presence: usize) -> Vec<ClientEvent> {
        let mut events = Vec::new();
        for (index, step) in self.steps.iter().enumerate() {
            if step.sender == Some(presence) {
                events.push(ClientEvent::Sent(index));
            }
            if step.receivers.contains(&presence) {
                events.push(ClientEvent::Received(index));
            }
        }
        events
    }

    fn logged_events(&self, presence: usize, log: &ClientLog<'_>) -> Vec<ClientEvent> {
        let Presence { joined, left, .. } = self.presences[presence];
        let mut events = Vec::new();
        let mut seen = BTreeSet::new();
        let mut epoch = 0;
        for (index, record) in log.records.iter().enumerate() {
            let event = match record {
                Record::Sent(call) => match call.r#type() {
                    EventType::Join => joined,
                    EventType::Leave => left,
                    EventType::Message => self.step_of_message.get(call.message_id.as_str()).copied(),
                }
                .filter(|&step| self.steps[step].sender == Some(presence))
                .map(ClientEvent::Sent),
                Record::Received(message, _) => {
                    let mut position = Position::of(message);
                    if is_event(message) {
                        epoch = message.epoch;
                    } else {
                        position.epoch = if message.epoch == 0 { epoch } else { message.epoch };
                        let log = self.presences[presence].log.unwrap_or_default();
                        position.private = Some((log, index));
                    }
                    let step = self.step_at.get(&position).copied();
                    step.filter(|&step| self.steps[step].receivers.contains(&presence))
                        .map(ClientEvent::Received)
                }
            };
            if let Some(event) = event
                && seen.insert((matches!(event, ClientEvent::Sent(_)), step_of(event)))
            {
                events.push(event);
            }
        }
        events
    }
}

pub(super) const fn step_of(event: ClientEvent) -> usize {
    match event {
        ClientEvent::Sent(step) | ClientEvent::Received(step) => step,
    }
}

/// A text of a message as a label: one line of limited length.
fn label(text: &str) -> String {
    let line = text.trim().replace('\n', " ↵ ");
    shorten(&escape::text(&line), MAX_LABEL_CHARS)
}

/// Shortens `text` to at most `max` characters, of which the last is an ellipsis if something is left out.
pub(super) fn shorten(text: &str, max: usize) -> String {
    if text.chars().count() <= max {
        return text.to_owned();
    }
    let mut short: String = text.chars().take(max.saturating_sub(1)).collect();
    short.push('…');
    short
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use ClientEvent::{Received, Sent};

    fn event(sequence: u64, time: i64, id: i32, r#type: EventType, text: &str) -> ServerMessage {
        ServerMessage {
            sender_id: id,
            sender_name: format!("client {id}"),
            msg_stream: text.to_owned(),
            r#type: r#type.into(),
            timestamp: time,
            sequence,
            epoch: 1,
            message_id: format!("id {sequence}"),
            ..ServerMessage::default()
        }
    }

    /// `clients` join, and take turns until there are `events` events; Lamport times have gaps.
    pub(in super::super) fn busy_room(clients: i32, events: u64) -> Conversation {
        let mut source = Source::default();
        let ids = (1..=clients).chain((1..=clients).cycle().take(10_000));
        for ((sequence, id), time) in (1..=events)
            .zip(ids)
            .zip((1..).map(|number: i64| number * number))
        {
            let r#type = if sequence <= u64::from(clients.unsigned_abs()) {
                EventType::Join
            } else {
                EventType::Message
            };
            source
                .events
                .push(event(sequence, time, id, r#type, &"text ".repeat(20)));
        }
        Conversation::new(&source)
    }

    /// A client that sends `messages` messages before it receives the first of them.
    pub(in super::super) fn pipelined(messages: u64) -> Conversation {
        let call = |r#type: EventType, message_id: String| {
            Record::Sent(JoinMsgLeave {
                client_name: "client 1".into(),
                message_id,
                r#type: r#type.into(),
                ..JoinMsgLeave::default()
            })
        };
        let received = |sequence: u64, r#type| {
            let time = i64::try_from(sequence).unwrap();
            Record::Received(Box::new(event(sequence, time, 1, r#type, "hi")), None)
        };
        let mut log = vec![call(EventType::Join, String::new()), received(1, EventType::Join)];
        log.extend((2..=messages + 1).map(|sequence| call(EventType::Message, format!("id {sequence}"))));
        log.extend((2..=messages + 1).map(|sequence| received(sequence, EventType::Message)));
        Conversation::new(&Source {
            logs: vec![log],
            ..Source::default()
        })
    }

    #[test]
    fn everybody_who_is_there_receives_an_event() {
        let events = vec![
            event(1, 1, 1, EventType::Join, ""),
            event(2, 2, 2, EventType::Join, ""),
            event(3, 3, 7, EventType::Message, "posted without joining"),
            event(4, 4, 1, EventType::Leave, ""),
            event(5, 5, 1, EventType::Join, ""),
        ];
        let conversation = Conversation::new(&Source {
            events,
            ..Source::default()
        });
        let names: Vec<&str> = conversation
            .clients
            .iter()
            .map(|client| client.name.as_str())
            .collect();
        assert_eq!(names, ["client 1", "client 2", "client 7"]);
        let steps: Vec<_> = conversation
            .steps
            .iter()
            .map(|step| (step.sender, step.receivers.clone()))
            .collect();
        assert_eq!(
            steps,
            [
                (Some(0), vec![0]),
                (Some(1), vec![0, 1]),
                (Some(2), vec![0, 1, 2]),
                (Some(0), vec![1]),
                (Some(0), vec![1, 0]),
            ]
        );
        assert_eq!(conversation.clients[2].events, [Sent(2), Received(2)]);
    }

    #[test]
    fn participants_who_joined_before_the_first_event_receive_it() {
        let participant = |id, joined_timestamp| Participant {
            id,
            name: format!("client {id}"),
            joined_timestamp,
            connected: true,
        };
        let source = Source {
            events: vec![
                event(8, 20, 2, EventType::Message, "hi"),
                event(9, 21, 3, EventType::Leave, ""),
                event(10, 22, 4, EventType::Join, ""),
            ],
            participants: vec![participant(2, 5), participant(4, 22)],
            ..Source::default()
        };
        let steps = Conversation::new(&source).steps;
        assert_eq!(
            steps[0].receivers,
            [0, 1],
            "client 2, and client 3 who leaves later"
        );
        assert_eq!(steps[1].receivers, [0]);
        assert_eq!(steps[2].receivers, [0, 2]);
    }

    #[test]
    fn a_log_has_the_order_at_its_client() {
        let conversation = pipelined(2);
        let events = &conversation.clients[0].events;
        assert_eq!(
            *events,
            [Sent(0), Received(0), Sent(1), Sent(2), Received(1), Received(2)]
        );
    }

    #[test]
    fn a_client_that_did_not_leave_itself_sends_no_leave() {
        let log = vec![
            Record::Sent(JoinMsgLeave {
                client_name: "client 1".into(),
                ..JoinMsgLeave::default()
            }),
            Record::Received(Box::new(event(1, 1, 1, EventType::Join, "")), None),
        ];
        let events = vec![event(2, 2, 1, EventType::Leave, "gone")];
        let conversation = Conversation::new(&Source {
            events,
            logs: vec![log],
            ..Source::default()
        });
        assert_eq!(
            (conversation.steps[1].sender, &conversation.steps[1].kind),
            (None, &StepKind::Leave)
        );
    }

    #[test]
    fn the_newest_steps_between_two_times_are_kept() {
        let mut conversation = busy_room(4, 20);
        let left_out = conversation.narrow(16, 200, 3, 2);
        let times: Vec<i64> = conversation.steps.iter().map(|step| step.time).collect();
        assert_eq!(times, [144, 169, 196]);
        assert_eq!((left_out, conversation.clients.len()), (2, 2));
        let clients = &conversation.clients;
        assert!(
            clients
                .iter()
                .flat_map(|client| &client.events)
                .all(|&event| step_of(event) < 3)
        );
    }

    #[test]
    fn long_and_hostile_texts_become_one_short_line() {
        assert_eq!(label("one\ntwo\u{1b}"), "one ↵ two\\u{1b}");
        assert_eq!(shorten(&"x".repeat(9), 5), "xxxx…");
    }
}
