//! Clients that nobody here wrote, against the server as it is started by whoever runs it: Python's grpcio with code
//! generated from `proto/`, grpcurl and buf over reflection, and the signals of a process manager.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

#[path = "../outside/mod.rs"]
mod outside;

mod command_line;
mod grpcio;
mod grpcurl;
mod reflection;
mod signals;
