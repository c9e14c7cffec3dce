//! The compose file and the configuration of its services, as far as they can be checked without a container engine.

use std::collections::BTreeSet;
use std::process::Command;

use serde_json::Value;

use crate::files;
use crate::process::{CHITCHAT, Process, external_program, load_generator, run, serve, succeed, text};

const FILE: &str = "deploy/compose.yaml";

/// Services without a health check, and why.
const UNCHECKED: [(&str, &str); 1] = [(
    "otel-collector",
    "its image has no program for one; Prometheus alerts instead",
)];

fn services() -> Vec<(String, Value)> {
    let compose = files::yaml(FILE);
    let services: Vec<(String, Value)> = compose["services"]
        .as_object()
        .expect("services")
        .iter()
        .map(|(name, service)| (name.clone(), service.clone()))
        .collect();
    assert_eq!(services.len(), 9);
    services
}

fn profiles(service: &Value) -> BTreeSet<&str> {
    files::strings(&service["profiles"]).into_iter().collect()
}

#[test]
fn the_server_starts_alone_and_no_service_depends_on_one_of_another_profile() {
    for (name, service) in services() {
        let own = profiles(&service);
        assert_eq!(own.is_empty(), name == "chitchat", "{name}");
        for needed in service["depends_on"].as_object().into_iter().flatten() {
            assert_ne!(name, "chitchat", "the server depends on no service");
            let (_, other) = services()
                .into_iter()
                .find(|(other, _)| other == needed.0)
                .expect("a service");
            let others = profiles(&other);
            assert!(
                others.is_empty() || own.is_subset(&others),
                "{name} needs {}",
                needed.0
            );
            assert_eq!(needed.1["condition"], "service_healthy", "{name}");
            assert!(
                other["healthcheck"]["test"].is_array(),
                "{name} waits for {}",
                needed.0
            );
        }
    }
}

#[test]
fn every_container_is_hardened() {
    for (name, service) in services() {
        let user = files::string(&service, "user");
        assert!(
            !user.starts_with('0') && !user.starts_with("root"),
            "{name}: {user}"
        );
        assert_eq!(service["read_only"], true, "{name}");
        assert_eq!(files::strings(&service["cap_drop"]), ["ALL"], "{name}");
        assert!(
            service["cap_add"].is_null() && service["privileged"].is_null(),
            "{name}"
        );
        assert_eq!(
            files::strings(&service["security_opt"]),
            ["no-new-privileges:true"],
            "{name}"
        );
        assert!(
            service["mem_limit"].is_string() && service["pids_limit"].is_u64(),
            "{name}"
        );
        assert!(service["restart"].is_string(), "{name}");
        assert!(service["logging"]["options"]["max-size"].is_string(), "{name}");
        for port in files::strings(&service["ports"]) {
            assert!(port.starts_with("127.0.0.1:"), "{name}: {port}");
        }
    }
}

#[test]
fn ci_builds_the_versions_of_the_images() {
    let tools = files::text(".ci/tools");
    let version = |name: &str| {
        let line = tools
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
        line.unwrap_or_else(|| panic!("no {name}")).to_owned()
    };
    // Prometheus 3.13.2 is the Go module 0.313.2.
    let module = version("PROMETHEUS_MODULE");
    let (major, rest) = module.strip_prefix("0.").expect("a module").split_at(1);
    let services = &files::yaml(FILE)["services"];
    for (service, image) in [
        ("prometheus", format!("prom/prometheus:v{major}.{rest}")),
        (
            "alertmanager",
            format!("prom/alertmanager:v{}", version("ALERTMANAGER")),
        ),
        (
            "otel-collector",
            format!("otel/opentelemetry-collector-contrib:{}", version("OTELCOL")),
        ),
    ] {
        assert_eq!(services[service]["image"], image.as_str(), "{service}");
    }
}

#[test]
fn swap_does_not_extend_a_memory_limit() {
    for (name, service) in services() {
        assert_eq!(service["memswap_limit"], service["mem_limit"], "{name}");
    }
}

#[test]
fn a_variable_changes_each_published_port() {
    for (name, service) in services() {
        for port in files::strings(&service["ports"]) {
            let inside = port.rsplit(':').next().expect("a port");
            let published = port
                .strip_prefix("127.0.0.1:${CHITCHAT_")
                .and_then(|rest| rest.strip_suffix(&format!("PORT:-{inside}}}:{inside}")));
            assert!(published.is_some(), "{name}: {port}");
        }
    }
}

#[test]
fn the_collector_waits_for_nothing() {
    // It retries, and what the server exports while it waits is lost.
    let collector = &files::yaml(FILE)["services"]["otel-collector"];
    assert!(collector["depends_on"].is_null());
}

#[test]
fn grafana_runs_its_bundled_plugins_on_a_read_only_root() {
    let grafana = &files::yaml(FILE)["services"]["grafana"];
    assert_eq!(grafana["environment"]["GF_PLUGINS_PREINSTALL_DISABLED"], "true");
    // About 13 plugin processes.
    assert_eq!(grafana["mem_limit"], "1g");
    assert_eq!(grafana["pids_limit"], 1024);
}

#[test]
fn every_image_is_pinned() {
    for (name, service) in services() {
        let image = files::string(&service, "image");
        if image == "chitchat" {
            // Built once for all services, and never pulled: an image of this name in a registry is not ours.
            assert_eq!(service["build"].is_object(), name == "chitchat", "{name}");
            assert_eq!(service["pull_policy"], "never", "{name}");
            continue;
        }
        let version = image
            .split_once(':')
            .unwrap_or_else(|| panic!("{name}: {image}"))
            .1;
        let numbers: Vec<&str> = version.trim_start_matches('v').split('.').collect();
        assert!(
            numbers.len() == 3 && numbers.iter().all(|number| number.parse::<u32>().is_ok()),
            "{name}: {image}"
        );
    }
}

#[test]
fn every_service_has_a_health_check() {
    for (name, service) in services() {
        let check = files::strings(&service["healthcheck"]["test"]);
        if let Some((_, reason)) = UNCHECKED.iter().find(|(unchecked, _)| *unchecked == name) {
            assert!(check.is_empty(), "{name} has a health check, although: {reason}");
            continue;
        }
        assert_eq!(check.first(), Some(&"CMD"), "{name}: the image may have no shell");
        assert!(
            !check.iter().any(|word| word.contains("localhost")),
            "{name}: localhost may be ::1"
        );
    }
}

#[test]
fn every_mounted_file_and_volume_exists() {
    let compose = files::yaml(FILE);
    let mut used = BTreeSet::new();
    for (name, service) in services() {
        for mount in files::strings(&service["volumes"]) {
            let source = mount.split(':').next().unwrap_or_default();
            if source.starts_with('.') {
                assert!(mount.ends_with(":ro"), "{name}: {mount}");
                assert!(files::path("deploy").join(source).exists(), "{name}: {mount}");
            } else {
                used.insert(source.to_owned());
            }
        }
    }
    let declared: BTreeSet<String> = compose["volumes"]
        .as_object()
        .expect("volumes")
        .keys()
        .cloned()
        .collect();
    assert_eq!(used, declared);
}

#[test]
fn docker_compose_accepts_the_file() {
    let Some(compose) = external_program("CHITCHAT_TEST_COMPOSE", "docker-compose", &["version"]) else {
        return;
    };
    // The services of all profiles, with nothing set outside.
    let mut command = Command::new(&compose);
    command
        .args(["--profile", "*", "--file"])
        .arg(files::path(FILE))
        .args(["config", "--format", "json"]);
    let model: Value = serde_json::from_str(&succeed(&mut command, "")).unwrap();
    assert_eq!(
        model["services"].as_object().expect("services").len(),
        services().len()
    );
    for service in ["chitchat", "demo-lobby"] {
        let endpoint = &model["services"][service]["environment"]["OTEL_EXPORTER_OTLP_ENDPOINT"];
        assert_eq!(endpoint, "http://otel-collector:4317", "{service}");
    }
}

#[test]
fn grafana_generates_its_password_once() {
    let folder = tempfile::tempdir().unwrap();
    let grafana = &files::yaml(FILE)["services"]["grafana"];
    let [shell, options, script] = files::strings(&grafana["entrypoint"])[..] else {
        panic!("{grafana}");
    };
    assert!(script.trim_end().ends_with("exec /run.sh"), "{script}");
    let password = files::string(&grafana["environment"], "GF_SECURITY_ADMIN_PASSWORD__FILE");
    assert!(script.contains(password), "{script}");
    let here = script
        .replace("$$", "$")
        .replace("/var/lib/grafana", folder.path().to_str().unwrap())
        .replace("exec /run.sh", "exec stat -c %a \"$password\"");
    let made: Vec<String> = (0..2)
        .map(|_| {
            assert_eq!(succeed(Command::new(shell).args([options, &here]), ""), "600\n");
            std::fs::read_to_string(folder.path().join("admin_password")).unwrap()
        })
        .collect();
    assert_eq!(made[0].trim_end().len(), 24, "{made:?}");
    assert_eq!(made[0], made[1]);
}

#[test]
fn every_address_names_a_service() {
    let names: BTreeSet<String> = services().into_iter().map(|(name, _)| name).collect();
    let assert_known = |place: &str, address: &str| {
        let host = address.split("://").last().unwrap_or_default();
        let host = host.split([':', '/']).next().unwrap_or_default();
        assert!(host == "127.0.0.1" || names.contains(host), "{place}: {address}");
    };
    let prometheus = files::yaml("deploy/prometheus/prometheus.yml");
    for job in files::list(&prometheus, "scrape_configs") {
        for target in files::strings(&job["static_configs"][0]["targets"]) {
            assert_known("prometheus.yml", target);
        }
    }
    for target in files::strings(&prometheus["alerting"]["alertmanagers"][0]["static_configs"][0]["targets"])
    {
        assert_known("prometheus.yml", target);
    }
    let collector = files::yaml("deploy/otel-collector/config.yaml");
    for exporter in collector["exporters"].as_object().expect("exporters").values() {
        assert_known("the collector", files::string(exporter, "endpoint"));
    }
    let tempo = files::yaml("deploy/tempo/tempo.yaml");
    for remote in files::list(&tempo["metrics_generator"]["storage"], "remote_write") {
        assert_known("tempo.yaml", files::string(remote, "url"));
    }
    let (sources, mut uids) = (data_sources(), BTreeSet::new());
    for source in &sources {
        assert_known("data sources", files::string(source, "url"));
        uids.insert(files::string(source, "uid"));
    }
    // Links between data sources lead to data sources that exist.
    for source in &sources {
        for part in source.to_string().split("\"datasourceUid\":\"").skip(1) {
            let uid = part.split('"').next().unwrap_or_default();
            assert!(uids.contains(uid), "{uid}");
        }
        for correlation in source["correlations"].as_array().into_iter().flatten() {
            assert!(uids.contains(files::string(correlation, "targetUID")));
        }
    }
}

fn data_sources() -> Vec<Value> {
    let provisioned = files::yaml("deploy/grafana/provisioning/datasources/datasources.yaml");
    files::list(&provisioned, "datasources").clone()
}

#[test]
fn the_data_sources_link_to_each_other() {
    let sources = data_sources();
    let of = |kind: &str| {
        &sources
            .iter()
            .find(|source| source["type"] == kind)
            .unwrap_or_else(|| panic!("no {kind}"))["jsonData"]
    };
    let tempo = of("tempo");
    assert_eq!(
        of("prometheus")["exemplarTraceIdDestinations"][0]["datasourceUid"],
        "tempo"
    );
    assert_eq!(of("loki")["derivedFields"][0]["datasourceUid"], "tempo");
    assert_eq!(tempo["tracesToLogsV2"]["datasourceUid"], "loki");
    assert_eq!(tempo["tracesToMetrics"]["datasourceUid"], "prometheus");
    assert_eq!(tempo["serviceMap"]["datasourceUid"], "prometheus");
    // A literal dollar sign is written twice in provisioning files.
    let file = files::text("deploy/grafana/provisioning/datasources/datasources.yaml");
    assert!(file.contains("$${__trace.traceId}"));
    assert!(!file.replace("$${", "").contains("${"), "an environment variable");
    // The dashboards are mounted where the provider reads them.
    let provider = files::yaml("deploy/grafana/provisioning/dashboards/dashboards.yaml");
    let folder = files::string(&provider["providers"][0]["options"], "path");
    let (_, grafana) = services()
        .into_iter()
        .find(|(name, _)| name == "grafana")
        .expect("Grafana");
    assert!(files::strings(&grafana["volumes"]).contains(&format!("../dashboards:{folder}:ro").as_str()));
    let home = files::string(
        &grafana["environment"],
        "GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH",
    );
    let home = home.strip_prefix(&format!("{folder}/")).expect("a dashboard");
    assert!(files::path("dashboards").join(home).exists());
}

/// The fields of the frame that Grafana's Tempo data source makes of a trace.
const TRACE_FIELDS: [&str; 17] = [
    "traceID",
    "spanID",
    "parentSpanID",
    "operationName",
    "serviceName",
    "kind",
    "statusCode",
    "statusMessage",
    "instrumentationLibraryName",
    "instrumentationLibraryVersion",
    "traceState",
    "serviceTags",
    "startTime",
    "duration",
    "logs",
    "references",
    "tags",
];

#[test]
fn every_correlation_is_on_a_field_of_a_trace() {
    let sources = data_sources();
    let tempo = sources
        .iter()
        .find(|source| source["type"] == "tempo")
        .expect("Tempo");
    for correlation in files::list(tempo, "correlations") {
        let config = &correlation["config"];
        assert!(TRACE_FIELDS.contains(&files::string(config, "field")), "{config}");
        for transformation in files::list(config, "transformations") {
            assert!(
                TRACE_FIELDS.contains(&files::string(transformation, "field")),
                "{config}"
            );
        }
    }
}

#[test]
fn the_correlation_finds_the_room_in_the_attributes_of_a_span() {
    let Some(python) = external_program("CHITCHAT_TEST_PYTHON", "python3", &["--version"]) else {
        return;
    };
    let sources = files::text("deploy/grafana/provisioning/datasources/datasources.yaml");
    let expression = files::yaml("deploy/grafana/provisioning/datasources/datasources.yaml")["datasources"]
        .as_array()
        .and_then(|sources| sources.iter().find(|source| source["type"] == "tempo"))
        .map(|tempo| tempo["correlations"][0]["config"]["transformations"][0].clone())
        .expect("a transformation");
    assert!(sources.contains("room=\"$${room}\"") && expression["mapValue"] == "room");
    // As Grafana writes them, with the keys in either order.
    for tags in [
        r#"[{"value":"rooms/{room}","key":"messaging.destination.template"},{"value":"rooms/lobby","key":"messaging.destination.name"}]"#,
        r#"[{"key":"messaging.destination.name","value":"rooms/lobby"},{"key":"messaging.destination.template","value":"rooms/{room}"}]"#,
    ] {
        let script =
            "import re, sys; print([match.group(1) for match in re.finditer(sys.argv[1], sys.argv[2])])";
        let mut command = Command::new(&python);
        command.args(["-c", script, files::string(&expression, "expression"), tags]);
        assert_eq!(succeed(&mut command, ""), "['lobby']\n");
    }
}

#[test]
fn traceql_metrics_reach_back_as_far_as_traces_are_kept() {
    let tempo = files::yaml("deploy/tempo/tempo.yaml");
    assert_eq!(
        tempo["overrides"]["defaults"]["read"]["max_metrics_duration"],
        tempo["backend_worker"]["compaction"]["block_retention"]
    );
}

#[test]
fn no_metric_that_tempo_makes_is_labelled_by_room() {
    let tempo = files::yaml("deploy/tempo/tempo.yaml");
    let spans = &tempo["metrics_generator"]["processor"]["span_metrics"];
    // Span names are templates; attributes contain room and participant names.
    assert!(files::list(spans, "dimensions").is_empty());
}

/// A bot's command line with the address of the test's server.
fn bot(name: &str, words: &[&str], address: &str) -> Vec<String> {
    assert!(words.contains(&"--server=chitchat:50052"), "{name}: {words:?}");
    words
        .iter()
        .map(|word| {
            word.replace("chitchat:50052", address)
                .replace("--duration=1h", "--duration=1s")
        })
        .collect()
}

#[test]
fn the_bots_chat() {
    let server = serve(&[]);
    let address = server.address.to_string();
    let of = |name: &str| {
        services()
            .into_iter()
            .find(|(service, _)| service == name)
            .expect("a service")
            .1
    };

    let lobby = of("demo-lobby");
    let mut bob = Command::new(CHITCHAT);
    let bob = Process::start(bob.args(bot("demo-lobby", &files::strings(&lobby["command"]), &address)));
    assert_eq!(lobby["stdin_open"], true, "Bob leaves at the end of the input");
    bob.stdout_line("Participant Bob joined");
    let check = files::strings(&lobby["healthcheck"]["test"]);
    assert_eq!(check[..2], ["CMD", "/usr/local/bin/chitchat"]);
    succeed(
        Command::new(CHITCHAT).args(bot("demo-lobby", &check[2..], &address)),
        "",
    );
    bob.stdout_line("Ada: Is anybody there?");

    let rooms = bot(
        "demo-rooms",
        &files::strings(&of("demo-rooms")["command"]),
        &address,
    );
    assert_eq!(
        files::strings(&of("demo-rooms")["entrypoint"]),
        ["/usr/local/bin/chitchat-bench"]
    );
    let output = run(Command::new(load_generator()).args(rooms), "");
    assert!(output.status.success(), "{}", text(&output.stderr));
}
