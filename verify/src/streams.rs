//! What each client received, stream by stream.

use std::collections::BTreeSet;
use std::ops::Bound::{Excluded, Unbounded};

use super::log::{Log, Logs};
use super::{Client, History, Invariant, Place, Violation, What};
use chitchat::proto::{EventType, ServerMessage, Welcome};

/// One stream of a client.
#[derive(Default)]
struct Stream {
    resume: Option<Place>,
    welcome: Option<Welcome>,
    /// The places of what was received, in the order in which it was.
    places: Vec<Place>,
    has_left: bool,
    is_clean: bool,
}

pub(super) fn check(history: &History, logs: &Logs, found: &mut Vec<Violation>) {
    for client in &history.clients {
        let streams = streams(client, found);
        for stream in &streams {
            check_begin(client, stream, found);
            if let Some(log) = logs.of(&client.room) {
                check_rest(client, stream, log, found);
            }
        }
        if let (Some(last), Some(log)) = (streams.last(), logs.of(&client.room)) {
            check_end(client, last, log, found);
        }
    }
}

fn streams(client: &Client, found: &mut Vec<Violation>) -> Vec<Stream> {
    let mut streams: Vec<Stream> = Vec::new();
    for step in &client.steps {
        if let What::Join { resume, .. } = &step.what {
            streams.push(Stream {
                resume: *resume,
                ..Stream::default()
            });
        }
        let Some(stream) = streams.last_mut() else {
            continue;
        };
        match &step.what {
            What::Received(message) => {
                if message.room != client.room {
                    let how = format!(
                        "{} is in {} and received event {} of {}",
                        client.name, client.room, message.sequence, message.room
                    );
                    found.push(Violation::new(Invariant::Rooms, how));
                } else if let Some(welcome) = &message.welcome {
                    stream.welcome = Some(welcome.clone());
                } else {
                    stream.places.extend(Place::of(message));
                }
            }
            What::Leave => stream.has_left = true,
            What::Ended { is_clean } => stream.is_clean = *is_clean,
            What::Join { .. } | What::Sent { .. } => {}
        }
    }
    streams
}

/// A stream begins where its welcome says, and the welcome goes on where the client was.
fn check_begin(client: &Client, stream: &Stream, found: &mut Vec<Violation>) {
    let Some(welcome) = &stream.welcome else { return };
    let mut wrong = |invariant, how: String| {
        found.push(Violation::new(invariant, format!("{}: {how}", client.name)));
    };
    if let Some(resume) = stream.resume {
        let is_same_log = resume.epoch == welcome.epoch;
        if welcome.recovered && (!is_same_log || resume.sequence != welcome.sequence) {
            let how = format!(
                "came back after event {} and was set after event {}",
                resume.sequence, welcome.sequence
            );
            wrong(Invariant::Resume, how);
        }
        if is_same_log && resume.sequence > welcome.last_sequence {
            let how = format!(
                "had event {} and was told that the log ends with event {}",
                resume.sequence, welcome.last_sequence
            );
            wrong(Invariant::Durability, how);
        } else if is_same_log && !welcome.recovered && resume.sequence + 1 >= welcome.first_sequence {
            let how = format!(
                "came back after event {} and was not set there, although it is kept",
                resume.sequence
            );
            wrong(Invariant::Resume, how);
        }
    }
    let begin = Place {
        epoch: welcome.epoch,
        sequence: welcome.sequence + 1,
    };
    if let Some(first) = stream.places.first().filter(|first| **first != begin) {
        let how = format!(
            "was set after event {} and then received event {}",
            welcome.sequence, first.sequence
        );
        wrong(Invariant::Resume, how);
    }
}

/// A stream goes forward, and leaves nothing out that the log has.
fn check_rest(client: &Client, stream: &Stream, log: &Log, found: &mut Vec<Violation>) {
    for (before, place) in stream.places.iter().zip(stream.places.iter().skip(1)) {
        if place <= before {
            let how = format!(
                "{} received event {} after event {}",
                client.name, place.sequence, before.sequence
            );
            found.push(Violation::new(Invariant::Order, how));
        }
    }
    let received: BTreeSet<Place> = stream.places.iter().copied().collect();
    if let (Some(first), Some(last)) = (received.first(), received.last()) {
        for (missing, _) in log
            .range(*first..=*last)
            .filter(|(place, _)| !received.contains(place))
        {
            let how = format!("{} did not receive event {}", client.name, missing.sequence);
            found.push(Violation::new(Invariant::Validity, how));
        }
    }
}

/// Who left has received everything up to its own LEAVE.
fn check_end(client: &Client, last: &Stream, log: &Log, found: &mut Vec<Violation>) {
    let Some(welcome) = last.welcome.as_ref().filter(|_| last.has_left && last.is_clean) else {
        return;
    };
    let is_own_leave = |message: &ServerMessage| {
        message.r#type() == EventType::Leave && message.sender_id == welcome.participant_id
    };
    let begin = Place {
        epoch: welcome.epoch,
        sequence: welcome.sequence,
    };
    // That it is there at all is the roster's matter.
    let left = log
        .range((Excluded(begin), Unbounded))
        .find(|(_, seen)| is_own_leave(&seen.message))
        .map(|(place, _)| *place);
    let received = last.places.iter().max().copied().unwrap_or(begin);
    let Some(left) = left.filter(|left| received < *left) else {
        return;
    };
    for (missing, _) in log.range((Excluded(received), Excluded(left))) {
        let how = format!(
            "{} left with event {} and did not receive event {}",
            client.name, left.sequence, missing.sequence
        );
        found.push(Violation::new(Invariant::Validity, how));
    }
}
