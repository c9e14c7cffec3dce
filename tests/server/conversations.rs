//! Golden conversations, performed by the room of the domain alone and by the real server: both must answer exactly as
//! written.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;
use std::{env, fs};

use chitchat::auth::Anonymous;
use chitchat::domain::{
    Attachment, Ban, BanTarget, Command, EventKind, Join, Leave, Message, MessageId, Moderation, Name,
    Origin, Outcome, ParticipantId, Rejection, RemoveTarget, Room, Rules, Say, Session, Text, Timestamp,
    WallTime,
};
use chitchat::proto::moderate_request::Action as ModerateAction;
use chitchat::proto::moderation_target::Target;
use chitchat::proto::{self, JoinMsgLeave, ModerationTarget, RoomAction, ServerMessage, Welcome};

use crate::harness::{Client, join, leave, message};
use crate::tokens::Protected;

const RULES: Rules = Rules {
    max_message_chars: 128,
    max_clock_ahead: 1_000_000,
    max_participants: 9,
    allow_duplicate_names: false,
};

/// What a participant does: a line that begins with `>`.
enum Action {
    Join {
        name: String,
        id: i32,
        at: i64,
        is_resumable: bool,
    },
    Say {
        name: String,
        id: String,
        at: i64,
        text: String,
    },
    Leave {
        name: String,
        at: i64,
    },
    /// The connection is lost, of a participant who cannot resume.
    Vanish {
        name: String,
    },
    /// The connection is lost, of a participant who can resume.
    Drop {
        name: String,
    },
    Resume {
        name: String,
    },
    /// `name` is whom it is about; empty if that is the room.
    Moderate {
        verb: String,
        name: String,
        reason: String,
    },
}

/// How long bans hold, in seconds.
const BAN_SECONDS: i64 = 3_600;

impl Action {
    fn parse(line: &str) -> Self {
        let (words, text) = line
            .split_once(':')
            .map_or((line, None), |(words, text)| (words, Some(text)));
        let words: Vec<&str> = words.split_whitespace().collect();
        let option = |key: &str| {
            let at = words.iter().position(|word| *word == key)?;
            Some((*words.get(at + 1)?).to_owned())
        };
        let name = words[0].to_owned();
        if name == "moderator" {
            return Self::Moderate {
                verb: words[1].to_owned(),
                name: words.get(2).map_or_else(String::new, |name| (*name).to_owned()),
                reason: text.unwrap_or_default().trim().to_owned(),
            };
        }
        let at = option("at").map_or(0, |at| at.parse().unwrap());
        match words[1] {
            "joins" => Self::Join {
                name,
                id: option("as").map_or(0, |id| id.parse().unwrap()),
                at,
                is_resumable: words.contains(&"resumably"),
            },
            "says" => Self::Say {
                name,
                id: option("as").unwrap_or_default(),
                at,
                text: unescape(text.unwrap().trim()),
            },
            "leaves" => Self::Leave { name, at },
            "vanishes" => Self::Vanish { name },
            "drops" => Self::Drop { name },
            "resumes" => Self::Resume { name },
            verb => panic!("unknown action {verb}: {line}"),
        }
    }
}

fn unescape(text: &str) -> String {
    if let Some((count, what)) = text
        .strip_prefix('<')
        .and_then(|t| t.strip_suffix('>')?.split_once(' '))
    {
        return what.repeat(count.parse().unwrap());
    }
    text.replace("\\t", "\t").replace("\\e", "\u{1b}")
}

fn escape(text: &str) -> String {
    text.replace('\t', "\\t").replace('\u{1b}', "\\e")
}

fn broadcast(sequence: u64, time: i64, kind: &str, name: &str, text: &str) -> String {
    format!("#{sequence} L={time} {kind} {name}: {}", escape(text))
        .trim_end()
        .to_owned()
}

fn private(time: i64, name: &str, text: &str) -> String {
    format!("L={time} to {name}: {}", escape(text))
}

fn rejected(name: &str, reason: &str) -> String {
    // The end of a ban depends on when the script runs.
    match reason.split_once("until ") {
        Some((before, after)) => format!("{name} is refused: {before}until TIME{}", &after[20..]),
        None => format!("{name} is refused: {reason}"),
    }
}

fn resumed(name: &str) -> String {
    format!("{name} has resumed")
}

/// The room of the domain, without a server.
struct RoomAlone {
    room: Room,
    sessions: BTreeMap<String, Session>,
    attachments: BTreeMap<String, Attachment>,
}

impl RoomAlone {
    fn perform(&mut self, action: Action) -> Vec<String> {
        let (name, command) = match action {
            Action::Join {
                name,
                id,
                at,
                is_resumable,
            } => {
                let join = Join {
                    session: None,
                    id: ParticipantId::from_wire(id),
                    name: Name::try_from(name.as_str()).unwrap(),
                    timestamp: Timestamp(at),
                    owner: None,
                    origin: Origin::default(),
                    is_resumable,
                    trace: None,
                };
                (name, Command::Join(join))
            }
            Action::Say { name, id, at, text } => {
                let say = Say {
                    attachment: self.attachments[&name],
                    message: Message {
                        timestamp: Timestamp(at),
                        text: Text::parse(&text, RULES.max_message_chars),
                        message_id: (!id.is_empty()).then(|| MessageId::try_from(id.as_str())),
                        trace: None,
                    },
                };
                (name, Command::Say(say))
            }
            Action::Leave { name, at } => {
                let leave = Leave {
                    attachment: self.attachments[&name],
                    timestamp: Some(Timestamp(at)),
                    trace: None,
                };
                (name, Command::Leave(leave))
            }
            Action::Vanish { name } | Action::Drop { name } => {
                let attachment = self.attachments[&name];
                (name, Command::Detach(attachment))
            }
            Action::Resume { name } => {
                let join = Join {
                    session: Some(self.sessions[&name]),
                    id: None,
                    name: Name::try_from(name.as_str()).unwrap(),
                    timestamp: Timestamp(0),
                    owner: None,
                    origin: Origin::default(),
                    is_resumable: true,
                    trace: None,
                };
                (name, Command::Join(join))
            }
            Action::Moderate { verb, name, reason } => return self.moderate(&verb, &name, &reason),
        };
        let is_private = matches!(command, Command::Say(_));
        let is_leave = matches!(command, Command::Leave(_));
        let outcome = self.room.apply(command, WallTime::default());
        match outcome {
            Outcome::Accepted(_) | Outcome::Joined { .. } => {
                if let Outcome::Joined {
                    joined, attachment, ..
                } = &outcome
                {
                    self.attachments.insert(name.clone(), *attachment);
                    let session = Session {
                        participant: joined.participant,
                        join_sequence: joined.sequence,
                    };
                    self.sessions.insert(name, session);
                }
                let events = outcome.events().map(|event| {
                    let kind = match event.kind {
                        EventKind::Join => "JOIN",
                        EventKind::Message { .. } => "MESSAGE",
                        EventKind::Leave => "LEAVE",
                    };
                    let (sequence, time) = (event.sequence.get(), event.time.get());
                    broadcast(sequence, time, kind, event.name.as_str(), &event.display_text())
                });
                events.collect()
            }
            Outcome::Repeated { original, time } => {
                vec![private(
                    time.get(),
                    &name,
                    &format!("Message was broadcast before, at sequence {original}."),
                )]
            }
            Outcome::Rejected { rejection, time } if is_private => {
                vec![private(time.get(), &name, &rejection.to_string())]
            }
            Outcome::Rejected { rejection, .. } => {
                let mut answers = vec![rejected(&name, &rejection.to_string())];
                // A LEAVE with an invalid timestamp still leaves.
                if is_leave {
                    answers.extend(self.perform(Action::Vanish { name }));
                }
                answers
            }
            Outcome::Resumed { attachment, .. } => {
                let answer = resumed(&name);
                self.attachments.insert(name, attachment);
                vec![answer]
            }
            Outcome::Lost => Vec::new(),
            Outcome::Moderated { .. } | Outcome::Ignored | Outcome::Ended => panic!("{outcome:?}"),
        }
    }

    fn moderate(&mut self, verb: &str, name: &str, reason: &str) -> Vec<String> {
        let target = || BanTarget::Name(Name::try_from(name).unwrap());
        let reason = Text::parse(reason, 200).unwrap();
        let until = WallTime::from_millis(u64::try_from(BAN_SECONDS).unwrap() * 1_000);
        let (moderation, told) = match verb {
            "removes" => {
                let told = Rejection::Removed(reason.clone());
                let who = RemoveTarget::All(target());
                (Moderation::Remove { who, reason }, told.to_string())
            }
            "bans" => {
                let told = Rejection::Banned {
                    until,
                    reason: reason.clone(),
                };
                let target = target();
                let ban = Ban {
                    target,
                    until,
                    reason,
                };
                (Moderation::Ban(ban), told.to_string())
            }
            "unbans" => (Moderation::Unban(target()), String::new()),
            "closes" => (Moderation::Close, String::new()),
            "reopens" => (Moderation::Reopen, String::new()),
            verb => panic!("unknown action {verb}"),
        };
        match self
            .room
            .apply(Command::Moderate(moderation), WallTime::default())
        {
            Outcome::Moderated { removed, attachments } => {
                let names = self
                    .attachments
                    .iter()
                    .filter(|(_, own)| attachments.contains(own));
                let told = names.map(|(name, _)| rejected(name, &told));
                let left = removed.iter().map(|event| {
                    let (sequence, time) = (event.sequence.get(), event.time.get());
                    broadcast(
                        sequence,
                        time,
                        "LEAVE",
                        event.name.as_str(),
                        &event.display_text(),
                    )
                });
                told.chain(left).collect()
            }
            Outcome::Rejected { rejection, .. } => vec![rejected("moderator", &rejection.to_string())],
            other => panic!("{other:?}"),
        }
    }
}

/// The real server, with a stream for each participant.
struct RealServer {
    protected: Protected,
    clients: BTreeMap<String, Client>,
    /// The latest welcomes of those who can resume.
    welcomes: BTreeMap<String, Welcome>,
}

impl RealServer {
    fn format(message: &ServerMessage) -> String {
        let kind = message.r#type().as_str_name();
        broadcast(
            message.sequence,
            message.timestamp,
            kind,
            &message.sender_name,
            &message.msg_stream,
        )
    }

    /// Asserts that all participants receive the same event next. `None` without participants.
    async fn next_event(&mut self) -> Option<String> {
        let mut event: Option<ServerMessage> = None;
        for client in self.clients.values_mut() {
            let message = client.next().await;
            assert_eq!(event.get_or_insert_with(|| message.clone()), &message);
        }
        event.as_ref().map(Self::format)
    }

    async fn perform(&mut self, action: Action) -> Vec<Option<String>> {
        match action {
            Action::Join {
                name,
                id,
                at,
                is_resumable,
            } => {
                let first = JoinMsgLeave {
                    id,
                    timestamp: at,
                    wants_welcome: is_resumable,
                    ..join(&name)
                };
                self.enter(name, first).await
            }
            Action::Resume { name } => {
                let welcome = &self.welcomes[&name];
                let first = JoinMsgLeave {
                    session_token: welcome.session_token.clone(),
                    ..join(&name)
                };
                self.enter(name, first).await
            }
            Action::Say { name, id, at, text } => {
                let sender = self.clients.get_mut(&name).unwrap();
                sender
                    .send(JoinMsgLeave {
                        message_id: id,
                        ..message(at, &text)
                    })
                    .await;
                let answer = sender.next().await;
                if answer.sequence == 0 {
                    return vec![Some(private(answer.timestamp, &name, &answer.msg_stream))];
                }
                let own = Self::format(&answer);
                let sender = self.clients.remove(&name).unwrap();
                if let Some(event) = self.next_event().await {
                    assert_eq!(event, own);
                }
                self.clients.insert(name, sender);
                vec![Some(own)]
            }
            Action::Leave { name, at } => {
                let mut client = self.clients.remove(&name).unwrap();
                client.send(leave(at)).await;
                let status = client.try_next().await.unwrap_err();
                let rejection =
                    (status.code() != tonic::Code::Ok).then(|| Some(rejected(&name, status.message())));
                rejection.into_iter().chain([self.next_event().await]).collect()
            }
            Action::Vanish { name } => {
                drop(self.clients.remove(&name).unwrap());
                vec![self.next_event().await]
            }
            Action::Drop { name } => {
                drop(self.clients.remove(&name).unwrap());
                let connected = self.clients.len() as f64;
                let metric = "chitchat_connected_clients";
                self.protected.server.wait_for_metric(metric, connected).await;
                Vec::new()
            }
            Action::Moderate { verb, name, reason } => {
                let target = || ModerationTarget {
                    target: Some(Target::Name(name.clone())),
                };
                let action = match verb.as_str() {
                    "removes" => ModerateAction::Remove(target()),
                    "bans" => ModerateAction::Ban(proto::Ban {
                        target: Some(target()),
                        duration: Some(prost_types::Duration {
                            seconds: BAN_SECONDS,
                            nanos: 0,
                        }),
                        ..proto::Ban::default()
                    }),
                    "unbans" => ModerateAction::Unban(target()),
                    "closes" => ModerateAction::RoomAction(RoomAction::Close.into()),
                    _ => ModerateAction::RoomAction(RoomAction::Reopen.into()),
                };
                let removed = match self.protected.moderate("", action, &reason).await {
                    Ok(removed) => removed,
                    Err(status) => return vec![Some(rejected("moderator", status.message()))],
                };
                let mut answers = Vec::new();
                let parse = |name: &str| Name::try_from(name).unwrap();
                let mut holders = self.clients.keys();
                let holder =
                    holders.find(|holder| removed > 0 && parse(holder).is_confusable_with(&parse(&name)));
                if let Some(holder) = holder.cloned()
                    && let Some(mut client) = self.clients.remove(&holder)
                {
                    answers.push(Some(rejected(&holder, client.end().await.message())));
                }
                for _ in 0..removed {
                    answers.push(self.next_event().await);
                }
                answers
            }
        }
    }

    /// Opens a stream with a JOIN.
    async fn enter(&mut self, name: String, first: JoinMsgLeave) -> Vec<Option<String>> {
        let (token, has_welcome) = (first.session_token.clone(), uses_extensions(&first));
        let mut client = self.protected.server.open().await;
        client.send(first).await;
        let own = match client.try_next().await {
            Ok(message) if has_welcome => {
                let welcome = message.welcome.expect("the first message is the welcome");
                let is_resumed = welcome.session_token == token;
                self.welcomes.insert(name.clone(), welcome);
                if is_resumed {
                    let answer = resumed(&name);
                    self.clients.insert(name, client);
                    return vec![Some(answer)];
                }
                client.next().await
            }
            Ok(message) => message,
            Err(status) => return vec![Some(rejected(&name, status.message()))],
        };
        let own = Self::format(&own);
        // Those who had the name or the id leave first.
        let mut answers = Vec::new();
        while let Some(event) = self.next_event().await {
            if event == own {
                break;
            }
            answers.push(Some(event));
        }
        answers.push(Some(own));
        self.clients.insert(name, client);
        answers
    }
}

/// Whether the server answers this JOIN with a welcome.
fn uses_extensions(join: &JoinMsgLeave) -> bool {
    join.wants_welcome || !join.session_token.is_empty()
}

fn scripts() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/conversations");
    let files = fs::read_dir(folder).unwrap().map(|file| file.unwrap().path());
    let mut scripts: Vec<_> = files
        .filter(|path| path.extension().is_some_and(|extension| extension == "txt"))
        .collect();
    scripts.sort();
    assert!(!scripts.is_empty());
    scripts
}

/// The comments and `>` lines, each with the answers below it.
fn blocks(script: &str) -> Vec<(&str, Vec<&str>)> {
    let mut blocks: Vec<(&str, Vec<&str>)> = Vec::new();
    for line in script.lines() {
        if line.starts_with("# ") || line.starts_with("> ") {
            blocks.push((line, Vec::new()));
        } else {
            blocks.last_mut().unwrap().1.push(line);
        }
    }
    blocks
}

#[test]
fn the_room_alone_answers_as_written() {
    let update = env::var_os("UPDATE").is_some();
    for path in scripts() {
        let script = fs::read_to_string(&path).unwrap();
        let mut room = RoomAlone {
            room: Room::new(RULES),
            sessions: BTreeMap::new(),
            attachments: BTreeMap::new(),
        };
        let mut written = String::new();
        for (line, _) in blocks(&script) {
            written += &format!("{line}\n");
            if let Some(line) = line.strip_prefix("> ") {
                for answer in room.perform(Action::parse(line)) {
                    written += &format!("{answer}\n");
                }
            }
        }
        if update {
            fs::write(&path, &written).unwrap();
        }
        assert_eq!(fs::read_to_string(&path).unwrap(), written, "{}", path.display());
    }
}

#[tokio::test]
async fn the_server_answers_as_written() {
    for path in scripts() {
        let script = fs::read_to_string(&path).unwrap();
        let protected = Protected::start_with(Anonymous::Write, |config| {
            config.rules = RULES;
            config.hub.resume_grace = Duration::from_secs(60);
        })
        .await;
        let mut server = RealServer {
            protected,
            clients: BTreeMap::new(),
            welcomes: BTreeMap::new(),
        };
        for (line, expected) in blocks(&script) {
            let Some(action) = line.strip_prefix("> ") else {
                continue;
            };
            let answers = server.perform(Action::parse(action)).await;
            assert_eq!(answers.len(), expected.len(), "{} {line}", path.display());
            for (answer, expected) in answers.iter().zip(expected) {
                assert!(
                    answer.as_deref().is_none_or(|answer| answer == expected),
                    "{}: {line}: {answer:?}",
                    path.display()
                );
            }
        }
    }
}
