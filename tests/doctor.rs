//! `chitchat doctor` against a real server that exports to an OTLP collector. Tempo and Loki are fakes: they serve the HTTP
//! interfaces of the real programs from what the collector has received.
// Helpers of tests panic as tests do.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

mod collector;
mod process;

use std::collections::HashMap;
use std::fs;
use std::net::SocketAddr;
use std::process::{Command, Output};
use std::sync::Arc;

use axum::Router;
use axum::extract::{Path, RawQuery};
use axum::http::StatusCode;
use axum::routing::get;
use collector::Collector;
use process::{
    CHITCHAT, FREE_PORT, Process, external_program, percent_decoded, run, serve_with, text, unused_address,
};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::runtime::Runtime;

/// A fake Tempo and Loki over a collector. Stops when dropped.
struct Backends {
    url: String,
    _runtime: Runtime,
}

impl Backends {
    fn over(collector: Arc<Collector>) -> Self {
        let logs = Arc::clone(&collector);
        let trace = move |Path(id): Path<String>| async move {
            let spans: Vec<Value> = collector
                .all_spans()
                .iter()
                .filter(|span| span.trace == id)
                .map(|span| json!({ "traceId": id, "spanId": span.id, "name": span.name }))
                .collect();
            if spans.is_empty() {
                return (StatusCode::NOT_FOUND, "trace not found".to_owned());
            }
            let batches = json!({ "batches": [{ "scopeSpans": [{ "spans": spans }] }] });
            (StatusCode::OK, batches.to_string())
        };
        let lines = move |RawQuery(parameters): RawQuery| async move {
            let query = parameter(&parameters.unwrap_or_default(), "query");
            let Some((selector, id)) = query.split_once(" | trace_id=") else {
                return (StatusCode::BAD_REQUEST, "parse error".to_owned());
            };
            let records = logs.all_records();
            let lines: Vec<Value> = records
                .iter()
                .filter(|record| format!("{:?}", record.trace) == id)
                .filter(|record| {
                    selector == format!("{{service_name={:?}}}", record.resource["service.name"])
                })
                .map(|record| json!(["1", record.body]))
                .collect();
            let streams = if lines.is_empty() {
                json!([])
            } else {
                json!([{ "stream": {}, "values": lines }])
            };
            let response =
                json!({ "status": "success", "data": { "resultType": "streams", "result": streams } });
            (StatusCode::OK, response.to_string())
        };
        let router = Router::new()
            .route("/api/traces/{id}", get(trace))
            .route("/loki/api/v1/query_range", get(lines));
        let runtime = Runtime::new().unwrap();
        let listener = runtime
            .block_on(tokio::net::TcpListener::bind(FREE_PORT))
            .unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        runtime.spawn(async move { axum::serve(listener, router).await });
        Self {
            url,
            _runtime: runtime,
        }
    }
}

/// The value of a parameter of a query string, with its percent-encoding decoded.
fn parameter(query: &str, name: &str) -> String {
    let raw = query
        .split('&')
        .find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='))
        .unwrap_or_default();
    percent_decoded(raw)
}

/// A real Prometheus that scrapes an admin port, its data, and its URL.
fn prometheus(admin: SocketAddr) -> Option<(Process, TempDir, String)> {
    let program = external_program("CHITCHAT_TEST_PROMETHEUS", "prometheus", &["--version"])?;
    let address = unused_address();
    let directory = tempfile::tempdir().unwrap();
    let config_file = directory.path().join("prometheus.yml");
    let config = format!(
        "global: {{ scrape_interval: 1s }}\nscrape_configs:\n  - job_name: chitchat\n    static_configs:\n      - targets: \
         [\"{admin}\"]\n"
    );
    fs::write(&config_file, config).unwrap();
    let mut command = Command::new(program);
    command.args([
        format!("--config.file={}", config_file.display()),
        format!("--storage.tsdb.path={}", directory.path().join("data").display()),
        format!("--web.listen-address={address}"),
    ]);
    let process = Process::start(&mut command);
    process.stderr_line("Server is ready to receive web requests");
    Some((process, directory, format!("http://{address}")))
}

fn doctor(server: SocketAddr, arguments: &[&str]) -> Output {
    let mut command = Command::new(CHITCHAT);
    command
        .arg("doctor")
        .args(arguments)
        .env("CHITCHAT_SERVER", server.to_string());
    run(&mut command, "")
}

/// The links of the chain by name, from the output of `--json`.
fn links(output: &Output) -> HashMap<String, Value> {
    let lines = text(&output.stdout);
    lines
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap())
        .map(|link| (link["link"].as_str().unwrap().to_owned(), link))
        .collect()
}

#[test]
fn every_link_of_an_intact_chain_is_ok() {
    let collector = Arc::new(Collector::start());
    let exporting = [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", collector.endpoint.as_str()),
        ("OTEL_BSP_SCHEDULE_DELAY", "50"),
        ("OTEL_BLRP_SCHEDULE_DELAY", "50"),
        // The doctor's message is traced whatever the ratio is.
        ("OTEL_TRACES_SAMPLER", "parentbased_traceidratio"),
        ("OTEL_TRACES_SAMPLER_ARG", "0.001"),
    ];
    let server = serve_with(&[], &exporting);
    let backends = Backends::over(Arc::clone(&collector));
    let prometheus = prometheus(server.admin);
    let admin = format!("http://{}", server.admin);
    let mut arguments = vec![
        "--json",
        "--admin",
        &admin,
        "--tempo",
        &backends.url,
        "--loki",
        &backends.url,
    ];
    if let Some((_, _, url)) = &prometheus {
        arguments.extend(["--prometheus", url]);
    }
    let output = doctor(server.address, &arguments);
    assert!(
        output.status.success(),
        "{}\n{}",
        text(&output.stdout),
        text(&output.stderr)
    );
    let links = links(&output);
    for name in ["server", "message", "metrics", "tempo", "loki"] {
        assert_eq!(links[name]["state"], "ok", "{}", links[name]);
    }
    let expected = if prometheus.is_some() { "ok" } else { "skipped" };
    assert_eq!(links["prometheus"]["state"], expected, "{}", links["prometheus"]);
    // A join, and a message with its append and broadcast; no other span is in the trace.
    let detail = links["tempo"]["detail"].as_str().unwrap();
    assert!(detail.ends_with("with 4 spans"), "{detail}");
}

#[test]
fn a_broken_link_is_named_with_a_remedy() {
    // This server exports nothing.
    let server = serve_with(&[], &[]);
    let backends = Backends::over(Arc::new(Collector::start()));
    let unused = format!("http://{}", unused_address());
    let arguments = [
        "--wait",
        "1s",
        "--tempo",
        &backends.url,
        "--loki",
        &backends.url,
        "--prometheus",
        &unused,
    ];
    let output = doctor(server.address, &[&arguments[..], &["--json"]].concat());
    assert_eq!(output.status.code(), Some(69));
    assert_eq!(
        text(&output.stderr),
        "chitchat: broken: prometheus, tempo, loki\n"
    );
    let links = links(&output);
    assert_eq!(
        (&links["message"]["state"], &links["metrics"]["state"]),
        (&json!("ok"), &json!("skipped"))
    );
    for (name, part) in [
        ("tempo", "OTEL_TRACES_SAMPLER"),
        ("loki", "--loki-selector"),
        ("prometheus", "runs there"),
    ] {
        assert_eq!(links[name]["state"], "broken", "{}", links[name]);
        assert!(
            links[name]["remedy"].as_str().unwrap().contains(part),
            "{}",
            links[name]
        );
    }
    assert!(
        links["tempo"]["detail"].as_str().unwrap().contains("status 404"),
        "{}",
        links["tempo"]
    );

    let output = doctor(server.address, &arguments);
    let lines = text(&output.stdout);
    assert!(lines.starts_with("ok       server      "), "{lines}");
    assert!(
        lines.contains("\nskipped  metrics     no --admin URL given\nbroken   prometheus  "),
        "{lines}"
    );
}

#[test]
fn a_rejected_message_is_a_broken_link() {
    let server = serve_with(&["--max-message-chars", "10"], &[]);
    let output = doctor(server.address, &[]);
    assert_eq!(output.status.code(), Some(69));
    assert_eq!(text(&output.stderr), "chitchat: broken: message\n");
    let lines = text(&output.stdout);
    assert!(
        lines.contains("\nbroken   message     rejected with NOTICE_CODE_MESSAGE_TOO_LONG: "),
        "{lines}"
    );
}

#[test]
fn without_a_server_no_other_link_is_checked() {
    let unused = unused_address();
    let output = doctor(unused, &["--tempo", "http://127.0.0.1:1"]);
    assert_eq!(output.status.code(), Some(69));
    let lines = text(&output.stdout);
    assert!(
        lines.starts_with("broken   server      ") && lines.contains("chitchat serve"),
        "{lines}"
    );
    assert_eq!(lines.lines().count(), 2, "{lines}");
    assert_eq!(text(&output.stderr), "chitchat: broken: server\n");

    let output = doctor(unused, &["--tempo", "https://tempo"]);
    assert_eq!(output.status.code(), Some(64));
}
