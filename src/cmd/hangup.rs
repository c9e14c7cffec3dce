//! When nobody reads what a command writes any more.

use std::io;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// How often it is looked.
const EVERY: Duration = Duration::from_millis(200);

/// Ready when stdout is a pipe or socket whose reader has gone away (`| head -1`); never where it is a file or a terminal.
/// Cancellation safe.
pub(super) async fn hangup() {
    let stdout = io::stdout();
    loop {
        tokio::time::sleep(EVERY).await;
        // What is asked for is told whether one asks or not.
        let mut ends = [PollFd::new(&stdout, PollFlags::empty())];
        let told = poll(&mut ends, Some(&Timespec::default()));
        if told.is_ok_and(|count| count > 0) && ends[0].revents().intersects(PollFlags::ERR | PollFlags::HUP)
        {
            return;
        }
    }
}
