//! Whatever happens to the files of a store: a start gives everything that was acknowledged, or is refused and takes
//! nothing away.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use super::tests::{Scratch, append, open, open_with, record, room, sequences, snapshot};
use super::*;
use crate::domain::WallTime;

/// What is in a directory, by the paths in it: files as they are, journals without what is allotted ahead.
fn entries(path: &Path) -> BTreeMap<PathBuf, Option<Vec<u8>>> {
    let mut found = BTreeMap::new();
    let mut directories = vec![path.to_path_buf()];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(directory).unwrap() {
            let entry = entry.unwrap().path();
            let name = entry.strip_prefix(path).unwrap().to_path_buf();
            if entry.is_dir() {
                directories.push(entry);
                found.insert(name, None);
                continue;
            }
            let mut bytes = fs::read(&entry).unwrap();
            if name.extension().is_some_and(|extension| extension == "jnl") {
                bytes.truncate(
                    bytes
                        .iter()
                        .rposition(|byte| *byte != 0)
                        .map_or(0, |last| last + 1),
                );
            }
            found.insert(name, Some(bytes));
        }
    }
    found
}

/// The bytes of the journal of the store at `path`.
fn journal(path: &Path) -> Vec<u8> {
    entries(path).remove(Path::new("db/0.jnl")).flatten().unwrap()
}

/// A store with a few events in two rooms, closed.
async fn stored(name: &str) -> Scratch {
    let scratch = Scratch::new(name);
    let store = scratch.open(Retention::ON_DISK);
    for (name, count) in [("tea", 5), ("milk", 3)] {
        let log = store.open(&room(name), WallTime::from_millis(7)).unwrap().id;
        for n in 1..=count {
            append(&store, log, vec![record(n, 1)], (n == 2).then(|| snapshot(2))).await;
        }
    }
    drop(store);
    scratch
}

/// Whether everything that [`stored`] appended is there.
fn has_everything(store: &DiskStore) -> bool {
    [("tea", 5), ("milk", 3)].into_iter().all(|(name, count)| {
        let log = store.find(&room(name)).unwrap();
        log.is_some_and(|log| sequences(store, log.id, 0) == (1..=count).collect::<Vec<_>>())
    })
}

#[tokio::test]
async fn a_flipped_bit_in_a_journal_is_refused_or_does_no_harm() {
    let scratch = stored("bits").await;
    let original = journal(&scratch.0);
    let length = original.len();
    let put = |bytes: &[u8]| fs::write(scratch.0.join("db/0.jnl"), bytes).unwrap();
    let mut refused = 0;
    for at in (0..length).step_by(5) {
        let mut bytes = original.clone();
        bytes[at] ^= 1 << (at % 8);
        put(&bytes);
        match open(&scratch.0, Retention::ON_DISK) {
            Ok(store) => {
                assert!(has_everything(&store), "byte {at}");
                let log = store.open(&room("tea"), WallTime::from_millis(7)).unwrap().id;
                append(&store, log, vec![record(6, 1)], None).await;
                drop(store);
                // The event that was added is in the journal and noted.
                put(&original);
                drop(open_with(&scratch.0, Retention::ON_DISK, true).unwrap());
            }
            Err(error) => {
                refused += 1;
                assert!(error.is_damage(), "byte {at}: {error}");
                assert!(
                    journal(&scratch.0) == bytes,
                    "byte {at} of {length} is not as it was"
                );
            }
        }
    }
    assert!(refused > length / 10, "{refused} of {length}");
    put(&original);
    assert!(has_everything(&scratch.open(Retention::ON_DISK)));
}

#[tokio::test]
async fn damage_in_any_file_is_refused_or_does_no_harm() {
    let scratch = stored("any").await;
    // With tables on disk, not only a journal.
    let store = scratch.open(Retention::ON_DISK);
    for table in [
        &store.tables.rooms,
        &store.tables.records,
        &store.tables.snapshots,
    ] {
        table.rotate_memtable_and_wait().unwrap();
    }
    drop(store);
    let before = entries(&scratch.0);
    let copy = scratch.0.with_extension("copy");
    let damages: [fn(&mut Vec<u8>, usize); 2] = [|bytes, at| bytes[at] ^= 4, Vec::truncate];
    let mut refusals = 0;
    for (path, bytes) in &before {
        let bytes = bytes.clone().unwrap_or_default();
        for at in (0..bytes.len()).step_by(bytes.len().div_ceil(8).max(1)) {
            for damage in damages {
                fs::remove_dir_all(&copy).ok();
                for (path, bytes) in &before {
                    fs::create_dir_all(copy.join(path).parent().unwrap()).unwrap();
                    match bytes {
                        Some(bytes) => fs::write(copy.join(path), bytes).unwrap(),
                        None => fs::create_dir_all(copy.join(path)).unwrap(),
                    }
                }
                let mut damaged = bytes.clone();
                damage(&mut damaged, at);
                fs::write(copy.join(path), damaged).unwrap();
                let refused = match open(&copy, Retention::ON_DISK) {
                    Ok(store) => {
                        assert!(has_everything(&store), "{} at {at}", path.display());
                        continue;
                    }
                    Err(refused) => refused,
                };
                refusals += 1;
                fs::write(copy.join(path), &bytes).unwrap();
                let mended = open(&copy, Retention::ON_DISK)
                    .unwrap_or_else(|error| panic!("{} at {at}: {refused}, then {error}", path.display()));
                assert!(has_everything(&mended), "{} at {at}: {refused}", path.display());
            }
        }
    }
    // Not for what is dispensable: old versions, and a journal of which all is in tables.
    assert!(refusals > 100, "{refusals}");
    fs::remove_dir_all(&copy).unwrap();
}

#[tokio::test]
async fn a_file_that_is_gone_is_missed_before_anything_is_changed() {
    let scratch = stored("gone").await;
    let before = entries(&scratch.0);
    let away = scratch.0.with_extension("away");
    for part in [
        "FORMAT",
        "db",
        "db/version",
        "db/0.jnl",
        "db/keyspaces",
        "db/keyspaces/2",
    ] {
        fs::rename(scratch.0.join(part), &away).unwrap();
        let refused = open(&scratch.0, Retention::ON_DISK).map(drop).unwrap_err();
        assert!(refused.is_damage(), "{part}: {refused}");
        assert!(refused.to_string().contains("is missing"), "{part}: {refused}");
        fs::rename(&away, scratch.0.join(part)).unwrap();
        assert!(entries(&scratch.0) == before, "{part}");
    }
    for id in 0..4 {
        let current = scratch.0.join(format!("db/keyspaces/{id}/current"));
        fs::rename(&current, &away).unwrap();
        let refused = open(&scratch.0, Retention::ON_DISK).map(drop).unwrap_err();
        assert!(
            refused
                .to_string()
                .contains(&format!("its file `keyspaces/{id}/current` is missing")),
            "{refused}"
        );
        fs::rename(&away, &current).unwrap();
        assert!(entries(&scratch.0) == before, "{id}");
    }
    // These hold nothing that cannot be made again.
    for part in ["LOCK", "heads", "secret", "db/lock"] {
        fs::remove_file(scratch.0.join(part)).unwrap();
        assert!(has_everything(&scratch.open(Retention::ON_DISK)), "{part}");
    }
    // What was not noted any more is noted again.
    let journal = scratch.0.join("db/0.jnl");
    OpenOptions::new()
        .write(true)
        .open(journal)
        .unwrap()
        .set_len(300)
        .unwrap();
    let refused = open(&scratch.0, Retention::ON_DISK).map(drop).unwrap_err();
    assert!(matches!(refused, StoreError::Shorter { .. }), "{refused}");
}

#[test]
fn a_beginning_that_was_interrupted_begins_again() {
    let scratch = Scratch::new("beginning");
    drop(scratch.open(Retention::ON_DISK));
    let database = scratch.0.join("db");
    for version in ["", "FJL"] {
        fs::write(database.join("version"), version).unwrap();
        fs::remove_dir_all(database.join("keyspaces")).unwrap();
        scratch.open(Retention::ON_DISK);
    }
    // But not where something was written.
    fs::remove_file(database.join("version")).unwrap();
    let refused = open(&scratch.0, Retention::ON_DISK).map(drop).unwrap_err();
    assert!(
        refused.to_string().contains("its file `version` is missing"),
        "{refused}"
    );
}

#[tokio::test]
async fn events_that_are_gone_from_the_beginning_are_missed_unless_they_were_let_go_of() {
    let scratch = Scratch::new("first");
    let retention = Retention {
        events: 32,
        ..Retention::ON_DISK
    };
    let store = scratch.open(retention);
    let log = store.open(&room("tea"), WallTime::from_millis(7)).unwrap().id;
    for n in 1..=40 {
        append(&store, log, vec![record(n, 1)], Some(snapshot(n))).await;
    }
    let first = store.bounds(log).unwrap().first;
    assert!(first.get() > 1, "{first}");
    drop(store);
    let store = scratch.open(retention);
    assert_eq!(store.bounds(log).unwrap().first, first);
    store.tables.records.remove(record_key(log, first)).unwrap();
    drop(store);
    let refused = open(&scratch.0, retention).map(drop).unwrap_err();
    assert_eq!(
        refused.to_string(),
        format!("the log of room \"tea\" is damaged: events {first} to {first} are missing")
    );
}

#[tokio::test]
async fn what_a_power_cut_left_of_a_write_is_cut() {
    let scratch = stored("hollow").await;
    let journal = scratch.0.join("db/0.jnl");
    let end = self::journal(&scratch.0).len() as u64;
    let store = scratch.open(Retention::ON_DISK);
    let log = store.open(&room("tea"), WallTime::from_millis(7)).unwrap().id;
    let noted = fs::read(scratch.0.join("heads")).unwrap();
    append(&store, log, vec![record(6, 1_000)], None).await;
    drop(store);
    // Its end was written, its middle not, and nobody was told.
    let file = OpenOptions::new().write(true).open(&journal).unwrap();
    file.write_all_at(&[0; 500], end + 500).unwrap();
    fs::write(scratch.0.join("heads"), noted).unwrap();
    let store = scratch.open(Retention::ON_DISK);
    assert!(has_everything(&store));
    assert!(store.torn() > 1_000, "{}", store.torn());
}

#[tokio::test]
async fn nothing_is_acknowledged_in_a_directory_that_was_removed() {
    type Change = fn(&Path);
    let remove: Change = |path| fs::remove_dir_all(path).unwrap();
    let remove_database: Change = |path| fs::remove_dir_all(path.join("db")).unwrap();
    let relocate: Change = |path| fs::rename(path, path.with_extension("away")).unwrap();
    let replace: Change = |path| {
        fs::remove_dir_all(path).unwrap();
        fs::create_dir(path).unwrap();
        fs::write(path.join("LOCK"), "").unwrap();
    };
    let changes = [
        (remove, "LOCK was removed or moved"),
        (remove_database, "db was removed or moved"),
        (relocate, "LOCK was removed or moved"),
        (replace, "LOCK was replaced"),
    ];
    for (change, expected) in changes {
        let scratch = stored("removed").await;
        let store = scratch.open(Retention::ON_DISK);
        let log = store.open(&room("tea"), WallTime::from_millis(7)).unwrap().id;
        change(&scratch.0);
        let append = |records| {
            store.append(
                log,
                Append {
                    records,
                    snapshot: None,
                },
            )
        };
        let failed = append(vec![record(6, 1)]).await.unwrap_err();
        assert!(failed.to_string().contains(expected), "{failed}");
        assert_eq!(append(vec![record(6, 1)]).await, Err(StoreError::Failed));
        fs::remove_dir_all(scratch.0.with_extension("away")).ok();
    }
}

/// Goes on with the log of `tea`, which has `last` events, until the journals have changed so often.
async fn fill(scratch: &Scratch, mut last: u64, journals: u64) -> u64 {
    let store = scratch.open(Retention::ON_DISK);
    let log = store.open(&room("tea"), WallTime::from_millis(7)).unwrap().id;
    while !scratch.0.join(format!("db/{journals}.jnl")).exists() {
        assert!(last < 1_000, "the journals do not change");
        last += 1;
        // What cannot be compressed.
        let mut frame = vec![0; 5 + (1 << 20)];
        rand::Rng::fill(&mut rand::rng(), &mut frame[5..]);
        frame[1..5].copy_from_slice(&(1_u32 << 20).to_be_bytes());
        frame[5..13].copy_from_slice(&last.to_be_bytes());
        let record = Record {
            frames: frame.into(),
            ..record(last, 1)
        };
        append(&store, log, vec![record], None).await;
    }
    append(&store, log, vec![record(last + 1, 1)], None).await;
    last + 1
}

fn last(store: &DiskStore) -> u64 {
    let log = store.find(&room("tea")).unwrap().unwrap();
    store.bounds(log.id).unwrap().last.get()
}

#[tokio::test]
async fn damage_in_a_journal_that_is_full_is_refused_and_takes_nothing_away() {
    let scratch = stored("sealed").await;
    let count = fill(&scratch, 5, 1).await;
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(scratch.0.join("db/0.jnl"))
        .unwrap();
    let place = file.metadata().unwrap().len() / 2;
    let mut byte = [0];
    file.read_exact_at(&mut byte, place).unwrap();
    file.write_all_at(&[!byte[0]], place).unwrap();
    for _ in 0..2 {
        let refused = open(&scratch.0, Retention::ON_DISK).map(drop).unwrap_err();
        assert!(refused.is_damage(), "{refused}");
        assert!(refused.to_string().contains("goes on behind it"), "{refused}");
    }
    file.write_all_at(&byte, place).unwrap();
    assert_eq!(last(&scratch.open(Retention::ON_DISK)), count);
}

#[tokio::test]
async fn damage_that_other_writes_follow_is_refused() {
    let scratch = stored("middle").await;
    let original = journal(&scratch.0);
    // The notes say nothing of it.
    fs::remove_file(scratch.0.join("heads")).unwrap();
    let mut bytes = original.clone();
    bytes[original.len() / 2] ^= 1;
    fs::write(scratch.0.join("db/0.jnl"), &bytes).unwrap();
    let refused = open(&scratch.0, Retention::ON_DISK).map(drop).unwrap_err();
    assert!(refused.to_string().contains("goes on behind it"), "{refused}");
    assert!(journal(&scratch.0) == bytes);
    // What follows goes too, where that is accepted, and its places are not used again in the same epoch.
    let store = open_with(&scratch.0, Retention::ON_DISK, true).unwrap();
    assert!(!has_everything(&store));
    let found = store.find(&room("tea")).unwrap().unwrap();
    assert!(found.epoch.get() > 1_700_000_000_000, "{}", found.epoch);
    assert!(store.torn() > 100, "{}", store.torn());
}

#[tokio::test]
async fn a_start_that_was_interrupted_gives_back_what_it_had_cut() {
    let scratch = stored("interrupted").await;
    let bytes = journal(&scratch.0);
    let at = bytes.len() - 50;
    fs::create_dir(scratch.0.join("cut")).unwrap();
    fs::write(scratch.0.join(format!("cut/0.jnl-{at}")), &bytes[at..]).unwrap();
    fs::write(scratch.0.join("db/0.jnl"), &bytes[..at]).unwrap();
    assert!(has_everything(&scratch.open(Retention::ON_DISK)));
    assert!(!scratch.0.join("cut").exists());
    // But not over what was written since.
    fs::create_dir(scratch.0.join("cut")).unwrap();
    fs::write(scratch.0.join(format!("cut/0.jnl-{at}")), [7; 50]).unwrap();
    assert!(has_everything(&scratch.open(Retention::ON_DISK)));
    assert!(!scratch.0.join("cut").exists());
}

#[tokio::test]
async fn two_rooms_with_the_same_log_are_refused() {
    let scratch = stored("twice").await;
    let store = scratch.open(Retention::ON_DISK);
    let tea = store.find(&room("tea")).unwrap().unwrap();
    let entry = (tea.id, tea.epoch);
    store.tables.renew([(&room("coffee"), &entry)]).unwrap();
    drop(store);
    let refused = open(&scratch.0, Retention::ON_DISK).map(drop).unwrap_err();
    assert!(
        refused.to_string().contains("two rooms have the same log"),
        "{refused}"
    );
}

#[tokio::test]
async fn a_snapshot_without_its_events_is_a_loss() {
    let scratch = stored("ahead").await;
    let store = scratch.open(Retention::ON_DISK);
    let tea = store.find(&room("tea")).unwrap().unwrap();
    append(&store, tea.id, Vec::new(), Some(snapshot(5))).await;
    for n in [4, 5] {
        let key = record_key(tea.id, Sequence::new(n));
        store.tables.records.remove(key).unwrap();
    }
    drop(store);
    fs::remove_file(scratch.0.join("heads")).unwrap();
    let refused = open(&scratch.0, Retention::ON_DISK).map(drop).unwrap_err();
    assert!(
        refused
            .to_string()
            .contains("ends at event 3, but events up to 5 were acknowledged"),
        "{refused}"
    );
    let store = open_with(&scratch.0, Retention::ON_DISK, true).unwrap();
    let found = store.find(&room("tea")).unwrap().unwrap();
    assert!(found.epoch > tea.epoch && found.snapshot.is_none());
    assert_eq!(sequences(&store, tea.id, 0), [1, 2, 3]);
    drop(store);
    scratch.open(Retention::ON_DISK);
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_power_cut_without_syncs_gives_every_room_a_new_epoch() {
    let scratch = stored("power").await;
    let os = || {
        let options = DiskOptions {
            durability: Durability::Os,
            retention: Retention::ON_DISK,
            max_rooms: 4,
            accept_loss: false,
        };
        DiskStore::open(&scratch.0, options, Arc::new(|_| {})).unwrap()
    };
    let epoch = |store: &DiskStore| store.find(&room("tea")).unwrap().unwrap().epoch;
    let before = epoch(&scratch.open(Retention::ON_DISK));
    let mark = scratch.0.join("unsynced");
    let store = os();
    assert_eq!(epoch(&store), before);
    assert!(mark.exists());
    drop(store);
    assert!(!mark.exists(), "all is synced at the end");
    // As if the process had been killed, and the machine had not.
    drop(os());
    fs::copy("/proc/sys/kernel/random/boot_id", &mark).unwrap();
    assert_eq!(epoch(&os()), before);
    fs::write(&mark, "another").unwrap();
    let after = epoch(&scratch.open(Retention::ON_DISK));
    assert!(after > before && !mark.exists());
    assert_eq!(epoch(&os()), after);
    // Pages of the journal were lost, those of the notes not: that was accepted when it was begun.
    let length = journal(&scratch.0).len();
    let file = OpenOptions::new()
        .write(true)
        .open(scratch.0.join("db/0.jnl"))
        .unwrap();
    file.write_all_at(&[0; 30], length as u64 / 2).unwrap();
    assert!(open(&scratch.0, Retention::ON_DISK).is_err());
    fs::write(&mark, "another").unwrap();
    let store = scratch.open(Retention::ON_DISK);
    assert!(epoch(&store) > after && !has_everything(&store));
}
