//! Checks that the telemetry of a message has arrived at each backend.

use std::time::Duration;

use serde_json::Value;
use tokio::time::{Instant, sleep};

use super::link::Link;
use crate::cmd::base_url::BaseUrl;

/// Interval between queries of the same backend.
const POLL_INTERVAL: Duration = Duration::from_millis(500);

/// The series that counts messages.
const SERIES: &str = "chitchat_events_broadcast_total{kind=\"message\"}";

/// Polls a backend until it has the expected data or `wait` has elapsed. `query` returns what it found as a line for users:
/// `Ok` if that is the expected data, `Err` if it is still missing.
async fn poll<F: Future<Output = Result<String, String>>>(
    name: &'static str,
    wait: Duration,
    remedy: &str,
    mut query: impl FnMut() -> F,
) -> Link {
    let deadline = Instant::now() + wait;
    loop {
        let missing = match query().await {
            Ok(seen) => return Link::ok(name, seen),
            Err(missing) => missing,
        };
        if Instant::now() + POLL_INTERVAL > deadline {
            let waited = humantime::format_duration(wait);
            return Link::broken(name, format!("{missing} (waited {waited})"), remedy);
        }
        sleep(POLL_INTERVAL).await;
    }
}

/// Reads from a server's metrics how many messages it has broadcast. The error is a line for users.
pub(super) async fn message_count(admin: &BaseUrl) -> Result<f64, String> {
    let answer = admin.get("/metrics", &[]).await?;
    if answer.status != 200 {
        return Err(format!("{admin}/metrics answers with status {}", answer.status));
    }
    let count = answer.body.lines().find_map(|line| line.strip_prefix(SERIES));
    count
        .and_then(|count| count.trim().parse().ok())
        .ok_or_else(|| format!("{admin}/metrics has no {SERIES}"))
}

/// Checks that the server's message count is greater than `before`, the count before the message was sent.
pub(super) async fn admin(admin: &BaseUrl, before: f64, wait: Duration) -> Link {
    let remedy = "check that --admin is the admin port of the same server as --server";
    poll("metrics", wait, remedy, || async {
        let now = message_count(admin).await?;
        if now > before {
            Ok(format!("{admin}/metrics counts {now} messages, {before} before"))
        } else {
            Err(format!("{admin}/metrics counts {now} messages, as before"))
        }
    })
    .await
}

/// The first number of the result of a PromQL query; `None` if the result is empty.
async fn query(prometheus: &BaseUrl, query: &str) -> Result<Option<f64>, String> {
    let answer = prometheus.get_json("/api/v1/query", &[("query", query)]).await?;
    let result = &answer["data"]["result"];
    // A scalar is a pair, a vector is a list of objects with pairs.
    let number = result[0]["value"][1].as_str().or_else(|| result[1].as_str());
    Ok(number.and_then(|number| number.parse().ok()))
}

/// The current time of the Prometheus server, in seconds since the epoch.
pub(super) async fn server_time(prometheus: &BaseUrl) -> Result<f64, String> {
    let time = query(prometheus, "time()").await?;
    time.ok_or_else(|| format!("{prometheus} does not answer the query time(): it is not Prometheus"))
}

/// Checks that Prometheus has scraped a server since the message was acknowledged. `acknowledged` is the time of the
/// acknowledgement by Prometheus' clock, in seconds since the epoch.
pub(super) async fn prometheus(prometheus: &BaseUrl, acknowledged: f64, wait: Duration) -> Link {
    let remedy = "check the server's admin port on the targets page of Prometheus, and wait longer than a scrape interval \
                  (--wait)";
    let newest = format!("max(timestamp({SERIES}))");
    poll("prometheus", wait, remedy, || async {
        match query(prometheus, &newest).await? {
            Some(scraped) if scraped > acknowledged => {
                let total = query(prometheus, &format!("sum({SERIES})")).await?;
                let total = total.unwrap_or_default();
                Ok(format!(
                    "{prometheus} has scraped {total} messages, {:.1}s after the acknowledgement",
                    scraped - acknowledged
                ))
            }
            Some(_) => Err(format!("{prometheus} has no sample newer than the message")),
            None => Err(format!("{prometheus} has no series {SERIES}")),
        }
    })
    .await
}

/// Checks that Tempo has the trace and that it contains the server's spans.
pub(super) async fn tempo(tempo: &BaseUrl, trace_id: &str, wait: Duration) -> Link {
    let remedy = "check OTEL_EXPORTER_OTLP_ENDPOINT and OTEL_TRACES_SAMPLER of the server, \
                  chitchat_telemetry_dropped_total on its /metrics, and the collector's log";
    let path = format!("/api/traces/{trace_id}");
    poll("tempo", wait, remedy, || async {
        let trace = tempo.get_json(&path, &[]).await?;
        let mut names = Vec::new();
        span_names(&trace, &mut names);
        if names.iter().any(|name| name.starts_with("process ")) {
            Ok(format!("{tempo} has trace {trace_id} with {} spans", names.len()))
        } else {
            Err(format!(
                "{tempo} has trace {trace_id} without the server's spans: {}",
                names.join(", ")
            ))
        }
    })
    .await
}

/// Collects the names of the spans: the objects with a `spanId`, whose place in the response depends on Tempo's version.
fn span_names(value: &Value, names: &mut Vec<String>) {
    match value {
        Value::Object(object) => {
            if let (Some(_), Some(Value::String(name))) = (object.get("spanId"), object.get("name")) {
                names.push(name.clone());
            }
            object.values().for_each(|value| span_names(value, names));
        }
        Value::Array(values) => values.iter().for_each(|value| span_names(value, names)),
        _ => {}
    }
}

/// Checks that Loki has a log line of the server with the message's trace id.
pub(super) async fn loki(loki: &BaseUrl, selector: &str, trace_id: &str, wait: Duration) -> Link {
    let remedy = "check OTEL_EXPORTER_OTLP_ENDPOINT of the server, chitchat_telemetry_dropped_total on its /metrics, the \
                  collector's log, and that --loki-selector selects the server's lines";
    let query = format!("{selector} | trace_id=\"{trace_id}\"");
    let parameters = [("query", query.as_str()), ("since", "10m"), ("limit", "10")];
    poll("loki", wait, remedy, || async {
        let answer = loki.get_json("/loki/api/v1/query_range", &parameters).await?;
        let streams = answer["data"]["result"].as_array().map(Vec::as_slice);
        let lines = streams.unwrap_or_default().iter();
        let lines: usize = lines
            .map(|stream| stream["values"].as_array().map_or(0, Vec::len))
            .sum();
        match lines {
            0 => Err(format!("{loki} has no line with trace_id {trace_id}")),
            1 => Ok(format!("{loki} has a line of trace {trace_id}")),
            lines => Ok(format!("{loki} has {lines} lines of trace {trace_id}")),
        }
    })
    .await
}
