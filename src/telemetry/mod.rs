//! Telemetry of servers and clients: metrics, logs and traces.

mod attributes;
mod catalog;
mod client_spans;
mod histogram;
mod log_format;
mod log_limits;
mod logs;
mod message_spans;
mod metrics;
mod observer;
mod otlp;
mod process;
mod unary_calls;

pub use catalog::{CATALOG, Definition, Kind};
pub use client_spans::{ClientSpans, SendSpan};
pub use logs::{LogFormat, LogGuard, LogOptions, init as init_logs};
pub use metrics::Metrics;
pub use observer::TelemetryObserver;
pub use otlp::{DEFAULT_REMOTE_LIMIT_PER_SECOND, OtlpOptions, OtlpPipeline, SamplerOptions, Tracer};
pub use unary_calls::UnaryCallLayer;
