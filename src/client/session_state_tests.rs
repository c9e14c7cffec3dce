use std::collections::{HashMap, VecDeque};

use proptest::prelude::*;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

use super::*;
use crate::proto::Notice;

const EPOCH: u64 = 9;
const OWN_ID: i32 = 7;

/// A model of a server with one room, in which the participant under test and another participant send messages.
#[derive(Default)]
struct Server {
    log: Vec<ServerMessage>,
    ids: HashMap<String, u64>,
    time: i64,
    token: Option<String>,
    sessions: u32,
    last_timestamp: i64,
}

impl Server {
    fn append(&mut self, sender_id: i32, r#type: EventType, text: &str, message_id: &str) -> ServerMessage {
        self.time += 1;
        let event = ServerMessage {
            sender_id,
            msg_stream: text.to_owned(),
            r#type: r#type.into(),
            timestamp: self.time,
            sequence: self.log.len() as u64 + 1,
            epoch: EPOCH,
            message_id: message_id.to_owned(),
            ..ServerMessage::default()
        };
        self.log.push(event.clone());
        event
    }

    fn receive(&mut self, timestamp: i64) {
        assert!(
            timestamp > self.last_timestamp,
            "the timestamps of a client increase"
        );
        self.last_timestamp = timestamp;
        self.time = self.time.max(timestamp);
    }

    /// Ends the session, as the server does when its grace period has expired.
    fn expire_session(&mut self) {
        if self.token.take().is_some() {
            self.append(OWN_ID, EventType::Leave, "left", "");
        }
    }

    /// Answers a JOIN with a welcome and the events that follow.
    fn join(&mut self, join: &JoinMsgLeave) -> (Welcome, Vec<ServerMessage>) {
        self.receive(join.timestamp);
        let before = self.log.len() as u64;
        let continues = self.token.is_some() && self.token.as_deref() == Some(join.session_token.as_str());
        if !continues {
            // A JOIN without the token ends the earlier session at once.
            self.expire_session();
            self.sessions += 1;
            self.token = Some(format!("token {}", self.sessions));
            self.append(OWN_ID, EventType::Join, "joined", "");
        }
        let resume = join.resume.filter(|resume| resume.epoch == EPOCH);
        let after = resume.map_or(before, |resume| resume.sequence);
        let welcome = Welcome {
            participant_id: OWN_ID,
            session_token: self.token.clone().unwrap(),
            epoch: EPOCH,
            sequence: after,
            recovered: resume.is_some(),
            last_sequence: before,
            ..Welcome::default()
        };
        let follows = self.log[usize::try_from(after).unwrap()..].to_vec();
        (welcome, follows)
    }

    /// Answers a message of the participant.
    fn on_text(&mut self, frame: &JoinMsgLeave) -> ServerMessage {
        self.receive(frame.timestamp);
        if let Some(original) = self.ids.get(&frame.message_id) {
            self.time += 1;
            return ServerMessage {
                r#type: EventType::Message.into(),
                timestamp: self.time,
                message_id: frame.message_id.clone(),
                notice: Some(Notice {
                    code: NoticeCode::MessageRepeated.into(),
                    original_sequence: *original,
                    ..Notice::default()
                }),
                ..ServerMessage::default()
            };
        }
        let event = self.append(OWN_ID, EventType::Message, &frame.msg, &frame.message_id);
        self.ids.insert(frame.message_id.clone(), event.sequence);
        event
    }
}

/// A participant, a server, and the messages in flight between them.
struct Simulation {
    server: Server,
    state: SessionState,
    to_server: VecDeque<JoinMsgLeave>,
    to_client: VecDeque<ServerMessage>,
    connected: bool,
    sent: Vec<String>,
    received: Vec<ServerMessage>,
    gaps: Vec<Gap>,
}

impl Simulation {
    fn new() -> Self {
        let mut simulation = Self {
            server: Server::default(),
            state: SessionState::new(JoinOptions::new("Ada")),
            to_server: VecDeque::new(),
            to_client: VecDeque::new(),
            connected: false,
            sent: Vec::new(),
            received: Vec::new(),
            gaps: Vec::new(),
        };
        simulation.connect();
        simulation
    }

    fn connect(&mut self) {
        if !self.connected {
            let join = self.state.join_message();
            let (welcome, follows) = self.server.join(&join);
            self.to_server.clear();
            self.to_client = follows.into();
            self.connected = true;
            assert_eq!(self.state.on_joined(Some(welcome)), None);
        }
    }

    /// Cuts the connection after `arriving` more messages have reached the server.
    fn cut(&mut self, arriving: usize) {
        for _ in 0..arriving {
            self.serve();
        }
        self.connected = false;
        self.to_server.clear();
        self.to_client.clear();
        let broken = ClientError::from(Status::unavailable("cut"));
        assert!(matches!(
            self.state.on_disconnect(Some(broken)),
            DisconnectAction::Retry(..)
        ));
    }

    fn enqueue(&mut self) {
        let text = format!("text {}", self.sent.len());
        if self.state.enqueue(text.clone(), None).is_ok() {
            self.sent.push(text);
        }
    }

    fn send(&mut self) {
        if self.connected
            && let Some(frame) = self.state.next_message()
        {
            self.to_server.push_back(frame);
        }
    }

    fn serve(&mut self) {
        if let Some(frame) = self.to_server.pop_front() {
            let answer = self.server.on_text(&frame);
            self.to_client.push_back(answer);
        }
    }

    fn other_sends(&mut self) {
        let event = self.server.append(1, EventType::Message, "else", "");
        if self.connected {
            self.to_client.push_back(event);
        }
    }

    fn receive(&mut self) {
        if let Some(message) = self.to_client.pop_front() {
            let incoming = self.state.on_message(message);
            self.gaps.extend(incoming.gap);
            self.received
                .extend(incoming.message.filter(|message| message.sequence != 0));
        }
    }

    /// Reconnects and delivers all messages.
    fn run_to_completion(&mut self) {
        self.connect();
        while self.state.has_unsent() || !self.to_server.is_empty() || !self.to_client.is_empty() {
            self.send();
            self.serve();
            self.receive();
        }
    }
}

#[derive(Debug, Clone)]
enum Action {
    Enqueue,
    Send,
    Serve,
    Receive,
    OtherSends,
    Cut(usize),
    Connect,
    ExpireSession,
    ForgetIds,
    Repeat,
}

fn actions() -> impl Strategy<Value = Vec<Action>> {
    let action = prop_oneof![
        4 => Just(Action::Enqueue),
        6 => Just(Action::Send),
        6 => Just(Action::Serve),
        6 => Just(Action::Receive),
        2 => Just(Action::OtherSends),
        1 => (0_usize..4).prop_map(Action::Cut),
        3 => Just(Action::Connect),
        1 => Just(Action::ExpireSession),
        1 => Just(Action::ForgetIds),
        1 => Just(Action::Repeat),
    ];
    prop::collection::vec(action, 0..300)
}

proptest! {
    #[test]
    fn every_event_is_received_once_and_every_message_broadcast_once(actions in actions()) {
        let mut simulation = Simulation::new();
        for action in actions {
            match action {
                Action::Enqueue => simulation.enqueue(),
                Action::Send => simulation.send(),
                Action::Serve => simulation.serve(),
                Action::Receive => simulation.receive(),
                Action::OtherSends => simulation.other_sends(),
                Action::Cut(arriving) if simulation.connected => simulation.cut(arriving),
                Action::Connect => simulation.connect(),
                // A session can only expire while it has no connection.
                Action::ExpireSession if !simulation.connected => simulation.server.expire_session(),
                // The deduplication window has moved past all ids.
                Action::ForgetIds => simulation.server.ids.clear(),
                // The server sends an event twice.
                Action::Repeat => if let Some(event) = simulation.to_client.front().cloned() {
                    simulation.to_client.push_front(event);
                },
                Action::Cut(_) | Action::ExpireSession => {}
            }
        }
        simulation.run_to_completion();
        prop_assert_eq!(&simulation.received, &simulation.server.log);
        prop_assert_eq!(simulation.state.unacknowledged(), 0);
        prop_assert!(simulation.gaps.is_empty());
        let broadcast: Vec<&str> = simulation
            .server
            .log
            .iter()
            .filter(|event| !event.message_id.is_empty())
            .map(|event| event.msg_stream.as_str())
            .collect();
        prop_assert_eq!(broadcast, simulation.sent);
    }
}

fn welcome(epoch: u64, sequence: u64, recovered: bool) -> Option<Welcome> {
    Some(Welcome {
        participant_id: OWN_ID,
        session_token: "token".into(),
        epoch,
        sequence,
        recovered,
        ..Welcome::default()
    })
}

fn notice(code: NoticeCode) -> ServerMessage {
    ServerMessage {
        msg_stream: "because".into(),
        notice: Some(Notice {
            code: code.into(),
            retry_delay: Some(prost_types::Duration { seconds: 3, nanos: 0 }),
            ..Notice::default()
        }),
        ..ServerMessage::default()
    }
}

fn joined() -> SessionState {
    let mut state = SessionState::new(JoinOptions::new("Ada").room("tea"));
    state.join_message();
    state.on_joined(welcome(EPOCH, 4, false));
    state
}

#[test]
fn a_reconnect_presents_the_token_and_position_of_the_last_welcome() {
    let mut state = SessionState::new(JoinOptions::new("Ada").room("tea"));
    let first = state.join_message();
    assert_eq!((first.session_token.as_str(), first.resume), ("", None));
    assert_eq!(state.on_joined(welcome(EPOCH, 4, false)), None);
    let again = state.join_message();
    assert_eq!((again.client_name.as_str(), again.room.as_str()), ("Ada", "tea"));
    assert_eq!(again.session_token, "token");
    let position = ResumePoint {
        epoch: EPOCH,
        sequence: 4,
    };
    assert_eq!(again.resume, Some(position));
    assert!(again.timestamp > first.timestamp);
}

#[test]
fn a_gap_is_reported_after_an_incomplete_resume() {
    let mut state = joined();
    let gap = Gap::Expired { first: 5, last: 9 };
    assert_eq!(state.on_joined(welcome(EPOCH, 9, false)), Some(gap));
    let gap = Gap::NewEpoch { seen: 9, after: 2 };
    assert_eq!(state.on_joined(welcome(EPOCH + 1, 2, false)), Some(gap));
    assert_eq!(state.on_joined(None), Some(Gap::Unknown));
}

#[test]
fn leave_is_sent_last_and_again_after_a_reconnect() {
    let mut state = joined();
    let one = state.enqueue("one".into(), None).unwrap();
    state.leave();
    assert!(matches!(
        state.enqueue("two".into(), None),
        Err(ClientError::Closed)
    ));
    let sent = |state: &mut SessionState| -> Vec<EventType> {
        let frames = std::iter::from_fn(|| state.next_message());
        frames.map(|frame| frame.r#type()).collect()
    };
    // The message is not acknowledged: it is sent again, however the connection ends.
    for error in [Some(Status::unavailable("")), None] {
        assert_eq!(sent(&mut state), [EventType::Message]);
        assert!(!state.has_unsent());
        let end = state.on_disconnect(error.map(ClientError::from));
        assert!(matches!(end, DisconnectAction::Retry(..)));
        state.on_joined(welcome(EPOCH, 4, true));
    }
    assert_eq!(sent(&mut state), [EventType::Message]);
    state.on_message(own(5, &one));
    for _ in 0..2 {
        assert!(state.has_unsent());
        assert_eq!(sent(&mut state), [EventType::Leave]);
        // The connection that a LEAVE was sent on is lost, and another is there already.
        state.on_joined(welcome(EPOCH, 5, true));
    }
    assert!(matches!(state.on_disconnect(None), DisconnectAction::Left));
}

#[test]
fn nothing_waits_for_answers_that_the_first_version_does_not_give() {
    let mut state = SessionState::new(JoinOptions::new("Ada"));
    state.join_message();
    state.on_joined(None);
    for _ in 0..=SessionState::WINDOW {
        state.enqueue("more".into(), None).unwrap();
        assert_eq!(state.next_message().unwrap().msg, "more");
    }
    assert_eq!(state.unacknowledged(), 0);
    state.enqueue("one".into(), None).unwrap();
    state.leave();
    let sent: Vec<EventType> = std::iter::from_fn(|| state.next_message())
        .map(|frame| frame.r#type())
        .collect();
    assert_eq!(sent, [EventType::Message, EventType::Leave]);
    assert!(matches!(state.on_disconnect(None), DisconnectAction::Left));
}

#[test]
fn leave_does_not_overtake_a_message_that_is_sent_again() {
    let mut state = joined();
    let one = state.enqueue("one".into(), None).unwrap();
    state.leave();
    assert!(state.next_message().is_some_and(|frame| frame.msg == "one"));
    assert!(!state.has_unsent());
    assert_eq!(state.next_message(), None);
    state.on_message(ServerMessage {
        message_id: one.as_str().into(),
        ..notice(NoticeCode::TooFast)
    });
    assert_eq!(state.next_message(), None);
    state.resume_sending();
    assert!(state.next_message().is_some_and(|frame| frame.msg == "one"));
    assert_eq!(state.next_message(), None);
    state.on_message(own(5, &one));
    assert_eq!(
        state.next_message().map(|frame| frame.r#type()),
        Some(EventType::Leave)
    );
}

fn own(sequence: u64, message_id: &MessageId) -> ServerMessage {
    ServerMessage {
        sender_id: OWN_ID,
        epoch: EPOCH,
        sequence,
        message_id: message_id.as_str().to_owned(),
        ..ServerMessage::default()
    }
}

/// A participant that has sent "one" and "two", has lost the connection, and resumes after event 4 of 6.
fn resumed_with_two_events_to_read() -> (SessionState, MessageId, MessageId) {
    let mut state = joined();
    let one = state.enqueue("one".into(), None).unwrap();
    let two = state.enqueue("two".into(), None).unwrap();
    while state.next_message().is_some() {}
    state.on_disconnect(Some(ClientError::from(Status::unavailable("cut"))));
    state.on_joined(Some(Welcome {
        last_sequence: 6,
        ..welcome(EPOCH, 4, true).unwrap()
    }));
    (state, one, two)
}

#[test]
fn nothing_is_retransmitted_before_the_missed_events_are_read() {
    let (mut state, one, two) = resumed_with_two_events_to_read();
    let three = state.enqueue("three".into(), None).unwrap();
    state.leave();
    let other_message = ServerMessage {
        sender_id: 1,
        ..own(6, &MessageId::random())
    };
    for event in [own(5, &one), other_message] {
        assert!(!state.has_unsent());
        assert_eq!(state.next_message(), None);
        state.on_message(event);
    }
    let sent = |state: &mut SessionState| -> Vec<String> {
        let frames = std::iter::from_fn(|| state.next_message());
        frames.map(|frame| frame.msg).collect()
    };
    assert_eq!(sent(&mut state), ["two", "three"]);
    state.on_message(own(7, &two));
    state.on_message(own(8, &three));
    // LEAVE.
    assert_eq!(sent(&mut state), [""]);
}

#[test]
fn each_welcome_decides_which_events_are_read_before_sending() {
    let cut = || Some(ClientError::from(Status::unavailable("cut")));
    let sends = |state: &mut SessionState| state.has_unsent() && state.next_message().is_some();
    for next in [
        welcome(EPOCH, 4, true),
        welcome(EPOCH + 1, 0, false),
        // A server that implements only the first version of the protocol.
        None,
    ] {
        let (mut state, ..) = resumed_with_two_events_to_read();
        assert!(!sends(&mut state));
        state.on_disconnect(cut());
        state.on_joined(next);
        assert!(sends(&mut state));
    }
    // If there is nothing to retransmit, new messages are sent at once.
    let (mut state, one, two) = resumed_with_two_events_to_read();
    state.on_message(own(5, &one));
    state.on_message(own(6, &two));
    state.on_disconnect(cut());
    state.on_joined(Some(Welcome {
        last_sequence: 9,
        ..welcome(EPOCH, 6, true).unwrap()
    }));
    state.enqueue("three".into(), None).unwrap();
    assert!(sends(&mut state));
}

#[test]
fn a_participant_does_not_reconnect_only_to_leave() {
    let mut state = joined();
    state.leave();
    assert!(state.is_done());
    let cut = ClientError::from(Status::unavailable(""));
    assert!(matches!(state.on_disconnect(Some(cut)), DisconnectAction::Left));
}

#[test]
fn a_session_that_was_taken_over_does_not_reconnect() {
    let mut state = joined();
    assert_eq!(state.on_message(notice(NoticeCode::TakenOver)).message, None);
    // Even if the connection breaks before the status arrives.
    let cut = ClientError::from(Status::unavailable(""));
    let DisconnectAction::Fatal(error) = state.on_disconnect(Some(cut)) else {
        panic!("it reconnects");
    };
    assert_eq!(
        error.to_string(),
        "another connection took over this session: because"
    );
}

#[test]
fn the_servers_delay_is_taken_from_the_notice_or_the_status() {
    let mut state = joined();
    state.on_message(notice(NoticeCode::Reconnect));
    let DisconnectAction::Retry(_, delay) = state.on_disconnect(None) else {
        panic!("it does not reconnect");
    };
    assert_eq!(delay, Some(Duration::from_secs(3)));
    let details = ErrorDetails::with_retry_info(Some(Duration::from_secs(4)));
    let status = Status::with_error_details(Code::Unavailable, "draining", details);
    state.on_message(notice(NoticeCode::Reconnect));
    let DisconnectAction::Retry(_, delay) = state.on_disconnect(Some(status.into())) else {
        panic!("it does not reconnect");
    };
    assert_eq!(delay, Some(Duration::from_secs(4)));
}

#[test]
fn the_clock_is_reset_once_if_a_new_log_rejects_it() {
    let mut state = joined();
    state.merge_time(5_000_000);
    let refusal = || {
        let details = ErrorDetails::with_error_info("TIMESTAMP_OUT_OF_RANGE", "chitchat.itu", []);
        let status = Status::with_error_details(Code::InvalidArgument, "too far ahead", details);
        Some(ClientError::from(status))
    };
    assert!(matches!(
        state.on_disconnect(refusal()),
        DisconnectAction::Retry(..)
    ));
    assert_eq!(state.join_message().timestamp, 1);
    assert!(matches!(
        state.on_disconnect(refusal()),
        DisconnectAction::Fatal(_)
    ));
}

#[test]
fn own_joins_and_leaves_are_no_progress() {
    let mut state = joined();
    let event = |sender_id, r#type: EventType, sequence| ServerMessage {
        sender_id,
        r#type: r#type.into(),
        epoch: EPOCH,
        sequence,
        ..ServerMessage::default()
    };
    assert!(!state.on_message(event(OWN_ID, EventType::Join, 5)).is_progress);
    assert!(state.on_message(event(1, EventType::Join, 6)).is_progress);
    assert!(!state.on_message(event(1, EventType::Join, 6)).is_progress);
    assert!(!state.on_message(notice(NoticeCode::TooFast)).is_progress);
    assert!(state.on_message(event(OWN_ID, EventType::Message, 7)).is_progress);
}

#[test]
fn the_window_bounds_unacknowledged_messages() {
    let mut state = joined();
    for _ in 0..SessionState::WINDOW {
        state.enqueue("text".into(), None).unwrap();
    }
    assert!(matches!(
        state.enqueue("text".into(), None),
        Err(ClientError::WindowFull)
    ));
}

#[test]
fn messages_that_are_too_fast_are_sent_again_in_order() {
    let mut state = joined();
    let ids: Vec<MessageId> = (0..3)
        .map(|_| state.enqueue("text".into(), None).unwrap())
        .collect();
    let next = |state: &mut SessionState| state.next_message().map(|frame| frame.message_id);
    let acknowledge = |state: &mut SessionState, id: &MessageId, sequence| {
        let broadcast = ServerMessage {
            message_id: id.as_str().into(),
            r#type: EventType::Message.into(),
            epoch: EPOCH,
            sequence,
            ..ServerMessage::default()
        };
        assert!(state.on_message(broadcast).message.is_some());
    };
    for id in &ids {
        assert_eq!(next(&mut state).as_deref(), Some(id.as_str()));
    }
    for id in &ids[1..] {
        let rejection = ServerMessage {
            message_id: id.as_str().into(),
            ..notice(NoticeCode::TooFast)
        };
        let incoming = state.on_message(rejection);
        assert_eq!(
            (incoming.pause, incoming.message),
            (Some(Duration::from_secs(3)), None)
        );
    }
    acknowledge(&mut state, &ids[0], 5);
    assert!(!state.has_unsent());
    state.leave();
    state.resume_sending();
    for (id, sequence) in ids[1..].iter().zip(6..) {
        assert_eq!(next(&mut state).as_deref(), Some(id.as_str()));
        // The next message could overtake this one if it is rejected again.
        assert!(!state.has_unsent());
        acknowledge(&mut state, id, sequence);
    }
    assert_eq!(
        state.next_message().map(|frame| frame.r#type()),
        Some(EventType::Leave)
    );
}
