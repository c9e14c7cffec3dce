use std::collections::{HashMap, VecDeque};

use proptest::prelude::*;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

use super::*;
use crate::proto::Notice;

const EPOCH: u64 = 9;
const OWN_ID: i32 = 7;

/// A server in one piece: a room with one participant who comes and goes, and somebody else who talks.
#[derive(Default)]
struct Server {
    log: Vec<ServerMessage>,
    ids: HashMap<String, u64>,
    time: i64,
    token: Option<String>,
    sessions: u32,
    last_said: i64,
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
        assert!(timestamp > self.last_said, "times of one client rise");
        self.last_said = timestamp;
        self.time = self.time.max(timestamp);
    }

    /// The session is over; with the grace, or at once.
    fn forget(&mut self) {
        if self.token.take().is_some() {
            self.append(OWN_ID, EventType::Leave, "left", "");
        }
    }

    /// Answers a JOIN: a welcome and what follows it.
    fn join(&mut self, join: &JoinMsgLeave) -> (Welcome, Vec<ServerMessage>) {
        self.receive(join.timestamp);
        let before = self.log.len() as u64;
        let continues = self.token.is_some() && self.token.as_deref() == Some(join.session_token.as_str());
        if !continues {
            // Nobody waits here for the grace of an earlier session.
            self.forget();
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

    /// Answers what a participant says.
    fn take(&mut self, said: &JoinMsgLeave) -> ServerMessage {
        self.receive(said.timestamp);
        if let Some(original) = self.ids.get(&said.message_id) {
            self.time += 1;
            return ServerMessage {
                r#type: EventType::Message.into(),
                timestamp: self.time,
                message_id: said.message_id.clone(),
                notice: Some(Notice {
                    code: NoticeCode::MessageRepeated.into(),
                    original_sequence: *original,
                    ..Notice::default()
                }),
                ..ServerMessage::default()
            };
        }
        let event = self.append(OWN_ID, EventType::Message, &said.msg, &said.message_id);
        self.ids.insert(said.message_id.clone(), event.sequence);
        event
    }
}

/// A participant, a server, and what is on its way between them.
struct World {
    server: Server,
    state: SessionState,
    up: VecDeque<JoinMsgLeave>,
    down: VecDeque<ServerMessage>,
    connected: bool,
    said: Vec<String>,
    shown: Vec<ServerMessage>,
    gaps: Vec<Gap>,
}

impl World {
    fn new() -> Self {
        let mut world = Self {
            server: Server::default(),
            state: SessionState::new(JoinOptions::new("Ada")),
            up: VecDeque::new(),
            down: VecDeque::new(),
            connected: false,
            said: Vec::new(),
            shown: Vec::new(),
            gaps: Vec::new(),
        };
        world.connect();
        world
    }

    fn connect(&mut self) {
        if !self.connected {
            let join = self.state.join_frame();
            let (welcome, follows) = self.server.join(&join);
            self.up.clear();
            self.down = follows.into();
            self.connected = true;
            assert_eq!(self.state.on_joined(Some(welcome)), None);
        }
    }

    /// Cuts the line; `arrives` of what was on its way up still arrives.
    fn cut(&mut self, arrives: usize) {
        for _ in 0..arrives {
            self.serve();
        }
        self.connected = false;
        self.up.clear();
        self.down.clear();
        let broken = ClientError::from(Status::unavailable("cut"));
        assert!(matches!(
            self.state.on_disconnect(Some(broken)),
            Disconnect::Retry(..)
        ));
    }

    fn say(&mut self) {
        let text = format!("text {}", self.said.len());
        if self.state.enqueue(text.clone(), None).is_ok() {
            self.said.push(text);
        }
    }

    fn send(&mut self) {
        if self.connected
            && let Some(frame) = self.state.next_frame()
        {
            self.up.push_back(frame);
        }
    }

    fn serve(&mut self) {
        if let Some(said) = self.up.pop_front() {
            let answer = self.server.take(&said);
            self.down.push_back(answer);
        }
    }

    fn somebody_else_says(&mut self) {
        let event = self.server.append(1, EventType::Message, "else", "");
        if self.connected {
            self.down.push_back(event);
        }
    }

    fn hear(&mut self) {
        if let Some(message) = self.down.pop_front() {
            let heard = self.state.on_message(message);
            self.gaps.extend(heard.gap);
            self.shown
                .extend(heard.message.filter(|message| message.sequence != 0));
        }
    }

    /// Lets everything arrive.
    fn settle(&mut self) {
        self.connect();
        while self.state.has_unsent() || !self.up.is_empty() || !self.down.is_empty() {
            self.send();
            self.serve();
            self.hear();
        }
    }
}

#[derive(Debug, Clone)]
enum Move {
    Say,
    Send,
    Serve,
    Hear,
    Else,
    Cut(usize),
    Connect,
    Forget,
    ForgetIds,
    Repeat,
}

fn moves() -> impl Strategy<Value = Vec<Move>> {
    let one = prop_oneof![
        4 => Just(Move::Say),
        6 => Just(Move::Send),
        6 => Just(Move::Serve),
        6 => Just(Move::Hear),
        2 => Just(Move::Else),
        1 => (0_usize..4).prop_map(Move::Cut),
        3 => Just(Move::Connect),
        1 => Just(Move::Forget),
        1 => Just(Move::ForgetIds),
        1 => Just(Move::Repeat),
    ];
    prop::collection::vec(one, 0..300)
}

proptest! {
    #[test]
    fn whatever_is_cut_the_log_is_shown_once_and_everything_is_said_once(moves in moves()) {
        let mut world = World::new();
        for one in moves {
            match one {
                Move::Say => world.say(),
                Move::Send => world.send(),
                Move::Serve => world.serve(),
                Move::Hear => world.hear(),
                Move::Else => world.somebody_else_says(),
                Move::Cut(arrives) if world.connected => world.cut(arrives),
                Move::Connect => world.connect(),
                // A session is only over when its connection is.
                Move::Forget if !world.connected => world.server.forget(),
                // So much was said that the server does not know what was said before.
                Move::ForgetIds => world.server.ids.clear(),
                // A server that sends an event twice.
                Move::Repeat => if let Some(event) = world.down.front().cloned() {
                    world.down.push_front(event);
                },
                Move::Cut(_) | Move::Forget => {}
            }
        }
        world.settle();
        prop_assert_eq!(&world.shown, &world.server.log);
        prop_assert_eq!(world.state.unacknowledged(), 0);
        prop_assert!(world.gaps.is_empty());
        let said: Vec<&str> = world
            .server
            .log
            .iter()
            .filter(|event| !event.message_id.is_empty())
            .map(|event| event.msg_stream.as_str())
            .collect();
        prop_assert_eq!(said, world.said);
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

fn entered() -> SessionState {
    let mut state = SessionState::new(JoinOptions::new("Ada").room("tea"));
    state.join_frame();
    state.on_joined(welcome(EPOCH, 4, false));
    state
}

#[test]
fn a_join_carries_what_the_last_welcome_gave() {
    let mut state = SessionState::new(JoinOptions::new("Ada").room("tea"));
    let first = state.join_frame();
    assert_eq!((first.session_token.as_str(), first.resume), ("", None));
    assert_eq!(state.on_joined(welcome(EPOCH, 4, false)), None);
    let again = state.join_frame();
    assert_eq!((again.client_name.as_str(), again.room.as_str()), ("Ada", "tea"));
    assert_eq!(again.session_token, "token");
    let place = ResumePoint {
        epoch: EPOCH,
        sequence: 4,
    };
    assert_eq!(again.resume, Some(place));
    assert!(again.timestamp > first.timestamp);
}

#[test]
fn what_is_not_recovered_is_named() {
    let mut state = entered();
    let gap = Gap::Expired { first: 5, last: 9 };
    assert_eq!(state.on_joined(welcome(EPOCH, 9, false)), Some(gap));
    let gap = Gap::NewEpoch { seen: 9, after: 2 };
    assert_eq!(state.on_joined(welcome(EPOCH + 1, 2, false)), Some(gap));
    assert_eq!(state.on_joined(None), Some(Gap::Unknown));
}

#[test]
fn leaving_comes_last_and_again_after_what_was_cut() {
    let mut state = entered();
    state.enqueue("one".into(), None).unwrap();
    state.leave();
    assert!(matches!(
        state.enqueue("two".into(), None),
        Err(ClientError::Closed)
    ));
    for _ in 0..2 {
        let sent: Vec<EventType> = std::iter::from_fn(|| state.next_frame())
            .map(|frame| frame.r#type())
            .collect();
        assert_eq!(sent, [EventType::Message, EventType::Leave]);
        assert!(!state.has_unsent());
        let cut = ClientError::from(Status::unavailable(""));
        assert!(matches!(state.on_disconnect(Some(cut)), Disconnect::Retry(..)));
        state.on_joined(welcome(EPOCH, 4, true));
    }
    assert!(matches!(state.on_disconnect(None), Disconnect::Left));
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

/// A participant who said "one" and "two", lost the connection, and is welcomed after event 4 of 6.
fn back_with_two_events_to_read() -> (SessionState, MessageId, MessageId) {
    let mut state = entered();
    let one = state.enqueue("one".into(), None).unwrap();
    let two = state.enqueue("two".into(), None).unwrap();
    while state.next_frame().is_some() {}
    state.on_disconnect(Some(ClientError::from(Status::unavailable("cut"))));
    state.on_joined(Some(Welcome {
        last_sequence: 6,
        ..welcome(EPOCH, 4, true).unwrap()
    }));
    (state, one, two)
}

#[test]
fn what_the_log_may_still_bring_is_not_sent_again() {
    let (mut state, one, _) = back_with_two_events_to_read();
    state.enqueue("three".into(), None).unwrap();
    state.leave();
    let else_said = ServerMessage {
        sender_id: 1,
        ..own(6, &MessageId::random())
    };
    for event in [own(5, &one), else_said] {
        assert!(!state.has_unsent());
        assert_eq!(state.next_frame(), None);
        state.on_message(event);
    }
    let sent: Vec<String> = std::iter::from_fn(|| state.next_frame())
        .map(|frame| frame.msg)
        .collect();
    assert_eq!(sent, ["two", "three", ""]);
}

#[test]
fn every_welcome_says_anew_what_is_read_before_something_is_sent() {
    let cut = || Some(ClientError::from(Status::unavailable("cut")));
    let sends = |state: &mut SessionState| state.has_unsent() && state.next_frame().is_some();
    for next in [
        welcome(EPOCH, 4, true),
        welcome(EPOCH + 1, 0, false),
        // A server of the first version.
        None,
    ] {
        let (mut state, ..) = back_with_two_events_to_read();
        assert!(!sends(&mut state));
        state.on_disconnect(cut());
        state.on_joined(next);
        assert!(sends(&mut state));
    }
    // Whoever has nothing to repeat waits for nothing.
    let (mut state, one, two) = back_with_two_events_to_read();
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
fn nobody_comes_back_to_say_goodbye() {
    let mut state = entered();
    state.leave();
    assert!(state.is_done());
    let cut = ClientError::from(Status::unavailable(""));
    assert!(matches!(state.on_disconnect(Some(cut)), Disconnect::Left));
}

#[test]
fn a_session_that_was_taken_over_is_over() {
    let mut state = entered();
    assert_eq!(state.on_message(notice(NoticeCode::TakenOver)).message, None);
    // Even when the status that follows is lost with the connection.
    let cut = ClientError::from(Status::unavailable(""));
    let Disconnect::Fatal(error) = state.on_disconnect(Some(cut)) else {
        panic!("goes on");
    };
    assert_eq!(
        error.to_string(),
        "another connection took over this session: because"
    );
}

#[test]
fn the_servers_delay_is_kept_from_whichever_place_it_comes() {
    let mut state = entered();
    state.on_message(notice(NoticeCode::Reconnect));
    let Disconnect::Retry(_, delay) = state.on_disconnect(None) else {
        panic!("ends");
    };
    assert_eq!(delay, Some(Duration::from_secs(3)));
    let details = ErrorDetails::with_retry_info(Some(Duration::from_secs(4)));
    let status = Status::with_error_details(Code::Unavailable, "draining", details);
    state.on_message(notice(NoticeCode::Reconnect));
    let Disconnect::Retry(_, delay) = state.on_disconnect(Some(status.into())) else {
        panic!("ends");
    };
    assert_eq!(delay, Some(Duration::from_secs(4)));
}

#[test]
fn a_log_that_begins_anew_may_begin_with_an_earlier_clock() {
    let mut state = entered();
    state.merge_time(5_000_000);
    let refusal = || {
        let details = ErrorDetails::with_error_info("TIMESTAMP_OUT_OF_RANGE", "chitchat.itu", []);
        let status = Status::with_error_details(Code::InvalidArgument, "too far ahead", details);
        Some(ClientError::from(status))
    };
    assert!(matches!(state.on_disconnect(refusal()), Disconnect::Retry(..)));
    assert_eq!(state.join_frame().timestamp, 1);
    assert!(matches!(state.on_disconnect(refusal()), Disconnect::Fatal(_)));
}

#[test]
fn progress_is_what_more_than_the_own_coming_and_going_brings() {
    let mut state = entered();
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
fn the_window_is_bounded() {
    let mut state = entered();
    for _ in 0..SessionState::WINDOW {
        state.enqueue("text".into(), None).unwrap();
    }
    assert!(matches!(
        state.enqueue("text".into(), None),
        Err(ClientError::WindowFull)
    ));
}
