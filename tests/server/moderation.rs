//! Moderation: removing and banning, closing and deleting.

use std::fs;

use chitchat::auth::{Anonymous, Grant};
use chitchat::config::StoreOptions;
use chitchat::proto::chat_service_client::ChatServiceClient;
use chitchat::proto::moderate_request::Action;
use chitchat::proto::moderation_target::Target;
use chitchat::proto::{
    Ban, EventType, GetHistoryRequest, JoinMsgLeave, ListBansRequest, ListBansResponse, ModerateRequest,
    ModerationTarget, NoticeCode, RoomAction, SendMessageRequest, SubscribeRequest,
};
use chitchat::store::Durability;
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use crate::harness::{Client, TestServer, join, join_wanting_welcome, message, with_authorization};
use crate::tokens::{Protected, chat_once, grant, reason, subscribe};

fn target(target: Target) -> ModerationTarget {
    ModerationTarget { target: Some(target) }
}

fn ban(whom: Target) -> Action {
    Action::Ban(Ban {
        target: Some(target(whom)),
        duration: Some(prost_types::Duration {
            seconds: 3_600,
            nanos: 0,
        }),
        ..Ban::default()
    })
}

fn room(action: RoomAction) -> Action {
    Action::RoomAction(action.into())
}

fn subject(subject: &str) -> Target {
    Target::Subject(subject.into())
}

/// A token of `subject` for everything but moderation.
fn token_of(protected: &Protected, subject: &str) -> String {
    protected.issue(&Grant {
        subject: subject.into(),
        ..grant(&["*"], &["read", "write", "create"])
    })
}

async fn joined(protected: &Protected, authorization: &str, name: &str) -> Client {
    let mut client = protected.chat(authorization, join(name)).await;
    assert_eq!(client.next().await.sender_name, name);
    client
}

async fn send(protected: &Protected, authorization: &str, name: &str) -> Status {
    let request = SendMessageRequest {
        client_name: name.into(),
        msg: "hello".into(),
        ..SendMessageRequest::default()
    };
    let mut client = protected.server.client().await;
    let sent = client
        .send_message(with_authorization(request, Some(authorization)))
        .await;
    sent.err().unwrap_or_else(|| Status::new(Code::Ok, ""))
}

async fn bans(protected: &Protected) -> ListBansResponse {
    let request = with_authorization(ListBansRequest::default(), Some(&protected.moderator()));
    let mut client = protected.server.client().await;
    client.list_bans(request).await.unwrap().into_inner()
}

/// The reasons with which JOIN, SendMessage and Subscribe in the lobby end.
async fn attempts(protected: &Protected, authorization: &str, name: &str) -> [String; 3] {
    let channel = protected.server.channel().await;
    let chat = chat_once(channel.clone(), Some(authorization), join(name)).await;
    let sent = send(protected, authorization, name).await;
    let read = subscribe(channel, Some(authorization), "lobby").await;
    [chat, sent, read].map(|status| reason(&status))
}

#[track_caller]
fn assert_ends(status: &Status, expected: &str, line: &str) {
    assert_eq!(
        (status.code(), reason(status).as_str()),
        (Code::PermissionDenied, expected)
    );
    assert_eq!(status.message(), line);
}

#[tokio::test]
async fn a_participant_who_is_removed_is_told_why_and_the_others_see_its_leave() {
    let protected = Protected::start_with(Anonymous::Write, |_| {}).await;
    let mut ada = protected.server.join("Ada").await;
    let (mut bob, welcome) = protected.server.join_with(join_wanting_welcome("Bob")).await;
    let remove = || Action::Remove(target(Target::ParticipantId(welcome.participant_id)));
    assert_eq!(protected.moderate("", remove(), "too loud").await.unwrap(), 1);
    assert_ends(
        &bob.end().await,
        "REMOVED",
        "a moderator has removed you from the room: too loud",
    );
    assert_eq!(ada.next().await.r#type(), EventType::Join);
    let left = ada.next().await;
    assert_eq!(
        (left.r#type(), left.sender_name.as_str()),
        (EventType::Leave, "Bob")
    );
    let again = protected.moderate("", remove(), "").await.unwrap_err();
    assert_eq!(
        (again.code(), reason(&again).as_str()),
        (Code::NotFound, "TARGET_NOT_FOUND")
    );
    // The session is over, but not forbidden.
    let (_bob, new) = protected
        .server
        .join_with(JoinMsgLeave {
            session_token: welcome.session_token,
            ..join("Bob")
        })
        .await;
    assert!(!new.recovered && new.participant_id != welcome.participant_id);
    let counted = |action: &str| format!("chitchat_moderation_actions_total{{action=\"{action}\"}}");
    assert_eq!(protected.server.metric(&counted("remove")).await, 1.0);
    assert_eq!(protected.server.metric(&counted("ban")).await, 0.0);
    let ended = "chitchat_streams_ended_total{reason=\"moderated\",method=\"Chat\"}";
    protected.server.wait_for_metric(ended, 1.0).await;
}

#[tokio::test]
async fn a_banned_subject_is_out_at_once_and_stays_out_under_any_name() {
    let protected = Protected::start_with(Anonymous::None, |_| {}).await;
    let (bob, eve) = (token_of(&protected, "bob"), token_of(&protected, "eve"));
    let bobs = joined(&protected, &bob, "Bob").await;
    let mut eves = joined(&protected, &eve, "Eve").await;
    let mut channel = ChatServiceClient::new(protected.server.channel().await);
    let mut read = async |authorization: &str| {
        let request = with_authorization(SubscribeRequest::default(), Some(authorization));
        channel.subscribe(request).await.unwrap().into_inner()
    };
    let (mut eve_reads, mut bob_reads) = (read(&eve).await, read(&bob).await);
    // Both subscriptions have begun once they have this.
    bobs.send(message(0, "before")).await;
    for stream in [&mut eve_reads, &mut bob_reads] {
        assert_eq!(stream.message().await.unwrap().unwrap().msg_stream, "before");
    }
    assert_eq!(
        protected.moderate("", ban(subject("eve")), "spam").await.unwrap(),
        1
    );
    let status = eves.end().await;
    let until = status.get_details_error_info().unwrap().metadata["until"].clone();
    assert_ends(
        &status,
        "BANNED",
        &format!("you are banned from this room until {until}: spam"),
    );
    assert_eq!(reason(&eve_reads.message().await.unwrap_err()), "BANNED");
    assert_eq!(attempts(&protected, &eve, "Eva").await, ["BANNED"; 3]);
    assert_eq!(attempts(&protected, &bob, "Rob").await, [""; 3]);
    let left = bob_reads.message().await.unwrap().unwrap();
    assert_eq!(
        (left.r#type(), left.sender_name.as_str()),
        (EventType::Leave, "Eve")
    );
    let listed = bans(&protected).await;
    assert_eq!((listed.bans.len(), listed.closed), (1, false));
    assert_eq!(listed.bans[0].target, Some(target(subject("eve"))));
    assert_eq!(listed.bans[0].reason, "spam");
    assert_eq!(listed.bans[0].expire_time.unwrap().to_string(), until);
    let unban = || Action::Unban(target(subject("eve")));
    protected.moderate("", unban(), "").await.unwrap();
    assert_eq!(attempts(&protected, &eve, "Eva").await, [""; 3]);
    assert_eq!(
        reason(&protected.moderate("", unban(), "").await.unwrap_err()),
        "TARGET_NOT_FOUND"
    );
}

#[tokio::test]
async fn a_message_that_is_sent_again_is_answered_even_if_its_sender_is_banned_meanwhile() {
    let protected = Protected::start_with(Anonymous::None, |_| {}).await;
    let eve = token_of(&protected, "eve");
    let request = SendMessageRequest {
        client_name: "Eve".into(),
        msg: "hello".into(),
        message_id: "7d3f1c".into(),
        ..SendMessageRequest::default()
    };
    let mut client = protected.server.client().await;
    let mut send = async || {
        let request = with_authorization(request.clone(), Some(&eve));
        client.send_message(request).await.map(|sent| sent.into_inner())
    };
    let first = send().await.unwrap();
    protected.moderate("", ban(subject("eve")), "").await.unwrap();
    protected.moderate("", room(RoomAction::Close), "").await.unwrap();
    let again = send().await.unwrap();
    assert!(again.repeated && !first.repeated);
    assert_eq!(again.broadcast, first.broadcast);
}

#[tokio::test]
async fn a_banned_address_keeps_out_all_but_moderators() {
    let protected = Protected::start_with(Anonymous::Write, |_| {}).await;
    let moderator = protected.moderator();
    let mut speaker = joined(&protected, &moderator, "Mod").await;
    let mut ada = protected.server.join("Ada").await;
    let everybody = ban(Target::Address("::ffff:127.0.0.1".into()));
    assert_eq!(protected.moderate("", everybody, "").await.unwrap(), 1);
    assert_eq!(reason(&ada.end().await), "BANNED");
    assert_eq!(reason(&protected.server.end_after(join("Bob")).await), "BANNED");
    assert_eq!(attempts(&protected, &moderator, "Other").await, [""; 3]);
    speaker.send(message(0, "alone")).await;
    while speaker.next().await.msg_stream != "alone" {}
}

#[tokio::test]
async fn a_closed_room_is_read_on_and_only_moderators_speak() {
    let protected = Protected::start_with(Anonymous::Write, |_| {}).await;
    let (mut ada, _) = protected.server.join_with(join_wanting_welcome("Ada")).await;
    ada.next().await;
    protected.moderate("", room(RoomAction::Close), "").await.unwrap();
    ada.send(message(0, "hello?")).await;
    let notice = ada.next().await;
    assert_eq!(notice.notice.unwrap().code(), NoticeCode::RoomClosed);
    let closed = "the room is closed; only moderators can join it or send messages";
    assert_eq!(notice.msg_stream, closed);
    assert_ends(
        &protected.server.end_after(join("Bob")).await,
        "ROOM_CLOSED",
        closed,
    );
    let eve = token_of(&protected, "eve");
    assert_eq!(
        attempts(&protected, &eve, "Eve").await,
        ["ROOM_CLOSED", "ROOM_CLOSED", ""]
    );
    assert!(bans(&protected).await.closed);
    let moderator = protected.moderator();
    assert_eq!(send(&protected, &moderator, "Mod").await.code(), Code::Ok);
    assert_eq!(ada.next().await.sender_name, "Mod");
    protected
        .moderate("", room(RoomAction::Reopen), "")
        .await
        .unwrap();
    ada.send(message(0, "at last")).await;
    assert_eq!(ada.next().await.msg_stream, "at last");
}

#[tokio::test]
async fn a_deleted_room_ends_for_everybody_and_the_next_one_has_another_epoch() {
    let protected = Protected::start_with(Anonymous::Write, |_| {}).await;
    let (mut ada, before) = protected
        .server
        .join_with(JoinMsgLeave {
            room: "tea".into(),
            ..join("Ada")
        })
        .await;
    let mut client = protected.server.client().await;
    let request = SubscribeRequest {
        room: "tea".into(),
        ..SubscribeRequest::default()
    };
    let mut reader = client.subscribe(request).await.unwrap().into_inner();
    ada.send(message(0, "the reader has begun")).await;
    assert_eq!(
        reader.message().await.unwrap().unwrap().msg_stream,
        "the reader has begun"
    );
    protected.moderate("tea", ban(subject("eve")), "").await.unwrap();
    protected
        .moderate("tea", room(RoomAction::Delete), "")
        .await
        .unwrap();
    let line = "a moderator has deleted the room";
    assert_ends(&ada.end().await, "ROOM_DELETED", line);
    assert_ends(&reader.message().await.unwrap_err(), "ROOM_DELETED", line);
    let history = GetHistoryRequest {
        room: "tea".into(),
        ..GetHistoryRequest::default()
    };
    assert_eq!(reason(&client.get_history(history).await.unwrap_err()), "NO_ROOM");
    let (mut ada, after) = protected
        .server
        .join_with(JoinMsgLeave {
            room: "tea".into(),
            session_token: before.session_token,
            ..join("Ada")
        })
        .await;
    assert!(after.epoch > before.epoch && !after.recovered);
    assert_eq!(ada.next().await.sequence, 1);
    let request = ListBansRequest { room: "tea".into() };
    let request = with_authorization(request, Some(&protected.moderator()));
    assert!(
        client
            .list_bans(request)
            .await
            .unwrap()
            .into_inner()
            .bans
            .is_empty()
    );
}

#[tokio::test]
async fn bans_and_a_closed_room_survive_a_restart() {
    let data = tempfile::tempdir().unwrap();
    let store = || StoreOptions::Disk {
        directory: data.path().to_owned(),
        durability: Durability::Os,
        accept_loss: false,
        wait: None,
    };
    let first = Protected::start_with(Anonymous::Write, |config| config.store = store()).await;
    assert_eq!(
        send(&first, &token_of(&first, "ada"), "Ada").await.code(),
        Code::Ok
    );
    first.moderate("", ban(subject("eve")), "spam").await.unwrap();
    first.moderate("", room(RoomAction::Close), "").await.unwrap();
    let before = bans(&first).await;
    // A copy, as a crash would leave it.
    let copy = tempfile::tempdir().unwrap();
    copy_directory(data.path(), copy.path());
    first.server.shut_down().await;
    for directory in [data.path(), copy.path()] {
        let second = Protected::start_with(Anonymous::Write, |config| {
            config.store = StoreOptions::Disk {
                directory: directory.to_owned(),
                durability: Durability::Os,
                accept_loss: false,
                wait: None,
            };
        })
        .await;
        assert_eq!(bans(&second).await, before);
        assert!(before.closed && before.bans.len() == 1);
        let eve = token_of(&second, "eve");
        assert_eq!(attempts(&second, &eve, "Eve").await, ["BANNED"; 3]);
        assert_eq!(reason(&second.server.end_after(join("Bob")).await), "ROOM_CLOSED");
        second.server.shut_down().await;
    }
}

fn copy_directory(from: &std::path::Path, to: &std::path::Path) {
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            fs::create_dir(&target).unwrap();
            copy_directory(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

#[tokio::test]
async fn only_those_with_the_right_moderate() {
    let protected = Protected::start_with(Anonymous::Write, |_| {}).await;
    protected.server.join("Ada").await;
    let open = TestServer::start().await;
    open.join("Ada").await;
    let close = || ModerateRequest {
        action: Some(room(RoomAction::Close)),
        ..ModerateRequest::default()
    };
    let attempt = async |server: &TestServer, authorization: Option<&str>| {
        let mut client = server.client().await;
        let listed = with_authorization(ListBansRequest::default(), authorization);
        let listed = client.list_bans(listed).await.unwrap_err();
        let moderated = client.moderate(with_authorization(close(), authorization)).await;
        let moderated = moderated.unwrap_err();
        assert_eq!(listed.message(), moderated.message());
        (reason(&moderated), moderated.message().to_owned())
    };
    let (why, line) = attempt(&open, None).await;
    assert_eq!(why, "RIGHT_NOT_GRANTED");
    assert_eq!(
        line,
        "nobody has the right to moderate on a server without keys; the operator can start it with --auth-keys"
    );
    let (why, line) = attempt(&protected.server, None).await;
    assert_eq!(why, "TOKEN_MISSING");
    assert!(
        line.starts_with("this needs a token with the right to moderate"),
        "{line}"
    );
    let bob = token_of(&protected, "bob");
    let (why, line) = attempt(&protected.server, Some(&bob)).await;
    assert_eq!(why, "RIGHT_NOT_GRANTED");
    assert_eq!(line, "your token does not grant the right to moderate in a room");
    let elsewhere = protected.issue(&grant(&["tea"], &["moderate"]));
    let (why, _) = attempt(&protected.server, Some(&elsewhere)).await;
    assert_eq!(why, "ROOM_NOT_GRANTED");
    let missing = protected.moderate("none", room(RoomAction::Close), "").await;
    assert_eq!(reason(&missing.unwrap_err()), "NO_ROOM");
    let mut ada = protected.server.join("Zoe").await;
    ada.send(message(0, "still open")).await;
    assert_eq!(ada.next().await.msg_stream, "still open");
}

#[tokio::test]
async fn moderators_at_one_address_may_not_decide_too_fast() {
    let protected = Protected::start_with(Anonymous::Write, |config| {
        config.transport.rates.moderations = 1;
    })
    .await;
    protected.server.join("Ada").await;
    let mut decided = 0;
    let status = loop {
        match protected.moderate("", room(RoomAction::Reopen), "").await {
            Ok(_) => decided += 1,
            Err(status) => break status,
        }
        assert!(decided < 1_000);
    };
    assert!(decided >= 20, "{decided}");
    assert_eq!(
        (status.code(), reason(&status).as_str()),
        (Code::ResourceExhausted, "TOO_FAST")
    );
    assert!(status.get_details_retry_info().unwrap().retry_delay.is_some());
}
