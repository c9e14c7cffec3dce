//! Tokens: who may call, and what they may do.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use chitchat::auth::{Anonymous, AuthOptions, Grant, SigningKey};
use chitchat::config::Config;
use chitchat::proto::chat_service_client::ChatServiceClient;
use chitchat::proto::moderate_request::Action;
use chitchat::proto::{
    EventType, GetHistoryRequest, JoinMsgLeave, ListParticipantsRequest, ListRoomsRequest, ModerateRequest,
    NoticeCode, SendMessageRequest, SubscribeRequest,
};
use rcgen::{KeyPair, PKCS_ED25519};
use serde_json::{Value, json};
use tempfile::TempDir;
use tonic::transport::Channel;
use tonic::{Code, Status};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;
use tonic_types::StatusExt;

use crate::harness::{Client, TestServer, join, join_wanting_welcome, message, with_authorization};

/// How long tokens are accepted after they have expired.
const LEEWAY: u64 = 10;

pub fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

fn new_key() -> SigningKey {
    let pair = KeyPair::generate_for(&PKCS_ED25519).unwrap();
    SigningKey::from_pem(pair.serialize_pem().as_bytes()).unwrap()
}

fn bearer(token: &str) -> String {
    format!("Bearer {token}")
}

pub fn grant(rooms: &[&str], rights: &[&str]) -> Grant {
    let owned = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect();
    Grant {
        issuer: "issuer".into(),
        audience: "chat".into(),
        subject: "ada".into(),
        name: None,
        rooms: owned(rooms),
        rights: owned(rights),
        expires_at: now() + 3_600,
    }
}

/// A server that requires tokens that are signed with `key`.
pub struct Protected {
    directory: TempDir,
    key: SigningKey,
    pub server: TestServer,
}

impl Protected {
    async fn start(anonymous: Anonymous) -> Self {
        Self::start_with(anonymous, |_| {}).await
    }

    /// Starts a server with the default configuration, changed by `change`.
    pub async fn start_with(anonymous: Anonymous, change: impl FnOnce(&mut Config)) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let key = new_key();
        write_keys(&directory, &[&key]);
        let server = TestServer::with(|config| {
            config.auth = Some(AuthOptions {
                keys: keys_file(&directory),
                issuer: "issuer".into(),
                audience: "chat".into(),
                anonymous,
            });
            change(config);
        })
        .await;
        Self {
            directory,
            key,
            server,
        }
    }

    pub fn issue(&self, grant: &Grant) -> String {
        bearer(&self.key.issue(grant))
    }

    /// A token with which `mod` may moderate all rooms.
    pub fn moderator(&self) -> String {
        self.issue(&Grant {
            subject: "mod".into(),
            ..grant(&["*"], &["read", "write", "create", "moderate"])
        })
    }

    /// What a moderator does. Returns how many participants leave.
    pub async fn moderate(&self, room: &str, action: Action, reason: &str) -> Result<u32, Status> {
        let request = ModerateRequest {
            room: room.into(),
            reason: reason.into(),
            action: Some(action),
        };
        let request = with_authorization(request, Some(&self.moderator()));
        let moderated = self.server.client().await.moderate(request).await?;
        Ok(moderated.into_inner().removed)
    }

    /// A token for everything, under one name.
    pub fn named(&self, name: &str) -> String {
        self.issue(&Grant {
            subject: name.to_lowercase(),
            name: Some(name.into()),
            ..grant(&["*"], &["read", "write", "create"])
        })
    }

    pub async fn chat(&self, authorization: &str, first: JoinMsgLeave) -> Client {
        let channel = self.server.channel().await;
        let client = Client::open_with(channel, Some(authorization)).await.unwrap();
        client.send(first).await;
        client
    }

    /// The statuses of all calls, each with its name.
    async fn call_all(&self, authorization: Option<&str>, room: &str) -> Vec<(&'static str, Status)> {
        let channel = self.server.channel().await;
        let mut client = ChatServiceClient::new(channel.clone());
        let send = SendMessageRequest {
            room: room.into(),
            client_name: "Zoe".into(),
            msg: "hello".into(),
            ..SendMessageRequest::default()
        };
        let first = JoinMsgLeave {
            room: room.into(),
            ..join("Ada")
        };
        let history = GetHistoryRequest {
            room: room.into(),
            ..GetHistoryRequest::default()
        };
        let participants = ListParticipantsRequest {
            room: room.into(),
            ..ListParticipantsRequest::default()
        };
        let ok = || Status::new(Code::Ok, "");
        let sent = client.send_message(with_authorization(send, authorization)).await;
        let read = client
            .get_history(with_authorization(history, authorization))
            .await;
        let rooms = ListRoomsRequest::default();
        let listed = client.list_rooms(with_authorization(rooms, authorization)).await;
        let seen = client
            .list_participants(with_authorization(participants, authorization))
            .await;
        vec![
            ("SendMessage", sent.err().unwrap_or_else(ok)),
            ("GetHistory", read.err().unwrap_or_else(ok)),
            ("ListRooms", listed.err().unwrap_or_else(ok)),
            ("ListParticipants", seen.err().unwrap_or_else(ok)),
            ("Subscribe", subscribe(channel.clone(), authorization, room).await),
            ("Chat", chat_once(channel, authorization, first).await),
        ]
    }
}

fn keys_file(directory: &TempDir) -> PathBuf {
    directory.path().join("jwks.json")
}

fn write_keys(directory: &TempDir, keys: &[&SigningKey]) {
    let keys: Vec<Value> = keys.iter().map(|key| key.public_jwk()).collect();
    let new = directory.path().join("new");
    fs::write(&new, json!({ "keys": keys }).to_string()).unwrap();
    fs::rename(new, keys_file(directory)).unwrap();
}

/// The status with which a stream ends that joins and leaves at once.
pub async fn chat_once(channel: Channel, authorization: Option<&str>, first: JoinMsgLeave) -> Status {
    match Client::open_with(channel, authorization).await {
        Ok(mut client) => {
            client.send(first).await;
            client.half_close();
            client.end().await
        }
        Err(status) => status,
    }
}

/// The status with which a subscription ends before its first event, or OK.
pub async fn subscribe(channel: Channel, authorization: Option<&str>, room: &str) -> Status {
    let request = SubscribeRequest {
        room: room.into(),
        start: Some(chitchat::proto::subscribe_request::Start::Last(1)),
    };
    let mut client = ChatServiceClient::new(channel);
    match client.subscribe(with_authorization(request, authorization)).await {
        Ok(response) => match response.into_inner().message().await {
            Ok(_) => Status::new(Code::Ok, ""),
            Err(status) => status,
        },
        Err(status) => status,
    }
}

pub fn reason(status: &Status) -> String {
    let info = status.get_details_error_info();
    info.map(|info| info.reason).unwrap_or_default()
}

async fn assert_all(protected: &Protected, authorization: Option<&str>, code: Code, expected: &str) {
    for (method, status) in protected.call_all(authorization, "tea").await {
        assert_eq!(
            (status.code(), reason(&status).as_str()),
            (code, expected),
            "{method}: {status}"
        );
    }
}

#[tokio::test]
async fn each_bad_token_is_refused_by_every_call_for_its_own_reason() {
    let protected = Protected::start(Anonymous::None).await;
    let key = &protected.key;
    let kid = key.public_jwk()["kid"].clone();
    let good = grant(&["*"], &["read", "write", "create"]);
    let claims = json!({
        "iss": "issuer", "aud": "chat", "sub": "ada", "exp": now() + 60,
        "rooms": ["*"], "rights": ["read", "write", "create", "moderate"],
    });
    let issue = |change: &dyn Fn(&mut Grant)| {
        let mut grant = good.clone();
        change(&mut grant);
        bearer(&key.issue(&grant))
    };
    let signed = |header: Value| bearer(&key.sign(&header, &claims));
    let unsigned = {
        let token = key.sign(&json!({"alg": "none"}), &claims);
        bearer(&format!("{}.", token.rsplit_once('.').unwrap().0))
    };
    let cases = [
        ("TOKEN_ALGORITHM", unsigned),
        ("TOKEN_ALGORITHM", signed(json!({"alg": "HS256", "kid": kid}))),
        (
            "TOKEN_KEY_UNKNOWN",
            signed(json!({"alg": "EdDSA", "kid": "../jwks.json"})),
        ),
        ("TOKEN_KEY_UNKNOWN", bearer(&new_key().issue(&good))),
        (
            "TOKEN_SIGNATURE",
            bearer(&new_key().sign(&json!({"alg": "EdDSA", "kid": kid}), &claims)),
        ),
        ("TOKEN_EXPIRED", issue(&|grant| grant.expires_at = now() - LEEWAY)),
        ("TOKEN_AUDIENCE", issue(&|grant| grant.audience = "other".into())),
        ("TOKEN_ISSUER", issue(&|grant| grant.issuer = "other".into())),
        ("TOKEN_MALFORMED", issue(&|grant| grant.subject.clear())),
        ("TOKEN_MALFORMED", bearer("a.b.c")),
        ("TOKEN_MALFORMED", "Basic YTpi".into()),
    ];
    for (expected, authorization) in &cases {
        assert_all(&protected, Some(authorization), Code::Unauthenticated, expected).await;
    }
    assert_all(&protected, None, Code::Unauthenticated, "TOKEN_MISSING").await;
    let count = |reason: &str| format!("chitchat_events_rejected_total{{reason=\"{reason}\"");
    for (reason, expected) in [("token_missing", 6.0), ("token_malformed", 18.0)] {
        let found = protected.server.metric(&count(reason)).await;
        assert_eq!(found, expected, "{reason}");
    }
    assert_all(&protected, Some(&protected.issue(&good)), Code::Ok, "").await;
}

#[tokio::test]
async fn a_token_grants_its_rights_in_its_rooms() {
    let protected = Protected::start(Anonymous::None).await;
    let all = protected.issue(&grant(&["*"], &["read", "write", "create"]));
    assert_all(&protected, Some(&all), Code::Ok, "").await;
    let expect = async |authorization: &str, room: &str, expected: [&str; 6]| {
        let statuses = protected.call_all(Some(authorization), room).await;
        for ((method, status), expected) in statuses.iter().zip(expected) {
            assert_eq!(reason(status), expected, "{method}: {status}");
            let code = if expected.is_empty() {
                Code::Ok
            } else {
                Code::PermissionDenied
            };
            assert_eq!(status.code(), code, "{method}");
        }
    };
    let reader = protected.issue(&grant(&["te*"], &["read"]));
    let (right, other) = ("RIGHT_NOT_GRANTED", "ROOM_NOT_GRANTED");
    expect(&reader, "tea", [right, "", "", "", "", right]).await;
    let writer = protected.issue(&grant(&["tea"], &["write"]));
    expect(&writer, "tea", ["", right, right, right, right, right]).await;
    let member = protected.issue(&grant(&["tea"], &["read", "write"]));
    expect(&member, "tea", [""; 6]).await;
    // Whether another room exists is not told.
    for room in ["coffee", "lobby"] {
        expect(&member, room, [other, other, "", other, other, other]).await;
    }
    let no_creator = protected.issue(&grant(&["*"], &["read", "write"]));
    let statuses = protected.call_all(Some(&no_creator), "new").await;
    assert_eq!(reason(&statuses[0].1), right);
    assert_eq!(reason(&statuses[1].1), "NO_ROOM");
    assert_eq!(reason(&statuses[5].1), right);
    let nothing = protected.issue(&grant(&[], &[]));
    expect(&nothing, "tea", [right; 6]).await;
}

#[tokio::test]
async fn only_rooms_that_may_be_read_are_listed() {
    let protected = Protected::start(Anonymous::None).await;
    let mut client = protected.server.client().await;
    let all = protected.issue(&grant(&["*"], &["read", "write", "create"]));
    for number in 0..20 {
        let room = if number % 3 == 0 { "open" } else { "secret" };
        let request = SendMessageRequest {
            room: format!("{number:02}-{room}"),
            client_name: "Ada".into(),
            msg: "hello".into(),
            ..SendMessageRequest::default()
        };
        client
            .send_message(with_authorization(request, Some(&all)))
            .await
            .unwrap();
    }
    let reader = protected.issue(&grant(&["*-open"], &["read"]));
    let (mut page_token, mut found) = (String::new(), Vec::new());
    loop {
        let request = ListRoomsRequest {
            page_size: 3,
            page_token,
        };
        let request = with_authorization(request, Some(&reader));
        let page = client.list_rooms(request).await.unwrap().into_inner();
        found.extend(page.rooms.into_iter().map(|room| room.room));
        page_token = page.next_page_token;
        assert!(!page_token.contains("secret"));
        if page_token.is_empty() {
            break;
        }
    }
    let expected: Vec<_> = (0..20)
        .step_by(3)
        .map(|number| format!("{number:02}-open"))
        .collect();
    assert_eq!(found, expected);
}

#[tokio::test]
async fn callers_without_a_token_may_do_what_the_server_says() {
    let reading = Protected::start(Anonymous::Read).await;
    let all = reading.issue(&grant(&["*"], &["read", "write", "create"]));
    assert_all(&reading, Some(&all), Code::Ok, "").await;
    for (method, status) in reading.call_all(None, "tea").await {
        let expected = match method {
            "SendMessage" | "Chat" => (Code::Unauthenticated, "TOKEN_MISSING"),
            _ => (Code::Ok, ""),
        };
        assert_eq!((status.code(), reason(&status).as_str()), expected, "{method}");
    }
    // A bad token is not the same as none.
    assert_all(
        &reading,
        Some("Bearer a.b.c"),
        Code::Unauthenticated,
        "TOKEN_MALFORMED",
    )
    .await;
    let writing = Protected::start(Anonymous::Write).await;
    assert_all(&writing, None, Code::Ok, "").await;
}

#[tokio::test]
async fn health_and_reflection_need_no_token() {
    let protected = Protected::start(Anonymous::None).await;
    let mut health = HealthClient::new(protected.server.channel().await);
    for service in ["", "itu.chitchat.ChatService"] {
        let request = HealthCheckRequest {
            service: service.into(),
        };
        assert_eq!(health.check(request).await.unwrap().into_inner().status, 1);
    }
}

#[tokio::test]
async fn a_participant_has_the_name_of_the_token() {
    let protected = Protected::start(Anonymous::None).await;
    let ada = protected.named("Ada");
    let mut client = protected.chat(&ada, join("")).await;
    assert_eq!(client.next().await.sender_name, "Ada");
    let mut other = protected.chat(&ada, join("Bob")).await;
    let status = other.end().await;
    assert_eq!(
        (status.code(), reason(&status).as_str()),
        (Code::PermissionDenied, "NAME_NOT_GRANTED")
    );
    assert_eq!(
        status.message(),
        "your token is for the name \"Ada\"; use that, or none"
    );
    let mut unary = protected.server.client().await;
    let post = |name: &str| SendMessageRequest {
        room: "tea".into(),
        client_name: name.into(),
        msg: "hello".into(),
        ..SendMessageRequest::default()
    };
    let sent = unary.send_message(with_authorization(post(""), Some(&ada))).await;
    let broadcast = sent.unwrap().into_inner().broadcast.unwrap();
    assert_eq!(broadcast.sender_name, "Ada");
    let refused = unary
        .send_message(with_authorization(post("Аda"), Some(&ada)))
        .await;
    assert_eq!(reason(&refused.unwrap_err()), "NAME_NOT_GRANTED");
}

#[tokio::test]
async fn a_session_of_another_name_cannot_be_resumed() {
    let protected = Protected::start(Anonymous::Write).await;
    let mut ada = protected
        .chat(&protected.named("Ada"), join_wanting_welcome(""))
        .await;
    let welcome = ada.next().await.welcome.unwrap();
    let first = JoinMsgLeave {
        session_token: welcome.session_token,
        ..join_wanting_welcome("")
    };
    let mut bob = protected.chat(&protected.named("Bob"), first.clone()).await;
    let other = bob.next().await.welcome.unwrap();
    assert_ne!(other.participant_id, welcome.participant_id);
    assert_eq!(bob.next().await.sender_name, "Bob");
    // Nor can a caller without a token resume it.
    let first = JoinMsgLeave {
        client_name: "Ada".into(),
        ..first
    };
    let status = protected.server.end_after(first).await;
    assert_eq!(reason(&status), "NAME_TAKEN");
}

#[tokio::test]
async fn the_owner_of_a_name_takes_it_from_whoever_has_it() {
    let protected = Protected::start(Anonymous::Write).await;
    let mut stranger = protected.server.join("Аda").await;
    let mut witness = protected.server.join("Zoe").await;
    let mut ada = protected
        .chat(&protected.named("Ada"), join_wanting_welcome(""))
        .await;
    let status = stranger.end().await;
    assert_eq!(
        (status.code(), reason(&status).as_str()),
        (Code::PermissionDenied, "NAME_CLAIMED")
    );
    let left = witness.next().await;
    assert_eq!(
        (left.r#type(), left.sender_name.as_str()),
        (EventType::Leave, "Аda")
    );
    let joined = witness.next().await;
    assert_eq!(
        (joined.r#type(), joined.sender_name.as_str()),
        (EventType::Join, "Ada")
    );
    assert!(ada.next().await.welcome.is_some());
    let refused = protected.server.end_after(join("ada")).await;
    assert_eq!(reason(&refused), "NAME_TAKEN");
    // Lost, but not gone.
    drop(ada);
    protected
        .server
        .wait_for_metric(
            "chitchat_streams_ended_total{reason=\"lost\",method=\"Chat\"}",
            1.0,
        )
        .await;
    let refused = protected.server.end_after(join("ada")).await;
    assert_eq!(reason(&refused), "NAME_TAKEN");
}

#[tokio::test]
async fn a_stream_ends_when_its_token_expires_and_a_new_token_resumes_the_session() {
    let protected = Protected::start(Anonymous::None).await;
    let lasting = |seconds: u64| {
        protected.issue(&Grant {
            expires_at: now() + seconds - LEEWAY,
            ..grant(&["*"], &["read", "write", "create"])
        })
    };
    let mut long = protected.chat(&lasting(3_600), join_wanting_welcome("Bob")).await;
    assert!(long.next().await.welcome.is_some());
    assert_eq!(long.next().await.sender_name, "Bob");

    let short = lasting(4);
    let mut first_version = protected.chat(&short, join("Old")).await;
    let mut welcomed = protected.chat(&short, join_wanting_welcome("Ada")).await;
    let subscribed = {
        let channel = protected.server.channel().await;
        let request = SubscribeRequest::default();
        let mut client = ChatServiceClient::new(channel);
        let request = with_authorization(request, Some(&short));
        client.subscribe(request).await.unwrap().into_inner()
    };
    let welcome = welcomed.next().await.welcome.unwrap();
    let notice = loop {
        if let Some(notice) = welcomed.next().await.notice {
            break notice;
        }
    };
    assert_eq!(notice.code(), NoticeCode::TokenExpires);
    assert!((1..=4).contains(&notice.expires_in.unwrap().seconds));
    let mut received = Vec::new();
    let status = loop {
        match first_version.try_next().await {
            Ok(message) => received.push(message),
            Err(status) => break status,
        }
    };
    assert_eq!(
        (status.code(), reason(&status).as_str()),
        (Code::Unauthenticated, "TOKEN_EXPIRED")
    );
    assert!(
        received
            .iter()
            .all(|message| message.sequence > 0 && message.notice.is_none())
    );
    let status = welcomed.end().await;
    assert_eq!(reason(&status), "TOKEN_EXPIRED");
    let mut subscribed = subscribed;
    let status = loop {
        if let Err(status) = subscribed.message().await {
            break status;
        }
    };
    assert_eq!(reason(&status), "TOKEN_EXPIRED");

    let again = JoinMsgLeave {
        session_token: welcome.session_token,
        ..join_wanting_welcome("Ada")
    };
    let mut resumed = protected.chat(&lasting(3_600), again).await;
    let resumed = resumed.next().await.welcome.unwrap();
    assert_eq!(resumed.participant_id, welcome.participant_id);
    protected
        .server
        .wait_for_metric(
            "chitchat_streams_ended_total{reason=\"expired\",method=\"Chat\"}",
            2.0,
        )
        .await;
}

#[tokio::test]
async fn new_keys_are_used_for_new_calls_and_open_streams_continue() {
    let protected = Protected::start(Anonymous::None).await;
    let all = grant(&["*"], &["read", "write", "create"]);
    let old = protected.issue(&all);
    let mut open = protected.chat(&old, join("Ada")).await;
    assert_eq!(open.next().await.sender_name, "Ada");
    let new_key = new_key();
    write_keys(&protected.directory, &[&new_key]);
    let reloads = |outcome: &str| format!("chitchat_auth_keys_reloads_total{{outcome=\"{outcome}\"}}");
    protected.server.wait_for_metric(&reloads("success"), 1.0).await;
    assert_all(&protected, Some(&old), Code::Unauthenticated, "TOKEN_KEY_UNKNOWN").await;
    open.send(message(1, "still here")).await;
    assert_eq!(open.next().await.msg_stream, "still here");
    let new = bearer(&new_key.issue(&all));
    fs::write(keys_file(&protected.directory), "{").unwrap();
    protected.server.wait_for_metric(&reloads("failure"), 1.0).await;
    assert_all(&protected, Some(&new), Code::Ok, "").await;
    open.send(message(2, "and now")).await;
    assert_eq!(open.next().await.msg_stream, "and now");
}

#[tokio::test]
async fn a_call_on_a_connection_with_a_valid_token_needs_one_itself() {
    let protected = Protected::start(Anonymous::None).await;
    let all = protected.issue(&grant(&["*"], &["read", "write", "create"]));
    let channel = protected.server.channel().await;
    let mut client = ChatServiceClient::new(channel);
    let list = |authorization| with_authorization(ListRoomsRequest::default(), authorization);
    assert!(client.list_rooms(list(Some(all.as_str()))).await.is_ok());
    let refused = client.list_rooms(list(None)).await.unwrap_err();
    assert_eq!(reason(&refused), "TOKEN_MISSING");
    let short = protected.issue(&Grant {
        expires_at: now() + 2 - LEEWAY,
        ..grant(&["*"], &["read"])
    });
    let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
    let mut accepted = 0;
    // The same token again and again, until it has expired.
    let status = loop {
        match client.list_rooms(list(Some(short.as_str()))).await {
            Ok(_) => accepted += 1,
            Err(status) => break status,
        }
        assert!(tokio::time::Instant::now() < deadline);
    };
    assert!(accepted > 0);
    assert_eq!(reason(&status), "TOKEN_EXPIRED");
}

#[tokio::test]
async fn an_address_that_sends_too_many_invalid_tokens_must_wait_with_new_ones() {
    let protected = Protected::start_with(Anonymous::None, |config| {
        config.transport.rates.authentication_failures = 1;
    })
    .await;
    let all = protected.issue(&grant(&["*"], &["read", "write", "create"]));
    let channel = protected.server.channel().await;
    let mut known = ChatServiceClient::new(channel.clone());
    let list = |authorization: &str| with_authorization(ListRoomsRequest::default(), Some(authorization));
    known.list_rooms(list(&all)).await.unwrap();
    let forged = bearer(&new_key().issue(&grant(&["*"], &["read"])));
    let mut stranger = protected.server.client().await;
    let mut failed = 0;
    let status = loop {
        let status = stranger.list_rooms(list(&forged)).await.unwrap_err();
        if status.code() != Code::Unauthenticated {
            break status;
        }
        failed += 1;
        assert!(failed < 1_000);
    };
    assert!(failed >= 10, "{failed}");
    assert_eq!(
        (status.code(), reason(&status).as_str()),
        (Code::ResourceExhausted, "TOO_MANY_INVALID_TOKENS")
    );
    assert!(status.get_details_retry_info().unwrap().retry_delay.is_some());
    // A connection that has shown its token goes on.
    known.list_rooms(list(&all)).await.unwrap();
    drop(channel);
}
