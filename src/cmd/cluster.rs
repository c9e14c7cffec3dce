//! `chitchat cluster`: prepares NATS for several replicas, and shows them.

mod keys;
mod monitor;

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, Subcommand};
use serde_json::Value;

use super::base_url::BaseUrl;
use super::parse::{duration, size};
use super::printer::{JsonArg, Printer};
use super::stderr::note;
use super::table::{Align, lines};
use super::{Failure, client_runtime};
use crate::cluster::{
    CheckpointDir, Credentials, ImportError, Imported, NatsAdmin, NatsError, NatsOptions, export, import,
    peers, read_file, wrong_config,
};
use crate::domain::Rules;
use crate::domain::limits::{DEFAULT_MAX_CLOCK_AHEAD, DEFAULT_MAX_MESSAGE_CHARS, DEFAULT_MAX_PARTICIPANTS};
use crate::store::ReadOnlyStore;
use crate::wall_clock::wall_time;
use keys::KeysCommand;
use monitor::{Monitored, unmonitored};

/// Prepare NATS for servers that share all rooms, and show them
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  chitchat cluster init --cluster nats://10.0.0.1,nats://10.0.0.2,nats://10.0.0.3
  chitchat cluster status --cluster nats://10.0.0.1")]
pub(super) struct ClusterCommand {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Make the stream that has the command log, or check the one that there is
    ///
    /// Changes nothing if there is a stream. Exits with 78 if something is not as it must be, and says what.
    Init {
        #[command(flatten)]
        nats: NatsArgs,
        /// How many NATS servers store each message: with 3, one of them may be lost; 1 only to try it out
        #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=5))]
        replicas: u64,
        /// Size at which the stream refuses more messages
        #[arg(long, value_name = "SIZE", default_value = "16GiB", value_parser = size::<u64>)]
        max_bytes: u64,
    },
    Keys(KeysCommand),
    /// Print the NATS servers, the stream and the replicas
    Status {
        #[command(flatten)]
        nats: NatsArgs,
    },
    /// Bring the rooms of a server without --cluster into an empty stream
    ///
    /// Writes a checkpoint with them into the data directory of a replica that has none yet, and makes the stream begin behind it. Start that replica
    /// first; the others get the rooms from it. The server must have ended. Session tokens that it has given are not valid
    /// any more: its clients join anew, and continue at the events that they have seen. The rules of rooms must be those of the replicas
    Import {
        /// Data directory of the server; it is not changed
        server: PathBuf,
        /// Data directory of a replica
        replica: PathBuf,
        #[command(flatten)]
        nats: NatsArgs,
        #[command(flatten)]
        rules: RulesArgs,
        /// Size of the newest events of each room to import
        #[arg(long, env = "CHITCHAT_RETAIN_BYTES", value_name = "SIZE", default_value = "32MiB", value_parser = size::<u64>)]
        retain_bytes: u64,
    },
    /// Bring the rooms of a cluster into the data directory of a server without --cluster
    ///
    /// Reads the newest checkpoint of a replica that has ended, or the checkpoint that is named. What came after it is not exported: stop the clients
    /// first, and then the replica, which takes a last checkpoint. Session tokens of the cluster are not valid any more: its clients join anew, and
    /// continue at the events that they have seen
    Export {
        /// Data directory of a replica, or one of the checkpoints in it; it is not changed
        replica: PathBuf,
        /// Data directory of the server; it must not exist, or be empty
        server: PathBuf,
    },
    /// Remove the messages of the stream that the checkpoints of two live replicas cover
    ///
    /// The replicas do this themselves if NATS allows them to.
    Truncate {
        #[command(flatten)]
        nats: NatsArgs,
        /// Do not remove messages that are newer than this
        #[arg(long, value_name = "TIME", value_parser = duration, default_value = "24h")]
        keep: Duration,
    },
}

/// The rules of all rooms, as the replicas have them.
#[derive(Debug, Args)]
struct RulesArgs {
    /// The --max-message-chars of the replicas
    #[arg(long, env = "CHITCHAT_MAX_MESSAGE_CHARS", value_name = "N", default_value_t = DEFAULT_MAX_MESSAGE_CHARS)]
    max_message_chars: usize,
    /// The --max-clock-ahead of the replicas
    #[arg(long, env = "CHITCHAT_MAX_CLOCK_AHEAD", value_name = "N", default_value_t = DEFAULT_MAX_CLOCK_AHEAD)]
    max_clock_ahead: i64,
    /// The --max-participants of the replicas
    #[arg(long, env = "CHITCHAT_MAX_PARTICIPANTS", value_name = "N", default_value_t = DEFAULT_MAX_PARTICIPANTS)]
    max_participants: usize,
    /// The --allow-duplicate-names of the replicas
    #[arg(long, env = "CHITCHAT_ALLOW_DUPLICATE_NAMES")]
    allow_duplicate_names: bool,
}

impl From<RulesArgs> for Rules {
    fn from(args: RulesArgs) -> Self {
        Self {
            max_message_chars: args.max_message_chars,
            max_clock_ahead: args.max_clock_ahead,
            max_participants: args.max_participants,
            allow_duplicate_names: args.allow_duplicate_names,
        }
    }
}

#[derive(Debug, Args)]
struct NatsArgs {
    /// Addresses of NATS servers, separated by commas
    #[arg(
        long,
        env = "CHITCHAT_CLUSTER",
        value_name = "URL",
        value_delimiter = ',',
        required = true,
        hide_env_values = true
    )]
    cluster: Vec<String>,
    /// Monitoring ports of all NATS servers, separated by commas, like http://10.0.0.1:8222. Only they say whether a server syncs
    /// what it acknowledges
    #[arg(
        long,
        env = "CHITCHAT_CLUSTER_MONITOR",
        value_name = "URL",
        value_delimiter = ','
    )]
    monitor: Vec<BaseUrl>,
    #[command(flatten)]
    tls: NatsIdentity,
}

/// TLS to NATS, and who connects.
#[derive(Debug, Args)]
pub(super) struct NatsIdentity {
    /// Certificates that those of the NATS servers are signed with, beside those of the system (PEM)
    #[arg(
        long,
        env = "CHITCHAT_CLUSTER_CA",
        value_name = "FILE",
        requires = "cluster",
        help_heading = "Cluster"
    )]
    cluster_ca: Option<PathBuf>,
    /// Certificate to present to the NATS servers (PEM)
    #[arg(
        long,
        env = "CHITCHAT_CLUSTER_CERT",
        value_name = "FILE",
        requires = "cluster",
        requires = "cluster_key",
        help_heading = "Cluster"
    )]
    cluster_cert: Option<PathBuf>,
    /// Private key of --cluster-cert (PEM)
    #[arg(
        long,
        env = "CHITCHAT_CLUSTER_KEY",
        value_name = "FILE",
        requires = "cluster_cert",
        help_heading = "Cluster"
    )]
    cluster_key: Option<PathBuf>,
    /// File with the seed of the NKey that NATS knows this program by. `chitchat cluster keys` makes one
    #[arg(
        long,
        env = "CHITCHAT_CLUSTER_NKEY",
        value_name = "FILE",
        requires = "cluster",
        conflicts_with = "cluster_creds",
        help_heading = "Cluster"
    )]
    cluster_nkey: Option<PathBuf>,
    /// Credentials file for NATS servers in operator mode, as `nsc` makes it
    #[arg(
        long,
        env = "CHITCHAT_CLUSTER_CREDS",
        value_name = "FILE",
        requires = "cluster",
        help_heading = "Cluster"
    )]
    cluster_creds: Option<PathBuf>,
}

impl NatsIdentity {
    pub(super) fn options(self, servers: Vec<String>) -> NatsOptions {
        NatsOptions {
            servers,
            ca: self.cluster_ca,
            certificate: self.cluster_cert.zip(self.cluster_key),
            credentials: (self.cluster_nkey.map(Credentials::NKey))
                .or_else(|| self.cluster_creds.map(Credentials::Creds)),
        }
    }
}

impl From<NatsError> for Failure {
    fn from(error: NatsError) -> Self {
        match error {
            NatsError::Address { .. }
            | NatsError::Credentials(_)
            | NatsError::Unauthorized
            | NatsError::Payload { .. }
            | NatsError::Denied(_) => Self::Config(vec![error.to_string()]),
            error => Self::Unavailable(error.to_string()),
        }
    }
}

impl ClusterCommand {
    pub(super) fn run(self) -> Result<(), Failure> {
        client_runtime::run(async move {
            match self.action {
                Action::Keys(keys) => keys.run(),
                Action::Init {
                    nats,
                    replicas,
                    max_bytes,
                } => init(nats, replicas, max_bytes).await,
                Action::Status { nats } => status(nats).await,
                Action::Export { replica, server } => export_rooms(&replica, &server).await,
                Action::Truncate { nats, keep } => truncate(nats, keep).await,
                Action::Import {
                    server,
                    replica,
                    nats,
                    rules,
                    retain_bytes,
                } => import_rooms(&server, &replica, nats, rules.into(), retain_bytes).await,
            }
        })
    }
}

/// What the monitoring ports say, as rows of a table, and the servers behind them.
async fn monitor(urls: &[BaseUrl], wrong: &mut Vec<String>) -> (Vec<[String; 3]>, Vec<Monitored>) {
    let (mut rows, mut servers) = (Vec::new(), Vec::new());
    for url in urls {
        match Monitored::get(url).await {
            Ok(server) => {
                wrong.extend(server.wrong.map(|why| format!("{} ({url}): {why}", server.name)));
                let sync = if server.wrong.is_none() { "always" } else { "WRONG" };
                rows.push([url.to_string(), server.name.clone(), sync.into()]);
                servers.push(server);
            }
            Err(error) => {
                rows.push([url.to_string(), String::new(), "unknown".into()]);
                wrong.push(error);
            }
        }
    }
    (rows, servers)
}

/// What is wrong with the stream, one line each.
fn wrong_stream(stream: &Value, replicas: u64, monitored: &[Monitored]) -> Vec<String> {
    let mut wrong = wrong_config(&stream["config"], replicas);
    let peers = peers(stream);
    if replicas > 1 && (peers.len() as u64) < replicas {
        wrong.push(format!(
            "the stream is stored by {} ({}); it must be by {replicas} servers",
            peers.len(),
            peers.join(", ")
        ));
    }
    if !monitored.is_empty() {
        let unmonitored = unmonitored(&peers, monitored).into_iter();
        wrong.extend(unmonitored.map(|peer| {
            format!("{peer} stores the stream, and was not checked; add its monitoring port to --monitor")
        }));
    }
    wrong
}

async fn init(nats: NatsArgs, replicas: u64, max_bytes: u64) -> Result<(), Failure> {
    let admin = NatsAdmin::connect(nats.tls.options(nats.cluster)).await?;
    let mut wrong = Vec::new();
    for (address, server) in admin.servers().await {
        match server {
            Ok(server) => wrong.extend(server.wrong().iter().map(|why| format!("{address}: {why}"))),
            Err(error) => wrong.push(format!("{address}: {error}")),
        }
    }
    let (_, monitored) = monitor(&nats.monitor, &mut wrong).await;
    if !wrong.is_empty() {
        return Err(Failure::Config(wrong));
    }
    let stream = if let Some(stream) = admin.stream().await? {
        note(format_args!("there is a stream; it was not changed"));
        stream
    } else {
        admin.create_stream(replicas, max_bytes).await?
    };
    let wrong = wrong_stream(&stream, replicas, &monitored);
    if !wrong.is_empty() {
        return Err(Failure::Config(wrong));
    }
    note(format_args!("the stream is as it must be"));
    if monitored.is_empty() {
        note(format_args!(
            "NOT CHECKED: whether the NATS servers sync what they acknowledge (`sync_interval: always`); give their monitoring ports with --monitor"
        ));
    }
    Ok(())
}

async fn status(nats: NatsArgs) -> Result<(), Failure> {
    let admin = NatsAdmin::connect(nats.tls.options(nats.cluster)).await?;
    let mut wrong = Vec::new();
    let mut rows = vec![["NATS SERVER", "NAME", "VERSION", ""].map(str::to_owned)];
    for (address, server) in admin.servers().await {
        rows.push(match server {
            Ok(server) => {
                let why = server.wrong().join("; ");
                [address, server.name, server.version, why]
            }
            Err(error) => [address, String::new(), String::new(), error.to_string()],
        });
    }
    print(&lines([Align::Left; 4], &rows))?;
    let (mut rows, monitored) = monitor(&nats.monitor, &mut wrong).await;
    if !rows.is_empty() {
        rows.insert(0, ["MONITORING PORT", "NAME", "SYNC"].map(str::to_owned));
        print(&lines([Align::Left; 3], &rows))?;
    }
    let Some(stream) = admin.stream().await? else {
        return Err(Failure::NotFound(
            "there is no stream; run `chitchat cluster init`".into(),
        ));
    };
    let (state, config, raft) = (&stream["state"], &stream["config"], &stream["cluster"]);
    let number = |value: &Value| value.as_u64().unwrap_or_default();
    let last = number(&state["last_seq"]);
    let mut rows = vec![["STREAM ON", "LAG", ""].map(str::to_owned)];
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    rows.push([text(&raft["leader"]), "0".into(), "leader".into()]);
    for peer in raft["replicas"].as_array().into_iter().flatten() {
        let is_offline = peer["offline"].as_bool() == Some(true);
        let is_current = peer["current"].as_bool() == Some(true);
        let note = match (is_offline, is_current) {
            (true, _) => "offline",
            (_, true) => "",
            _ => "not current",
        };
        rows.push([text(&peer["name"]), number(&peer["lag"]).to_string(), note.into()]);
    }
    print(&lines([Align::Left, Align::Right, Align::Left], &rows))?;
    print(&[format!(
        "messages {} to {last}, {} of {} bytes",
        number(&state["first_seq"]),
        number(&state["bytes"]),
        number(&config["max_bytes"])
    )])?;
    let now = wall_time().as_millis();
    let mut rows = vec![["REPLICA", "VERSION", "SEEN", "LAG", "CHECKPOINT"].map(str::to_owned)];
    for replica in admin.replicas(&stream).await? {
        let seen = now.saturating_sub(replica.seen_at) / 1_000;
        rows.push([
            replica.name,
            replica.version,
            format!("{seen} s ago"),
            replica.lag.to_string(),
            replica
                .checkpoint
                .map_or_else(|| "none".into(), |durable| durable.position.to_string()),
        ]);
    }
    print(&lines(
        [Align::Left, Align::Left, Align::Right, Align::Right, Align::Right],
        &rows,
    ))?;
    wrong.extend(wrong_stream(&stream, number(&config["num_replicas"]), &monitored));
    if wrong.is_empty() {
        Ok(())
    } else {
        Err(Failure::Config(wrong))
    }
}

/// Its threads may block: nothing else is going on.
async fn import_rooms(
    server: &Path,
    replica: &Path,
    nats: NatsArgs,
    rules: Rules,
    retain_bytes: u64,
) -> Result<(), Failure> {
    let admin = NatsAdmin::connect(nats.tls.options(nats.cluster)).await?;
    let Some(stream) = admin.stream().await? else {
        return Err(Failure::NotFound(
            "there is no stream; run `chitchat cluster init`".into(),
        ));
    };
    let last = stream["state"]["last_seq"].as_u64();
    if last != Some(0) {
        return Err(Failure::Config(vec![format!(
            "the stream has had {} messages; rooms can be imported only into one that has had none",
            last.unwrap_or_default()
        )]));
    }
    let store = ReadOnlyStore::open(server)?;
    let directory = CheckpointDir::open(replica)?;
    let Imported { id, rooms, mark } =
        import(&store, rules, retain_bytes, &directory).map_err(|error| match error {
            ImportError::Store(error) => error.into(),
            error => Failure::Io(error.to_string()),
        })?;
    if let Err(error) = admin.begin_after_import(&mark).await {
        note(format_args!("remove {}: it is of no use", replica.display()));
        return Err(error.into());
    }
    note(format_args!(
        "{rooms} rooms, {} bytes; start the replica with --data-dir {} first",
        id.len,
        replica.display()
    ));
    Ok(())
}

/// Its threads may block: nothing else is going on.
async fn export_rooms(replica: &Path, server: &Path) -> Result<(), Failure> {
    let newest;
    let file = if replica.is_dir() {
        newest = CheckpointDir::newest_file(replica)?;
        &newest
    } else {
        replica
    };
    let checkpoint =
        read_file(file).map_err(|error| Failure::Data(format!("{}: {error}", file.display())))?;
    let position = checkpoint.id.position;
    let rooms = export(checkpoint, server).await?;
    note(format_args!(
        "{rooms} rooms as of message {position} of the stream; start the server with --data-dir {}",
        server.display()
    ));
    Ok(())
}

async fn truncate(nats: NatsArgs, keep: Duration) -> Result<(), Failure> {
    let admin = NatsAdmin::connect(nats.tls.options(nats.cluster)).await?;
    let Some(stream) = admin.stream().await? else {
        return Err(Failure::NotFound(
            "there is no stream; run `chitchat cluster init`".into(),
        ));
    };
    match admin.truncate(&stream, keep).await? {
        Some(removed) => print(&[format!("removed {removed} messages")]),
        None => Err(Failure::Unavailable(
            "no two live replicas have checkpoints; start them with --data-dir".into(),
        )),
    }
}

fn print(lines: &[String]) -> Result<(), Failure> {
    let mut printer = Printer::new(&JsonArg { json: false });
    for line in lines {
        printer.print(|| line.clone(), || Value::Null)?;
    }
    Ok(())
}
