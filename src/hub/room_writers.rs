//! Which clients write to a room, for the shares of what all rooms use together.

use std::net::IpAddr;

use parking_lot::Mutex;

use crate::domain::Origin;

/// From where a room has been written to since it was loaded.
#[derive(Debug, Default)]
pub struct RoomWriters(Mutex<Writers>);

/// The writers of a room.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(super) enum Writers {
    /// There are none yet.
    #[default]
    Nobody,
    /// All have this address.
    Address(IpAddr),
    /// They have several addresses.
    Several,
}

impl RoomWriters {
    /// Notes the origin of a JOIN or a post. Whatever else is written comes from participants, who have joined.
    pub(super) fn note(&self, origin: Option<&Origin>) {
        let Some(address) = origin.and_then(|origin| origin.address) else {
            return;
        };
        let mut writers = self.0.lock();
        *writers = match *writers {
            Writers::Nobody => Writers::Address(address),
            Writers::Address(only) if only == address => Writers::Address(only),
            _ => Writers::Several,
        };
    }

    pub(super) fn get(&self) -> Writers {
        *self.0.lock()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_room_has_one_writer_until_there_is_another() {
        let [one, other] = ["192.0.2.1", "192.0.2.2"].map(|address| address.parse().ok());
        let writers = RoomWriters::default();
        let only = Writers::Address(one.unwrap());
        for (writer, expected) in [
            (None, Writers::Nobody),
            (one, only),
            (None, only),
            (one, only),
            (other, Writers::Several),
            (one, Writers::Several),
        ] {
            writers.note(Some(&Origin {
                address: writer,
                ..Origin::default()
            }));
            assert_eq!(writers.get(), expected);
        }
    }
}
