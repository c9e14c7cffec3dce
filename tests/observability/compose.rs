//! The compose file and what its services are configured with, as far as this can be seen without an engine.

use std::collections::BTreeSet;
use std::process::Command;

use serde_json::Value;

use crate::files;
use crate::process::{CHITCHAT, Process, external_program, run, serve, succeed, text};

const FILE: &str = "deploy/compose.yaml";

/// Services without a health check of their own, and why.
const UNCHECKED: [(&str, &str); 1] = [("otel-collector", "nothing in its image can ask; Prometheus does")];

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
fn the_server_starts_alone_and_nobody_waits_for_who_is_not_started() {
    for (name, service) in services() {
        let own = profiles(&service);
        assert_eq!(own.is_empty(), name == "chitchat", "{name}");
        for needed in service["depends_on"].as_object().into_iter().flatten() {
            assert_ne!(name, "chitchat", "it needs nobody");
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
fn every_container_may_do_little() {
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

/// Services whose limits and ports are not checked yet.
const UNLIMITED: [&str; 3] = ["chitchat", "demo-rooms", "demo-lobby"];

#[test]
fn swap_does_not_extend_a_memory_limit() {
    for (name, service) in services() {
        if !UNLIMITED.contains(&name.as_str()) {
            assert_eq!(service["memswap_limit"], service["mem_limit"], "{name}");
        }
    }
}

#[test]
fn a_variable_changes_each_published_port() {
    for (name, service) in services() {
        for port in files::strings(&service["ports"]) {
            if UNLIMITED.contains(&name.as_str()) {
                continue;
            }
            let inside = port.rsplit(':').next().expect("a port");
            let published = port
                .strip_prefix("127.0.0.1:${CHITCHAT_")
                .and_then(|rest| rest.strip_suffix(&format!("_PORT:-{inside}}}:{inside}")));
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
            // Built once, for all of them, and never pulled: a registry's image of that name is somebody else's.
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
fn every_service_is_asked_how_it_is() {
    for (name, service) in services() {
        let check = files::strings(&service["healthcheck"]["test"]);
        if let Some((_, reason)) = UNCHECKED.iter().find(|(unchecked, _)| *unchecked == name) {
            assert!(check.is_empty(), "{name} is checked: {reason} is wrong");
            continue;
        }
        assert_eq!(check.first(), Some(&"CMD"), "{name}: there may be no shell");
        assert!(
            !check.iter().any(|word| word.contains("localhost")),
            "{name}: localhost may be ::1"
        );
    }
}

#[test]
fn everything_that_is_mounted_is_there() {
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
fn the_parser_of_compose_accepts_all_of_it() {
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
fn grafana_makes_its_own_password_once() {
    let folder = std::env::temp_dir().join(format!("chitchat-grafana-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let grafana = &files::yaml(FILE)["services"]["grafana"];
    let [shell, options, script] = files::strings(&grafana["entrypoint"])[..] else {
        panic!("{grafana}");
    };
    assert!(script.trim_end().ends_with("exec /run.sh"), "{script}");
    let password = files::string(&grafana["environment"], "GF_SECURITY_ADMIN_PASSWORD__FILE");
    assert!(script.contains(password), "{script}");
    let here = script
        .replace("$$", "$")
        .replace("/var/lib/grafana", folder.to_str().unwrap())
        .replace("exec /run.sh", "exec stat -c %a \"$password\"");
    let made: Vec<String> = (0..2)
        .map(|_| {
            assert_eq!(succeed(Command::new(shell).args([options, &here]), ""), "600\n");
            std::fs::read_to_string(folder.join("admin_password")).unwrap()
        })
        .collect();
    assert_eq!(made[0].trim_end().len(), 24, "{made:?}");
    assert_eq!(made[0], made[1]);
    std::fs::remove_dir_all(&folder).unwrap();
}

#[test]
fn everybody_is_looked_for_where_they_are() {
    let names: BTreeSet<String> = services().into_iter().map(|(name, _)| name).collect();
    let known = |place: &str, address: &str| {
        let host = address.split("://").last().unwrap_or_default();
        let host = host.split([':', '/']).next().unwrap_or_default();
        assert!(host == "127.0.0.1" || names.contains(host), "{place}: {address}");
    };
    let prometheus = files::yaml("deploy/prometheus/prometheus.yml");
    for job in files::list(&prometheus, "scrape_configs") {
        for target in files::strings(&job["static_configs"][0]["targets"]) {
            known("prometheus.yml", target);
        }
    }
    for target in files::strings(&prometheus["alerting"]["alertmanagers"][0]["static_configs"][0]["targets"])
    {
        known("prometheus.yml", target);
    }
    let collector = files::yaml("deploy/otel-collector/config.yaml");
    for exporter in collector["exporters"].as_object().expect("exporters").values() {
        known("the collector", files::string(exporter, "endpoint"));
    }
    let tempo = files::yaml("deploy/tempo/tempo.yaml");
    for remote in files::list(&tempo["metrics_generator"]["storage"], "remote_write") {
        known("tempo.yaml", files::string(remote, "url"));
    }
    let (sources, mut uids) = (data_sources(), BTreeSet::new());
    for source in &sources {
        known("data sources", files::string(source, "url"));
        uids.insert(files::string(source, "uid"));
    }
    // Whatever leads from one to another leads to one that there is.
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
fn one_leads_to_the_others() {
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
    // In provisioned files a dollar sign that is for later is written twice.
    let file = files::text("deploy/grafana/provisioning/datasources/datasources.yaml");
    assert!(file.contains("$${__trace.traceId}"));
    assert!(
        !file.replace("$${", "").contains("${"),
        "a variable of the environment"
    );
    // Grafana finds the dashboards where the provider looks for them.
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
    // Spans are named by a template; their attributes name rooms and people.
    assert!(files::list(spans, "dimensions").is_empty());
}

/// A command of a bot, with the server that is here.
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
fn the_bots_talk() {
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
    assert_eq!(lobby["stdin_open"], true, "or Bob leaves");
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
    let output = run(Command::new(CHITCHAT).args(rooms), "");
    assert!(output.status.success(), "{}", text(&output.stderr));
}
