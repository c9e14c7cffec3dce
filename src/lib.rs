//! Chit Chat: a gRPC chat server in which a room is an ordered log.
//!
//! ARCHITECTURE.md draws the whole; the modules here are its floors, and imports go downward only.

pub mod bench;
pub mod cmd;
pub mod domain;
pub mod proto;
