//! `chitchat doctor` against a real server that exports to a real OTLP receiver. Tempo and Loki have no program that runs
//! here: what stands in for them speaks their HTTP interfaces and answers with what the receiver has got.
// Helpers of tests panic as tests do.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

mod collector;
mod outside;

use std::collections::HashMap;
use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::process::{Command, Output};
use std::sync::Arc;

use axum::Router;
use axum::extract::{Path, RawQuery};
use axum::http::StatusCode;
use axum::routing::get;
use collector::Collector;
use outside::{CHITCHAT, Running, run, serve_with, stranger, text};
use serde_json::{Value, json};
use tokio::runtime::Runtime;

/// Tempo and Loki over what a collector has got. Ends when dropped.
struct Backends {
    url: String,
    _runtime: Runtime,
}

impl Backends {
    fn over(collector: Arc<Collector>) -> Self {
        let of_logs = Arc::clone(&collector);
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
            let records = of_logs.all_records();
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
            let answer =
                json!({ "status": "success", "data": { "resultType": "streams", "result": streams } });
            (StatusCode::OK, answer.to_string())
        };
        let router = Router::new()
            .route("/api/traces/{id}", get(trace))
            .route("/loki/api/v1/query_range", get(lines));
        let runtime = Runtime::new().unwrap();
        let free = SocketAddr::from(([127, 0, 0, 1], 0));
        let listener = runtime.block_on(tokio::net::TcpListener::bind(free)).unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        runtime.spawn(async move { axum::serve(listener, router).await });
        Self {
            url,
            _runtime: runtime,
        }
    }
}

/// A parameter of a query, as it was meant.
fn parameter(query: &str, name: &str) -> String {
    let raw = query
        .split('&')
        .find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='))
        .unwrap_or_default();
    let mut parts = raw.split('%');
    let mut bytes = parts.next().unwrap_or_default().as_bytes().to_vec();
    for part in parts {
        bytes.push(u8::from_str_radix(&part[..2], 16).unwrap());
        bytes.extend_from_slice(&part.as_bytes()[2..]);
    }
    String::from_utf8(bytes).unwrap()
}

/// A real Prometheus that scrapes this admin port, and its URL; none where there is no such program.
fn prometheus(admin: SocketAddr) -> Option<(Running, String)> {
    let program = stranger("CHITCHAT_TEST_PROMETHEUS", "prometheus", &["--version"])?;
    let port = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let folder = std::env::temp_dir().join(format!("chitchat-doctor-{}-{port}", std::process::id()));
    fs::create_dir_all(&folder).unwrap();
    let config = format!(
        "global: {{ scrape_interval: 1s }}\nscrape_configs:\n  - job_name: chitchat\n    static_configs:\n      - targets: \
         [\"{admin}\"]\n"
    );
    fs::write(folder.join("prometheus.yml"), config).unwrap();
    let mut command = Command::new(program);
    command.args([
        format!("--config.file={}", folder.join("prometheus.yml").display()),
        format!("--storage.tsdb.path={}", folder.join("data").display()),
        format!("--web.listen-address=127.0.0.1:{port}"),
    ]);
    let mut running = Running::start(&mut command);
    running.error_line("Server is ready to receive web requests");
    Some((running, format!("http://127.0.0.1:{port}")))
}

fn doctor(server: SocketAddr, arguments: &[&str]) -> Output {
    let mut command = Command::new(CHITCHAT);
    command
        .arg("doctor")
        .args(arguments)
        .env("CHITCHAT_SERVER", server.to_string());
    run(&mut command, "")
}

/// The links by name, from `--json`.
fn links(output: &Output) -> HashMap<String, Value> {
    let lines = text(&output.stdout);
    lines
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap())
        .map(|link| (link["link"].as_str().unwrap().to_owned(), link))
        .collect()
}

#[test]
fn a_chain_that_holds_is_seen_to_hold_link_by_link() {
    let collector = Arc::new(Collector::start());
    let exporting = [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", collector.endpoint.as_str()),
        ("OTEL_BSP_SCHEDULE_DELAY", "50"),
        ("OTEL_BLRP_SCHEDULE_DELAY", "50"),
        // The doctor's own message is traced all the same.
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
    if let Some((_, url)) = &prometheus {
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
    // A join, a message with its two parts; nothing else was worth a trace.
    let detail = links["tempo"]["detail"].as_str().unwrap();
    assert!(detail.ends_with("with 4 spans"), "{detail}");
}

#[test]
fn a_broken_link_is_named_with_what_to_do() {
    // It exports nothing, so nothing arrives.
    let server = serve_with(&[], &[]);
    let backends = Backends::over(Arc::new(Collector::start()));
    let gone = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let nobody = format!("http://{gone}");
    let arguments = [
        "--wait",
        "1s",
        "--tempo",
        &backends.url,
        "--loki",
        &backends.url,
        "--prometheus",
        &nobody,
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
fn without_a_server_there_is_nothing_else_to_ask() {
    let gone = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let output = doctor(gone, &["--tempo", "http://127.0.0.1:1"]);
    assert_eq!(output.status.code(), Some(69));
    let lines = text(&output.stdout);
    assert!(
        lines.starts_with("broken   server      ") && lines.contains("chitchat serve"),
        "{lines}"
    );
    assert_eq!(lines.lines().count(), 2, "{lines}");
    assert_eq!(text(&output.stderr), "chitchat: broken: server\n");

    let output = doctor(gone, &["--tempo", "https://tempo"]);
    assert_eq!(output.status.code(), Some(64));
}
