//! Runs every query of every panel and rule on a real Prometheus that scrapes the real server under load.

use std::net::SocketAddr;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::process::{CHITCHAT, FREE_PORT, Process, load_generator, run, serve, serve_at, succeed};
use crate::prometheus::Prometheus;
use crate::rules::{alerts, promtool, rules};
use crate::{dashboards, files};

/// Parts of queries that may return nothing, and why.
const MAY_BE_EMPTY: [(&str, &str); 8] = [
    ("ALERTS{", "nothing fires but the watchdog"),
    ("traces_spanmetrics_", "made by Tempo from spans"),
    (
        "changes(process_start_time_seconds",
        "marks starts, and none is in the range",
    ),
    ("unless group by", "marks new versions, and there is none"),
    (
        "-deriv(chitchat_store_available_bytes",
        "free space may not shrink",
    ),
    (
        "rate(chitchat_cluster_order_duration",
        "a server that is alone has no order",
    ),
    ("otelcol_", "the Collector does not run here"),
    ("alertmanager_", "Alertmanager does not run here"),
];

/// How long all queries together may take to return data.
const TIMEOUT: Duration = Duration::from_secs(90);

/// Twenty subscribers in two rooms and twenty messages a second, until dropped.
fn load(server: SocketAddr) -> Process {
    let mut command = Command::new(load_generator());
    command.args([
        "--server",
        &server.to_string(),
        "--rooms",
        "2",
        "--publishers",
        "2",
    ]);
    command.args(["--subscribers", "20", "--rate", "20", "--duration", "1h"]);
    Process::start(&mut command)
}

/// Makes the requests that the load does not make: a join, unary calls, and a rejected message.
fn other_requests(server: SocketAddr) {
    let address = server.to_string();
    let chitchat = |arguments: &[&str]| {
        run(
            Command::new(CHITCHAT)
                .args(arguments)
                .args(["--server", &address]),
            "",
        )
    };
    assert!(
        chitchat(&["send", "--name", "Ada", "Is anybody there?"])
            .status
            .success()
    );
    assert!(chitchat(&["chat", "--name", "Bob"]).status.success());
    assert!(chitchat(&["history", "--limit", "1"]).status.success());
    assert!(
        !chitchat(&["send", "--name", "Ada", &"long".repeat(1_000)])
            .status
            .success()
    );
}

/// The query with its variables replaced as in Grafana, for all instances and a short interval.
fn interpolated(expression: &str) -> String {
    expression
        .replace("$__rate_interval", "10s")
        .replace("$job", "chitchat")
        .replace("$instance", ".+")
        .replace("$memory_limit", "536870912")
}

/// Whether there is a sample that is not NaN.
fn has_data(samples: &[Value]) -> bool {
    samples
        .iter()
        .filter_map(|sample| sample["value"][1].as_str()?.parse::<f64>().ok())
        .any(|value| !value.is_nan())
}

#[test]
fn every_query_of_every_panel_and_rule_returns_data() {
    // With its store on disk, as in the image.
    let data = tempfile::tempdir().unwrap();
    let server = serve_at(FREE_PORT, &["--data-dir", data.path().to_str().unwrap()]);
    let Some(prometheus) = Prometheus::scraping(server.admin) else {
        return;
    };
    let _load = load(server.address);

    let mut wanted = dashboards::expressions();
    wanted.extend(dashboards::variable_expressions());
    for rule in rules() {
        if let Some(name) = rule["record"].as_str() {
            wanted.push((format!("rule {name}"), files::string(&rule, "expr").to_owned()));
            wanted.push((format!("rule {name}, recorded"), name.to_owned()));
        }
    }
    let correlated = files::yaml("deploy/grafana/provisioning/datasources/datasources.yaml");
    for source in files::list(&correlated, "datasources") {
        for query in source["jsonData"]["tracesToMetrics"]["queries"]
            .as_array()
            .into_iter()
            .flatten()
        {
            wanted.push(("from a span".to_owned(), files::string(query, "query").to_owned()));
        }
    }
    // Queries that may return nothing must still be valid.
    for (place, expression) in &wanted {
        prometheus
            .query(&interpolated(expression))
            .unwrap_or_else(|error| panic!("{place}: {expression}: {error}"));
    }
    wanted.retain(|(_, expression)| !MAY_BE_EMPTY.iter().any(|(part, _)| expression.contains(part)));

    let deadline = Instant::now() + TIMEOUT;
    while !wanted.is_empty() {
        other_requests(server.address);
        wanted.retain(|(_, expression)| {
            !prometheus
                .query(&interpolated(expression))
                .is_ok_and(|samples| has_data(&samples))
        });
        assert!(Instant::now() < deadline, "these have no data: {wanted:#?}");
    }

    for alert in alerts() {
        let expression = files::string(&alert, "expr");
        prometheus
            .query(expression)
            .unwrap_or_else(|error| panic!("{}: {error}", alert["alert"]));
    }
    // Prometheus reports every rule as healthy.
    let seen = prometheus.rules();
    assert_eq!(seen.len(), rules().len());
    for rule in &seen {
        assert_eq!(rule["health"], "ok", "{rule}");
    }
    let watchdog = seen
        .iter()
        .find(|rule| rule["name"] == "Watchdog")
        .expect("the watchdog");
    assert_eq!(watchdog["state"], "firing");
}

#[test]
fn promtool_accepts_the_metrics_page() {
    let Some(promtool) = promtool() else { return };
    let server = serve(&[]);
    let answer = server.get("/metrics");
    let (_, page) = answer.split_once("\r\n\r\n").expect("an HTTP answer");
    assert!(page.contains("chitchat_connected_clients"));
    succeed(Command::new(promtool).args(["check", "metrics"]), page);
}
