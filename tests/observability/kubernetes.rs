//! The Kubernetes manifests build with kustomize, match the schemas, and agree with the image and the rules.

use std::env;
use std::process::Command;

use serde_json::Value;

use crate::files;
use crate::process::{external_program, serve_flags, succeed};

const FOLDER: &str = "deploy/kubernetes";

/// The same with TLS and tokens.
const TLS_FOLDER: &str = "deploy/kubernetes-tls";

/// What kustomize builds, and the list of its resources, each of which matches its schema. `None` if the programs are missing.
pub fn build(folder: &str) -> Option<(String, String)> {
    let kustomize = external_program("CHITCHAT_TEST_KUSTOMIZE", "kustomize", &["version"])?;
    let python = external_program(
        "CHITCHAT_TEST_KUBERNETES_PYTHON",
        "python3",
        &["-c", "import kubernetes_validate"],
    )?;
    // .ci/tools sets both variables.
    let definitions =
        env::var("CHITCHAT_TEST_OPERATOR_CRDS").expect("CHITCHAT_TEST_OPERATOR_CRDS: see .ci/tools");
    let built = succeed(Command::new(&kustomize).arg("build").arg(files::path(folder)), "");
    let mut check = Command::new(&python);
    check
        .arg(files::path("tests/observability/manifests.py"))
        .arg(&definitions);
    let checked = succeed(&mut check, &built);
    Some((built, checked))
}

#[test]
fn every_manifest_matches_its_schema() {
    for folder in [FOLDER, TLS_FOLDER] {
        let Some((built, checked)) = build(folder) else {
            return;
        };
        assert_complete(&built, &checked);
        assert_eq!(built.contains("CHITCHAT_TLS_CERT"), folder == TLS_FOLDER);
        // Each probe of the variant speaks to the admin port.
        assert_eq!(built.contains("\n          grpc:\n"), folder == FOLDER);
    }
}

/// Asserts that what kustomize has built is what it should be, of which `checked` is the list.
fn assert_complete(built: &str, checked: &str) {
    // kube-prometheus-stack selects by this label.
    for document in built.split("\n---\n") {
        let is_selected = ["kind: PodMonitor\n", "kind: PrometheusRule\n"]
            .iter()
            .any(|kind| document.contains(kind));
        assert_eq!(
            document.contains("\n    release: kube-prometheus-stack\n"),
            is_selected,
            "{document}"
        );
    }
    assert_eq!(
        checked.lines().count(),
        files::list(&files::yaml("deploy/kubernetes/kustomization.yaml"), "resources").len() + 1
    );
    for resource in [
        "StatefulSet chitchat",
        "PodMonitor chitchat",
        "PrometheusRule chitchat",
        "Service chitchat-headless",
    ] {
        assert!(
            checked.lines().any(|line| line == resource),
            "{resource}: {checked}"
        );
    }
}

#[test]
fn the_readme_names_the_label_that_kube_prometheus_stack_selects_by() {
    let label = "release: kube-prometheus-stack";
    assert!(files::text("deploy/kubernetes/kustomization.yaml").contains(label));
    assert!(files::text("deploy/kubernetes/README.md").contains(label));
}

#[test]
fn the_network_policy_allows_node_local_dns() {
    let policy = files::yaml("deploy/kubernetes/networkpolicy.yaml");
    let dns = files::list(&policy["spec"], "egress")
        .iter()
        .find(|rule| rule["ports"][0]["port"] == 53)
        .expect("a rule for DNS");
    assert!(
        files::list(dns, "to")
            .iter()
            .any(|peer| peer["ipBlock"]["cidr"] == "169.254.20.10/32")
    );
}

#[test]
fn the_prometheus_rule_is_up_to_date() {
    let groups: Vec<Value> = files::names("deploy/prometheus/rules", ".yml")
        .iter()
        .flat_map(|name| {
            files::list(&files::yaml(&format!("deploy/prometheus/rules/{name}")), "groups").clone()
        })
        .collect();
    let rule = files::yaml("deploy/kubernetes/prometheusrule.yaml");
    assert!(
        rule["spec"]["groups"] == Value::Array(groups),
        "they differ: run .ci/prometheus-rule"
    );
}

#[test]
fn the_pod_agrees_with_the_image() {
    let set = files::yaml("deploy/kubernetes/statefulset.yaml");
    assert_eq!(set["spec"]["replicas"], 1, "one process orders each room");
    let pod = &set["spec"]["template"]["spec"];
    let container = &pod["containers"][0];
    let dockerfile = files::text("Dockerfile");
    for port in files::list(container, "ports") {
        let port = port["containerPort"].as_u64().unwrap();
        assert!(
            dockerfile
                .lines()
                .any(|line| line.starts_with("EXPOSE ") && line.contains(&port.to_string()))
        );
    }
    let user = pod["securityContext"]["runAsUser"].as_u64().unwrap();
    assert!(dockerfile.contains(&format!("\nUSER {user}:{user}\n")));
    assert_eq!(pod["securityContext"]["runAsNonRoot"], true);
    let security = &container["securityContext"];
    assert_eq!(security["readOnlyRootFilesystem"], true);
    assert_eq!(security["allowPrivilegeEscalation"], false);
    assert_eq!(security["capabilities"]["drop"][0], "ALL");
    let data = files::string(&container["volumeMounts"][0], "mountPath");
    assert!(dockerfile.contains(&format!("CHITCHAT_DATA_DIR={data}\n")));
    let flags = serve_flags();
    for variable in files::list(container, "env") {
        let name = files::string(variable, "name");
        assert!(
            name.starts_with("OTEL_") || flags.iter().any(|flag| flag.variable == name),
            "{name}"
        );
        if name == "CHITCHAT_DRAIN_TIMEOUT" {
            let drain: u64 = files::string(variable, "value")
                .trim_end_matches('s')
                .parse()
                .unwrap();
            assert!(pod["terminationGracePeriodSeconds"].as_u64() > Some(drain));
        }
    }
    assert_eq!(container["readinessProbe"]["grpc"]["port"], 50052);
    assert_eq!(container["livenessProbe"]["httpGet"]["path"], "/livez");
}

#[test]
fn the_variant_with_tls_sets_variables_that_the_server_has_to_files_that_it_mounts() {
    let set = files::yaml(&format!("{TLS_FOLDER}/statefulset.yaml"));
    let pod = &set["spec"]["template"]["spec"];
    let container = &pod["containers"][0];
    let flags = serve_flags();
    let mounts: Vec<&str> = files::list(container, "volumeMounts")
        .iter()
        .map(|mount| files::string(mount, "mountPath"))
        .collect();
    for variable in files::list(container, "env") {
        let (name, value) = (files::string(variable, "name"), files::string(variable, "value"));
        assert!(flags.iter().any(|flag| flag.variable == name), "{name}");
        let is_mounted = mounts.iter().any(|mount| value.starts_with(mount));
        assert_eq!(value.starts_with('/'), is_mounted, "{value}");
    }
    for (volume, mount) in files::list(pod, "volumes")
        .iter()
        .zip(files::list(container, "volumeMounts"))
    {
        assert_eq!(volume["name"], mount["name"]);
    }
}

#[test]
fn the_operator_scrapes_the_job_that_the_rules_select() {
    let monitor = files::yaml("deploy/kubernetes/podmonitor.yaml");
    let set = files::yaml("deploy/kubernetes/statefulset.yaml");
    let labels = &set["spec"]["template"]["metadata"]["labels"];
    assert_eq!(labels[files::string(&monitor["spec"], "jobLabel")], "chitchat");
    assert_eq!(monitor["spec"]["selector"]["matchLabels"], *labels);
    let port = files::string(&monitor["spec"]["podMetricsEndpoints"][0], "port");
    let ports = files::list(&set["spec"]["template"]["spec"]["containers"][0], "ports");
    assert!(
        ports
            .iter()
            .any(|named| named["name"] == port && named["containerPort"] == 9464)
    );
    for part in ["service", "poddisruptionbudget", "networkpolicy"] {
        assert!(files::text(&format!("{FOLDER}/{part}.yaml")).contains("app.kubernetes.io/name: chitchat"));
    }
}
