//! Which messages are traced.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use opentelemetry::trace::{Link, SpanKind, TraceContextExt, TraceId};
use opentelemetry::{Context, KeyValue};
use opentelemetry_sdk::trace::{SamplingDecision, SamplingResult, ShouldSample};

/// One in 2^63 is the finest ratio: it is compared with the last 63 bits of a trace id, as the SDK does, so that
/// services that sample by the same ratio sample the same traces.
const ALL: u64 = 1 << 63;

/// What `OTEL_TRACES_SAMPLER` and `OTEL_TRACES_SAMPLER_ARG` say.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SamplerOptions {
    /// How many of the traces that begin here are recorded, from 0 to 1.
    pub ratio: f64,
    /// Whether the sender of a message that comes with a trace decides.
    pub parent_decides: bool,
    /// How many messages a second are recorded because their senders want it. Beyond that the ratio decides, so that
    /// no sender can make the server record more than its owner wants.
    pub wishes_per_second: u32,
}

/// How many wishes of senders are followed, a second, where nothing else is said.
pub const DEFAULT_WISHES_PER_SECOND: u32 = 1_000;

impl Default for SamplerOptions {
    /// What the OpenTelemetry specification says where nothing is configured: `parentbased_always_on`.
    fn default() -> Self {
        Self {
            ratio: 1.0,
            parent_decides: true,
            wishes_per_second: DEFAULT_WISHES_PER_SECOND,
        }
    }
}

impl SamplerOptions {
    /// What the two variables say.
    ///
    /// # Errors
    ///
    /// One line of what is wrong with them.
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

/// A trace that came from elsewhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Remote {
    pub(super) trace_id: u128,
    pub(super) is_sampled: bool,
}

/// Decides which messages are traced.
#[derive(Debug)]
pub(super) struct Sampling {
    /// Traces whose last 63 bits are below this are recorded.
    bound: u64,
    parent_decides: bool,
    wishes: Allowance,
}

impl Sampling {
    pub(super) fn new(options: &SamplerOptions) -> Self {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            clippy::cast_precision_loss,
            reason = "a ratio from 0 to 1 of 2^63"
        )]
        let bound = (options.ratio.clamp(0.0, 1.0) * ALL as f64) as u64;
        Self {
            bound,
            parent_decides: options.parent_decides,
            wishes: Allowance::new(options.wishes_per_second),
        }
    }

    /// The id of a new trace, if it is recorded. Costs one random number if not.
    pub(super) fn begin(&self) -> Option<u128> {
        if self.bound == 0 {
            return None;
        }
        let low: u64 = rand::random();
        self.takes(low).then(|| {
            let high: u64 = rand::random();
            // Zero is no trace id.
            (u128::from(high) << 64 | u128::from(low)).max(1)
        })
    }

    /// Whether what goes on with a trace from elsewhere is recorded.
    pub(super) fn goes_on(&self, remote: Remote) -> bool {
        #[expect(clippy::cast_possible_truncation, reason = "its last bits")]
        let low = remote.trace_id as u64;
        let is_wanted = if self.parent_decides {
            remote.is_sampled
        } else {
            self.takes(low)
        };
        // Trace ids can be chosen so that every ratio takes them, so those are wishes too.
        is_wanted && (self.bound == ALL || self.wishes.take() || self.takes(rand::random()))
    }

    const fn takes(&self, low: u64) -> bool {
        low >> 1 < self.bound
    }
}

/// What is traced through the SDK's own tracer is decided in the same way.
#[derive(Debug, Clone)]
pub(super) struct SharedSampling(pub(super) std::sync::Arc<Sampling>);

impl ShouldSample for SharedSampling {
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
            Some(parent) if parent.is_remote() => self.0.goes_on(Remote {
                trace_id: u128::from_be_bytes(trace_id.to_bytes()),
                is_sampled: parent.is_sampled(),
            }),
            Some(parent) => parent.is_sampled(),
            #[expect(clippy::cast_possible_truncation, reason = "its last bits")]
            None => self.0.takes(u128::from_be_bytes(trace_id.to_bytes()) as u64),
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

/// So many things a second, at most a second's worth at once: the generic cell rate algorithm (ITU-T I.371), without a
/// lock.
#[derive(Debug)]
struct Allowance {
    began: Instant,
    /// How many nanoseconds each takes of the allowance; zero = nothing is allowed.
    each: u64,
    /// When what was taken so far will be used up, in nanoseconds after it began.
    used_up: AtomicU64,
}

/// How much may be taken at once, in nanoseconds of the allowance.
const AT_ONCE: u64 = 1_000_000_000;

impl Allowance {
    fn new(per_second: u32) -> Self {
        Self {
            began: Instant::now(),
            each: AT_ONCE.checked_div(per_second.into()).unwrap_or(0),
            used_up: AtomicU64::new(0),
        }
    }

    fn take(&self) -> bool {
        if self.each == 0 {
            return false;
        }
        let now = u64::try_from(self.began.elapsed().as_nanos()).unwrap_or(u64::MAX);
        self.take_at(now)
    }

    fn take_at(&self, now: u64) -> bool {
        let taken = |used_up: u64| {
            let next = used_up.max(now).saturating_add(self.each);
            (next <= now.saturating_add(AT_ONCE)).then_some(next)
        };
        self.used_up
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, taken)
            .is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sampling(ratio: f64, parent_decides: bool, wishes_per_second: u32) -> Sampling {
        Sampling::new(&SamplerOptions {
            ratio,
            parent_decides,
            wishes_per_second,
        })
    }

    #[test]
    fn the_variables_are_those_of_the_specification() {
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
    fn a_ratio_is_kept() {
        let sampling = sampling(0.1, true, 0);
        let taken = (0..100_000).filter_map(|_| sampling.begin()).count();
        // Ten standard deviations.
        assert!((9_000..11_000).contains(&taken), "{taken}");
        assert_eq!(self::sampling(0.0, true, 0).begin(), None);
        assert!(self::sampling(1.0, true, 0).begin().is_some());
    }

    #[test]
    fn a_sender_decides_as_long_as_its_wishes_are_few() {
        let sampling = sampling(0.0, true, 3);
        let wish = |is_sampled| Remote {
            trace_id: 1,
            is_sampled,
        };
        assert!(!sampling.goes_on(wish(false)));
        let followed = (0..1_000).filter(|_| sampling.goes_on(wish(true))).count();
        // Three at once, and one more each third of a second that the loop may have taken.
        assert!((3..20).contains(&followed), "{followed}");
    }

    #[test]
    fn a_chosen_trace_id_is_a_wish_too() {
        let sampling = sampling(0.001, false, 5);
        let chosen = Remote {
            trace_id: 1,
            is_sampled: false,
        };
        let followed = (0..10_000).filter(|_| sampling.goes_on(chosen)).count();
        assert!(followed < 100, "{followed}");
    }

    #[test]
    fn an_allowance_refills() {
        let allowance = Allowance::new(10);
        let second = 1_000_000_000;
        assert_eq!((0..20).filter(|_| allowance.take_at(0)).count(), 10);
        assert_eq!((0..20).filter(|_| allowance.take_at(second / 2)).count(), 5);
        assert_eq!((0..99).filter(|_| allowance.take_at(60 * second)).count(), 10);
        assert!(!Allowance::new(0).take());
    }
}
