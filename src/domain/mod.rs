//! The chat itself, without I/O, clocks of the wall or randomness: values that cannot be wrong, the events of a room
//! and the fold that makes them.

pub mod characters;
