//! Which messages are traced.

use std::time::Duration;

use opentelemetry::trace::{Link, SpanKind, TraceContextExt, TraceId};
use opentelemetry::{Context, KeyValue};
use opentelemetry_sdk::trace::{SamplingDecision, SamplingResult, ShouldSample};
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::rate_limiter::{Rate, RateLimiter};

/// The threshold of the ratio 1. As in the SDK, the threshold is compared with the low 64 bits of the trace id, shifted right
/// by one, so that all services with the same ratio sample the same traces.
const MAX_THRESHOLD: u64 = 1 << 63;

/// Which messages are traced: `OTEL_TRACES_SAMPLER`, `OTEL_TRACES_SAMPLER_ARG` and `serve --trace-remote-limit`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SamplerOptions {
    /// The share, from 0 to 1, of the traces started by this process that are recorded.
    pub ratio: f64,
    /// Whether the sampled flag of a remote parent decides if a message is traced. Otherwise the ratio decides.
    pub parent_decides: bool,
    /// How many messages per second are recorded because of their remote parent, with a burst of one second. Beyond that the
    /// ratio decides, so that senders cannot make the server record more than its operator wants; a ratio of 1 therefore
    /// makes the limit ineffective.
    pub remote_limit_per_second: u32,
}

/// The default of [`SamplerOptions::remote_limit_per_second`].
pub const DEFAULT_REMOTE_LIMIT_PER_SECOND: u32 = 1_000;

impl Default for SamplerOptions {
    /// The default of the OpenTelemetry specification, `parentbased_always_on`.
    fn default() -> Self {
        Self {
            ratio: 1.0,
            parent_decides: true,
            remote_limit_per_second: DEFAULT_REMOTE_LIMIT_PER_SECOND,
        }
    }
}

impl SamplerOptions {
    /// Parses the values of `OTEL_TRACES_SAMPLER` and `OTEL_TRACES_SAMPLER_ARG`; `None` is an unset variable.
    ///
    /// # Errors
    ///
    /// Returns one line that names the invalid variable.
    pub fn parse(sampler: Option<&str>, argument: Option<&str>) -> Result<Self, String> {
        let ratio = || match argument.map(|raw| (raw, raw.parse::<f64>())) {
            None => Ok(1.0),
            Some((_, Ok(ratio))) if (0.0..=1.0).contains(&ratio) => Ok(ratio),
            Some((raw, _)) => Err(format!(
                "OTEL_TRACES_SAMPLER_ARG is {raw:?}; it must be a ratio from 0 to 1"
            )),
        };
        let (ratio, parent_decides) = match sampler {
            None | Some("parentbased_always_on") => (1.0, true),
            Some("always_on") => (1.0, false),
            Some("always_off") => (0.0, false),
            Some("parentbased_always_off") => (0.0, true),
            Some("traceidratio") => (ratio()?, false),
            Some("parentbased_traceidratio") => (ratio()?, true),
            Some(other) => {
                return Err(format!(
                    "OTEL_TRACES_SAMPLER is {other:?}; it must be always_on, always_off, traceidratio, or one of these \
                     after parentbased_"
                ));
            }
        };
        Ok(Self {
            ratio,
            parent_decides,
            ..Self::default()
        })
    }
}

/// The remote parent or link of a span.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct RemoteParent {
    pub(super) trace_id: u128,
    pub(super) is_sampled: bool,
}

/// Decides which messages are traced.
#[derive(Debug)]
pub(super) struct Sampler {
    /// A trace is recorded if the low 64 bits of its id, shifted right by one, are below this.
    threshold: u64,
    parent_decides: bool,
    /// `None` if the ratio always decides.
    remote_limit: Option<Rate>,
    remote_limiter: Mutex<RateLimiter>,
}

impl Sampler {
    pub(super) fn new(options: &SamplerOptions) -> Self {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            clippy::cast_precision_loss,
            reason = "a ratio from 0 to 1 of 2^63"
        )]
        let threshold = (options.ratio.clamp(0.0, 1.0) * MAX_THRESHOLD as f64) as u64;
        Self {
            threshold,
            parent_decides: options.parent_decides,
            remote_limit: (options.remote_limit_per_second > 0).then(|| {
                let limit = options.remote_limit_per_second;
                Rate::new(limit, Duration::from_secs(1), limit)
            }),
            remote_limiter: Mutex::default(),
        }
    }

    /// Returns the id of a new trace, or `None` if it is not recorded, which costs at most one random number.
    pub(super) fn sample_root(&self) -> Option<u128> {
        if self.threshold == 0 {
            return None;
        }
        let low: u64 = rand::random();
        self.is_below_threshold(low).then(|| {
            let high: u64 = rand::random();
            // Zero is not a valid trace id.
            (u128::from(high) << 64 | u128::from(low)).max(1)
        })
    }

    /// Returns whether a span with a remote parent or link is recorded.
    pub(super) fn sample_remote(&self, remote: RemoteParent) -> bool {
        #[expect(clippy::cast_possible_truncation, reason = "the low bits")]
        let low = remote.trace_id as u64;
        let is_requested = if self.parent_decides {
            remote.is_sampled
        } else {
            self.is_below_threshold(low)
        };
        // Senders can also choose trace ids below the threshold, so the limit applies in both cases.
        is_requested
            && (self.threshold == MAX_THRESHOLD
                || self.is_within_remote_limit()
                || self.is_below_threshold(rand::random()))
    }

    fn is_within_remote_limit(&self) -> bool {
        self.remote_limit.is_some_and(|rate| {
            let acquired = self.remote_limiter.lock().try_acquire(rate, Instant::now());
            acquired.is_ok()
        })
    }

    const fn is_below_threshold(&self, low: u64) -> bool {
        low >> 1 < self.threshold
    }
}

/// Applies a [`Sampler`] to the spans that the SDK creates from `tracing` spans.
#[derive(Debug, Clone)]
pub(super) struct SharedSampler(pub(super) std::sync::Arc<Sampler>);

impl ShouldSample for SharedSampler {
    fn should_sample(
        &self,
        parent: Option<&Context>,
        trace_id: TraceId,
        _: &str,
        _: &SpanKind,
        _: &[KeyValue],
        _: &[Link],
    ) -> SamplingResult {
        let span = parent.map(|parent| parent.span());
        let parent = span.as_ref().map(|span| span.span_context());
        let is_sampled = match parent.filter(|parent| parent.is_valid()) {
            Some(parent) if parent.is_remote() => self.0.sample_remote(RemoteParent {
                trace_id: u128::from_be_bytes(trace_id.to_bytes()),
                is_sampled: parent.is_sampled(),
            }),
            Some(parent) => parent.is_sampled(),
            #[expect(clippy::cast_possible_truncation, reason = "the low bits")]
            None => self
                .0
                .is_below_threshold(u128::from_be_bytes(trace_id.to_bytes()) as u64),
        };
        SamplingResult {
            decision: if is_sampled {
                SamplingDecision::RecordAndSample
            } else {
                SamplingDecision::Drop
            },
            attributes: Vec::new(),
            trace_state: parent
                .map(|parent| parent.trace_state().clone())
                .unwrap_or_default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sampler(ratio: f64, parent_decides: bool, remote_limit_per_second: u32) -> Sampler {
        Sampler::new(&SamplerOptions {
            ratio,
            parent_decides,
            remote_limit_per_second,
        })
    }

    #[test]
    fn the_variables_follow_the_specification() {
        let parsed = |sampler, argument| {
            let options = SamplerOptions::parse(sampler, argument)?;
            Ok::<_, String>((options.ratio, options.parent_decides))
        };
        assert_eq!(parsed(None, None), Ok((1.0, true)));
        assert_eq!(parsed(Some("always_off"), Some("7")), Ok((0.0, false)));
        assert_eq!(parsed(Some("traceidratio"), Some("0.25")), Ok((0.25, false)));
        assert_eq!(
            parsed(Some("parentbased_traceidratio"), Some("0.01")),
            Ok((0.01, true))
        );
        let wrong = parsed(Some("traceidratio"), Some("2")).unwrap_err();
        assert_eq!(
            wrong,
            "OTEL_TRACES_SAMPLER_ARG is \"2\"; it must be a ratio from 0 to 1"
        );
        let wrong = parsed(Some("xray"), None).unwrap_err();
        assert!(
            wrong.starts_with("OTEL_TRACES_SAMPLER is \"xray\"; it must be always_on"),
            "{wrong}"
        );
    }

    #[test]
    fn the_ratio_is_kept() {
        let tenth = sampler(0.1, true, 0);
        let taken = (0..100_000).filter_map(|_| tenth.sample_root()).count();
        // Ten standard deviations.
        assert!((9_000..11_000).contains(&taken), "{taken}");
        assert_eq!(sampler(0.0, true, 0).sample_root(), None);
        assert!(sampler(1.0, true, 0).sample_root().is_some());
    }

    #[test]
    fn remote_parents_decide_below_the_limit() {
        let sampler = sampler(0.0, true, 3);
        let parent = |is_sampled| RemoteParent {
            trace_id: 1,
            is_sampled,
        };
        assert!(!sampler.sample_remote(parent(false)));
        let sampled = (0..1_000).filter(|_| sampler.sample_remote(parent(true))).count();
        // A burst of three, and one more for each third of a second that the loop takes.
        assert!((3..20).contains(&sampled), "{sampled}");
    }

    #[test]
    fn chosen_trace_ids_are_limited_too() {
        let sampler = sampler(0.001, false, 5);
        let chosen = RemoteParent {
            trace_id: 1,
            is_sampled: false,
        };
        let sampled = (0..10_000).filter(|_| sampler.sample_remote(chosen)).count();
        assert!(sampled < 100, "{sampled}");
    }
}
