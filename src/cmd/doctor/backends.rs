//! What each backend says of the message.

use std::time::Duration;

use serde_json::Value;
use tokio::time::{Instant, sleep};

use super::base_url::BaseUrl;
use super::link::Link;

/// How often a backend is asked.
const ASK_EVERY: Duration = Duration::from_millis(500);

/// The series that counts messages.
const SERIES: &str = "chitchat_events_broadcast_total{kind=\"message\"}";

/// Asks until there is something to see, or the time is over.
async fn until<F: Future<Output = Result<String, String>>>(
    name: &'static str,
    wait: Duration,
    remedy: &str,
    mut ask: impl FnMut() -> F,
) -> Link {
    let deadline = Instant::now() + wait;
    loop {
        let missing = match ask().await {
            Ok(seen) => return Link::ok(name, seen),
            Err(missing) => missing,
        };
        if Instant::now() + ASK_EVERY > deadline {
            let waited = humantime::format_duration(wait);
            return Link::broken(name, format!("{missing} (waited {waited})"), remedy);
        }
        sleep(ASK_EVERY).await;
    }
}

/// The answer of a backend that must be JSON.
async fn json(base: &BaseUrl, path: &str, parameters: &[(&str, &str)]) -> Result<Value, String> {
    let answer = base.get(path, parameters).await?;
    match answer.status {
        200 => serde_json::from_str(&answer.body).map_err(|_| format!("{base}{path} answers no JSON")),
        status => Err(format!("{base}{path} answers with status {status}")),
    }
}

/// How many messages a server has broadcast, by its own page of metrics.
pub(super) async fn counted(admin: &BaseUrl) -> Result<f64, String> {
    let answer = admin.get("/metrics", &[]).await?;
    if answer.status != 200 {
        return Err(format!("{admin}/metrics answers with status {}", answer.status));
    }
    let count = answer.body.lines().find_map(|line| line.strip_prefix(SERIES));
    count
        .and_then(|count| count.trim().parse().ok())
        .ok_or_else(|| format!("{admin}/metrics has no {SERIES}"))
}

/// Whether the server's own page counts the message: it stood at `before` before it was sent.
pub(super) async fn admin(admin: &BaseUrl, before: f64, wait: Duration) -> Link {
    let remedy = "look whether --admin is the admin port of the same server as --server";
    until("metrics", wait, remedy, || async {
        let now = counted(admin).await?;
        if now > before {
            Ok(format!("{admin}/metrics counts {now} messages, {before} before"))
        } else {
            Err(format!("{admin}/metrics counts {now} messages, as before"))
        }
    })
    .await
}

/// The first number of what Prometheus answers to a query; none if it has nothing.
async fn query(prometheus: &BaseUrl, query: &str) -> Result<Option<f64>, String> {
    let answer = json(prometheus, "/api/v1/query", &[("query", query)]).await?;
    let result = &answer["data"]["result"];
    // A scalar is a pair itself, a vector has pairs.
    let number = result[0]["value"][1].as_str().or_else(|| result[1].as_str());
    Ok(number.and_then(|number| number.parse().ok()))
}

/// What time it is for Prometheus.
pub(super) async fn time_of(prometheus: &BaseUrl) -> Result<f64, String> {
    let time = query(prometheus, "time()").await?;
    time.ok_or_else(|| format!("{prometheus} does not tell the time: it is no Prometheus"))
}

/// Whether Prometheus has scraped a server since the message was acknowledged, at `acknowledged` by its own clock.
pub(super) async fn prometheus(prometheus: &BaseUrl, acknowledged: f64, wait: Duration) -> Link {
    let remedy = "look at the targets page of Prometheus for the server's admin port, and wait longer than a scrape \
                  interval (--wait)";
    let newest = format!("max(timestamp({SERIES}))");
    until("prometheus", wait, remedy, || async {
        match query(prometheus, &newest).await? {
            Some(scraped) if scraped > acknowledged => {
                let total = query(prometheus, &format!("sum({SERIES})")).await?;
                let total = total.unwrap_or_default();
                Ok(format!(
                    "{prometheus} has scraped {total} messages, {:.1}s after the acknowledgement",
                    scraped - acknowledged
                ))
            }
            Some(_) => Err(format!(
                "{prometheus} has no sample that is newer than the message"
            )),
            None => Err(format!("{prometheus} knows no {SERIES}")),
        }
    })
    .await
}

/// Whether Tempo has the trace, with the server's part of it.
pub(super) async fn tempo(tempo: &BaseUrl, trace_id: &str, wait: Duration) -> Link {
    let remedy = "look at OTEL_EXPORTER_OTLP_ENDPOINT and OTEL_TRACES_SAMPLER of the server, at \
                  chitchat_telemetry_dropped_total on its /metrics, and at the collector's log";
    let path = format!("/api/traces/{trace_id}");
    until("tempo", wait, remedy, || async {
        let trace = json(tempo, &path, &[]).await?;
        let mut names = Vec::new();
        span_names(&trace, &mut names);
        if names.iter().any(|name| name.starts_with("process ")) {
            Ok(format!("{tempo} has trace {trace_id} with {} spans", names.len()))
        } else {
            Err(format!(
                "{tempo} has trace {trace_id} without the server's part: {}",
                names.join(", ")
            ))
        }
    })
    .await
}

/// The names of the spans, wherever the version of Tempo has them: each is an object with a `spanId`.
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

/// Whether Loki has the server's log line of the client that sent the message, in the same trace.
pub(super) async fn loki(loki: &BaseUrl, selector: &str, trace_id: &str, wait: Duration) -> Link {
    let remedy = "look at OTEL_EXPORTER_OTLP_ENDPOINT of the server, at chitchat_telemetry_dropped_total on its \
                  /metrics, at the collector's log, and whether --loki-selector selects the server's lines";
    let query = format!("{selector} | trace_id=\"{trace_id}\"");
    let parameters = [("query", query.as_str()), ("since", "10m"), ("limit", "10")];
    until("loki", wait, remedy, || async {
        let answer = json(loki, "/loki/api/v1/query_range", &parameters).await?;
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
