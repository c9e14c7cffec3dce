//! The W3C trace context of a message. The domain carries it from the sender to the receivers and never interprets it.

use std::borrow::Cow;
use std::ops::Range;
use std::sync::Arc;

use super::limits::{MAX_TRACEPARENT_LEN, MAX_TRACESTATE_LEN};

/// The byte ranges of the parts of a `traceparent`.
const TRACE_ID: Range<usize> = 3..35;
const SPAN_ID: Range<usize> = 36..52;
const FLAGS: Range<usize> = 53..55;

/// A well-formed W3C trace context (<https://www.w3.org/TR/trace-context/>), as version 00. Cheap to clone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TraceContext {
    traceparent: Arc<str>,
    /// May be empty.
    tracestate: Arc<str>,
}

impl TraceContext {
    /// Parses the two fields that a client sent. Returns `None` if `traceparent` is empty or malformed: the message is then
    /// not traced, rather than rejected, as the recommendation asks. A `tracestate` that is too long or has characters
    /// other than printable ASCII and tab is dropped; the `traceparent` is kept.
    #[must_use]
    pub fn parse(traceparent: &str, tracestate: &str) -> Option<Self> {
        let traceparent = version_00(traceparent)?;
        let is_valid = tracestate.len() <= MAX_TRACESTATE_LEN
            && tracestate
                .bytes()
                .all(|b| b == b'\t' || (b' '..=b'~').contains(&b));
        Some(Self {
            traceparent: traceparent.as_ref().into(),
            tracestate: if is_valid { tracestate.into() } else { "".into() },
        })
    }

    /// A context with these ids, which must not be zero, and without a `tracestate`.
    #[must_use]
    pub fn new(trace_id: u128, span_id: u64, is_sampled: bool) -> Self {
        let flags = u8::from(is_sampled);
        Self {
            traceparent: format!("00-{trace_id:032x}-{span_id:016x}-{flags:02x}").into(),
            tracestate: "".into(),
        }
    }

    /// This context with another `tracestate`.
    #[must_use]
    pub fn with_tracestate(self, tracestate: &str) -> Self {
        Self {
            tracestate: tracestate.into(),
            ..self
        }
    }

    /// The id of the trace, which is never zero.
    #[must_use]
    pub fn trace_id(&self) -> u128 {
        // Cannot fail, here and below: the field is well-formed.
        u128::from_str_radix(&self.traceparent[TRACE_ID], 16).unwrap_or_default()
    }

    /// The id of the sender's span, which is never zero.
    #[must_use]
    pub fn span_id(&self) -> u64 {
        u64::from_str_radix(&self.traceparent[SPAN_ID], 16).unwrap_or_default()
    }

    /// Whether the sender recorded its span.
    #[must_use]
    pub fn is_sampled(&self) -> bool {
        u8::from_str_radix(&self.traceparent[FLAGS], 16).unwrap_or_default() & 1 == 1
    }

    /// The `traceparent` field.
    #[must_use]
    pub fn traceparent(&self) -> &str {
        &self.traceparent
    }

    /// The `tracestate` field, which may be empty.
    #[must_use]
    pub fn tracestate(&self) -> &str {
        &self.tracestate
    }
}

/// The fields of a `traceparent` as one of version 00. Later versions begin with the same fields, of whose flags only the first is
/// known to mean the same. `None` if it is malformed.
fn version_00(raw: &str) -> Option<Cow<'_, str>> {
    if raw.starts_with("00") {
        return is_traceparent(raw).then_some(raw.into());
    }
    let (fields, rest) = raw.split_at_checked(MAX_TRACEPARENT_LEN)?;
    let (version, fields) = fields.split_at_checked(2)?;
    let is_version = version.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) && version != "ff";
    if !is_version || !(rest.is_empty() || rest.starts_with('-')) {
        return None;
    }
    let mut context = format!("00{fields}");
    if !is_traceparent(&context) {
        return None;
    }
    let flags = u8::from_str_radix(&context[FLAGS], 16).ok()? & 1;
    context.replace_range(FLAGS, &format!("{flags:02x}"));
    Some(context.into())
}

/// `00-<32 hex>-<16 hex>-<2 hex>`, in lower case, neither id all zeros.
fn is_traceparent(raw: &str) -> bool {
    let lower_hex = |part: &str| part.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    if raw.len() != MAX_TRACEPARENT_LEN {
        return false;
    }
    let mut parts = raw.split('-');
    let (Some("00"), Some(trace), Some(span), Some(flags), None) = (
        parts.next(),
        parts.next(),
        parts.next(),
        parts.next(),
        parts.next(),
    ) else {
        return false;
    };
    let id = |part: &str, len: usize| part.len() == len && lower_hex(part) && part.bytes().any(|b| b != b'0');
    id(trace, 32) && id(span, 16) && flags.len() == 2 && lower_hex(flags)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    #[test]
    fn a_well_formed_context_keeps_both_fields() {
        let context = TraceContext::parse(PARENT, "vendor=1").unwrap();
        assert_eq!(
            (context.traceparent(), context.tracestate()),
            (PARENT, "vendor=1")
        );
        let (trace, span) = (0x0af7_6519_16cd_43dd_8448_eb21_1c80_319c, 0xb7ad_6b71_6920_3331);
        assert_eq!((context.trace_id(), context.span_id()), (trace, span));
        assert!(context.is_sampled());
        assert_eq!(
            TraceContext::new(trace, span, true).with_tracestate("vendor=1"),
            context
        );
        assert!(!TraceContext::new(trace, span, false).is_sampled());
    }

    #[test]
    fn a_later_version_is_read_as_far_as_it_is_known() {
        for (raw, expected) in [
            ("cc-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "01"),
            ("01-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-09", "01"),
            (
                "01-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-fe-what-else",
                "00",
            ),
        ] {
            let context = TraceContext::parse(raw, "a=b").unwrap();
            assert_eq!(context.traceparent(), format!("{}{expected}", &PARENT[..53]));
            assert_eq!(context.tracestate(), "a=b");
        }
    }

    #[test]
    fn a_malformed_field_is_dropped() {
        for wrong in [
            "",
            "00",
            "00-0AF7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
            "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-what-else",
            "01-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01.what-else",
            "0x-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "01-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-0",
            "01-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-\u{e4}",
            "00-0af7651916cd43dd8448eb211c80319cb7ad6b7169203331--01",
        ] {
            assert_eq!(TraceContext::parse(wrong, "a=b"), None, "{wrong}");
        }
        assert_eq!(TraceContext::parse(PARENT, "a=\u{e9}").unwrap().tracestate(), "");
    }
}
