//! The configuration of exports, from the standard `OTEL_*` environment variables.

use std::env;

use http::Uri;
use http::uri::Scheme;

use super::sampling::SamplerOptions;

/// The signals that are exported. Metrics are not among them: Prometheus scrapes them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Signal {
    Traces,
    Logs,
}

/// What is exported, and where. The SDK itself reads the `OTEL_*` variables for headers, timeouts, batches and resource
/// attributes.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct OtlpOptions {
    /// The endpoint for spans; `None` disables tracing.
    pub traces: Option<String>,
    /// The endpoint for log records; `None` logs to stdout only.
    pub logs: Option<String>,
    /// Which messages are traced.
    pub sampler: SamplerOptions,
}

impl OtlpOptions {
    /// Reads the options from the environment of this process. An empty variable counts as unset.
    ///
    /// # Errors
    ///
    /// Returns one line for each invalid variable.
    pub fn from_env() -> Result<Self, Vec<String>> {
        Self::read(|name| env::var(name).ok().filter(|value| !value.is_empty()))
    }

    fn read(variable: impl Fn(&str) -> Option<String>) -> Result<Self, Vec<String>> {
        if variable("OTEL_SDK_DISABLED").is_some_and(|value| value.eq_ignore_ascii_case("true")) {
            return Ok(Self::default());
        }
        let mut mistakes = Vec::new();
        let mut endpoint = |signal: Signal| {
            endpoint(signal, &variable).unwrap_or_else(|mistake| {
                mistakes.push(mistake);
                None
            })
        };
        let (traces, logs) = (endpoint(Signal::Traces), endpoint(Signal::Logs));
        let (sampler, argument) = (
            variable("OTEL_TRACES_SAMPLER"),
            variable("OTEL_TRACES_SAMPLER_ARG"),
        );
        let sampler =
            SamplerOptions::parse(sampler.as_deref(), argument.as_deref()).unwrap_or_else(|mistake| {
                mistakes.push(mistake);
                SamplerOptions::default()
            });
        // An invalid variable that applies to both signals is reported once.
        mistakes.dedup();
        if mistakes.is_empty() {
            Ok(Self {
                traces,
                logs,
                sampler,
            })
        } else {
            Err(mistakes)
        }
    }
}

impl Signal {
    const fn variable_part(self) -> &'static str {
        match self {
            Self::Traces => "TRACES",
            Self::Logs => "LOGS",
        }
    }
}

fn endpoint(signal: Signal, variable: &impl Fn(&str) -> Option<String>) -> Result<Option<String>, String> {
    let signal = signal.variable_part();
    let exporter = format!("OTEL_{signal}_EXPORTER");
    match variable(&exporter).as_deref() {
        None | Some("otlp") => {}
        Some("none") => return Ok(None),
        Some(other) => return Err(format!("{exporter} is {other:?}; it must be otlp or none")),
    }
    let of_signal = |rest: &str| {
        let (own, common) = (
            format!("OTEL_EXPORTER_OTLP_{signal}_{rest}"),
            format!("OTEL_EXPORTER_OTLP_{rest}"),
        );
        variable(&own)
            .map(|value| (own, value))
            .or_else(|| variable(&common).map(|value| (common, value)))
    };
    let Some((name, endpoint)) = of_signal("ENDPOINT") else {
        return Ok(None);
    };
    let uri = endpoint.parse::<Uri>().ok();
    let is_valid = uri
        .as_ref()
        .is_some_and(|uri| uri.scheme() == Some(&Scheme::HTTP) && uri.host().is_some());
    if !is_valid {
        return Err(format!(
            "{name} is {endpoint:?}; it must be a URL like http://127.0.0.1:4317 (without TLS: run a collector beside \
             the server)"
        ));
    }
    if let Some((name, protocol)) = of_signal("PROTOCOL").filter(|(_, protocol)| protocol != "grpc") {
        return Err(format!("{name} is {protocol:?}; it must be grpc"));
    }
    Ok(Some(endpoint))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(variables: &[(&str, &str)]) -> Result<OtlpOptions, Vec<String>> {
        OtlpOptions::read(|name| {
            let found = variables.iter().find(|(variable, _)| *variable == name);
            found.map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn nothing_is_exported_without_an_endpoint() {
        assert_eq!(read(&[]), Ok(OtlpOptions::default()));
        let (one, two) = ("http://127.0.0.1:4317", "http://collector:4317");
        let both = read(&[("OTEL_EXPORTER_OTLP_ENDPOINT", one)]).unwrap();
        assert_eq!(
            (both.traces.as_deref(), both.logs.as_deref()),
            (Some(one), Some(one))
        );
        let differing = read(&[
            ("OTEL_EXPORTER_OTLP_ENDPOINT", one),
            ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", two),
            ("OTEL_LOGS_EXPORTER", "none"),
        ]);
        let differing = differing.unwrap();
        assert_eq!(
            (differing.traces.as_deref(), differing.logs.as_deref()),
            (Some(two), None)
        );
        let disabled = read(&[
            ("OTEL_EXPORTER_OTLP_ENDPOINT", one),
            ("OTEL_SDK_DISABLED", "True"),
        ]);
        assert_eq!(disabled, Ok(OtlpOptions::default()));
    }

    #[test]
    fn all_mistakes_are_reported_at_once() {
        let mistakes = read(&[
            ("OTEL_EXPORTER_OTLP_ENDPOINT", "127.0.0.1:4317"),
            ("OTEL_TRACES_SAMPLER", "traceidratio"),
            ("OTEL_TRACES_SAMPLER_ARG", "all"),
        ]);
        let mistakes = mistakes.unwrap_err();
        assert_eq!(mistakes.len(), 2, "{mistakes:#?}");
        assert!(
            mistakes[0].starts_with("OTEL_EXPORTER_OTLP_ENDPOINT is \"127.0.0.1:4317\"; it must be a URL"),
            "{}",
            mistakes[0]
        );
        let http = read(&[
            ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:4318"),
            ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf"),
        ]);
        let wrong = "OTEL_EXPORTER_OTLP_PROTOCOL is \"http/protobuf\"; it must be grpc";
        assert_eq!(http, Err(vec![wrong.to_owned()]));
    }
}
