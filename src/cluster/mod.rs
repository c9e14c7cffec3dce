//! Several servers with one order: every replica applies the same messages in the same order, and so decides alike.
//!
//! The order is a stream that stores what replicas write, gives each message a [`Place`](message::Place), and shows all of them to
//! everybody. It may refuse a message, store it although nobody learns of that, or store it twice. A replica
//!
//! 1. gives the commands of its clients to its [`Producer`](producer::Producer), which writes them as numbered batches until they have come
//!    back,
//! 2. takes the messages of all replicas from the stream, each once and in turn, as its [`Follower`](follower::Follower) says,
//! 3. applies them to its [`Partition`](partition::Partition), which has all rooms, and answers its clients with what has become of their
//!    commands,
//! 4. says every second that it lives, and which others do not ([`Presence`](presence::Presence)).
//!
//! What is here is pure: no I/O, no clock, no randomness; times arrive with the calls. A replica that cannot decode a message, or that
//! decides otherwise than another, must stop.
mod follower;
mod message;
mod partition;
mod presence;
mod producer;
#[cfg(test)]
mod simulation_tests;
