//! A latency histogram with atomic counters: recording any number of events costs two additions.
//!
//! The histogram of `metrics-exporter-prometheus` keeps every sample until the next scrape, which at millions of deliveries
//! per second costs more than delivering.

use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::catalog::Definition;

/// The inclusive upper bounds of the buckets, and their values in seconds. They include the thresholds of the service level
/// objectives.
const BOUNDS: [(Duration, &str); 15] = [
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

/// A latency histogram.
#[derive(Debug, Default)]
pub(super) struct Histogram {
    /// The last bucket has no upper bound.
    counts: [AtomicU64; BOUNDS.len() + 1],
    sum_nanos: AtomicU64,
}

impl Histogram {
    /// Records `count` events of this latency.
    pub(super) fn record(&self, latency: Duration, count: u32) {
        let bucket = BOUNDS.partition_point(|(bound, _)| *bound < latency);
        self.counts[bucket].fetch_add(count.into(), Ordering::Relaxed);
        // 64 bits hold 584 years of summed latency; after that, the sum wraps.
        let nanos = u64::try_from(latency.as_nanos())
            .unwrap_or(u64::MAX)
            .saturating_mul(count.into());
        self.sum_nanos.fetch_add(nanos, Ordering::Relaxed);
    }

    /// Returns whether nothing was recorded.
    pub(super) fn is_empty(&self) -> bool {
        self.counts.iter().all(|count| count.load(Ordering::Relaxed) == 0)
    }

    /// Appends the histogram, without labels, to `out` in the Prometheus text format.
    pub(super) fn render(&self, definition: &Definition, out: &mut String) {
        Self::render_head(definition, out);
        self.render_series(definition.name, "", out);
        out.push('\n');
    }

    /// Appends the `HELP` and `TYPE` lines.
    pub(super) fn render_head(definition: &Definition, out: &mut String) {
        let Definition { name, help, .. } = definition;
        // Writing to a string cannot fail.
        write!(out, "# HELP {name} {help}\n# TYPE {name} histogram\n").unwrap_or_default();
    }

    /// Appends one series. `labels` are `name="value"` pairs, separated by commas.
    pub(super) fn render_series(&self, name: &str, labels: &str, out: &mut String) {
        let mut total = 0;
        let mut line = |text: std::fmt::Arguments<'_>| out.write_fmt(text).unwrap_or_default();
        let comma = if labels.is_empty() { "" } else { "," };
        let bounds = BOUNDS.iter().map(|(_, bound)| *bound).chain(["+Inf"]);
        for (bound, count) in bounds.zip(&self.counts) {
            total += count.load(Ordering::Relaxed);
            line(format_args!(
                "{name}_bucket{{{labels}{comma}le=\"{bound}\"}} {total}\n"
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
    fn bounds_are_inclusive_and_counts_cumulative() {
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
