//! What shows the server: dashboards, rules, alerts, and everything in deploy/. Checked against the real server and by the
//! programs that read it, as far as these run without a container engine.
#![allow(missing_docs, unreachable_pub, clippy::unwrap_used, clippy::panic)]

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
