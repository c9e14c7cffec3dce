//! Checks that the metrics and labels of a PromQL expression exist.

use std::collections::BTreeSet;

use chitchat::telemetry::{CATALOG, Definition, Kind};

use crate::files;

/// A selector: a metric, and the labels in its matchers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Selector {
    pub metric: String,
    pub labels: Vec<String>,
}

/// Metrics of other programs, with the labels in use.
const OTHERS: [(&str, &[&str]); 12] = [
    // Prometheus itself.
    ("up", &["job", "instance"]),
    ("scrape_duration_seconds", &["job", "instance"]),
    (
        "ALERTS",
        &["alertname", "alertstate", "severity", "instance", "slo"],
    ),
    // The Collector 0.160, without a type suffix.
    ("otelcol_exporter_send_failed_spans", COLLECTOR),
    ("otelcol_exporter_send_failed_log_records", COLLECTOR),
    ("otelcol_exporter_enqueue_failed_spans", COLLECTOR),
    ("otelcol_exporter_enqueue_failed_log_records", COLLECTOR),
    ("otelcol_receiver_refused_spans", COLLECTOR),
    ("otelcol_receiver_refused_log_records", COLLECTOR),
    (
        "alertmanager_notifications_failed_total",
        &["job", "instance", "integration", "reason"],
    ),
    // Tempo's metrics generator.
    (
        "traces_spanmetrics_latency_bucket",
        &["service", "span_name", "le"],
    ),
    ("traces_service_graph_request_total", &["client", "server"]),
];

const COLLECTOR: &[&str] = &["job", "instance", "exporter", "receiver"];

/// Keywords of PromQL.
const WORDS: [&str; 12] = [
    "and",
    "or",
    "unless",
    "by",
    "on",
    "without",
    "ignoring",
    "group_left",
    "group_right",
    "bool",
    "offset",
    "inf",
];

/// The selectors of an expression. Labels in `by (…)` and the like are skipped.
pub fn selectors(expression: &str) -> Vec<Selector> {
    let mut rest = expression;
    let mut found: Vec<Selector> = Vec::new();
    let mut last_word = "";
    while let Some(first) = rest.chars().next() {
        let word_end = rest
            .find(|c: char| !(c.is_ascii_alphanumeric() || c == '_' || c == ':'))
            .unwrap_or(rest.len());
        if word_end > 0 {
            let word = &rest[..word_end];
            rest = rest[word_end..].trim_start();
            let is_name = !first.is_ascii_digit() && !WORDS.contains(&word);
            // Functions and aggregations: `sum(…)`, `sum by (…) (…)`.
            let is_function = ["(", "by ", "by(", "without"]
                .iter()
                .any(|next| rest.starts_with(next));
            if is_name && !is_function {
                found.push(Selector {
                    metric: word.to_owned(),
                    labels: Vec::new(),
                });
            }
            last_word = word;
            continue;
        }
        let skipped = match first {
            '{' => {
                let (inside, after) = until_brace(&rest[1..]);
                if let Some(selector) = found.last_mut() {
                    selector.labels = matched(inside);
                }
                after
            }
            '[' => rest.split_once(']').expect("a range ends").1,
            '(' if ["by", "on", "without", "ignoring", "group_left", "group_right"].contains(&last_word) => {
                rest.split_once(')').expect("a list of labels ends").1
            }
            // A dashboard variable.
            '$' => rest[1..].trim_start_matches(|c: char| c.is_ascii_alphanumeric() || c == '_'),
            '"' => &rest[1 + rest[1..].find('"').expect("a text ends") + 1..],
            _ => &rest[first.len_utf8()..],
        };
        last_word = "";
        rest = skipped.trim_start();
    }
    found
}

/// Splits at the closing brace, which is not within quotes.
fn until_brace(text: &str) -> (&str, &str) {
    let mut in_text = false;
    for (at, c) in text.char_indices() {
        match c {
            '"' => in_text = !in_text,
            '}' if !in_text => return (&text[..at], &text[at + 1..]),
            _ => {}
        }
    }
    panic!("no brace ends {text}")
}

/// The labels of matchers: what precedes each `=`, `!=`, `=~`, `!~`.
fn matched(matchers: &str) -> Vec<String> {
    matchers
        .split('"')
        .step_by(2)
        .filter_map(|part| {
            let label = part.trim_matches(|c: char| " ,=!~".contains(c));
            (!label.is_empty()).then(|| label.to_owned())
        })
        .collect()
}

/// The metrics that the recording rules produce.
pub fn recorded() -> BTreeSet<String> {
    let rules = files::yaml("deploy/prometheus/rules/recording.yml");
    files::list(&rules, "groups")
        .iter()
        .flat_map(|group| files::list(group, "rules"))
        .map(|rule| files::string(rule, "record").to_owned())
        .collect()
}

/// The metric that the server exports under this name.
fn definition(metric: &str) -> Option<&'static Definition> {
    CATALOG.iter().find(|definition| {
        let name = definition.name;
        match definition.kind {
            Kind::Histogram => metric
                .strip_prefix(name)
                .is_some_and(|suffix| ["_bucket", "_sum", "_count"].contains(&suffix)),
            Kind::Counter | Kind::Gauge => metric == name,
        }
    })
}

/// Panics if the expression selects a metric or label that nothing exports.
pub fn check(expression: &str, place: &str) {
    let recorded = recorded();
    let selectors = selectors(expression);
    for Selector { metric, labels } in selectors {
        let known: Vec<&str> = if recorded.contains(&metric) {
            vec!["job", "slo"]
        } else if let Some((_, labels)) = OTHERS.iter().find(|(name, _)| *name == metric) {
            labels.to_vec()
        } else if let Some(definition) = definition(&metric) {
            [definition.labels, &["job", "instance", "le"]].concat()
        } else {
            panic!("{place}: nothing exports {metric}");
        };
        for label in labels {
            assert!(
                known.contains(&label.as_str()),
                "{place}: {metric} has no label {label}"
            );
        }
    }
}

#[test]
fn the_parser_finds_metrics_and_labels() {
    let named = |expression: &str| -> Vec<(String, Vec<String>)> {
        selectors(expression)
            .into_iter()
            .map(|Selector { metric, labels }| (metric, labels))
            .collect()
    };
    let selector = |metric: &str, labels: &[&str]| {
        (
            metric.to_owned(),
            labels.iter().map(|&label| label.to_owned()).collect::<Vec<_>>(),
        )
    };
    assert_eq!(
        named("histogram_quantile(0.99, sum by (job, le) (rate(a_bucket{job=\"x}\", le!~\"b\"}[5m]))) > 5e3"),
        [selector("a_bucket", &["job", "le"])]
    );
    assert_eq!(
        named("a:b:rate1h{slo=\"x\"} / on (job, slo) group_left () c and up == 0 or absent(d)"),
        [
            selector("a:b:rate1h", &["slo"]),
            selector("c", &[]),
            selector("up", &[]),
            selector("d", &[])
        ]
    );
}
