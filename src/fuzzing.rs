//! The fuzz targets: everything that reads bytes which somebody else has written.
//!
//! Each takes arbitrary bytes and panics if a property does not hold. The program `fuzz/` runs them with libFuzzer; the test
//! here runs them with the stored corpus and random changes of it.

use crate::client::escape;
use crate::domain::{
    Command, Join, MessageId, Name, Origin, Room, RoomName, RoomState, Rules, Text, Timestamp, TraceContext,
    WallTime,
};
use crate::{auth, cluster, cmd, hub, rpc, store};

/// A fuzz target.
pub type Target = fn(&[u8]);

/// The fuzz targets, by name.
pub const TARGETS: [(&str, Target); 12] = [
    ("checkpoints", cluster::fuzz_checkpoints),
    ("command_log", cluster::fuzz_messages),
    ("commands", commands),
    ("damage", store::fuzzing::damage),
    ("entries", store::fuzzing::entries),
    ("frames", rpc::fuzzing::frames),
    ("jwt", auth::fuzz_tokens),
    ("names", names),
    ("options", cmd::fuzz_options),
    ("requests", rpc::fuzzing::requests),
    ("room_states", room_states),
    ("tokens", hub::fuzz_tokens),
];

/// Commands that replicas exchange.
fn commands(bytes: &[u8]) {
    if let Ok(command) = Command::decode(bytes) {
        let mut again = Vec::new();
        command.encode(&mut again);
        assert_eq!(again, bytes, "{command:?}");
        Room::new(Rules::default()).apply(command, WallTime::default());
    }
}

/// States of rooms that replicas exchange.
fn room_states(bytes: &[u8]) {
    let Ok(state) = RoomState::decode(bytes) else {
        return;
    };
    assert_eq!(state.encode(), bytes, "{state:?}");
    if let (Ok(mut room), Some(name)) = (Room::from_state(state.clone()), Name::from_stored("Ada")) {
        assert_eq!(room.state(), state);
        let join = Join {
            session: None,
            id: None,
            name,
            owner: None,
            origin: Origin::default(),
            timestamp: Timestamp(0),
            is_resumable: true,
            trace: None,
        };
        room.apply(Command::Join(join), WallTime::default());
    }
}

/// What clients call themselves and write, and how it is displayed.
fn names(bytes: &[u8]) {
    let raw = String::from_utf8_lossy(bytes);
    if let Ok(name) = Name::try_from(&*raw) {
        assert_eq!(Name::from_stored(name.as_str()).as_ref(), Some(&name));
        assert_eq!(
            escape::name(name.as_str()),
            name.as_str(),
            "a name needs no escapes"
        );
        assert_eq!(Name::try_from(name.as_str()), Ok(name));
    }
    if let Ok(room) = RoomName::try_from(&*raw) {
        assert_eq!(RoomName::try_from(room.as_str()), Ok(room));
    }
    for shown in [escape::name(&raw), escape::text(&raw)] {
        assert!(!shown.contains(char::is_control), "{shown:?}");
    }
    assert!(!escape::name(&raw).contains(escape::is_unsafe_to_display));
    if let Ok(text) = Text::parse(&raw, 100) {
        assert!(text.as_str().chars().count() <= 100);
    }
    MessageId::try_from(&*raw).ok();
    let (parent, state) = raw.split_once('\n').unwrap_or((&raw, ""));
    if let Some(trace) = TraceContext::parse(parent, state) {
        assert_eq!(
            TraceContext::parse(trace.traceparent(), trace.tracestate()),
            Some(trace)
        );
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use rand::rngs::StdRng;
    use rand::seq::IndexedRandom as _;
    use rand::{Rng as _, SeedableRng as _};

    use super::*;

    /// How many changed inputs each target gets.
    const ROUNDS: usize = 2_000;

    fn corpus(target: &str) -> Vec<Vec<u8>> {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("fuzz/corpus")
            .join(target);
        let files = fs::read_dir(directory).unwrap();
        files
            .map(|file| fs::read(file.unwrap().path()).unwrap())
            .collect()
    }

    /// Changes an input as a fuzzer does: changes and repeats bytes, and continues it with a part of another.
    fn mutate(input: &mut Vec<u8>, other: &[u8], random: &mut StdRng) {
        for _ in 0..random.random_range(1..6) {
            let at = random.random_range(0..=input.len());
            match random.random_range(0..5) {
                0 => input.insert(at, random.random()),
                1 => input.truncate(at),
                2 => input.extend_from_slice(&other[random.random_range(0..=other.len())..]),
                _ if at == input.len() => {}
                3 => input[at] ^= 1 << random.random_range(0..8),
                _ => input[at] = *[0, 1, 0x7f, 0x80, 0xff].choose(random).unwrap(),
            }
        }
    }

    #[test]
    fn properties_hold_for_the_corpus_and_random_changes_of_it() {
        let mut random = StdRng::seed_from_u64(7);
        for (name, target) in TARGETS {
            let corpus = corpus(name);
            assert!(!corpus.is_empty(), "{name}");
            corpus.iter().for_each(|input| target(input));
            // A store is opened several times for each input.
            let rounds = if name == "damage" { ROUNDS / 40 } else { ROUNDS };
            for _ in 0..rounds {
                let mut input = corpus.choose(&mut random).unwrap().clone();
                mutate(&mut input, corpus.choose(&mut random).unwrap(), &mut random);
                target(&input);
            }
        }
    }
}
