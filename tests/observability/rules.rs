//! The rules are valid; every alert is tested, has a runbook section and links to a dashboard.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use serde_json::Value;

use crate::dashboards::UIDS;
use crate::process::{external_program, serve, succeed};
use crate::{files, metric_names};

const FOLDER: &str = "deploy/prometheus";

pub fn promtool() -> Option<String> {
    external_program("CHITCHAT_TEST_PROMTOOL", "promtool", &["--version"])
}

/// All recording and alerting rules.
pub fn rules() -> Vec<Value> {
    files::names("deploy/prometheus/rules", ".yml")
        .iter()
        .flat_map(|name| {
            let rules = files::yaml(&format!("{FOLDER}/rules/{name}"));
            files::list(&rules, "groups").clone()
        })
        .flat_map(|group| files::list(&group, "rules").clone())
        .collect()
}

pub fn alerts() -> Vec<Value> {
    let alerts: Vec<Value> = rules()
        .into_iter()
        .filter(|rule| rule["alert"].is_string())
        .collect();
    assert!(alerts.len() >= 9, "{alerts:?}");
    alerts
}

#[test]
fn promtool_accepts_configuration_and_rules() {
    let Some(promtool) = promtool() else { return };
    let folder = files::path(FOLDER);
    let mut check = Command::new(&promtool);
    succeed(
        check
            .args(["check", "config", "prometheus.yml"])
            .current_dir(&folder),
        "",
    );
    let mut check = Command::new(&promtool);
    let rules = files::names("deploy/prometheus/rules", ".yml");
    succeed(
        check
            .args(["check", "rules", "--lint=all", "--lint-fatal"])
            .args(rules)
            .current_dir(folder.join("rules")),
        "",
    );
}

#[test]
fn the_rule_tests_pass() {
    let Some(promtool) = promtool() else { return };
    let mut test = Command::new(&promtool);
    let tests = files::names("deploy/prometheus/tests", ".yml");
    succeed(
        test.args(["test", "rules"])
            .args(tests)
            .current_dir(files::path(FOLDER).join("tests")),
        "",
    );
}

#[test]
fn every_alert_fires_in_one_test_and_is_silent_in_another() {
    let (mut fires, mut silent) = (BTreeSet::new(), BTreeSet::new());
    for name in files::names("deploy/prometheus/tests", ".yml") {
        let file = files::yaml(&format!("{FOLDER}/tests/{name}"));
        for case in files::list(&file, "tests") {
            for test in case["alert_rule_test"].as_array().into_iter().flatten() {
                let expected = files::list(test, "exp_alerts");
                let alert = files::string(test, "alertname").to_owned();
                if expected.is_empty() {
                    &mut silent
                } else {
                    &mut fires
                }
                .insert(alert);
            }
        }
    }
    let alerts: BTreeSet<String> = alerts()
        .iter()
        .map(|alert| files::string(alert, "alert").to_owned())
        .collect();
    assert_eq!(fires, alerts);
    // The watchdog is never silent.
    silent.insert("Watchdog".to_owned());
    assert_eq!(silent, alerts);
}

#[test]
fn every_alert_has_a_complete_runbook_section_and_a_dashboard() {
    let sections: BTreeMap<String, String> = files::text("docs/runbook.md")
        .split("\n## ")
        .skip(1)
        .filter_map(|section| section.split_once('\n'))
        .map(|(title, text)| (title.to_lowercase(), text.to_owned()))
        .collect();
    let mut explained = BTreeSet::new();
    for alert in alerts() {
        let name = files::string(&alert, "alert");
        let severity = files::string(&alert["labels"], "severity");
        assert!(
            ["page", "ticket", "none"].contains(&severity),
            "{name}: {severity}"
        );
        let annotations = &alert["annotations"];
        assert!(!files::string(annotations, "summary").is_empty());
        assert!(!files::string(annotations, "description").is_empty());
        let section = name.to_lowercase();
        let text = sections
            .get(&section)
            .unwrap_or_else(|| panic!("the runbook has no section {name}"));
        for part in ["**Means:**", "**Users see:**", "**Look:**", "**Do:**"] {
            assert!(text.contains(part), "the runbook's section {name} has no {part}");
        }
        explained.insert(section);
        let dashboard = files::string(annotations, "dashboard");
        let uid = dashboard.strip_prefix("http://127.0.0.1:3000/d/");
        assert!(uid.is_some_and(|uid| UIDS.contains(&uid)), "{name}: {dashboard}");
    }
    for section in sections.keys().filter(|section| section.starts_with("chitchat")) {
        assert!(
            explained.contains(section),
            "the runbook has a section {section} without an alert"
        );
    }
}

#[test]
fn every_metric_in_a_rule_is_exported() {
    for rule in rules() {
        let name = rule["alert"]
            .as_str()
            .or(rule["record"].as_str())
            .expect("a name");
        metric_names::check(files::string(&rule, "expr"), name);
    }
}

#[test]
fn every_latency_threshold_is_a_bucket_boundary() {
    let page = serve(&[]).get("/metrics");
    let mut count = 0;
    for rule in rules() {
        for part in files::string(&rule, "expr").split("le=\"").skip(1) {
            let edge = part.split('"').next().unwrap_or_default();
            assert!(
                page.contains(&format!(
                    "chitchat_delivery_latency_seconds_bucket{{le=\"{edge}\"}}"
                )),
                "{edge}"
            );
            count += 1;
        }
    }
    assert!(count > 0, "an objective has a threshold");
}

#[test]
fn alertmanager_routes_by_severity() {
    let Some(amtool) = external_program("CHITCHAT_TEST_AMTOOL", "amtool", &["--version"]) else {
        return;
    };
    let file = files::path("deploy/alertmanager/alertmanager.yml");
    succeed(Command::new(&amtool).arg("check-config").arg(&file), "");
    for (alert, severity, receiver) in [
        ("Watchdog", "none", "dead-mans-switch"),
        ("ChitChatDown", "page", "pager"),
        ("ChitChatNotificationsFail", "page", "tickets,pager"),
        ("ChitChatStoreFillingUp", "ticket", "tickets"),
    ] {
        let mut test = Command::new(&amtool);
        test.args(["config", "routes", "test", "--config.file"])
            .arg(&file);
        test.args([
            format!("alertname={alert}"),
            format!("severity={severity}"),
            "job=chitchat".to_owned(),
        ]);
        assert_eq!(succeed(&mut test, "").trim(), receiver, "{alert}");
    }
}
