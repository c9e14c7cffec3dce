//! Power cuts under load: data that was not synced is lost, and no acknowledged message is.
//!
//! The data directory is in a file system of its own, on a loop device. A power cut shuts this file system down without
//! flushing anything, not even its journal, and kills the server; then the file system is mounted again.
// Helpers of tests panic as tests do.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

use chitchat_verify::check;
use chitchat_verify::crash_harness::{Run, ServerFixture, seed};
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use tokio::task::block_in_place;

/// The program under test.
const CHITCHAT: &str = env!("CARGO_BIN_EXE_chitchat");

/// The number of power cuts.
const CUTS: u64 = 5;

/// The number of messages per sender between two cuts.
const PER_ROUND: u64 = 40;

/// Shuts down the file system of a directory: `EXT4_IOC_SHUTDOWN` with `EXT4_GOING_FLAGS_NOLOGFLUSH`.
const SHUT_DOWN: &str = "import fcntl, os, struct, sys
fcntl.ioctl(os.open(sys.argv[1], os.O_RDONLY), 0x8004587d, struct.pack('I', 2))";

fn try_run(command: &mut Command) -> Result<(), String> {
    match command.output() {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => Err(String::from_utf8_lossy(&output.stderr).trim().to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

/// A file system in a file. Unmounted when dropped.
struct Volume {
    image: PathBuf,
    mounted_at: PathBuf,
}

impl Volume {
    /// Creates and mounts the file system. `None` if the test may not do that here.
    fn make(fixture: &ServerFixture) -> Option<Self> {
        let volume = Self {
            image: fixture.path("image"),
            mounted_at: fixture.path("disk"),
        };
        let size = File::create(&volume.image).and_then(|image| image.set_len(256 << 20));
        size.unwrap();
        std::fs::create_dir_all(&volume.mounted_at).unwrap();
        let made = try_run(Command::new("python3").arg("--version"))
            .and_then(|()| try_run(Command::new("mkfs.ext4").arg("-q").arg(&volume.image)))
            .and_then(|()| volume.mount());
        // In CI the test is skipped only where there are no loop devices.
        let has_loops = Path::new("/dev/loop-control").exists();
        match made {
            Ok(()) => Some(volume),
            Err(reason) => {
                assert!(
                    !has_loops || std::env::var("CI").is_err(),
                    "cannot mount: {reason}"
                );
                println!("skipped: cannot mount a file system in a file: {reason}");
                None
            }
        }
    }

    fn mount(&self) -> Result<(), String> {
        let mut mount = Command::new("mount");
        try_run(mount.args(["-o", "loop"]).arg(&self.image).arg(&self.mounted_at))
    }

    /// Shuts the file system down, so that nothing further is written to the disk.
    fn cut(&self) {
        try_run(
            Command::new("python3")
                .args(["-c", SHUT_DOWN])
                .arg(&self.mounted_at),
        )
        .unwrap();
    }

    /// Mounts the file system again, as after a reboot.
    fn restore(&self) {
        try_run(Command::new("umount").arg(&self.mounted_at)).unwrap();
        self.mount().unwrap();
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        try_run(Command::new("umount").arg("-l").arg(&self.mounted_at)).ok();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_power_cut_loses_no_acknowledged_message() {
    let seed = seed();
    let mut random = StdRng::seed_from_u64(seed);
    let mut fixture = ServerFixture::new(CHITCHAT, &["--resume-grace", "10m"]);
    let Some(volume) = Volume::make(&fixture) else {
        return;
    };
    fixture.data_dir = fixture.path("disk").join("data");
    let mut server = block_in_place(|| fixture.start());
    let mut run = Run::new(fixture.address, seed);
    for (name, window) in [("Ada", 16), ("Bob", 16), ("Cleo", 16), ("Eve", 0)] {
        run.add_client(name, window);
    }
    run.wait_for_reconnects(&[0; 4]).await;
    for _ in 0..CUTS {
        let streams = run.streams();
        let enough = run.acknowledged() + random.random_range(1..PER_ROUND * 3);
        run.allow_sends(PER_ROUND);
        run.wait_for_total(enough).await;
        block_in_place(|| {
            volume.cut();
            server.kill();
            volume.restore();
        });
        server = block_in_place(|| fixture.start());
        run.wait_for_reconnects(&streams).await;
    }
    run.wait_for_acknowledgements().await;
    let sent = run.acknowledged();
    let violations = check(&run.finish().await);
    println!(
        "{CUTS} power cuts: {sent} messages, {} violations",
        violations.len()
    );
    assert!(violations.is_empty(), "CRASH_SEED={seed}: {}", violations[0]);
    assert_eq!(sent, 3 * CUTS * PER_ROUND);
}
