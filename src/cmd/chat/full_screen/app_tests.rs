use std::time::Duration;

use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};

use super::*;
use crate::client::{ClientError, Gap};
use crate::cmd::time_zone::TimeZone;
use crate::proto::{Limits, Notice, NoticeCode, Participant};

fn target(name: &str, room: &str) -> Target {
    Target {
        name: Name::try_from(name).unwrap(),
        room: RoomName::try_from(room).unwrap(),
    }
}

fn welcome(sequence: u64) -> Welcome {
    Welcome {
        sequence,
        limits: Some(Limits {
            max_message_chars: 20,
            ..Limits::default()
        }),
        ..Welcome::default()
    }
}

fn app() -> App {
    let mut app = App::new(
        target("Ada", "tea"),
        Theme::new(true),
        TimeColumns {
            wall_clock: Some((TimeZone::utc(), "")),
            has_lamport_time: true,
        },
        InputHistory::default(),
    );
    app.on_joined(app.target.clone(), Some(&welcome(0)));
    app.on_older(1, &GetHistoryResponse::default());
    app.on_roster(ListParticipantsResponse::default());
    app.take_effects();
    app
}

fn message(sequence: u64, sender: &str, text: &str) -> ServerMessage {
    ServerMessage {
        sender_id: 7,
        sender_name: sender.into(),
        msg_stream: text.into(),
        r#type: EventType::Message.into(),
        timestamp: i64::try_from(sequence).unwrap(),
        sequence,
        ..ServerMessage::default()
    }
}

fn receive(app: &mut App, message: ServerMessage) {
    app.on_event(Event::Message(Box::new(message)));
}

fn press(app: &mut App, code: KeyCode, modifiers: KeyModifiers) {
    app.on_key(KeyEvent::new(code, modifiers));
}

fn key(app: &mut App, code: KeyCode) {
    press(app, code, KeyModifiers::NONE);
}

fn control(app: &mut App, c: char) {
    press(app, KeyCode::Char(c), KeyModifiers::CONTROL);
}

fn type_line(app: &mut App, line: &str) {
    for c in line.chars() {
        key(app, KeyCode::Char(c));
    }
    key(app, KeyCode::Enter);
}

/// The rows of the timeline.
fn rows(app: &App) -> Vec<String> {
    let visible = app.viewport().visible(app.scroll());
    visible.rows.iter().map(ToString::to_string).collect()
}

fn shows(app: &App, text: &str) -> bool {
    rows(app).iter().any(|row| row.contains(text))
}

fn pending(app: &App) -> Vec<&str> {
    app.pending.iter().map(|pending| pending.text.as_str()).collect()
}

/// Gives all entered texts to a session, which calls them 1, 2, ...
fn send_all(app: &mut App) {
    let mut id = 0;
    while let Some(pending) = app.next_unsent() {
        id += 1;
        pending.message_id = Some(id.to_string());
    }
}

#[test]
fn an_own_text_waits_until_it_has_its_place() {
    let mut app = app();
    type_line(&mut app, "hello");
    assert_eq!(pending(&app), ["hello"]);
    send_all(&mut app);
    receive(&mut app, message(1, "Bob", "first"));
    assert_eq!(pending(&app), ["hello"]);
    receive(
        &mut app,
        ServerMessage {
            message_id: "1".into(),
            ..message(2, "Ada", "hello")
        },
    );
    assert_eq!(pending(&app), [""; 0]);
    assert!(rows(&app)[1].ends_with("[L=2] Ada: hello"));
    assert_eq!(app.pending_bytes, 0);
}

#[test]
fn a_rejected_text_is_shown_with_the_reason() {
    let mut app = app();
    type_line(&mut app, "hello");
    send_all(&mut app);
    receive(
        &mut app,
        ServerMessage {
            message_id: "1".into(),
            notice: Some(Notice {
                code: NoticeCode::MessageTooLong.into(),
                ..Notice::default()
            }),
            ..message(0, "Server", "Message too long")
        },
    );
    assert_eq!(pending(&app), [""; 0]);
    assert_eq!(rows(&app), ["-- Message too long", "   not sent: hello"]);
}

#[test]
fn a_text_of_too_many_lines_is_split() {
    assert_eq!(split("a\n\nb", 9), ["a\n\nb"]);
    assert_eq!(split("aaaa\nbb\ncc\ndddddd", 5), ["aaaa", "bb\ncc", "dddddd"]);
    let mut app = app();
    app.on_paste("0123456789\r\n0123456789\r0123456789");
    key(&mut app, KeyCode::Enter);
    assert_eq!(pending(&app), ["0123456789"; 3]);
}

#[test]
fn an_input_that_cannot_be_queued_is_kept() {
    let mut app = app();
    for _ in 0..MAX_PENDING {
        type_line(&mut app, "x");
    }
    type_line(&mut app, "one");
    type_line(&mut app, "two");
    assert_eq!(app.pending.len(), MAX_PENDING);
    assert_eq!(app.editor.text(), "one\ntwo\n");
}

#[test]
fn an_unknown_command_is_not_sent() {
    let mut app = app();
    type_line(&mut app, "/unknown");
    assert_eq!(pending(&app), [""; 0]);
    assert!(shows(&app, "there is no command /unknown"));
}

#[test]
fn what_is_entered_while_joining_goes_to_the_next_room_or_nowhere() {
    let mut app = app();
    type_line(&mut app, "for tea");
    type_line(&mut app, "/join coffee");
    type_line(&mut app, "for coffee");
    assert!(
        app.take_effects()
            .contains(&Effect::Switch(target("Ada", "coffee")))
    );
    assert_eq!(app.next_unsent().unwrap().text, "for tea");
    app.on_join_failed("it is full");
    assert_eq!(pending(&app), ["for tea"]);
    assert!(shows(&app, "cannot join coffee as Ada: it is full"));
    assert!(shows(&app, "not sent: for coffee"));

    type_line(&mut app, "/join coffee");
    type_line(&mut app, "for coffee");
    let left: Vec<String> = app
        .take_pending()
        .into_iter()
        .map(|pending| pending.text)
        .collect();
    assert_eq!(left, ["for tea"]);
    app.on_joined(target("Ada", "coffee"), Some(&welcome(3)));
    assert_eq!(app.next_unsent().unwrap().text, "for coffee");
    let effects = app.take_effects();
    assert!(effects.contains(&Effect::LoadOlder(4)) && effects.contains(&Effect::LoadRoster));
}

#[test]
fn rooms_are_joined_in_the_order_of_the_input() {
    let mut app = app();
    let switches = |app: &mut App| -> Vec<String> {
        let effects = app.take_effects().into_iter();
        let switch = |effect| match effect {
            Effect::Switch(target) => Some(format!("{} {}", target.name, target.room.as_str())),
            _ => None,
        };
        effects.filter_map(switch).collect()
    };
    for line in [
        "/join a",
        "1",
        "/name Bob",
        "/join b",
        "2",
        "/unknown",
        "/join a",
        "3",
        "/join c",
        "4",
    ] {
        type_line(&mut app, line);
    }
    type_line(&mut app, "/join c");
    assert_eq!(switches(&mut app), ["Ada a"]);
    app.on_joined(target("Ada", "a"), Some(&welcome(3)));
    assert_eq!(app.next_unsent().unwrap().text, "1");
    app.take_pending();
    assert_eq!(switches(&mut app), ["Bob a"]);
    app.on_joined(target("Bob", "a"), Some(&welcome(3)));
    assert_eq!(switches(&mut app), ["Bob b"]);
    app.on_join_failed("it is full");
    // The user is there already.
    assert_eq!(switches(&mut app), ["Bob c"]);
    assert_eq!(app.next_unsent().unwrap().text, "3");
    app.take_pending();
    app.on_joined(target("Bob", "c"), Some(&welcome(3)));
    assert_eq!(app.next_unsent().unwrap().text, "4");
    for note in [
        "no command /unknown",
        "cannot join b as Bob",
        "not sent: 2",
        "there already",
    ] {
        assert!(shows(&app, note), "{note}: {:?}", rows(&app));
    }
    assert!(!app.is_switching());
    for room in 0..=MAX_SWITCHING {
        type_line(&mut app, &format!("/join {room}"));
    }
    assert_eq!(app.editor.text(), format!("/join {MAX_SWITCHING}\n"));
}

#[test]
fn someone_who_leaves_goes_to_another_room_only_to_say_something() {
    let mut app = app();
    for line in ["/join a", "/join b", "hi", "/join c"] {
        type_line(&mut app, line);
    }
    app.is_leaving = true;
    app.take_effects();
    app.on_joined(target("Ada", "a"), None);
    assert_eq!(app.take_effects(), [Effect::Switch(target("Ada", "b"))]);
    app.on_joined(target("Ada", "b"), None);
    assert_eq!(app.take_effects(), []);
    assert!(!app.has_input_for_next_room());
}

#[test]
fn a_refused_room_does_not_delay_the_end() {
    let mut app = app();
    type_line(&mut app, "/join a");
    type_line(&mut app, "for nobody");
    app.is_leaving = true;
    assert!(app.has_input_for_next_room());
    app.on_join_failed("it is full");
    assert!(!app.has_input_for_next_room());
    assert_eq!(app.unacknowledged(), 1);
}

#[test]
fn the_unread_marker_moves_only_when_what_it_marks_was_seen() {
    let mut app = app();
    app.resize((40, 6));
    for sequence in 1..=10 {
        receive(&mut app, message(sequence, "Bob", "old"));
    }
    assert!(!shows(&app, "── new"));
    app.on_focus(false);
    receive(&mut app, message(11, "Bob", "eleven"));
    receive(&mut app, message(12, "Bob", "twelve"));
    let draw = |app: &mut App| {
        let keys = app.viewport().visible(app.scroll()).keys;
        app.on_drawn(keys);
    };
    draw(&mut app);
    // The user has not looked: the marker stays at the first.
    receive(&mut app, message(13, "Bob", "thirteen"));
    assert!(rows(&app)[0].contains("── new") && rows(&app)[1].ends_with("eleven"));
    app.on_focus(true);
    draw(&mut app);
    app.on_focus(false);
    receive(&mut app, message(14, "Bob", "fourteen"));
    assert!(rows(&app)[2].contains("── new") && rows(&app)[3].ends_with("fourteen"));
    // Whoever answers has read.
    app.on_focus(true);
    draw(&mut app);
    type_line(&mut app, "yes");
    assert!(!shows(&app, "── new"));
}

#[test]
fn scrolling_keeps_its_place_while_messages_arrive() {
    let mut app = app();
    app.resize((40, 6));
    for sequence in 1..=20 {
        receive(&mut app, message(sequence, "Bob", &format!("{sequence}.")));
    }
    key(&mut app, KeyCode::PageUp);
    let before = rows(&app);
    assert!(before[3].ends_with("Bob: 17."));
    receive(&mut app, message(21, "Bob", "21."));
    assert_eq!(rows(&app), before);
    assert_eq!(app.new_below, 1);
    key(&mut app, KeyCode::Home);
    assert!(rows(&app)[0].ends_with("Bob: 1."));
    app.on_wheel(false);
    assert!(rows(&app)[0].ends_with("Bob: 4."));
    key(&mut app, KeyCode::End);
    assert!(rows(&app)[3].ends_with("Bob: 21."));
    assert_eq!(app.new_below, 0);
    key(&mut app, KeyCode::PageUp);
    for _ in 0..3 {
        key(&mut app, KeyCode::PageDown);
    }
    assert_eq!(app.scroll(), None);
}

#[test]
fn a_section_far_back_is_left_again() {
    let mut app = app();
    app.resize((40, 6));
    app.limits = TimelineLimits {
        entries: 10,
        bytes: usize::MAX,
    };
    app.on_joined(target("Ada", "tea"), Some(&welcome(20)));
    app.take_effects();
    let page = |first: u64, last: u64| GetHistoryResponse {
        messages: (first..=last)
            .map(|sequence| message(sequence, "Bob", &format!("{sequence}.")))
            .collect(),
        first_sequence: 1,
        ..GetHistoryResponse::default()
    };
    app.on_older(21, &page(13, 20));
    key(&mut app, KeyCode::Home);
    assert_eq!(app.take_effects(), [Effect::LoadOlder(13)]);
    app.on_older(13, &page(5, 12));
    receive(&mut app, message(21, "Bob", "21."));
    for _ in 0..5 {
        key(&mut app, KeyCode::PageDown);
    }
    assert!(rows(&app)[3].ends_with("Bob: 14."));
    assert_eq!(app.take_effects(), [Effect::LoadNewer(14)]);
    app.on_newer(14, &page(15, 21));
    for _ in 0..5 {
        key(&mut app, KeyCode::PageDown);
    }
    assert!(rows(&app)[3].ends_with("Bob: 21."));
    assert_eq!(app.scroll(), None);
}

#[test]
fn a_new_log_is_shown_below_the_old_one_and_does_not_mix_with_it() {
    let mut app = app();
    let old = |sequence| message(sequence, "Bob", &format!("old {sequence}."));
    app.on_joined(target("Ada", "tea"), Some(&welcome(3)));
    app.on_older(
        4,
        &GetHistoryResponse {
            messages: (2..=3).map(old).collect(),
            first_sequence: 1,
            ..GetHistoryResponse::default()
        },
    );
    app.take_effects();
    app.on_focus(false);
    receive(&mut app, old(4));
    app.on_event(Event::Gap(Gap::NewEpoch { seen: 4, after: 3 }));
    let new = |sequence| ServerMessage {
        epoch: 1,
        ..message(sequence, "Bob", &format!("new {sequence}."))
    };
    for sequence in 4..=5 {
        receive(&mut app, new(sequence));
    }
    let page = GetHistoryResponse {
        messages: vec![new(1)],
        first_sequence: 1,
        epoch: 1,
        ..GetHistoryResponse::default()
    };
    key(&mut app, KeyCode::Home);
    assert_eq!(app.take_effects(), []);
    // It was requested before.
    app.on_older(2, &page);
    let shown = rows(&app);
    let texts: Vec<_> = shown
        .iter()
        .filter_map(|row| Some(row.split_once("Bob: ")?.1))
        .collect();
    assert_eq!(texts, ["old 2.", "old 3.", "old 4.", "new 4.", "new 5."]);
    // The first event after the old ones is the first that the user has not seen.
    let marker = shown.iter().position(|row| row.contains("── new"));
    assert!(shown[marker.unwrap() + 1].ends_with("new 4."), "{shown:?}");
    type_line(&mut app, "/search old 2");
    assert!(app.hint.as_ref().unwrap().starts_with("Ctrl-R"));
}

#[test]
fn a_page_of_another_epoch_is_not_shown() {
    let mut app = app();
    app.on_joined(target("Ada", "tea"), Some(&welcome(20)));
    type_line(&mut app, "/search 19");
    let page = GetHistoryResponse {
        messages: vec![message(19, "Bob", "19"), message(20, "Bob", "20")],
        first_sequence: 1,
        epoch: 1,
        ..GetHistoryResponse::default()
    };
    app.on_older(21, &page);
    assert!(!shows(&app, "Bob") && app.hint.as_ref().unwrap().contains("replaced"));
    assert_eq!(app.timeline.older, Older::Available);
}

#[test]
fn a_search_loads_older_history() {
    let mut app = app();
    app.on_joined(target("Ada", "tea"), Some(&welcome(20)));
    app.take_effects();
    app.on_older(
        21,
        &GetHistoryResponse {
            messages: vec![message(20, "Bob", "nothing")],
            first_sequence: 18,
            ..GetHistoryResponse::default()
        },
    );
    type_line(&mut app, "/search FOUND it");
    assert!(app.take_effects().contains(&Effect::LoadOlder(20)));
    app.on_older(
        20,
        &GetHistoryResponse {
            messages: vec![message(18, "Bob", "I have found it."), message(19, "Bob", "no")],
            first_sequence: 18,
            ..GetHistoryResponse::default()
        },
    );
    let visible = app.viewport().visible(app.scroll());
    let hit = visible
        .rows
        .iter()
        .flat_map(|row| &row.spans)
        .find(|span| span.content == "found it");
    assert_eq!(hit.unwrap().style, app.theme.found());
    control(&mut app, 'r');
    assert!(app.hint.as_ref().unwrap().contains("no older place"));
    key(&mut app, KeyCode::Esc);
    assert!(app.viewport().needle.is_none());
}

#[test]
fn a_search_that_reads_far_back_can_be_left() {
    let mut app = app();
    app.limits = TimelineLimits {
        entries: 10,
        bytes: usize::MAX,
    };
    app.on_joined(target("Ada", "tea"), Some(&welcome(20)));
    let page = |first: u64, last: u64| GetHistoryResponse {
        messages: (first..=last)
            .map(|sequence| message(sequence, "Bob", "no"))
            .collect(),
        first_sequence: 1,
        ..GetHistoryResponse::default()
    };
    app.on_older(21, &page(11, 20));
    type_line(&mut app, "/search nothing");
    app.on_older(11, &page(1, 10));
    receive(&mut app, message(21, "Bob", "news"));
    assert_eq!(app.new_below, 1);
    app.take_effects();
    type_line(&mut app, "hi");
    assert_eq!((app.scroll(), app.new_below), (None, 0));
    assert!(app.take_effects().contains(&Effect::LoadOlder(22)));
    receive(&mut app, message(22, "Ada", "hi"));
    assert!(shows(&app, "Ada: hi"));
}

#[test]
fn a_search_after_clearing_loads_what_was_cleared() {
    let mut app = app();
    receive(&mut app, message(1, "Bob", "found it"));
    type_line(&mut app, "/clear");
    type_line(&mut app, "/search found");
    assert!(app.take_effects().contains(&Effect::LoadOlder(2)));
    app.on_older(
        2,
        &GetHistoryResponse {
            messages: vec![message(1, "Bob", "found it")],
            first_sequence: 1,
            ..GetHistoryResponse::default()
        },
    );
    assert!(shows(&app, "Bob: found it"));
    assert!(app.scroll().is_some() || app.hint.as_ref().unwrap().starts_with("Ctrl-R"));
    type_line(&mut app, "/clear");
    type_line(&mut app, "/search nothing");
    app.on_older(2, &GetHistoryResponse::default());
    assert!(app.hint.as_ref().unwrap().contains("no older place"));
}

#[test]
fn a_place_that_is_no_longer_in_memory_is_the_nearest_one() {
    let mut app = app();
    app.resize((40, 6));
    app.limits = TimelineLimits {
        entries: 10,
        bytes: usize::MAX,
    };
    app.on_joined(target("Ada", "tea"), Some(&welcome(0)));
    let receive_up_to = |app: &mut App, last: u64| {
        for sequence in app.timeline.newest() + 1..=last {
            receive(app, message(sequence, "Bob", &format!("{sequence}.")));
        }
    };
    receive_up_to(&mut app, 10);
    key(&mut app, KeyCode::Home);
    assert!(rows(&app)[0].ends_with("Bob: 1."));
    receive_up_to(&mut app, 30);
    assert!(rows(&app)[0].ends_with("Bob: 21.") && rows(&app)[3].ends_with("Bob: 24."));
    for code in [KeyCode::PageDown, KeyCode::PageUp] {
        let last = app.timeline.newest() + 20;
        receive_up_to(&mut app, last);
        key(&mut app, code);
        let expected = if code == KeyCode::PageDown {
            last - 6
        } else {
            last - 9
        };
        assert!(
            rows(&app)[0].ends_with(&format!("Bob: {expected}.")),
            "{:?}",
            rows(&app)
        );
    }
}

#[test]
fn the_user_chooses_the_times() {
    let at = Some(prost_types::Timestamp {
        seconds: 1_764_072_000,
        nanos: 0,
    });
    let utc = TimeZone::utc;
    for (wall_clock, has_lamport_time, shown) in [
        (Some((utc(), "")), true, "12:00 [L=5] Bob: hi"),
        (Some((utc(), "Z")), false, "12:00Z Bob: hi"),
        (None, true, "[L=5] Bob: hi"),
        (None, false, "Bob: hi"),
    ] {
        let mut app = app();
        app.times = TimeColumns {
            wall_clock,
            has_lamport_time,
        };
        receive(
            &mut app,
            ServerMessage {
                broadcast_time: at,
                ..message(5, "Bob", "hi")
            },
        );
        let rows = rows(&app);
        assert_eq!(rows.last().unwrap(), shown);
        // The day is one of the times.
        assert_eq!(rows.len() > 1, app.times.wall_clock.is_some());
    }
}

#[test]
fn names_and_commands_are_completed() {
    let mut app = app();
    let participant = |id, name: &str| Participant {
        id,
        name: name.into(),
        ..Participant::default()
    };
    app.on_roster(ListParticipantsResponse {
        participants: vec![
            participant(1, "Bob"),
            participant(2, "Bo Li"),
            participant(3, "Ada"),
        ],
        ..ListParticipantsResponse::default()
    });
    let complete = |app: &mut App, input: &str, tabs: usize| {
        app.editor.set(input);
        // The next Tab does not continue the last completion.
        key(app, KeyCode::End);
        for _ in 0..tabs {
            key(app, KeyCode::Tab);
        }
        app.editor.text().to_owned()
    };
    assert_eq!(complete(&mut app, "bo", 1), "Bo Li: ");
    assert_eq!(complete(&mut app, "bo", 2), "Bob: ");
    assert_eq!(complete(&mut app, "bo", 3), "Bo Li: ");
    assert_eq!(complete(&mut app, "ask bob", 1), "ask Bob ");
    assert_eq!(complete(&mut app, "/wh", 1), "/who ");
    assert_eq!(complete(&mut app, "nobody", 1), "nobody");
    assert_eq!(complete(&mut app, "", 1), "");
    complete(&mut app, "bo", 1);
    app.on_paste("and ");
    key(&mut app, KeyCode::Tab);
    assert_eq!(app.editor.text(), "Bo Li: and ");
}

#[test]
fn control_c_clears_then_asks_then_leaves() {
    let mut app = app();
    app.editor.set("half");
    control(&mut app, 'c');
    assert!(app.editor.is_empty());
    control(&mut app, 'c');
    key(&mut app, KeyCode::Left);
    control(&mut app, 'c');
    assert_eq!(app.take_effects(), []);
    control(&mut app, 'c');
    assert_eq!(app.take_effects(), [Effect::Leave]);
    control(&mut app, 'y');
    assert_eq!(app.editor.text(), "half");
}

#[test]
fn the_connection_is_shown_and_heals() {
    let mut app = app();
    app.on_event(Event::Reconnecting {
        attempt: 1,
        delay: Duration::ZERO,
        cause: ClientError::StreamEnded,
    });
    assert_eq!(
        app.reconnecting.as_deref(),
        Some("the server ended the conversation")
    );
    app.on_event(Event::Resumed { recovered: false });
    app.on_event(Event::Gap(Gap::Expired { first: 3, last: 4 }));
    assert_eq!(app.reconnecting, None);
    assert_eq!(app.take_effects(), [Effect::LoadRoster]);
    assert!(shows(&app, "events 3 to 4 are missing"));
}

#[test]
fn a_key_ends_the_plain_lines_and_is_not_lost() {
    let mut app = app();
    key(&mut app, KeyCode::F(2));
    assert_eq!(app.take_effects(), [Effect::ShowBare]);
    key(&mut app, KeyCode::Char('x'));
    assert_eq!(app.take_effects(), [Effect::LeaveBare]);
    assert_eq!(app.editor.text(), "x");
}
