//! The Collector with the deployed configuration.

use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::process::Command;

use serde_json::json;

use crate::files;
use crate::process::{
    Process, external_program, http_get, http_request, succeed, unused_address, wait_until,
};
use crate::rules::alerts;

const CONFIG: &str = "deploy/otel-collector/config.yaml";

fn otelcol() -> Option<String> {
    external_program("CHITCHAT_TEST_OTELCOL", "otelcol", &["--version"])
}

#[test]
fn the_collector_accepts_its_configuration() {
    let Some(collector) = otelcol() else { return };
    let mut validate = Command::new(collector);
    validate.arg("validate").arg("--config").arg(files::path(CONFIG));
    succeed(&mut validate, "");
}

fn post(address: SocketAddr, path: &str, body: &str) -> Option<String> {
    let length = body.len();
    http_request(
        address,
        &format!(
            "POST {path} HTTP/1.0\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
        ),
    )
}

#[test]
fn the_collector_counts_losses_under_the_names_that_the_alerts_select() {
    let Some(collector) = otelcol() else { return };
    // Tempo and Loki accept connections and never answer.
    let backend = TcpListener::bind("127.0.0.1:0").unwrap();
    let silent = backend.local_addr().unwrap();
    let [grpc, http, health, metrics] = [(); 4].map(|()| unused_address());
    let mut config = files::yaml(CONFIG);
    config["receivers"]["otlp"]["protocols"] =
        json!({"grpc": {"endpoint": grpc.to_string()}, "http": {"endpoint": http.to_string()}});
    config["processors"]["batch"]["timeout"] = "10ms".into();
    for (name, exporter) in config["exporters"].as_object_mut().expect("exporters") {
        let scheme = if name.starts_with("otlp_http/") {
            "http://"
        } else {
            ""
        };
        exporter["endpoint"] = format!("{scheme}{silent}").into();
        exporter["timeout"] = "500ms".into();
        exporter["retry_on_failure"] = json!({"enabled": false});
        exporter["sending_queue"] = json!({"num_consumers": 1, "queue_size": 1});
    }
    config["extensions"]["health_check"]["endpoint"] = health.to_string().into();
    config["service"]["telemetry"]["metrics"]["readers"][0]["pull"]["exporter"]["prometheus"] =
        json!({"host": "127.0.0.1", "port": metrics.port()});
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("config.yaml");
    // JSON is YAML.
    fs::write(&file, config.to_string()).unwrap();
    let mut command = Command::new(collector);
    let _running = Process::start(command.arg("--config").arg(&file));

    let mut wanted: Vec<String> = alerts()
        .iter()
        .flat_map(|alert| {
            let expression = files::string(alert, "expr").to_owned();
            let names: Vec<String> = expression
                .split(|c: char| !(c.is_ascii_lowercase() || c == '_'))
                .filter(|word| word.starts_with("otelcol_"))
                .map(|name| format!("\n{name}{{"))
                .collect();
            names
        })
        .collect();
    assert!(wanted.len() >= 6, "{wanted:?}");
    let span = r#"{"resourceSpans":[{"scopeSpans":[{"spans":[{"traceId":"5b8efff798038103d269b633813fc60c","spanId":"eee19b7ec3c1b174","name":"send","kind":4,"startTimeUnixNano":"1","endTimeUnixNano":"2"}]}]}]}"#;
    let record = r#"{"resourceLogs":[{"scopeLogs":[{"logRecords":[{"timeUnixNano":"1","body":{"stringValue":"x"}}]}]}]}"#;
    wait_until("the Collector counts every kind of loss", || {
        post(http, "/v1/traces", span)?;
        post(http, "/v1/logs", record)?;
        let page = http_get(metrics, "/metrics")?;
        wanted.retain(|name| !page.contains(name));
        wanted.is_empty().then_some(())
    });
}
