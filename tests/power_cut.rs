//! The power goes, again and again, under load: what was not synced is gone, and nothing that was acknowledged is.
//!
//! The data directory lies in a file system of its own, on a loop device. A power cut is that file system shut down with
//! nothing flushed, not even its own journal, and the server killed; then it is mounted again.
// Helpers of tests panic as tests do.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

mod outage;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use chitchat::verify::check;
use outage::{PATIENCE, Run, Site, seed};
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use tokio::task::block_in_place;

/// How often the power goes.
const CUTS: u64 = 5;

/// What is sent by each sender between two cuts.
const PER_ROUND: u64 = 40;

/// Shuts the file system down that a directory lies in: `EXT4_IOC_SHUTDOWN` with `EXT4_GOING_FLAGS_NOLOGFLUSH`.
const SHUT_DOWN: &str = "import fcntl, os, struct, sys
fcntl.ioctl(os.open(sys.argv[1], os.O_RDONLY), 0x8004587d, struct.pack('I', 2))";

fn succeeds(command: &mut Command) -> Result<(), String> {
    match command.output() {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => Err(String::from_utf8_lossy(&output.stderr).trim().to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

/// A file system in a file. Gone when it is dropped.
struct Volume {
    image: PathBuf,
    mounted_at: PathBuf,
}

impl Volume {
    /// None where the system does not let a test do this.
    fn make(site: &Site) -> Option<Self> {
        let volume = Self {
            image: site.path("image"),
            mounted_at: site.path("disk"),
        };
        let size = File::create(&volume.image).and_then(|image| image.set_len(256 << 20));
        size.unwrap();
        std::fs::create_dir_all(&volume.mounted_at).unwrap();
        let made = succeeds(Command::new("python3").arg("--version"))
            .and_then(|()| succeeds(Command::new("mkfs.ext4").arg("-q").arg(&volume.image)))
            .and_then(|()| volume.mount());
        // Where there are loop devices they are there for the tests as well.
        let has_loops = Path::new("/dev/loop-control").exists();
        match made {
            Ok(()) => Some(volume),
            Err(why) => {
                assert!(!has_loops || std::env::var("CI").is_err(), "cannot mount: {why}");
                println!("skipped: cannot mount a file system in a file: {why}");
                None
            }
        }
    }

    fn mount(&self) -> Result<(), String> {
        let mut mount = Command::new("mount");
        succeeds(mount.args(["-o", "loop"]).arg(&self.image).arg(&self.mounted_at))
    }

    /// From now on nothing gets to the disk.
    fn cut(&self) {
        succeeds(
            Command::new("python3")
                .args(["-c", SHUT_DOWN])
                .arg(&self.mounted_at),
        )
        .unwrap();
    }

    /// The power is back.
    fn restore(&self) {
        succeeds(Command::new("umount").arg(&self.mounted_at)).unwrap();
        self.mount().unwrap();
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        succeeds(Command::new("umount").arg("-l").arg(&self.mounted_at)).ok();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_acknowledged_is_lost_when_the_power_goes() {
    let seed = seed();
    let mut random = StdRng::seed_from_u64(seed);
    let mut site = Site::new(&["--resume-grace", "10m"]);
    let Some(volume) = Volume::make(&site) else {
        return;
    };
    site.data = site.path("disk").join("data");
    let mut server = block_in_place(|| site.start());
    let mut run = Run::new(site.address, seed);
    for (name, window) in [("Ada", 16), ("Bob", 16), ("Cleo", 16), ("Eve", 0)] {
        run.add(name, window);
    }
    run.until_back(&[0; 4]).await;
    for cut in 0..CUTS {
        let streams = run.streams();
        let enough = run.acknowledged() + random.random_range(1..PER_ROUND * 3);
        run.allow(PER_ROUND);
        let deadline = Instant::now() + PATIENCE;
        while run.acknowledged() < enough {
            assert!(
                Instant::now() < deadline,
                "cut {cut}: nothing is acknowledged any more"
            );
            tokio::time::sleep(Duration::from_micros(500)).await;
        }
        block_in_place(|| {
            volume.cut();
            server.kill();
            volume.restore();
        });
        server = block_in_place(|| site.start());
        run.until_back(&streams).await;
    }
    run.until_settled().await;
    let sent = run.acknowledged();
    let wrong = check(&run.end().await);
    println!("{CUTS} power cuts: {sent} messages, {} violations", wrong.len());
    assert!(wrong.is_empty(), "CRASH_SEED={seed}: {}", wrong[0]);
    assert_eq!(sent, 3 * CUTS * PER_ROUND);
}
