//! Opening a store whose files are damaged either returns every acknowledged event, or fails and changes nothing.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use super::super::directory::{HighWatermark, segment_path};
use super::super::entry::{Entry, EntryKind};
use super::super::operation::Operation;
use super::super::recovery::Loaded;
use super::super::salvage::Repairs;
use super::super::segment_index::EntryLocation;
use super::super::{Durability, StoreView};
use super::tests::{
    DataDir, OPTIONS, STATUS, append, assert_says, long_record, open, open_room, open_tea, record, room,
    segments, sequences, snapshot,
};
use super::*;

/// Returns the content of all files in a directory by relative path, `None` for directories. Zeros at the end are left out.
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
            // The key of session tokens may end with a zero.
            if !entry.ends_with("secret") {
                let end = bytes.iter().rposition(|byte| *byte != 0);
                bytes.truncate(end.map_or(0, |last| last + 1));
            }
            found.insert(name, Some(bytes));
        }
    }
    found
}

fn segment(data: &DataDir, number: u32) -> PathBuf {
    segment_path(&data.path.join("log"), number)
}

/// Where the entries of the newest segment end.
fn end(data: &DataDir) -> usize {
    let directory = Directory::read_only(&data.path).unwrap();
    directory.read_watermark().unwrap().unwrap().offset as usize
}

/// The bytes of the newest segment, without the zeros at the end.
fn newest(data: &DataDir) -> Vec<u8> {
    let number = segments(data).pop().unwrap();
    let name = segment(data, number)
        .strip_prefix(&data.path)
        .unwrap()
        .to_path_buf();
    entries(&data.path).remove(&name).flatten().unwrap()
}

fn write_at(path: &Path, bytes: &[u8], at: u64) {
    let file = OpenOptions::new().write(true).open(path).unwrap();
    file.write_all_at(bytes, at).unwrap();
}

fn flip(path: &Path, at: u64) {
    let file = OpenOptions::new().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ (1 << (at % 8))], at).unwrap();
}

/// Creates a store with a few events in two rooms, and closes it.
async fn stored() -> DataDir {
    let data = DataDir::in_memory();
    let store = data.open();
    for (name, count) in [("tea", 5), ("milk", 3)] {
        let log = open_room(&store, name).id;
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
        let log = store.find(&room(name));
        log.is_some_and(|log| sequences(store, log.id, 0) == (1..=count).collect::<Vec<_>>())
    })
}

/// Creates a store with several sealed segments, and closes it. The room `tea` has no snapshot, `milk` one of each record.
async fn sealed() -> DataDir {
    let data = DataDir::new();
    let store = data.open();
    let [tea, milk] = ["tea", "milk"].map(|name| open_room(&store, name).id);
    for n in 1..=20 {
        append(&store, tea, vec![long_record(n, 1, 100_000)], None).await;
        append(&store, milk, vec![long_record(n, 1, 100_000)], Some(snapshot(n))).await;
    }
    drop(store);
    assert!(segments(&data).len() >= 4);
    data
}

/// Reads everything that [`sealed`] appended. An error means that a damaged record was detected.
fn read_sealed(store: &DiskStore) -> Result<bool, StoreError> {
    let mut is_complete = true;
    for name in ["tea", "milk"] {
        let Some(log) = store.find(&room(name)) else {
            return Ok(false);
        };
        let records = store.records(log.id, Sequence::ZERO, usize::MAX)?;
        let firsts = records.iter().map(|record| record.first.get());
        is_complete &= firsts.eq(1..=20);
    }
    let milk = open_room(store, "milk").id;
    Ok(is_complete && store.snapshot(milk)? == Some(snapshot(20).bytes))
}

#[tokio::test]
async fn any_flipped_byte_of_the_newest_segment_is_detected_or_harmless() {
    let data = stored().await;
    let path = segment(&data, 1);
    let length = end(&data);
    // Reading fewer of the allocated zeros makes the test fast.
    let original = fs::read(&path).unwrap()[..length + 256].to_vec();
    let mut detected = 0;
    for at in 0..length + 8 {
        let mut bytes = original.clone();
        bytes[at] ^= 1 << (at % 8);
        fs::write(&path, &bytes).unwrap();
        let before = entries(&data.path);
        match open(&data.path, OPTIONS) {
            Ok(store) => assert!(has_everything(&store), "byte {at} of {length}"),
            Err(error) => {
                detected += 1;
                assert!(error.is_damage(), "byte {at}: {error}");
                assert!(
                    entries(&data.path) == before,
                    "byte {at} of {length}: a file has changed"
                );
            }
        }
        fs::write(&path, &original).unwrap();
        // The watermark is of the open that has succeeded, which added an entry.
        set_watermark(&data, length);
    }
    // Only padding is harmless.
    assert!(detected >= length - 8 * 16, "{detected} of {length}");
    assert!(has_everything(&data.open()));
}

#[tokio::test]
async fn any_truncation_of_the_newest_segment_is_detected_or_harmless() {
    let data = stored().await;
    let path = segment(&data, 1);
    let original = fs::read(&path).unwrap();
    let length = end(&data);
    for at in 0..length {
        fs::write(&path, &original[..at]).unwrap();
        let error = data.open_error();
        assert!(error.is_damage(), "{at} of {length}: {error}");
    }
    for at in [length, length + 8, original.len() - 1, original.len()] {
        let copy = copy_of(&data);
        fs::write(segment(&copy, 1), &original[..at]).unwrap();
        assert!(has_everything(&copy.open()), "{at} of {length}");
    }
}

#[tokio::test]
async fn damage_of_sealed_segments_is_detected_when_it_is_opened_or_read() {
    let data = sealed().await;
    let mut detected = 0;
    let mut tried = 0;
    for number in segments(&data) {
        let path = segment(&data, number);
        let original = fs::read(&path).unwrap();
        let length = original.iter().rposition(|byte| *byte != 0).unwrap() + 1;
        let samples = (0..length).step_by(20_011);
        // The header, the index entries, the summaries and the trailer.
        for at in samples
            .chain((0..128).step_by(9))
            .chain((length.saturating_sub(700)..length).step_by(7))
        {
            flip(&path, at as u64);
            tried += 1;
            match open(&data.path, OPTIONS).and_then(|store| read_sealed(&store)) {
                Ok(is_complete) => assert!(is_complete, "segment {number}, byte {at} of {length}"),
                Err(error) => {
                    detected += 1;
                    assert!(error.is_damage(), "segment {number}, byte {at}: {error}");
                }
            }
            fs::write(&path, &original).unwrap();
        }
    }
    assert!(detected > tried / 2, "{detected} of {tried}");
    assert_eq!(read_sealed(&data.open()), Ok(true));
}

#[tokio::test]
async fn a_damaged_index_entry_is_found_and_repaired() {
    let data = sealed().await;
    let store = data.open();
    let sealed = Arc::clone(store.catalog.lock().segment(2).unwrap());
    drop(store);
    flip(&sealed.path, u64::from(sealed.data_end()) + 3);
    let found = StoreView::open(&data.path).unwrap().find_damage().unwrap();
    assert_eq!(found.len(), 1, "{found:?}");
    assert_says(&found[0], "its index is damaged");
    assert_eq!(read_sealed(&data.open_accepting_loss()), Ok(true));
    assert_eq!(StoreView::open(&data.path).unwrap().find_damage(), Ok(Vec::new()));
    assert_eq!(read_sealed(&data.open()), Ok(true));
}

#[tokio::test]
async fn a_missing_file_is_detected_before_anything_changes() {
    let data = sealed().await;
    let before = entries(&data.path);
    let away = data.path.with_extension("away");
    let all = segments(&data).into_iter().map(|number| segment(&data, number));
    for path in all.chain([data.path.join("FORMAT")]) {
        fs::rename(&path, &away).unwrap();
        let error = data.open_error();
        assert!(error.is_damage(), "{}: {error}", path.display());
        assert_says(&error, &path.display().to_string());
        assert_says(&error, "it is missing");
        fs::rename(&away, &path).unwrap();
        assert!(entries(&data.path) == before, "{}", path.display());
    }
    fs::rename(data.path.join("log"), &away).unwrap();
    let error = data.open_error();
    assert_says(&error, "it is missing");
    fs::remove_dir(data.path.join("log")).unwrap();
    fs::rename(&away, data.path.join("log")).unwrap();
    // The content of these can be created anew.
    for part in ["LOCK", "watermark", "secret"] {
        fs::remove_file(data.path.join(part)).unwrap();
        assert_eq!(read_sealed(&data.open()), Ok(true), "{part}");
    }
}

#[tokio::test]
async fn a_segment_in_the_place_of_another_is_detected() {
    let data = sealed().await;
    fs::copy(segment(&data, 1), segment(&data, 2)).unwrap();
    assert_says(&data.open_error(), "it is another segment");
}

#[tokio::test]
async fn a_file_with_nearly_the_name_of_a_segment_is_ignored() {
    let data = stored().await;
    for name in ["1.log", "+1.log", "00000000001.log", "0000000001.txt"] {
        let copy = data.path.join("log").join(name);
        fs::copy(segment(&data, 1), &copy).unwrap();
        assert!(has_everything(&data.open()), "{name}");
        assert!(has_everything(&data.open()) && copy.exists(), "{name}");
    }
}

/// Sets the watermark back to the end of the entries `offset`, as if what follows was never acknowledged.
fn set_watermark(data: &DataDir, offset: usize) {
    let directory = Directory::read_only(&data.path).unwrap();
    let watermark = HighWatermark {
        segment: segments(data).pop().unwrap(),
        offset: u32::try_from(offset).unwrap(),
    };
    watermark.write(&directory.open_watermark().unwrap()).unwrap();
}

#[tokio::test]
async fn a_torn_write_is_cut_off_and_counted() {
    let data = stored().await;
    let store = data.open();
    assert_eq!(store.torn_bytes(), 0);
    let log = open_tea(&store);
    let end = self::end(&data);
    append(&store, log, vec![record(6, 20)], None).await;
    let written = newest(&data).len();
    std::mem::forget(store);
    let copy = copy_of(&data);
    // Simulates a crash during the write.
    OpenOptions::new()
        .write(true)
        .open(segment(&copy, 1))
        .unwrap()
        .set_len(written as u64 - 1)
        .unwrap();
    set_watermark(&copy, end);
    let store = copy.open();
    // The last zeros of what was written cannot be told from those that were there before.
    let torn = (written - 1 - end) as u64;
    assert!(
        (torn - 8..=torn).contains(&store.torn_bytes()),
        "{} of {torn}",
        store.torn_bytes()
    );
    assert!(has_everything(&store));
    append(&store, log, vec![record(6, 1)], None).await;
    drop(store);
    let store = copy.open();
    assert_eq!(store.torn_bytes(), 0);
    assert_eq!(sequences(&store, log, 0), [1, 2, 3, 4, 5, 6]);
}

/// A copy of the files of a store, as they are on the disk.
fn copy_of(data: &DataDir) -> DataDir {
    let copy = DataDir::new();
    fs::create_dir_all(copy.path.join("log")).unwrap();
    for (name, bytes) in entries(&data.path) {
        if bytes.is_some() {
            fs::copy(data.path.join(&name), copy.path.join(&name)).unwrap();
        }
    }
    copy
}

#[tokio::test]
async fn a_write_with_holes_from_a_power_cut_is_cut_off() {
    let data = stored().await;
    let store = data.open();
    let log = open_tea(&store);
    let end = end(&data);
    let append = Append {
        records: (6..100).map(|n| record(n, 1)).collect(),
        snapshot: None,
        status: STATUS,
    };
    store.append(log, append).await.unwrap();
    std::mem::forget(store);
    let copy = copy_of(&data);
    // Simulates a write of which the end, but not the middle, has reached the disk.
    write_at(&segment(&copy, 1), &[0; 500], end as u64 + 500);
    set_watermark(&copy, end);
    let store = copy.open();
    let log = store.find(&room("tea")).unwrap().id;
    let read = sequences(&store, log, 0);
    assert!(read.len() >= 5 && read.len() < 99, "{read:?}");
    assert!(store.torn_bytes() > 1_000, "{}", store.torn_bytes());
}

/// What a start does with the segments.
fn start_operations(data: &DataDir, options: DiskOptions) -> Vec<(u32, Operation)> {
    Operation::take(&data.path.join("log"));
    drop(open(&data.path, options).unwrap());
    let mut done = Operation::take(&data.path.join("log"));
    // The close writes an entry and syncs.
    assert_eq!(done.pop().map(|(_, operation)| operation), Some(Operation::Sync));
    done.pop();
    done
}

#[tokio::test]
async fn what_may_be_in_memory_alone_is_written_again_and_synced_when_it_is_opened() {
    let data = stored().await;
    let durable = end(&data);
    assert_eq!(start_operations(&data, OPTIONS), []);
    let durable_later = end(&data);
    assert!(durable_later > durable);
    let store = data.open();
    append(&store, open_tea(&store), vec![record(6, 1)], None).await;
    let written = end(&data);
    std::mem::forget(store);
    let length = |offset: usize| u32::try_from(offset).unwrap();
    let rewritten = |from, end| vec![(1, Operation::Write(from, end)), (1, Operation::Sync)];
    for (watermark, from) in [(Some(durable_later), length(durable_later)), (None, 128)] {
        let copy = copy_of(&data);
        match watermark {
            // Killed between the write and the sync, or the sync has failed.
            Some(offset) => set_watermark(&copy, offset),
            None => fs::remove_file(copy.path.join("watermark")).unwrap(),
        }
        assert_eq!(
            start_operations(&copy, OPTIONS),
            rewritten(from, length(written)),
            "{watermark:?}"
        );
        let store = copy.open();
        assert_eq!(sequences(&store, open_tea(&store), 0), [1, 2, 3, 4, 5, 6]);
    }
}

#[tokio::test]
async fn what_was_written_without_syncs_is_synced_when_it_is_opened() {
    let data = stored().await;
    let durable = end(&data);
    let os = DiskOptions {
        durability: Durability::Os,
        ..OPTIONS
    };
    let store = open(&data.path, os).unwrap();
    append(&store, open_tea(&store), vec![record(6, 1)], None).await;
    let written = end(&data);
    std::mem::forget(store);
    let [from, end] = [durable, written].map(|offset| u32::try_from(offset).unwrap());
    let done = start_operations(&copy_of(&data), OPTIONS);
    assert_eq!(
        done[..2],
        [(1, Operation::Write(from, end)), (1, Operation::Sync)]
    );
}

#[tokio::test]
async fn a_segment_that_may_not_have_been_sealed_durably_is_written_again() {
    let data = stored().await;
    let directory = Directory::lock(&data.path).unwrap();
    let loaded = Loaded::load(&directory, true, false).unwrap();
    Segment::create(&directory.journal(), loaded.catalog.header(2), 1 << 20, 1 << 20).unwrap();
    let newest = loaded.catalog.newest().unwrap();
    Operation::take(&directory.journal());
    let sealed = newest.seal(loaded.end, &loaded.catalog.active).unwrap();
    // A trailer that is durable alone would refer to an index that is not there.
    let trailer_at = sealed.len - 32;
    let expected = [
        Operation::Write(loaded.end, trailer_at),
        Operation::Sync,
        Operation::Write(trailer_at, sealed.len),
        Operation::Sync,
    ];
    assert_eq!(
        Operation::take(&directory.journal()),
        expected.map(|operation| (1, operation))
    );
    drop(directory);
    assert_eq!(
        start_operations(&data, OPTIONS),
        [(1, Operation::Write(128, sealed.len)), (1, Operation::Sync)]
    );
    assert!(has_everything(&data.open()));
}

#[tokio::test]
async fn damage_before_later_writes_is_detected_without_a_watermark() {
    let data = stored().await;
    fs::remove_file(data.path.join("watermark")).unwrap();
    flip(&segment(&data, 1), newest(&data).len() as u64 / 2);
    let before = newest(&data);
    for _ in 0..2 {
        assert_says(&data.open_error(), "later ones follow");
    }
    assert!(newest(&data) == before);
    // If the loss is accepted, the writes after the damage are kept as far as they continue their logs.
    let epoch = |store: &DiskStore, name| store.find(&room(name)).unwrap().epoch;
    let store = data.open_accepting_loss();
    assert!(!has_everything(&store));
    assert!(epoch(&store, "tea").get() > 1_700_000_000_000);
    assert_eq!(sequences(&store, open_room(&store, "milk").id, 0), [1, 2, 3]);
    let (tea, after) = (open_tea(&store), epoch(&store, "tea"));
    let last = sequences(&store, tea, 0).len() as u64;
    append(&store, tea, vec![record(last + 1, 1)], None).await;
    drop(store);
    // The loss has to be accepted only once.
    let store = data.open();
    assert_eq!(epoch(&store, "tea"), after);
    assert_eq!(sequences(&store, tea, last), [last + 1]);
}

#[tokio::test]
async fn a_lost_segment_is_given_up_before_or_after_the_gap() {
    for lost in [1, 2, 3] {
        let data = sealed().await;
        fs::remove_file(segment(&data, lost)).unwrap();
        data.open_error();
        let store = data.open_accepting_loss();
        let bounds = |name| store.find(&room(name)).map(|log| store.bounds(log.id).unwrap());
        if lost == 1 {
            // With it, the names of the rooms are gone.
            assert_eq!((bounds("tea"), bounds("milk")), (None, None));
        } else {
            let (tea, milk) = (bounds("tea").unwrap(), bounds("milk").unwrap());
            // No snapshot covers what is lost, so the log ends before it.
            assert!(tea.first.get() == 1 && tea.last.get() < 20, "{tea:?}");
            // A snapshot does, so the log starts after it.
            assert!(milk.first.get() > 1 && milk.last.get() == 20, "{milk:?}");
            let tea = open_tea(&store);
            let last = store.bounds(tea).unwrap().last.get();
            append(&store, tea, vec![record(last + 1, 1)], None).await;
        }
        drop(store);
        let store = data.open();
        for name in store.rooms(None, 9) {
            let log = open_room(&store, name.as_str()).id;
            let bounds = store.bounds(log).unwrap();
            let expected: Vec<_> = (bounds.first.get()..=bounds.last.get()).collect();
            assert_eq!(sequences(&store, log, bounds.first.get() - 1), expected);
        }
    }
}

#[tokio::test]
async fn damage_within_a_sealed_segment_is_given_up_per_room() {
    let data = sealed().await;
    // The record of one event of one room.
    flip(&segment(&data, 2), 150_000);
    let store = data.open_accepting_loss();
    let bounds = |name| store.bounds(open_room(&store, name).id).unwrap();
    let (tea, milk) = (bounds("tea"), bounds("milk"));
    let is_lost = |bounds: Bounds| bounds.first.get() > 1 || bounds.last.get() < 20;
    assert!(is_lost(tea) != is_lost(milk), "{tea:?} {milk:?}");
}

/// Creates a store with a room that was deleted and created again, and closes it. Returns the later log, and where the deletion of
/// the earlier one is.
async fn created_again() -> (DataDir, LogId, EntryLocation) {
    let data = DataDir::new();
    let store = data.open();
    let [first, milk] = ["tea", "milk"].map(|name| open_room(&store, name).id);
    // These are in segments of their own.
    let separate = async |n| append(&store, milk, vec![long_record(n, 1, 1 << 20)], None).await;
    append(&store, first, vec![record(1, 1)], None).await;
    separate(1).await;
    store.delete_log(first).await.unwrap();
    separate(2).await;
    let second = open_tea(&store);
    assert!(second > first);
    append(&store, second, vec![record(1, 1), record(2, 1)], None).await;
    separate(3).await;
    let mut end = None;
    let numbers = segments(&data).into_iter();
    for segment in numbers.filter_map(|number| store.catalog.lock().segment(number).cloned()) {
        let find = |location: EntryLocation, entry: Entry| {
            end = end.or((entry.header.kind == EntryKind::Deletion).then_some(location));
            Ok(())
        };
        segment.scan(find).unwrap();
    }
    drop(store);
    (data, second, end.unwrap())
}

#[tokio::test]
async fn the_lost_deletion_of_a_room_that_was_created_again_is_accepted() {
    for is_segment_lost in [false, true] {
        let (data, second, end) = created_again().await;
        let path = segment(&data, end.segment);
        if is_segment_lost {
            fs::remove_file(path).unwrap();
        } else {
            flip(&path, u64::from(end.offset) + 16);
        }
        for open in [DataDir::open_accepting_loss, DataDir::open] {
            let store = open(&data);
            assert_eq!(open_tea(&store), second);
            assert_eq!(sequences(&store, second, 0), [1, 2]);
        }
    }
}

#[tokio::test]
async fn an_interrupted_repair_gives_every_room_a_new_epoch() {
    for damaged_at in [10, 150_000] {
        let data = sealed().await;
        let epochs = |store: &DiskStore| {
            let rooms = store.rooms(None, 9);
            rooms
                .iter()
                .map(|room| store.find(room).unwrap().epoch)
                .collect::<Vec<_>>()
        };
        let before = epochs(&data.open());
        flip(&segment(&data, 2), damaged_at);
        let options = DiskOptions {
            accept_loss: true,
            ..OPTIONS
        };
        // As if the process was killed as soon as the log is repaired.
        drop(Repairs::load(&Directory::lock(&data.path).unwrap(), &options).unwrap());
        let after = epochs(&data.open_accepting_loss());
        assert!(before.iter().zip(&after).all(|(before, after)| before < after));
        // Once.
        assert_eq!(epochs(&data.open()), after);
    }
}

#[tokio::test]
async fn an_interrupted_roll_is_continued() {
    let data = stored().await;
    let store = data.open();
    let header = store.catalog.lock().header(2);
    drop(store);
    drop(Segment::create(&data.path.join("log"), header, 1 << 20, 1 << 20).unwrap());
    fs::write(segment(&data, 3).with_extension("new"), "half a segment").unwrap();
    let store = data.open();
    assert!(has_everything(&store));
    let log = open_tea(&store);
    append(&store, log, vec![record(6, 1)], None).await;
    drop(store);
    assert_eq!(fs::read_dir(data.path.join("log")).unwrap().count(), 1);
    assert_eq!(sequences(&data.open(), log, 5), [6]);
}

#[tokio::test]
async fn what_a_compaction_has_replaced_is_removed() {
    let data = sealed().await;
    let second = fs::read(segment(&data, 2)).unwrap();
    let store = data.open();
    let run: Vec<_> = [1, 2]
        .map(|number| Arc::clone(store.catalog.lock().segment(number).unwrap()))
        .into();
    let mut header = run[0].header;
    header.covers_to = 2;
    let mut replacement =
        super::super::compactor::Replacement::create(&data.path.join("log"), header).unwrap();
    for source in &run {
        source
            .scan(|_, entry| replacement.push(&entry.header, &entry.body).map(drop))
            .unwrap();
    }
    let (merged, _) = replacement.seal().unwrap();
    merged.replace().unwrap();
    drop(store);
    assert_eq!(read_sealed(&data.open()), Ok(true));
    assert!(!segment(&data, 2).exists());
    // A copy of it that comes back later is ignored as well.
    fs::write(segment(&data, 2), second).unwrap();
    assert_eq!(read_sealed(&data.open()), Ok(true));
}

#[tokio::test]
async fn nothing_is_acknowledged_after_the_directory_was_removed() {
    type Change = fn(&Path);
    let remove: Change = |path| fs::remove_dir_all(path).unwrap();
    let remove_log: Change = |path| fs::remove_dir_all(path.join("log")).unwrap();
    let relocate: Change = |path| fs::rename(path, path.with_extension("away")).unwrap();
    let replace: Change = |path| {
        fs::remove_dir_all(path).unwrap();
        fs::create_dir(path).unwrap();
        fs::write(path.join("LOCK"), "").unwrap();
    };
    let changes = [
        (remove, "LOCK was removed or moved"),
        (remove_log, "log was removed or moved"),
        (relocate, "LOCK was removed or moved"),
        (replace, "LOCK was replaced"),
    ];
    for (change, expected) in changes {
        let data = stored().await;
        let store = data.open();
        let log = open_tea(&store);
        change(&data.path);
        let append = || {
            let append = Append {
                records: vec![record(6, 1)],
                snapshot: None,
                status: STATUS,
            };
            store.append(log, append)
        };
        let failed = append().await.unwrap_err();
        assert!(failed.to_string().contains(expected), "{failed}");
        assert_eq!(append().await, Err(StoreError::Failed));
    }
}

#[tokio::test]
async fn a_copy_of_a_backup_gets_new_epochs_once() {
    let data = stored().await;
    let epochs = |store: &DiskStore| ["tea", "milk"].map(|name| store.find(&room(name)).unwrap().epoch);
    let before = epochs(&data.open());
    fs::write(data.path.join("renew-epochs"), "").unwrap();
    let after = epochs(&data.open());
    assert!(after[0] > before[0] && after[1] > before[1]);
    assert_eq!(epochs(&data.open()), after);
    assert!(has_everything(&data.open()));
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_power_cut_with_unsynced_writes_gives_every_room_a_new_epoch() {
    let data = stored().await;
    let os = |data: &DataDir| {
        let options = DiskOptions {
            durability: Durability::Os,
            ..OPTIONS
        };
        open(&data.path, options).unwrap()
    };
    let epoch = |store: &DiskStore| store.find(&room("tea")).unwrap().epoch;
    let before = epoch(&data.open());
    // Nothing is unsynced after an orderly shutdown.
    assert_eq!(epoch(&os(&data)), before);
    let store = os(&data);
    let log = open_tea(&store);
    append(&store, log, vec![record(6, 1)], None).await;
    std::mem::forget(store);
    // The process was killed, and the machine was not restarted.
    let copy = copy_of(&data);
    let store = os(&copy);
    assert_eq!((epoch(&store), sequences(&store, log, 0).len()), (before, 6));
    // The machine was restarted.
    let mut bytes = newest(&data);
    let boot = fs::read("/proc/sys/kernel/random/boot_id").unwrap();
    let at = bytes
        .windows(36)
        .rposition(|window| window == &boot[..36])
        .unwrap();
    let copy = copy_of(&data);
    let path = segment(&copy, 1);
    bytes[at..at + 36].fill(b'0');
    let entry = at - super::super::entry::ENTRY_HEADER_LEN;
    let mut checksum = crc32c::crc32c(&1_u32.to_be_bytes());
    checksum = crc32c::crc32c_append(checksum, &bytes[entry + 4..at + 36]);
    bytes[entry..entry + 4].copy_from_slice(&checksum.to_be_bytes());
    // What was not synced is lost in any order.
    let last = bytes.len() - 30;
    bytes[last] ^= 1;
    fs::write(&path, &bytes).unwrap();
    let store = copy.open();
    let after = epoch(&store);
    assert!(after > before && has_everything(&store));
    drop(store);
    assert_eq!(epoch(&copy.open()), after);
}
