//! A histogram of latencies that costs two additions to record, however many events it records at once.
//!
//! The exporter's own histogram keeps every record until it is drained; at millions of deliveries a second that is
//! memory and time which the deliveries need.

use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::catalog::Definition;

/// The upper edges of the buckets. The thresholds of the service level objectives are among them.
const EDGES: [(Duration, &str); 15] = [
    (Duration::from_micros(100), "0.0001"),
    (Duration::from_micros(250), "0.00025"),
    (Duration::from_micros(500), "0.0005"),
    (Duration::from_millis(1), "0.001"),
    (Duration::from_micros(2_500), "0.0025"),
    (Duration::from_millis(5), "0.005"),
    (Duration::from_millis(10), "0.01"),
    (Duration::from_millis(25), "0.025"),
    (Duration::from_millis(50), "0.05"),
    (Duration::from_millis(100), "0.1"),
    (Duration::from_millis(250), "0.25"),
    (Duration::from_millis(500), "0.5"),
    (Duration::from_secs(1), "1"),
    (Duration::from_millis(2_500), "2.5"),
    (Duration::from_secs(5), "5"),
];

/// A histogram of latencies.
#[derive(Debug, Default)]
pub(super) struct Histogram {
    /// The last one is for what is later than every edge.
    counts: [AtomicU64; EDGES.len() + 1],
    sum_nanos: AtomicU64,
}

impl Histogram {
    /// Records `count` events of this latency.
    pub(super) fn record(&self, latency: Duration, count: u32) {
        let bucket = EDGES.partition_point(|(edge, _)| *edge < latency);
        self.counts[bucket].fetch_add(count.into(), Ordering::Relaxed);
        // 580 years of latency fit.
        let nanos = u64::try_from(latency.as_nanos())
            .unwrap_or(u64::MAX)
            .saturating_mul(count.into());
        self.sum_nanos.fetch_add(nanos, Ordering::Relaxed);
    }

    /// Whether anything was recorded.
    pub(super) fn is_empty(&self) -> bool {
        self.counts.iter().all(|count| count.load(Ordering::Relaxed) == 0)
    }

    /// Appends it in the Prometheus text format, without labels.
    pub(super) fn render(&self, definition: &Definition, out: &mut String) {
        Self::render_head(definition, out);
        self.render_series(definition.name, "", out);
        out.push('\n');
    }

    /// Appends what stands before the series of a histogram.
    pub(super) fn render_head(definition: &Definition, out: &mut String) {
        let Definition { name, help, .. } = definition;
        // Writing to a string cannot fail.
        write!(out, "# HELP {name} {help}\n# TYPE {name} histogram\n").unwrap_or_default();
    }

    /// Appends one series; `labels` are as in `name="value"`, with commas between.
    pub(super) fn render_series(&self, name: &str, labels: &str, out: &mut String) {
        let mut total = 0;
        let mut line = |text: std::fmt::Arguments<'_>| out.write_fmt(text).unwrap_or_default();
        let comma = if labels.is_empty() { "" } else { "," };
        let edges = EDGES.iter().map(|(_, edge)| *edge).chain(["+Inf"]);
        for (edge, count) in edges.zip(&self.counts) {
            total += count.load(Ordering::Relaxed);
            line(format_args!(
                "{name}_bucket{{{labels}{comma}le=\"{edge}\"}} {total}\n"
            ));
        }
        let sum = Duration::from_nanos(self.sum_nanos.load(Ordering::Relaxed)).as_secs_f64();
        let labels = if labels.is_empty() {
            String::new()
        } else {
            format!("{{{labels}}}")
        };
        line(format_args!(
            "{name}_sum{labels} {sum}\n{name}_count{labels} {total}\n"
        ));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::catalog::DELIVERY_LATENCY;

    #[test]
    fn edges_belong_to_their_bucket_and_counts_add_up() {
        let histogram = Histogram::default();
        histogram.record(Duration::from_millis(1), 3);
        histogram.record(Duration::from_micros(1_001), 1);
        histogram.record(Duration::from_secs(60), 2);
        let mut text = String::new();
        histogram.render(&DELIVERY_LATENCY, &mut text);
        let value = |line: &str| {
            let name = format!("chitchat_delivery_latency_seconds{line} ");
            text.lines()
                .find_map(|l| l.strip_prefix(&name))
                .unwrap()
                .parse::<f64>()
                .unwrap()
        };
        assert_eq!(value("_bucket{le=\"0.0005\"}"), 0.0);
        assert_eq!(value("_bucket{le=\"0.001\"}"), 3.0);
        assert_eq!(value("_bucket{le=\"0.0025\"}"), 4.0);
        assert_eq!(value("_bucket{le=\"5\"}"), 4.0);
        assert_eq!(value("_bucket{le=\"+Inf\"}"), 6.0);
        assert_eq!(value("_count"), 6.0);
        assert!((value("_sum") - 120.004_001).abs() < 1e-9);
    }
}
