//! The formats of log lines. Both include the ids of the current span, if there is one.

use std::fmt::{self, Write as _};

use opentelemetry::Context;
use opentelemetry::trace::{SpanContext, TraceContextExt};
use serde_json::Value;
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

fn current_span() -> Option<SpanContext> {
    Context::map_current(|context| {
        let span = context.span();
        Some(span.span_context().clone()).filter(SpanContext::is_valid)
    })
}

/// One JSON object per line.
pub(super) struct JsonFormat;

impl<S, N> FormatEvent<S, N> for JsonFormat
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        _: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let metadata = event.metadata();
        let mut time = String::new();
        SystemTime.format_time(&mut Writer::new(&mut time))?;
        let mut object = JsonObject::default();
        object.put("timestamp", time);
        object.put("level", metadata.level().as_str());
        event.record(&mut object);
        object.put("target", metadata.target());
        if let Some(span) = current_span() {
            object.put("trace_id", span.trace_id().to_string());
            object.put("span_id", span.span_id().to_string());
        }
        writeln!(writer, "{{{}}}", object.members)
    }
}

/// The members of a JSON object in order of insertion. If a name is repeated, the first value is kept.
#[derive(Default)]
struct JsonObject {
    members: String,
    names: Vec<&'static str>,
}

impl JsonObject {
    fn put(&mut self, name: &'static str, value: impl Into<Value>) {
        if self.names.contains(&name) {
            return;
        }
        let comma = if self.names.is_empty() { "" } else { "," };
        // Writing to a string cannot fail.
        write!(self.members, "{comma}{}:{}", Value::from(name), value.into()).unwrap_or_default();
        self.names.push(name);
    }
}

impl Visit for JsonObject {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.put(field.name(), format!("{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.put(field.name(), value);
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(field.name(), value);
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put(field.name(), value);
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put(field.name(), value);
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.put(field.name(), value);
    }
}

/// Plain text for people.
pub(super) struct PrettyFormat;

impl<S, N> FormatEvent<S, N> for PrettyFormat
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        SystemTime.format_time(&mut writer)?;
        let level = *event.metadata().level();
        if writer.has_ansi_escapes() {
            write!(writer, " \x1b[{}m{level:>5}\x1b[0m ", color(level))?;
        } else {
            write!(writer, " {level:>5} ")?;
        }
        context.format_fields(writer.by_ref(), event)?;
        if let Some(span) = current_span() {
            write!(writer, " trace_id={} span_id={}", span.trace_id(), span.span_id())?;
        }
        writeln!(writer)
    }
}

/// Returns the ANSI color code of a level.
const fn color(level: Level) -> u8 {
    match level {
        Level::ERROR => 31,
        Level::WARN => 33,
        Level::INFO => 32,
        Level::DEBUG => 34,
        Level::TRACE => 35,
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::Arc;

    use parking_lot::Mutex;
    use tracing_subscriber::fmt::MakeWriter;
    use tracing_subscriber::layer::SubscriberExt;
    use tracing_subscriber::{Layer, Registry};

    use super::*;
    use crate::domain::TraceContext;
    use crate::telemetry::otlp::remote_span_context;

    #[derive(Clone, Default)]
    struct Buffer(Arc<Mutex<Vec<u8>>>);

    impl Write for Buffer {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().write(bytes)
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    impl<'a> MakeWriter<'a> for Buffer {
        type Writer = Self;

        fn make_writer(&'a self) -> Self {
            self.clone()
        }
    }

    fn logged<L: Layer<Registry> + Send + Sync>(layer: impl FnOnce(Buffer) -> L) -> Vec<String> {
        let buffer = Buffer::default();
        let subscriber = Registry::default().with(layer(buffer.clone()));
        tracing::subscriber::with_default(subscriber, || {
            tracing::info!(event = "outside", count = 3_u64, "out\nside");
            let trace = TraceContext::new(0xa, 0xb, true);
            let _within = Context::new()
                .with_remote_span_context(remote_span_context(&trace))
                .attach();
            tracing::warn!(event = "inside", yes = true, "inside");
        });
        let text = String::from_utf8(buffer.0.lock().clone()).unwrap();
        text.lines().map(str::to_owned).collect()
    }

    #[test]
    fn json_lines_have_the_fields_and_the_span_ids() {
        let lines = logged(|buffer| {
            tracing_subscriber::fmt::layer()
                .with_writer(buffer)
                .event_format(JsonFormat)
        });
        let [outside, inside] = &lines[..] else {
            panic!("{lines:#?}")
        };
        assert!(outside.starts_with("{\"timestamp\":\""), "{outside}");
        assert!(
            outside
                .contains("\"level\":\"INFO\",\"message\":\"out\\nside\",\"event\":\"outside\",\"count\":3,"),
            "{outside}"
        );
        let outside: Value = serde_json::from_str(outside).unwrap();
        assert_eq!(
            (&outside["event"], &outside["count"]),
            (&"outside".into(), &3.into())
        );
        assert_eq!(
            (&outside["level"], &outside["message"]),
            (&"INFO".into(), &"out\nside".into())
        );
        assert_eq!(outside.get("trace_id"), None);
        let inside: Value = serde_json::from_str(inside).unwrap();
        assert_eq!(inside["trace_id"], "0000000000000000000000000000000a");
        assert_eq!(inside["span_id"], "000000000000000b");
        assert_eq!(inside["yes"], true);
    }

    #[test]
    fn pretty_lines_have_the_span_ids() {
        let lines = logged(|buffer| {
            tracing_subscriber::fmt::layer()
                .with_writer(buffer)
                .with_ansi(false)
                .event_format(PrettyFormat)
        });
        let inside = lines.last().unwrap();
        let ids = "trace_id=0000000000000000000000000000000a span_id=000000000000000b";
        assert!(
            inside.contains("WARN inside") && inside.ends_with(ids),
            "{inside}"
        );
        assert!(!lines[0].contains("trace_id"), "{}", lines[0]);
    }
}
