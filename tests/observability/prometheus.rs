//! A real Prometheus with the deployed configuration, which scrapes every second.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::files;
use crate::process::{Process, external_program, http_request, unused_address, wait_until};

pub struct Prometheus {
    address: SocketAddr,
    _running: Process,
    _folder: TempDir,
}

impl Prometheus {
    /// Starts one that scrapes this server. `None` if Prometheus is not installed.
    pub fn scraping(server: SocketAddr) -> Option<Self> {
        let program = external_program("CHITCHAT_TEST_PROMETHEUS", "prometheus", &["--version"])?;
        let folder = tempfile::tempdir().unwrap();
        configure(folder.path(), server);
        // Prometheus does not report its port when it is told to choose one.
        let address = unused_address();
        let mut command = Command::new(program);
        for flag in deployed_flags() {
            let (name, value) = flag.split_once('=').unwrap_or((&flag, ""));
            match name {
                "--config.file" => command.arg(format!(
                    "{name}={}",
                    folder.path().join("prometheus.yml").display()
                )),
                "--storage.tsdb.path" => {
                    command.arg(format!("{name}={}", folder.path().join("data").display()))
                }
                "--web.console.templates" => command.arg(format!(
                    "{name}={}",
                    files::path("deploy/prometheus/consoles").display()
                )),
                _ if value.is_empty() => command.arg(name),
                _ => command.arg(&flag),
            };
        }
        command.arg(format!("--web.listen-address={address}"));
        let running = Process::start(&mut command);
        let prometheus = Self {
            address,
            _running: running,
            _folder: folder,
        };
        wait_until("Prometheus is ready", || {
            prometheus
                .get("/-/ready")
                .filter(|answer| answer.starts_with("HTTP/1.0 200"))
        });
        Some(prometheus)
    }

    /// The response to a GET request, with its head.
    pub fn get(&self, path: &str) -> Option<String> {
        http_request(self.address, &format!("GET {path} HTTP/1.0\r\n\r\n"))
    }

    fn json(&self, request: &str) -> Value {
        let answer = http_request(self.address, request).expect("Prometheus answers");
        let (_, body) = answer.split_once("\r\n\r\n").expect("an HTTP answer");
        serde_json::from_str(body).unwrap_or_else(|error| panic!("{error}: {answer}"))
    }

    /// The samples of an instant query, or the error.
    pub fn query(&self, expression: &str) -> Result<Vec<Value>, String> {
        let body = format!("query={}", encoded(expression));
        let answer = self.json(&format!(
            "POST /api/v1/query HTTP/1.0\r\nContent-Type: application/x-www-form-urlencoded\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        ));
        if answer["status"] == "success" {
            Ok(files::list(&answer["data"], "result").clone())
        } else {
            Err(answer.to_string())
        }
    }

    /// All rules with their health.
    pub fn rules(&self) -> Vec<Value> {
        let answer = self.json("GET /api/v1/rules HTTP/1.0\r\n\r\n");
        files::list(&answer["data"], "groups")
            .iter()
            .flat_map(|group| files::list(group, "rules").clone())
            .collect()
    }
}

/// Prometheus' flags in the compose file.
fn deployed_flags() -> Vec<String> {
    let compose = files::yaml("deploy/compose.yaml");
    let flags = files::strings(&compose["services"]["prometheus"]["command"]);
    assert!(flags.contains(&"--enable-feature=exemplar-storage"));
    assert!(flags.contains(&"--web.enable-remote-write-receiver"));
    flags.into_iter().map(files::with_defaults).collect()
}

/// Writes the deployed configuration and rules with this server's address and intervals of one second.
fn configure(folder: &Path, server: SocketAddr) {
    let mut config = files::yaml("deploy/prometheus/prometheus.yml");
    config["global"] = json!({"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"});
    config["alerting"] = json!({});
    let jobs = config["scrape_configs"].as_array_mut().expect("jobs");
    // The other services do not run here.
    jobs.retain(|job| job["job_name"] == "chitchat");
    assert_eq!(jobs[0]["static_configs"][0]["targets"], json!(["chitchat:9464"]));
    jobs[0]["static_configs"][0]["targets"] = json!([server.to_string()]);
    fs::create_dir_all(folder.join("rules")).unwrap();
    for name in files::names("deploy/prometheus/rules", ".yml") {
        let mut rules = files::yaml(&format!("deploy/prometheus/rules/{name}"));
        for group in rules["groups"].as_array_mut().expect("groups") {
            group["interval"] = "1s".into();
        }
        fs::write(folder.join("rules").join(name), rules.to_string()).unwrap();
    }
    // JSON is YAML.
    fs::write(folder.join("prometheus.yml"), config.to_string()).unwrap();
}

fn encoded(text: &str) -> String {
    text.bytes()
        .map(|byte| {
            if byte.is_ascii_alphanumeric() {
                char::from(byte).to_string()
            } else {
                format!("%{byte:02X}")
            }
        })
        .collect()
}
