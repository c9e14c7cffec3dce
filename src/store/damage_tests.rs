//! Opening a store whose files are damaged either returns every acknowledged event, or fails and changes nothing.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use super::tests::{
    DataDir, OPTIONS, append, assert_says, open, open_tea, record, room, sequences, snapshot,
};
use super::*;
use crate::domain::WallTime;

/// Returns the content of all files in a directory by relative path, `None` for directories. Journals are returned without
/// their preallocated zeros.
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

/// Returns the content of the first journal of the store at `path`.
fn journal(path: &Path) -> Vec<u8> {
    entries(path).remove(Path::new("db/0.jnl")).flatten().unwrap()
}

/// Creates a store with a few events in two rooms, and closes it.
async fn stored() -> DataDir {
    let data = DataDir::new();
    let store = data.open();
    for (name, count) in [("tea", 5), ("milk", 3)] {
        let log = store.open(&room(name), WallTime::from_millis(7)).unwrap().id;
        for n in 1..=count {
            append(&store, log, vec![record(n, 1)], (n == 2).then(|| snapshot(2))).await;
        }
    }
    drop(store);
    data
}

/// Returns whether the store has everything that [`stored`] appended.
fn has_everything(store: &DiskStore) -> bool {
    [("tea", 5), ("milk", 3)].into_iter().all(|(name, count)| {
        let log = store.find(&room(name)).unwrap();
        log.is_some_and(|log| sequences(store, log.id, 0) == (1..=count).collect::<Vec<_>>())
    })
}

#[tokio::test]
async fn a_flipped_bit_in_a_journal_is_detected_or_harmless() {
    let data = stored().await;
    let original = journal(&data.path);
    let length = original.len();
    let put = |bytes: &[u8]| fs::write(data.path.join("db/0.jnl"), bytes).unwrap();
    let mut detected = 0;
    for at in (0..length).step_by(5) {
        let mut bytes = original.clone();
        bytes[at] ^= 1 << (at % 8);
        put(&bytes);
        match open(&data.path, OPTIONS) {
            Ok(store) => {
                assert!(has_everything(&store), "byte {at}");
                let log = open_tea(&store);
                append(&store, log, vec![record(6, 1)], None).await;
                drop(store);
                // The original journal lacks the event that was just appended, but the watermark includes it.
                put(&original);
                drop(data.open_accepting_loss());
            }
            Err(error) => {
                detected += 1;
                assert!(error.is_damage(), "byte {at}: {error}");
                assert!(journal(&data.path) == bytes, "byte {at} of {length} has changed");
            }
        }
    }
    assert!(detected > length / 10, "{detected} of {length}");
    put(&original);
    assert!(has_everything(&data.open()));
}

#[tokio::test]
async fn damage_in_any_file_is_detected_or_harmless() {
    let data = stored().await;
    // Writes table files beside the journal.
    let store = data.open();
    for table in [
        &store.tables.rooms,
        &store.tables.records,
        &store.tables.snapshots,
    ] {
        table.rotate_memtable_and_wait().unwrap();
    }
    drop(store);
    let before = entries(&data.path);
    let copy = data.path.with_extension("copy");
    let damages: [fn(&mut Vec<u8>, usize); 2] = [|bytes, at| bytes[at] ^= 4, Vec::truncate];
    let mut detected = 0;
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
                let error = match open(&copy, OPTIONS) {
                    Ok(store) => {
                        assert!(has_everything(&store), "{} at {at}", path.display());
                        continue;
                    }
                    Err(error) => error,
                };
                detected += 1;
                fs::write(copy.join(path), &bytes).unwrap();
                let repaired = open(&copy, OPTIONS)
                    .unwrap_or_else(|again| panic!("{} at {at}: {error}, then {again}", path.display()));
                assert!(has_everything(&repaired), "{} at {at}: {error}", path.display());
            }
        }
    }
    // Damage to superseded version files and to a journal whose batches are all in table files is harmless.
    assert!(detected > 100, "{detected}");
}

#[tokio::test]
async fn a_missing_file_is_detected_before_anything_changes() {
    let data = stored().await;
    let before = entries(&data.path);
    let away = data.path.with_extension("away");
    for part in [
        "FORMAT",
        "db",
        "db/version",
        "db/0.jnl",
        "db/keyspaces",
        "db/keyspaces/2",
    ] {
        fs::rename(data.path.join(part), &away).unwrap();
        let error = data.open_error();
        assert!(error.is_damage(), "{part}: {error}");
        assert!(error.to_string().contains("is missing"), "{part}: {error}");
        fs::rename(&away, data.path.join(part)).unwrap();
        assert!(entries(&data.path) == before, "{part}");
    }
    for id in 0..4 {
        let current = data.path.join(format!("db/keyspaces/{id}/current"));
        fs::rename(&current, &away).unwrap();
        let error = data.open_error();
        assert_says(&error, &format!("its file `keyspaces/{id}/current` is missing"));
        fs::rename(&away, &current).unwrap();
        assert!(entries(&data.path) == before, "{id}");
    }
    // The content of these can be recreated.
    for part in ["LOCK", "heads", "secret", "db/lock"] {
        fs::remove_file(data.path.join(part)).unwrap();
        assert!(has_everything(&data.open()), "{part}");
    }
    // The watermarks were recreated too.
    let journal = data.path.join("db/0.jnl");
    OpenOptions::new()
        .write(true)
        .open(journal)
        .unwrap()
        .set_len(300)
        .unwrap();
    let error = data.open_error();
    assert!(matches!(error, StoreError::Truncated { .. }), "{error}");
}

#[test]
fn an_interrupted_initialization_is_restarted() {
    let data = DataDir::new();
    drop(data.open());
    let database = data.path.join("db");
    for version in ["", "FJL"] {
        fs::write(database.join("version"), version).unwrap();
        fs::remove_dir_all(database.join("keyspaces")).unwrap();
        data.open();
    }
    // A database that contains data is not initialized again.
    fs::remove_file(database.join("version")).unwrap();
    let error = data.open_error();
    assert_says(&error, "its file `version` is missing");
}

#[tokio::test]
async fn events_missing_at_the_start_of_a_log_are_detected_unless_retention_removed_them() {
    let data = DataDir::new();
    let retention = Retention {
        max_events: 32,
        ..Retention::ON_DISK
    };
    let store = data.open_with(retention);
    let log = open_tea(&store);
    for n in 1..=40 {
        append(&store, log, vec![record(n, 1)], Some(snapshot(n))).await;
    }
    let first = store.bounds(log).unwrap().first;
    assert!(first.get() > 1, "{first}");
    drop(store);
    let store = data.open_with(retention);
    assert_eq!(store.bounds(log).unwrap().first, first);
    store.tables.records.remove(record_key(log, first)).unwrap();
    drop(store);
    let error = data.open_error();
    assert_eq!(
        error.to_string(),
        format!("the log of room \"tea\" is damaged: events {first} to {first} are missing")
    );
}

#[tokio::test]
async fn a_write_with_holes_from_a_power_cut_is_cut_off() {
    let data = stored().await;
    let journal = data.path.join("db/0.jnl");
    let end = self::journal(&data.path).len() as u64;
    let store = data.open();
    let log = open_tea(&store);
    let watermarks = fs::read(data.path.join("heads")).unwrap();
    append(&store, log, vec![record(6, 1_000)], None).await;
    drop(store);
    // Simulates a write that was not acknowledged and whose end, but not its middle, reached the disk.
    let file = OpenOptions::new().write(true).open(&journal).unwrap();
    file.write_all_at(&[0; 500], end + 500).unwrap();
    fs::write(data.path.join("heads"), watermarks).unwrap();
    let store = data.open();
    assert!(has_everything(&store));
    assert!(store.torn_bytes() > 1_000, "{}", store.torn_bytes());
}

#[tokio::test]
async fn nothing_is_acknowledged_after_the_directory_was_removed() {
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
        let data = stored().await;
        let store = data.open();
        let log = open_tea(&store);
        change(&data.path);
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
    }
}

/// Appends to the log of `tea`, which has `last` events, until the journal has been rotated `journals` times. Returns the
/// last sequence.
async fn fill(data: &DataDir, mut last: u64, journals: u64) -> u64 {
    let store = data.open();
    let log = open_tea(&store);
    while !data.path.join(format!("db/{journals}.jnl")).exists() {
        assert!(last < 1_000, "the journal is not rotated");
        last += 1;
        // Random bytes cannot be compressed.
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
async fn damage_in_a_sealed_journal_is_rejected_and_changes_nothing() {
    let data = stored().await;
    let count = fill(&data, 5, 1).await;
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(data.path.join("db/0.jnl"))
        .unwrap();
    let place = file.metadata().unwrap().len() / 2;
    let mut byte = [0];
    file.read_exact_at(&mut byte, place).unwrap();
    file.write_all_at(&[!byte[0]], place).unwrap();
    for _ in 0..2 {
        let error = data.open_error();
        assert!(error.is_damage(), "{error}");
        assert_says(&error, "goes on behind it");
    }
    file.write_all_at(&byte, place).unwrap();
    assert_eq!(last(&data.open()), count);
}

#[tokio::test]
async fn damage_before_valid_batches_is_rejected() {
    let data = stored().await;
    let original = journal(&data.path);
    // Without the file, no watermark reveals the loss.
    fs::remove_file(data.path.join("heads")).unwrap();
    let mut bytes = original.clone();
    bytes[original.len() / 2] ^= 1;
    fs::write(data.path.join("db/0.jnl"), &bytes).unwrap();
    let error = data.open_error();
    assert_says(&error, "goes on behind it");
    assert!(journal(&data.path) == bytes);
    // If the loss is accepted, the batches after the damage are lost too. Their sequence numbers are reused in a new epoch.
    let store = data.open_accepting_loss();
    assert!(!has_everything(&store));
    let found = store.find(&room("tea")).unwrap().unwrap();
    assert!(found.epoch.get() > 1_700_000_000_000, "{}", found.epoch);
    assert!(store.torn_bytes() > 100, "{}", store.torn_bytes());
}

#[tokio::test]
async fn an_interrupted_recovery_restores_what_it_had_cut() {
    let data = stored().await;
    let bytes = journal(&data.path);
    let at = bytes.len() - 50;
    fs::create_dir(data.path.join("cut")).unwrap();
    fs::write(data.path.join(format!("cut/0.jnl-{at}")), &bytes[at..]).unwrap();
    fs::write(data.path.join("db/0.jnl"), &bytes[..at]).unwrap();
    assert!(has_everything(&data.open()));
    assert!(!data.path.join("cut").exists());
    // A tail that was cut is not restored over bytes that were written since.
    fs::create_dir(data.path.join("cut")).unwrap();
    fs::write(data.path.join(format!("cut/0.jnl-{at}")), [7; 50]).unwrap();
    assert!(has_everything(&data.open()));
    assert!(!data.path.join("cut").exists());
}

#[tokio::test]
async fn two_rooms_with_the_same_log_are_rejected() {
    let data = stored().await;
    let store = data.open();
    let tea = store.find(&room("tea")).unwrap().unwrap();
    let entry = (tea.id, tea.epoch);
    store.tables.set_epochs([(&room("coffee"), &entry)]).unwrap();
    drop(store);
    let error = data.open_error();
    assert_says(&error, "two rooms have the same log");
}

#[tokio::test]
async fn a_snapshot_newer_than_its_log_is_a_loss() {
    let data = stored().await;
    let store = data.open();
    let tea = store.find(&room("tea")).unwrap().unwrap();
    append(&store, tea.id, Vec::new(), Some(snapshot(5))).await;
    for n in [4, 5] {
        let key = record_key(tea.id, Sequence::new(n));
        store.tables.records.remove(key).unwrap();
    }
    drop(store);
    fs::remove_file(data.path.join("heads")).unwrap();
    let error = data.open_error();
    assert_says(&error, "ends at event 3, but events up to 5 were acknowledged");
    let store = data.open_accepting_loss();
    let found = store.find(&room("tea")).unwrap().unwrap();
    assert!(found.epoch > tea.epoch && found.snapshot.is_none());
    assert_eq!(sequences(&store, tea.id, 0), [1, 2, 3]);
    drop(store);
    data.open();
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_power_cut_with_unsynced_writes_gives_every_room_a_new_epoch() {
    let data = stored().await;
    let os = || {
        let options = DiskOptions {
            durability: Durability::Os,
            ..OPTIONS
        };
        open(&data.path, options).unwrap()
    };
    let epoch = |store: &DiskStore| store.find(&room("tea")).unwrap().unwrap().epoch;
    let before = epoch(&data.open());
    let marker = data.path.join("unsynced");
    let store = os();
    assert_eq!(epoch(&store), before);
    assert!(marker.exists());
    drop(store);
    assert!(!marker.exists(), "dropping the store syncs it");
    // Simulates a kill of the process without a reboot.
    drop(os());
    fs::copy("/proc/sys/kernel/random/boot_id", &marker).unwrap();
    assert_eq!(epoch(&os()), before);
    fs::write(&marker, "another").unwrap();
    let after = epoch(&data.open());
    assert!(after > before && !marker.exists());
    assert_eq!(epoch(&os()), after);
    // Simulates that pages of the journal were lost, but not those of the watermarks. `--durability os` accepts that.
    let length = journal(&data.path).len();
    let file = OpenOptions::new()
        .write(true)
        .open(data.path.join("db/0.jnl"))
        .unwrap();
    file.write_all_at(&[0; 30], length as u64 / 2).unwrap();
    assert!(open(&data.path, OPTIONS).is_err());
    fs::write(&marker, "another").unwrap();
    let store = data.open();
    assert!(epoch(&store) > after && !has_everything(&store));
}
