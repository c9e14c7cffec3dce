//! What only the monitoring port of a NATS server says.

use serde_json::Value;

use crate::cmd::base_url::BaseUrl;

/// A NATS server, as its monitoring port shows it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Monitored {
    pub(super) name: String,
    /// What is wrong with its configuration, if anything is.
    pub(super) wrong: Option<&'static str>,
}

impl Monitored {
    /// Asks the monitoring port. The error is a line for users.
    pub(super) async fn get(url: &BaseUrl) -> Result<Self, String> {
        let varz = url.get_json("/varz", &[]).await?;
        Self::from_varz(&varz).ok_or_else(|| format!("{url}/varz is not that of a NATS server"))
    }

    fn from_varz(varz: &Value) -> Option<Self> {
        let name = varz.get("server_name")?.as_str()?.to_owned();
        let jetstream = varz.get("jetstream")?;
        let wrong = match jetstream.get("config") {
            None => Some("JetStream is off; its configuration must have `jetstream { … }`"),
            Some(config) if config.get("sync_always") == Some(&Value::Bool(true)) => None,
            Some(_) => Some(
                "it does not sync what it acknowledges, so a power failure loses messages; set `sync_interval: always` in `jetstream`",
            ),
        };
        Some(Self { name, wrong })
    }
}

/// The servers that store the stream, but are not among those whose monitoring ports were asked.
pub(super) fn unmonitored<'a>(peers: &'a [String], monitored: &[Monitored]) -> Vec<&'a str> {
    let is_unmonitored = |peer: &&String| !monitored.iter().any(|server| server.name == **peer);
    peers.iter().filter(is_unmonitored).map(String::as_str).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_server_that_does_not_always_sync_is_wrong() {
        let wrong = |jetstream: Value| {
            let monitored = Monitored::from_varz(&json!({ "server_name": "n1", "jetstream": jetstream }));
            monitored.map(|monitored| monitored.wrong.unwrap_or_default())
        };
        assert_eq!(wrong(json!({ "config": { "sync_always": true } })), Some(""));
        let lazy = wrong(json!({ "config": { "sync_interval": 120_000_000_000_u64 } }));
        assert!(lazy.is_some_and(|why| why.contains("sync_interval: always")));
        assert!(wrong(json!({})).is_some_and(|why| why.contains("JetStream is off")));
        assert_eq!(Monitored::from_varz(&json!({ "status": "ok" })), None);
    }

    #[test]
    fn a_peer_whose_port_was_not_asked_is_named() {
        let peers = ["n1", "n2"].map(str::to_owned);
        let monitored = [Monitored {
            name: "n2".into(),
            wrong: None,
        }];
        assert_eq!(unmonitored(&peers, &monitored), ["n1"]);
    }
}
