//! What the server shows of itself: metrics, logs and traces.

mod attributes;
mod call_names;
mod catalog;
mod client_spans;
mod histogram;
mod line;
mod logs;
mod message_spans;
mod metrics;
mod otlp;
mod process;
mod report;
mod runtime;
mod served_calls;

pub use catalog::{CATALOG, Definition, Kind, Unit, document};
pub use client_spans::{ClientSpans, SendSpan};
pub use logs::{LogFormat, LogGuard, LogOptions, init as init_logs};
pub use metrics::Metrics;
pub use otlp::{DEFAULT_WISHES_PER_SECOND, Exports, OtlpLogs, OtlpOptions, SamplerOptions, Tracer};
pub use report::Report;
pub use served_calls::CallLayer;
