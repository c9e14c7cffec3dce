//! `chitchat store`, and the procedures of docs/backup.md: backup and restore while a server runs, moving to another machine.
// Helpers of tests panic as tests do.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

use std::path::Path;
use std::process::{Command, Output};

use chitchat::proto::SendMessageRequest;
use chitchat_verify::crash_harness::{Run, ServerFixture};
use serde_json::Value;
use tokio::task::block_in_place;

/// The program under test.
const CHITCHAT: &str = env!("CARGO_BIN_EXE_chitchat");

fn store(arguments: &[&str], data: &Path) -> Output {
    let mut command = Command::new(CHITCHAT);
    command.arg("store").args(arguments).arg("--data-dir").arg(data);
    block_in_place(|| command.output().unwrap())
}

/// Runs a command that must succeed. Returns its output as text, first stdout, then stderr.
fn run(arguments: &[&str], data: &Path) -> (String, String) {
    let output = store(arguments, data);
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{arguments:?}: {stderr}");
    (String::from_utf8(output.stdout).unwrap(), stderr)
}

fn objects(arguments: &[&str], data: &Path) -> Vec<Value> {
    let (stdout, _) = run(arguments, data);
    stdout
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

/// Posts messages with the texts `from` to `upto`. Returns the epoch.
async fn send(fixture: &ServerFixture, room: &str, from: u64, upto: u64, len: usize) -> u64 {
    let mut client = Run::new(fixture.address, 1).connect().await;
    let mut epoch = 0;
    for n in from..=upto {
        let request = SendMessageRequest {
            room: room.into(),
            client_name: "Ada".into(),
            msg: format!("{n:0len$}"),
            message_id: format!("{room}-{n}"),
            ..SendMessageRequest::default()
        };
        let response = client.send_message(request).await.unwrap().into_inner();
        epoch = response.broadcast.unwrap().epoch;
    }
    epoch
}

fn texts(exported: &[Value]) -> Vec<u64> {
    let texts = exported
        .iter()
        .map(|message| message["msg_stream"].as_str().unwrap());
    texts.map(|text| text.parse().unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn info_check_and_export_work_while_a_server_runs_and_after() {
    let fixture = ServerFixture::new(CHITCHAT, &[]);
    let server = block_in_place(|| fixture.start());
    send(&fixture, "milk", 1, 3, 1).await;
    send(&fixture, "tea", 1, 20, 1).await;
    let mut server = Some(server);
    for is_in_use in [true, false] {
        let info = objects(&["info", "--json"], &fixture.data_dir);
        assert_eq!(info[0]["in_use"], is_in_use);
        assert_eq!((&info[0]["rooms"], &info[0]["events"]), (&2.into(), &23.into()));
        assert_eq!(
            (&info[2]["room"], &info[2]["last_sequence"]),
            (&"tea".into(), &20.into())
        );
        let (text, _) = run(&["info"], &fixture.data_dir);
        assert!(text.starts_with("2 rooms, 23 events, "), "{text}");
        let (_, checked) = run(&["check"], &fixture.data_dir);
        assert_eq!(
            checked,
            "chitchat: 23 events of 2 rooms in 1 segments are intact\n"
        );
        let exported = objects(&["export", "--room", "tea"], &fixture.data_dir);
        assert_eq!(texts(&exported), (1..=20).collect::<Vec<_>>());
        assert_eq!(objects(&["export"], &fixture.data_dir).len(), 23);
        if let Some(server) = server.take() {
            block_in_place(|| server.stop());
        }
    }
    let missing = store(&["export", "--room", "coffee"], &fixture.data_dir);
    assert_eq!(missing.status.code(), Some(66));
    let missing = store(&["info"], &fixture.path("nowhere"));
    assert_eq!(missing.status.code(), Some(74));
}

#[tokio::test(flavor = "multi_thread")]
async fn check_names_each_damaged_place() {
    let fixture = ServerFixture::new(CHITCHAT, &["--retain-total-bytes", "64MiB"]);
    let server = block_in_place(|| fixture.start());
    send(&fixture, "tea", 1, 1_500, 1_900).await;
    block_in_place(|| server.stop());
    run(&["check"], &fixture.data_dir);
    let segment = fixture.data_dir.join("log/0000000001.log");
    let mut bytes = std::fs::read(&segment).unwrap();
    bytes[100_000] ^= 1;
    std::fs::write(&segment, bytes).unwrap();
    let checked = store(&["check"], &fixture.data_dir);
    assert_eq!(checked.status.code(), Some(65));
    let stderr = String::from_utf8(checked.stderr).unwrap();
    assert!(
        stderr.contains("log/0000000001.log is damaged at byte"),
        "{stderr}"
    );
    // The server serves the rest, and says that this room is damaged.
    let server = block_in_place(|| fixture.start());
    let status = Run::new(fixture.address, 1).try_log().await.unwrap_err();
    assert_eq!(status.code(), tonic::Code::DataLoss, "{status}");
    block_in_place(|| server.stop());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_that_is_taken_under_load_is_complete_and_gets_new_epochs() {
    let options = ["--retain-total-bytes", "4MiB", "--durability", "os"];
    let fixture = ServerFixture::new(CHITCHAT, &options);
    let server = block_in_place(|| fixture.start());
    let epoch = send(&fixture, "tea", 1, 200, 1_900).await;
    for round in 0..3 {
        let destination = fixture.path(&format!("backup-{round}"));
        let sent = 200 + round * 1_000;
        // Segments are created, rewritten and removed meanwhile.
        let (_, (_, copied)) = tokio::join!(send(&fixture, "tea", sent + 1, sent + 1_000, 1_900), async {
            run(&["backup", destination.to_str().unwrap()], &fixture.data_dir)
        });
        assert!(copied.starts_with("chitchat: copied "), "{copied}");
        run(&["check"], &destination);
        let last = texts(&objects(&["export"], &destination)).pop().unwrap();
        assert!((sent..=sent + 1_000).contains(&last), "{last} of {sent}");
    }
    let again = store(
        &["backup", fixture.path("backup-0").to_str().unwrap()],
        &fixture.data_dir,
    );
    assert_eq!(again.status.code(), Some(74));
    let nothing = fixture.path("nothing");
    let failed = store(&["backup", nothing.to_str().unwrap()], &fixture.path("nowhere"));
    assert_eq!((failed.status.code(), nothing.exists()), (Some(74), false));
    block_in_place(|| server.stop());

    // Damage of a copy is found everywhere, also at its end.
    let damaged = fixture.path("backup-1");
    let segments = std::fs::read_dir(damaged.join("log")).unwrap();
    let newest = segments.map(|entry| entry.unwrap().path()).max().unwrap();
    let mut bytes = std::fs::read(&newest).unwrap();
    let last = bytes.len() - 100;
    bytes[last] ^= 1;
    std::fs::write(&newest, bytes).unwrap();
    let checked = store(&["check"], &damaged);
    assert!(!checked.status.success(), "{checked:?}");

    // Restore.
    let mut restored = ServerFixture::new(CHITCHAT, &options);
    restored.data_dir = fixture.path("backup-2");
    let server = block_in_place(|| restored.start());
    let (log, renewed) = Run::new(restored.address, 1).log().await;
    assert!(renewed > epoch && log.len() > 500);
    let epoch = send(&restored, "tea", 1_000_000, 1_000_000, 1).await;
    assert_eq!(epoch, renewed);
    block_in_place(|| server.stop());
    // The epoch is renewed once.
    let server = block_in_place(|| restored.start());
    assert_eq!(Run::new(restored.address, 1).log().await.1, renewed);
    block_in_place(|| server.stop());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_that_is_moved_after_a_stop_keeps_its_epochs() {
    let mut fixture = ServerFixture::new(CHITCHAT, &[]);
    let server = block_in_place(|| fixture.start());
    let epoch = send(&fixture, "tea", 1, 20, 1).await;
    block_in_place(|| server.stop());
    let moved = fixture.path("moved");
    let copied = Command::new("cp")
        .arg("-a")
        .arg(&fixture.data_dir)
        .arg(&moved)
        .status();
    assert!(copied.unwrap().success());
    fixture.data_dir = moved;
    let server = block_in_place(|| fixture.start());
    let (log, kept) = Run::new(fixture.address, 1).log().await;
    assert_eq!((log.len(), kept), (20, epoch));
    block_in_place(|| server.stop());
}
