//! The real server under load, scraped by a real Prometheus: every query of every panel and rule is asked.

use std::net::SocketAddr;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::process::{CHITCHAT, Process, run, succeed};
use crate::prometheus::{Folder, Prometheus};
use crate::rules::{alerts, promtool, rules};
use crate::{dashboards, files};

/// What may show nothing although all is well, and why.
const MAY_BE_EMPTY: [(&str, &str); 7] = [
    ("ALERTS{", "nothing fires but the watchdog"),
    ("traces_spanmetrics_", "made by Tempo from spans"),
    (
        "changes(process_start_time_seconds",
        "marks starts, and none is within the time shown",
    ),
    ("unless group by", "marks new versions, and there is none"),
    (
        "-deriv(chitchat_store_available_bytes",
        "free space may not shrink",
    ),
    ("otelcol_", "the Collector does not run here"),
    ("alertmanager_", "Alertmanager does not run here"),
];

/// How long everything may take to have data: many times what it takes.
const PATIENCE: Duration = Duration::from_secs(90);

struct Server {
    _running: Process,
    address: SocketAddr,
    admin: SocketAddr,
    _data: Folder,
}

/// A server that syncs to a disk, as the one in the image.
fn serve() -> Server {
    let data = Folder::new("observed");
    let mut command = Command::new(CHITCHAT);
    command
        .args([
            "serve",
            "--listen",
            "127.0.0.1:0",
            "--admin",
            "127.0.0.1:0",
            "--data-dir",
        ])
        .arg(&data.0);
    let running = Process::start(&mut command);
    let line = running.stderr_line("chitchat: listening on ");
    let mut addresses = line.split_whitespace().filter_map(|word| word.parse().ok());
    Server {
        address: addresses.next().expect("an address"),
        admin: addresses.next().expect("another"),
        _running: running,
        _data: data,
    }
}

/// Twenty readers in two rooms, twenty messages a second, until dropped.
fn load(server: SocketAddr) -> Process {
    let mut command = Command::new(CHITCHAT);
    command.args([
        "bench",
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

/// One of everything that a bench does not do after its start: a join, unary calls, and something to reject.
fn odds_and_ends(server: SocketAddr) {
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

/// As Grafana would ask it, for all instances and a short time.
fn asked(expression: &str) -> String {
    expression
        .replace("$__rate_interval", "10s")
        .replace("$job", "chitchat")
        .replace("$instance", ".+")
        .replace("$memory_limit", "536870912")
}

/// Whether there is a number in it that is one.
fn has_data(samples: &[Value]) -> bool {
    samples
        .iter()
        .filter_map(|sample| sample["value"][1].as_str()?.parse::<f64>().ok())
        .any(|value| !value.is_nan())
}

#[test]
fn every_panel_and_every_rule_gets_its_data() {
    let server = serve();
    let Some(prometheus) = Prometheus::watching(server.admin) else {
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
    // What is allowed to be empty must be without error all the same.
    for (place, expression) in &wanted {
        prometheus
            .query(&asked(expression))
            .unwrap_or_else(|error| panic!("{place}: {expression}: {error}"));
    }
    wanted.retain(|(_, expression)| !MAY_BE_EMPTY.iter().any(|(part, _)| expression.contains(part)));

    let deadline = Instant::now() + PATIENCE;
    while !wanted.is_empty() {
        odds_and_ends(server.address);
        wanted.retain(|(_, expression)| {
            !prometheus
                .query(&asked(expression))
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
    // And so says Prometheus itself, of each rule.
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
fn promtool_finds_nothing_wrong_with_the_metrics_page() {
    let Some(promtool) = promtool() else { return };
    let server = crate::process::serve(&[]);
    let answer = server.get("/metrics");
    let (_, page) = answer.split_once("\r\n\r\n").expect("an HTTP answer");
    assert!(page.contains("chitchat_connected_clients"));
    succeed(Command::new(promtool).args(["check", "metrics"]), page);
}
