//! The deployments of a cluster: compose.cluster.yaml on compose.yaml, kubernetes-cluster on kubernetes, and the configuration of NATS.

use std::collections::BTreeSet;
use std::process::Command;

use serde_json::Value;

use crate::files;
use crate::process::{external_program, serve_flags, succeed};

const REPLICAS: [&str; 3] = ["chitchat-0", "chitchat-1", "chitchat-2"];

/// The services of both compose files, as Docker Compose merges them.
fn services() -> Option<Value> {
    let compose = external_program("CHITCHAT_TEST_COMPOSE", "docker-compose", &["version"])?;
    let mut command = Command::new(&compose);
    command.args(["--profile", "*"]);
    for file in ["compose.yaml", "compose.cluster.yaml"] {
        command.arg("--file").arg(files::path("deploy").join(file));
    }
    let merged = succeed(command.args(["config", "--format", "json"]), "");
    let mut model: Value = serde_json::from_str(&merged).unwrap();
    Some(model["services"].take())
}

/// The variables that the configuration of NATS reads from its environment.
fn nats_variables() -> BTreeSet<String> {
    let config = files::text("deploy/nats/nats.conf");
    let lines = config.lines().filter(|line| !line.trim_start().starts_with('#'));
    lines
        .flat_map(|line| line.split(": $").skip(1))
        .map(|rest| rest.trim().to_owned())
        .filter(|name| name.starts_with("NATS_"))
        .collect()
}

#[test]
fn every_container_of_a_cluster_is_hardened_and_pinned() {
    let Some(services) = services() else { return };
    for (name, service) in services.as_object().unwrap() {
        let user = files::string(service, "user");
        // The one that gives the volumes to their user.
        assert_eq!(user.starts_with('0'), name == "volumes", "{name}: {user}");
        if name == "volumes" {
            assert_eq!(files::strings(&service["cap_add"]), ["CHOWN"]);
            assert_eq!(service["network_mode"], "none");
        }
        assert_eq!(service["read_only"], true, "{name}");
        assert_eq!(files::strings(&service["cap_drop"]), ["ALL"], "{name}");
        assert_eq!(
            files::strings(&service["security_opt"]),
            ["no-new-privileges:true"],
            "{name}"
        );
        assert_eq!(service["mem_limit"], service["memswap_limit"], "{name}");
        assert!(
            service["mem_limit"].is_string() && !service["pids_limit"].is_null(),
            "{name}"
        );
        assert!(service["logging"]["options"]["max-size"].is_string(), "{name}");
        for port in service["ports"].as_array().into_iter().flatten() {
            assert_eq!(port["host_ip"], "127.0.0.1", "{name}: {port}");
        }
        let image = files::string(service, "image");
        assert!(image == "chitchat" || image.split_once(':').is_some_and(|(_, tag)| tag.contains('.')));
    }
    let tools = files::text(".ci/tools");
    let version = tools
        .lines()
        .find_map(|line| line.strip_prefix("NATS_SERVER="))
        .unwrap();
    let image = format!("nats:{version}-alpine");
    for n in 0..3 {
        assert_eq!(services[format!("nats-{n}")]["image"], image.as_str());
    }
    assert!(files::text("deploy/kubernetes-cluster/nats-statefulset.yaml").contains(&image));
}

#[test]
fn the_replicas_of_compose_have_their_names_and_keys() {
    let Some(services) = services() else { return };
    let flags = serve_flags();
    let mut volumes = BTreeSet::new();
    for name in REPLICAS {
        let service = services.get(name).unwrap_or_else(|| &services["chitchat"]);
        let environment = service["environment"].as_object().unwrap();
        assert_eq!(environment["CHITCHAT_REPLICA_NAME"], name);
        assert_eq!(
            environment["CHITCHAT_CLUSTER_NKEY"],
            format!("/keys/{name}.nk").as_str()
        );
        // Checkpoints are on a volume of its own, which its user owns.
        assert!(environment.get("CHITCHAT_IN_MEMORY").is_none(), "{name}");
        let volume = files::list(service, "volumes")
            .iter()
            .find(|volume| volume["target"] == environment["CHITCHAT_DATA_DIR"])
            .unwrap_or_else(|| panic!("{name} has no volume for its checkpoints"));
        assert!(volumes.insert(files::string(volume, "source")), "{name}");
        let owned = files::list(&services["volumes"], "volumes")
            .iter()
            .find(|owned| owned["source"] == volume["source"])
            .map(|owned| files::string(owned, "target"));
        let owned = owned.unwrap_or_else(|| panic!("nobody gives {volume} to its user"));
        assert!(files::strings(&services["volumes"]["entrypoint"]).contains(&owned));
        for variable in environment.keys().filter(|name| name.starts_with("CHITCHAT_")) {
            assert!(flags.iter().any(|flag| flag.variable == *variable), "{variable}");
        }
        let config = files::text("deploy/nats/nats.conf");
        assert!(config.contains(&format!("\"_INBOX.{name}.>\"")), "{name}");
        // All differ in this alone.
        let common = |service: &Value| {
            let mut service = service["environment"].clone();
            service["CHITCHAT_REPLICA_NAME"] = Value::Null;
            service["CHITCHAT_CLUSTER_NKEY"] = Value::Null;
            service
        };
        assert_eq!(common(service), common(&services["chitchat"]), "{name}");
    }
    let published: Vec<&String> = services
        .as_object()
        .unwrap()
        .iter()
        .filter(|(_, service)| {
            let ports = service["ports"].as_array().into_iter().flatten();
            ports.into_iter().any(|port| port["target"] == 50052)
        })
        .map(|(name, _)| name)
        .collect();
    assert_eq!(published, ["proxy"]);
    let proxy = files::text("deploy/proxies/nginx-cluster.conf");
    for name in ["chitchat", "chitchat-1", "chitchat-2"] {
        assert!(proxy.contains(&format!("server {name}:50052 resolve ")), "{name}");
    }
}

#[test]
fn the_nats_servers_have_every_variable_that_their_configuration_reads() {
    let variables = nats_variables();
    assert!(variables.len() >= 7, "{variables:?}");
    let set = files::yaml("deploy/kubernetes-cluster/nats-statefulset.yaml");
    let container = &set["spec"]["template"]["spec"]["containers"][0];
    let environment = files::list(container, "env");
    for name in &variables {
        assert!(
            environment
                .iter()
                .any(|variable| variable["name"] == name.as_str()),
            "{name}"
        );
    }
    if let Some(services) = services() {
        for n in 0..3 {
            let service = &services[format!("nats-{n}")];
            for name in &variables {
                assert!(service["environment"][name].is_string(), "{name}");
            }
            assert_eq!(service["environment"]["NATS_NAME"], format!("nats-{n}").as_str());
        }
    }
}

#[test]
fn prometheus_scrapes_all_replicas() {
    let single = files::text("deploy/prometheus/prometheus.yml");
    let cluster = files::text("deploy/prometheus/prometheus.cluster.yml");
    let body = |text: &str| text.split_once('\n').unwrap().1.to_owned();
    let expected = body(&single).replace(
        "[chitchat:9464]",
        "[chitchat:9464, chitchat-1:9464, chitchat-2:9464]",
    );
    assert_ne!(expected, body(&single));
    assert_eq!(body(&cluster), expected);
}

#[test]
fn the_manifests_of_a_cluster_match_their_schemas_and_one_another() {
    let Some((built, checked)) = crate::kubernetes::build("deploy/kubernetes-cluster") else {
        return;
    };
    for resource in [
        "StatefulSet chitchat",
        "StatefulSet nats",
        "PodDisruptionBudget chitchat",
        "PodDisruptionBudget nats",
        "NetworkPolicy chitchat",
        "NetworkPolicy nats",
        "Job chitchat-cluster-init",
        "Service nats-headless",
    ] {
        assert!(
            checked.lines().any(|line| line == resource),
            "{resource}: {checked}"
        );
    }
    let find = |kind: &str, name: &str| {
        let (kind, name) = (format!("kind: {kind}\n"), format!("\n  name: {name}\n"));
        built
            .split("\n---\n")
            .find(|document| document.contains(&kind) && document.contains(&name))
            .unwrap_or_else(|| panic!("no {kind} {name}"))
    };
    let replicas = find("StatefulSet", "chitchat");
    assert!(replicas.contains("\n  replicas: 3\n"), "{replicas}");
    // Kubernetes replaces a variable by those that are before it.
    assert!(replicas.find("name: CHITCHAT_REPLICA_NAME") < replicas.find("$(CHITCHAT_REPLICA_NAME)"));
    // A replica is alive before it is ready, and ready when it has caught up.
    assert!(replicas.contains("path: /readyz") && replicas.contains("path: /livez"));
    // Each has a volume for its checkpoints, where the image has its data.
    assert!(!replicas.contains("CHITCHAT_IN_MEMORY") && replicas.contains("fsGroup: 65532"));
    for line in [
        "- mountPath: /data\n          name: data",
        "storage: 2Gi",
        "whenDeleted: Retain",
    ] {
        assert!(replicas.contains(line), "{line}: {replicas}");
    }
    // The replicas reach NATS, and nobody but them and the job does.
    let policy = find("NetworkPolicy", "chitchat");
    assert!(policy.contains("port: 4222") && policy.contains("app.kubernetes.io/name: nats"));
    let nats = find("StatefulSet", "nats");
    for port in ["4222", "6222", "8222"] {
        assert!(nats.contains(&format!("containerPort: {port}")), "{port}");
    }
    assert!(nats.contains("whenUnsatisfiable: DoNotSchedule"));
    assert!(
        built.contains("sync_interval: always"),
        "the ConfigMap has the file"
    );
    // None is part of the repository.
    for secret in ["chitchat-nats", "chitchat-replicas", "chitchat-setup"] {
        assert!(built.contains(secret) && files::text("deploy/kubernetes/README.md").contains(secret));
    }
    assert!(!built.contains("kind: Secret"));
}
