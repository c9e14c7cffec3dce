//! A latency histogram.

use hdrhistogram::Histogram;

use super::error::BenchError;

/// The highest recordable value, in nanoseconds; anything slower is recorded as one hour.
const SLOWEST: u64 = 3_600_000_000_000;

/// A histogram of latencies with three significant digits.
#[derive(Debug, Clone)]
pub struct Latency {
    nanoseconds: Histogram<u64>,
}

impl Latency {
    /// Creates an empty histogram.
    ///
    /// # Errors
    ///
    /// If the histogram rejects its bounds. They are constants that it accepts, so this does not happen.
    pub fn new() -> Result<Self, BenchError> {
        // Anything below a microsecond is noise, and a higher resolution would push the counters out of the CPU cache.
        let nanoseconds = Histogram::new_with_bounds(1_000, SLOWEST, 3)
            .map_err(|error| BenchError::Software(format!("histogram: {error}")))?;
        Ok(Self { nanoseconds })
    }

    /// Records one latency.
    #[inline]
    pub fn record(&mut self, nanoseconds: u64) {
        self.nanoseconds.saturating_record(nanoseconds);
    }

    /// Adds the values of `other`.
    ///
    /// # Errors
    ///
    /// If the bounds of `other` are different.
    pub fn merge(&mut self, other: &Self) -> Result<(), BenchError> {
        self.nanoseconds
            .add(&other.nanoseconds)
            .map_err(|error| BenchError::Software(format!("histogram: {error}")))
    }

    /// The number of recorded values.
    pub fn count(&self) -> u64 {
        self.nanoseconds.len()
    }

    /// The value at a percentile in milliseconds; 0 if the histogram is empty.
    pub fn percentile(&self, percent: f64) -> f64 {
        milliseconds(self.nanoseconds.value_at_percentile(percent))
    }

    /// The maximum in milliseconds.
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
    fn percentiles_are_those_of_the_recorded_values() {
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
    fn histograms_merge_and_extremes_saturate() {
        let (mut one, mut other) = (Latency::new().unwrap(), Latency::new().unwrap());
        one.record(0);
        other.record(u64::MAX);
        one.merge(&other).unwrap();
        assert_eq!(one.count(), 2);
        assert!(near(one.max(), 3_600_000.0));
    }
}
