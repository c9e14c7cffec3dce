//! Traces and logs on their way to an OpenTelemetry collector: OTLP over gRPC, in batches, by a thread of its own each.
//!
//! Nothing here waits for a collector: what finds the queue full is lost and counted, and so is what cannot be
//! exported.

mod exporter;
mod exports;
mod logs;
mod losses;
mod options;
mod sampling;
mod spans;

pub use exports::Exports;
pub use logs::OtlpLogs;
pub use options::OtlpOptions;
pub use sampling::{DEFAULT_WISHES_PER_SECOND, SamplerOptions};
pub use spans::Tracer;
pub(super) use spans::{Finished, Ids, remote, wall_time};

use opentelemetry::KeyValue;
use opentelemetry_sdk::Resource;

/// How many records wait for an exporter at most where the environment does not say, as in the specification.
const QUEUE: usize = 2_048;

/// Who it is that the telemetry is of: what the environment says (`OTEL_SERVICE_NAME`, `OTEL_RESOURCE_ATTRIBUTES`),
/// with this name where it gives none.
fn resource(service: &'static str) -> Resource {
    let ours = Resource::builder_empty()
        .with_attributes([
            KeyValue::new("service.name", service),
            KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
            KeyValue::new("service.instance.id", format!("{:032x}", rand::random::<u128>())),
        ])
        .build();
    let said = Resource::builder().build();
    // The SDK makes up a name where none is given.
    let is_named = std::env::var("OTEL_SERVICE_NAME").is_ok_and(|name| !name.is_empty())
        || std::env::var("OTEL_RESOURCE_ATTRIBUTES").is_ok_and(|said| said.contains("service.name="));
    let said = said
        .iter()
        .filter(|(key, _)| is_named || key.as_str() != "service.name")
        .map(|(key, value)| KeyValue::new(key.clone(), value.clone()));
    let ours = ours
        .iter()
        .map(|(key, value)| KeyValue::new(key.clone(), value.clone()));
    // What comes later counts.
    Resource::builder_empty()
        .with_attributes(ours)
        .with_attributes(said)
        .build()
}

/// A number in the environment, where there is one; the SDK ignores what is none as well.
fn number(variable: &str) -> Option<usize> {
    std::env::var(variable)
        .ok()?
        .parse()
        .ok()
        .filter(|number| *number > 0)
}
