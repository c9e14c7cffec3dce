//! Latencies in a histogram of fixed size.

use hdrhistogram::Histogram;

use super::error::BenchError;

/// Anything slower is counted as an hour.
const SLOWEST: u64 = 3_600_000_000_000;

/// How long deliveries took, to three significant digits.
#[derive(Debug, Clone)]
pub struct Latency {
    nanoseconds: Histogram<u64>,
}

impl Latency {
    /// An empty histogram.
    ///
    /// # Errors
    /// Only when the histogram's fixed bounds were not valid.
    pub fn new() -> Result<Self, BenchError> {
        // Finer than a microsecond is noise: the lowest distinguishable value keeps the counters in the cache.
        let nanoseconds = Histogram::new_with_bounds(1_000, SLOWEST, 3)
            .map_err(|error| BenchError::Software(format!("histogram: {error}")))?;
        Ok(Self { nanoseconds })
    }

    /// Notes one delivery.
    #[inline]
    pub fn record(&mut self, nanoseconds: u64) {
        self.nanoseconds.saturating_record(nanoseconds);
    }

    /// Adds what another one has seen.
    ///
    /// # Errors
    /// Only when the other one's bounds were different.
    pub fn merge(&mut self, other: &Self) -> Result<(), BenchError> {
        self.nanoseconds
            .add(&other.nanoseconds)
            .map_err(|error| BenchError::Software(format!("histogram: {error}")))
    }

    /// How many were noted.
    pub fn count(&self) -> u64 {
        self.nanoseconds.len()
    }

    /// The slowest of the fastest `percent` per cent, in milliseconds; 0 when nothing was noted.
    pub fn percentile(&self, percent: f64) -> f64 {
        milliseconds(self.nanoseconds.value_at_percentile(percent))
    }

    /// The slowest, in milliseconds.
    pub fn max(&self) -> f64 {
        milliseconds(self.nanoseconds.max())
    }
}

#[expect(clippy::cast_precision_loss, reason = "an hour in nanoseconds has 42 bits")]
fn milliseconds(nanoseconds: u64) -> f64 {
    nanoseconds as f64 / 1e6
}

#[cfg(test)]
mod tests {
    use super::*;

    fn near(left: f64, right: f64) -> bool {
        (left - right).abs() <= right * 0.002
    }

    #[test]
    fn percentiles_are_those_of_what_was_noted() {
        let mut latency = Latency::new().unwrap();
        for millisecond in 1..=1_000 {
            latency.record(millisecond * 1_000_000);
        }
        assert_eq!(latency.count(), 1_000);
        assert!(near(latency.percentile(50.0), 500.0));
        assert!(near(latency.percentile(99.9), 999.0));
        assert!(near(latency.max(), 1_000.0));
    }

    #[test]
    fn parts_add_up_and_extremes_saturate() {
        let (mut one, mut other) = (Latency::new().unwrap(), Latency::new().unwrap());
        one.record(0);
        other.record(u64::MAX);
        one.merge(&other).unwrap();
        assert_eq!(one.count(), 2);
        assert!(near(one.max(), 3_600_000.0));
    }
}
