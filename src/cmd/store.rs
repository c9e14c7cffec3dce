//! `chitchat store`: looks at a data directory, checks it and copies it.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::Failure;
use super::json;
use super::printer::{JsonArg, Printer};
use super::stderr::note;
use crate::config::DEFAULT_DATA_DIR;
use crate::domain::{RoomName, Sequence};
use crate::hub::frame;
use crate::store::{RoomView, StoreError, StoreView, ViewSummary, decode_snapshot, frames};

/// How much of a log is read at a time, in bytes.
const READ_BYTES: usize = 1 << 20;

/// Inspect, check, export or back up a data directory
///
/// All of these work while a server uses the directory.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  chitchat store info --data-dir /var/lib/chitchat
  chitchat store export --room tea > tea.jsonl
  chitchat store backup /backup/chitchat")]
pub(super) struct StoreCommand {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Print what is in a data directory
    Info {
        #[command(flatten)]
        data: DataDirArg,
        #[command(flatten)]
        json: JsonArg,
    },
    /// Read everything in a data directory, and report what is damaged
    Check {
        #[command(flatten)]
        data: DataDirArg,
    },
    /// Print the events of all rooms, or of one, as one JSON object per line
    Export {
        #[command(flatten)]
        data: DataDirArg,
        /// Export only this room
        #[arg(long, short, value_name = "ROOM", value_parser = super::client_args::room)]
        room: Option<RoomName>,
    },
    /// Copy a data directory
    ///
    /// The copy is consistent, and contains everything that was acknowledged before the command started. A copy within the
    /// same file system takes hardly any space. A server that is started on the copy gives every room a new epoch, so that no
    /// client mistakes new events for old ones.
    Backup {
        #[command(flatten)]
        data: DataDirArg,
        /// The directory of the copy, which must be empty or not exist
        #[arg(value_name = "DESTINATION")]
        destination: PathBuf,
    },
}

#[derive(Debug, Args)]
struct DataDirArg {
    /// The data directory
    #[arg(
        long,
        env = "CHITCHAT_DATA_DIR",
        value_name = "DIR",
        default_value = DEFAULT_DATA_DIR
    )]
    data_dir: PathBuf,
}

impl StoreCommand {
    pub(super) fn run(self) -> Result<(), Failure> {
        match self.action {
            Action::Info { data, json } => info(&data.open()?, &json),
            Action::Check { data } => check(&data.open()?),
            Action::Export { data, room } => export(&data.open()?, room.as_ref()),
            Action::Backup { data, destination } => {
                let view = StoreView::backup(&data.data_dir, &destination)?;
                let ViewSummary { rooms, events, .. } = view.summary();
                note(format_args!(
                    "copied {events} events of {rooms} rooms to {}",
                    destination.display()
                ));
                Ok(())
            }
        }
    }
}

impl DataDirArg {
    fn open(&self) -> Result<StoreView, Failure> {
        Ok(StoreView::open(&self.data_dir)?)
    }
}

fn info(view: &StoreView, json: &JsonArg) -> Result<(), Failure> {
    let mut printer = Printer::new(json);
    let summary = view.summary();
    printer.print(|| format_summary(&summary), || json::store_summary(&summary))?;
    for room in view.rooms() {
        printer.print(|| format_room(&room), || json::stored_room(&room))?;
    }
    Ok(())
}

fn format_summary(summary: &ViewSummary) -> String {
    let ViewSummary {
        rooms,
        events,
        retained,
        segments,
        bytes,
        garbage,
        torn_bytes,
        is_in_use,
    } = summary;
    let state = if *is_in_use {
        "in use by a server"
    } else {
        "not in use"
    };
    format!(
        "{rooms} rooms, {events} events, {retained} bytes retained\n{segments} segments, {bytes} bytes, {garbage} of them \
         garbage, {torn_bytes} torn; {state}"
    )
}

fn format_room(room: &RoomView) -> String {
    let RoomView {
        room,
        epoch,
        bounds,
        bytes,
        ..
    } = room;
    format!(
        "{room}: events {} to {}, {bytes} bytes, epoch {epoch}",
        bounds.first, bounds.last
    )
}

/// Reads every entry, and every event through the index. Prints each damage that it finds.
fn check(view: &StoreView) -> Result<(), Failure> {
    let mut damage = view.find_damage()?;
    let mut events = 0;
    for room in view.rooms() {
        match check_room(view, &room) {
            Ok(found) => events += found,
            Err(error) if error.is_damage() => damage.push(error),
            Err(error) => return Err(error.into()),
        }
    }
    damage.iter().for_each(note);
    if let Some(first) = damage.first() {
        return Err(Failure::Data(format!(
            "{} places are damaged; the first: {first}",
            damage.len()
        )));
    }
    let ViewSummary { rooms, segments, .. } = view.summary();
    note(format_args!(
        "{events} events of {rooms} rooms in {segments} segments are intact"
    ));
    Ok(())
}

/// Checks that the events of a room are dense and their Lamport times increase. Returns their number.
fn check_room(view: &StoreView, room: &RoomView) -> Result<u64, StoreError> {
    let damaged = |sequence, why| StoreError::Record { sequence, why };
    if let Some(snapshot) = view.snapshot(room.log)? {
        decode_snapshot(&snapshot)?;
    }
    let (mut last, mut time, mut events) = (room.bounds.first.previous(), None, 0);
    loop {
        let records = view.records(room.log, last, READ_BYTES)?;
        if records.is_empty() {
            break;
        }
        for record in &records {
            for frame in frames(record.frames.clone()) {
                let event = frame::read_event(&frame)
                    .ok_or_else(|| damaged(last.next(), "an event cannot be decoded"))?;
                if event.sequence > last {
                    if event.sequence != last.next() || time.is_some_and(|time| event.time <= time) {
                        return Err(damaged(event.sequence, "it does not follow the event before it"));
                    }
                    (last, time) = (event.sequence, Some(event.time));
                    events += 1;
                }
            }
        }
    }
    if last < room.bounds.last {
        return Err(damaged(last.next(), "it is missing"));
    }
    Ok(events)
}

fn export(view: &StoreView, only: Option<&RoomName>) -> Result<(), Failure> {
    let mut printer = Printer::json();
    let rooms = view.rooms();
    let rooms = rooms
        .iter()
        .filter(|room| only.is_none_or(|only| room.room == *only));
    let mut count = 0;
    for room in rooms {
        count += 1;
        let mut last: Sequence = room.bounds.first.previous();
        loop {
            let records = view.records(room.log, last, READ_BYTES)?;
            let Some(newest) = records.last() else { break };
            for frame in records.iter().flat_map(|record| frames(record.frames.clone())) {
                if let Some(message) =
                    frame::read_message(&frame).filter(|message| message.sequence > last.get())
                {
                    printer.message(&message)?;
                }
                if printer.is_closed() {
                    return Ok(());
                }
            }
            last = newest.last();
        }
    }
    match only {
        Some(room) if count == 0 => Err(Failure::NotFound(format!("there is no room {:?}", room.as_str()))),
        _ => Ok(()),
    }
}
