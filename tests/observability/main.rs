//! Dashboards, rules, alerts, the runbook, and everything in deploy/, checked with the real server and with the programs that
//! read them, as far as these run without a container engine.
#![allow(missing_docs, unreachable_pub, clippy::unwrap_used, clippy::panic)]

mod cluster;
mod collector;
mod compose;
mod dashboards;
mod files;
mod kubernetes;
mod live;
mod metric_names;
#[path = "../process/mod.rs"]
mod process;
mod prometheus;
mod rules;
mod runbook;
mod systemd;
