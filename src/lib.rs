//! Chit Chat: a gRPC chat server in which a room is an ordered log.
//!
//! ARCHITECTURE.md draws the whole; the modules here are its floors, and imports go downward only.

pub mod admin;
pub mod client;
pub mod cmd;
pub mod config;
pub mod domain;
mod failpoint;
pub mod hub;
pub mod procfs;
pub mod proto;
pub mod rpc;
pub mod signals;
pub mod store;
pub mod telemetry;
