//! Chit Chat: a gRPC chat server in which a room is an ordered log, and its client library.
//!
//! A program that only talks to a server depends on this crate without its default features: it gets [`client`],
//! [`domain`] and [`proto`], with the feature `tls` also for `https://`. The feature `server` adds the server and the commands. ARCHITECTURE.md describes how the
//! modules are layered.

pub mod client;
#[cfg(feature = "server")]
pub mod cluster;
#[cfg_attr(
    not(feature = "server"),
    allow(dead_code, reason = "the server uses what the client does not")
)]
pub mod domain;
pub mod proto;
#[cfg(feature = "tls")]
mod regular_file;
mod spare_capacity;
#[cfg(feature = "tls")]
mod tls;

#[cfg(feature = "server")]
pub mod admin;
#[cfg(feature = "server")]
pub mod auth;
#[cfg(feature = "server")]
mod blocking;
#[cfg(feature = "server")]
pub mod cmd;
#[cfg(feature = "server")]
pub mod config;
#[cfg(feature = "server")]
mod der;
#[cfg(feature = "server")]
mod failpoint;
#[cfg(feature = "server")]
mod file_poller;
#[cfg(any(feature = "fuzzing", all(test, feature = "server")))]
#[doc(hidden)]
pub mod fuzzing;
#[cfg(feature = "server")]
pub mod hub;
#[cfg(feature = "server")]
pub mod memory_plan;
#[cfg(feature = "server")]
pub mod procfs;
#[cfg(feature = "server")]
mod rate_limiter;
#[cfg(feature = "server")]
pub mod reason;
#[cfg(feature = "server")]
pub mod rpc;
#[cfg(feature = "server")]
mod run_queue;
#[cfg(feature = "server")]
pub mod signals;
#[cfg(feature = "server")]
pub mod store;
#[cfg(feature = "server")]
pub mod telemetry;
#[cfg(feature = "server")]
mod wall_clock;
