//! The dashboards are complete, and query metrics, logs and traces that exist.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use crate::process::percent_decoded;
use crate::{files, metric_names, runbook};

/// Grafana's units in use. Grafana shows a misspelled one as it is.
const UNITS: [&str; 10] = [
    "short",
    "none",
    "percentunit",
    "s",
    "bytes",
    "Bps",
    "mps",
    "eps",
    "reqps",
    "ops",
];

pub const UIDS: [&str; 4] = [
    "chitchat-overview",
    "chitchat-saturation",
    "chitchat-causality",
    "chitchat-cluster",
];

pub fn all() -> Vec<(String, Value)> {
    files::names("dashboards", ".json")
        .into_iter()
        .map(|name| (name.clone(), files::json(&format!("dashboards/{name}"))))
        .collect()
}

/// All panels except rows.
pub fn panels(dashboard: &Value) -> Vec<&Value> {
    let panels: Vec<&Value> = files::list(dashboard, "panels")
        .iter()
        .filter(|panel| panel["type"] != "row")
        .collect();
    assert!(!panels.is_empty(), "{dashboard}");
    panels
}

/// Every PromQL expression of panels and annotations, with its place.
pub fn expressions() -> Vec<(String, String)> {
    let mut found = Vec::new();
    for (name, dashboard) in all() {
        for panel in panels(&dashboard) {
            let place = format!("{name}: {}", files::string(panel, "title"));
            for target in files::list(panel, "targets") {
                if target["datasource"]["type"] == "prometheus" {
                    found.push((place.clone(), files::string(target, "expr").to_owned()));
                }
            }
        }
        for annotation in files::list(&dashboard["annotations"], "list") {
            found.push((
                format!("{name}: annotation"),
                files::string(annotation, "expr").to_owned(),
            ));
        }
    }
    found
}

/// The queries of variables, as PromQL.
pub fn variable_expressions() -> Vec<(String, String)> {
    let mut found = Vec::new();
    for (name, dashboard) in all() {
        for variable in files::list(&dashboard["templating"], "list") {
            if variable["type"] == "query" {
                let query = files::string(&variable["query"], "query");
                let inside = query
                    .strip_prefix("label_values(")
                    .and_then(|rest| rest.strip_suffix(')'));
                let (selector, label) = inside
                    .and_then(|inside| inside.rsplit_once(','))
                    .expect("label_values");
                found.push((
                    format!("{name}: ${}", files::string(variable, "name")),
                    format!("group by ({}) ({selector})", label.trim()),
                ));
            }
        }
    }
    found
}

#[test]
fn each_dashboard_has_its_uid_and_can_be_imported_anywhere() {
    let mut uids = BTreeSet::new();
    for (name, dashboard) in all() {
        let uid = files::string(&dashboard, "uid").to_owned();
        assert_eq!(format!("{uid}.json"), format!("chitchat-{name}"));
        uids.insert(uid);
        assert!(
            !files::string(&dashboard, "title").is_empty()
                && !files::string(&dashboard, "description").is_empty()
        );
        assert!(
            dashboard["schemaVersion"]
                .as_u64()
                .is_some_and(|version| version >= 39),
            "{name}"
        );
        assert!(
            dashboard["id"].is_null(),
            "{name}: an id belongs to one Grafana only"
        );
        let variables: BTreeMap<&str, &str> = files::list(&dashboard["templating"], "list")
            .iter()
            .filter(|variable| variable["type"] == "datasource")
            .map(|variable| (files::string(variable, "name"), files::string(variable, "query")))
            .collect();
        let expected = [("datasource", "prometheus"), ("loki", "loki"), ("tempo", "tempo")];
        assert_eq!(variables, BTreeMap::from(expected), "{name}");
        // Every query names its data source by a variable of the right type.
        assert_sources(&dashboard, &variables, &name);
    }
    assert_eq!(uids, UIDS.map(str::to_owned).into());
}

fn assert_sources(value: &Value, variables: &BTreeMap<&str, &str>, name: &str) {
    match value {
        Value::Object(fields) => {
            if let Some(source) = fields.get("datasource") {
                let uid = files::string(source, "uid");
                let variable = uid.strip_prefix("${").and_then(|uid| uid.strip_suffix('}'));
                let variable = variable.unwrap_or_else(|| panic!("{name}: {uid} is no variable"));
                assert_eq!(
                    variables.get(variable),
                    Some(&files::string(source, "type")),
                    "{name}: {uid}"
                );
            }
            fields
                .values()
                .for_each(|value| assert_sources(value, variables, name));
        }
        Value::Array(values) => values
            .iter()
            .for_each(|value| assert_sources(value, variables, name)),
        _ => {}
    }
}

#[test]
fn every_panel_has_title_description_and_unit() {
    for (name, dashboard) in all() {
        let ids: Vec<u64> = files::list(&dashboard, "panels")
            .iter()
            .map(|panel| panel["id"].as_u64().expect("an id"))
            .collect();
        assert_eq!(
            ids.iter().collect::<BTreeSet<_>>().len(),
            ids.len(),
            "{name}: an id is used twice"
        );
        let mut titles = BTreeSet::new();
        for panel in panels(&dashboard) {
            let title = files::string(panel, "title");
            assert!(titles.insert(title), "{name}: {title} is used twice");
            assert!(files::string(panel, "description").len() > 10, "{name}: {title}");
            // Log lines have no unit.
            if panel["type"] != "logs" {
                let unit = files::string(&panel["fieldConfig"]["defaults"], "unit");
                assert!(UNITS.contains(&unit), "{name}: {title}: {unit}");
            }
            assert!(!files::list(panel, "targets").is_empty(), "{name}: {title}");
        }
    }
}

#[test]
fn no_panel_covers_another() {
    for (name, dashboard) in all() {
        let mut taken = BTreeMap::new();
        for panel in files::list(&dashboard, "panels") {
            let side = |side: &str| panel["gridPos"][side].as_u64().expect("a place");
            assert!(side("x") + side("w") <= 24, "{name}");
            for x in side("x")..side("x") + side("w") {
                for y in side("y")..side("y") + side("h") {
                    let covered = taken.insert((x, y), &panel["title"]);
                    assert!(covered.is_none(), "{name}: {} covers {covered:?}", panel["title"]);
                }
            }
        }
    }
}

#[test]
fn every_queried_metric_is_exported() {
    let expressions = expressions();
    assert!(expressions.len() > 50, "{}", expressions.len());
    for (place, expression) in expressions.iter().chain(&variable_expressions()) {
        metric_names::check(expression, place);
    }
}

#[test]
fn every_queried_event_is_logged() {
    let source = files::sources();
    let mut count = 0;
    for (name, dashboard) in all() {
        for part in dashboard.to_string().split("event=~\\\"").skip(1) {
            let events = part.split("\\\"").next().unwrap_or_default();
            for event in events.split('|') {
                assert!(
                    source.contains(&format!("event = \"{event}\"")),
                    "{name}: nothing logs {event}"
                );
                count += 1;
            }
        }
    }
    assert!(count > 0, "a panel asks for events");
}

#[test]
fn a_search_for_traces_shows_the_newest_and_sorts_numbers_as_numbers() {
    let mut count = 0;
    for (name, dashboard) in all() {
        for panel in panels(&dashboard) {
            for target in files::list(panel, "targets") {
                let is_search = target["queryType"] == "traceql" && target["metricsQueryType"].is_null();
                if is_search {
                    let query = files::string(target, "query");
                    // Without the hint Tempo returns the first matches that it finds.
                    assert!(query.ends_with(" with (most_recent=true)"), "{name}: {query}");
                    count += 1;
                }
            }
        }
        for link in dashboard.to_string().split("traceql%22").skip(1) {
            let link = link.split('"').next().unwrap_or_default();
            assert!(
                percent_decoded(link).contains(" with (most_recent=true)"),
                "{name}: {link}"
            );
        }
    }
    assert!(count >= 2, "{count}");
    // A streamed search turns every attribute into a string.
    let sources = files::yaml("deploy/grafana/provisioning/datasources/datasources.yaml");
    let tempo = files::list(&sources, "datasources")
        .iter()
        .find(|source| source["type"] == "tempo")
        .expect("Tempo");
    assert_eq!(tempo["jsonData"]["streamingEnabled"]["search"], false);
}

#[test]
fn the_required_panels_exist() {
    let shown = |uid: &str, kind: &str, part: &str| {
        all().iter().any(|(_, dashboard)| {
            dashboard["uid"] == uid
                && panels(dashboard).iter().any(|panel| {
                    panel["type"] == kind
                        && files::list(panel, "targets")
                            .iter()
                            .any(|target| target.to_string().contains(part))
                })
        })
    };
    for (uid, kind, part) in [
        ("chitchat-overview", "stat", "slo=\\\"delivery"),
        ("chitchat-overview", "stat", "slo=\\\"acceptance"),
        ("chitchat-overview", "stat", "slo=\\\"joining"),
        ("chitchat-overview", "stat", "slo=\\\"reading"),
        ("chitchat-overview", "stat", "time() - process_start_time_seconds"),
        ("chitchat-overview", "timeseries", "slo_errors:ratio_rate1h"),
        ("chitchat-overview", "heatmap", "broadcast_latency"),
        ("chitchat-overview", "timeseries", "histogram_quantile(0.999"),
        ("chitchat-overview", "table", "ALERTS"),
        ("chitchat-overview", "logs", "error"),
        ("chitchat-saturation", "timeseries", "store_sync"),
        ("chitchat-saturation", "timeseries", "telemetry_dropped"),
        ("chitchat-saturation", "timeseries", "vector($memory_limit)"),
        (
            "chitchat-saturation",
            "stat",
            "-deriv(chitchat_store_available_bytes",
        ),
        (
            "chitchat-saturation",
            "timeseries",
            "otelcol_exporter_send_failed",
        ),
        (
            "chitchat-saturation",
            "timeseries",
            "alertmanager_notifications_failed",
        ),
        ("chitchat-causality", "table", "chitchat.lamport.time"),
        ("chitchat-causality", "nodeGraph", "serviceMap"),
        ("chitchat-cluster", "stat", "cluster_ready"),
        ("chitchat-cluster", "stat", "cluster_diverged_replicas"),
        ("chitchat-cluster", "heatmap", "cluster_order_duration"),
        ("chitchat-cluster", "timeseries", "cluster_silence"),
        ("chitchat-cluster", "logs", "replica_lost"),
    ] {
        assert!(shown(uid, kind, part), "{uid} has no {kind} of {part}");
    }
}

/// The value of a constant or text variable.
fn variable(uid: &str, name: &str) -> String {
    let dashboards = all();
    let (_, dashboard) = dashboards
        .iter()
        .find(|(_, dashboard)| dashboard["uid"] == uid)
        .expect("a dashboard");
    let variable = files::list(&dashboard["templating"], "list")
        .iter()
        .find(|variable| variable["name"] == name)
        .unwrap_or_else(|| panic!("{uid} has no variable {name}"));
    assert_eq!(variable["query"], variable["current"]["value"]);
    files::string(variable, "query").to_owned()
}

#[test]
fn the_memory_limit_is_the_one_of_the_deployments() {
    assert_eq!(
        variable("chitchat-saturation", "memory_limit"),
        (512 << 20).to_string()
    );
    let compose = files::yaml("deploy/compose.yaml");
    assert_eq!(compose["services"]["chitchat"]["mem_limit"], "512m");
    assert!(files::text("deploy/systemd/chitchat.service").contains("\nMemoryMax=512M\n"));
    let set = files::yaml("deploy/kubernetes/statefulset.yaml");
    assert_eq!(
        set["spec"]["template"]["spec"]["containers"][0]["resources"]["limits"]["memory"],
        "512Mi"
    );
}

#[test]
fn each_firing_alert_links_to_its_section_of_the_runbook() {
    assert_eq!(variable("chitchat-overview", "runbook"), runbook::URL);
    let dashboard = files::json("dashboards/overview.json");
    let table = panels(&dashboard)
        .into_iter()
        .find(|panel| panel["title"] == "Firing alerts")
        .expect("a table of alerts");
    let column = &table["fieldConfig"]["overrides"][0];
    assert_eq!(column["matcher"]["options"], "alertname");
    assert_eq!(
        column["properties"][0]["value"][0]["url"],
        "${runbook}#${__value.raw}"
    );
}

#[test]
fn every_dashboard_marks_starts_and_new_versions() {
    for (name, dashboard) in all() {
        let marks = files::list(&dashboard["annotations"], "list");
        assert_eq!(marks.len(), 2, "{name}");
        assert!(files::string(&marks[0], "expr").contains("process_start_time_seconds"));
        assert!(files::string(&marks[1], "expr").contains("unless group by"));
        for mark in marks {
            assert!(
                files::string(mark, "titleFormat").contains("{{version}}"),
                "{name}"
            );
        }
    }
}

#[test]
fn latency_panels_link_to_traces_and_logs() {
    let mut count = 0;
    for (name, dashboard) in all() {
        for panel in panels(&dashboard) {
            let title = files::string(panel, "title");
            if !title.contains("latency") {
                continue;
            }
            count += 1;
            let links = panel["links"].as_array().into_iter().flatten();
            let data_links = panel["fieldConfig"]["defaults"]["links"]
                .as_array()
                .into_iter()
                .flatten();
            let urls: Vec<&str> = links
                .chain(data_links)
                .map(|link| files::string(link, "url"))
                .collect();
            for variable in ["${tempo}", "${loki}"] {
                assert!(
                    urls.iter().any(|url| url.contains(variable)),
                    "{name}: {title} does not link to {variable}"
                );
            }
        }
    }
    assert!(count >= 3, "{count}");
    // A link into Explore is percent-encoded JSON in which the variables are not encoded.
    for (name, dashboard) in all() {
        for part in dashboard.to_string().split("panes=").skip(1) {
            let panes = part.split('"').next().unwrap_or_default();
            let decoded = percent_decoded(panes);
            let panes: Value =
                serde_json::from_str(&decoded).unwrap_or_else(|error| panic!("{name}: {decoded}: {error}"));
            for pane in panes.as_object().expect("panes").values() {
                assert_eq!(files::list(pane, "queries").len(), 1);
                assert_eq!(pane["range"]["from"], "${__from}");
            }
        }
    }
}
