//! Which clients write to a room, for the shares of what all rooms use together.

use std::net::IpAddr;

use parking_lot::Mutex;

use crate::domain::Origin;

/// The addresses from which a room has been written to since it was loaded.
#[derive(Debug, Default)]
pub struct RoomWriters(Mutex<Addresses>);

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Addresses {
    #[default]
    None,
    One(IpAddr),
    Several,
}

impl RoomWriters {
    /// Notes the origin of a JOIN or a post. Whatever else is written comes from participants, who have joined.
    pub(super) fn note(&self, origin: Option<&Origin>) {
        let Some(address) = origin.and_then(|origin| origin.address) else {
            return;
        };
        let mut addresses = self.0.lock();
        *addresses = match *addresses {
            Addresses::None => Addresses::One(address),
            Addresses::One(only) if only == address => Addresses::One(only),
            _ => Addresses::Several,
        };
    }

    /// The address, if it is the only one.
    pub(super) fn only(&self) -> Option<IpAddr> {
        match *self.0.lock() {
            Addresses::One(address) => Some(address),
            Addresses::None | Addresses::Several => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_room_has_one_writer_until_there_is_another() {
        let [one, other] = ["192.0.2.1", "192.0.2.2"].map(|address| address.parse().ok());
        let writers = RoomWriters::default();
        assert_eq!(writers.only(), None);
        for (writer, only) in [
            (None, None),
            (one, one),
            (None, one),
            (one, one),
            (other, None),
            (one, None),
        ] {
            writers.note(Some(&Origin {
                address: writer,
                ..Origin::default()
            }));
            assert_eq!(writers.only(), only);
        }
    }
}
