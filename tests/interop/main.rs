//! The server as a process with external clients (Python's grpcio with code generated from `proto/`, grpc-js, grpc-go, grpc-java, grpcurl, buf, h2spec,
//! testssl.sh), its command line, and the signals of a process manager.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

#[path = "../certificates/mod.rs"]
mod certificates;
#[path = "../process/mod.rs"]
mod process;

mod client_config;
mod client_matrix;
mod clients;
mod command_line;
mod grpcio;
mod grpcurl;
mod h2spec;
mod handover;
mod logs;
mod reflection;
mod signals;
mod testssl;
