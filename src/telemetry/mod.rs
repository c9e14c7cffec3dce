//! What the server shows of itself: metrics and logs.

mod catalog;
mod histogram;
mod logs;
mod metrics;
mod report;

pub use catalog::{CATALOG, Definition, Kind};
pub use logs::{LogFormat, LogGuard, LogOptions, init as init_logs};
pub use metrics::Metrics;
pub use report::Report;
